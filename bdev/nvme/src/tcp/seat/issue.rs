//! I/Os to commands on a path, and completions to what becomes of the I/Os.

use penstock_bdev::{Io, IoStatus, Op};
use penstock_nvme_tcp::{Completion, Transfer};
use penstock_reactor::Tick;
use penstock_reactor::mem::Buf;
use penstock_spec::nvme::{Cqe, Status};

use super::request::{Part, State, of_user, user_of};
use super::{PathAsk, Seat};
use crate::tcp::command::{Command, Outcome, command_of, fused_write, outcome, read_back};
use crate::tcp::payload::IoPayload;

/// How long an I/O waits after an error of the only path.
const PATH_DELAY_NS: u64 = 100_000_000;

/// Why an I/O was not sent.
pub(super) enum NotSent {
    /// Its path is full.
    NoRoom(Box<Io>),
    /// There is no path that serves now.
    NoPath(Box<Io>),
}

impl Seat {
    /// Gives the command of request `index` to a path.
    #[inline]
    pub(super) fn issue(&mut self, index: u16, io: Box<Io>, now: Tick) -> Result<(), NotSent> {
        let end = self.request(index).end;
        if self.end_mut(end).routed != self.version {
            self.reroute(end);
        }
        let Self { ends, paths, .. } = self;
        let Some(end) = ends.get_mut(end) else { return Err(NotSent::NoPath(io)) };
        let options = end.options;
        let chosen = end.route.choose(&options, |index| paths.get(index).map_or(0, |path| path.load));
        let Some(at) = chosen else { return Err(NotSent::NoPath(io)) };
        let ns = end.ns;
        if io.op == Op::CompareAndWrite {
            return self.issue_fused(index, io, at, now);
        }
        let Command { sqe, transfer, extra } = command_of(&io, ns);
        let Some(path) = paths.get_mut(at) else { return Err(NotSent::NoPath(io)) };
        let Some(connection) = path.connection.as_mut() else { return Err(NotSent::NoPath(io)) };
        match connection.submit(sqe, transfer, user_of(index, Part::Whole), IoPayload { io, extra }) {
            Ok(cid) => {
                path.load += 1;
                path.stats.commands.add(1);
                let request = self.request(index);
                (request.path, request.cid, request.since) = (at, cid, now);
                request.state = State::OnPath;
                Ok(())
            }
            Err(rejected) => {
                let Some(payload) = rejected.payload else { unreachable!("it had a payload") };
                Err(NotSent::NoRoom(payload.io))
            }
        }
    }

    #[cold]
    fn reroute(&mut self, end: usize) {
        let (nsid, options, version) = {
            let end = self.end_mut(end);
            (end.ns.nsid, end.options, self.version)
        };
        let route = self.route_of(nsid, &options);
        let end = self.end_mut(end);
        (end.route, end.routed) = (route, version);
    }

    /// Compare and Write, fused (NVM Command Set 3.3.1): next to each other in the queue, the compare first. The write's
    /// data goes in a buffer of its own.
    fn issue_fused(&mut self, index: u16, io: Box<Io>, at: usize, now: Tick) -> Result<(), NotSent> {
        let end = self.request(index).end;
        let ns = self.end_mut(end).ns;
        let half = io.data.len_bytes() / 2;
        let has_room = self.paths.get(at).and_then(|path| path.connection.as_ref());
        if !has_room.is_some_and(|connection| connection.has_room(2)) {
            return Err(NotSent::NoRoom(io));
        }
        let Some(mut buf) = Buf::alloc(half) else { return Err(NotSent::NoRoom(io)) };
        io.data.copy_out(half, &mut buf);
        let mut second = self.spare();
        second.data.push(buf);
        let (compare, write) = (command_of(&io, ns), fused_write(&io, ns));
        let first = IoPayload { io, extra: None };
        let cid = match self.send(at, &compare, user_of(index, Part::FusedCompare), first) {
            Ok(cid) => cid,
            Err(payload) => {
                self.keep_spare(second);
                return Err(NotSent::NoRoom(payload.io));
            }
        };
        let request = self.request(index);
        (request.path, request.cid, request.since) = (at, cid, now);
        request.state = State::Fused { io: None, compare: None, write: None };
        let payload = IoPayload { io: second, extra: None };
        if let Err(payload) = self.send(at, &write, user_of(index, Part::FusedWrite), payload) {
            // The compare waits for its other half in vain: the controller ends it as a pair that is broken.
            self.keep_spare(payload.io);
            if let State::Fused { write, .. } = &mut self.request(index).state {
                *write = Some(Cqe::new(0, 0, Status::ABORTED_MISSING_FUSED));
            }
        }
        Ok(())
    }

