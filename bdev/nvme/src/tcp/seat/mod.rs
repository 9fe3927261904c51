//! A remote disk on one reactor: its paths' connections, and the I/Os under way.
//!
//! ```text
//!               submit            route                                    completion
//!   channel ─────────────► request ─────► a path's queue pair ─► target ─► request ─► ended ─► channel
//!                            ▲  │ none, full          │ lost, ANA state, no such namespace
//!                            │  ▼                     │
//!                            parked ◄─────────────────┘
//! ```
//!
//! Invariants: an I/O is in exactly one request or list of ended ones, and leaves once; what a path cannot do for reasons of
//! its own goes to another path, or waits as long as one may come; only a compare-and-write whose path is lost ends, for its
//! second run might find its own first. Requests are at most [`REQUESTS_MAX`], so nothing that waits is unbounded.

mod issue;
mod request;

use std::collections::VecDeque;
use std::sync::Arc;

use penstock_bdev::{Busy, Io, IoStatus};
use penstock_nvme_tcp::{Qpair, Tunnel};
use penstock_reactor::net::{Ready, TcpSocket};
use penstock_reactor::{Rest, Tick};
use penstock_spec::nvme::log::ana::AnaState;

use self::request::{Request, State};
use super::payload::IoPayload;
use super::report::{PathAsk, PathAsker, PathStats};
use super::route::{MultipathOptions, PATHS_MAX, Route, Worth};
use super::wire::{Connection, Sockets};
use crate::queue::{NsParams, OnTimeout};

/// I/Os of one disk on one reactor at most.
pub(super) const REQUESTS_MAX: u16 = 2048;
/// Completions taken from one path in one turn at most.
const REAP_MAX: usize = 256;
/// Between looks at what is parked, where nothing else says that it may go on.
const LOOK_NS: u64 = 5_000_000;
/// Between looks for commands that take too long.
const CHECK_NS: u64 = 100_000_000;

/// How a disk's commands are treated.
#[derive(Debug, Clone, Copy)]
pub(super) struct SeatRules {
    /// How long a command may take, in nanoseconds; 0: for ever.
    pub(super) timeout_ns: u64,
    /// What then.
    pub(super) on_timeout: OnTimeout,
    /// Times that an I/O is tried again because of its status, on a path that works.
    pub(super) retries_max: u8,
}

/// A namespace as a path knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PathNs {
    pub(super) nsid: u32,
    pub(super) ana: AnaState,
    /// The state was to pass by now and did not: nothing waits for it any more.
    pub(super) given_up: bool,
}

/// Whether a path can be hoped for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PathState {
    /// It is being connected.
    Connecting,
    /// It is connected.
    Live,
    /// It was lost for so long that I/O does not wait for it.
    Failed,
}

/// A path on this reactor.
#[derive(Debug)]
struct Path {
    number: u32,
    state: PathState,
    connection: Option<Connection>,
    generation: u64,
    namespaces: Vec<PathNs>,
    retry_delays_ns: [u64; 3],
    load: usize,
    asker: PathAsker,
    stats: Arc<PathStats>,
}

impl Path {
    fn worth(&self, nsid: u32) -> Worth {
        let Some(ns) = self.namespaces.iter().find(|ns| ns.nsid == nsid) else {
            // One that was never there knows no namespaces yet.
            let unknown = self.state == PathState::Connecting && self.namespaces.is_empty();
            return if unknown { Worth::Later } else { Worth::Never };
        };
        match (self.state, ns.ana) {
            (PathState::Failed, _) => Worth::Never,
            (PathState::Connecting, _) => Worth::Later,
            (PathState::Live, AnaState::OPTIMIZED | AnaState::NON_OPTIMIZED) if self.connection.is_some() => {
                Worth::Serves(ns.ana)
            }
            (PathState::Live, AnaState::PERSISTENT_LOSS) => Worth::Never,
            (PathState::Live, _) if ns.given_up => Worth::Never,
            (PathState::Live, _) => Worth::Later,
        }
    }

    fn ask(&self, ask: PathAsk) -> bool {
        self.asker.ask(ask)
    }
}

/// A path that comes to a reactor.
#[derive(Debug, Clone)]
pub(super) struct NewPath {
    pub(super) number: u32,
    pub(super) asker: PathAsker,
    pub(super) stats: Arc<PathStats>,
}

