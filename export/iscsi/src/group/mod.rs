//! All of one reactor's connections: sockets, machines, channels.
//!
//! ```text
//!   turn:  sockets ready ─► receive ─► Conn ─► Core::submit ─► bdev channel ─► poll ─► Conn::io_back ─► one send each
//!                                        └──► ControlPort ─► owner of the logical unit ─► Conn::replied
//! ```
//!
//! Invariants: a connection's place in the table is not used again while a bdev knows it; every connection that was
//! touched in a turn is in `dirty` once and flushed at the turn's end.

mod admit;
mod control;
mod core;
mod read;
mod sweep;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use penstock_bdev::Io;
use penstock_bdev::reservation::RegistrantId;
pub use penstock_reactor::net::Peers;
use penstock_reactor::net::{Link, Listeners, Ready, SocketGroup};
use penstock_reactor::{Cx, Poller, ReactorError, Rest, Tick};
use penstock_scsi::{LuView, Seal};

pub use control::{ConnectionInfo, GroupStats};

use self::core::Core;
#[cfg(any(test, fuzzing))]
pub(crate) use self::core::buffers_of;
use self::sweep::{Ask, Origin};
use crate::config::IscsiOptions;
use crate::conn::{CmdId, Conn, Scope};
use crate::host::{Address, ControlPort};
use crate::sessions::Sessions;

/// What one receive takes at most.
const RX_BYTES: usize = 256 << 10;
/// Ended I/Os taken from a channel per turn.
const DONE_BUDGET: usize = 256;
/// How often time-outs are looked at, in nanoseconds.
const SCAN_NS: u64 = 250_000_000;
/// While others wait for buffers, a connection whose peer keeps some and moves no byte for so long is closed.
const STUCK_NS: u64 = 5_000_000_000;
/// How soon commands without a buffer try again where nothing else happens, in nanoseconds.
const STARVED_NS: u64 = 100_000;

/// What the groups of all reactors have in common.
#[derive(Clone)]
pub struct Common {
    /// Settings.
    pub options: Arc<IscsiOptions>,
    /// The reactors.
    pub peers: Arc<Peers>,
    /// The sessions of the process.
    pub sessions: Arc<Sessions>,
    /// The way to the owners of logical units.
    pub control: ControlPort,
    /// Marks the tokens of this process.
    pub seal: Seal,
}

impl std::fmt::Debug for Common {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Common").field("options", &self.options).finish_non_exhaustive()
    }
}

/// A connection and its socket.
#[derive(Debug)]
struct Entry {
    link: Link,
    conn: Conn,
    /// Tells a connection from an earlier one in the same place.
    serial: u64,
    /// It must have got further by then.
    deadline: Tick,
    /// When bytes last went through it.
    moved: Tick,
    /// Counted as half open.
    half_open: bool,
    dirty: bool,
    /// It has a last deadline.
    winding_up: bool,
    /// Its socket is out of the group; only I/Os under way keep it.
    gone: bool,
}

/// The connections of one reactor; reached by [`GroupCell`].
#[derive(Debug)]
struct Group {
    sockets: SocketGroup,
    entries: Vec<Option<Box<Entry>>>,
    free: Vec<u32>,
    serial: u64,
    half_open: u32,
    listeners: Listeners<u16>,
    core: Core,
    rx: Box<[u8]>,
    ready: Vec<Ready>,
    done: Vec<Box<Io>>,
    again: Vec<CmdId>,
    dirty: Vec<u32>,
    sweeps: Vec<sweep::Sweep>,
    next_scan: Tick,
    draining: bool,
}

/// A reactor's group, as a service of the reactor.
#[derive(Debug)]
pub struct GroupCell(RefCell<Group>);

struct GroupPoller(Rc<GroupCell>);

impl Poller for GroupPoller {
    fn poll(&mut self, _cx: &Cx, now: Tick) -> usize {
        self.0.0.borrow_mut().poll(now)
    }

    fn rest(&mut self, now: Tick) -> Rest {
        self.0.0.borrow().rest(now)
    }
}

impl GroupCell {
    /// Makes the group of this reactor, which is number `index` of the peers, and begins to poll it.
    ///
    /// # Errors
    /// [`ReactorError::Os`] when there are no descriptors left.
    pub fn start(cx: &Cx, common: Common, index: usize) -> Result<Rc<Self>, ReactorError> {
        if let Some(cell) = Self::of(cx) {
            return Ok(cell);
        }
        let group = Group {
            sockets: SocketGroup::new(cx.sleep_set())?,
            entries: Vec::new(),
            free: Vec::new(),
            serial: 0,
            half_open: 0,
            listeners: Listeners::default(),
            core: Core::new(common, index),
            rx: vec![0; RX_BYTES].into_boxed_slice(),
            ready: Vec::new(),
            done: Vec::new(),
            again: Vec::new(),
            dirty: Vec::new(),
            sweeps: Vec::new(),
            next_scan: Tick::ZERO,
            draining: false,
        };
        let cell = cx.service(|_| Self(RefCell::new(group)));
        cx.add_poller("iscsi", Box::new(GroupPoller(Rc::clone(&cell))));
        Ok(cell)
    }

