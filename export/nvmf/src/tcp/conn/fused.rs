//! Fused pairs (Base 3.4.2): Compare and Write as one.
//!
//! The two commands come one directly after the other on one queue; they are one bdev I/O once the data of both is
//! here, and are answered together. A first without its second, or a second without its first, fails alone.
//!
//! ```text
//!   first  ─ data ─► Paired ──┐
//!                             ├─► the second's slot executes both (Joined) ─► first answered, second answered
//!   second ─ data ─► Paired ──┘
//! ```
//!
//! Invariants: a pair never spans two queues, as a [`Conn`] is one queue; `Second(a)` and `First(Some(b))` name each
//! other until one of them is answered; who is answered alone dooms the other.

use penstock_bdev::Op;
use penstock_spec::nvme::{Fuse, Status};

use super::super::req::{ReqKind, ReqState, Role};
use super::{Conn, Sink};
use crate::io_cmd::Transfer;

/// What the queue's last command leaves for the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Pending {
    /// Nothing.
    #[default]
    None,
    /// It was the first of a pair, in this slot.
    First(u16),
    /// It was the first of a pair, and has failed.
    Failed,
}

const FAILED_FUSED: Status = Status::ABORTED_FAILED_FUSED;
const MISSING_FUSED: Status = Status::ABORTED_MISSING_FUSED;

impl<L> Conn<L> {
    /// A command has come that is fused, or follows a first: finds its pair. What it was judged to be may change.
    #[cold]
    pub(super) fn pair<S: Sink<Link = L>>(
        &mut self,
        slot: u16,
        fuse: Fuse,
        judged: Result<Transfer, Status>,
        sink: &mut S,
    ) -> Result<Transfer, Status> {
        let pending = std::mem::take(&mut self.fused);
        // Commands of controllers have no pairs; they are refused where they are executed.
        let is_io = self.slab.get(slot).is_some_and(|req| matches!(req.kind, ReqKind::Io { .. }));
        if fuse == Fuse::Second && (is_io || judged.is_err()) {
            return self.second(slot, pending, judged, sink);
        }
        if let Pending::First(first) = pending {
            self.doom(first, MISSING_FUSED, sink);
        }
        if fuse == Fuse::First {
            match judged {
                Ok(_) if is_io => {
                    self.fused = Pending::First(slot);
                    self.set_role(slot, Role::First(None));
                }
                Ok(_) => {}
                Err(_) => self.fused = Pending::Failed,
            }
        }
        judged
    }

    fn second<S: Sink<Link = L>>(
        &mut self,
        slot: u16,
        pending: Pending,
        judged: Result<Transfer, Status>,
        sink: &mut S,
    ) -> Result<Transfer, Status> {
        match (pending, judged) {
            (Pending::None, Ok(_)) => Err(MISSING_FUSED),
            (Pending::Failed, Ok(_)) => Err(FAILED_FUSED),
            (Pending::First(first), Ok(transfer)) if self.same_blocks(first, slot) => {
                self.set_role(first, Role::First(Some(slot)));
                self.set_role(slot, Role::Second(first));
                Ok(transfer)
            }
            (Pending::First(first), judged) => {
                self.doom(first, FAILED_FUSED, sink);
                judged.and(Err(Status::INVALID_FIELD.with_dnr()))
            }
            (_, Err(status)) => Err(status),
        }
    }

    /// Whether both are about the same blocks of the same namespace, as they must be.
    fn same_blocks(&self, first: u16, second: u16) -> bool {
        let blocks = |slot| {
            let req = self.slab.get(slot)?;
            let io = req.io.as_ref()?;
            Some((req.kind, io.lba, io.blocks))
        };
        let (first, second) = (blocks(first), blocks(second));
        first.is_some() && first == second
    }

    fn set_role(&mut self, slot: u16, role: Role) {
        if let Some(req) = self.slab.get_mut(slot) {
            req.role = role;
        }
    }

