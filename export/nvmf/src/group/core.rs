//! What all connections of a reactor share: namespaces' channels, I/Os, queues of those who wait.

use std::collections::VecDeque;
use std::sync::Arc;

use penstock_bdev::reservation::ReservationView;
use penstock_bdev::{BdevChannel, Busy, Io};
use penstock_reactor::mem::Buf;
use penstock_reactor::{Cx, Tick};
use penstock_spec::nvme::{NvmOpcode, Sqe, Status};
use penstock_spec::nvmf::Nqn;

use super::failure::Failure;
use super::reservation::guard_of;
use super::stats::GroupStats;
use crate::config::{NamespaceConfig, Nsid, SubsystemConfig, SubsystemKind};
use crate::io_cmd::{self, IoLimits, IoPlan, NsGeometry, Transfer};
use crate::qpair::{Link, control_transfer};
use crate::reservation::is_reservation;
use crate::tcp::TcpParams;
use crate::tcp::conn::{Conn, Exec, Sink};
use crate::tcp::req::{Req, ReqId, ReqKind};

/// I/Os kept for another use at most.
const IOS_MAX: usize = 4096;
/// No channel.
pub(super) const NO_CHAN: u32 = u32::MAX;
/// Channels of one reactor at most.
const CHANS_MAX: usize = 1 << 16;

/// A reactor's view of a subsystem.
#[derive(Debug)]
pub(crate) struct Subsystem {
    pub(crate) config: Arc<SubsystemConfig>,
    /// Channel of NSID `index + 1`.
    pub(super) chans: Vec<u32>,
    limits: IoLimits,
    /// Why a namespace has no channel.
    errors: Vec<(Nsid, String)>,
    /// It was deleted: its connections are going.
    pub(crate) removed: bool,
}

impl Subsystem {
    pub(super) fn chan(&self, nsid: u32) -> u32 {
        let index = nsid.wrapping_sub(1) as usize;
        self.chans.get(index).copied().unwrap_or(NO_CHAN)
    }

    /// The namespace of a channel.
    pub(super) fn nsid_of(&self, chan: u32) -> Option<u32> {
        let index = self.chans.iter().position(|known| *known == chan && chan != NO_CHAN)?;
        u32::try_from(index).ok()?.checked_add(1)
    }
}

/// The channel of one namespace, shared by all connections of the reactor.
#[derive(Debug)]
pub(super) struct Chan {
    /// Its name in requests: its place and how often that was used before.
    id: u32,
    channel: BdevChannel,
    pub(super) geometry: NsGeometry,
    /// The reservation, where there is one.
    pub(super) guard: Option<Arc<ReservationView>>,
    /// Requests that found the bdev's queue full.
    busy: VecDeque<ReqId>,
    /// In the list of those to be polled.
    active: bool,
    /// The namespace is gone.
    closing: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) params: TcpParams,
    pub(crate) now: Tick,
    pub(crate) subsystems: Vec<Option<Subsystem>>,
    chans: Vec<Option<Chan>>,
    generation: u16,
    /// Places of channels with I/O under way.
    active: Vec<u32>,
    ios: Vec<Box<Io>>,
    pub(super) buffer_bytes: u64,
    /// Requests that wait for a buffer.
    pub(crate) starved: VecDeque<ReqId>,
    /// Commands for controllers and queue pairs.
    pub(crate) control: VecDeque<ReqId>,
    /// Commands that failed, for their controllers' logs.
    pub(super) failures: Vec<Failure>,
    pub(crate) stats: GroupStats,
    /// Some namespace is reserved.
    pub(super) reserved: bool,
    /// Some path of some subsystem refuses commands.
    pub(super) paths_closed: bool,
}

impl Core {
    pub(crate) fn new(params: TcpParams) -> Self {
        Self {
            params,
            now: Tick::ZERO,
            subsystems: Vec::new(),
            chans: Vec::new(),
            generation: 0,
            active: Vec::new(),
            ios: Vec::new(),
            buffer_bytes: 0,
            starved: VecDeque::new(),
            control: VecDeque::new(),
            failures: Vec::new(),
            stats: GroupStats::default(),
            reserved: false,
            paths_closed: false,
        }
    }

