//! What a frontend sees of a disk: features and configuration space.

use penstock_bdev::{BdevInfo, Op};
use penstock_spec::virtio::blk::{self, Config, SECTOR_BYTES};
use penstock_spec::virtio::feature;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use crate::request::{RANGE_SECTORS_MAX, RANGES_MAX, SEGMENT_BYTES_MAX, SEGMENTS_MAX};

/// Queues of one device at most.
pub const QUEUES_MAX: u16 = 64;

/// Bytes of configuration space that may be read; zeroes behind what there is.
pub(crate) const CONFIG_BYTES: usize = 256;

/// The protocol features that are offered.
pub(crate) fn protocol_features() -> VhostUserProtocolFeatures {
    use VhostUserProtocolFeatures as Feature;
    Feature::MQ
        | Feature::LOG_SHMFD
        | Feature::REPLY_ACK
        | Feature::BACKEND_REQ
        | Feature::CONFIG
        | Feature::INFLIGHT_SHMFD
        | Feature::RESET_DEVICE
        | Feature::CONFIGURE_MEM_SLOTS
}

/// The features that are offered for a disk.
pub(crate) fn features(info: &BdevInfo, read_only: bool, packed_ring: bool) -> u64 {
    let mut features = feature::VERSION_1
        | feature::ANY_LAYOUT
        | feature::INDIRECT_DESC
        | feature::EVENT_IDX
        | feature::LOG_ALL
        | feature::PROTOCOL_FEATURES
        | blk::feature::SIZE_MAX
        | blk::feature::SEG_MAX
        | blk::feature::BLK_SIZE
        | blk::feature::TOPOLOGY
        | blk::feature::MQ;
    let mut offer = |bits: u64, if_so: bool| features |= if if_so { bits } else { 0 };
    offer(feature::RING_PACKED, packed_ring);
    offer(blk::feature::RO, read_only);
    let caches = info.caps.write_cache && info.caps.supports(Op::Flush) && !read_only;
    offer(blk::feature::FLUSH | blk::feature::CONFIG_WCE, caches);
    offer(blk::feature::DISCARD, info.caps.supports(Op::Unmap) && !read_only);
    offer(blk::feature::WRITE_ZEROES, info.caps.supports(Op::WriteZeroes) && !read_only);
    features
}

/// The configuration space.
pub(crate) fn config(info: &BdevInfo, writes_back: bool) -> [u8; CONFIG_BYTES] {
    let per_block = u64::from((info.block_bytes / SECTOR_BYTES).max(1));
    let physical = (info.physical_block_bytes / info.block_bytes.max(1)).max(1);
    let optimal = info.caps.optimal_blocks;
    let config = Config {
        capacity: U64::new(info.blocks.saturating_mul(per_block)),
        size_max: U32::new(SEGMENT_BYTES_MAX),
        seg_max: U32::new(u32::try_from(SEGMENTS_MAX).unwrap_or(0)),
        blk_size: U32::new(info.block_bytes),
        physical_block_exp: u8::try_from(physical.ilog2()).unwrap_or(0),
        min_io_size: U16::new(u16::try_from(physical.max(optimal)).unwrap_or(0)),
        opt_io_size: U32::new(optimal),
        writeback: u8::from(writes_back),
        num_queues: U16::new(QUEUES_MAX),
        max_discard_sectors: U32::new(RANGE_SECTORS_MAX),
        max_discard_seg: U32::new(RANGES_MAX),
        discard_sector_alignment: U32::new(info.block_bytes / SECTOR_BYTES),
        max_write_zeroes_sectors: U32::new(RANGE_SECTORS_MAX),
        max_write_zeroes_seg: U32::new(RANGES_MAX),
        write_zeroes_may_unmap: u8::from(info.caps.supports(Op::Unmap)),
        ..Config::default()
    };
    let mut space = [0; CONFIG_BYTES];
    for (to, from) in space.iter_mut().zip(config.as_bytes()) {
        *to = *from;
    }
    space
}
