//! The sessions of a process, by name: what a login has to know of other reactors. Control path only.
#![expect(
    clippy::disallowed_types,
    reason = "logins and their ends on different reactors meet here; never per command"
)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use penstock_spec::iscsi::{IscsiName, Isid};

/// A session's name: initiator port and target port (RFC 7143, 4.4.1). Discovery sessions have no target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SessionKey {
    pub(crate) initiator: IscsiName,
    pub(crate) isid: Isid,
    pub(crate) target: Option<IscsiName>,
    pub(crate) tpgt: u16,
}

/// Where a session lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) reactor: usize,
    pub(crate) tsih: u16,
}

/// A session, for those who ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionInfo {
    /// InitiatorName.
    pub initiator: IscsiName,
    /// TargetName; `None`: a discovery session.
    pub target: Option<IscsiName>,
    /// TargetPortalGroupTag.
    pub tpgt: u16,
    /// TSIH.
    pub tsih: u16,
    /// The initiator's address.
    pub addr: SocketAddr,
}

#[derive(Debug, Default)]
struct Table {
    by_key: BTreeMap<SessionKey, (Place, SessionInfo)>,
    last_tsih: u16,
}

/// All sessions of a process.
#[derive(Debug, Default)]
pub struct Sessions(Mutex<Table>);

impl Sessions {
    /// Takes a session in; returns its TSIH.
    ///
    /// # Errors
    /// The place of the session of that name, which must end first.
    pub(crate) fn enter(&self, key: SessionKey, reactor: usize, addr: SocketAddr) -> Result<u16, Place> {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((old, _)) = table.by_key.get(&key) {
            return Err(*old);
        }
        let mut tsih = table.last_tsih;
        // There are fewer sessions than numbers: the limits on connections see to that.
        loop {
            tsih = tsih.checked_add(1).unwrap_or(1);
            if tsih == table.last_tsih || !table.by_key.values().any(|(_, info)| info.tsih == tsih) {
                break;
            }
        }
        table.last_tsih = tsih;
        let info = SessionInfo { initiator: key.initiator, target: key.target, tpgt: key.tpgt, tsih, addr };
        table.by_key.insert(key, (Place { reactor, tsih }, info));
        Ok(tsih)
    }

    /// Whether a session of that name has that TSIH.
    pub(crate) fn has(&self, key: &SessionKey, tsih: u16) -> bool {
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.by_key.get(key).is_some_and(|(_, info)| info.tsih == tsih)
    }

    /// The reactor of the session with that TSIH.
    pub(crate) fn reactor_of(&self, tsih: u16) -> Option<usize> {
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.by_key.values().find(|(place, _)| place.tsih == tsih).map(|(place, _)| place.reactor)
    }

    /// Whether there is room for a session of that name among `max`.
    pub(crate) fn has_room(&self, key: &SessionKey, max: u32) -> bool {
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.by_key.contains_key(key) || u32::try_from(table.by_key.len()).is_ok_and(|len| len < max)
    }

    /// Forgets a session.
    pub(crate) fn leave(&self, key: &SessionKey, tsih: u16) {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if table.by_key.get(key).is_some_and(|(known, _)| known.tsih == tsih) {
            table.by_key.remove(key);
        }
    }

    /// All sessions.
    #[must_use]
    pub fn list(&self) -> Vec<SessionInfo> {
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.by_key.values().map(|(_, info)| info.clone()).collect()
    }
}
