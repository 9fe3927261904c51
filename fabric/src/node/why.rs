//! Why a vdisk is as it is: its state, and for each cause what shows it and what helps. For people.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::recover::lanes_of;
use super::{Fabric, FabricError, Phase, Pool, VdiskNote};
use crate::id::BLOCK_BYTES;

const BYTES: u64 = BLOCK_BYTES as u64;
/// Quarters of the logs in use from which on the drain counts as behind.
const LOG_QUARTERS: u64 = 3;

/// How bad a cause is, the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Gravity {
    Offline,
    Failed,
    Full,
    Slow,
    Warning,
    Note,
}

impl Gravity {
    /// The vdisk's state when this is the worst.
    fn state(self) -> &'static str {
        match self {
            Self::Offline => "offline",
            Self::Failed => "unwritable",
            Self::Full => "full",
            Self::Slow => "slow",
            Self::Warning => "online, with warnings",
            Self::Note => "online",
        }
    }
}

#[derive(Debug)]
struct Cause {
    gravity: Gravity,
    cause: String,
    evidence: String,
    next: &'static str,
}

/// What one lane says of itself.
#[derive(Debug)]
struct LaneSays {
    problem: Option<String>,
    full: bool,
    checksum_errors: u64,
    undrained: u64,
    log_segments: (u64, u64),
    mapped: u64,
}

impl Fabric {
    /// `vdisk_why`'s answer.
    ///
    /// # Errors
    /// [`FabricError::NotFound`], when no pool that is not open could have it either; [`FabricError::Reactor`].
    pub async fn why(&self, name: &str) -> Result<Value, FabricError> {
        let (pool, number, note) = match self.vdisk(name) {
            Ok(found) => found,
            Err(error) => return self.why_not_there(name).ok_or(error),
        };
        let mut causes = Vec::new();
        pool.why_phase(number, &note, &mut causes);
        pool.why_disks(&mut causes);
        let mapped = pool.why_lanes(number, &note, &mut causes).await?;
        pool.why_container(&note, &mut causes).await?;
        pool.why_space(&mut causes).await?;
        let users = self.0.registry.users(&note.name).unwrap_or_default();
        causes.push(Cause {
            gravity: Gravity::Note,
            cause: if users.is_empty() { "nobody has it open".into() } else { "it is in use".into() },
            evidence: if users.is_empty() { "no export or filter names it".into() } else { users.join(", ") },
            next: if users.is_empty() {
                "export it: penstock nvmf, iscsi or vhost create"
            } else {
                "nothing"
            },
        });
        causes.sort_by_key(|cause| cause.gravity);
        let state = causes.first().map_or("online", |cause| cause.gravity.state());
        Ok(json!({
            "name": note.name,
            "uuid": note.uuid.to_string(),
            "pool": pool.name(),
            "state": state,
            "bytes": note.bytes,
            "mapped_bytes": mapped,
            "causes": causes.iter().map(describe).collect::<Vec<_>>(),
        }))
    }

    /// A vdisk that no open pool has may be in one that is not open.
    fn why_not_there(&self, name: &str) -> Option<Value> {
        let closed = self.incomplete();
        if closed.is_empty() {
            return None;
        }
        let cause = |pool: &Value| {
            let text = |member: &str| pool.get(member).and_then(Value::as_str).unwrap_or_default().to_owned();
            let cause = Cause {
                gravity: Gravity::Offline,
                cause: format!("pool {} is not open, and no open pool has a vdisk {name}", text("uuid")),
                evidence: text("state"),
                next: "create the bdevs of its missing disks; of a pool that cannot be opened, stop the daemon and run penstock fsck",
            };
            describe(&cause)
        };
        Some(json!({
            "name": name, "state": "unknown", "causes": closed.iter().map(cause).collect::<Vec<_>>(),
        }))
    }
}

fn describe(cause: &Cause) -> Value {
    json!({ "cause": cause.cause, "evidence": cause.evidence, "next": cause.next })
}

impl Pool {
    /// What is being done to it, and whether it is there.
    fn why_phase(&self, number: u64, note: &VdiskNote, causes: &mut Vec<Cause>) {
        let (cause, next) = match note.phase {
            Phase::Ready => {
                ("it is ready, but not there as a bdev", "end what has its name, and open the pool again")
            }
            Phase::Creating => {
                ("it is being made", "wait; what a crash cut short is undone when the pool is opened")
            }
            Phase::Deleting => (
                "it is being deleted",
                "wait; what a crash or an error cut short is finished when the pool is opened",
            ),
            Phase::Reverting(_) => ("it is being reverted to a snapshot", "wait, or revert it again"),
        };
        let hidden = self.hidden.borrow().get(&number).cloned();
        if note.phase == Phase::Ready && hidden.is_none() {
            return;
        }
        let evidence = hidden.unwrap_or_else(|| format!("the pool's notes say {:?}", note.phase));
        causes.push(Cause { gravity: Gravity::Offline, cause: cause.into(), evidence, next });
    }