    /// The place of a subsystem by its name.
    pub(crate) fn find(&self, config: impl Fn(&SubsystemConfig) -> bool) -> Option<u32> {
        let found = self.subsystems.iter().position(|slot| {
            slot.as_ref().is_some_and(|subsystem| !subsystem.removed && config(&subsystem.config))
        });
        u32::try_from(found?).ok()
    }

    /// The configuration of the subsystem of that name.
    pub(super) fn config_of(&self, nqn: &Nqn) -> Option<&SubsystemConfig> {
        Some(&*self.subsystem(self.find(|config| config.nqn == *nqn)?)?.config)
    }

    /// The subsystem in a place.
    pub(crate) fn subsystem(&self, place: u32) -> Option<&Subsystem> {
        self.subsystems.get(place as usize)?.as_ref()
    }

    /// Takes over a new generation of a subsystem: opens and closes channels.
    pub(crate) fn apply(&mut self, cx: &Cx, config: &Arc<SubsystemConfig>) -> u32 {
        let place = self.find(|known| known.nqn == config.nqn).unwrap_or_else(|| self.add(config));
        let Some(subsystem) = self.subsystems.get_mut(place as usize).and_then(Option::as_mut) else {
            return place;
        };
        subsystem.config = Arc::clone(config);
        subsystem.limits = limits_of(config, self.params.io_bytes_max);
        let last = config.namespaces.keys().next_back().map_or(0, |nsid| nsid.0 as usize);
        let mut old = std::mem::replace(&mut subsystem.chans, vec![NO_CHAN; last]);
        let mut fresh = vec![NO_CHAN; last];
        let mut errors = Vec::new();
        for (nsid, namespace) in &config.namespaces {
            let index = nsid.0.saturating_sub(1) as usize;
            let known = old.get_mut(index).map_or(NO_CHAN, |chan| std::mem::replace(chan, NO_CHAN));
            let same = self
                .chan(known)
                .is_some_and(|chan| Arc::ptr_eq(chan.channel.shared(), namespace.descriptor.shared()));
            let id = if same {
                known
            } else {
                self.close_chan(known);
                self.open_chan(cx, namespace).unwrap_or_else(|error| {
                    tracing::warn!(reactor = %cx.id(), nsid = %nsid, error, "a namespace has no channel");
                    errors.push((*nsid, error));
                    NO_CHAN
                })
            };
            if let Some(chan) = self.chan_mut(id) {
                chan.guard = guard_of(config, *nsid);
            }
            if let Some(to) = fresh.get_mut(index) {
                *to = id;
            }
        }
        old.into_iter().for_each(|chan| self.close_chan(chan));
        if let Some(subsystem) = self.subsystems.get_mut(place as usize).and_then(Option::as_mut) {
            subsystem.chans = fresh;
            subsystem.errors = errors;
        }
        self.look_at_paths();
        self.reserved = self.chans.iter().flatten().any(|chan| chan.guard.is_some() && !chan.closing);
        place
    }

    /// Closes a subsystem's channels; its place is free when [`Self::forget`] is called.
    pub(crate) fn remove(&mut self, place: u32) {
        let Some(subsystem) = self.subsystems.get_mut(place as usize).and_then(Option::as_mut) else {
            return;
        };
        subsystem.removed = true;
        let chans = std::mem::take(&mut subsystem.chans);
        chans.into_iter().for_each(|chan| self.close_chan(chan));
    }

    /// Frees the place of a removed subsystem without connections.
    pub(crate) fn forget(&mut self, place: u32) {
        if let Some(slot) = self.subsystems.get_mut(place as usize) {
            *slot = None;
        }
        self.look_at_paths();
        self.reserved = self.chans.iter().flatten().any(|chan| chan.guard.is_some() && !chan.closing);
    }

    fn add(&mut self, config: &Arc<SubsystemConfig>) -> u32 {
        let limits = limits_of(config, self.params.io_bytes_max);
        let new = Subsystem {
            config: Arc::clone(config),
            chans: Vec::new(),
            limits,
            errors: Vec::new(),
            removed: false,
        };
        let free = self.subsystems.iter().position(Option::is_none).unwrap_or(self.subsystems.len());
        if free == self.subsystems.len() {
            self.subsystems.push(None);
        }
        if let Some(slot) = self.subsystems.get_mut(free) {
            *slot = Some(new);
        }
        u32::try_from(free).unwrap_or(u32::MAX)
    }