    /// A first that waits for its second does not get it.
    #[cold]
    pub(super) fn break_pair<S: Sink<Link = L>>(&mut self, sink: &mut S) {
        if let Pending::First(first) = std::mem::take(&mut self.fused) {
            self.doom(first, MISSING_FUSED, sink);
        }
    }

    /// One of a pair fails for the other's sake: at once if its data is here, else when it is.
    fn doom<S: Sink<Link = L>>(&mut self, slot: u16, status: Status, sink: &mut S) {
        let Some(req) = self.slab.get_mut(slot) else { return };
        if req.state == ReqState::Paired {
            req.role = Role::Alone;
            self.respond(slot, status, 0, 0, sink);
        } else {
            req.role = Role::Doomed(status);
        }
    }

    /// A command of a pair has all its data. Whether it is to be executed now, as both.
    #[cold]
    pub(super) fn may_execute<S: Sink<Link = L>>(&mut self, slot: u16, sink: &mut S) -> bool {
        let Some(req) = self.slab.get_mut(slot) else { return false };
        let (first, second) = match req.role {
            Role::Alone | Role::Joined(_) => return true,
            Role::Doomed(status) => {
                req.role = Role::Alone;
                self.respond(slot, status, 0, 0, sink);
                return false;
            }
            Role::First(second) => (slot, second),
            Role::Second(first) => (first, Some(slot)),
        };
        req.state = ReqState::Paired;
        let is_here = |slot: u16| self.slab.get(slot).is_some_and(|req| req.state == ReqState::Paired);
        let Some(second) = second.filter(|second| is_here(first) && is_here(*second)) else { return false };
        self.join(first, second);
        if slot == second {
            return true;
        }
        self.execute(second, sink);
        false
    }

    /// Makes one I/O of both, in the second's slot: the data to compare with, then the data to write.
    fn join(&mut self, first: u16, second: u16) {
        self.set_role(first, Role::Alone);
        let expected = self.slab.get_mut(first).and_then(|req| req.io.as_mut()?.data.pop_front());
        let Some(req) = self.slab.get_mut(second) else { return };
        req.role = Role::Joined(first);
        let Some(io) = req.io.as_mut() else { return };
        let new = io.data.pop_front();
        expected.into_iter().chain(new).for_each(|buf| io.data.push(buf));
        io.op = Op::CompareAndWrite;
    }

    /// A command of a pair is about to be answered with `status`: sees to the other. Returns its own status.
    #[cold]
    pub(super) fn part<S: Sink<Link = L>>(
        &mut self,
        slot: u16,
        role: Role,
        status: Status,
        sink: &mut S,
    ) -> Status {
        self.set_role(slot, Role::Alone);
        match role {
            Role::Joined(first) => {
                let (of_first, of_second) = statuses(status);
                self.respond(first, of_first, 0, 0, sink);
                return of_second;
            }
            Role::First(Some(other)) | Role::Second(other) => self.doom(other, FAILED_FUSED, sink),
            Role::First(None) if self.fused == Pending::First(slot) => self.fused = Pending::Failed,
            Role::First(None) | Role::Alone | Role::Doomed(_) => {}
        }
        status
    }

    /// Whether a command waits for the other one of its pair.
    pub(super) fn is_pairing(&self) -> bool {
        self.slab
            .slots_used()
            .any(|slot| self.slab.get(slot).is_some_and(|req| req.state == ReqState::Paired))
    }
}

/// What the two commands are told when both, as one I/O, have ended so.
fn statuses(status: Status) -> (Status, Status) {
    let of_the_write = [
        Status::WRITE_FAULT,
        Status::CAPACITY_EXCEEDED,
        Status::NAMESPACE_WRITE_PROTECTED,
        Status::RESERVATION_CONFLICT,
        Status::ABORTED_BY_REQUEST,
    ];
    if status.is_success() {
        (status, status)
    } else if of_the_write.iter().any(|other| other.is(status)) {
        (FAILED_FUSED, status)
    } else {
        (status, FAILED_FUSED)
    }
}