/// A connection that comes to a reactor.
pub(super) struct NewConnection {
    pub(super) path: u32,
    pub(super) generation: u64,
    pub(super) qid: u16,
    pub(super) qpair: Qpair<IoPayload>,
    pub(super) socket: TcpSocket,
    pub(super) tunnel: Option<Tunnel>,
    pub(super) retry_delays_ns: [u64; 3],
}

#[derive(Debug)]
struct End {
    ns: NsParams,
    options: MultipathOptions,
    route: Route,
    /// The version of the paths that the route is of.
    routed: u64,
    ended: VecDeque<Box<Io>>,
    under_way: usize,
    open: bool,
}

/// A path as a reactor sees it, for `bdev_nvme_get_io_paths`.
#[derive(Debug, Clone, Copy)]
pub(super) struct PathView {
    pub(super) nsid: u32,
    pub(super) path: u32,
    pub(super) current: bool,
    pub(super) connected: bool,
    pub(super) accessible: bool,
}

/// A disk on a reactor.
#[derive(Debug)]
pub(super) struct Seat {
    disk: u64,
    rules: SeatRules,
    paths: Vec<Path>,
    ends: Vec<End>,
    /// What was said of namespaces, for those that are opened later.
    options: Vec<(u32, MultipathOptions)>,
    requests: Vec<Request>,
    free: Vec<u16>,
    /// I/Os for halves of fused pairs and reads of differences, used again and again.
    spares: Vec<Box<Io>>,
    parked: VecDeque<u16>,
    /// Counts changes of the paths.
    version: u64,
    /// What is parked may go on.
    eager: bool,
    next_look: Tick,
    next_check: Tick,
}

impl Seat {
    pub(super) fn new(disk: u64, rules: SeatRules) -> Self {
        Self {
            disk,
            rules,
            paths: Vec::with_capacity(PATHS_MAX),
            ends: Vec::new(),
            options: Vec::new(),
            requests: (0..REQUESTS_MAX).map(|_| Request::new()).collect(),
            free: (0..REQUESTS_MAX).rev().collect(),
            spares: Vec::new(),
            parked: VecDeque::with_capacity(usize::from(REQUESTS_MAX)),
            version: 1,
            eager: false,
            next_look: Tick::ZERO,
            next_check: Tick::ZERO,
        }
    }

    // ---- what the control side says

    /// There is another path, which is being connected.
    pub(super) fn add_path(&mut self, new: NewPath) {
        let NewPath { number, asker, stats } = new;
        if self.paths.len() >= PATHS_MAX || self.index_of(number).is_some() {
            return;
        }
        self.paths.push(Path {
            number,
            state: PathState::Connecting,
            connection: None,
            generation: 0,
            namespaces: Vec::new(),
            retry_delays_ns: [0; 3],
            load: 0,
            asker,
            stats,
        });
        self.changed();
    }

    /// A path has got a connection.
    pub(super) fn connect(&mut self, new: NewConnection, sockets: &mut Sockets, now: Tick) {
        let NewConnection { path, generation, qid, qpair, socket, tunnel, retry_delays_ns } = new;
        let Some(index) = self.index_of(path) else { return };
        self.lose(index, sockets, now);
        let made = Connection::new(qpair, qid, socket, tunnel, sockets, (self.disk, path));
        let Some(path) = self.paths.get_mut(index) else { return };
        path.generation = generation;
        match made {
            Ok(connection) => {
                path.connection = Some(connection);
                path.retry_delays_ns = retry_delays_ns;
                path.state = PathState::Live;
            }
            Err(error) => drop(path.ask(PathAsk::Lost { generation, why: error.to_string() })),
        }
        self.changed();
    }

    /// A path's namespaces are these now.
    pub(super) fn set_namespaces(&mut self, path: u32, namespaces: Vec<PathNs>) {
        if let Some(path) = self.index_of(path).and_then(|index| self.paths.get_mut(index)) {
            path.namespaces = namespaces;
        }
        self.changed();
    }

    /// A path's connection is to go; its I/O goes elsewhere.
    pub(super) fn disconnect(&mut self, path: u32, state: PathState, sockets: &mut Sockets, now: Tick) {
        if let Some(index) = self.index_of(path) {
            if let Some(path) = self.paths.get_mut(index) {
                path.state = state;
            }
            self.lose(index, sockets, now);
        }
        self.changed();
    }

