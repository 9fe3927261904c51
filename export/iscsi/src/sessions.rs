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
    pub(crate) conn: u32,
    pub(crate) serial: u64,
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
    /// Takes a session in; returns its TSIH and, where it reinstates another, the place of that one.
    pub(crate) fn enter(&self, key: SessionKey, place: Place, addr: SocketAddr) -> (u16, Option<Place>) {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
        let old = table.by_key.insert(key, (place, info));
        (tsih, old.map(|(place, _)| place))
    }

    /// Whether a session of that name has that TSIH.
    pub(crate) fn has(&self, key: &SessionKey, tsih: u16) -> bool {
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.by_key.get(key).is_some_and(|(_, info)| info.tsih == tsih)
    }

    /// Whether there is room for a session of that name among `max`.
    pub(crate) fn has_room(&self, key: &SessionKey, max: u32) -> bool {
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.by_key.contains_key(key) || u32::try_from(table.by_key.len()).is_ok_and(|len| len < max)
    }

    /// Forgets a session, unless another has taken its place.
    pub(crate) fn leave(&self, key: &SessionKey, place: Place) {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if table.by_key.get(key).is_some_and(|(known, _)| *known == place) {
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
