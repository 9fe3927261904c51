//! ODX: POPULATE TOKEN, WRITE USING TOKEN, RECEIVE ROD TOKEN INFORMATION (SPC-4 5.17, SBC-3 5.7, 5.25, 5.47).
//!
//! A token is of the type "access upon reference": it stands for blocks, not for a copy of them. It carries all that it
//! means itself, sealed with a secret of this process, so that nobody keeps a table of tokens, any core takes any
//! token, and a token that was made up or changed is refused.

use penstock_reactor::Tick;
use penstock_spec::scsi::copy::{
    PopulateTokenHdr, ROD_TOKEN_BYTES, RodTokenHdr, RodTokenInformation, RodType, WriteUsingTokenHdr,
};
use penstock_spec::scsi::sense::Asc;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::copy::{CopyResults, Extent};
use super::unmap::{Range, fits, ranges};
use super::{len16, len32, put};
use crate::config::{LuConfig, LuId};
use crate::nexus::Nexus;
use crate::seal::Seal;
use crate::sense::{Fault, Sense};

/// Ranges in one token or one command at most: as many as a token has room for.
pub(crate) const RANGES_MAX: usize = 16;
/// Bytes that one command moves at most.
pub(crate) const TRANSFER_BYTES_MAX: u64 = 256 << 20;
/// How long a token lives at most.
pub(crate) const INACTIVITY_MAX_S: u32 = 300;
/// How long a token lives that does not say.
pub(crate) const INACTIVITY_DEFAULT_S: u32 = 60;
/// Outcomes that a nexus holds at most; the oldest goes first.
const OUTCOMES_MAX: usize = 16;

/// Where in a token the sealed part begins: behind the standard's head.
const BODY_OFF: usize = RodTokenHdr::LEN;
/// Logical unit, deadline, number of ranges.
const BODY_HDR_BYTES: usize = 24;
/// Where the seal is: at the end.
const SEAL_OFF: usize = ROD_TOKEN_BYTES - 16;
const _: () = assert!(BODY_OFF + BODY_HDR_BYTES + RANGES_MAX * 12 <= SEAL_OFF);

/// How a POPULATE TOKEN or WRITE USING TOKEN ended.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    pub(crate) list_id: u32,
    pub(crate) action: u8,
    pub(crate) done: bool,
    pub(crate) blocks: u64,
    pub(crate) token: Option<Box<[u8; ROD_TOKEN_BYTES]>>,
}

impl CopyResults {
    /// Holds an outcome for RECEIVE ROD TOKEN INFORMATION.
    pub(crate) fn hold_token(&mut self, outcome: Outcome) {
        self.tokens.retain(|other| other.list_id != outcome.list_id);
        if self.tokens.len() >= OUTCOMES_MAX {
            self.tokens.pop_front();
        }
        self.tokens.push_back(outcome);
    }

    /// RECEIVE ROD TOKEN INFORMATION.
    pub(crate) fn token_information(&self, list_id: u32, out: &mut Vec<u8>) -> Result<(), Fault> {
        let outcome = self.tokens.iter().find(|outcome| outcome.list_id == list_id).ok_or(Sense::cdb(2))?;
        let tokens_len = if outcome.token.is_some() { 2 + ROD_TOKEN_BYTES } else { 0 };
        put(
            out,
            &RodTokenInformation {
                available: len32(RodTokenInformation::LEN - 4 + 4 + tokens_len).into(),
                service_action: outcome.action,
                status: if outcome.done { 0x01 } else { 0x02 },
                operations: 1.into(),
                units: 0xf1,
                count: outcome.blocks.into(),
                segments: 1.into(),
                ..RodTokenInformation::default()
            },
        );
        out.extend(len32(tokens_len).to_be_bytes());
        if let Some(token) = &outcome.token {
            out.extend([0, 0]);
            out.extend_from_slice(&token[..]);
        }
        Ok(())
    }
}