    /// A path is to go for good.
    pub(super) fn remove_path(&mut self, path: u32, sockets: &mut Sockets, now: Tick) {
        let Some(index) = self.index_of(path) else { return };
        self.disconnect(path, PathState::Failed, sockets, now);
        self.paths.remove(index);
        // Requests name paths by index, but only those that a path has; it has none.
        for request in self.requests.iter_mut().filter(|request| request.path > index) {
            request.path -= 1;
        }
        self.changed();
    }

    /// How a namespace's I/O is spread from now on.
    pub(super) fn set_options(&mut self, nsid: u32, options: MultipathOptions) {
        self.options.retain(|(other, _)| *other != nsid);
        self.options.push((nsid, options));
        for end in self.ends.iter_mut().filter(|end| end.ns.nsid == nsid) {
            end.options = options;
        }
        self.changed();
    }

    /// What each namespace's paths look like from here.
    pub(super) fn views(&mut self, nsids: &[u32]) -> Vec<PathView> {
        let mut views = Vec::new();
        for nsid in nsids {
            let options = self.options_of(*nsid);
            let route = self.route_of(*nsid, &options);
            for (index, path) in self.paths.iter().enumerate() {
                views.push(PathView {
                    nsid: *nsid,
                    path: path.number,
                    current: route.is_current(index, &options),
                    connected: path.connection.is_some(),
                    accessible: matches!(path.worth(*nsid), Worth::Serves(_)),
                });
            }
        }
        views
    }

    // ---- what channels do

    /// Lets a namespace's I/O in; returns the number that it is known by.
    pub(super) fn open(&mut self, ns: NsParams) -> usize {
        let end = End {
            ns,
            options: self.options_of(ns.nsid),
            route: Route::default(),
            routed: 0,
            ended: VecDeque::with_capacity(usize::from(REQUESTS_MAX)),
            under_way: 0,
            open: true,
        };
        let unused = self.ends.iter().position(|end| !end.open && end.under_way == 0);
        match unused.and_then(|index| Some((index, self.ends.get_mut(index)?))) {
            Some((index, place)) => {
                *place = end;
                index
            }
            None => {
                self.ends.push(end);
                self.ends.len() - 1
            }
        }
    }

    /// Ends what [`Self::open`] began. I/Os under way are dropped when they are through.
    pub(super) fn close(&mut self, end: usize) {
        if let Some(end) = self.ends.get_mut(end) {
            end.open = false;
            end.ended.clear();
        }
    }

    /// Takes `io` for the namespace behind `end`.
    ///
    /// # Errors
    /// [`Busy`], with the I/O: there are as many as can be, or its path has no room.
    #[inline]
    pub(super) fn submit(&mut self, end: usize, io: Box<Io>, now: Tick) -> Result<(), Busy> {
        let Some(index) = self.free.pop() else { return Err(Busy(io)) };
        self.request(index).begin(end, io.tag);
        match self.issue(index, io, now) {
            Ok(()) => {}
            Err(issue::NotSent::NoRoom(io)) => {
                self.free.push(index);
                return Err(Busy(io));
            }
            Err(issue::NotSent::NoPath(io)) => self.without_path(index, io),
        }
        self.end_mut(end).under_way += 1;
        Ok(())
    }

    /// Appends at most `budget` ended I/Os of `end` to `done`; returns how many.
    #[inline]
    pub(super) fn take_ended(&mut self, end: usize, budget: usize, done: &mut Vec<Box<Io>>) -> usize {
        let Some(end) = self.ends.get_mut(end) else { return 0 };
        let count = end.ended.len().min(budget);
        done.extend(end.ended.drain(..count));
        count
    }

    /// Whether `end` has ended I/Os that were not taken.
    pub(super) fn has_ended(&self, end: usize) -> bool {
        self.ends.get(end).is_some_and(|end| !end.ended.is_empty())
    }

    /// Tries to end the I/O `tag` of `end` early.
    pub(super) fn abort(&mut self, end: usize, tag: u64) -> bool {
        let is_it = |request: &Request| {
            request.end == end && request.tag == tag && !matches!(request.state, State::Free)
        };
        let found = self.requests.iter().position(is_it).and_then(|index| u16::try_from(index).ok());
        found.is_some_and(|index| self.abandon(index))
    }

