//! What the connections of one session share: the order of commands and their window, the nexus, the agreement.
//!
//! All connections of a session live on one reactor, so its numbers are plain cells. A PDU with a CmdSN above ExpCmdSN
//! waits at its connection ([`super::early`]) until those before it have come on other connections, or are taken as
//! received because a task management function said so ([`Session::plug`]).

use std::cell::{Cell, RefCell, RefMut};
use std::sync::Arc;

use penstock_scsi::Nexus;

use crate::config::Latencies;
use crate::negotiate::Operational;
use crate::sessions::SessionKey;

/// What becomes of a numbered PDU (RFC 7143, 4.2.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It is next.
    Next,
    /// It is outside of the window, or a repetition, and is ignored.
    Ignore,
    /// PDUs before it have not come yet.
    Early,
}

/// A connection of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) cid: u16,
    pub(crate) conn: u32,
}

/// A command that has begun and has no answer, for the order of commands over several connections.
#[derive(Debug, Clone, Copy)]
struct Pending {
    seq: u64,
    lun: u64,
    ordered: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) key: SessionKey,
    pub(crate) tsih: u16,
    /// `None`: a discovery session.
    nexus: Option<RefCell<Nexus>>,
    /// What the leading connection has agreed on.
    pub(crate) agreed: Operational,
    pub(crate) window: u16,
    exp_cmd_sn: Cell<u32>,
    max_cmd_sn: Cell<u32>,
    /// Numbered commands without an answer.
    active: Cell<u16>,
    /// Immediate ones.
    immediate: Cell<u16>,
    next_seq: Cell<u64>,
    /// Commands with attribute ORDERED that have no answer, and those that wait for older ones.
    pub(crate) ordered: Cell<u16>,
    pub(crate) waiting: Cell<u16>,
    /// PDUs that wait for their turn, at all connections.
    pub(crate) held: Cell<u16>,
    /// CmdSNs above ExpCmdSN that count as received.
    plugs: RefCell<Vec<u32>>,
    members: RefCell<Vec<Member>>,
    /// There has been more than one connection: commands are kept in `pending`.
    several: Cell<bool>,
    pending: RefCell<Vec<Pending>>,
    /// Where its commands' latencies are counted, as those of which reactor.
    latencies: RefCell<Option<(Arc<Latencies>, usize)>>,
}

impl Session {
    /// A session whose first command will have `cmd_sn`.
    pub(crate) fn new(
        key: SessionKey,
        tsih: u16,
        nexus: Option<Nexus>,
        agreed: Operational,
        window: u16,
        cmd_sn: u32,
    ) -> Self {
        Self {
            key,
            tsih,
            nexus: nexus.map(RefCell::new),
            agreed,
            window,
            exp_cmd_sn: Cell::new(cmd_sn),
            max_cmd_sn: Cell::new(cmd_sn.wrapping_add(u32::from(window)).wrapping_sub(1)),
            active: Cell::new(0),
            immediate: Cell::new(0),
            next_seq: Cell::new(0),
            ordered: Cell::new(0),
            waiting: Cell::new(0),
            held: Cell::new(0),
            plugs: RefCell::new(Vec::new()),
            members: RefCell::new(Vec::new()),
            several: Cell::new(false),
            pending: RefCell::new(Vec::new()),
            latencies: RefCell::default(),
        }
    }

    /// From now on latencies are counted there, by that reactor, or not any more.
    pub(crate) fn set_latencies(&self, latencies: Option<&Arc<Latencies>>, reactor: usize) {
        *self.latencies.borrow_mut() = latencies.map(|latencies| (Arc::clone(latencies), reactor));
    }

    /// Counts a command's latency, in nanoseconds, where that is wanted.
    #[inline]
    pub(crate) fn count_latency(&self, latency_ns: impl FnOnce() -> u64) {
        if let Some((latencies, reactor)) = &*self.latencies.borrow() {
            latencies.record(*reactor, latency_ns());
        }
    }