/// ROD Token Features descriptor (SPC-4 7.8.17.9), with the block device's part.
pub(crate) fn features() -> Vec<u8> {
    let mut body = vec![0; 12];
    body.extend(INACTIVITY_DEFAULT_S.to_be_bytes());
    body.extend(INACTIVITY_MAX_S.to_be_bytes());
    body.extend([0; 24]);
    // ROD device type specific features: block devices, 48 bytes.
    body.extend(48_u16.to_be_bytes());
    let mut device = vec![0, 0, 0, 44];
    device.extend([0; 4]);
    device.extend(TRANSFER_BYTES_MAX.to_be_bytes());
    device.extend(TRANSFER_BYTES_MAX.to_be_bytes());
    device.extend([0; 24]);
    body.extend(device);
    body
}

/// Supported ROD Types descriptor (SPC-4 7.8.17.10).
pub(crate) fn supported_rods() -> Vec<u8> {
    let types = [RodType::ACCESS_UPON_REFERENCE, RodType::BLOCK_ZERO];
    let mut body = vec![0, 0];
    body.extend(len16(types.len() * 64).to_be_bytes());
    for rod_type in types {
        let mut descriptor = rod_type.0.to_be_bytes().to_vec();
        // TOKEN_IN, and TOKEN_OUT for those that are made here.
        descriptor.push(if rod_type == RodType::ACCESS_UPON_REFERENCE { 0x03 } else { 0x02 });
        descriptor.resize(64, 0);
        body.extend(descriptor);
    }
    body
}

/// Reads the ranges of a list that begin at `off` and have `len` bytes.
fn checked_ranges(list: &[u8], off: usize, len: u16, config: &LuConfig) -> Result<Vec<Range>, Fault> {
    let length_error = Sense::illegal(Asc::PARAMETER_LIST_LENGTH_ERROR);
    let bytes = list.get(off..off + usize::from(len)).ok_or(length_error)?;
    let found: Vec<Range> = ranges(bytes).collect();
    if found.len() > RANGES_MAX {
        return Err(Sense::illegal(Asc::TOO_MANY_SEGMENT_DESCRIPTORS).into());
    }
    let info = config.info();
    let mut total = 0;
    for range in &found {
        if !fits(*range, info.blocks) {
            return Err(Sense::illegal(Asc::LBA_OUT_OF_RANGE).with_information(range.lba).into());
        }
        total += u64::from(range.blocks) * u64::from(info.block_bytes);
    }
    if total > TRANSFER_BYTES_MAX {
        return Err(Sense::list(14).into());
    }
    Ok(found.into_iter().filter(|range| range.blocks > 0).collect())
}

/// Does a POPULATE TOKEN: makes a token of the ranges in its list.
pub(crate) fn populate(
    list: &[u8],
    config: &LuConfig,
    seal: &Seal,
    now: Tick,
) -> Result<(Vec<u8>, u64), Fault> {
    let length_error = Sense::illegal(Asc::PARAMETER_LIST_LENGTH_ERROR);
    let (hdr, _) = PopulateTokenHdr::ref_from_prefix(list).map_err(|_| length_error)?;
    let valid_type = hdr.flags & 0x02 != 0;
    let rod_type = RodType(hdr.rod_type.get());
    let offered = [RodType::COPY_MANAGER_INTERNAL, RodType::ACCESS_UPON_REFERENCE];
    if valid_type && !offered.contains(&rod_type) {
        return Err(Sense::list(8).into());
    }
    let inactivity_s = match hdr.inactivity_s.get() {
        0 => INACTIVITY_DEFAULT_S,
        seconds if seconds <= INACTIVITY_MAX_S => seconds,
        _ => return Err(Sense::list(4).into()),
    };
    let found = checked_ranges(list, PopulateTokenHdr::LEN, hdr.ranges_len.get(), config)?;
    if found.is_empty() {
        return Err(Sense::list(14).into());
    }
    let blocks: u64 = found.iter().map(|range| u64::from(range.blocks)).sum();
    let deadline = now.plus_ns(u64::from(inactivity_s) * 1_000_000_000);
    Ok((encode(&found, config, seal, deadline), blocks))
}

