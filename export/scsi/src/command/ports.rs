//! REPORT and SET TARGET PORT GROUPS (SPC-4 6.37, 6.45).

use penstock_spec::scsi::report::{AccessState, Port, PortGroup, SetPortGroup};
use penstock_spec::scsi::sense::Asc;
use zerocopy::FromBytes;

use super::{len8, len16, len32, put};
use crate::lu::LuView;
use crate::sense::{Fault, Sense};

/// T_SUP, O_SUP, U_SUP, S_SUP, AN_SUP, AO_SUP.
const SUPPORTED_STATES: u8 = 0x80 | 0x40 | 0x08 | 0x04 | 0x02 | 0x01;

/// Groups that one command sets at most.
const SET_MAX: usize = 64;

/// Puts the groups into `out`. `format`: PARAMETER DATA FORMAT.
pub(crate) fn report(format: u8, lu: &LuView, out: &mut Vec<u8>) -> Result<(), Fault> {
    let mut groups = Vec::new();
    for group in &lu.groups {
        put(
            &mut groups,
            &PortGroup {
                state: group.state.0 | if group.preferred { 0x80 } else { 0 },
                supported: SUPPORTED_STATES,
                group: group.id.into(),
                status: if lu.groups_set { 1 } else { 2 },
                ports: len8(group.ports.len()),
                ..PortGroup::default()
            },
        );
        for port in group.ports.iter().take(255) {
            put(&mut groups, &Port { relative_id: (*port).into(), ..Port::default() });
        }
    }
    match format {
        0 => out.extend(len32(groups.len()).to_be_bytes()),
        1 => {
            // Extended header: FORMAT TYPE 1, IMPLICIT TRANSITION TIME 0.
            out.extend(len32(groups.len() + 4).to_be_bytes());
            out.extend([0x10, 0, 0, 0]);
        }
        _ => return Err(Sense::cdb(1).into()),
    }
    out.extend_from_slice(&groups);
    Ok(())
}

/// Reads a SET TARGET PORT GROUPS parameter list.
pub(crate) fn parse_set(list: &[u8]) -> Result<Vec<(u16, AccessState)>, Fault> {
    if list.is_empty() {
        return Ok(Vec::new());
    }
    let descriptors = list.get(4..).ok_or(Sense::illegal(Asc::PARAMETER_LIST_LENGTH_ERROR))?;
    let mut states = Vec::new();
    let mut chunks = descriptors.chunks_exact(SetPortGroup::LEN);
    for (index, chunk) in chunks.by_ref().take(SET_MAX).enumerate() {
        let at = len16(4 + index * SetPortGroup::LEN);
        let descriptor = SetPortGroup::ref_from_bytes(chunk).map_err(|_| Sense::list(at))?;
        let state = AccessState(descriptor.state & 0x0f);
        let settable = [
            AccessState::ACTIVE_OPTIMIZED,
            AccessState::ACTIVE_NON_OPTIMIZED,
            AccessState::STANDBY,
            AccessState::UNAVAILABLE,
            AccessState::OFFLINE,
        ];
        if !settable.contains(&state) {
            return Err(Sense::list(at).into());
        }
        states.push((descriptor.group.get(), state));
    }
    if chunks.next().is_some() || !chunks.remainder().is_empty() {
        return Err(Sense::illegal(Asc::PARAMETER_LIST_LENGTH_ERROR).into());
    }
    Ok(states)
}
