//! Connect and Disconnect (Base 6.3 "Connect Command and Response", 6.4 "Disconnect Command and Response").

use zerocopy::little_endian::{U16, U32};

use super::nqn::{NQN_FIELD_LEN, Nqn, NqnError};
use crate::nvme::command::sqe_view;
use crate::nvme::completion::Cqe;
use crate::nvme::sgl::SglDescriptor;
use crate::nvme::status::Status;

/// CNTLID of a Connect to the admin queue under the dynamic controller model.
pub const CNTLID_DYNAMIC: u16 = 0xffff;

/// CNTLID of a Connect to the admin queue under the static controller model: any controller.
pub const CNTLID_STATIC_ANY: u16 = 0xfffe;

/// The largest CNTLID that a controller may have (FFF0h and up are reserved).
pub const CNTLID_MAX: u16 = 0xffef;

/// RECFMT of Connect and Disconnect.
pub const RECFMT: u16 = 0;

/// The smallest admin queue that a controller offers, in entries (Base 3.3.2.2, ASQSZ).
pub const ADMIN_QUEUE_ENTRIES_MIN: u16 = 32;

wire! {
    /// Connect command (Base, Figure "Connect Command - Submission Queue Entry").
    pub struct ConnectCmd[64] {
        /// Opcode 7Fh.
        pub opc @ 0: u8,
        /// FUSE and PSDT.
        pub flags @ 1: u8,
        /// Command Identifier.
        pub cid @ 2: U16,
        /// Fabrics Command Type 01h.
        pub fctype @ 4: u8,
        rsvd5 @ 5: [u8; 19],
        /// SGL Entry 1: the Connect data, 1024 bytes.
        pub sgl1 @ 24: SglDescriptor,
        /// Record Format: 0.
        pub recfmt @ 40: U16,
        /// Queue ID: 0 is the admin queue.
        pub qid @ 42: U16,
        /// Submission Queue Size, entries, 0's based.
        pub sqsize0 @ 44: U16,
        /// Connect Attributes: see [`ConnectAttributes`].
        pub cattr @ 46: u8,
        rsvd47 @ 47: u8,
        /// Keep Alive Timeout, milliseconds; 0 disables it; reserved for I/O queues.
        pub kato_ms @ 48: U32,
        rsvd52 @ 52: [u8; 12],
    }
}

sqe_view!(ConnectCmd, DisconnectCmd);

bits! {
    /// CATTR of Connect.
    pub struct ConnectAttributes(u8) {
        priority / with_priority: u8 @ 0, 2, "Priority Class: 0 urgent, 1 high, 2 medium, 3 low";
        disable_sq_flow_control / with_disable_sq_flow_control: bool @ 2, 1, "Disable SQ Flow Control";
        io_queue_deletion / with_io_queue_deletion: bool @ 3, 1, "The host deletes I/O queues one by one (Disconnect)";
    }
}

wire! {
    /// Connect data (Base, Figure "Connect Command - Data").
    pub struct ConnectData[1024] {
        /// Host Identifier; zero is not allowed in an association with reservations.
        pub hostid @ 0: [u8; 16],
        /// Controller ID asked for.
        pub cntlid @ 16: U16,
        rsvd18 @ 18: [u8; 238],
        /// NVM Subsystem NQN.
        pub subnqn @ 256: [u8; NQN_FIELD_LEN],
        /// Host NQN.
        pub hostnqn @ 512: [u8; NQN_FIELD_LEN],
        rsvd768 @ 768: [u8; 256],
    }
}

impl ConnectData {
    /// Data of a Connect by `hostnqn` to `subnqn`.
    #[must_use]
    pub fn new(hostid: [u8; 16], cntlid: u16, subnqn: &Nqn, hostnqn: &Nqn) -> Self {
        Self {
            hostid,
            cntlid: U16::new(cntlid),
            subnqn: subnqn.to_field(),
            hostnqn: hostnqn.to_field(),
            ..Self::default()
        }
    }

    /// SUBNQN, checked. An error is answered by [`invalid_data`] with [`SUBNQN_OFF`].
    ///
    /// # Errors
    /// The field is not a valid NQN.
    pub fn subsystem(&self) -> Result<Nqn, NqnError> {
        Nqn::from_field(&self.subnqn)
    }

