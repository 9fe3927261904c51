//! What all connections of a reactor share: targets, views, channels, queues of those who wait.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use penstock_bdev::{BdevChannel, Busy, Io, IoStatus, Sg};
use penstock_reactor::mem::{BUF_BYTES_MAX, Buf};
use penstock_reactor::{Cx, Rest, Tick};
use penstock_scsi::{Control, LuId, LuView, Nexus, iscsi_transport_id};
use penstock_spec::iscsi::{IscsiName, LoginStatus};

use super::Common;
use super::control::GroupStats;
use super::sweep::{Ask, Msg, Origin};
use crate::auth::AuthPolicy;
use crate::chap::CHALLENGE_LEN;
use crate::config::{DiscoveryConfig, IscsiOptions, TargetConfig};
use crate::conn::{CmdId, EndOf, Entered, Entering, Member, ReplyTo, Scope, Session, Sink};
use crate::host::{Address, ControlRequest};
use crate::login::{Directory, say};
use crate::sessions::SessionKey;

/// The initiator's address and ours.
type Ends = (SocketAddr, SocketAddr);

/// The channel to one logical unit's bdev, shared by all connections of the reactor.
#[derive(Debug)]
struct Chan {
    lu: LuId,
    channel: BdevChannel,
    /// Commands that found the bdev's queue full.
    busy: VecDeque<CmdId>,
    /// In the list of those to be polled.
    active: bool,
    /// Its logical unit is gone; only I/Os under way keep it.
    leaving: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) common: Common,
    /// Index of the reactor among the peers.
    pub(crate) index: usize,
    pub(crate) now: Tick,
    targets: BTreeMap<IscsiName, Arc<TargetConfig>>,
    views: BTreeMap<LuId, Arc<LuView>>,
    discovery: Arc<DiscoveryConfig>,
    /// Logical units whose bdev this reactor cannot use, and why.
    unusable: BTreeMap<LuId, String>,
    pub(crate) stats: GroupStats,
    chans: Vec<Chan>,
    /// Places of channels with I/O under way.
    active: Vec<usize>,
    buffer_bytes: u64,
    /// Commands that wait for a buffer.
    pub(crate) starved: VecDeque<CmdId>,
    /// It is their turn.
    pub(crate) serving_starved: bool,
    /// Sessions that live here, by TSIH.
    pub(crate) sessions: BTreeMap<u16, Rc<Session>>,
    /// What connections want of others.
    pub(crate) asks: VecDeque<Ask>,
    /// Messages to other reactors.
    pub(crate) outbox: VecDeque<(usize, Msg)>,
    /// Connections that are to go on.
    pub(crate) nudges: VecDeque<u32>,
    /// Serial numbers of the connections in their places.
    pub(crate) serials: Vec<u64>,
    /// I/Os of logical units that are not there: they come back in the next poll.
    lost: Vec<Box<Io>>,
}

impl Core {
    pub(crate) fn new(common: Common, index: usize) -> Self {
        Self {
            common,
            index,
            now: Tick::ZERO,
            targets: BTreeMap::new(),
            views: BTreeMap::new(),
            discovery: Arc::default(),
            unusable: BTreeMap::new(),
            stats: GroupStats::default(),
            chans: Vec::new(),
            active: Vec::new(),
            buffer_bytes: 0,
            starved: VecDeque::new(),
            serving_starved: false,
            sessions: BTreeMap::new(),
            asks: VecDeque::new(),
            outbox: VecDeque::new(),
            nudges: VecDeque::new(),
            serials: Vec::new(),
            lost: Vec::new(),
        }
    }

    /// Takes over a new generation of a target node.
    pub(crate) fn set_target(&mut self, config: &Arc<TargetConfig>) {
        self.targets.insert(config.name, Arc::clone(config));
    }

    /// Forgets a target node.
    pub(crate) fn remove_target(&mut self, name: &IscsiName) {
        self.targets.remove(name);
    }

    /// Takes over how discovery is authenticated.
    pub(crate) fn set_discovery(&mut self, discovery: &Arc<DiscoveryConfig>) {
        self.discovery = Arc::clone(discovery);
    }

    /// Forgets a logical unit. Its channel is closed when it has no I/O under way.
    pub(crate) fn remove_lu(&mut self, lu: LuId, again: &mut Vec<CmdId>) {
        self.views.remove(&lu);
        self.unusable.remove(&lu);
        let Some(at) = self.chans.iter().position(|chan| chan.lu == lu && !chan.leaving) else { return };
        let Some(chan) = self.chans.get_mut(at) else { return };
        chan.leaving = true;
        again.extend(chan.busy.drain(..));
        if !chan.active {
            self.drop_chan(at);
        }
    }

