//! What a pool has been told to keep: its name, containers, vdisks and snapshots. Notes of lane 0, each a JSON object.
//!
//! A change is one group of notes, durable before anybody acts on it. What takes several lanes (making a vdisk of many shards,
//! a snapshot) is announced by a state other than `ready`, and finished or undone at the next opening.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::FabricError;
use crate::format::checkpoint::NOTE_BYTES_MAX;
use crate::id::ShardId;

/// Numbers of objects stay below this; the byte above says what kind of object a note is of.
const NUMBER_BITS: u32 = 48;

/// A note's number and its text; `None`: it goes.
pub type NoteText = (u64, Option<Vec<u8>>);

/// The pool itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolNote {
    /// Its name.
    pub name: String,
    /// The number that the next object gets; never goes back.
    pub next: u64,
}

/// A policy that vdisks are made in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerNote {
    /// Its name.
    pub name: String,
    /// Bytes that its vdisks may map at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// Bytes that are kept for it.
    #[serde(default)]
    pub reserve: u64,
    /// How data of its vdisks are compressed; `None`: they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<CompressionNote>,
}

/// How data are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompressionNote {
    /// The codec.
    pub codec: CodecNote,
    /// Seconds that data lie as they are before; `None`: they are compressed when they are written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_s: Option<u64>,
}

/// A codec by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CodecNote {
    /// LZ4's block format.
    Lz4,
    /// Zstandard.
    Zstd,
}

impl CodecNote {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

/// What is being done to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Nothing.
    #[default]
    Ready,
    /// It is being made: undone at the next opening.
    Creating,
    /// It is being deleted: finished at the next opening.
    Deleting,
    /// It is being made what its snapshot of that number is: finished at the next opening.
    Reverting(u64),
}

/// A vdisk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VdiskNote {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub uuid: Uuid,
    /// Its length in bytes.
    pub bytes: u64,
    /// Bytes of a block.
    pub block: u32,
    /// The container.
    pub container: u64,
    /// The lane of each shard.
    pub lanes: Vec<u16>,
    /// The vdisk and the snapshot that it was made of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<(u64, u64)>,
    /// What is being done to it.
    #[serde(default)]
    pub phase: Phase,
}

impl VdiskNote {
    /// Its shards with their lanes, of vdisk number `number`.
    pub fn shards(&self, number: u64) -> impl Iterator<Item = (u16, ShardId)> {
        (0..).zip(&self.lanes).filter_map(move |(index, lane)| Some((*lane, ShardId::new(number, index)?)))
    }
}

/// A snapshot of one vdisk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotNote {
    /// Its name, among the vdisk's.
    pub name: String,
    /// The vdisk.
    pub vdisk: u64,
    /// Its number in the lanes; snapshots of one group have the same.
    pub number: u64,
    /// Its identity.
    pub uuid: Uuid,
    /// The vdisk's length at that time.
    pub bytes: u64,
    /// Seconds since 1970.
    #[serde(default)]
    pub created: u64,
    /// It is shown as a bdev.
    #[serde(default)]
    pub shown: bool,
    /// What is being done to it.
    #[serde(default)]
    pub phase: Phase,
}

/// A change of the catalog.
#[derive(Debug, Clone)]
pub enum Change {
    /// The pool.
    Pool(PoolNote),
    /// A container; `None`: it goes.
    Container(u64, Option<ContainerNote>),
    /// A vdisk; `None`: it goes.
    Vdisk(u64, Option<VdiskNote>),
    /// A snapshot; `None`: it goes.
    Snapshot(u64, Option<SnapshotNote>),
}

/// All of it.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    /// The pool; `None` before its first note.
    pub pool: Option<PoolNote>,
    /// Containers by number.
    pub containers: BTreeMap<u64, ContainerNote>,
    /// vdisks by number.
    pub vdisks: BTreeMap<u64, VdiskNote>,
    /// Snapshots by number.
    pub snapshots: BTreeMap<u64, SnapshotNote>,
}

impl Catalog {
    /// What notes say.
    ///
    /// # Errors
    /// [`FabricError::Note`].
    pub fn read(pool: Uuid, notes: &BTreeMap<u64, Vec<u8>>) -> Result<Self, FabricError> {
        let mut catalog = Self::default();
        for (id, text) in notes {
            let (kind, number) = (id >> NUMBER_BITS, id & ((1 << NUMBER_BITS) - 1));
            let wrong = |problem: String| FabricError::Note { pool, id: *id, problem };
            match kind {
                0 => catalog.pool = Some(parse(text).map_err(wrong)?),
                1 => drop(catalog.containers.insert(number, parse(text).map_err(wrong)?)),
                2 => drop(catalog.vdisks.insert(number, parse(text).map_err(wrong)?)),
                3 => drop(catalog.snapshots.insert(number, parse(text).map_err(wrong)?)),
                _ => return Err(wrong(format!("its kind is {kind}; run a newer program"))),
            }
        }
        Ok(catalog)
    }

    /// The notes that make a change.
    ///
    /// # Errors
    /// [`FabricError::Invalid`] for one that is too long.
    pub fn to_notes(changes: &[Change]) -> Result<Vec<NoteText>, FabricError> {
        changes.iter().map(Change::to_note).collect()
    }

