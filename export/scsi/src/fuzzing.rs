//! What the fuzz target does with commands from outside: CDBs and parameter lists of several nexuses.
//!
//! ```text
//!   record | nexus and LUN, 1 | CDB, 16 | length of the data, 2, little-endian | data |
//! ```
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "test code")]

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use penstock_bdev::null::Null;
use penstock_bdev::reservation::{PersistedReservations, ReservationStore, Reservations};
use penstock_bdev::{Descriptor, IoStatus, OpenMode, Sg};
use penstock_reactor::Tick;
use penstock_reactor::mem::Buf;
use uuid::Uuid;

use crate::{Command, LuConfig, LuId, LuOwner, Nexus, Seal, Step, Task, iscsi_transport_id};

const BLOCK_BYTES: u32 = 512;
const NEXUSES: usize = 2;
/// Steps that one command takes at most: an UNMAP of many ranges, a VERIFY of a whole disk.
const STEPS_MAX: usize = 100_000;

#[derive(Debug)]
struct Nowhere;

impl ReservationStore for Nowhere {
    fn save(&mut self, _: Uuid, _: Option<&PersistedReservations>) -> std::io::Result<()> {
        Ok(())
    }

    fn load(&mut self, _: Uuid) -> std::io::Result<Option<PersistedReservations>> {
        Ok(None)
    }
}

struct Bench {
    owners: Vec<LuOwner>,
    nexuses: Vec<Nexus>,
}

impl Bench {
    fn new() -> Self {
        let owner = |id: u64| {
            let null = Null::new("n", Uuid::from_u128(id.into()), 1 << 14, BLOCK_BYTES).unwrap();
            let mut config = LuConfig::new(
                LuId(id),
                Descriptor::unregistered(null, OpenMode::ReadWrite),
                "iqn.2026-11.io.penstock:fuzz",
            );
            config.limits.transfer_bytes_max = 1 << 20;
            config.limits.atomic_blocks_max = 16;
            config.removable = id == 1;
            LuOwner::new(
                Arc::new(config),
                Rc::new(RefCell::new(Reservations::new())),
                Rc::new(RefCell::new(Nowhere)),
            )
        };
        let owners = vec![owner(1), owner(2)];
        let luns: Vec<_> = (0..).zip(owners.iter().map(|owner| Arc::clone(owner.view()))).collect();
        let nexus = |at: usize| {
            let id = iscsi_transport_id(&format!("iqn.2026-11.h:{at}"), None);
            let mut nexus = Nexus::new(&id, 1, Seal::new([1; 16]));
            nexus.apply_luns(&luns);
            nexus
        };
        Self { nexuses: (0..NEXUSES).map(nexus).collect(), owners }
    }

    fn run(&mut self, task: &mut Task, at: usize, command: &Command, data: &[u8]) {
        let mut step = task.start(self.nexuses.get_mut(at).unwrap(), command, Tick::ZERO);
        for _ in 0..STEPS_MAX {
            let nexus = self.nexuses.get_mut(at).unwrap();
            step = match step {
                Step::Data { bytes } => {
                    let mut list = buffers(bytes);
                    list.copy_in(0, data);
                    task.data_out(nexus, list)
                }
                Step::Buffers { bytes } => task.buffers(nexus, buffers(bytes)),
                Step::Submit { .. } => {
                    let mut io = task.take_io();
                    let end = io.lba.0.checked_add(io.blocks.into());
                    assert!(end.is_some_and(|end| end <= 1 << 14), "an I/O beyond the disk");
                    io.status = IoStatus::Success;
                    task.completed(nexus, io)
                }
                Step::Control { lu } => {
                    let (control, from) = (task.take_control(), nexus.id().clone());
                    let owner = self.owners.iter_mut().find(|owner| owner.view().config.id == lu).unwrap();
                    let reply = owner.handle(&from, &control);
                    let view = Arc::clone(owner.view());
                    self.nexuses.iter_mut().for_each(|nexus| nexus.apply_lu(&view));
                    task.replied(&reply)
                }
                Step::Done => return,
            };
        }
        panic!("a command without end: {command:?}");
    }
}

fn buffers(bytes: u32) -> Sg {
    let mut list = Sg::new();
    let mut left = bytes as usize;
    while left > 0 {
        let now = left.min(penstock_reactor::mem::BUF_BYTES_MAX);
        list.push(Buf::alloc(now).unwrap());
        left -= now;
    }
    list
}

/// Runs the commands that `bytes` are: none may panic, go on without end, or leave the disk.
pub fn commands(bytes: &[u8]) {
    let (mut bench, mut task) = (Bench::new(), Task::new());
    let mut rest = bytes;
    while let Some((head, tail)) = rest.split_first_chunk::<19>() {
        let [who, cdb @ .., low, high] = head;
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(tail.len());
        let (data, tail) = tail.split_at(len);
        rest = tail;
        let mut padded = [0; 16];
        padded.copy_from_slice(cdb);
        let lun = u64::from(who >> 1 & 3) << 48;
        let command = Command { cdb: padded, lun, data_out_bytes: len as u32 };
        bench.run(&mut task, usize::from(who & 1), &command, data);
        let answer = task.answer();
        assert!(matches!(answer.status.0, 0x00 | 0x02 | 0x04 | 0x08 | 0x18), "status {:?}", answer.status);
        task.release_data();
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_corpus_of_commands_passes() {
        let dir = format!("{}/../../fuzz/corpus/scsi_commands", env!("CARGO_MANIFEST_DIR"));
        let mut count = 0;
        for file in std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("{dir}: {error}")) {
            super::commands(&std::fs::read(file.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 0, "{dir} is empty");
    }
}
