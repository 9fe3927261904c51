//! Aborts of commands of I/O queues: asked of the bdev where the queue lives, and answered when the command has ended.
//!
//! An Abort is told "aborted" only if its command really ended so; it waits for that no longer than
//! `abort_timeout_sec`.

use penstock_reactor::Tick;

use super::Group;
use super::join::Msg;
use crate::tcp::req::{ReqId, ReqKind, ReqState};

/// A command that the bdev was asked to end early, and the Abort that waits for it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Aborting {
    /// The command.
    id: ReqId,
    serial: u64,
    cid: u16,
    /// Answered by then.
    pub(super) deadline: Tick,
    /// The Abort: its reactor, and where it is there.
    from: usize,
    by: ReqId,
    by_serial: u64,
}

/// An Abort on its way to a queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct AbortMsg {
    pub(super) conn: u32,
    pub(super) serial: u64,
    pub(super) cid: u16,
    pub(super) from: usize,
    pub(super) by: ReqId,
    pub(super) by_serial: u64,
}

impl Group {
    /// An Abort of a command of one of this reactor's queues.
    pub(super) fn begin_abort(&mut self, abort: &AbortMsg) {
        let AbortMsg { conn, serial, cid, from, by, by_serial } = *abort;
        let slot = self.abortable(conn, serial, cid);
        let asked = slot.is_some_and(|(slot, chan)| self.core.abort(chan, ReqId { conn, slot }));
        let Some((slot, _)) = slot.filter(|_| asked) else {
            return self.post(from, Msg::Aborted { by, by_serial, aborted: false });
        };
        let deadline = self.core.now.plus_ns(self.core.params.abort_timeout_ns);
        let id = ReqId { conn, slot };
        self.aborting.push(Aborting { id, serial, cid, deadline, from, by, by_serial });
    }

    /// A command has ended as aborted: the Aborts that wait for it learn of it.
    #[cold]
    pub(super) fn abort_ended(&mut self, id: ReqId) {
        self.end_aborts(true, |_, aborting| aborting.id == id);
    }

    /// Aborts whose command has ended otherwise, or does not end.
    #[cold]
    pub(super) fn look_at_aborts(&mut self, now: Tick) {
        self.end_aborts(false, |group, aborting| {
            let found = group.abortable(aborting.id.conn, aborting.serial, aborting.cid);
            now >= aborting.deadline || found.is_none_or(|(slot, _)| slot != aborting.id.slot)
        });
    }

    fn end_aborts(&mut self, aborted: bool, is_over: impl Fn(&mut Self, &Aborting) -> bool) {
        let mut at = 0;
        while let Some(aborting) = self.aborting.get(at).copied() {
            if !is_over(self, &aborting) {
                at += 1;
                continue;
            }
            self.aborting.swap_remove(at);
            let Aborting { from, by, by_serial, .. } = aborting;
            self.post(from, Msg::Aborted { by, by_serial, aborted });
        }
    }

    /// The slot and channel of a command that the bdev has.
    fn abortable(&mut self, conn: u32, serial: u64, cid: u16) -> Option<(u16, u32)> {
        let entry = self.entry_mut(conn).filter(|entry| entry.serial == serial && !entry.gone)?;
        let slot = entry.conn.slab().find(cid)?;
        let req = entry.conn.req_mut(slot)?;
        match req.kind {
            ReqKind::Io { chan } if req.state == ReqState::Executing => Some((slot, chan)),
            _ => None,
        }
    }
}