    fn drop_chan(&mut self, at: usize) {
        self.chans.swap_remove(at);
        let moved = self.chans.len();
        for place in self.active.iter_mut().filter(|place| **place == moved) {
            *place = at;
        }
    }

    /// Whether I/O of a logical unit may be under way.
    pub(crate) fn uses_lu(&self, lu: LuId) -> bool {
        self.chans.iter().any(|chan| chan.lu == lu)
    }

    /// Why this reactor cannot use a logical unit's bdev.
    pub(crate) fn unusable(&self, lu: LuId) -> Option<String> {
        self.unusable.get(&lu).cloned()
    }

    /// Takes over a view; opens the channel to a logical unit that is new.
    pub(crate) fn set_view(&mut self, cx: &Cx, view: &Arc<LuView>) {
        let lu = view.config.id;
        let known = self.views.insert(lu, Arc::clone(view));
        if known.is_some() {
            return;
        }
        match view.config.descriptor.channel(cx) {
            Ok(channel) => {
                let busy = VecDeque::new();
                self.chans.push(Chan { lu, channel, busy, active: false, leaving: false });
                self.active.reserve(self.chans.len());
            }
            Err(error) => {
                let bdev = view.config.descriptor.shared().name();
                tracing::warn!(reactor = %cx.id(), bdev, %error, "no channel");
                self.unusable.insert(lu, format!("reactor {}: {error}", cx.id()));
            }
        }
    }

    /// The LUNs of a target that an initiator sees, with the newest views.
    pub(crate) fn views_of(
        &self,
        config: &TargetConfig,
        name: &IscsiName,
        addr: IpAddr,
    ) -> Vec<(u16, Arc<LuView>)> {
        let seen = config.luns.iter().filter(|lun| lun.is_seen_by(name, addr));
        seen.filter_map(|lun| Some((lun.lun, Arc::clone(self.views.get(&lun.lu)?)))).collect()
    }

    /// Looks for ended I/Os of all channels; at most `budget` of each.
    pub(crate) fn poll_chans(&mut self, budget: usize, done: &mut Vec<Box<Io>>, again: &mut Vec<CmdId>) {
        done.append(&mut self.lost);
        let mut at = 0;
        while let Some(place) = self.active.get(at).copied() {
            let Some(chan) = self.chans.get_mut(place) else {
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
                let leaves = chan.leaving;
                self.active.swap_remove(at);
                if leaves {
                    self.drop_chan(place);
                }
                continue;
            }
            at += 1;
        }
    }

    /// Whether any I/O is under way.
    pub(crate) fn has_active(&self) -> bool {
        !self.active.is_empty() || !self.lost.is_empty()
    }

    /// Whether the core may sleep as far as the channels go.
    pub(crate) fn rest(&self, now: Tick) -> Rest {
        if !self.lost.is_empty() {
            return Rest::Never;
        }
        let mut rest = Rest::UntilWoken;
        for place in &self.active {
            let chan = self.chans.get(*place);
            match (chan.map_or(Rest::UntilWoken, |chan| chan.channel.rest(now)), rest) {
                (Rest::Never, _) => return Rest::Never,
                (Rest::Until(at), Rest::Until(other)) => rest = Rest::Until(at.min(other)),
                (Rest::Until(at), _) => rest = Rest::Until(at),
                (Rest::UntilWoken, _) => {}
            }
        }
        rest
    }

    /// Forgets commands of a connection that is gone.
    pub(crate) fn forget_conn(&mut self, conn: u32) {
        self.starved.retain(|id| id.conn != conn);
        for chan in &mut self.chans {
            chan.busy.retain(|id| id.conn != conn);
        }
    }

    fn address(&self, conn: u32, to: ReplyTo) -> Address {
        let serial = self.serials.get(conn as usize).copied().unwrap_or(0);
        Address { reactor: self.index, conn, serial, to }
    }

    /// A connection has ended; its session, too, if it was the last.
    pub(crate) fn left(&mut self, conn: u32, session: &Session) {
        if !session.leave(conn) {
            return;
        }
        self.sessions.remove(&session.tsih);
        if let Some(nexus) = session.nexus() {
            self.nexus_lost(&nexus);
        }
    }

    /// A session is gone: its reservations of the old kind and its preventions end.
    pub(crate) fn nexus_lost(&mut self, nexus: &Nexus) {
        let mut lus: Vec<LuId> = nexus.luns().map(|(_, view)| view.config.id).collect();
        lus.sort_unstable();
        lus.dedup();
        for lu in lus {
            self.control(u32::MAX, lu, nexus, Control::NexusLost, ReplyTo::Nobody);
        }
    }

