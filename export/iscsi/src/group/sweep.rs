//! What connections want of others: aborts, ends, and to be told when nothing of those is under way any more.
//!
//! A wish to all reactors goes out as a message that is kept until the mailbox has room. Whoever waits is answered when
//! every command has come back from its bdev, and every connection has left its place.

use std::fmt;

use penstock_scsi::{LuId, Reply, lun_of};
use penstock_spec::iscsi::IscsiName;

use super::{Group, GroupCell};
use crate::conn::{ConnState, EndOf, Scope};
use crate::host::Address;

/// Who is to be told.
pub(crate) enum Origin {
    /// A function or a login.
    Reply(Address),
    /// The owner of a logical unit.
    Call(Box<dyn FnOnce()>),
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reply(address) => address.fmt(f),
            Self::Call(_) => f.write_str("Call"),
        }
    }
}

/// What is wanted of this reactor.
#[derive(Debug)]
pub(crate) enum Ask {
    /// Abort commands.
    Sweep(Scope, Origin),
    /// End connections.
    End(EndOf),
    /// End connections, and tell when they are gone.
    Replace(Vec<u32>, Origin),
    /// End a session, and tell when it is gone.
    EndSession(u16, Origin),
    /// Tell the session the commands of a connection.
    Track(u32),
}

/// What is wanted of another reactor.
#[derive(Debug, Clone)]
pub(crate) enum Msg {
    Sweep(Scope, Address),
    EndSession(u16, Address),
    EndTarget(Box<IscsiName>),
    Answer(Address),
}

/// What is not over yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// A command, by its place and age.
    Cmd { conn: u32, serial: u64, slot: u16, seq: u64 },
    /// A connection.
    Conn { conn: u32, serial: u64 },
}

/// Something that is waited for.
#[derive(Debug)]
pub(super) struct Sweep {
    waiting: Vec<Wait>,
    origin: Origin,
}

impl GroupCell {
    fn take(&self, msg: Msg) {
        let mut group = self.0.borrow_mut();
        let ask = match msg {
            Msg::Sweep(scope, to) => Ask::Sweep(scope, Origin::Reply(to)),
            Msg::EndSession(tsih, to) => Ask::EndSession(tsih, Origin::Reply(to)),
            Msg::EndTarget(name) => Ask::End(EndOf::Target(name)),
            Msg::Answer(to) => return group.answer(Origin::Reply(to)),
        };
        group.core.asks.push_back(ask);
    }
}

impl Group {
    /// Does what connections want of others.
    #[inline]
    pub(super) fn run_asks(&mut self) {
        let core = &self.core;
        if core.asks.is_empty() && core.nudges.is_empty() && core.outbox.is_empty() {
            return;
        }
        self.run_asks_now();
    }

    #[cold]
    fn run_asks_now(&mut self) {
        loop {
            if let Some(conn) = self.core.nudges.pop_front() {
                if let Some(entry) = self.entries.get_mut(conn as usize).and_then(Option::as_mut) {
                    entry.conn.go_on(&mut self.core);
                    self.touch(conn);
                }
                continue;
            }
            match self.core.asks.pop_front() {
                Some(ask) => self.run_ask(ask),
                None => break,
            }
        }
        self.send_outbox();
    }

    fn send_outbox(&mut self) {
        while let Some((reactor, msg)) = self.core.outbox.front().cloned() {
            let Some(handle) = self.core.common.peers.handle(reactor) else {
                self.core.outbox.pop_front();
                continue;
            };
            let sent = handle.send(move |cx| {
                if let Some(cell) = GroupCell::of(cx) {
                    cell.take(msg);
                }
            });
            match sent {
                // The next turn tries again.
                Err(penstock_reactor::ReactorError::MailboxFull { .. }) => return,
                Err(error) => tracing::warn!(%error, "a message to another reactor is lost"),
                Ok(()) => {}
            }
            self.core.outbox.pop_front();
        }
    }

    fn run_ask(&mut self, ask: Ask) {
        match ask {
            Ask::Sweep(scope, origin) => {
                let waiting = self.abort(&scope);
                self.wait_for(waiting, origin);
            }
            Ask::End(EndOf::Conn(conn)) => self.close(conn),
            Ask::End(EndOf::Others { tsih, but }) => {
                for conn in self.connections_of(tsih) {
                    if conn != but {
                        self.close(conn);
                    }
                }
            }
            Ask::End(EndOf::Target(name)) => self.drop_sessions(*name),
            Ask::Replace(conns, origin) => self.replace(&conns, origin),
            Ask::EndSession(tsih, origin) => {
                let conns = self.connections_of(tsih);
                self.replace(&conns, origin);
            }
            Ask::Track(conn) => {
                if let Some(entry) = self.entry_mut(conn) {
                    entry.conn.track_commands();
                }
            }
        }
    }

    /// The connections of a session, closed ones that have I/O under way included.
    fn connections_of(&self, tsih: u16) -> Vec<u32> {
        let all = (0..).zip(&self.entries);
        let ours = all.filter(|(_, entry)| {
            let session = entry.as_ref().and_then(|entry| entry.conn.session.as_ref());
            session.is_some_and(|session| session.tsih == tsih)
        });
        ours.map(|(index, _)| index).collect()
    }