    /// Tries to end all I/Os of `end` early.
    pub(super) fn abort_all(&mut self, end: usize) {
        for index in 0..REQUESTS_MAX {
            let request = self.request(index);
            if request.end == end && !matches!(request.state, State::Free) {
                self.abandon(index);
            }
        }
    }

    fn abandon(&mut self, index: u16) -> bool {
        let request = self.request(index);
        request.abandoned = true;
        if matches!(request.state, State::Parked(_)) {
            if let State::Parked(io) = std::mem::replace(&mut request.state, State::Free) {
                self.parked.retain(|other| *other != index);
                self.finish(index, io, IoStatus::Aborted);
            }
            return true;
        }
        self.ask_to_abort(index)
    }

    /// Has the controller abort the request's command.
    fn ask_to_abort(&mut self, index: u16) -> bool {
        let request = self.request(index);
        let (path, cid) = (request.path, request.cid);
        let Some(path) = self.paths.get(path) else { return false };
        let Some(connection) = &path.connection else { return false };
        path.ask(PathAsk::Abort { generation: path.generation, qid: connection.qid, cid })
    }

    // ---- what the poller does

    /// A path's socket is worth trying.
    #[inline]
    pub(super) fn is_ready(&mut self, path: u32, ready: Ready, sockets: &mut Sockets) {
        let path = self.paths.iter_mut().find(|other| other.number == path);
        let Some(connection) = path.and_then(|path| path.connection.as_mut()) else { return };
        if ready.writable {
            connection.send(sockets);
        }
        if ready.readable || ready.broken {
            connection.receive(sockets);
        }
    }

    /// Moves everything on: completions, what waits, what takes too long, what is to be sent. Returns how many commands
    /// completed.
    #[inline]
    pub(super) fn turn(&mut self, sockets: &mut Sockets, now: Tick) -> usize {
        let mut count = 0;
        for index in 0..self.paths.len() {
            for _ in 0..REAP_MAX {
                let connection = self.paths.get_mut(index).and_then(|path| path.connection.as_mut());
                let Some(completion) = connection.and_then(Connection::poll) else { break };
                self.completed(index, completion, false, now);
                count += 1;
            }
        }
        self.eager |= count > 0;
        if !self.parked.is_empty() && (self.eager || now >= self.next_look) {
            self.go_on(now);
        }
        self.eager = false;
        for index in 0..self.paths.len() {
            let Some(connection) = self.paths.get_mut(index).and_then(|path| path.connection.as_mut()) else {
                continue;
            };
            if connection.wants_to_send() {
                connection.send(sockets);
            }
            if connection.is_broken() {
                self.fall_out(index, sockets, now);
            }
        }
        if self.rules.timeout_ns > 0 && now >= self.next_check {
            self.next_check = now.plus_ns(CHECK_NS.min(self.rules.timeout_ns / 4 + 1));
            self.look_for_silence(now);
        }
        count
    }

    /// Whether the core may sleep as far as this disk goes.
    pub(super) fn rest(&self) -> Rest {
        let connections = || self.paths.iter().filter_map(|path| path.connection.as_ref());
        if connections().any(|connection| connection.wants_to_send() || connection.is_broken()) {
            return Rest::Never;
        }
        if !self.parked.is_empty() {
            return Rest::Until(self.next_look);
        }
        let busy = self.free.len() < self.requests.len();
        if busy && self.rules.timeout_ns > 0 { Rest::Until(self.next_check) } else { Rest::UntilWoken }
    }

    /// Tries again what is parked.
    #[cold]
    fn go_on(&mut self, now: Tick) {
        self.next_look = now.plus_ns(LOOK_NS);
        for _ in 0..self.parked.len() {
            let Some(index) = self.parked.pop_front() else { break };
            let request = self.request(index);
            let due = request.due;
            if due > now {
                self.next_look = Tick::min(self.next_look, due);
                self.parked.push_back(index);
                continue;
            }
            let State::Parked(io) = std::mem::replace(&mut request.state, State::Free) else { continue };
            match self.issue(index, io, now) {
                Ok(()) => {}
                Err(issue::NotSent::NoRoom(io)) => self.park(index, io, now),
                Err(issue::NotSent::NoPath(io)) => self.without_path(index, io),
            }
        }
    }