    fn target_lines(&self, config: &TargetConfig, key: &SessionKey, ends: Ends, out: &mut Vec<u8>) {
        let (addr, local) = ends;
        let mut portals = config.portals_for(&key.initiator, addr.ip().to_canonical()).peekable();
        if portals.peek().is_none() {
            return;
        }
        say(out, "TargetName", config.name.as_str());
        for (tpgt, portal) in portals {
            let ip = if portal.ip().is_unspecified() {
                // Whoever came to one of all our addresses is shown that one.
                let ours = local.ip().to_canonical();
                if portal.is_ipv4() != ours.is_ipv4() && portal.is_ipv4() {
                    continue;
                }
                ours
            } else {
                portal.ip()
            };
            say(out, "TargetAddress", &format!("{},{tpgt}", SocketAddr::new(ip, portal.port())));
        }
    }
}

/// Buffers of `len` bytes in all, all but the last as long as can be.
#[inline]
pub(crate) fn buffers_of(len: u32) -> Option<Sg> {
    let (mut list, mut left) = (Sg::new(), len as usize);
    loop {
        let now = left.min(BUF_BYTES_MAX);
        list.push(Buf::alloc(now)?);
        left -= now;
        if left == 0 {
            return Some(list);
        }
    }
}

impl Directory for Core {
    fn target(&self, name: &IscsiName) -> Option<Arc<TargetConfig>> {
        self.targets.get(name).cloned()
    }

    fn options(&self) -> &IscsiOptions {
        &self.common.options
    }

    fn may_join(&self, key: &SessionKey, tsih: u16, cid: u16) -> Result<(), LoginStatus> {
        if !self.common.sessions.has(key, tsih) {
            return Err(LoginStatus::NO_SESSION);
        }
        // One whose last connection has gone or been logged out is over, however long its I/O takes.
        let session = self.sessions.get(&tsih).filter(|session| !session.members().is_empty());
        let session = session.ok_or(LoginStatus::NO_SESSION)?;
        let others = session.members().iter().filter(|member| member.cid != cid).count();
        if others >= usize::from(session.agreed.connections_max) {
            return Err(LoginStatus::TOO_MANY_CONNECTIONS);
        }
        Ok(())
    }

    fn discovery_auth(&self, tpgt: u16) -> AuthPolicy {
        self.discovery.auth_at(tpgt).clone()
    }

    fn has_room(&self, key: &SessionKey) -> bool {
        self.common.sessions.has_room(key, self.common.options.max_sessions)
    }

    fn random(&self) -> Option<[u8; CHALLENGE_LEN + 1]> {
        let mut bytes = [0; CHALLENGE_LEN + 1];
        getrandom::fill(&mut bytes).ok()?;
        Some(bytes)
    }
}

impl Sink for Core {
    #[inline]
    fn buffers(&mut self, len: u32, late: bool) -> Option<Sg> {
        let bytes = self.buffer_bytes + u64::from(len);
        // Who came first is served first: small commands would keep large ones waiting for ever.
        let others_wait = !self.starved.is_empty() && !self.serving_starved;
        if bytes > self.common.options.buffer_bytes_max || others_wait {
            return None;
        }
        let list = if late { Sg::new() } else { buffers_of(len)? };
        self.buffer_bytes = bytes;
        Some(list)
    }

    #[inline]
    fn released(&mut self, bytes: u32) {
        self.buffer_bytes = self.buffer_bytes.saturating_sub(bytes.into());
    }

    fn starved(&mut self, id: CmdId) {
        self.starved.push_back(id);
    }

    #[inline]
    fn submit(&mut self, lu: LuId, id: CmdId, mut io: Box<Io>) -> Result<(), Box<Io>> {
        let now = self.now;
        let found = self.chans.iter_mut().zip(0..).find(|(chan, _)| chan.lu == lu && !chan.leaving);
        let Some((chan, place)) = found else {
            io.status = IoStatus::Gone;
            self.lost.push(io);
            return Ok(());
        };
        let refused = match chan.channel.submit(io, now) {
            Ok(()) => None,
            Err(Busy(io)) => {
                chan.busy.push_back(id);
                Some(io)
            }
        };
        if !chan.active {
            chan.active = true;
            self.active.push(place);
        }
        refused.map_or(Ok(()), Err)
    }

