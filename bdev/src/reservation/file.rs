//! One bdev's reservations in a file of their own (`ptpl_file` of `nvmf_subsystem_add_ns`).
//!
//! JSON in SPDK's shape, so that a node that ran SPDK keeps its reservations: `ptpl`, `rtype`, `crkey`, `bdev_uuid`,
//! `holder_uuid`, `registrants` of `rkey` and `host_uuid`. Registrants that came by SCSI have `transport_id` (hexadecimal
//! digits) and `port` instead. The file is replaced as a whole, durably, before a host is answered.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    HostId, PersistedReservations, REGISTRANTS_MAX, RegistrantId, ReservationStore, ReservationType,
};

/// A file longer than any that is written.
const FILE_LEN_MAX: u64 = 1 << 20;

#[derive(Debug, Serialize, Deserialize)]
struct Contents {
    #[serde(default)]
    ptpl: bool,
    /// 1 to 6: place in [`ReservationType::ALL`] plus one; 0: no reservation.
    #[serde(default)]
    rtype: usize,
    #[serde(default)]
    crkey: u64,
    bdev_uuid: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    holder_uuid: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    holder_transport_id: Option<String>,
    #[serde(default)]
    holder_port: u16,
    #[serde(default)]
    registrants: Vec<Registrant>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Registrant {
    rkey: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    host_uuid: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    transport_id: Option<String>,
    #[serde(default)]
    port: u16,
}

/// See the module.
#[derive(Debug)]
pub struct PtplFile {
    path: PathBuf,
}

impl PtplFile {
    /// The file at `path`, which need not be there.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn bad(&self, what: &str) -> io::Error {
        let path = self.path.display();
        io::Error::other(format!("reservations file {path}: {what}; remove it to begin without reservations"))
    }

