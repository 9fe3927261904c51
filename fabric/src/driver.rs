//! Moving a lane's I/O to the channels of real bdevs and back: the glue between the machines and a reactor.
//!
//! A [`Channels`] has one channel per disk of the pool, where it is plugged in; blocks of 4 KiB become the bdev's own. A
//! [`LaneDriver`] is the poller of one lane: hosts' I/O goes to its [`Lane`] on the same reactor and is polled from there.

use penstock_bdev::{BdevChannel, Busy, Io, IoStatus};
use penstock_reactor::{Cx, Poller, Rest, Tick};

use crate::flow::{DiskIo, Flow};
use crate::id::{BLOCK_BYTES, DiskNo};
use crate::lane::Lane;

/// Ended I/Os that one turn takes from a channel at most.
const POLL_BUDGET: usize = 128;

/// How long a core may sleep while background work waits for its budget, in nanoseconds.
pub(crate) const TICK_NS: u64 = 5_000_000;

/// Something that has I/O for disks: the mouth of control flows, or a lane.
pub trait Port {
    /// The next I/O for a disk.
    fn take_out(&self) -> Option<DiskIo>;
    /// Puts back what a disk did not take.
    fn put_back(&self, io: DiskIo);
    /// Takes back an I/O that ended.
    fn complete(&self, io: DiskIo);
}

impl Port for Flow {
    fn take_out(&self) -> Option<DiskIo> {
        Self::take_out(self)
    }

    fn put_back(&self, io: DiskIo) {
        Self::put_back(self, io);
    }

    fn complete(&self, io: DiskIo) {
        let foreign = Self::complete(self, io);
        assert!(foreign.is_none(), "an I/O of a machine came back to a flow");
    }
}

impl Port for Lane {
    fn take_out(&self) -> Option<DiskIo> {
        Self::take_out(self)
    }

    fn put_back(&self, io: DiskIo) {
        Self::put_back(self, io);
    }

    fn complete(&self, io: DiskIo) {
        Self::complete(self, io);
    }
}

/// This reactor's channels to the disks of a pool, by where they are plugged in.
#[derive(Debug)]
pub struct Channels {
    channels: Vec<Option<BdevChannel>>,
    /// Channels to disks that are not wanted any more; dropped when nothing is under way there.
    leaving: Vec<(DiskNo, BdevChannel)>,
    done: Vec<Box<Io>>,
}

impl Channels {
    /// Over the channels of all disks, in the order of where they are plugged in; `None` where nothing is.
    #[must_use]
    pub fn new(channels: impl IntoIterator<Item = impl Into<Option<BdevChannel>>>) -> Self {
        let channels = channels.into_iter().map(Into::into).collect();
        Self { channels, leaving: Vec::new(), done: Vec::with_capacity(POLL_BUDGET) }
    }

    /// Plugs a disk in behind all others.
    pub fn add(&mut self, channel: Option<BdevChannel>) {
        self.channels.push(channel);
    }

    /// Pulls a disk: what is for it from now on ends with [`IoStatus::Gone`].
    pub fn pull(&mut self, at: DiskNo) {
        if let Some(channel) = self.channels.get_mut(usize::from(at.0)).and_then(Option::take) {
            self.leaving.push((at, channel));
        }
    }

    /// Whether a disk that was pulled is let go.
    #[must_use]
    pub fn is_free(&self, at: DiskNo) -> bool {
        !self.leaving.iter().any(|(of, _)| *of == at)
    }

    /// Blocks of 4 KiB of each disk, with where it is plugged in.
    #[must_use]
    pub fn plugged(&self) -> Vec<(DiskNo, u64)> {
        let blocks = |(at, channel): (u16, &Option<BdevChannel>)| {
            let channel = channel.as_ref()?;
            Some((DiskNo(at), channel.shared().blocks() / u64::from(scale(channel))))
        };
        (0..).zip(&self.channels).filter_map(blocks).collect()
    }