    /// Closes connections whose place others take, once nothing of them is under way.
    fn replace(&mut self, conns: &[u32], origin: Origin) {
        let mut waiting = Vec::new();
        for conn in conns {
            let Some(entry) = self.entry_mut(*conn) else { continue };
            waiting.push(Wait::Conn { conn: *conn, serial: entry.serial });
            self.close(*conn);
        }
        self.wait_for(waiting, origin);
    }

    /// Ends all sessions of a target (TARGET COLD RESET).
    fn drop_sessions(&mut self, name: IscsiName) {
        for index in 0..u32::try_from(self.entries.len()).unwrap_or(0) {
            let Some(entry) = self.entry_mut(index).filter(|entry| !entry.gone) else { continue };
            if entry.conn.key.and_then(|key| key.target) != Some(name) {
                continue;
            }
            if entry.conn.state() == ConnState::Full {
                entry.conn.push_session_drop();
                entry.conn.end();
                self.touch(index);
            }
        }
    }

    /// Aborts commands; those that are not back yet.
    fn abort(&mut self, scope: &Scope) -> Vec<Wait> {
        let mut waiting = Vec::new();
        if let Scope::Task { conn, slot, seq } = scope {
            // It was aborted when the function came.
            if let Some(entry) = self.entries.get(*conn as usize).and_then(Option::as_ref)
                && entry.conn.is_aborting(*slot, *seq)
            {
                waiting.push(Wait::Cmd { conn: *conn, serial: entry.serial, slot: *slot, seq: *seq });
            }
            return waiting;
        }
        for index in 0..u32::try_from(self.entries.len()).unwrap_or(0) {
            self.abort_at(index, scope, &mut waiting);
        }
        waiting
    }

    fn abort_at(&mut self, index: u32, scope: &Scope, waiting: &mut Vec<Wait>) {
        let Some(entry) = self.entries.get_mut(index as usize).and_then(Option::as_mut) else { return };
        let Some(session) = entry.conn.session.clone() else { return };
        let Some(nexus) = session.nexus() else { return };
        let (wanted, before): (Vec<u16>, u64) = match scope {
            Scope::Task { .. } => return,
            Scope::TaskSet { tsih, lun, before } if *tsih == session.tsih => {
                (lun_of(*lun).into_iter().collect(), *before)
            }
            Scope::TaskSet { .. } => return,
            Scope::Units { lus, from, before, .. } => {
                let before = if nexus.id() == from { *before } else { u64::MAX };
                (luns_of(&nexus, lus), before)
            }
            Scope::Nexuses { lu, of } if of.contains(nexus.id()) => (luns_of(&nexus, &[*lu]), u64::MAX),
            Scope::Nexuses { .. } => return,
        };
        drop(nexus);
        let mut out = Vec::new();
        let count = entry.conn.abort_where(
            |cmd| cmd.seq < before && lun_of(cmd.lun).is_some_and(|lun| wanted.contains(&lun)),
            &mut out,
            &mut self.core,
        );
        let serial = entry.serial;
        waiting.extend(out.iter().map(|(slot, seq)| Wait::Cmd {
            conn: index,
            serial,
            slot: *slot,
            seq: *seq,
        }));
        if let Scope::Units { lus, from, cleared: true, .. } = scope
            && count > 0
            && let Some(mut nexus) = session.nexus().filter(|nexus| nexus.id() != from)
        {
            lus.iter().for_each(|lu| nexus.commands_cleared(*lu));
        }
        self.touch(index);
    }

    fn wait_for(&mut self, mut waiting: Vec<Wait>, origin: Origin) {
        waiting.retain(|wait| self.is_left(wait));
        if waiting.is_empty() {
            self.answer(origin);
        } else {
            self.sweeps.push(Sweep { waiting, origin });
        }
    }

    fn is_left(&self, wait: &Wait) -> bool {
        let (Wait::Cmd { conn, serial, .. } | Wait::Conn { conn, serial }) = wait;
        let entry = self.entries.get(*conn as usize).and_then(Option::as_ref);
        let Some(entry) = entry.filter(|entry| entry.serial == *serial) else { return false };
        match wait {
            Wait::Cmd { slot, seq, .. } => entry.conn.is_aborting(*slot, *seq),
            Wait::Conn { .. } => true,
        }
    }

    /// Tells those whose wait is over.
    #[cold]
    pub(super) fn look_at_sweeps(&mut self) {
        let mut at = 0;
        let mut sweeps = std::mem::take(&mut self.sweeps);
        while let Some(sweep) = sweeps.get_mut(at) {
            sweep.waiting.retain(|wait| self.is_left(wait));
            if sweep.waiting.is_empty() {
                let sweep = sweeps.swap_remove(at);
                self.answer(sweep.origin);
            } else {
                at += 1;
            }
        }
        sweeps.append(&mut self.sweeps);
        self.sweeps = sweeps;
    }

    fn answer(&mut self, origin: Origin) {
        match origin {
            Origin::Call(call) => call(),
            Origin::Reply(to) if to.reactor == self.core.index => {
                self.replied(to, &Reply::of(Ok(())));
            }
            Origin::Reply(to) => self.core.outbox.push_back((to.reactor, Msg::Answer(to))),
        }
    }
}

/// The LUNs by which a nexus sees logical units.
fn luns_of(nexus: &penstock_scsi::Nexus, lus: &[LuId]) -> Vec<u16> {
    nexus.luns().filter(|(_, view)| lus.contains(&view.config.id)).map(|(lun, _)| lun).collect()
}