    /// Another file, made durable, takes the place of this one.
    fn replace(&self, bytes: &[u8]) -> io::Result<()> {
        let mut name = self.path.clone().into_os_string();
        name.push(".new");
        let fresh = PathBuf::from(name);
        let mut file = File::create(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&fresh, &self.path)?;
        let dir = self.path.parent().filter(|dir| !dir.as_os_str().is_empty());
        File::open(dir.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl ReservationStore for PtplFile {
    fn save(&mut self, bdev: Uuid, state: Option<&PersistedReservations>) -> io::Result<()> {
        let none = PersistedReservations::default();
        let kept = state.unwrap_or(&none);
        let registrants: Vec<Registrant> = kept
            .registrants
            .iter()
            .map(|(id, key)| {
                let (host_uuid, transport_id) = names(&id.host);
                Registrant { rkey: *key, host_uuid, transport_id, port: id.port }
            })
            .collect();
        let mut contents = Contents {
            ptpl: state.is_some(),
            rtype: 0,
            crkey: 0,
            bdev_uuid: bdev.to_string(),
            holder_uuid: None,
            holder_transport_id: None,
            holder_port: 0,
            registrants,
        };
        if let Some((holder, kind)) = &kept.holder {
            let place = ReservationType::ALL.iter().position(|known| known == kind);
            contents.rtype = place.map_or(0, |place| place + 1);
            contents.crkey = kept.registrants.iter().find(|(id, _)| id == holder).map_or(0, |(_, key)| *key);
            (contents.holder_uuid, contents.holder_transport_id) = names(&holder.host);
            contents.holder_port = holder.port;
        }
        let mut bytes = serde_json::to_vec_pretty(&contents)?;
        bytes.push(b'\n');
        self.replace(&bytes)
    }

    fn load(&mut self, bdev: Uuid) -> io::Result<Option<PersistedReservations>> {
        let len = match fs::metadata(&self.path) {
            Ok(meta) => meta.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if len == 0 {
            return Ok(None);
        }
        if len > FILE_LEN_MAX {
            return Err(self.bad("it is too long to be one"));
        }
        let contents: Contents =
            serde_json::from_slice(&fs::read(&self.path)?).map_err(|error| self.bad(&error.to_string()))?;
        if Uuid::parse_str(&contents.bdev_uuid).ok() != Some(bdev) {
            return Err(self.bad(&format!("it is of bdev {}, not of {bdev}", contents.bdev_uuid)));
        }
        if !contents.ptpl || contents.registrants.is_empty() {
            return Ok(None);
        }
        if contents.registrants.len() > REGISTRANTS_MAX {
            return Err(self.bad("it has too many registrants"));
        }
        let id = |uuid: Option<&String>, transport: Option<&String>, port| {
            host(uuid, transport).map(|host| RegistrantId { host, port }).ok_or_else(|| self.bad("bad host"))
        };
        let registrants = contents
            .registrants
            .iter()
            .map(|one| Ok((id(one.host_uuid.as_ref(), one.transport_id.as_ref(), one.port)?, one.rkey)));
        let registrants = registrants.collect::<io::Result<Vec<_>>>()?;
        let kind = contents.rtype.checked_sub(1).and_then(|place| ReservationType::ALL.get(place));
        let holder = match kind {
            // SPDK names no holder where all registrants hold it.
            Some(kind) if contents.holder_uuid.is_none() && contents.holder_transport_id.is_none() => {
                registrants.first().map(|(first, _)| (first.clone(), *kind))
            }
            Some(kind) => {
                let (uuid, transport) =
                    (contents.holder_uuid.as_ref(), contents.holder_transport_id.as_ref());
                Some((id(uuid, transport, contents.holder_port)?, *kind))
            }
            None => None,
        };
        Ok(Some(PersistedReservations { registrants, holder }))
    }
}

/// `host_uuid` and `transport_id` of a host: one of them.
fn names(host: &HostId) -> (Option<String>, Option<String>) {
    match host {
        HostId::Nvme(id) => (Some(Uuid::from_bytes(*id).to_string()), None),
        HostId::Scsi(id) => {
            let text = id.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
            (None, Some(text))
        }
    }
}

fn host(uuid: Option<&String>, transport: Option<&String>) -> Option<HostId> {
    match (uuid, transport) {
        (Some(uuid), None) => Some(HostId::Nvme(*Uuid::parse_str(uuid).ok()?.as_bytes())),
        (None, Some(digits)) => {
            let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
            let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
            let bytes: Option<Vec<u8>> = pairs.iter().map(byte).collect();
            Some(HostId::Scsi(Arc::from(bytes.filter(|_| rest.is_empty())?)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> PtplFile {
        let name = format!("penstock-ptpl-{}-{}", std::process::id(), Uuid::new_v4());
        PtplFile::new(&std::env::temp_dir().join(name))
    }

    #[test]
    fn what_was_saved_comes_back_whichever_protocol_the_hosts_speak() {
        let mut file = file();
        let bdev = Uuid::from_u128(5);
        assert_eq!(file.load(bdev).unwrap(), None);
        let nvme = RegistrantId { host: HostId::Nvme([7; 16]), port: 0 };
        let scsi = RegistrantId { host: HostId::Scsi(Arc::from(&b"\x45\0name"[..])), port: 3 };
        for holder in [&nvme, &scsi] {
            for kind in ReservationType::ALL {
                let state = PersistedReservations {
                    registrants: vec![(nvme.clone(), u64::MAX), (scsi.clone(), 1)],
                    holder: Some((holder.clone(), kind)),
                };
                file.save(bdev, Some(&state)).unwrap();
                assert_eq!(file.load(bdev).unwrap(), Some(state));
            }
        }
        assert!(file.load(Uuid::from_u128(6)).is_err(), "another bdev's");
        file.save(bdev, None).unwrap();
        assert_eq!(file.load(bdev).unwrap(), None);
        fs::write(&file.path, "{").unwrap();
        assert!(file.load(bdev).is_err());
        fs::remove_file(&file.path).unwrap();
    }

    #[test]
    fn a_file_of_spdk_is_understood() {
        let mut file = file();
        let bdev = Uuid::from_u128(5);
        let text = format!(
            r#"{{"ptpl":true,"rtype":3,"crkey":9,"bdev_uuid":"{bdev}","holder_uuid":"{host}",
                "registrants":[{{"rkey":9,"host_uuid":"{host}"}}]}}"#,
            host = Uuid::from_bytes([7; 16]),
        );
        fs::write(&file.path, text).unwrap();
        let host = RegistrantId { host: HostId::Nvme([7; 16]), port: 0 };
        let state = file.load(bdev).unwrap().unwrap();
        assert_eq!(state.holder, Some((host.clone(), ReservationType::WriteExclusiveRegistrantsOnly)));
        assert_eq!(state.registrants, [(host, 9)]);
        fs::remove_file(&file.path).unwrap();
    }
}