    /// HOSTNQN, checked. An error is answered by [`invalid_data`] with [`HOSTNQN_OFF`].
    ///
    /// An empty field, all zero (SPDK's perf tool sends one) is read as the NQN that its HOSTID makes, in the UUID form of Base 4.7:
    /// such a host is let in where any host is, or by that name.
    ///
    /// # Errors
    /// The field is not a valid NQN.
    pub fn host(&self) -> Result<Nqn, NqnError> {
        if self.hostnqn.iter().any(|byte| *byte != 0) {
            return Nqn::from_field(&self.hostnqn);
        }
        let mut name = String::from("nqn.2014-08.org.nvmexpress:uuid:");
        for (index, byte) in self.hostid.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                name.push('-');
            }
            name.push_str(&format!("{byte:02x}"));
        }
        Nqn::parse(name.as_bytes())
    }
}

/// Offset of SQSIZE in the Connect command, for IPO.
pub const SQSIZE_OFF: u16 = 44;
/// Offset of QID in the Connect command, for IPO.
pub const QID_OFF: u16 = 42;
/// Offset of RECFMT in the Connect command, for IPO.
pub const RECFMT_OFF: u16 = 40;
/// Offset of CATTR in the Connect command, for IPO.
pub const CATTR_OFF: u16 = 46;
/// Offset of KATO in the Connect command, for IPO.
pub const KATO_OFF: u16 = 48;
/// Offset of HOSTID in the Connect data, for IPO.
pub const HOSTID_OFF: u16 = 0;
/// Offset of CNTLID in the Connect data, for IPO.
pub const CNTLID_OFF: u16 = 16;
/// Offset of SUBNQN in the Connect data, for IPO.
pub const SUBNQN_OFF: u16 = 256;
/// Offset of HOSTNQN in the Connect data, for IPO.
pub const HOSTNQN_OFF: u16 = 512;

bits! {
    /// Completion dword 0 of a successful Connect.
    pub struct ConnectResult(u32) {
        cntlid / with_cntlid: u16 @ 0, 16, "Controller ID allocated to the host";
        atr / with_atr: bool @ 17, 1, "Authentication Transaction Required (ATR)";
        ascr / with_ascr: bool @ 18, 1, "Authentication and Secure Channel Required (ASCR)";
    }
}

bits! {
    /// Completion dword 0 of a Connect that failed with Connect Invalid Parameters.
    pub struct ConnectInvalid(u32) {
        ipo / with_ipo: u16 @ 0, 16, "Invalid Parameter Offset, bytes";
        iattr / with_iattr: bool @ 16, 1, "Set: IPO counts from the data; clear: from the SQE";
    }
}

/// Completion of a Connect refused for a field of its SQE at `ipo`.
#[must_use]
pub fn invalid_sqe(cid: u16, sqhd: u16, ipo: u16) -> Cqe {
    let dw0 = ConnectInvalid(0).with_ipo(ipo);
    Cqe::new(cid, sqhd, Status::CONNECT_INVALID_PARAMETERS.with_dnr()).with_dw0(dw0.0)
}

/// Completion of a Connect refused for a field of its data at `ipo`.
#[must_use]
pub fn invalid_data(cid: u16, sqhd: u16, ipo: u16) -> Cqe {
    let dw0 = ConnectInvalid(0).with_ipo(ipo).with_iattr(true);
    Cqe::new(cid, sqhd, Status::CONNECT_INVALID_PARAMETERS.with_dnr()).with_dw0(dw0.0)
}

wire! {
    /// Disconnect command: deletes the I/O queue that it is sent on.
    pub struct DisconnectCmd[64] {
        /// Opcode 7Fh.
        pub opc @ 0: u8,
        /// FUSE and PSDT.
        pub flags @ 1: u8,
        /// Command Identifier.
        pub cid @ 2: U16,
        /// Fabrics Command Type 08h.
        pub fctype @ 4: u8,
        rsvd5 @ 5: [u8; 35],
        /// Record Format: 0.
        pub recfmt @ 40: U16,
        rsvd42 @ 42: [u8; 22],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_a_name_is_named_by_its_hostid() {
        let name = Nqn::parse(b"nqn.2026-11.io.penstock:host").unwrap();
        let mut data = ConnectData::new([0xab; 16], 0xffff, &name, &name);
        assert_eq!(data.host().unwrap(), name);
        data.hostnqn = [0; NQN_FIELD_LEN];
        let derived = "nqn.2014-08.org.nvmexpress:uuid:abababab-abab-abab-abab-abababababab";
        assert_eq!(data.host().unwrap(), Nqn::parse(derived.as_bytes()).unwrap());
    }
}