    /// The nexus of a normal session.
    #[inline]
    pub(crate) fn nexus(&self) -> Option<RefMut<'_, Nexus>> {
        self.nexus.as_ref().map(RefCell::borrow_mut)
    }

    /// Takes a connection in. Returns whether it is the second ever, so that the first has to tell its commands.
    pub(crate) fn join(&self, member: Member) -> bool {
        let mut members = self.members.borrow_mut();
        members.push(member);
        members.len() > 1 && !self.several.replace(true)
    }

    /// Forgets a connection; whether it was the last.
    pub(crate) fn leave(&self, conn: u32) -> bool {
        let mut members = self.members.borrow_mut();
        members.retain(|member| member.conn != conn);
        members.is_empty()
    }

    /// Its connections.
    pub(crate) fn members(&self) -> Vec<Member> {
        self.members.borrow().clone()
    }

    /// Runs `on` for every connection.
    pub(crate) fn each_member(&self, mut on: impl FnMut(u32)) {
        self.members.borrow().iter().for_each(|member| on(member.conn));
    }

    /// What becomes of a PDU with that CmdSN.
    #[inline]
    pub(crate) fn turn(&self, cmd_sn: u32, immediate: bool) -> Turn {
        if immediate {
            return Turn::Next;
        }
        let exp = self.exp_cmd_sn.get();
        let ahead = cmd_sn.wrapping_sub(exp);
        if ahead == 0 && self.max_cmd_sn.get().wrapping_sub(exp) < 1 << 31 {
            return Turn::Next;
        }
        if self.is_ahead(cmd_sn) && !self.plugs.borrow().contains(&cmd_sn) {
            return Turn::Early;
        }
        Turn::Ignore
    }

    /// Whether a CmdSN is in the window and not the next.
    pub(crate) fn is_ahead(&self, cmd_sn: u32) -> bool {
        let exp = self.exp_cmd_sn.get();
        let room = self.max_cmd_sn.get().wrapping_sub(exp);
        let ahead = cmd_sn.wrapping_sub(exp);
        room < 1 << 31 && ahead > 0 && ahead <= room
    }

    /// Whether everything before `cmd_sn` has come.
    pub(crate) fn has_reached(&self, cmd_sn: u32) -> bool {
        cmd_sn.wrapping_sub(self.exp_cmd_sn.get()).wrapping_sub(1) >= (1 << 31) - 1
    }

    /// ExpCmdSN.
    pub(crate) fn exp_cmd_sn(&self) -> u32 {
        self.exp_cmd_sn.get()
    }

    /// The PDU that was next has come. Whether others that wait may be next now.
    #[inline]
    pub(crate) fn advance(&self) -> bool {
        let mut exp = self.exp_cmd_sn.get().wrapping_add(1);
        if self.held.get() > 0 || !self.plugs.borrow().is_empty() {
            let mut plugs = self.plugs.borrow_mut();
            while let Some(at) = plugs.iter().position(|plug| *plug == exp) {
                plugs.swap_remove(at);
                exp = exp.wrapping_add(1);
            }
        }
        self.exp_cmd_sn.set(exp);
        self.held.get() > 0
    }

    /// A PDU of the window that will never come counts as received. Whether others that wait may be next now.
    pub(crate) fn plug(&self, cmd_sn: u32) -> bool {
        if cmd_sn == self.exp_cmd_sn.get() {
            return self.advance();
        }
        let mut plugs = self.plugs.borrow_mut();
        if self.is_ahead(cmd_sn) && !plugs.contains(&cmd_sn) && plugs.len() < usize::from(self.window) {
            plugs.push(cmd_sn);
        }
        false
    }

    /// ExpCmdSN and MaxCmdSN. MaxCmdSN never falls: what was promised stays so.
    #[inline]
    pub(crate) fn window(&self) -> (u32, u32) {
        let room = self.window.saturating_sub(self.active.get());
        let exp = self.exp_cmd_sn.get();
        let max = exp.wrapping_add(u32::from(room)).wrapping_sub(1);
        if max.wrapping_sub(self.max_cmd_sn.get()) < 1 << 31 {
            self.max_cmd_sn.set(max);
        }
        (exp, self.max_cmd_sn.get())
    }

    /// Immediate commands without an answer.
    pub(crate) fn immediate(&self) -> u16 {
        self.immediate.get()
    }

    /// The age of the next command.
    pub(crate) fn next_seq(&self) -> u64 {
        self.next_seq.get()
    }

    /// A command begins; returns its age.
    #[inline]
    pub(crate) fn begin(&self, lun: u64, ordered: bool, numbered: bool) -> u64 {
        let seq = self.next_seq.get();
        self.next_seq.set(seq + 1);
        let count = if numbered { &self.active } else { &self.immediate };
        count.set(count.get() + 1);
        if ordered {
            self.ordered.set(self.ordered.get() + 1);
        }
        if self.several.get() {
            self.track(seq, lun, ordered);
        }
        seq
    }

    /// Keeps a command for the order over several connections.
    pub(crate) fn track(&self, seq: u64, lun: u64, ordered: bool) {
        self.pending.borrow_mut().push(Pending { seq, lun, ordered });
    }

    /// A command was answered or aborted.
    #[inline]
    pub(crate) fn end(&self, seq: u64, ordered: bool, numbered: bool) {
        let count = if numbered { &self.active } else { &self.immediate };
        count.set(count.get().saturating_sub(1));
        if ordered {
            self.ordered.set(self.ordered.get().saturating_sub(1));
        }
        if self.several.get() {
            let mut pending = self.pending.borrow_mut();
            if let Some(at) = pending.iter().position(|other| other.seq == seq) {
                pending.swap_remove(at);
            }
        }
    }

    /// Whether an older command to the same logical unit must end first (SAM-5, 8.6); `None`: there is one connection,
    /// which knows itself.
    pub(crate) fn waits_for_older(&self, seq: u64, lun: u64, ordered: bool) -> Option<bool> {
        self.several.get().then(|| {
            let pending = self.pending.borrow();
            pending.iter().any(|other| other.seq < seq && other.lun == lun && (ordered || other.ordered))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(cmd_sn: u32) -> Session {
        let key = SessionKey {
            initiator: "iqn.2026-11.h:1".parse().unwrap(),
            isid: penstock_spec::iscsi::Isid::default(),
            target: None,
            tpgt: 1,
        };
        Session::new(key, 1, None, Operational::default(), 8, cmd_sn)
    }

    #[test]
    fn numbers_go_around_and_the_window_holds() {
        for first in [1, u32::MAX - 3, u32::MAX, 1 << 31, (1 << 31) - 3] {
            let session = session(first);
            assert_eq!(session.turn(first, false), Turn::Next);
            assert_eq!(session.turn(first.wrapping_add(7), false), Turn::Early);
            assert_eq!(session.turn(first.wrapping_add(8), false), Turn::Ignore);
            assert_eq!(session.turn(first.wrapping_sub(1), false), Turn::Ignore);
            assert_eq!(session.turn(first.wrapping_add(1 << 31), false), Turn::Ignore);
            assert!(session.has_reached(first) && session.has_reached(first.wrapping_sub(5)));
            assert!(!session.has_reached(first.wrapping_add(1)));
        }
    }

    #[test]
    fn a_plug_counts_as_received_when_its_turn_comes() {
        let session = session(u32::MAX);
        session.plug(1);
        assert_eq!(session.turn(1, false), Turn::Ignore);
        session.advance();
        assert_eq!(session.exp_cmd_sn(), 0);
        session.advance();
        assert_eq!(session.exp_cmd_sn(), 2);
        session.plug(2);
        assert_eq!(session.exp_cmd_sn(), 3);
        session.plug(100);
        assert_eq!(session.turn(100, false), Turn::Ignore, "outside of the window nothing is plugged");
    }

    #[test]
    fn a_closed_window_takes_nothing() {
        let session = session(1);
        for _ in 0..8 {
            session.begin(0, false, true);
            session.advance();
        }
        assert_eq!(session.window(), (9, 8));
        assert_eq!(session.turn(9, false), Turn::Ignore);
        session.end(0, false, true);
        assert_eq!(session.window(), (9, 9));
        assert_eq!(session.turn(9, false), Turn::Next);
    }

    #[test]
    fn order_is_kept_over_connections() {
        let session = session(1);
        assert!(!session.join(Member { cid: 0, conn: 0 }));
        let first = session.begin(5, false, true);
        assert_eq!(session.waits_for_older(1, 5, true), None);
        assert!(session.join(Member { cid: 1, conn: 1 }));
        session.track(first, 5, false);
        let second = session.begin(5, true, true);
        assert_eq!(session.waits_for_older(second, 5, true), Some(true));
        session.end(first, false, true);
        assert_eq!(session.waits_for_older(second, 5, true), Some(false));
        let third = session.begin(5, false, true);
        assert_eq!(session.waits_for_older(third, 5, false), Some(true));
        assert_eq!(session.waits_for_older(third, 6, false), Some(false));
    }
}
