//! Authentication Send and Receive on the queues of this reactor.

use std::sync::Arc;

use penstock_reactor::Tick;
use penstock_security::chap::{Done, Event, Job, Keys, Parties, SecureChannel, Step};
use penstock_security::psk::{PskKind, TlsPsk};
use penstock_spec::nvme::{FabricsType, Sqe, Status};
use penstock_spec::nvmf::Nqn;
use penstock_spec::nvmf::auth::{AuthCmd, SECP_NVME};

use super::{Group, GroupCell};
use crate::auth::{Answer, QueueAuth, Worked, Worker};
use crate::config::SubsystemConfig;
use crate::qpair::Link;
use crate::tcp::req::ReqId;
use crate::tls::Psks;

impl GroupCell {
    /// Has slow work done by that thread from now on; without one it is done here.
    pub(crate) fn set_worker(&self, worker: &Arc<Worker>) {
        self.0.borrow_mut().worker = Some(Arc::clone(worker));
    }

    /// Goes on with commands whose job the worker has done.
    pub(crate) fn take_answers(&self) {
        self.0.borrow_mut().take_answers();
    }
}

impl Group {
    /// A queue is connected: it must authenticate itself if its host has secrets. Whether it must.
    pub(super) fn admit(&mut self, conn: u32, parties: Parties, kato_ms: u32, now: Tick) -> bool {
        let config = self.core.config_of(&parties.subsystem);
        let keyed = config.is_some_and(|config| chap_keys(config, &parties.host).is_some());
        let entry = self.entries.get(conn as usize).and_then(Option::as_ref);
        let kind = entry.and_then(|entry| entry.wire.psk()).map(|psk| psk.kind);
        // A generated key is itself the fruit of an authentication.
        let locked = keyed && kind != Some(PskKind::Generated);
        let admin = entry.is_some_and(|entry| matches!(entry.conn.link, Link::Admin { .. }));
        let channel = match kind {
            None if admin && self.tls.is_some() => SecureChannel::NEW_TLS_PSK,
            Some(PskKind::Generated) if admin => SecureChannel::REPLACE_TLS_PSK,
            _ => SecureChannel::NONE,
        };
        let auth = QueueAuth::new(parties, channel, locked, kato_ms, now);
        if let Some(entry) = self.entry_mut(conn) {
            entry.auth = Some(Box::new(auth));
        }
        if !locked {
            self.established(conn);
        }
        locked
    }

    /// Executes an Authentication Send or Receive.
    pub(super) fn authenticate(&mut self, id: ReqId, sqe: &Sqe, now: Tick) {
        let cmd = AuthCmd::from_sqe(sqe);
        let send = FabricsType(sqe.fctype()) == FabricsType::AUTHENTICATION_SEND;
        let Some(entry) = self.entries.get_mut(id.conn as usize).and_then(Option::as_mut) else { return };
        let Some(len) = entry.conn.req_mut(id.slot).map(|req| req.len) else { return };
        let valid = cmd.secp == SECP_NVME && cmd.spsp0 == 1 && cmd.spsp1 == 1 && cmd.len_bytes.get() == len;
        if !valid {
            return self.answer(id, Status::INVALID_FIELD.with_dnr(), 0);
        }
        let Some(auth) = entry.auth.as_mut() else {
            return self.answer(id, Status::COMMAND_SEQUENCE_ERROR.with_dnr(), 0);
        };
        let due = auth.begin(now);
        if auth.locked {
            entry.deadline = due;
        }
        let step = if send {
            let config = self.core.config_of(&auth.parties.subsystem);
            let keys = config.and_then(|config| chap_keys(config, &auth.parties.host));
            let message = entry.conn.req_mut(id.slot).and_then(|req| req.data(0, len)).unwrap_or_default();
            let policy = config.map(|config| config.auth_policy.clone()).unwrap_or_default();
            auth.side.send(message, &policy, keys)
        } else {
            auth.side.receive(len as usize)
        };
        self.auth_step(id, step);
    }

    /// Does what a step of the transaction asks for.
    fn auth_step(&mut self, id: ReqId, step: Step) {
        match step {
            Step::Taken => self.answer(id, Status::SUCCESS, 0),
            Step::Busy => self.answer(id, Status::COMMAND_SEQUENCE_ERROR.with_dnr(), 0),
            Step::Message(message) => self.answer_with(id, &message),
            Step::Work(job) => return self.auth_work(id, job),
        }
        self.auth_event(id.conn);
    }

