//! EXTENDED COPY(LID1) and what is asked about it afterwards (SPC-4 6.4, 6.21 to 6.24).

use std::collections::VecDeque;

use penstock_bdev::reservation::Access;
use penstock_spec::scsi::copy::{
    CSCD_IDENTIFICATION, CopyOperatingParameters, CopyStatusLid1, CscdIdentification, ExtendedCopyHdr,
    LIST_ID_DISCARD, LIST_ID_MASK, LIST_ID_NONE, SEGMENT_BLOCK_TO_BLOCK, SEGMENT_BLOCK_TO_BLOCK_OFFSET,
    SegmentBlocks, SegmentBytes, SegmentHdr,
};
use penstock_spec::scsi::inquiry::DesignatorType;
use penstock_spec::scsi::sense::{Asc, SenseKey};
use zerocopy::FromBytes;

use super::unmap::{Range, fits};
use super::{len8, len16, len32, put, vpd};
use crate::config::LuId;
use crate::nexus::Nexus;
use crate::sense::{Fault, Sense};

/// CSCD descriptors of one command at most.
pub(crate) const CSCDS_MAX: usize = 8;
/// Segment descriptors of one command at most.
pub(crate) const SEGMENTS_MAX: usize = 64;
/// Bytes of all descriptors of one command at most: one more of each than is taken still fits, so that it is told apart.
pub(crate) const DESCRIPTOR_BYTES_MAX: u32 = 2368;
const _: () = assert!((CSCDS_MAX + 1) * 32 + (SEGMENTS_MAX + 1) * 32 <= DESCRIPTOR_BYTES_MAX as usize);
/// Bytes of one segment at most.
pub(crate) const SEGMENT_BYTES_MAX: u32 = 32 << 20;
/// Results that a nexus holds at most; the oldest goes first.
const RESULTS_MAX: usize = 16;

/// A copy of blocks from one logical unit to another, or within one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) source: LuId,
    /// `None`: the source is zeroes.
    pub(crate) source_lba: Option<u64>,
    pub(crate) target: LuId,
    pub(crate) target_lba: u64,
    pub(crate) blocks: u32,
}

/// An EXTENDED COPY that was understood.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct CopyPlan {
    pub(crate) extents: Vec<Extent>,
    /// Where the result is to be held.
    pub(crate) list_id: Option<u8>,
}

/// What a nexus may still ask about a copy.
#[derive(Debug, Clone)]
struct Held {
    list_id: u8,
    done: bool,
    segments: u16,
    blocks: u32,
}

/// Results of copies that this nexus has started.
#[derive(Debug, Default)]
pub(crate) struct CopyResults {
    held: VecDeque<Held>,
    pub(crate) tokens: VecDeque<super::token::Outcome>,
}

impl CopyResults {
    /// Holds how a copy ended.
    pub(crate) fn hold(&mut self, list_id: u8, done: bool, segments: usize, blocks: u64) {
        self.held.retain(|held| held.list_id != list_id);
        if self.held.len() >= RESULTS_MAX {
            self.held.pop_front();
        }
        let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
        self.held.push_back(Held { list_id, done, segments: len16(segments), blocks });
    }

    /// RECEIVE COPY STATUS(LID1): what was held is told once.
    pub(crate) fn status(&mut self, list_id: u8, out: &mut Vec<u8>) -> Result<(), Fault> {
        let at = self.held.iter().position(|held| held.list_id == list_id);
        let held = at.and_then(|at| self.held.remove(at)).ok_or(Sense::cdb(2))?;
        put(
            out,
            &CopyStatusLid1 {
                available: 8.into(),
                status: if held.done { 1 } else { 2 },
                segments: held.segments.into(),
                units: 0xf1,
                count: held.blocks.into(),
            },
        );
        Ok(())
    }
}

/// RECEIVE COPY OPERATING PARAMETERS.
pub(crate) fn parameters(block_bytes: u32, out: &mut Vec<u8>) {
    let types = [SEGMENT_BLOCK_TO_BLOCK, SEGMENT_BLOCK_TO_BLOCK_OFFSET, CSCD_IDENTIFICATION];
    put(
        out,
        &CopyOperatingParameters {
            available: len32(CopyOperatingParameters::LEN - 4 + types.len()).into(),
            snlid: 0x01,
            cscds_max: len16(CSCDS_MAX).into(),
            segments_max: len16(SEGMENTS_MAX).into(),
            descriptors_len_max: DESCRIPTOR_BYTES_MAX.into(),
            segment_bytes_max: SEGMENT_BYTES_MAX.into(),
            concurrent_total: 255.into(),
            concurrent_max: 255,
            segment_granularity: len8(block_bytes.ilog2().try_into().unwrap_or(0)),
            descriptor_types_len: len8(types.len()),
            ..CopyOperatingParameters::default()
        },
    );
    out.extend(types);
}