    /// No path serves: the I/O waits for one, or ends where none will come.
    #[cold]
    fn without_path(&mut self, index: u16, io: Box<Io>) {
        let request = self.request(index);
        let (end, abandoned) = (request.end, request.abandoned);
        let nsid = self.end_mut(end).ns.nsid;
        let known = |path: &Path| path.namespaces.iter().any(|ns| ns.nsid == nsid);
        if abandoned {
            self.finish(index, io, IoStatus::Aborted);
        } else if self.end_mut(end).route.hope {
            self.park(index, io, Tick::ZERO);
        } else if self.paths.iter().any(known) {
            self.finish(index, io, IoStatus::TimedOut);
        } else {
            self.finish(index, io, IoStatus::Gone);
        }
    }

    fn park(&mut self, index: u16, io: Box<Io>, due: Tick) {
        let request = self.request(index);
        request.state = State::Parked(io);
        request.due = due;
        self.parked.push_back(index);
    }

    /// A connection broke by itself: its I/O goes elsewhere, and the path's thread is told.
    #[cold]
    fn fall_out(&mut self, index: usize, sockets: &mut Sockets, now: Tick) {
        let Some(path) = self.paths.get_mut(index) else { return };
        path.state = PathState::Connecting;
        let why = path.connection.as_ref().map_or_else(String::new, Connection::why);
        let generation = path.generation;
        self.lose(index, sockets, now);
        if let Some(path) = self.paths.get(index) {
            path.ask(PathAsk::Lost { generation, why });
        }
        self.changed();
        self.go_on(now);
    }

    /// Closes a path's connection, if it has one; its I/O goes elsewhere.
    fn lose(&mut self, index: usize, sockets: &mut Sockets, now: Tick) {
        let connection = self.paths.get_mut(index).and_then(|path| path.connection.take());
        let Some(mut connection) = connection else { return };
        self.changed();
        while let Some(completion) = connection.poll() {
            self.completed(index, completion, false, now);
        }
        connection.close(sockets);
        while let Some(completion) = connection.abandon() {
            self.completed(index, completion, true, now);
        }
    }

    /// Commands without an answer for too long are aborted, then the path is reset.
    #[cold]
    fn look_for_silence(&mut self, now: Tick) {
        if self.rules.on_timeout == OnTimeout::Nothing || self.free.len() == self.requests.len() {
            return;
        }
        for index in 0..REQUESTS_MAX {
            let (limit_ns, on_timeout) = (self.rules.timeout_ns, self.rules.on_timeout);
            let request = self.request(index);
            if !request.is_on_path() || now.ns_since(request.since) < limit_ns {
                continue;
            }
            request.since = now;
            let (path, again) = (request.path, request.timed_out);
            let Some(path) = self.paths.get(path) else { continue };
            path.stats.timeouts.add(1);
            if on_timeout == OnTimeout::Reset || again {
                let (generation, ms) = (path.generation, limit_ns / 1_000_000);
                path.ask(PathAsk::Silence { generation, ms });
                return;
            }
            self.request(index).timed_out = true;
            self.ask_to_abort(index);
        }
    }

    /// The I/O in `index` is through for good.
    #[inline]
    fn finish(&mut self, index: u16, mut io: Box<Io>, status: IoStatus) {
        let request = self.request(index);
        let end = request.end;
        request.state = State::Free;
        self.free.push(index);
        io.status = status;
        let end = self.end_mut(end);
        end.under_way = end.under_way.saturating_sub(1);
        if end.open {
            end.ended.push_back(io);
        }
    }

    fn changed(&mut self) {
        self.version += 1;
        self.eager = true;
    }

    fn options_of(&self, nsid: u32) -> MultipathOptions {
        self.options.iter().find(|(other, _)| *other == nsid).map(|(_, options)| *options).unwrap_or_default()
    }

    fn route_of(&self, nsid: u32, options: &MultipathOptions) -> Route {
        Route::over(self.paths.iter().map(|path| (path.number, path.worth(nsid))), options)
    }

    fn index_of(&self, path: u32) -> Option<usize> {
        self.paths.iter().position(|other| other.number == path)
    }

    #[inline]
    fn request(&mut self, index: u16) -> &mut Request {
        #[expect(clippy::indexing_slicing, reason = "indexes come from `free`, or from below REQUESTS_MAX")]
        &mut self.requests[usize::from(index)]
    }

    #[inline]
    fn end_mut(&mut self, end: usize) -> &mut End {
        #[expect(clippy::indexing_slicing, reason = "`open` returned it, and ends are never removed")]
        &mut self.ends[end]
    }
}