fn encode(found: &[Range], config: &LuConfig, seal: &Seal, deadline: Tick) -> Vec<u8> {
    let info = config.info();
    let blocks: u64 = found.iter().map(|range| u64::from(range.blocks)).sum();
    let mut hdr = RodTokenHdr {
        rod_type: RodType::ACCESS_UPON_REFERENCE.0.into(),
        len: len16(ROD_TOKEN_BYTES - 8).into(),
        identifier: deadline.as_ns().into(),
        bytes: (blocks * u64::from(info.block_bytes)).into(),
        ..RodTokenHdr::default()
    };
    // CREATOR LOGICAL UNIT DESCRIPTOR: an identification CSCD descriptor with the NAA designator.
    let creator = [0xe4, 0, 0, 0, 1, 3, 0, 8].into_iter().chain(config.naa());
    for (to, from) in hdr.creator.iter_mut().zip(creator) {
        *to = from;
    }
    for (to, from) in hdr.device_specific.iter_mut().zip(info.block_bytes.to_be_bytes()) {
        *to = from;
    }
    let mut token = hdr.as_bytes().to_vec();
    token.extend(config.id.0.to_be_bytes());
    token.extend(deadline.as_ns().to_be_bytes());
    token.extend(u64::from(len16(found.len())).to_be_bytes());
    for range in found {
        token.extend(range.lba.to_be_bytes());
        token.extend(range.blocks.to_be_bytes());
    }
    token.resize(SEAL_OFF, 0);
    let mac = seal.of(&token);
    token.extend(mac);
    token
}

/// What a token stands for: blocks of a logical unit, or zeroes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Rod {
    Zeroes,
    Blocks { lu: LuId, ranges: Vec<Range> },
}

fn decode(token: &[u8; ROD_TOKEN_BYTES], seal: &Seal, now: Tick) -> Result<Rod, Sense> {
    let corrupt = Sense::illegal(Asc::TOKEN_CORRUPT);
    let (hdr, _) = RodTokenHdr::ref_from_prefix(token.as_slice()).map_err(|_| corrupt)?;
    if usize::from(hdr.len.get()) != ROD_TOKEN_BYTES - 8 {
        return Err(Sense::illegal(Asc::TOKEN_LENGTH));
    }
    match RodType(hdr.rod_type.get()) {
        RodType::BLOCK_ZERO => return Ok(Rod::Zeroes),
        RodType::ACCESS_UPON_REFERENCE => {}
        _ => return Err(Sense::illegal(Asc::TOKEN_UNSUPPORTED_TYPE)),
    }
    let (sealed, mac) = token.split_at(SEAL_OFF);
    if seal.of(sealed) != mac {
        return Err(Sense::illegal(Asc::TOKEN_UNKNOWN));
    }
    let mut words = sealed.get(BODY_OFF..).unwrap_or(&[]);
    let mut word = || {
        let (word, rest) = words.split_first_chunk::<8>()?;
        words = rest;
        Some(u64::from_be_bytes(*word))
    };
    let (lu, deadline, count) = (word().ok_or(corrupt)?, word().ok_or(corrupt)?, word().ok_or(corrupt)?);
    if now.as_ns() > deadline {
        return Err(Sense::illegal(Asc::TOKEN_EXPIRED));
    }
    let count = usize::try_from(count).map_err(|_| corrupt)?;
    let ranges = words
        .chunks_exact(12)
        .take(count)
        .filter_map(|chunk| {
            let (lba, blocks) = chunk.split_first_chunk::<8>()?;
            let lba = u64::from_be_bytes(*lba);
            Some(Range { lba, blocks: u32::from_be_bytes(blocks.try_into().ok()?) })
        })
        .collect();
    Ok(Rod::Blocks { lu: LuId(lu), ranges })
}