    fn open_chan(&mut self, cx: &Cx, namespace: &NamespaceConfig) -> Result<u32, String> {
        let name = namespace.descriptor.shared().name();
        let failed = |error: &dyn std::fmt::Display| format!("reactor {}, bdev {name}: {error}", cx.id());
        let channel = namespace.descriptor.channel(cx).map_err(|error| failed(&error))?;
        let place = self.chans.iter().position(Option::is_none).unwrap_or(self.chans.len());
        if place >= CHANS_MAX {
            return Err(failed(&format!("there are {CHANS_MAX} channels already")));
        }
        self.generation = self.generation.wrapping_add(1) & 0x7fff;
        let id = (u32::from(self.generation) << 16) | u32::try_from(place).unwrap_or(0);
        let info = channel.shared().info();
        let geometry = NsGeometry { blocks: info.blocks, block_bytes: info.block_bytes, caps: info.caps };
        let (busy, guard) = (VecDeque::new(), None);
        let chan = Chan { id, channel, geometry, guard, busy, active: false, closing: false };
        if place == self.chans.len() {
            self.chans.push(None);
            self.active.reserve(self.chans.len());
        }
        if let Some(slot) = self.chans.get_mut(place) {
            *slot = Some(chan);
        }
        Ok(id)
    }

    /// Why a namespace has no channel on this reactor.
    pub(super) fn channel_error(&self, nqn: &Nqn, nsid: Nsid) -> Option<String> {
        let subsystem = self.subsystem(self.find(|config| config.nqn == *nqn)?)?;
        subsystem.errors.iter().find(|(known, _)| *known == nsid).map(|(_, error)| error.clone())
    }

    /// No new I/O on a channel; it is dropped when nothing is under way.
    fn close_chan(&mut self, id: u32) {
        let Some(chan) = self.chan_mut(id) else { return };
        chan.closing = true;
        if !chan.active {
            let place = (id & 0xffff) as usize;
            self.chans.get_mut(place).map(Option::take);
        }
    }

    #[inline]
    pub(super) fn chan(&self, id: u32) -> Option<&Chan> {
        self.chans.get((id & 0xffff) as usize)?.as_ref().filter(|chan| chan.id == id)
    }

    #[inline]
    fn chan_mut(&mut self, id: u32) -> Option<&mut Chan> {
        self.chans.get_mut((id & 0xffff) as usize)?.as_mut().filter(|chan| chan.id == id)
    }

    /// Looks for ended I/Os of all channels; at most `budget` of each.
    pub(crate) fn poll_chans(&mut self, budget: usize, done: &mut Vec<Box<Io>>, again: &mut Vec<ReqId>) {
        let mut at = 0;
        while let Some(place) = self.active.get(at).copied() {
            let Some(chan) = self.chans.get_mut(place as usize).and_then(Option::as_mut) else {
                self.active.swap_remove(at);
                continue;
            };
            let ended = chan.channel.poll(self.now, budget, done);
            if ended > 0 && !chan.busy.is_empty() {
                again.extend(chan.busy.drain(..ended.min(chan.busy.len())));
            }
            if chan.channel.in_flight() == 0 {
                again.extend(chan.busy.drain(..));
                chan.active = false;
                let closing = chan.closing;
                self.active.swap_remove(at);
                if closing {
                    self.chans.get_mut(place as usize).map(Option::take);
                }
                continue;
            }
            at += 1;
        }
    }

    /// Asks a bdev to end an I/O early; whether it will try.
    pub(crate) fn abort(&mut self, chan: u32, id: ReqId) -> bool {
        self.chan_mut(chan).is_some_and(|chan| chan.channel.abort(id.tag()))
    }

    /// Asks the bdevs to end what they have of a connection that is closed.
    pub(super) fn abort_all(&mut self, conn: u32, machine: &Conn<Link>) {
        for slot in machine.slab().slots_used() {
            if let Some(chan) = machine.slab().get(slot).and_then(|req| req.kind.chan()) {
                self.abort(chan, ReqId { conn, slot });
            }
        }
    }