    /// Has a job done: the slow ones by the worker.
    fn auth_work(&mut self, id: ReqId, job: Job) {
        let Some(entry) = self.entries.get_mut(id.conn as usize).and_then(Option::as_mut) else { return };
        let (conn, serial, slot) = (id.conn, entry.serial, id.slot);
        let Some(auth) = entry.auth.as_mut() else { return };
        auth.waiting = Some(slot);
        let Some(worker) = self.worker.as_ref().filter(|_| job.is_slow()) else {
            return self.auth_worked(conn, serial, slot, job.run());
        };
        let work = move |_: &mut Psks| Answer { conn, serial, what: Worked::Auth { slot, done: job.run() } };
        if !worker.submit(&self.answers, work) {
            tracing::warn!(host = %auth.parties.host, "too many hosts authenticate themselves: one is refused");
            self.close(conn);
        }
    }

    fn take_answers(&mut self) {
        while let Some(answer) = self.answers.next() {
            let Answer { conn, serial, what } = answer;
            match what {
                Worked::Auth { slot, done } => self.auth_worked(conn, serial, slot, done),
                Worked::Tls { session, progress } => self.tls_shaken(conn, serial, session, progress),
            }
        }
    }

    fn auth_worked(&mut self, conn: u32, serial: u64, slot: u16, done: Done) {
        let Some(entry) = self.entries.get_mut(conn as usize).and_then(Option::as_mut) else { return };
        let current = entry.serial == serial && !entry.gone;
        let Some(auth) = entry.auth.as_mut().filter(|auth| current && auth.waiting == Some(slot)) else {
            return;
        };
        auth.waiting = None;
        let len = entry.conn.req_mut(slot).map_or(0, |req| req.len);
        let step = auth.side.worked(done, len as usize);
        self.auth_step(ReqId { conn, slot }, step);
    }

    /// The queue is proven, or is to be closed.
    fn auth_event(&mut self, conn: u32) {
        let Some(entry) = self.entries.get_mut(conn as usize).and_then(Option::as_mut) else { return };
        let Some(auth) = entry.auth.as_mut() else { return };
        let Some(event) = auth.side.take_event() else { return };
        let (host, subsystem) = (auth.parties.host, auth.parties.subsystem);
        match event {
            Event::Authenticated { hash, generated } => {
                let replaces = entry.wire.psk().map(|psk| psk.identity.clone());
                if let (Some((key, _)), Some(worker)) = (generated, &self.worker)
                    && let Some(psk) = TlsPsk::generated(&key, hash, &host, &subsystem)
                {
                    // Queued before the host can come with it. A full queue: it is refused, and tries again.
                    worker.change_psks(move |psks| psks.generated(psk, replaces.as_deref()));
                }
                let group = auth.side.terms().group;
                tracing::debug!(%host, %subsystem, hash = hash.name(), dhgroup = group.name(), "authenticated");
                if std::mem::take(&mut auth.locked) {
                    if let Link::Io(queue) = &mut entry.conn.link {
                        queue.locked = false;
                    }
                    self.established(conn);
                }
            }
            Event::Failed { reason, by_host } => {
                self.core.stats.auth_failures += 1;
                let who =
                    if by_host { "the host does not believe the controller" } else { "the host is refused" };
                tracing::warn!(%host, %subsystem, %reason, "authentication failed: {who}");
                if let Some(entry) = self.entry_mut(conn) {
                    entry.ending = true;
                }
                self.touch(conn);
            }
        }
    }

    /// Answers a command with data for the host; what is left of its buffer is zero.
    fn answer_with(&mut self, id: ReqId, data: &[u8]) {
        let Some(entry) = self.entries.get_mut(id.conn as usize).and_then(Option::as_mut) else { return };
        let Some(req) = entry.conn.req_mut(id.slot) else { return };
        let len = req.len;
        let Some((to, rest)) = req.data_mut(0, len).and_then(|to| to.split_at_mut_checked(data.len())) else {
            return self.answer(id, Status::DATA_SGL_LENGTH_INVALID.with_dnr(), 0);
        };
        to.copy_from_slice(data);
        rest.fill(0);
        entry.conn.respond(id.slot, Status::SUCCESS, 0, len, &mut self.core);
        self.touch(id.conn);
    }
}

fn chap_keys<'a>(config: &'a SubsystemConfig, host: &Nqn) -> Option<&'a Keys> {
    config.keys_of(host)?.chap.as_ref()
}
