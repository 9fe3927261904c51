//! All of one reactor's connections: sockets, machines, channels, controllers.
//!
//! ```text
//!   turn:  sockets ready ─► receive ─► Conn ─► Core::execute ─► bdev channel ─► poll ─► Conn::respond ─► one send each
//!                                        └──► control queue ─► controllers, Connect, messages between reactors
//! ```
//!
//! Invariants: a connection's place in the table is not used again while a bdev or the control queue knows it; every
//! connection that was touched in a turn is in `dirty` once and flushed at the turn's end; what cannot be sent to
//! another reactor just now waits in `outbox` and is not lost.

mod abort;
mod admit;
mod auth;
mod control;
mod core;
mod failure;
mod fence;
mod job;
mod join;
mod path;
mod read;
mod reservation;
mod stats;
mod tls;

#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use futures_channel::mpsc::Sender;
use penstock_bdev::Io;
pub use penstock_reactor::net::Peers;
use penstock_reactor::net::{Listeners, Ready, SocketGroup};
use penstock_reactor::rng::Rng;
use penstock_reactor::{Cx, Poller, ReactorError, Rest, Tick};
use penstock_spec::nvmf::Nqn;

pub use stats::GroupStats;

use self::abort::Aborting;
use self::control::Association;
use self::core::Core;
use self::fence::Fences;
use self::join::Msg;
pub(crate) use self::tls::TlsSettings;
use crate::auth::{Answers, QueueAuth, Worker};
use crate::config::{DiscoveryConfig, Nsid, SubsystemConfig};
use crate::qpair::Link;
use crate::reservation::Request;
use crate::tcp::TcpParams;
use crate::tcp::conn::Conn;
use crate::tcp::req::ReqId;
use crate::tls::Wire;
use crate::transport_options::TransportOptions;

/// What one receive takes at most.
const RX_BYTES: usize = 256 << 10;
/// Ended I/Os taken from a channel per turn.
const DONE_BUDGET: usize = 256;
/// How often time-outs are looked at, in nanoseconds.
const SCAN_NS: u64 = 250_000_000;
/// Bytes received in one turn, after which the sockets that are left come first in the next.
const RX_TURN_BYTES: usize = 2 << 20;
/// While others wait for buffers, a connection whose peer keeps some and moves no byte for so long is closed.
const STUCK_NS: u64 = 5_000_000_000;
/// How soon requests without a buffer try again where nothing else happens, in nanoseconds.
const STARVED_NS: u64 = 100_000;

/// A connection and its socket.
#[derive(Debug)]
struct Entry {
    wire: Wire,
    conn: Conn<Link>,
    /// Tells a connection from an earlier one in the same place.
    serial: u64,
    /// Where it came in.
    portid: u16,
    /// How its host proves itself; there from Connect on.
    auth: Option<Box<QueueAuth>>,
    /// It must have got further by then.
    deadline: Tick,
    /// Counted as half open.
    half_open: bool,
    dirty: bool,
    /// When bytes last went through it.
    moved: Tick,
    /// To be closed when everything is sent.
    ending: bool,
    /// It has a last deadline.
    winding_up: bool,
    /// Its socket is out of the group; only I/Os under way keep it.
    gone: bool,
}

impl Entry {
    /// Whether its host must authenticate itself before anything else.
    fn is_locked(&self) -> bool {
        self.auth.as_ref().is_some_and(|auth| auth.locked)
    }
}

