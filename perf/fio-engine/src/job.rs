//! One fio job: its devices, and its I/Os from submission to the event that fio takes.
//!
//! An I/O is known by the number that fio's unit carries. It is [`Unit::Idle`] here, or with a device; a device gives it back
//! by `poll`, always, with the unit's number as its tag.

use std::collections::BTreeSet;
use std::sync::Mutex;

use anyhow::{Context as _, ensure};
use penstock_bdev::{Busy, Io, IoFlags, IoStatus, Lba, Op, Sg};
use penstock_perf::target::Target;
use penstock_perf::worker::Device;
use penstock_reactor::{Clock, PollMode, Reactor, ReactorConfig, ReactorId};

use crate::target::{Name, does};

/// Units of one job at most: so many commands one queue pair takes.
pub(crate) const UNITS_MAX: usize = 1024;
/// Ended I/Os taken from a device at once.
const BUDGET: usize = 256;

/// Numbers of reactors in use: statistics are kept by them.
static REACTORS: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It comes out of [`Job::poll`].
    Queued,
    /// The device's queue is full: later.
    Busy,
}

/// A request, as fio has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request {
    pub(crate) op: Op,
    /// Where it begins, in bytes.
    pub(crate) offset: u64,
    /// How long it is, in bytes.
    pub(crate) len: u64,
}

/// A device of the job's.
struct Disk {
    device: Box<dyn Device>,
    target: Target,
    /// Needs the reactor's turns.
    is_local: bool,
    block_bytes: u64,
    bytes: u64,
    fua: bool,
    in_flight: usize,
}

/// Where an I/O is.
#[derive(Debug)]
enum Unit {
    Idle(Box<Io>),
    /// With the disk of that number.
    Out(usize),
}

/// A job.
pub(crate) struct Job {
    /// By fio's number of the file.
    disks: Vec<Option<Disk>>,
    units: Vec<Unit>,
    done: Vec<Box<Io>>,
    reactor: Reactor,
    id: ReactorId,
}

impl Job {
    /// A job without devices.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let mut used = REACTORS.lock().ok().context("another job panicked")?;
        let id = (0..).find(|id| !used.contains(id)).context("too many jobs")?;
        let config = ReactorConfig {
            id: ReactorId(id),
            core: None,
            mode: PollMode::Busy,
            clock: Clock::system(),
            seed: u64::from(id),
        };
        let reactor = Reactor::new(&config)?;
        used.insert(id);
        Ok(Self {
            disks: Vec::new(),
            units: Vec::new(),
            done: Vec::with_capacity(BUDGET),
            reactor,
            id: config.id,
        })
    }

    /// One more I/O that may be under way; its number.
    ///
    /// # Errors
    /// There are as many as can be.
    pub(crate) fn add_unit(&mut self) -> anyhow::Result<usize> {
        let number = self.units.len();
        ensure!(number < UNITS_MAX, "iodepth is above {UNITS_MAX}, which is the most");
        self.units.push(Unit::Idle(Io::boxed()));
        Ok(number)
    }

    /// Opens what `name` means as file `number`, with room for all I/Os. Does nothing where it is open.
    ///
    /// # Errors
    /// As [`Name::parse`] and [`Name::open`]; the target refuses a queue.
    pub(crate) fn open(&mut self, number: usize, name: &str) -> anyhow::Result<()> {
        if self.disks.get(number).is_some_and(Option::is_some) {
            return Ok(());
        }
        let name = Name::parse(name)?;
        let mut target = name.open()?;
        let (block_bytes, blocks) = target.geometry();
        let depth = u32::try_from(self.units.len().max(1))?;
        let (device, is_local): (Box<dyn Device>, bool) = match &mut target {
            Target::Bdev(descriptor) => (Box::new(descriptor.channel(self.reactor.cx())?), true),
            Target::Pcie(pcie) => (Box::new(pcie.descriptor().channel(self.reactor.cx())?), true),
            Target::Remote(remote) => (Box::new(remote.open_queues(name.args.queues, depth)?), false),
            Target::Iscsi(target) => (Box::new(target.open_session(depth)?), false),
        };
        while self.disks.len() <= number {
            self.disks.push(None);
        }
        let bytes = blocks.saturating_mul(u64::from(block_bytes));
        let block_bytes = u64::from(block_bytes);
        let disk = Disk { device, target, is_local, block_bytes, bytes, fua: name.fua, in_flight: 0 };
        if let Some(place) = self.disks.get_mut(number) {
            *place = Some(disk);
        }
        Ok(())
    }

    /// Begins a request on file `number` as I/O `unit`; `lend` puts its buffers into the list.
    ///
    /// # Errors
    /// Why it cannot be done, as an error number.
    pub(crate) fn submit(
        &mut self,
        number: usize,
        unit: usize,
        request: Request,
        lend: impl FnOnce(&mut Sg),
    ) -> Result<Taken, i32> {
        let disk = self.disks.get_mut(number).and_then(Option::as_mut).ok_or(libc::EBADF)?;
        let place = self.units.get_mut(unit).ok_or(libc::EINVAL)?;
        if !does(&disk.target, request.op) {
            return Err(libc::EOPNOTSUPP);
        }
        let Request { op, offset, len } = request;
        if !offset.is_multiple_of(disk.block_bytes) || !len.is_multiple_of(disk.block_bytes) {
            return Err(libc::EINVAL);
        }
        if offset.checked_add(len).is_none_or(|end| end > disk.bytes) {
            return Err(libc::ENOSPC);
        }
        let blocks = u32::try_from(len / disk.block_bytes).map_err(|_| libc::EINVAL)?;
        let Unit::Idle(mut io) = std::mem::replace(place, Unit::Out(number)) else { return Err(libc::EBUSY) };
        io.data.clear();
        lend(&mut io.data);
        let tag = u64::try_from(unit).unwrap_or(u64::MAX);
        let flags = if op == Op::Write && disk.fua { IoFlags::FUA } else { IoFlags::NONE };
        io.set(tag, op, flags, Lba(offset / disk.block_bytes), blocks);
        match disk.device.submit(io, self.reactor.cx().now()) {
            Ok(()) => {
                disk.in_flight += 1;
                Ok(Taken::Queued)
            }
            Err(Busy(mut io)) => {
                io.data.clear();
                *place = Unit::Idle(io);
                // Nothing is under way that would make room: it never will be taken.
                if disk.in_flight == 0 { Err(libc::ENODEV) } else { Ok(Taken::Busy) }
            }
        }
    }

    /// Sends what devices have gathered.
    pub(crate) fn commit(&mut self) {
        for disk in self.disks.iter_mut().flatten() {
            disk.device.flush_queue();
        }
    }

    /// Tells `ended` of every I/O that has ended: its number, and 0 or an error number.
    pub(crate) fn poll(&mut self, mut ended: impl FnMut(usize, i32)) -> usize {
        if self.disks.iter().flatten().any(|disk| disk.is_local) {
            self.reactor.turn();
        }
        let now = self.reactor.cx().now();
        for disk in self.disks.iter_mut().flatten().filter(|disk| disk.in_flight > 0) {
            disk.device.poll(now, BUDGET, &mut self.done);
        }
        let count = self.done.len();
        for mut io in self.done.drain(..) {
            // The buffers are fio's again.
            io.data.clear();
            let (unit, status) = (usize::try_from(io.tag).unwrap_or(usize::MAX), io.status);
            let Some(place) = self.units.get_mut(unit) else { continue };
            if let Unit::Out(number) = std::mem::replace(place, Unit::Idle(io))
                && let Some(disk) = self.disks.get_mut(number).and_then(Option::as_mut)
            {
                disk.in_flight -= 1;
            }
            ended(unit, errno(status));
        }
        count
    }

    /// I/Os under way.
    pub(crate) fn in_flight(&self) -> usize {
        self.disks.iter().flatten().map(|disk| disk.in_flight).sum()
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        for disk in self.disks.drain(..).flatten() {
            let Disk { device, target, .. } = disk;
            drop(device);
            if let Target::Remote(remote) = target
                && let Err(error) = remote.close()
            {
                eprintln!("penstock: no orderly end: {error}");
            }
        }
        if let Ok(mut used) = REACTORS.lock() {
            used.remove(&self.id.0);
        }
    }
}

