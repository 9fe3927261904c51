//! Reservation Report (Base 7.7): the extended data structure, the only one where hosts have 128-bit identifiers.

use penstock_bdev::reservation::{HostId, ReservationView};
use penstock_spec::nvme::Status;
use penstock_spec::nvme::reservation::{
    EXTENDED_REGISTRANTS_OFF, RegistrantExtended, ReportDw11, ReservationStatusHdr,
};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use super::code_of;

/// CNTLID where hosts get another controller each time they connect.
const CNTLID_DYNAMIC: u16 = 0xffff;
/// RCSTS: this host holds the reservation.
const RCSTS_HOLDER: u8 = 1;

/// Puts the first `len` bytes of what there is to be told into `out`.
///
/// # Errors
/// Host Identifier Inconsistent Format where the other data structure is asked for (EDS clear).
pub fn report(view: &ReservationView, dw11: ReportDw11, len: usize, out: &mut Vec<u8>) -> Result<(), Status> {
    if !dw11.eds() {
        return Err(Status::HOST_ID_INCONSISTENT_FORMAT.with_dnr());
    }
    let mut head = ReservationStatusHdr::default();
    head.gen_ = U32::new(view.generation);
    head.rtype = view.kind().map_or(0, code_of);
    head.regstrnt = U16::new(u16::try_from(view.registrants.len()).unwrap_or(u16::MAX));
    head.ptpls = u8::from(view.persistent);
    out.clear();
    out.extend_from_slice(head.as_bytes());
    out.resize(EXTENDED_REGISTRANTS_OFF, 0);
    for (id, key) in &view.registrants {
        let mut registrant = RegistrantExtended::default();
        registrant.cntlid = U16::new(CNTLID_DYNAMIC);
        registrant.rcsts = if view.standing(id).holder { RCSTS_HOLDER } else { 0 };
        registrant.rkey = U64::new(*key);
        registrant.hostid = host_identifier(&id.host, id.port);
        out.extend_from_slice(registrant.as_bytes());
    }
    out.truncate(len);
    Ok(())
}

/// What a host is called here: its own identifier, or a digest (FNV-1a) of what SCSI calls a nexus.
fn host_identifier(host: &HostId, port: u16) -> [u8; 16] {
    match host {
        HostId::Nvme(id) => *id,
        HostId::Scsi(id) => {
            let mut hash = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128;
            for byte in id.iter().copied().chain(port.to_le_bytes()) {
                hash = (hash ^ u128::from(byte)).wrapping_mul(0x0100_0000_0000_0000_0000_013b);
            }
            hash.to_le_bytes()
        }
    }
}