    /// I/Os under way. A channel must not be dropped before there is none.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.all().map(BdevChannel::in_flight).sum()
    }

    fn all(&self) -> impl Iterator<Item = &BdevChannel> {
        self.channels.iter().flatten().chain(self.leaving.iter().map(|(_, channel)| channel))
    }

    /// Moves what `port` has to the disks and what these have ended back; returns how many I/Os moved.
    pub fn turn(&mut self, port: &impl Port, now: Tick) -> usize {
        let mut moved = 0;
        let present = (0..)
            .map(DiskNo)
            .zip(&mut self.channels)
            .filter_map(|(at, channel)| Some((at, channel.as_mut()?)));
        for (disk, channel) in present.chain(self.leaving.iter_mut().map(|(at, channel)| (*at, channel))) {
            let scale = scale(channel);
            channel.poll(now, POLL_BUDGET, &mut self.done);
            moved += self.done.len();
            for mut io in self.done.drain(..) {
                io.lba.0 /= u64::from(scale);
                io.blocks /= scale;
                port.complete(DiskIo { disk, io });
            }
        }
        self.leaving.retain(|(_, channel)| channel.in_flight() > 0);
        while let Some(DiskIo { disk, mut io }) = port.take_out() {
            let Some(Some(channel)) = self.channels.get_mut(usize::from(disk.0)) else {
                io.status = IoStatus::Gone;
                port.complete(DiskIo { disk, io });
                moved += 1;
                continue;
            };
            let scale = scale(channel);
            io.lba.0 *= u64::from(scale);
            io.blocks *= scale;
            if let Err(Busy(mut io)) = channel.submit(io, now) {
                io.lba.0 /= u64::from(scale);
                io.blocks /= scale;
                port.put_back(DiskIo { disk, io });
                break;
            }
            moved += 1;
        }
        moved
    }

    /// Whether the core may sleep as far as the disks go.
    #[must_use]
    pub fn rest(&self, now: Tick) -> Rest {
        let mut rest = Rest::UntilWoken;
        for channel in self.all() {
            rest = match (rest, channel.rest(now)) {
                (Rest::Never, _) | (_, Rest::Never) => Rest::Never,
                (Rest::Until(one), Rest::Until(other)) => Rest::Until(one.min(other)),
                (Rest::Until(at), Rest::UntilWoken) | (Rest::UntilWoken, Rest::Until(at)) => Rest::Until(at),
                (Rest::UntilWoken, Rest::UntilWoken) => Rest::UntilWoken,
            };
        }
        rest
    }
}

/// As `rest`, but no longer than background work that waits for its budget may.
pub(crate) fn sooner(rest: Rest, now: Tick) -> Rest {
    let next = now.plus_ns(TICK_NS);
    match rest {
        Rest::Never => Rest::Never,
        Rest::Until(at) => Rest::Until(at.min(next)),
        Rest::UntilWoken => Rest::Until(next),
    }
}

/// Blocks of the bdev in one of 4 KiB.
fn scale(channel: &BdevChannel) -> u32 {
    let block = channel.shared().block_bytes();
    u32::try_from(BLOCK_BYTES).unwrap_or(u32::MAX) / block
}

/// The poller of one lane.
#[derive(Debug)]
pub struct LaneDriver {
    lane: Lane,
    channels: Channels,
}

impl LaneDriver {
    /// A poller that serves `lane` by `channels`. The lane's [`Lane::background`] is to be spawned beside it.
    #[must_use]
    pub fn new(lane: Lane, channels: Channels) -> Self {
        Self { lane, channels }
    }
}

impl Poller for LaneDriver {
    fn poll(&mut self, _cx: &Cx, now: Tick) -> usize {
        self.lane.tick(now);
        self.lane.turn();
        self.channels.turn(&self.lane, now)
    }

    fn rest(&mut self, now: Tick) -> Rest {
        // What waits in the lane without I/O under way was submitted in this turn, by a poller that is awake.
        if !self.lane.is_resting() {
            return Rest::Never;
        }
        let rest = self.channels.rest(now);
        if self.lane.wants_tick() { sooner(rest, now) } else { rest }
    }
}