/// The error number that says it best.
fn errno(status: IoStatus) -> i32 {
    match status {
        IoStatus::Success => 0,
        IoStatus::OutOfRange | IoStatus::BadLength => libc::EINVAL,
        IoStatus::Unsupported => libc::EOPNOTSUPP,
        IoStatus::NoSpace => libc::ENOSPC,
        IoStatus::WriteProtected => libc::EROFS,
        IoStatus::Miscompare | IoStatus::ChecksumError => libc::EILSEQ,
        IoStatus::Gone => libc::ENODEV,
        IoStatus::NotReady => libc::EAGAIN,
        IoStatus::ReservationConflict => libc::EBADE,
        IoStatus::TimedOut => libc::ETIMEDOUT,
        IoStatus::Aborted => libc::ECANCELED,
        IoStatus::ReadError | IoStatus::WriteError | IoStatus::Pending | IoStatus::Internal => libc::EIO,
    }
}

#[cfg(test)]
mod tests {
    use penstock_reactor::mem::Buf;

    use super::*;

    fn run(job: &mut Job, op: Op, offset: u64, fill: u8) -> (i32, u8) {
        let request = Request { op, offset, len: 4096 };
        let mut buf = Buf::zeroed(4096);
        buf.iter_mut().for_each(|buf| buf.fill(fill));
        let begun = job.submit(0, 0, request, |data| buf.take().into_iter().for_each(|buf| data.push(buf)));
        if let Err(error) = begun {
            return (error, 0);
        }
        job.commit();
        let mut result = None;
        while job.in_flight() > 0 {
            job.poll(|unit, error| result = Some((unit, error)));
        }
        let (unit, error) = result.unwrap();
        assert_eq!(unit, 0);
        (error, fill)
    }

    #[test]
    fn requests_end_once_and_what_a_disk_cannot_do_is_said_at_once() {
        let mut job = Job::new().unwrap();
        assert_eq!(job.add_unit().unwrap(), 0);
        job.open(0, "malloc:4M").unwrap();
        assert_eq!(run(&mut job, Op::Write, 8192, 7), (0, 7));
        assert_eq!(run(&mut job, Op::Read, 8192, 0).0, 0);
        assert_eq!(run(&mut job, Op::Read, 512, 0).0, libc::EINVAL);
        assert_eq!(run(&mut job, Op::Read, 4 << 20, 0).0, libc::ENOSPC);
        assert_eq!(run(&mut job, Op::Unmap, 0, 0).0, 0);
        assert!(job.open(1, "nothing:at all").is_err());
    }
}
