//! Numbers of the two layouts of a queue (VIRTIO 2.7 "Split Virtqueues", 2.8 "Packed Virtqueues").

/// Length of a descriptor of either layout, in bytes.
pub const DESCRIPTOR_BYTES: usize = 16;
/// Entries of a queue at most.
pub const ENTRIES_MAX: u16 = 32_768;

/// Flags of a descriptor.
pub mod descriptor {
    /// The chain goes on.
    pub const NEXT: u16 = 1;
    /// The device writes it.
    pub const WRITE: u16 = 2;
    /// It is a table of descriptors.
    pub const INDIRECT: u16 = 4;
    /// Packed: made available in the lap of the ring that this bit says.
    pub const AVAIL: u16 = 1 << 7;
    /// Packed: used in the lap of the ring that this bit says.
    pub const USED: u16 = 1 << 15;
}

/// The split layout.
pub mod split {
    /// The driver wants no interrupts (flags of the available ring).
    pub const NO_INTERRUPT: u16 = 1;
    /// The device wants no notifications (flags of the used ring).
    pub const NO_NOTIFY: u16 = 1;
    /// Offset of the index in either ring.
    pub const IDX_AT: usize = 2;
    /// Offset of the entries in either ring.
    pub const RING_AT: usize = 4;
    /// Length of an entry of the available ring.
    pub const AVAIL_BYTES: usize = 2;
    /// Length of an entry of the used ring.
    pub const USED_BYTES: usize = 8;
}

/// The packed layout.
pub mod packed {
    /// Event suppression: every event.
    pub const ENABLE: u16 = 0;
    /// Event suppression: none.
    pub const DISABLE: u16 = 1;
    /// Event suppression: at one descriptor.
    pub const DESC: u16 = 2;
    /// Length of an event suppression area.
    pub const EVENT_BYTES: usize = 4;
    /// Offset of a descriptor's length.
    pub const LEN_AT: usize = 8;
    /// Offset of a descriptor's buffer ID.
    pub const ID_AT: usize = 12;
    /// Offset of a descriptor's flags.
    pub const FLAGS_AT: usize = 14;
    /// The lap's bit in an event's offset and in a ring position.
    pub const WRAP: u16 = 1 << 15;
}
