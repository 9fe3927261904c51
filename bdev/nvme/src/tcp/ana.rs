//! The ANA log page (Base 5.2.13.1.12): which namespaces are in which state by a path.

use penstock_spec::nvme::log::ana::{AnaGroupDescriptor, AnaLogHdr, AnaState};
use zerocopy::FromBytes;
use zerocopy::little_endian::U32;

/// Groups that are looked at, at most.
const GROUPS_MAX: u16 = 4096;

/// Each namespace's state; `None` where the page is not whole.
pub(super) fn parse(page: &[u8]) -> Option<Vec<(u32, AnaState)>> {
    let (header, mut rest) = AnaLogHdr::ref_from_prefix(page).ok()?;
    let mut states = Vec::new();
    for _ in 0..header.descriptors.get().min(GROUPS_MAX) {
        let (group, after) = AnaGroupDescriptor::ref_from_prefix(rest).ok()?;
        let count = usize::try_from(group.nsids.get()).ok()?;
        let (nsids, after) = <[U32]>::ref_from_prefix_with_elems(after, count).ok()?;
        let state = AnaState(group.state.0 & 0xf);
        states.extend(nsids.iter().map(|nsid| (nsid.get(), state)));
        rest = after;
    }
    Some(states)
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;

    fn page(groups: &[(u8, &[u32])]) -> Vec<u8> {
        let mut header = AnaLogHdr::default();
        header.descriptors.set(u16::try_from(groups.len()).unwrap());
        let mut page = header.as_bytes().to_vec();
        for (state, nsids) in groups {
            let mut group = AnaGroupDescriptor::default();
            group.nsids.set(u32::try_from(nsids.len()).unwrap());
            group.state = AnaState(*state);
            page.extend_from_slice(group.as_bytes());
            nsids.iter().for_each(|nsid| page.extend_from_slice(&nsid.to_le_bytes()));
        }
        page
    }

    #[test]
    fn each_namespace_has_the_state_of_its_group() {
        let states = parse(&page(&[(1, &[1, 7]), (3, &[]), (0xf, &[2])])).unwrap();
        assert_eq!(states, [(1, AnaState::OPTIMIZED), (7, AnaState::OPTIMIZED), (2, AnaState::CHANGE)]);
    }

    #[test]
    fn a_page_that_is_cut_off_anywhere_is_not_whole() {
        let whole = page(&[(1, &[1, 7]), (2, &[2])]);
        assert!((0..whole.len()).all(|len| parse(&whole[..len]).is_none()));
        let mut huge = page(&[(1, &[1])]);
        huge[20..24].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(parse(&huge), None);
    }
}