/// Reads the parameter list of an EXTENDED COPY(LID1) that came to the logical unit `own`.
pub(crate) fn parse(list: &[u8], nexus: &Nexus) -> Result<CopyPlan, Fault> {
    if list.is_empty() {
        return Ok(CopyPlan::default());
    }
    let length_error = Sense::illegal(Asc::PARAMETER_LIST_LENGTH_ERROR);
    let (hdr, rest) = ExtendedCopyHdr::ref_from_prefix(list).map_err(|_| length_error)?;
    let cscd_len = usize::from(hdr.cscd_len.get());
    let segments_len = usize::try_from(hdr.segments_len.get()).map_err(|_| length_error)?;
    let total = cscd_len.checked_add(segments_len).ok_or(length_error)?;
    if u32::try_from(total).map_or(true, |total| total > DESCRIPTOR_BYTES_MAX) || hdr.inline_len.get() != 0 {
        return Err(length_error.into());
    }
    let cscds = rest.get(..cscd_len).ok_or(length_error)?;
    let segments = rest.get(cscd_len..total).ok_or(length_error)?;
    if !cscd_len.is_multiple_of(CscdIdentification::LEN) {
        return Err(length_error.into());
    }
    if cscd_len / CscdIdentification::LEN > CSCDS_MAX {
        return Err(Sense::illegal(Asc::TOO_MANY_TARGET_DESCRIPTORS).into());
    }
    let mut units = Vec::new();
    for chunk in cscds.chunks_exact(CscdIdentification::LEN) {
        let cscd = CscdIdentification::ref_from_bytes(chunk).map_err(|_| length_error)?;
        if cscd.type_code != CSCD_IDENTIFICATION {
            return Err(Sense::illegal(Asc::UNSUPPORTED_TARGET_DESCRIPTOR).into());
        }
        units.push(find(cscd, nexus));
    }
    let extents = parse_segments(segments, &units, nexus)?;
    let list_id = match hdr.flags & LIST_ID_MASK {
        LIST_ID_NONE | LIST_ID_DISCARD => None,
        _ => Some(hdr.list_id),
    };
    Ok(CopyPlan { extents, list_id })
}

/// The logical unit that a CSCD descriptor designates, if the nexus sees it.
fn find(cscd: &CscdIdentification, nexus: &Nexus) -> Option<LuId> {
    let designator = cscd.designator.get(..usize::from(cscd.designator_len))?;
    let kind = DesignatorType(cscd.designator_type & 0x0f);
    let matches = |config: &crate::config::LuConfig| match kind {
        DesignatorType::NAA => designator == config.naa(),
        DesignatorType::T10_VENDOR_ID => {
            // A designator that is longer than the descriptor's room comes truncated.
            let own = vpd::t10_designator(config);
            designator.len() >= own.len().min(20) && own.starts_with(designator)
        }
        _ => false,
    };
    let of_lu = cscd.designator_type & 0x30 == 0;
    nexus.luns().map(|(_, view)| &view.config).find(|config| of_lu && matches(config)).map(|config| config.id)
}

fn parse_segments(mut bytes: &[u8], units: &[Option<LuId>], nexus: &Nexus) -> Result<Vec<Extent>, Fault> {
    let length_error = Sense::illegal(Asc::PARAMETER_LIST_LENGTH_ERROR);
    let mut extents = Vec::new();
    let mut count = 0;
    while !bytes.is_empty() {
        count += 1;
        if count > SEGMENTS_MAX {
            return Err(Sense::illegal(Asc::TOO_MANY_SEGMENT_DESCRIPTORS).into());
        }
        let (hdr, _) = SegmentHdr::ref_from_prefix(bytes).map_err(|_| length_error)?;
        let wanted = match hdr.type_code {
            SEGMENT_BLOCK_TO_BLOCK => SegmentBlocks::LEN,
            SEGMENT_BLOCK_TO_BLOCK_OFFSET => SegmentBytes::LEN,
            _ => return Err(Sense::illegal(Asc::UNSUPPORTED_SEGMENT_DESCRIPTOR).into()),
        };
        // Some initiators leave the descriptor's own length at 0; the type says how long it is.
        let said = usize::from(hdr.len.get()) + 4;
        if said != wanted && said != 4 {
            return Err(Sense::list(2).into());
        }
        let (segment, rest) = bytes.split_at_checked(wanted).ok_or(length_error)?;
        bytes = rest;
        extents.extend(extent_of(segment, hdr, units, nexus)?);
    }
    Ok(extents)
}