    /// Gives a command to the path at `at`; hands the payload back where it does not take it.
    fn send(
        &mut self,
        at: usize,
        command: &Command,
        user: u64,
        payload: IoPayload,
    ) -> Result<u16, IoPayload> {
        let Some(path) = self.paths.get_mut(at) else { return Err(payload) };
        let Some(connection) = path.connection.as_mut() else { return Err(payload) };
        match connection.submit(command.sqe, command.transfer, user, payload) {
            Ok(cid) => {
                path.load += 1;
                path.stats.commands.add(1);
                Ok(cid)
            }
            Err(rejected) => match rejected.payload {
                Some(payload) => Err(payload),
                None => unreachable!("it had a payload"),
            },
        }
    }

    /// A command is back from the path at `at`. `lost`: because the connection is gone.
    #[inline]
    pub(super) fn completed(&mut self, at: usize, done: Completion<IoPayload>, lost: bool, now: Tick) {
        let (index, part) = of_user(done.user);
        if let Some(path) = self.paths.get_mut(at) {
            path.load = path.load.saturating_sub(1);
        }
        let Some(IoPayload { io, .. }) = done.payload else { return };
        match part {
            Part::Whole => self.judged(index, io, &done.cqe, now),
            Part::FusedCompare | Part::FusedWrite => self.half_back(index, part, io, &done.cqe, lost, now),
            Part::ReadBack => self.read_is_back(index, io, &done.cqe),
        }
    }

    #[inline]
    fn judged(&mut self, index: u16, io: Box<Io>, cqe: &Cqe, now: Tick) {
        match outcome(io.op, cqe) {
            Outcome::Ended(IoStatus::Success) => self.finish(index, io, IoStatus::Success),
            other => self.failed(index, io, other, now),
        }
    }

    /// A command failed: its I/O ends, is tried again, or takes another path.
    #[cold]
    fn failed(&mut self, index: u16, io: Box<Io>, outcome: Outcome, now: Tick) {
        let retries_max = self.rules.retries_max;
        let request = self.request(index);
        let (abandoned, tries, timed_out, at, end) =
            (request.abandoned, request.tries, request.timed_out, request.path, request.end);
        request.timed_out = false;
        let nsid = self.end_mut(end).ns.nsid;
        let Some(path) = self.paths.get_mut(at) else { return self.finish(index, io, IoStatus::Internal) };
        match outcome {
            Outcome::Ended(IoStatus::Aborted) if timed_out && !abandoned => {
                // We had it aborted, not its owner.
                if tries >= retries_max || io.op == Op::CompareAndWrite {
                    return self.finish(index, io, IoStatus::TimedOut);
                }
                path.stats.retries.add(1);
                self.try_again(index, io, 0, now);
            }
            Outcome::Ended(status) => self.finish(index, io, status),
            _ if abandoned => self.finish(index, io, IoStatus::Aborted),
            Outcome::Retry(delay, meaning) => {
                if tries >= retries_max {
                    return self.finish(index, io, meaning);
                }
                path.stats.retries.add(1);
                let delays_ns = path.retry_delays_ns;
                let delay_ns =
                    usize::from(delay).checked_sub(1).and_then(|at| delays_ns.get(at).copied()).unwrap_or(0);
                self.try_again(index, io, delay_ns, now);
            }
            Outcome::Ana(state) => {
                path.stats.rerouted.add(1);
                let stale = path.namespaces.iter_mut().find(|ns| ns.nsid == nsid && ns.ana != state);
                if let Some(ns) = stale {
                    ns.ana = state;
                    path.ask(PathAsk::AnaChanged);
                }
                self.changed();
                self.park(index, io, now);
            }
            Outcome::Path => {
                path.stats.rerouted.add(1);
                // A path that is connected and says so is tried again a little later, so many times.
                let connected = path.connection.is_some();
                if connected && tries >= retries_max {
                    return self.finish(index, io, IoStatus::TimedOut);
                }
                self.try_again_if(connected, index, io, now);
            }
            Outcome::NoNamespace => {
                path.namespaces.retain(|ns| ns.nsid != nsid);
                path.ask(PathAsk::NamespacesChanged);
                self.changed();
                self.park(index, io, now);
            }
        }
    }