/// The connections of one reactor; reached by [`GroupCell`].
#[derive(Debug)]
struct Group {
    index: usize,
    peers: Arc<Peers>,
    options: Arc<TransportOptions>,
    discovery: Arc<DiscoveryConfig>,
    sockets: SocketGroup,
    /// For what would hold the reactor up, and what it has done for this reactor.
    worker: Option<Arc<Worker>>,
    tls: Option<Arc<TlsSettings>>,
    answers: Answers,
    entries: Vec<Option<Box<Entry>>>,
    free: Vec<u32>,
    serial: u64,
    half_open: u32,
    listeners: Listeners<u16>,
    core: Core,
    associations: Vec<Option<Box<Association>>>,
    rx: Box<[u8]>,
    ready: Vec<Ready>,
    /// The next of them.
    ready_at: usize,
    done: Vec<Box<Io>>,
    again: Vec<ReqId>,
    dirty: Vec<u32>,
    /// Those to be flushed in the next turn.
    later: Vec<u32>,
    /// Bytes that may still be received in this turn.
    rx_left: usize,
    local: VecDeque<Msg>,
    outbox: VecDeque<(usize, Msg)>,
    /// Commands that were asked to end early, and who waits for it.
    aborting: Vec<Aborting>,
    fences: Fences,
    rng: Rng,
    admin_out: Vec<u8>,
    /// To the control thread.
    requests: Option<Sender<Request>>,
    next_scan: Tick,
    draining: bool,
}

/// A reactor's group, as a service of the reactor.
#[derive(Debug)]
pub struct GroupCell(RefCell<Group>);

struct GroupPoller(Rc<GroupCell>);

impl Poller for GroupPoller {
    fn poll(&mut self, cx: &Cx, now: Tick) -> usize {
        self.0.0.borrow_mut().poll(cx, now)
    }

    fn rest(&mut self, now: Tick) -> Rest {
        self.0.0.borrow().rest(now)
    }
}

impl GroupCell {
    /// Makes the group of this reactor, which is number `index` of `peers`, and begins to poll it.
    ///
    /// # Errors
    /// [`ReactorError::Os`] when there are no descriptors left.
    pub fn start(
        cx: &Cx,
        options: &Arc<TransportOptions>,
        peers: Arc<Peers>,
        index: usize,
    ) -> Result<Rc<Self>, ReactorError> {
        let params = TcpParams::new(options, peers.len());
        Self::start_with(cx, options, params, peers, index)
    }

