//! What a group counts: the fields of `nvmf_get_stats`, as SPDK names them, and a few of its own.

/// Counters of one reactor's group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct GroupStats {
    /// Admin queue pairs that were ever connected.
    pub admin_qpairs: u64,
    /// I/O queue pairs that were ever connected.
    pub io_qpairs: u64,
    /// Admin queue pairs now.
    pub current_admin_qpairs: u32,
    /// I/O queue pairs now.
    pub current_io_qpairs: u32,
    /// I/Os that the bdevs have, or that wait for room in their queues.
    pub pending_bdev_io: u64,
    /// I/O commands that were answered.
    pub completed_nvme_io: u64,
    /// Connections now, connected or not.
    pub connections: u32,
    /// Connections that were terminated for an error of the protocol.
    pub terminated: u64,
    /// Connections that were refused, or closed before their Connect, because there were too many.
    pub refused: u64,
    /// Authentications that failed, on either side.
    pub auth_failures: u64,
    /// Commands that had to wait for a buffer.
    pub buffer_waits: u64,
    /// Bytes of data in the buffers of commands now.
    pub buffer_bytes: u64,
}
