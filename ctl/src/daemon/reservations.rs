//! Reservations that outlive the daemon: one file beside the state file, replaced as a whole and durable before a host
//! is answered.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use penstock_bdev::reservation::{
    HostId, PersistedReservations, RegistrantId, ReservationStore, ReservationType,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::daemon::{config, state};
use crate::rpc::error::chain;

/// The format that this daemon writes.
const FORMAT: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    penstock_reservations: u32,
    /// By the UUID of the bdev.
    bdevs: BTreeMap<String, Saved>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    registrants: Vec<SavedRegistrant>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    holder: Option<SavedHolder>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedRegistrant {
    host: String,
    port: u16,
    key: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedHolder {
    host: String,
    port: u16,
    /// Its place in [`ReservationType::ALL`].
    kind: usize,
}

/// The file of the reservations.
#[derive(Debug)]
pub struct ReservationFile {
    path: PathBuf,
}

impl ReservationFile {
    /// The one that belongs to a state file.
    #[must_use]
    pub fn beside(state: &Path) -> Self {
        let mut name = state.as_os_str().to_owned();
        name.push(".reservations");
        Self { path: PathBuf::from(name) }
    }

    fn read(&self) -> io::Result<BTreeMap<String, Saved>> {
        if !self.path.try_exists()? {
            return Ok(BTreeMap::new());
        }
        let text = config::read_text(&self.path).map_err(|error| io::Error::other(chain(&error)))?;
        let contents: Contents = serde_json::from_str(&text)?;
        if contents.penstock_reservations > FORMAT {
            let format = contents.penstock_reservations;
            let path = self.path.display();
            return Err(io::Error::other(format!("{path} is of format {format}; use a newer daemon")));
        }
        Ok(contents.bdevs)
    }
}

impl ReservationStore for ReservationFile {
    fn save(&mut self, bdev: Uuid, saved: Option<&PersistedReservations>) -> io::Result<()> {
        let mut bdevs = self.read()?;
        match saved {
            Some(saved) => drop(bdevs.insert(bdev.to_string(), Saved::from(saved))),
            None => drop(bdevs.remove(&bdev.to_string())),
        }
        let mut bytes = serde_json::to_vec_pretty(&Contents { penstock_reservations: FORMAT, bdevs })?;
        bytes.push(b'\n');
        state::replace(&self.path, &bytes).map_err(|error| {
            let error = chain(&error);
            tracing::error!(%bdev, error, "reservations were not saved");
            io::Error::other(error)
        })
    }

    fn load(&mut self, bdev: Uuid) -> io::Result<Option<PersistedReservations>> {
        self.read()?.remove(&bdev.to_string()).map(PersistedReservations::try_from).transpose()
    }
}

impl From<&PersistedReservations> for Saved {
    fn from(state: &PersistedReservations) -> Self {
        let registrant = |(id, key): &(RegistrantId, u64)| SavedRegistrant {
            host: host_text(&id.host),
            port: id.port,
            key: *key,
        };
        let holder = |(id, kind): &(RegistrantId, ReservationType)| {
            let kind = ReservationType::ALL.iter().position(|known| known == kind)?;
            Some(SavedHolder { host: host_text(&id.host), port: id.port, kind })
        };
        Self {
            registrants: state.registrants.iter().map(registrant).collect(),
            holder: state.holder.as_ref().and_then(holder),
        }
    }
}

impl TryFrom<Saved> for PersistedReservations {
    type Error = io::Error;

    fn try_from(saved: Saved) -> io::Result<Self> {
        let bad = |what: &str| io::Error::other(format!("the file of the reservations has a bad {what}"));
        let id = |host: &str, port| {
            host_of(host).map(|host| RegistrantId { host, port }).ok_or_else(|| bad("host"))
        };
        let registrants = saved.registrants.iter().map(|one| Ok((id(&one.host, one.port)?, one.key)));
        let holder = saved.holder.map(|holder| {
            let kind = ReservationType::ALL.get(holder.kind).ok_or_else(|| bad("type"))?;
            io::Result::Ok((id(&holder.host, holder.port)?, *kind))
        });
        Ok(Self { registrants: registrants.collect::<io::Result<_>>()?, holder: holder.transpose()? })
    }
}

/// `nvme:` or `scsi:` and the identifier in hexadecimal digits.
fn host_text(host: &HostId) -> String {
    let (kind, bytes): (&str, &[u8]) = match host {
        HostId::Nvme(id) => ("nvme", id),
        HostId::Scsi(id) => ("scsi", id),
    };
    bytes.iter().fold(format!("{kind}:"), |text, byte| format!("{text}{byte:02x}"))
}

fn host_of(text: &str) -> Option<HostId> {
    let (kind, digits) = text.split_once(':')?;
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Vec<u8> = pairs.iter().map(byte).collect::<Option<_>>().filter(|_| rest.is_empty())?;
    match kind {
        "nvme" => Some(HostId::Nvme(bytes.try_into().ok()?)),
        "scsi" => Some(HostId::Scsi(Arc::from(bytes))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservations_come_back_as_they_were_and_are_forgotten_when_asked() {
        let state = std::env::temp_dir().join(format!("penstock-reservations-{}", std::process::id()));
        let mut file = ReservationFile::beside(&state);
        drop(std::fs::remove_file(&file.path));
        let bdev = Uuid::from_u128(5);
        assert_eq!(file.load(bdev).unwrap(), None);
        let scsi = RegistrantId { host: HostId::Scsi(Arc::from(&b"\x45\0name"[..])), port: 3 };
        let nvme = RegistrantId { host: HostId::Nvme([7; 16]), port: 0 };
        let saved = PersistedReservations {
            registrants: vec![(scsi.clone(), u64::MAX), (nvme, 1)],
            holder: Some((scsi, ReservationType::ExclusiveAccess)),
        };
        file.save(bdev, Some(&saved)).unwrap();
        assert_eq!(file.load(bdev).unwrap(), Some(saved));
        assert_eq!(file.load(Uuid::from_u128(6)).unwrap(), None);
        file.save(bdev, None).unwrap();
        assert_eq!(file.load(bdev).unwrap(), None);
        std::fs::write(&file.path, "{").unwrap();
        assert!(file.load(bdev).is_err());
        std::fs::remove_file(&file.path).unwrap();
    }
}
