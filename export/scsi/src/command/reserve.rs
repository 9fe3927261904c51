//! PERSISTENT RESERVE IN and OUT (SPC-4 6.15, 6.16): their bytes. What they do is in `penstock_bdev::reservation`.

use penstock_bdev::reservation::{HostId, RegistrantId, ReservationType, ReservationView};
use penstock_spec::scsi::opcode::{PrIn, PrOut};
use penstock_spec::scsi::reservation::{
    Capabilities, FullStatusDescriptor, IscsiTransportIdHdr, PrInHdr, PrMoveList, PrOutList, PrType,
    ReservationDescriptor,
};
use penstock_spec::scsi::sense::Asc;
use zerocopy::FromBytes;

use super::{len32, put};
use crate::lu::PrCommand;
use crate::sense::{Fault, Sense};

/// TYPE as the standard encodes it.
#[must_use]
pub(crate) const fn type_code(kind: ReservationType) -> PrType {
    match kind {
        ReservationType::WriteExclusive => PrType::WRITE_EXCLUSIVE,
        ReservationType::ExclusiveAccess => PrType::EXCLUSIVE_ACCESS,
        ReservationType::WriteExclusiveRegistrantsOnly => PrType::WRITE_EXCLUSIVE_REGISTRANTS_ONLY,
        ReservationType::ExclusiveAccessRegistrantsOnly => PrType::EXCLUSIVE_ACCESS_REGISTRANTS_ONLY,
        ReservationType::WriteExclusiveAllRegistrants => PrType::WRITE_EXCLUSIVE_ALL_REGISTRANTS,
        ReservationType::ExclusiveAccessAllRegistrants => PrType::EXCLUSIVE_ACCESS_ALL_REGISTRANTS,
    }
}

fn type_of(code: u8) -> Option<ReservationType> {
    ReservationType::ALL.into_iter().find(|kind| type_code(*kind).0 == code)
}

/// Puts what a PERSISTENT RESERVE IN asks for into `out`.
pub(crate) fn read(action: PrIn, view: &ReservationView, out: &mut Vec<u8>) -> Result<(), Fault> {
    let mut body = Vec::new();
    match action {
        PrIn::READ_KEYS => body.extend(view.registrants.iter().flat_map(|(_, key)| key.to_be_bytes())),
        PrIn::READ_RESERVATION => {
            if let Some(kind) = view.kind() {
                let key = view.reservation_key().into();
                let scope_type = type_code(kind).0;
                put(
                    &mut body,
                    &ReservationDescriptor { key, scope_type, ..ReservationDescriptor::default() },
                );
            }
        }
        PrIn::READ_FULL_STATUS => full_status(view, &mut body),
        PrIn::REPORT_CAPABILITIES => {
            put(out, &capabilities(view));
            return Ok(());
        }
        _ => return Err(Sense::cdb(1).into()),
    }
    put(out, &PrInHdr { generation: view.generation.into(), len: len32(body.len()).into() });
    out.extend_from_slice(&body);
    Ok(())
}

fn capabilities(view: &ReservationView) -> Capabilities {
    Capabilities {
        len: 8.into(),
        // PTPL_C.
        flags2: 0x01,
        // TMV; ALLOW COMMANDS 0: nothing is said; PTPL_A.
        flags3: 0x80 | u8::from(view.persistent),
        // WR_EX_AR, EX_AC_RO, WR_EX_RO, EX_AC, WR_EX; EX_AC_AR.
        types: [0xea, 0x01],
        ..Capabilities::default()
    }
}

fn full_status(view: &ReservationView, out: &mut Vec<u8>) {
    for (id, key) in &view.registrants {
        let holder = view.standing(id).holder;
        let transport_id = transport_id(&id.host);
        let scope_type = if holder { view.kind().map_or(0, |kind| type_code(kind).0) } else { 0 };
        put(
            out,
            &FullStatusDescriptor {
                key: (*key).into(),
                flags: u8::from(holder),
                scope_type,
                relative_port: id.port.into(),
                additional_len: len32(transport_id.len()).into(),
                ..FullStatusDescriptor::default()
            },
        );
        out.extend_from_slice(&transport_id);
    }
}

/// The TransportID of a registrant. One that came by NVMe has none of SCSI's; it is shown by a name of ours.
fn transport_id(host: &HostId) -> Vec<u8> {
    match host {
        HostId::Scsi(bytes) => bytes.to_vec(),
        HostId::Nvme(id) => iscsi_transport_id(&format!("uuid.{}", uuid::Uuid::from_bytes(*id)), None),
    }
}

