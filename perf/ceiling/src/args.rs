//! The command line.

use clap::{Parser, ValueEnum};
use serde::Serialize;

/// How the two sides use their sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Backend {
    /// recv and sendmsg on every socket, every turn.
    Syscall,
    /// The reactor's socket group: hot sockets every turn, epoll for the rest.
    Group,
    /// io_uring: multishot receive into provided buffers, sendmsg.
    Uring,
    /// The same, with zero-copy sendmsg.
    UringZc,
}

/// What the requests are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Op {
    /// The block comes with the response.
    Read,
    /// The block goes with the request.
    Write,
}

/// Measures what this machine's sockets can do at best for an NVMe/TCP-shaped exchange.
#[derive(Debug, Clone, Parser)]
#[command(version, about)]
pub(crate) struct Args {
    /// What to compare; measured in turns.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "group")]
    pub(crate) backend: Vec<Backend>,
    /// Which requests.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "read,write")]
    pub(crate) op: Vec<Op>,
    /// Bytes of a block.
    #[arg(long, value_delimiter = ',', default_value = "4096")]
    pub(crate) block: Vec<usize>,
    /// Requests in flight per connection.
    #[arg(long, value_delimiter = ',', default_value = "1,32,128")]
    pub(crate) qd: Vec<u32>,
    /// Connections.
    #[arg(long, value_delimiter = ',', default_value = "1")]
    pub(crate) connections: Vec<usize>,
    /// How long each round measures, in milliseconds.
    #[arg(long, default_value_t = 500)]
    pub(crate) time_ms: u64,
    /// How long each round warms up, in milliseconds.
    #[arg(long, default_value_t = 100)]
    pub(crate) warm_up_ms: u64,
    /// Rounds; the median counts.
    #[arg(long, default_value_t = 5)]
    pub(crate) rounds: usize,
    /// The server's core.
    #[arg(long, default_value_t = 0)]
    pub(crate) server_core: u32,
    /// The client's core.
    #[arg(long, default_value_t = 1)]
    pub(crate) client_core: u32,
    /// Where the server listens; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub(crate) address: std::net::SocketAddr,
    /// Bytes of memory that blocks are sent from.
    #[arg(long, default_value_t = 64 << 20)]
    pub(crate) memory: usize,
    /// Print JSON, once at the end.
    #[arg(long)]
    pub(crate) json: bool,
}

/// One point of the matrix.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Case {
    pub(crate) op: Op,
    pub(crate) block_bytes: usize,
    pub(crate) qd: u32,
    pub(crate) connections: usize,
}

impl Args {
    pub(crate) fn cases(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        for op in self.op.iter().copied() {
            for block_bytes in self.block.iter().copied() {
                for connections in self.connections.iter().copied() {
                    let case = |qd| Case { op, block_bytes, qd, connections };
                    cases.extend(self.qd.iter().copied().map(case));
                }
            }
        }
        cases
    }
}
