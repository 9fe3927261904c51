//! The trace ring of a core: the last [`RECORDS`] things that happened, 32 bytes each, overwritten for ever.
//!
//! Recording is a store of four words; nothing is formatted until somebody dumps the ring.

use std::fmt::{self, Write as _};

use crate::clock::Tick;

/// Records kept per core.
pub const RECORDS: usize = 1 << 14;

/// One thing that happened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TraceRecord {
    /// When.
    pub tick: Tick,
    /// What, as the recording module numbers and names it.
    pub point: TracePoint,
    /// Which object (a connection, a channel).
    pub object: u32,
    /// First argument.
    pub arg: u64,
    /// Second argument.
    pub arg2: u64,
}
const _: () = assert!(size_of::<TraceRecord>() == 32);

/// What can be traced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum TracePoint {
    /// Nothing yet.
    #[default]
    Empty,
    /// An I/O went into a bdev: object = bdev, arg = tag, arg2 = LBA.
    BdevSubmit,
    /// An I/O came out of a bdev: object = bdev, arg = tag, arg2 = status.
    BdevComplete,
    /// A connection came: object = connection.
    ConnOpen,
    /// A connection went: object = connection, arg = reason.
    ConnClose,
    /// A command came in: object = connection, arg = CID or ITT, arg2 = opcode.
    Command,
    /// A response went out: object = connection, arg = CID or ITT, arg2 = status.
    Response,
    /// A poller held the core: arg = nanoseconds.
    Stall,
    /// The core went to sleep: arg = nanoseconds it slept.
    Sleep,
}

impl fmt::Display for TraceRecord {
    /// `12345.678 command object=7 arg=0x1 arg2=0x2`: the time in microseconds since the clock began.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (us, ns) = (self.tick.as_ns() / 1000, self.tick.as_ns() % 1000);
        let Self { point, object, arg, arg2, .. } = self;
        write!(f, "{us}.{ns:03} {} object={object} ", point.name())?;
        match point {
            TracePoint::Stall | TracePoint::Sleep => write!(f, "ns={arg}"),
            _ => write!(f, "arg={arg:#x} arg2={arg2:#x}"),
        }
    }
}

impl TracePoint {
    /// Its name in dumps.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::BdevSubmit => "bdev_submit",
            Self::BdevComplete => "bdev_complete",
            Self::ConnOpen => "conn_open",
            Self::ConnClose => "conn_close",
            Self::Command => "command",
            Self::Response => "response",
            Self::Stall => "stall",
            Self::Sleep => "sleep",
        }
    }
}

/// The ring.
#[derive(Debug)]
pub struct TraceRing {
    records: Box<[TraceRecord]>,
    next: usize,
    enabled: bool,
}

impl TraceRing {
    pub(crate) fn new() -> Self {
        Self { records: vec![TraceRecord::default(); RECORDS].into_boxed_slice(), next: 0, enabled: false }
    }

    /// Switches recording on or off; off, a trace point costs one branch.
    pub fn set_enabled(&mut self, enabled: bool) {
        self.enabled = enabled;
    }

    /// Whether it records.
    #[inline]
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Records one thing, if recording is on.
    #[inline]
    pub fn record(&mut self, record: TraceRecord) {
        if !self.enabled {
            return;
        }
        if let Some(slot) = self.records.get_mut(self.next % RECORDS) {
            *slot = record;
        }
        self.next = self.next.wrapping_add(1);
    }

    /// All records as text, oldest first, one a line: microseconds, point, object, arguments. For people and the RPC;
    /// allocates, and may take a millisecond, so it counts as a stall where the core is busy.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for record in self.dump() {
            // Writing to a string cannot fail.
            writeln!(text, "{record}").ok();
        }
        text
    }

    /// All records, oldest first.
    #[must_use]
    pub fn dump(&self) -> Vec<TraceRecord> {
        let start = self.next % RECORDS;
        let (newer, older) = self.records.split_at(start);
        older.iter().chain(newer).filter(|record| record.point != TracePoint::Empty).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(arg: u64) -> TraceRecord {
        TraceRecord { point: TracePoint::Command, arg, ..TraceRecord::default() }
    }

    #[test]
    fn the_ring_keeps_the_newest_records_in_order() {
        let mut ring = TraceRing::new();
        ring.record(record(0));
        assert!(ring.dump().is_empty(), "it records only when switched on");
        ring.set_enabled(true);
        let total = u64::try_from(RECORDS).unwrap() + 10;
        (0..total).for_each(|arg| ring.record(record(arg)));
        let args: Vec<u64> = ring.dump().iter().map(|record| record.arg).collect();
        assert_eq!(args, (10..total).collect::<Vec<u64>>());
    }

    #[test]
    fn a_dump_is_one_line_for_each_record() {
        let mut ring = TraceRing::new();
        ring.set_enabled(true);
        let tick = Tick::from_ns(1_234_567);
        ring.record(TraceRecord { tick, point: TracePoint::Command, object: 7, arg: 16, arg2: 2 });
        ring.record(TraceRecord { tick, point: TracePoint::Sleep, arg: 99, ..TraceRecord::default() });
        let text = "1234.567 command object=7 arg=0x10 arg2=0x2\n1234.567 sleep object=0 ns=99\n";
        assert_eq!(ring.to_text(), text);
    }
}
