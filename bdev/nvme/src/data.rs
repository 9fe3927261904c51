//! Data pointers: physical region pages (Base 4.3.1) where the buffers allow it, scatter-gather lists (4.3.2) else.

use penstock_spec::nvme::sgl::{Sgl, SglBase};
use penstock_spec::nvme::{Psdt, SglDescriptor, Sqe};

use crate::command;
use crate::dma::DmaBuf;

/// Bytes of a command's own list: 512 PRP entries or 256 SGL descriptors.
pub const LIST_BYTES: usize = 4096;
/// Descriptors of a list at most.
const DESCRIPTORS_MAX: usize = LIST_BYTES / SglDescriptor::LEN;

/// What the controller takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PointerRules {
    /// Length of a memory page (CC.MPS), in bytes: a power of two.
    pub page_bytes: u64,
    /// Whether it takes SGLs at all, and if so to what their addresses and lengths must be aligned (1 or 4).
    pub sgl_align: Option<u64>,
}

/// A command's own list of pointers, in a page of its own.
#[derive(Debug)]
pub struct PointerList<'a> {
    /// The memory of several lists.
    pub memory: &'a mut DmaBuf,
    /// Which of them, counted in [`LIST_BYTES`].
    pub index: usize,
}

impl PointerList<'_> {
    fn iova(&self) -> u64 {
        self.memory.iova() + u64::try_from(self.index * LIST_BYTES).unwrap_or(0)
    }

    fn put(&mut self, entry: usize, value: u64) {
        self.memory.put_u64(self.index * (LIST_BYTES / 8) + entry, value);
    }
}

/// The buffers cannot be named to this controller as they are: their bytes have to be moved first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unaligned;

/// Gives `sqe` the pointers to `segments`: pairs of the device's address and a length in bytes.
///
/// # Errors
/// [`Unaligned`] where neither PRPs nor SGLs can name them, or there are too many.
#[inline]
pub fn point<I>(
    sqe: Sqe,
    segments: I,
    rules: PointerRules,
    list: &mut PointerList<'_>,
) -> Result<Sqe, Unaligned>
where
    I: Iterator<Item = (u64, usize)> + Clone,
{
    match prps(segments.clone(), rules.page_bytes, list) {
        Some((prp1, prp2)) => Ok(command::with_prps(sqe, prp1, prp2)),
        None => sgl(sqe, segments, rules, list),
    }
}

/// The two PRP entries; `None` where the segments are no pages.
#[inline]
fn prps(
    segments: impl Iterator<Item = (u64, usize)>,
    page_bytes: u64,
    list: &mut PointerList<'_>,
) -> Option<(u64, u64)> {
    let within = page_bytes - 1;
    let (mut first, mut second, mut entries) = (0, 0, 0_usize);
    // Whether what came before ends where a page does.
    let mut ended = true;
    for (mut address, len) in segments {
        let mut left = u64::try_from(len).ok()?;
        if address & 3 != 0 || !ended {
            return None;
        }
        while left > 0 {
            if entries > 0 && address & within != 0 {
                return None;
            }
            match entries {
                0 => first = address,
                1 => second = address,
                _ => {}
            }
            // The list has everything but the first; where that is one entry only, it is not used.
            if entries > 0 {
                if entries > LIST_BYTES / 8 {
                    return None;
                }
                if entries == 2 {
                    list.put(0, second);
                }
                if entries >= 2 {
                    list.put(entries - 1, address);
                }
            }
            let chunk = left.min(page_bytes - (address & within));
            address = address.checked_add(chunk)?;
            ended = address & within == 0;
            left -= chunk;
            entries += 1;
        }
    }
    let second = if entries > 2 { list.iova() } else { second };
    Some((first, second))
}