    /// As [`Self::start`], with the data path's settings given.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(
        cx: &Cx,
        options: &Arc<TransportOptions>,
        params: TcpParams,
        peers: Arc<Peers>,
        index: usize,
    ) -> Result<Rc<Self>, ReactorError> {
        if let Some(cell) = Self::of(cx) {
            return Ok(cell);
        }
        let Some(handle) = peers.handle(index).cloned() else {
            return Err(ReactorError::Gone { reactor: cx.id() });
        };
        let group = Group {
            index,
            peers,
            options: Arc::clone(options),
            discovery: Arc::default(),
            sockets: SocketGroup::new(cx.sleep_set())?,
            worker: None,
            tls: None,
            answers: Answers::new(handle),
            entries: Vec::new(),
            free: Vec::new(),
            serial: 0,
            half_open: 0,
            listeners: Listeners::default(),
            core: Core::new(params),
            associations: Vec::new(),
            rx: vec![0; RX_BYTES].into_boxed_slice(),
            ready: Vec::new(),
            ready_at: 0,
            done: Vec::new(),
            again: Vec::new(),
            dirty: Vec::new(),
            later: Vec::new(),
            rx_left: 0,
            local: VecDeque::new(),
            outbox: VecDeque::new(),
            aborting: Vec::new(),
            fences: Fences::default(),
            rng: Rng::seeded(cx.with_rng(Rng::next_u64) ^ u64::try_from(index).unwrap_or(0)),
            admin_out: Vec::new(),
            requests: None,
            next_scan: Tick::ZERO,
            draining: false,
        };
        let cell = cx.service(|_| Self(RefCell::new(group)));
        cx.add_poller("nvmf", Box::new(GroupPoller(Rc::clone(&cell))));
        Ok(cell)
    }

    /// The group of this reactor, if it was started.
    #[must_use]
    pub fn of(cx: &Cx) -> Option<Rc<Self>> {
        cx.find_service::<Self>()
    }

    /// Takes over a new generation of a subsystem.
    pub fn apply(&self, cx: &Cx, config: &Arc<SubsystemConfig>) {
        self.0.borrow_mut().apply(cx, config);
    }

    /// Takes over a new generation of what there is to be discovered.
    pub fn set_discovery(&self, config: &Arc<DiscoveryConfig>) {
        self.0.borrow_mut().set_discovery(config);
    }

    /// Ends a deleted subsystem's connections and closes its channels; [`Self::is_drained`] tells when that is over.
    pub fn remove_subsystem(&self, nqn: &Nqn) {
        self.0.borrow_mut().remove_subsystem(nqn);
    }

    /// Whether no channel that is to be closed has I/O under way any more.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        let group = self.0.borrow();
        let removed = group.core.subsystems.iter().flatten().any(|subsystem| subsystem.removed);
        !removed && !group.core.has_closing()
    }

    /// Listens on `addr`, for all reactors: connections are spread over them. Returns the address with its real port.
    ///
    /// # Errors
    /// [`ReactorError::Socket`] when the address cannot be had.
    pub fn listen(&self, addr: SocketAddr, portid: u16) -> Result<SocketAddr, ReactorError> {
        self.0.borrow_mut().listen(addr, portid)
    }

    /// Listens no more on a portal of this reactor; connections stay until [`Self::disconnect_portal`]. Whether there
    /// was one.
    pub fn unlisten(&self, portid: u16) -> bool {
        self.0.borrow_mut().unlisten(portid)
    }

    /// Ends all associations of the host with the subsystem that live on this reactor; how many.
    pub fn disconnect_host(&self, subnqn: &Nqn, hostnqn: &Nqn) -> usize {
        self.0
            .borrow_mut()
            .end_associations(|params| params.subsystem.nqn == *subnqn && params.hostnqn == *hostnqn)
    }

    /// Ends what came to a subsystem by a portal: controllers whose admin queue did, and other controllers' I/O queues
    /// that did. [`Self::uses_portal`] tells when all of it is gone.
    pub fn disconnect_listener(&self, subnqn: &Nqn, portid: u16) {
        self.0.borrow_mut().disconnect_listener(subnqn, portid);
    }

    /// Ends every connection that came by a portal.
    pub fn disconnect_portal(&self, portid: u16) {
        self.0.borrow_mut().disconnect_portal(portid);
    }

    /// Whether a connection to the subsystem that came by the portal is left, or I/O of one.
    #[must_use]
    pub fn uses_portal(&self, subnqn: &Nqn, portid: u16) -> bool {
        let group = self.0.borrow();
        group.entries.iter().flatten().any(|entry| {
            entry.portid == portid && group.nqn_of(&entry.conn.link).is_some_and(|nqn| nqn == *subnqn)
        })
    }

    /// Why a namespace of a subsystem has no channel on this reactor; `None` where it has one.
    #[must_use]
    pub fn channel_error(&self, subnqn: &Nqn, nsid: Nsid) -> Option<String> {
        self.0.borrow().core.channel_error(subnqn, nsid)
    }

    /// Accepts nothing more and ends every association; over when [`GroupStats::connections`] is 0.
    pub fn drain(&self) {
        self.0.borrow_mut().drain();
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> GroupStats {
        self.0.borrow().stats()
    }

    /// Runs `look` on every controller that lives on this reactor, with the number of its I/O queues.
    pub fn for_each_controller(&self, mut look: impl FnMut(&crate::controller::Controller, u32)) {
        for association in self.0.borrow().associations.iter().flatten() {
            look(&association.controller, association.controller.shared().queues());
        }
    }
}

impl Group {
    fn poll(&mut self, cx: &Cx, now: Tick) -> usize {
        self.core.now = now;
        // First of all: after a standstill, what came meanwhile from hosts that have given up must not be executed.
        if now >= self.next_scan {
            self.next_scan = now.plus_ns(SCAN_NS);
            self.scan(now);
        }
        let mut work = self.read_sockets(now);
        if !self.core.starved.is_empty() {
            work += self.retry_starved();
        }
        if self.core.has_active() {
            work += self.poll_bdevs();
        }
        if !self.aborting.is_empty() {
            self.look_at_aborts(now);
        }
        if !self.core.failures.is_empty() {
            self.tell_failures();
        }
        if !(self.core.control.is_empty() && self.local.is_empty() && self.outbox.is_empty()) {
            work += self.run_control(cx, now);
            // What a command did to the bdevs or to other queues is seen in the next turn.
        }
        self.flush();
        work
    }