/// The TransportID of an iSCSI initiator port (SPC-4 7.6.4.6): its name and, for a session's port, the ISID.
#[must_use]
pub fn iscsi_transport_id(name: &str, isid: Option<[u8; 6]>) -> Vec<u8> {
    let mut text = name.as_bytes().to_vec();
    text.truncate(223);
    if let Some([a, b, c, d, e, f]) = isid {
        text.extend(format!(",i,0x{a:02x}{b:02x}{c:02x}{d:02x}{e:02x}{f:02x}").bytes());
    }
    canonical(0x05 | if isid.is_some() { 0x40 } else { 0 }, text)
}

/// A TransportID of that format with its name null-terminated and padded as little as may be: equal names, equal bytes.
fn canonical(format: u8, mut text: Vec<u8>) -> Vec<u8> {
    text.push(0);
    text.resize(text.len().next_multiple_of(4).max(20), 0);
    let hdr = IscsiTransportIdHdr {
        format,
        len: super::len16(text.len()).into(),
        ..IscsiTransportIdHdr::default()
    };
    let mut bytes = Vec::new();
    put(&mut bytes, &hdr);
    bytes.extend_from_slice(&text);
    bytes
}

/// Reads a PERSISTENT RESERVE OUT. `scope_type` is byte 2 of its CDB.
pub(crate) fn parse_out(action: PrOut, scope_type: u8, list: &[u8]) -> Result<PrCommand, Fault> {
    if action == PrOut::REGISTER_AND_MOVE {
        return parse_move(list);
    }
    let list =
        PrOutList::ref_from_bytes(list).map_err(|_| Sense::illegal(Asc::PARAMETER_LIST_LENGTH_ERROR))?;
    let registers = matches!(action, PrOut::REGISTER | PrOut::REGISTER_AND_IGNORE_EXISTING_KEY);
    // SPEC_I_PT and ALL_TG_PT are not offered (SIP_C and ATP_C clear).
    if registers && list.flags & 0x0c != 0 {
        return Err(Sense::list(20).into());
    }
    let persistent = list.flags & 0x01 != 0;
    let (key, action_key) = (list.key.get(), list.action_key.get());
    let kind = || {
        let scope_is_lu = scope_type >> 4 == 0;
        type_of(scope_type & 0x0f).filter(|_| scope_is_lu).ok_or(Sense::cdb(2))
    };
    Ok(match action {
        PrOut::REGISTER => PrCommand::Register { current: Some(key), new_key: action_key, persistent },
        PrOut::REGISTER_AND_IGNORE_EXISTING_KEY => {
            PrCommand::Register { current: None, new_key: action_key, persistent }
        }
        PrOut::RESERVE => PrCommand::Reserve { key, kind: kind()? },
        PrOut::RELEASE => PrCommand::Release { key, kind: kind()? },
        PrOut::CLEAR => PrCommand::Clear { key },
        PrOut::PREEMPT | PrOut::PREEMPT_AND_ABORT => {
            let abort = action == PrOut::PREEMPT_AND_ABORT;
            PrCommand::Preempt { key, victim: action_key, kind: kind()?, abort }
        }
        _ => return Err(Sense::cdb(1).into()),
    })
}

fn parse_move(list: &[u8]) -> Result<PrCommand, Fault> {
    let length_error = Sense::illegal(Asc::PARAMETER_LIST_LENGTH_ERROR);
    let (hdr, rest) = PrMoveList::ref_from_prefix(list).map_err(|_| length_error)?;
    let id_len = usize::try_from(hdr.transport_id_len.get()).map_err(|_| length_error)?;
    if id_len != rest.len() || id_len < 24 || !id_len.is_multiple_of(4) {
        return Err(length_error.into());
    }
    let (id_hdr, name) = IscsiTransportIdHdr::ref_from_prefix(rest).map_err(|_| length_error)?;
    let is_iscsi = id_hdr.format & 0x0f == 0x05;
    if !is_iscsi || usize::from(id_hdr.len.get()) != name.len() {
        return Err(Sense::list(24).into());
    }
    let name = name.split(|byte| *byte == 0).next().unwrap_or(&[]);
    Ok(PrCommand::Move {
        key: hdr.key.get(),
        new_key: hdr.action_key.get(),
        to: RegistrantId {
            host: HostId::Scsi(canonical(id_hdr.format, name.to_vec()).into()),
            port: hdr.relative_port.get(),
        },
        unregister: hdr.flags & 0x02 != 0,
        persistent: hdr.flags & 0x01 != 0,
    })
}
