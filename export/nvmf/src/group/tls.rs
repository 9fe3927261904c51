//! Connections with TLS: which have it, their handshakes, and what their keys say of their hosts.

use std::collections::BTreeSet;
use std::sync::Arc;

use penstock_security::tls::{Context, Progress, Session, TlsError, begins_tls};
use penstock_spec::nvme::Status;
use rustix::net::RecvFlags;

use super::{Entry, Group, GroupCell};
use crate::auth::{Answer, Worked};
use crate::config::{SubsystemConfig, SubsystemKind};
use crate::qpair::{Connect, Refusal};
use crate::tcp::conn::ConnState;
use crate::tls::Psks;

/// What reactors know of TLS.
#[derive(Debug)]
pub(crate) struct TlsSettings {
    pub(crate) context: Arc<Context>,
    /// Portals where nothing is talked without TLS; at the others a host may begin with it.
    pub(crate) secure: BTreeSet<u16>,
}

impl GroupCell {
    /// Takes over what there is to be known of TLS.
    pub(crate) fn set_tls(&self, settings: &Arc<TlsSettings>) {
        self.0.borrow_mut().tls = Some(Arc::clone(settings));
    }
}

impl Group {
    /// Whether TLS comes first on a connection that something was sent on; begins it then. `None`: the connection is to be
    /// closed.
    pub(super) fn tls_first(&mut self, index: u32) -> Option<bool> {
        let Some(settings) = self.tls.as_ref() else { return Some(false) };
        let entry = self.entries.get_mut(index as usize).and_then(Option::as_mut)?;
        if entry.conn.state() != ConnState::New || entry.wire.is_secure() {
            return Some(false);
        }
        if !settings.secure.contains(&entry.portid) {
            let mut first = [0];
            let peeked =
                rustix::net::recv(entry.wire.sock(), &mut first, RecvFlags::PEEK | RecvFlags::DONTWAIT);
            if !matches!(peeked, Ok((_, 1))) || !begins_tls(first[0]) {
                return Some(false);
            }
        }
        match Session::server(&settings.context) {
            Ok(session) => entry.wire.secure(session),
            Err(error) => {
                tracing::warn!(%error, "a connection cannot be secured");
                return None;
            }
        }
        Some(true)
    }

    /// Receives bytes of a handshake and has the worker go on with it.
    pub(super) fn tls_shake(&mut self, index: u32) -> usize {
        let Some(entry) = self.entries.get_mut(index as usize).and_then(Option::as_mut) else { return 0 };
        let serial = entry.serial;
        let Ok(came) = entry.wire.shake(&mut self.sockets) else {
            self.close(index);
            return 1;
        };
        let Some(mut session) = came else { return 0 };
        let work = move |psks: &mut Psks| {
            let progress = session.handshake(psks);
            Answer { conn: index, serial, what: Worked::Tls { session, progress } }
        };
        if !self.worker.as_ref().is_some_and(|worker| worker.submit(&self.answers, work)) {
            self.close(index);
        }
        1
    }

    /// The worker has gone on with a handshake.
    pub(super) fn tls_shaken(
        &mut self,
        index: u32,
        serial: u64,
        session: Box<Session>,
        progress: Result<Progress, TlsError>,
    ) {
        let Some(entry) = self.entries.get_mut(index as usize).and_then(Option::as_mut) else { return };
        if entry.serial != serial || entry.gone {
            return;
        }
        let sent = entry.wire.shaken(&mut self.sockets, session);
        match (sent, progress) {
            (Ok(()), Ok(Progress::Blocked)) => {}
            (Ok(()), Ok(Progress::Done)) => {
                entry.moved = self.core.now;
                self.touch(index);
                // What came behind the handshake is in the ring already: no event would tell of it.
                self.read(index);
            }
            (sent, progress) => {
                if let (Ok(()), Err(error)) = (sent, progress) {
                    self.core.stats.auth_failures += 1;
                    tracing::warn!(peer = ?entry.wire.sock().peer_addr(), %error, "a host without a valid key is refused");
                }
                self.close(index);
            }
        }
    }
}

/// Whether a host may connect over this connection: with the key that it has, or without where it has none.
///
/// # Errors
/// How the Connect is refused.
pub(super) fn check_channel(
    entry: &Entry,
    config: &SubsystemConfig,
    wanted: &Connect,
) -> Result<(), Refusal> {
    let refused = || Status::CONNECT_INVALID_HOST.with_dnr().into();
    let Some(psk) = entry.wire.psk() else {
        let must = config.keys_of(&wanted.hostnqn).is_some_and(|keys| keys.psk.is_some());
        return if must { Err(refused()) } else { Ok(()) };
    };
    let subsystem = (config.kind == SubsystemKind::Nvm).then_some(&wanted.subnqn);
    if psk.is_for(&wanted.hostnqn, subsystem) { Ok(()) } else { Err(refused()) }
}
