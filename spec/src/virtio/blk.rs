//! The block device (VIRTIO 5.2).

use zerocopy::little_endian::{U16, U32, U64};

/// The unit of addresses, lengths and the capacity, whatever the block size (VIRTIO 5.2.4).
pub const SECTOR_BYTES: u32 = 512;

/// Length of the string that [`RequestType::GET_ID`] asks for, padded with NUL (VIRTIO 5.2.6).
pub const ID_BYTES: usize = 20;

/// Feature bits of the block device (VIRTIO 5.2.3).
pub mod feature {
    /// [`size_max`](super::Config::size_max) is valid.
    pub const SIZE_MAX: u64 = 1 << 1;
    /// [`seg_max`](super::Config::seg_max) is valid.
    pub const SEG_MAX: u64 = 1 << 2;
    /// The device is read-only.
    pub const RO: u64 = 1 << 5;
    /// [`blk_size`](super::Config::blk_size) is valid.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// There is a volatile write cache, and a flush.
    pub const FLUSH: u64 = 1 << 9;
    /// The topology is valid.
    pub const TOPOLOGY: u64 = 1 << 10;
    /// The driver may switch [`writeback`](super::Config::writeback).
    pub const CONFIG_WCE: u64 = 1 << 11;
    /// Several queues.
    pub const MQ: u64 = 1 << 12;
    /// Discard.
    pub const DISCARD: u64 = 1 << 13;
    /// Write zeroes.
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

codes! {
    /// What a request is (VIRTIO 5.2.6).
    pub struct RequestType(u32) {
        IN = 0, "Read";
        OUT = 1, "Write";
        FLUSH = 4, "Flush";
        GET_ID = 8, "Get device ID";
        GET_LIFETIME = 10, "Get lifetime";
        DISCARD = 11, "Discard";
        WRITE_ZEROES = 13, "Write zeroes";
        SECURE_ERASE = 14, "Secure erase";
    }
}

codes! {
    /// How a request ended: its last byte (VIRTIO 5.2.6).
    pub struct Status(u8) {
        OK = 0, "Success";
        IOERR = 1, "Device or driver error";
        UNSUPP = 2, "Request unsupported by the device";
    }
}

wire! {
    /// The beginning of every request (VIRTIO 5.2.6, `struct virtio_blk_req`).
    pub struct RequestHeader [16] {
        /// [`RequestType`].
        pub request_type @ 0: U32,
        pub reserved @ 4: U32,
        /// First sector, for reads and writes.
        pub sector @ 8: U64,
    }
}

wire! {
    /// One range of a discard or of write zeroes (`struct virtio_blk_discard_write_zeroes`).
    pub struct Range [16] {
        /// First sector.
        pub sector @ 0: U64,
        /// Length in sectors.
        pub num_sectors @ 8: U32,
        /// Bit 0, write zeroes only: the space may be freed.
        pub flags @ 12: U32,
    }
}

impl Range {
    /// [`Range::flags`]: the space may be freed.
    pub const UNMAP: u32 = 1;
}

wire! {
    /// The configuration space (VIRTIO 5.2.4, `struct virtio_blk_config`), up to write zeroes.
    pub struct Config [60] {
        /// Length of the device in sectors.
        pub capacity @ 0: U64,
        /// Bytes of one segment at most.
        pub size_max @ 8: U32,
        /// Segments of one request at most.
        pub seg_max @ 12: U32,
        pub geometry @ 16: [u8; 4],
        /// Length of a logical block in bytes.
        pub blk_size @ 20: U32,
        /// Logical blocks in a physical one, as an exponent of two.
        pub physical_block_exp @ 24: u8,
        /// Offset of the first aligned logical block.
        pub alignment_offset @ 25: u8,
        /// The smallest length that works well, in logical blocks.
        pub min_io_size @ 26: U16,
        /// The length that works best, in logical blocks.
        pub opt_io_size @ 28: U32,
        /// 1: writes are volatile until a flush; 0: they are durable when they complete.
        pub writeback @ 32: u8,
        pub unused0 @ 33: u8,
        /// Queues.
        pub num_queues @ 34: U16,
        /// Sectors of one discard range at most.
        pub max_discard_sectors @ 36: U32,
        /// Ranges of one discard at most.
        pub max_discard_seg @ 40: U32,
        /// What a discard should be aligned to, in sectors.
        pub discard_sector_alignment @ 44: U32,
        /// Sectors of one write zeroes range at most.
        pub max_write_zeroes_sectors @ 48: U32,
        /// Ranges of one write zeroes at most.
        pub max_write_zeroes_seg @ 52: U32,
        /// Whether write zeroes may free the space.
        pub write_zeroes_may_unmap @ 56: u8,
        pub unused1 @ 57: [u8; 3],
    }
}

impl Config {
    /// Offset of [`Config::writeback`], the one byte that a driver may write.
    pub const WRITEBACK_AT: u32 = 32;
}