fn extent_of(
    segment: &[u8],
    hdr: &SegmentHdr,
    units: &[Option<LuId>],
    nexus: &Nexus,
) -> Result<Option<Extent>, Fault> {
    let unreachable = Sense::new(SenseKey::COPY_ABORTED, Asc::UNREACHABLE_COPY_TARGET);
    let unit = |index: u16| units.get(usize::from(index)).copied().flatten().ok_or(unreachable);
    let (source, target) = (unit(hdr.source.get())?, unit(hdr.destination.get())?);
    let config = |id| nexus.lu_by_id(id).map(|lu| &lu.view.config).ok_or(unreachable);
    let block_bytes = config(target)?.info().block_bytes;
    // Blocks of unlike sizes are not converted.
    if config(source)?.info().block_bytes != block_bytes {
        return Err(Sense::new(SenseKey::COPY_ABORTED, Asc::COPY_TARGET_NOT_REACHABLE).into());
    }
    let (bytes, source_lba, target_lba) = if hdr.type_code == SEGMENT_BLOCK_TO_BLOCK {
        let fields = SegmentBlocks::ref_from_bytes(segment).map_err(|_| unreachable)?;
        let bytes = u32::from(fields.blocks.get()).saturating_mul(block_bytes);
        (bytes, fields.source_lba.get(), fields.destination_lba.get())
    } else {
        let fields = SegmentBytes::ref_from_bytes(segment).map_err(|_| unreachable)?;
        // Offsets within a block would mean to read, shift and write; nobody asks for them.
        if fields.source_off.get() != 0 || fields.destination_off.get() != 0 {
            return Err(Sense::list(28).into());
        }
        if !fields.bytes.get().is_multiple_of(block_bytes) {
            return Err(Sense::list(8).into());
        }
        (fields.bytes.get(), fields.source_lba.get(), fields.destination_lba.get())
    };
    // The copy of blocks counts them by 16 bits, and may be as long as these say.
    if bytes > SEGMENT_BYTES_MAX && hdr.type_code == SEGMENT_BLOCK_TO_BLOCK_OFFSET {
        return Err(Sense::list(8).into());
    }
    let blocks = bytes / block_bytes;
    let extent = Extent { source, source_lba: Some(source_lba), target, target_lba, blocks };
    check(extent, nexus)?;
    Ok((blocks > 0).then_some(extent))
}

/// Checks that this nexus may copy that.
pub(crate) fn check(extent: Extent, nexus: &Nexus) -> Result<(), Fault> {
    let unreachable = Sense::new(SenseKey::COPY_ABORTED, Asc::UNREACHABLE_COPY_TARGET);
    let target = nexus.lu_by_id(extent.target).ok_or(unreachable)?;
    let sides = [
        (extent.source_lba.map(|lba| (extent.source, lba)), Access::Read),
        (Some((extent.target, extent.target_lba)), Access::Write),
    ];
    for (side, access) in sides.into_iter().filter_map(|(side, access)| Some((side?, access))) {
        let lu = nexus.lu_by_id(side.0).ok_or(unreachable)?;
        let range = Range { lba: side.1, blocks: extent.blocks };
        if !fits(range, lu.view.config.info().blocks) || lu.view.ejected {
            return Err(Sense::new(SenseKey::COPY_ABORTED, Asc::NONE).into());
        }
        if !lu.may(nexus.id(), access) {
            return Err(Fault::CONFLICT);
        }
    }
    if target.view.modes.swp || target.view.config.is_read_only() {
        return Err(Sense::new(SenseKey::DATA_PROTECT, Asc::WRITE_PROTECTED).into());
    }
    Ok(())
}