    /// Disks that are going.
    fn why_disks(&self, causes: &mut Vec<Cause>) {
        if self.lost.get() {
            causes.push(Cause {
                gravity: Gravity::Offline,
                cause: format!("pool {} has lost a disk and is being closed", self.name()),
                evidence: "a bdev of the pool is being removed".into(),
                next: "bring the disk back: the pool opens by itself",
            });
        }
    }

    /// Its lanes; answers what it maps.
    async fn why_lanes(
        &self,
        number: u64,
        note: &VdiskNote,
        causes: &mut Vec<Cause>,
    ) -> Result<u64, FabricError> {
        let lanes: BTreeSet<u16> = lanes_of(note);
        let said = self.at_lanes(lanes.clone(), move |_, seat, _| async move {
            let lane = seat.lane();
            let usage = lane.usage();
            let state = lane.state();
            let own = state.shards.iter().filter(|(shard, _)| shard.vdisk() == number);
            let mapped = own.map(|(_, shard)| shard.mapped).sum();
            drop(state);
            let failed =
                lane.failed().map(|status| format!("the log or an index was not written: {status:?}"));
            Ok(LaneSays {
                problem: seat.problem().or(failed),
                full: usage.full,
                checksum_errors: usage.checksum_errors,
                undrained: usage.undrained_blocks,
                log_segments: usage.log_segments,
                mapped,
            })
        });
        let said = said.await?;
        for (lane, says) in lanes.iter().zip(&said) {
            let causes_before = causes.len();
            causes.extend(says.problem.iter().map(|problem| Cause {
                gravity: Gravity::Failed,
                cause: format!("lane {lane} of its pool takes no writes any more"),
                evidence: problem.clone(),
                next: "look at the disk (penstock bdev list, the kernel's log), mend it, and restart the daemon: what was \
                       acknowledged is in the log; if that does not help, stop the daemon and run penstock fsck",
            }));
            if causes.len() == causes_before && says.full {
                causes.push(Cause {
                    gravity: Gravity::Full,
                    cause: format!("lane {lane} of its pool finds no room: writes end with no space"),
                    evidence: format!("{} MiB wait for a place", (says.undrained * BYTES) >> 20),
                    next: "unmap what is not needed, or delete snapshots or vdisks: no restart is needed",
                });
            }
        }
        let errors: u64 = said.iter().map(|says| says.checksum_errors).sum();
        if errors > 0 {
            causes.push(Cause {
                gravity: Gravity::Warning,
                cause: "data or maps did not fit their checksums".into(),
                evidence: format!(
                    "{errors} times in its lanes since the pool was opened; such reads end with an error"
                ),
                next: "stop the daemon and run penstock fsck --data on the pool's disks; replace the disk",
            });
        }
        let (used, all) = said
            .iter()
            .fold((0, 0), |(used, all), says| (used + says.log_segments.0, all + says.log_segments.1));
        if all > 0 && used * 4 >= all * LOG_QUARTERS {
            let undrained: u64 = said.iter().map(|says| says.undrained * BYTES).sum();
            causes.push(Cause {
                gravity: Gravity::Slow,
                cause: "writes come faster than they are put in their place, and wait for that".into(),
                evidence: format!(
                    "{used} of {all} segments of its logs are in use, {} MiB wait",
                    undrained >> 20
                ),
                next: "nothing, if it passes; else faster disks, or a pool with more log (log_mib)",
            });
        }
        Ok(said.iter().map(|says| says.mapped * BYTES).sum())
    }

    /// Its container's limit, and what others have reserved.
    async fn why_container(&self, note: &VdiskNote, causes: &mut Vec<Cause>) -> Result<(), FabricError> {
        if !self.quota(note.container).is_full() {
            return Ok(());
        }
        let mapped = self.mapped(false).await?.get(&note.container).copied().unwrap_or(0) * BYTES;
        let container = self.catalog.borrow().containers.get(&note.container).cloned();
        let Some(container) = container else { return Ok(()) };
        let limit =
            container.limit.map_or_else(|| "no limit".into(), |limit| format!("a limit of {limit} bytes"));
        causes.push(Cause {
            gravity: Gravity::Full,
            cause: format!("container {} has no room left", container.name),
            evidence: format!(
                "its vdisks map {mapped} bytes; it has {limit}, and other containers may have reserved the rest"
            ),
            next: "raise the limit (penstock container set), lower other reservations, unmap, or delete vdisks",
        });
        Ok(())
    }

    /// How full the pool is.
    async fn why_space(&self, causes: &mut Vec<Cause>) -> Result<(), FabricError> {
        let usage = self.usage().await?;
        if usage.percent() >= super::report::THRESHOLDS[0] {
            causes.push(Cause {
                gravity: Gravity::Warning,
                cause: format!("pool {} is {} % full", self.name(), usage.percent()),
                evidence: format!("{} of {} bytes are free", usage.free, usage.capacity),
                next: "delete snapshots or vdisks, or unmap, before writes end with no space; penstock pool usage says who has it",
            });
        }
        Ok(())
    }
}
