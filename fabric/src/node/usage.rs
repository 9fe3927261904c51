//! Who uses a pool's space, and what each technique saves: for people.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{FabricError, Pool, PoolUsage, SnapshotNote, VdiskNote};
use crate::id::BLOCK_BYTES;
use crate::lane::{SpaceUse, VersionUse};

const BYTES: u64 = BLOCK_BYTES as u64;

/// What a vdisk's shards have together.
#[derive(Debug, Default)]
struct Use {
    exclusive: u64,
    head: VersionUse,
    snapshots: BTreeMap<u64, VersionUse>,
}

fn add(sum: &mut VersionUse, one: VersionUse) {
    sum.mapped += one.mapped;
    sum.exclusive += one.exclusive;
}

fn by_vdisk(lanes: &[SpaceUse]) -> BTreeMap<u64, Use> {
    let mut vdisks: BTreeMap<u64, Use> = BTreeMap::new();
    for (shard, of) in lanes.iter().flat_map(|lane| &lane.shards) {
        let sum = vdisks.entry(shard.vdisk()).or_default();
        sum.exclusive += of.exclusive;
        add(&mut sum.head, of.head);
        for (number, snapshot) in &of.snapshots {
            add(sum.snapshots.entry(*number).or_default(), *snapshot);
        }
    }
    vdisks
}

/// What something was before a technique, and after it.
fn technique(name: &str, before: u64, after: u64) -> Value {
    let thousandths = u128::from(before) * 1000 / u128::from(after.max(1));
    let ratio = if after == 0 { None } else { Some(thousandths as f64 / 1000.0) };
    json!({ "technique": name, "before_bytes": before, "after_bytes": after, "saved_bytes": before.saturating_sub(after), "ratio": ratio })
}

impl Pool {
    /// `pool_get_usage`'s answer. Goes through all maps; counts what is drained.
    ///
    /// # Errors
    /// [`FabricError`].
    pub async fn describe_usage(&self) -> Result<Value, FabricError> {
        let lanes = 0..u16::try_from(self.lanes()).unwrap_or(u16::MAX);
        let lanes = self.at_lanes(lanes, |_, seat, _| async move { seat.lane().space_use().await }).await?;
        let usage = self.usage().await?;
        let vdisks = by_vdisk(&lanes);
        let catalog = self.catalog.borrow();
        let entry = |(number, note): (&u64, &VdiskNote)| {
            let none = Use::default();
            let used = vdisks.get(number).unwrap_or(&none);
            let of_snapshot = |note: &SnapshotNote| {
                let used = used.snapshots.get(&note.number).copied().unwrap_or_default();
                json!({ "name": note.name, "mapped_bytes": used.mapped * BYTES, "exclusive_bytes": used.exclusive * BYTES })
            };
            let snapshots = catalog.snapshots.values().filter(|snapshot| snapshot.vdisk == *number);
            json!({
                "name": note.name,
                "uuid": note.uuid.to_string(),
                "bytes": note.bytes,
                "mapped_bytes": used.head.mapped * BYTES,
                "exclusive_bytes": used.head.exclusive * BYTES,
                "shared_bytes": used.head.mapped.saturating_sub(used.head.exclusive) * BYTES,
                "with_snapshots_bytes": used.exclusive * BYTES,
                "snapshots": snapshots.map(of_snapshot).collect::<Vec<_>>(),
            })
        };
        let each: Vec<Value> = catalog.vdisks.iter().map(entry).collect();
        let promised = catalog.vdisks.values().map(|note| note.bytes).fold(0, u64::saturating_add);
        Ok(json!({
            "name": self.name(),
            "vdisks": each,
            "undrained_bytes": usage.undrained,
            "reduction": reduction(&lanes, &vdisks, &usage, promised),
        }))
    }
}

fn reduction(lanes: &[SpaceUse], vdisks: &BTreeMap<u64, Use>, usage: &PoolUsage, promised: u64) -> Value {
    let heads: u64 = vdisks.values().map(|of| of.head.mapped * BYTES).sum();
    let snapshots = vdisks.values().flat_map(|of| of.snapshots.values());
    let all = heads + snapshots.map(|of| of.mapped * BYTES).sum::<u64>();
    let data: u64 = lanes.iter().map(|lane| lane.data * BYTES).sum();
    let shared: u64 = lanes.iter().map(|lane| lane.shared * BYTES).sum();
    json!({
        "data_bytes": data,
        "shared_by_vdisks_bytes": shared,
        "techniques": [
            technique("thin provisioning", promised, heads),
            technique("snapshots and clones", all, data),
            technique("compression", usage.decoded, usage.used),
        ],
    })
}