    /// The group of this reactor, if it was started.
    #[must_use]
    pub fn of(cx: &Cx) -> Option<Rc<Self>> {
        cx.find_service::<Self>()
    }

    /// Takes over a view of a logical unit, and ends the commands to it of the sessions in `aborted`; `then` is called
    /// when none of those is under way any more.
    pub fn apply_lu(&self, cx: &Cx, view: &Arc<LuView>, aborted: &[RegistrantId], then: Box<dyn FnOnce()>) {
        self.0.borrow_mut().apply_lu(cx, view, aborted, then);
    }

    /// Listens on `addr` for portal group `tpgt`, for all reactors. Returns the address with its real port.
    ///
    /// # Errors
    /// [`ReactorError::Socket`] when the address cannot be had.
    pub fn listen(&self, addr: SocketAddr, tpgt: u16) -> Result<SocketAddr, ReactorError> {
        self.0.borrow_mut().listen(addr, tpgt)
    }

    /// Listens no more on an address of this reactor; connections stay. Whether there was one.
    pub fn unlisten(&self, addr: SocketAddr) -> bool {
        self.0.borrow_mut().unlisten(addr)
    }

    /// Accepts nothing more, asks all initiators to log out, and closes what is left after the grace time; over when
    /// [`Self::connections`] is 0.
    pub fn drain(&self) {
        self.0.borrow_mut().drain();
    }

    /// Connections.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.0.borrow().entries.iter().flatten().count()
    }

    /// Hands an owner's reply to whom it is for, if that is still there.
    pub(crate) fn replied(&self, address: Address, reply: &penstock_scsi::Reply) {
        self.0.borrow_mut().replied(address, reply);
    }
}

impl Group {
    fn poll(&mut self, now: Tick) -> usize {
        self.core.now = now;
        let mut ready = std::mem::take(&mut self.ready);
        self.sockets.poll(&mut ready);
        let mut work = 0;
        for ready in &ready {
            work += self.socket_ready(*ready, now);
        }
        self.ready = ready;
        if !self.core.starved.is_empty() {
            work += self.retry_starved();
        }
        if self.core.has_active() {
            work += self.poll_bdevs();
        }
        if !self.sweeps.is_empty() {
            self.look_at_sweeps();
        }
        if now >= self.next_scan {
            self.next_scan = now.plus_ns(SCAN_NS);
            self.scan(now);
        }
        self.flush();
        work
    }

    fn rest(&self, now: Tick) -> Rest {
        if !(self.dirty.is_empty() && self.core.asks.is_empty() && self.core.nudges.is_empty()) {
            return Rest::Never;
        }
        let idle = !self.listeners.is_paused() && self.entries.iter().all(Option::is_none);
        let soon = !(self.core.starved.is_empty() && self.sweeps.is_empty() && self.core.outbox.is_empty());
        let until = match (soon, idle) {
            (true, _) => now.plus_ns(STARVED_NS),
            (false, true) => Tick::NEVER,
            (false, false) => self.next_scan,
        };
        match self.core.rest(now) {
            Rest::Never => Rest::Never,
            Rest::Until(at) => Rest::Until(at.min(until)),
            Rest::UntilWoken if until == Tick::NEVER => Rest::UntilWoken,
            Rest::UntilWoken => Rest::Until(until),
        }
    }

    fn apply_lu(&mut self, cx: &Cx, view: &Arc<LuView>, aborted: &[RegistrantId], then: Box<dyn FnOnce()>) {
        self.core.set_view(cx, view);
        for session in self.core.sessions.values() {
            if let Some(mut nexus) = session.nexus() {
                nexus.apply_lu(view);
            }
        }
        if aborted.is_empty() {
            return then();
        }
        let scope = Scope::Nexuses { lu: view.config.id, of: aborted.to_vec() };
        self.core.asks.push_back(Ask::Sweep(scope, Origin::Call(then)));
    }

    fn replied(&mut self, address: Address, reply: &penstock_scsi::Reply) {
        let entry = self.entries.get_mut(address.conn as usize).and_then(Option::as_mut);
        let Some(entry) = entry.filter(|entry| entry.serial == address.serial && !entry.gone) else { return };
        entry.conn.replied(address.to, reply, &mut self.core);
        self.note_login(address.conn);
        self.touch(address.conn);
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
