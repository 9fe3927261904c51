//! Virtual I/O Device (VIRTIO) Version 1.3: what a block device and its queues look like to a driver; little-endian.

pub mod blk;
pub mod queue;

/// Feature bits of every kind of device (VIRTIO 6 "Reserved Feature Bits", 2.2; 24 and 26 are vhost's).
pub mod feature {
    /// Writes to guest memory are noted in a bitmap (`VHOST_F_LOG_ALL`).
    pub const LOG_ALL: u64 = 1 << 26;
    /// Any layout of a request in descriptors (legacy `VIRTIO_F_ANY_LAYOUT`; always so from 1.0 on).
    pub const ANY_LAYOUT: u64 = 1 << 27;
    /// Descriptors may be in a table of their own (`VIRTIO_F_INDIRECT_DESC`).
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Each side says at which entry it wants to be told (`VIRTIO_F_EVENT_IDX`).
    pub const EVENT_IDX: u64 = 1 << 29;
    /// The vhost-user protocol features are there (`VHOST_USER_F_PROTOCOL_FEATURES`).
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    /// VIRTIO 1.0 or later (`VIRTIO_F_VERSION_1`).
    pub const VERSION_1: u64 = 1 << 32;
    /// The packed layout of queues (`VIRTIO_F_RING_PACKED`).
    pub const RING_PACKED: u64 = 1 << 34;
}