    /// Makes changes that are durable.
    pub fn apply(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Pool(note) => self.pool = Some(note),
                Change::Container(number, note) => put(&mut self.containers, number, note),
                Change::Vdisk(number, note) => put(&mut self.vdisks, number, note),
                Change::Snapshot(number, note) => put(&mut self.snapshots, number, note),
            }
        }
    }

    /// The vdisk of that name or UUID.
    #[must_use]
    pub fn vdisk(&self, name: &str) -> Option<(u64, &VdiskNote)> {
        let is_it = |note: &VdiskNote| note.name == name || note.uuid.to_string() == name;
        self.vdisks.iter().find(|(_, note)| is_it(note)).map(|(number, note)| (*number, note))
    }

    /// A vdisk's snapshot of that name or UUID.
    #[must_use]
    pub fn snapshot(&self, vdisk: u64, name: &str) -> Option<(u64, &SnapshotNote)> {
        let is_it =
            |note: &SnapshotNote| note.vdisk == vdisk && (note.name == name || note.uuid.to_string() == name);
        self.snapshots.iter().find(|(_, note)| is_it(note)).map(|(number, note)| (*number, note))
    }

    /// The container of that name.
    #[must_use]
    pub fn container(&self, name: &str) -> Option<(u64, &ContainerNote)> {
        self.containers.iter().find(|(_, note)| note.name == name).map(|(number, note)| (*number, note))
    }

    /// The next `count` numbers, and the change that says that they are taken.
    #[must_use]
    pub fn numbers(&self, count: u64) -> (u64, Change) {
        let mut pool = self.pool.clone().unwrap_or_else(|| PoolNote { name: String::new(), next: 1 });
        let first = pool.next;
        pool.next += count;
        (first, Change::Pool(pool))
    }
}

impl Change {
    fn to_note(&self) -> Result<NoteText, FabricError> {
        let (kind, number, text) = match self {
            Self::Pool(note) => (0, 0, Some(write(&note.name, note)?)),
            Self::Container(number, note) => {
                (1, *number, note.as_ref().map(|note| write(&note.name, note)).transpose()?)
            }
            Self::Vdisk(number, note) => {
                (2, *number, note.as_ref().map(|note| write(&note.name, note)).transpose()?)
            }
            Self::Snapshot(number, note) => {
                (3, *number, note.as_ref().map(|note| write(&note.name, note)).transpose()?)
            }
        };
        Ok((kind << NUMBER_BITS | number, text))
    }
}

fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, String> {
    serde_json::from_slice(text).map_err(|error| error.to_string())
}

fn write(name: &str, note: &impl Serialize) -> Result<Vec<u8>, FabricError> {
    let invalid = |problem: String| FabricError::Invalid { what: "object", name: name.to_owned(), problem };
    let text = serde_json::to_vec(note).map_err(|error| invalid(error.to_string()))?;
    if text.len() > NOTE_BYTES_MAX {
        return Err(invalid(format!("its description has {} bytes; at most {NOTE_BYTES_MAX}", text.len())));
    }
    Ok(text)
}

fn put<T>(map: &mut BTreeMap<u64, T>, number: u64, note: Option<T>) {
    match note {
        Some(note) => drop(map.insert(number, note)),
        None => drop(map.remove(&number)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_catalog_is_the_same_again_from_its_notes() {
        let vdisk = VdiskNote {
            name: "vd0".into(),
            uuid: Uuid::from_u128(7),
            bytes: 1 << 63,
            block: 512,
            container: 1,
            lanes: (0..=255).collect(),
            origin: Some((3, 4)),
            phase: Phase::Reverting(9),
        };
        let compression = Some(CompressionNote { codec: CodecNote::Zstd, delay_s: Some(60) });
        let container = ContainerNote { name: "c".into(), limit: Some(5), reserve: 1, compression };
        let changes = vec![
            Change::Pool(PoolNote { name: "p".into(), next: 12 }),
            Change::Container(1, Some(container)),
            Change::Vdisk(2, Some(vdisk.clone())),
            Change::Vdisk(3, Some(vdisk)),
            Change::Vdisk(3, None),
        ];
        let mut made = Catalog::default();
        let mut notes = BTreeMap::new();
        for (id, text) in Catalog::to_notes(&changes).unwrap() {
            put(&mut notes, id, text);
        }
        made.apply(changes);
        let read = Catalog::read(Uuid::nil(), &notes).unwrap();
        assert_eq!((&read.pool, &read.containers), (&made.pool, &made.containers));
        assert_eq!(read.vdisks, made.vdisks);
        assert_eq!(read.vdisk("vd0").unwrap().0, 2);
        assert_eq!(read.numbers(2).0, 12);
        // As it was written before there was compression.
        notes.insert(1 << NUMBER_BITS | 5, br#"{"name":"old","limit":7,"reserve":3}"#.to_vec());
        let old = Catalog::read(Uuid::nil(), &notes).unwrap();
        assert_eq!(old.container("old").unwrap().1.compression, None);
        notes.insert(9 << NUMBER_BITS, b"{}".to_vec());
        assert!(Catalog::read(Uuid::nil(), &notes).is_err());
    }
}