    fn rest(&self, now: Tick) -> Rest {
        let waiting =
            self.core.control.len() + self.local.len() + self.dirty.len() + self.core.failures.len();
        if waiting > 0 || self.ready_at < self.ready.len() {
            return Rest::Never;
        }
        let soon = !self.core.starved.is_empty() || !self.outbox.is_empty();
        let idle = !self.listeners.is_paused() && self.entries.iter().all(Option::is_none);
        let until = match (soon, idle) {
            (true, _) => now.plus_ns(STARVED_NS),
            (false, true) => Tick::NEVER,
            (false, false) => self.next_scan,
        };
        let until = self.aborting.iter().map(|aborting| aborting.deadline).fold(until, Tick::min);
        match self.core.rest(now) {
            Rest::Never => Rest::Never,
            Rest::Until(at) => Rest::Until(at.min(until)),
            Rest::UntilWoken if until == Tick::NEVER => Rest::UntilWoken,
            Rest::UntilWoken => Rest::Until(until),
        }
    }

    fn apply(&mut self, cx: &Cx, config: &Arc<SubsystemConfig>) {
        self.core.apply(cx, config);
        for at in 0..self.associations.len() {
            let Some(association) = self.associations.get_mut(at).and_then(Option::as_mut) else { continue };
            if association.controller.params().subsystem.nqn != config.nqn {
                continue;
            }
            association.controller.set_subsystem(Arc::clone(config));
            if association.controller.host_allowed() {
                self.events_of(at);
            } else {
                self.end_association(at);
            }
        }
    }

    fn set_discovery(&mut self, config: &Arc<DiscoveryConfig>) {
        self.discovery = Arc::clone(config);
        for at in 0..self.associations.len() {
            let Some(association) = self.associations.get_mut(at).and_then(Option::as_mut) else { continue };
            association.controller.set_discovery(Arc::clone(config));
            self.events_of(at);
        }
    }

    fn remove_subsystem(&mut self, nqn: &Nqn) {
        self.end_associations(|params| params.subsystem.nqn == *nqn);
        if let Some(place) = self.core.find(|config| config.nqn == *nqn) {
            self.core.remove(place);
        }
        self.sweep_subsystems();
    }

    /// Frees the places of removed subsystems that no connection uses any more.
    fn sweep_subsystems(&mut self) {
        for place in 0..u32::try_from(self.core.subsystems.len()).unwrap_or(0) {
            if self.core.subsystem(place).is_none_or(|subsystem| !subsystem.removed) {
                continue;
            }
            let used = self
                .entries
                .iter()
                .flatten()
                .any(|entry| matches!(&entry.conn.link, Link::Io(queue) if queue.subsystem == place));
            if !used {
                self.core.forget(place);
            }
        }
    }

    fn drain(&mut self) {
        self.draining = true;
        self.listeners.close_all(&mut self.sockets);
        self.end_associations(|_| true);
        for at in 0..self.entries.len() {
            self.close(u32::try_from(at).unwrap_or(u32::MAX));
        }
    }

    fn stats(&self) -> GroupStats {
        let mut stats = self.core.stats;
        for entry in self.entries.iter().flatten().filter(|entry| !entry.gone) {
            stats.connections += 1;
            match entry.conn.link {
                Link::Admin { .. } => stats.current_admin_qpairs += 1,
                Link::Io(_) => stats.current_io_qpairs += 1,
                _ => {}
            }
        }
        stats.buffer_bytes = self.core.buffer_bytes;
        stats.pending_bdev_io = u64::try_from(self.core.pending()).unwrap_or(u64::MAX);
        stats
    }

    #[inline]
    fn entry_mut(&mut self, index: u32) -> Option<&mut Entry> {
        self.entries.get_mut(index as usize)?.as_deref_mut()
    }

    /// Puts a connection on the list of those to be flushed.
    #[inline]
    fn touch(&mut self, index: u32) {
        let Some(entry) = self.entries.get_mut(index as usize).and_then(Option::as_mut) else { return };
        if !entry.dirty {
            entry.dirty = true;
            self.dirty.push(index);
        }
    }
}
