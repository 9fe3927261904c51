//! Discovery log page, LID 70h (Base 5.2.13.3.1 "Discovery Log Page").

use zerocopy::little_endian::{U16, U32, U64};

use super::nqn::{NQN_FIELD_LEN, Nqn, NqnError};

/// The IANA port of the NVMe/TCP discovery service.
pub const DISCOVERY_PORT_TCP: u16 = 8009;

/// The IANA port of NVMe over fabrics I/O controllers.
pub const IO_PORT_TCP: u16 = 4420;

codes! {
    /// Transport Type (TRTYPE).
    pub struct TrType(u8) {
        RDMA = 0x01, "RDMA";
        FC = 0x02, "Fibre Channel";
        TCP = 0x03, "TCP";
        INTRA_HOST = 0xfe, "Intra-host";
    }
}

codes! {
    /// Address Family (ADRFAM).
    pub struct AdrFam(u8) {
        IPV4 = 0x01, "IPv4";
        IPV6 = 0x02, "IPv6";
        IB = 0x03, "InfiniBand";
        FC = 0x04, "Fibre Channel";
        INTRA_HOST = 0xfe, "Intra-host";
    }
}

codes! {
    /// Subsystem Type (SUBTYPE).
    pub struct SubType(u8) {
        DISCOVERY = 0x01, "referral to another Discovery subsystem";
        NVM = 0x02, "NVM subsystem";
        CURRENT_DISCOVERY = 0x03, "current Discovery subsystem";
    }
}

bits! {
    /// Transport Requirements (TREQ).
    pub struct TReq(u8) {
        secure_channel / with_secure_channel: u8 @ 0, 2, "0 not specified, 1 required, 2 not required";
        dsfc / with_dsfc: bool @ 2, 1, "Disabling SQ flow control is supported";
    }
}

bits! {
    /// Entry Flags (EFLAGS).
    pub struct EFlags(u16) {
        dupretinfo / with_dupretinfo: bool @ 0, 1, "Duplicate Returned Information";
        epcsd / with_epcsd: bool @ 1, 1, "Explicit Persistent Connection Support for Discovery";
        ncc / with_ncc: bool @ 2, 1, "No CDC Connectivity";
    }
}

codes! {
    /// Security Type (SECTYPE) in TSAS of NVMe/TCP.
    pub struct SecType(u8) {
        NONE = 0x00, "No Security";
        TLS12 = 0x01, "TLS 1.2 or later (obsolete)";
        TLS13 = 0x02, "TLS 1.3 or later";
    }
}

wire! {
    /// Head of the Discovery log page; followed by `numrec` entries.
    pub struct DiscoveryLogHdr[1024] {
        /// Generation Counter: changes with the contents.
        pub genctr @ 0: U64,
        /// Number of Records.
        pub numrec @ 8: U64,
        /// Record Format: 0 (1 for extended entries).
        pub recfmt @ 16: U16,
        /// Discovery Log Page Flags.
        pub dlpf @ 18: u8,
        rsvd19 @ 19: u8,
        /// Total Discovery Log Page Length, bytes (extended format).
        pub tdlpl @ 20: U32,
        rsvd24 @ 24: [u8; 1000],
    }
}

wire! {
    /// Discovery Log Page Entry. Text fields are ASCII padded with zeroes or spaces.
    pub struct DiscoveryLogEntry[1024] {
        /// Transport Type.
        pub trtype @ 0: TrType,
        /// Address Family.
        pub adrfam @ 1: AdrFam,
        /// Subsystem Type.
        pub subtype @ 2: SubType,
        /// Transport Requirements: see [`TReq`].
        pub treq @ 3: u8,
        /// Port ID.
        pub portid @ 4: U16,
        /// Controller ID: FFFFh under the dynamic model.
        pub cntlid @ 6: U16,
        /// Admin Max SQ Size, entries; at least 32.
        pub asqsz @ 8: U16,
        /// Entry Flags: see [`EFlags`].
        pub eflags @ 10: U16,
        rsvd12 @ 12: [u8; 20],
        /// Transport Service Identifier: the TCP port in decimal.
        pub trsvcid @ 32: [u8; 32],
        rsvd64 @ 64: [u8; 192],
        /// NVM Subsystem Qualified Name.
        pub subnqn @ 256: [u8; NQN_FIELD_LEN],
        /// Transport Address.
        pub traddr @ 512: [u8; 256],
        /// Transport Specific Address Subtype; byte 0 is [`SecType`] on TCP.
        pub tsas @ 768: [u8; 256],
    }
}

impl DiscoveryLogEntry {
    /// SUBNQN, checked.
    ///
    /// # Errors
    /// The field is not a valid NQN.
    pub fn subsystem(&self) -> Result<Nqn, NqnError> {
        Nqn::from_field(&self.subnqn)
    }

    /// TRADDR without its padding; `None` if it is not ASCII.
    #[must_use]
    pub fn traddr(&self) -> Option<&str> {
        trimmed(&self.traddr)
    }

    /// TRSVCID without its padding; `None` if it is not ASCII.
    #[must_use]
    pub fn trsvcid(&self) -> Option<&str> {
        trimmed(&self.trsvcid)
    }

    /// Sets TRADDR, padded with zeroes; what does not fit is cut off and `false` returned.
    pub fn set_traddr(&mut self, text: &str) -> bool {
        fill(&mut self.traddr, text)
    }

    /// Sets TRSVCID, padded with zeroes; what does not fit is cut off and `false` returned.
    pub fn set_trsvcid(&mut self, text: &str) -> bool {
        fill(&mut self.trsvcid, text)
    }
}

/// The text of a field up to its first zero, without trailing spaces.
fn trimmed(field: &[u8]) -> Option<&str> {
    let text = field.split(|b| *b == 0).next()?;
    let text = core::str::from_utf8(text).ok()?;
    text.is_ascii().then(|| text.trim_end())
}

fn fill(field: &mut [u8], text: &str) -> bool {
    let mut bytes = text.bytes();
    for to in field.iter_mut() {
        *to = bytes.next().unwrap_or(0);
    }
    bytes.next().is_none()
}