    /// Whether a channel of a removed namespace still has I/O under way.
    pub(crate) fn has_closing(&self) -> bool {
        self.chans.iter().flatten().any(|chan| chan.closing)
    }

    /// Whether any I/O is under way.
    pub(crate) fn has_active(&self) -> bool {
        !self.active.is_empty()
    }

    /// Whether the core may sleep as far as the channels go.
    pub(crate) fn rest(&self, now: Tick) -> penstock_reactor::Rest {
        use penstock_reactor::Rest;
        let mut rest = Rest::UntilWoken;
        for place in &self.active {
            let chan = self.chans.get(*place as usize).and_then(Option::as_ref);
            match (chan.map_or(Rest::UntilWoken, |chan| chan.channel.rest(now)), rest) {
                (Rest::Never, _) => return Rest::Never,
                (Rest::Until(at), Rest::Until(other)) => rest = Rest::Until(at.min(other)),
                (Rest::Until(at), _) => rest = Rest::Until(at),
                (Rest::UntilWoken, _) => {}
            }
        }
        rest
    }

    /// I/Os that the bdevs have or that wait for room in their queues.
    pub(crate) fn pending(&self) -> usize {
        self.chans.iter().flatten().map(|chan| chan.channel.in_flight() + chan.busy.len()).sum()
    }

    /// Forgets requests of a connection that is gone.
    pub(crate) fn forget_conn(&mut self, conn: u32) {
        self.starved.retain(|id| id.conn != conn);
        self.control.retain(|id| id.conn != conn);
        for chan in self.chans.iter_mut().flatten() {
            chan.busy.retain(|id| id.conn != conn);
        }
    }

    #[inline]
    fn judge_io(&mut self, subsystem: u32, id: ReqId, req: &mut Req, sqe: &Sqe) -> Result<Transfer, Status> {
        let Some(subsystem) = self.subsystems.get(subsystem as usize).and_then(Option::as_ref) else {
            return Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr());
        };
        let chan = subsystem.chan(sqe.nsid.get());
        let limits = subsystem.limits;
        let found = self.chan_mut(chan).map(|chan| {
            chan.geometry.blocks = chan.channel.shared().blocks();
            &chan.geometry
        });
        match io_cmd::parse(sqe, found, &limits)? {
            IoPlan::Io { op, flags, lba, blocks, transfer } => {
                let mut io = self.spare_io();
                io.set(id.tag(), op, flags, lba, blocks);
                req.kind = ReqKind::Io { chan };
                req.io = Some(io);
                Ok(transfer)
            }
            IoPlan::Dsm { deallocate: false, transfer, .. } => {
                req.kind = ReqKind::Nothing;
                Ok(transfer)
            }
            IoPlan::Dsm { ranges, transfer, .. } => {
                req.kind = ReqKind::Ranges { chan, count: ranges, next: 0, left: limits.dsm_blocks_max() };
                Ok(transfer)
            }
            IoPlan::Copy { ranges, to, flags, transfer } => {
                req.kind = ReqKind::Copy { chan, count: ranges, next: 0, to, flags };
                Ok(transfer)
            }
            IoPlan::FlushAll => {
                req.kind = ReqKind::FlushAll { next: 1 };
                req.sqe = *sqe;
                Ok(Transfer::None)
            }
        }
    }

    /// An I/O that nobody uses.
    #[inline]
    pub(super) fn spare_io(&mut self) -> Box<Io> {
        self.ios.pop().unwrap_or_else(Io::boxed)
    }

    /// Gives a request's I/O to its channel.
    #[inline]
    pub(super) fn submit(&mut self, chan: u32, id: ReqId, req: &mut Req) -> Exec {
        let now = self.now;
        let place = chan & 0xffff;
        let Some(chan) = self.chan_mut(chan).filter(|chan| !chan.closing) else {
            return Exec::Done(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr());
        };
        let Some(io) = req.io.take() else { return Exec::Done(Status::INTERNAL_ERROR) };
        if let Err(Busy(io)) = chan.channel.submit(io, now) {
            req.io = Some(io);
            chan.busy.push_back(id);
            if chan.active {
                return Exec::Busy;
            }
        }
        if !chan.active {
            chan.active = true;
            self.active.push(place);
        }
        if req.io.is_some() { Exec::Busy } else { Exec::Started }
    }
}