/// Does the first half of a WRITE USING TOKEN to the logical unit `config`: what is to be copied where.
pub(crate) fn write_using(
    list: &[u8],
    config: &LuConfig,
    nexus: &Nexus,
    seal: &Seal,
    now: Tick,
) -> Result<Vec<Extent>, Fault> {
    let length_error = Sense::illegal(Asc::PARAMETER_LIST_LENGTH_ERROR);
    let (hdr, _) = WriteUsingTokenHdr::ref_from_prefix(list).map_err(|_| length_error)?;
    let targets = checked_ranges(list, WriteUsingTokenHdr::LEN, hdr.ranges_len.get(), config)?;
    let rod = decode(&hdr.token, seal, now)?;
    let extents = match &rod {
        Rod::Zeroes => {
            let zero = |range: &Range| Extent {
                source: config.id,
                source_lba: None,
                target: config.id,
                target_lba: range.lba,
                blocks: range.blocks,
            };
            targets.iter().map(zero).collect()
        }
        Rod::Blocks { lu, ranges } => {
            let source = nexus.lu_by_id(*lu).ok_or(Sense::illegal(Asc::INVALID_TOKEN_SOURCE))?;
            if source.view.config.info().block_bytes != config.info().block_bytes {
                return Err(Sense::illegal(Asc::INVALID_TOKEN_SOURCE).into());
            }
            pair(*lu, ranges, hdr.offset.get(), config.id, &targets)
        }
    };
    for extent in &extents {
        super::copy::check(*extent, nexus)?;
    }
    Ok(extents)
}

/// Lays the blocks of a ROD from `offset` on over the target ranges, as far as both go.
fn pair(source: LuId, ranges: &[Range], offset: u64, target: LuId, targets: &[Range]) -> Vec<Extent> {
    let mut skip = offset;
    let mut sources = ranges.iter().filter_map(|range| {
        let skipped = skip.min(u64::from(range.blocks));
        skip -= skipped;
        let blocks = range.blocks - u32::try_from(skipped).unwrap_or(range.blocks);
        (blocks > 0).then_some(Range { lba: range.lba + skipped, blocks })
    });
    let mut extents = Vec::new();
    let mut from = sources.next();
    for to in targets {
        let mut to = *to;
        while let Some(range) = from.as_mut() {
            let blocks = range.blocks.min(to.blocks);
            if blocks == 0 {
                break;
            }
            extents.push(Extent { source, source_lba: Some(range.lba), target, target_lba: to.lba, blocks });
            to = Range { lba: to.lba + u64::from(blocks), blocks: to.blocks - blocks };
            *range = Range { lba: range.lba + u64::from(blocks), blocks: range.blocks - blocks };
            if range.blocks == 0 {
                from = sources.next();
            }
        }
    }
    extents
}

/// A token's bytes in a box, for holding.
pub(crate) fn boxed(bytes: &[u8]) -> Box<[u8; ROD_TOKEN_BYTES]> {
    let mut token = <[u8; ROD_TOKEN_BYTES]>::new_zeroed();
    for (to, from) in token.iter_mut().zip(bytes) {
        *to = *from;
    }
    Box::new(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_a_rod_are_laid_over_those_of_a_disk_block_by_block() {
        let range = |lba, blocks| Range { lba, blocks };
        let extents =
            pair(LuId(1), &[range(0, 4), range(10, 4)], 2, LuId(2), &[range(100, 3), range(200, 9)]);
        let blocks: Vec<(u64, u64)> = extents
            .iter()
            .flat_map(|extent| {
                let from = extent.source_lba.unwrap();
                (0..u64::from(extent.blocks)).map(move |block| (from + block, extent.target_lba + block))
            })
            .collect();
        assert_eq!(blocks, [(2, 100), (3, 101), (10, 102), (11, 200), (12, 201), (13, 202)]);
        assert!(pair(LuId(1), &[range(0, 4)], 4, LuId(2), &[range(0, 1)]).is_empty());
        assert!(pair(LuId(1), &[range(0, 4)], u64::MAX, LuId(2), &[range(0, 1)]).is_empty());
    }
}