    fn try_again(&mut self, index: u16, io: Box<Io>, delay_ns: u64, now: Tick) {
        let request = self.request(index);
        request.tries = request.tries.saturating_add(1);
        self.park(index, io, now.plus_ns(delay_ns));
    }

    fn try_again_if(&mut self, connected: bool, index: u16, io: Box<Io>, now: Tick) {
        if connected { self.try_again(index, io, PATH_DELAY_NS, now) } else { self.park(index, io, now) }
    }

    /// One half of a fused pair is back.
    #[cold]
    fn half_back(&mut self, index: u16, part: Part, io: Box<Io>, cqe: &Cqe, lost: bool, now: Tick) {
        let mut spare = None;
        let State::Fused { io: first, compare, write } = &mut self.request(index).state else { return };
        if part == Part::FusedCompare {
            (*first, *compare) = (Some(io), Some(*cqe));
        } else {
            *write = Some(*cqe);
            spare = Some(io);
        }
        let both = compare.zip(*write);
        let pair = both.and_then(|both| Some((first.take()?, both)));
        spare.into_iter().for_each(|spare| self.keep_spare(spare));
        let Some((io, (compare, write))) = pair else { return };
        let (compared, written) = (compare.status().is_success(), write.status().is_success());
        if compared && written {
            return self.finish(index, io, IoStatus::Success);
        }
        if Status::COMPARE_FAILURE.is(compare.status()) {
            return self.look_for_difference(index, io, now);
        }
        if lost || compared || written {
            // It may have been done, and its second run might find its first.
            return self.finish(index, io, IoStatus::Aborted);
        }
        let broken = [Status::ABORTED_FAILED_FUSED, Status::ABORTED_MISSING_FUSED];
        let why = if broken.iter().any(|code| code.is(compare.status())) { write } else { compare };
        if broken.iter().any(|code| code.is(why.status())) {
            return self.failed(index, io, Outcome::Retry(0, IoStatus::NotReady), now);
        }
        self.judged(index, io, &why, now);
    }

    /// Reads the blocks of a compare that failed, to say where they differ.
    fn look_for_difference(&mut self, index: u16, io: Box<Io>, now: Tick) {
        let end = self.request(index).end;
        let (ns, at) = (self.end_mut(end).ns, self.request(index).path);
        let Some(buf) = Buf::alloc(io.data.len_bytes() / 2) else {
            return self.finish(index, io, IoStatus::Miscompare);
        };
        let mut spare = self.spare();
        spare.data.push(buf);
        let command = read_back(&io, ns);
        debug_assert!(matches!(command.transfer, Transfer::Read(_)), "it reads");
        let payload = IoPayload { io: spare, extra: None };
        match self.send(at, &command, user_of(index, Part::ReadBack), payload) {
            Ok(cid) => {
                let request = self.request(index);
                (request.cid, request.since) = (cid, now);
                request.state = State::ReadBack(io);
            }
            Err(payload) => {
                self.keep_spare(payload.io);
                self.finish(index, io, IoStatus::Miscompare);
            }
        }
    }

    #[cold]
    fn read_is_back(&mut self, index: u16, spare: Box<Io>, cqe: &Cqe) {
        let state = std::mem::replace(&mut self.request(index).state, State::Free);
        let State::ReadBack(mut io) = state else { return };
        if cqe.status().is_success()
            && let Some(there) = spare.data.iter().next()
        {
            let place = io.data.first_difference(0, there).unwrap_or(0);
            io.result = u64::try_from(place).unwrap_or(0);
        }
        self.keep_spare(spare);
        self.finish(index, io, IoStatus::Miscompare);
    }

    fn spare(&mut self) -> Box<Io> {
        self.spares.pop().unwrap_or_else(Io::boxed)
    }

    fn keep_spare(&mut self, mut spare: Box<Io>) {
        spare.data.clear();
        self.spares.push(spare);
    }
}
