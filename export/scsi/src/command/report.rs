//! REPORT LUNS, REPORT SUPPORTED OPERATION CODES, REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS (SPC-4 6.33, 6.35, 6.36).

use penstock_spec::scsi::cdb::Basic12;
use penstock_spec::scsi::report::{
    CommandDescriptor, CommandTimeouts, LunListHdr, OneCommandHdr, SupportedTmfs,
};

use super::table::{Entry, TABLE, is_there};
use super::{len16, len32, put};
use crate::lu::LuView;
use crate::nexus::{Nexus, lun_to_wire};
use crate::sense::{Fault, Sense};

/// Puts the list of LUNs into `out`. `select`: SELECT REPORT.
pub(crate) fn luns(select: u8, nexus: &Nexus, out: &mut Vec<u8>) -> Result<(), Fault> {
    let list: Vec<u64> = match select {
        0x00 | 0x02 | 0x11 => nexus.luns().map(|(lun, _)| lun_to_wire(lun)).collect(),
        // Well-known logical units: none. Administrative and subsidiary ones: neither.
        0x01 | 0x10 | 0x12 => Vec::new(),
        _ => return Err(Sense::cdb(2).into()),
    };
    put(out, &LunListHdr { len: len32(list.len() * 8).into(), ..LunListHdr::default() });
    out.extend(list.iter().flat_map(|lun| lun.to_be_bytes()));
    Ok(())
}

const TIMEOUTS: u16 = 0x0a;

fn timeouts() -> CommandTimeouts {
    CommandTimeouts { len: TIMEOUTS.into(), ..CommandTimeouts::default() }
}

/// Puts what is supported into `out`: all commands or one.
pub(crate) fn opcodes(cdb: &Basic12, lu: &LuView, out: &mut Vec<u8>) -> Result<(), Fault> {
    let with_timeouts = cdb.options & 0x80 != 0;
    let of_opcode = || there(lu).filter(|entry| entry.opcode.0 == cdb.requested_opcode);
    let has_actions = of_opcode().any(|entry| entry.action.is_some());
    let known = of_opcode().next().is_some();
    let by_action =
        || of_opcode().find(|entry| entry.action.map(u16::from) == Some(cdb.requested_action.get()));
    match cdb.options & 0x07 {
        0 => {
            all(lu, with_timeouts, out);
            Ok(())
        }
        1 if known && has_actions => Err(Sense::cdb(2).into()),
        2 if known && !has_actions => Err(Sense::cdb(2).into()),
        1 => {
            one(of_opcode().next(), with_timeouts, out);
            Ok(())
        }
        2 => {
            one(by_action(), with_timeouts, out);
            Ok(())
        }
        3 => {
            let plain = of_opcode().find(|entry| entry.action.is_none() && cdb.requested_action.get() == 0);
            one(plain.or_else(by_action), with_timeouts, out);
            Ok(())
        }
        _ => Err(Sense::cdb(2).into()),
    }
}

fn there(lu: &LuView) -> impl Iterator<Item = &'static Entry> {
    TABLE.iter().filter(|entry| is_there(entry, &lu.config))
}

fn all(lu: &LuView, with_timeouts: bool, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend([0; 4]);
    for entry in there(lu) {
        let flags = u8::from(entry.action.is_some()) | if with_timeouts { 0x02 } else { 0 };
        put(
            out,
            &CommandDescriptor {
                opcode: entry.opcode.0,
                service_action: u16::from(entry.action.unwrap_or(0)).into(),
                flags,
                cdb_len: len16(entry.usage.len()).into(),
                ..CommandDescriptor::default()
            },
        );
        if with_timeouts {
            put(out, &timeouts());
        }
    }
    let len = len32(out.len() - start - 4).to_be_bytes();
    if let Some(field) = out.get_mut(start..start + 4) {
        field.copy_from_slice(&len);
    }
}

fn one(entry: Option<&Entry>, with_timeouts: bool, out: &mut Vec<u8>) {
    let Some(entry) = entry else {
        put(out, &OneCommandHdr { support: 0x01, ..OneCommandHdr::default() });
        return;
    };
    let support = 0x03 | if with_timeouts { 0x80 } else { 0 };
    put(
        out,
        &OneCommandHdr { support, cdb_len: len16(entry.usage.len()).into(), ..OneCommandHdr::default() },
    );
    out.extend_from_slice(entry.usage);
    if with_timeouts {
        put(out, &timeouts());
    }
}

/// Puts the task management functions into `out`; `extended`: REPD.
pub(crate) fn tmfs(extended: bool, out: &mut Vec<u8>) {
    let data = SupportedTmfs {
        // ATS, ATSS, CTSS, LURS, TRS.
        functions: 0x80 | 0x40 | 0x10 | 0x08 | 0x02,
        // ITNRS: an I_T nexus is reset by ending its session.
        functions1: 0x00,
        additional_len: if extended { 0x0c } else { 0 },
        ..SupportedTmfs::default()
    };
    put(out, &data);
    if !extended {
        out.truncate(4);
    }
}
