//! Settings of the TCP transport as the data path uses them.

use penstock_reactor::mem::BUF_BYTES_MAX;
use penstock_spec::nvme_tcp::MAXH2CDATA_MIN;

use crate::transport_options::{IN_CAPSULE_DATA_MAX, IO_SIZE_MAX, TransportOptions};

const _: () = assert!(IO_SIZE_MAX as usize <= BUF_BYTES_MAX);
const _: () = assert!(IN_CAPSULE_DATA_MAX as usize <= BUF_BYTES_MAX);

/// When the last C2HData of a read carries the SUCCESS flag instead of a response capsule after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum C2hSuccess {
    /// Never.
    Never,
    /// On queues without SQ flow control: there the host can do without SQHD, which only a response carries.
    NoFlowControl,
    /// Always. Known hosts count their queue's room by completions and need no SQHD.
    Always,
}

/// Settings of the transport, the same on all reactors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpParams {
    /// Entries of an I/O submission queue at most.
    pub queue_entries_max: u16,
    /// Entries of an admin submission queue at most.
    pub admin_entries_max: u16,
    /// Bytes of data in a capsule on I/O queues: a multiple of 16.
    pub in_capsule_bytes: u32,
    /// Bytes of one I/O at most: MDTS and MAXH2CDATA follow from it.
    pub io_bytes_max: u32,
    /// Bytes in data buffers that the connections of one reactor may hold at once.
    pub buffer_bytes_max: u64,
    /// When SUCCESS is used.
    pub c2h_success: C2hSuccess,
    /// Whether a host may have header digests.
    pub header_digest: bool,
    /// Whether a host may have data digests.
    pub data_digest: bool,
    /// Alignment asked of hosts (CPDA): dwords, 0's based, at most 31.
    pub cpda: u8,
    /// Connections of one reactor at most.
    pub connections_max: u32,
    /// Of those, connections without a successful Connect at most.
    pub half_open_max: u32,
    /// How long a connection may do without a successful Connect, in nanoseconds.
    pub connect_timeout_ns: u64,
    /// How long a terminated connection waits for the peer to close, in nanoseconds.
    pub close_grace_ns: u64,
    /// `SO_PRIORITY` of the sockets.
    pub sock_priority: u32,
    /// Connections that wait to be accepted, per listener.
    pub backlog: u32,
    /// How long an Abort waits for the command that it aborts, in nanoseconds.
    pub abort_timeout_ns: u64,
}

impl Default for TcpParams {
    fn default() -> Self {
        Self::new(&TransportOptions::default(), 1)
    }
}

impl TcpParams {
    /// Settings of each of `reactors` reactors under `options`, which have been checked.
    #[must_use]
    pub fn new(options: &TransportOptions, reactors: usize) -> Self {
        let shared = u64::from(options.num_shared_buffers) * u64::from(options.io_unit_size);
        let share = shared / u64::try_from(reactors.max(1)).unwrap_or(1);
        Self {
            queue_entries_max: options.max_queue_depth,
            admin_entries_max: options.max_aq_depth,
            in_capsule_bytes: options.in_capsule_data_size,
            io_bytes_max: options.max_io_size,
            buffer_bytes_max: share.max(options.max_io_size.into()),
            c2h_success: if options.c2h_success { C2hSuccess::NoFlowControl } else { C2hSuccess::Never },
            header_digest: true,
            data_digest: true,
            cpda: 0,
            connections_max: 4096,
            half_open_max: 512,
            connect_timeout_ns: 10_000_000_000,
            close_grace_ns: 1_000_000_000,
            sock_priority: options.sock_priority,
            backlog: options.acceptor_backlog,
            abort_timeout_ns: u64::from(options.abort_timeout_sec) * 1_000_000_000,
        }
    }

    /// MAXH2CDATA: one H2CData may bring a whole I/O.
    #[must_use]
    pub fn h2c_data_max(&self) -> u32 {
        self.io_bytes_max.max(MAXH2CDATA_MIN)
    }
}