#[cold]
fn sgl<I>(
    mut sqe: Sqe,
    segments: I,
    rules: PointerRules,
    list: &mut PointerList<'_>,
) -> Result<Sqe, Unaligned>
where
    I: Iterator<Item = (u64, usize)>,
{
    let Some(align) = rules.sgl_align else { return Err(Unaligned) };
    let (mut count, mut only) = (0, None);
    for (addr, len) in segments.filter(|(_, len)| *len > 0) {
        let len = u32::try_from(len).map_err(|_| Unaligned)?;
        let aligned = addr.is_multiple_of(align) && u64::from(len).is_multiple_of(align);
        if !aligned || count == DESCRIPTORS_MAX {
            return Err(Unaligned);
        }
        let descriptor = SglDescriptor::from(Sgl::DataBlock { base: SglBase::Address, addr, len });
        let words: [zerocopy::little_endian::U64; 2] = zerocopy::transmute!(descriptor);
        for (half, word) in words.into_iter().enumerate() {
            list.put(count * 2 + half, word.get());
        }
        only = Some(descriptor);
        count += 1;
    }
    let bytes = u32::try_from(count * SglDescriptor::LEN).map_err(|_| Unaligned)?;
    sqe.sgl1 = match (count, only) {
        (1, Some(descriptor)) => descriptor,
        _ => Sgl::Segment { base: SglBase::Address, addr: list.iova(), len: bytes, last: true }.into(),
    };
    sqe.set_psdt(Psdt::SglMptrContiguous);
    Ok(sqe)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dma::Translator;

    const PRP: PointerRules = PointerRules { page_bytes: 4096, sgl_align: None };
    const SGL: PointerRules = PointerRules { page_bytes: 4096, sgl_align: Some(4) };

    fn memory() -> DmaBuf {
        DmaBuf::new(2 * LIST_BYTES, &mut Translator::identity()).unwrap()
    }

    fn word(memory: &DmaBuf, index: usize) -> u64 {
        u64::from_le_bytes(memory.bytes(index * 8, 8).try_into().unwrap())
    }

    /// What a controller makes of a command's PRPs: the addresses of `len` bytes, one by one page.
    fn walk_prps(sqe: &Sqe, memory: &DmaBuf, list: usize, len: u64) -> Vec<(u64, u64)> {
        let [prp1, prp2]: [zerocopy::little_endian::U64; 2] = zerocopy::transmute!(sqe.sgl1);
        let first = len.min(4096 - (prp1.get() & 4095));
        let mut pieces = vec![(prp1.get(), first)];
        let mut left = len - first;
        let direct = left <= 4096;
        let mut entry = 0;
        while left > 0 {
            let address = if direct { prp2.get() } else { word(memory, list * 512 + entry) };
            assert!(address.is_multiple_of(4096));
            pieces.push((address, left.min(4096)));
            left -= left.min(4096);
            entry += 1;
        }
        if !direct {
            assert_eq!(prp2.get(), memory.iova() + u64::try_from(list * LIST_BYTES).unwrap());
        }
        pieces
    }

    fn bytes_of(pieces: &[(u64, u64)]) -> Vec<(u64, u64)> {
        // Neighbours merge, so that two ways to cut the same bytes compare equal.
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for (address, len) in pieces.iter().copied().filter(|(_, len)| *len > 0) {
            match merged.last_mut() {
                Some((at, before)) if *at + *before == address => *before += len,
                _ => merged.push((address, len)),
            }
        }
        merged
    }

    #[test]
    fn one_page_needs_one_pointer_and_two_pages_two() {
        let mut memory = memory();
        let mut list = PointerList { memory: &mut memory, index: 0 };
        assert_eq!(prps([(0x1000, 512)].into_iter(), 4096, &mut list), Some((0x1000, 0)));
        assert_eq!(prps([(0x1004, 4096)].into_iter(), 4096, &mut list), Some((0x1004, 0x2000)));
        assert_eq!(prps([(0x1002, 4)].into_iter(), 4096, &mut list), None);
        assert_eq!(prps([(0x1000, 512), (0x1200, 512)].into_iter(), 4096, &mut list), None);
    }

    #[test]
    fn segments_that_are_no_pages_become_a_list_of_descriptors_where_the_controller_takes_them() {
        let mut memory = memory();
        let segments = [(0x1000, 512), (0x5004, 508), (0x9000, 8192)];
        let mut list = PointerList { memory: &mut memory, index: 1 };
        assert_eq!(point(Sqe::default(), segments.into_iter(), PRP, &mut list), Err(Unaligned));
        let sqe = point(Sqe::default(), segments.into_iter(), SGL, &mut list).unwrap();
        assert_eq!(sqe.psdt(), Psdt::SglMptrContiguous);
        let addr = memory.iova() + 4096;
        assert_eq!(sqe.sgl(), Ok(Sgl::Segment { base: SglBase::Address, addr, len: 48, last: true }));
        assert_eq!((word(&memory, 512), word(&memory, 514)), (0x1000, 0x5004));
        let mut list = PointerList { memory: &mut memory, index: 1 };
        let odd = [(0x1001, 512)];
        assert_eq!(point(Sqe::default(), odd.into_iter(), SGL, &mut list), Err(Unaligned));
    }

    proptest! {
        #[test]
        fn prps_name_the_bytes_of_the_segments_in_order(
            offset in 0_u64..1024,
            pages in proptest::collection::vec((0_u64..1000, 1_usize..40), 1..6),
            tail in 0_u64..4096,
        ) {
            let mut memory = memory();
            let last = pages.len() - 1;
            let segments: Vec<(u64, usize)> = pages.iter().enumerate().map(|(index, (page, count))| {
                let skip = if index == 0 { offset * 4 } else { 0 };
                let cut = if index == last { tail.min(4095 - skip.min(4095)) } else { 0 };
                let len = u64::try_from(*count).unwrap() * 4096 - skip - cut;
                (page * 4096 * 64 + skip, usize::try_from(len).unwrap())
            }).collect();
            let mut list = PointerList { memory: &mut memory, index: 1 };
            let sqe = point(Sqe::default(), segments.iter().copied(), PRP, &mut list).unwrap();
            let len = segments.iter().map(|(_, len)| u64::try_from(*len).unwrap()).sum();
            let wanted: Vec<_> = segments.iter().map(|(at, len)| (*at, u64::try_from(*len).unwrap())).collect();
            prop_assert_eq!(bytes_of(&walk_prps(&sqe, &memory, 1, len)), bytes_of(&wanted));
        }
    }
}