    fn abort(&mut self, lu: LuId, id: CmdId) {
        if let Some(chan) = self.chans.iter_mut().find(|chan| chan.lu == lu) {
            chan.channel.abort(id.tag());
        }
    }

    fn control(&mut self, conn: u32, lu: LuId, nexus: &Nexus, control: Control, to: ReplyTo) {
        let reply = self.address(conn, to);
        (self.common.control)(ControlRequest { lu, from: nexus.id().clone(), control, reply });
    }

    fn sweep(&mut self, conn: u32, tmf: u8, scope: Scope) -> usize {
        let to = self.address(conn, ReplyTo::Tmf(tmf));
        let others = matches!(scope, Scope::Units { .. });
        let peers = if others { self.common.peers.len() } else { 1 };
        for reactor in (0..self.common.peers.len()).filter(|reactor| others && *reactor != self.index) {
            self.outbox.push_back((reactor, Msg::Sweep(scope.clone(), to)));
        }
        self.asks.push_back(Ask::Sweep(scope, Origin::Reply(to)));
        peers
    }

    fn end(&mut self, whom: EndOf) {
        if let EndOf::Target(name) = &whom {
            for reactor in (0..self.common.peers.len()).filter(|reactor| *reactor != self.index) {
                self.outbox.push_back((reactor, Msg::EndTarget(name.clone())));
            }
        }
        self.asks.push_back(Ask::End(whom));
    }

    fn nudge(&mut self, conn: u32) {
        if !self.nudges.contains(&conn) {
            self.nudges.push_back(conn);
        }
    }

    fn elsewhere(&self, tsih: u16) -> Option<usize> {
        self.common.sessions.reactor_of(tsih).filter(|reactor| *reactor != self.index)
    }

    fn enter(&mut self, who: &Entering<'_>) -> Entered {
        let then = self.address(who.conn, ReplyTo::Login);
        let member = Member { cid: who.cid, conn: who.conn };
        if who.tsih != 0 {
            if let Err(status) = self.may_join(who.key, who.tsih, who.cid) {
                return Entered::Refused(status);
            }
            let Some(session) = self.sessions.get(&who.tsih).cloned() else {
                return Entered::Refused(LoginStatus::NO_SESSION);
            };
            let members = session.members();
            if let Some(old) = members.iter().find(|member| member.cid == who.cid) {
                // Connection reinstatement (RFC 7143, 6.3.4): the old one ends first.
                self.asks.push_back(Ask::Replace(vec![old.conn], Origin::Reply(then)));
                return Entered::Later;
            }
            if session.join(member) {
                self.asks.extend(members.iter().map(|first| Ask::Track(first.conn)));
            }
            self.stats.logins += 1;
            return Entered::Now(session);
        }
        let tsih = match self.common.sessions.enter(*who.key, self.index, who.addr) {
            Ok(tsih) => tsih,
            Err(old) => {
                // Session reinstatement (6.3.5): none of its commands is under way when the new one begins.
                if old.reactor == self.index {
                    self.asks.push_back(Ask::EndSession(old.tsih, Origin::Reply(then)));
                } else {
                    self.outbox.push_back((old.reactor, Msg::EndSession(old.tsih, then)));
                }
                return Entered::Later;
            }
        };
        self.stats.logins += 1;
        let key = who.key;
        let target = key.target.and_then(|name| self.targets.get(&name));
        let nexus = target.map(|config| {
            let id = iscsi_transport_id(key.initiator.as_str(), Some(key.isid.0));
            let mut nexus = Nexus::new(&id, config.port_of(key.tpgt), self.common.seal.clone());
            nexus.apply_luns(&self.views_of(config, &key.initiator, who.addr.ip()));
            nexus
        });
        let session = Session::new(*key, tsih, nexus, who.agreed.clone(), who.window, who.cmd_sn);
        session.join(member);
        session.set_latencies(target.and_then(|config| config.latencies.as_ref()), self.index);
        let session = Rc::new(session);
        self.sessions.insert(tsih, Rc::clone(&session));
        Entered::Now(session)
    }

    fn send_targets(&self, key: &SessionKey, ends: Ends, only: Option<&str>) -> Vec<u8> {
        let mut out = Vec::new();
        match only {
            Some(name) => {
                let config = name.parse().ok().and_then(|name: IscsiName| self.targets.get(&name));
                if let Some(config) = config {
                    self.target_lines(config, key, ends, &mut out);
                }
            }
            None => self.targets.values().for_each(|config| self.target_lines(config, key, ends, &mut out)),
        }
        out
    }

    fn now(&self) -> Tick {
        self.now
    }
}