impl Sink for Core {
    type Link = Link;

    fn params(&self) -> &TcpParams {
        &self.params
    }

    #[inline]
    fn judge(&mut self, link: &Link, id: ReqId, req: &mut Req, sqe: &Sqe) -> Result<Transfer, Status> {
        if let Link::Io(queue) = link
            && sqe.opc != NvmOpcode::FABRICS.0
            && !queue.locked
        {
            if self.paths_closed {
                self.path_open(queue, sqe.nsid.get())?;
            }
            let may = if self.reserved { self.may_begin(queue, sqe) } else { Ok(()) };
            let mut judged = may.and_then(|()| self.judge_io(queue.subsystem, id, req, sqe));
            if judged.is_err() && is_reservation(NvmOpcode(sqe.opc)) {
                judged = self.judge_reservation(queue, req, sqe);
            }
            if let Err(status) = judged {
                self.refused(queue, sqe, status);
            }
            return judged;
        }
        req.kind = ReqKind::Control;
        req.sqe = *sqe;
        control_transfer(link, sqe)
    }

    #[inline]
    fn room(&self) -> u64 {
        self.params.buffer_bytes_max.saturating_sub(self.buffer_bytes)
    }

    #[inline]
    fn buffer(&mut self, len: u32) -> Option<Buf> {
        let bytes = self.buffer_bytes + u64::from(len);
        if bytes > self.params.buffer_bytes_max {
            return None;
        }
        let buf = Buf::alloc(len as usize)?;
        self.buffer_bytes = bytes;
        Some(buf)
    }

    fn starved(&mut self, id: ReqId) {
        self.stats.buffer_waits += 1;
        self.starved.push_back(id);
    }

    #[inline]
    fn io(&mut self) -> Box<Io> {
        self.spare_io()
    }

    #[inline]
    fn recycle(&mut self, mut io: Box<Io>) {
        let bytes: usize = io.data.len_bytes();
        self.buffer_bytes = self.buffer_bytes.saturating_sub(u64::try_from(bytes).unwrap_or(0));
        io.data.clear();
        if self.ios.len() < IOS_MAX {
            self.ios.push(io);
        }
    }

    fn shortened(&mut self, bytes: u32) {
        self.buffer_bytes = self.buffer_bytes.saturating_sub(bytes.into());
    }

    #[inline]
    fn execute(&mut self, link: &Link, id: ReqId, req: &mut Req) -> Exec {
        // Its data may have come after its path was closed.
        if self.paths_closed
            && let Err(status) = self.still_open(link, req)
        {
            return Exec::Done(status);
        }
        if self.reserved
            && let Err(status) = self.may_go_on(link, req)
        {
            self.failed(link, req, req.io.as_deref(), status);
            return Exec::Done(status);
        }
        let exec = match req.kind {
            ReqKind::Io { chan } => self.submit(chan, id, req),
            ReqKind::Control => {
                self.control.push_back(id);
                Exec::Started
            }
            ReqKind::Nothing => Exec::Done(Status::SUCCESS),
            ReqKind::Ranges { .. } => self.next_range(id, req),
            ReqKind::Copy { .. } => self.next_copy(id, req),
            ReqKind::FlushAll { .. } => match link {
                Link::Io(queue) => self.next_flush(queue.subsystem, id, req),
                _ => Exec::Done(Status::COMMAND_SEQUENCE_ERROR.with_dnr()),
            },
        };
        if let Exec::Done(status) = exec
            && !status.is_success()
        {
            self.failed(link, req, req.io.as_deref(), status);
        }
        exec
    }
}

fn limits_of(config: &SubsystemConfig, data_len_max: u32) -> IoLimits {
    let SubsystemConfig { max_namespaces, wzsl, dmrsl, .. } = *config;
    IoLimits { data_len_max, nsid_max: max_namespaces, wzsl, dmrsl }
}

/// Whether hosts find a subsystem at every portal.
pub(crate) fn is_everywhere(config: &SubsystemConfig) -> bool {
    config.kind == SubsystemKind::Discovery
}
