//! Reads and writes allocate nothing: counted by the allocator itself.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use penstock_bdev::null::Null;
use penstock_bdev::reservation::{PersistedReservations, ReservationStore, Reservations};
use penstock_bdev::{Descriptor, IoStatus, OpenMode, Sg};
use penstock_reactor::Tick;
use penstock_reactor::mem::Buf;
use penstock_scsi::{Command, LuConfig, LuId, LuOwner, Nexus, Seal, Step, Task, iscsi_transport_id};
use penstock_spec::scsi::sense::Status;
use uuid::Uuid;

#[derive(Debug)]
struct Nowhere;

impl ReservationStore for Nowhere {
    fn save(&mut self, _bdev: Uuid, _state: Option<&PersistedReservations>) -> std::io::Result<()> {
        Ok(())
    }

    fn load(&mut self, _bdev: Uuid) -> std::io::Result<Option<PersistedReservations>> {
        Ok(None)
    }
}

fn run(task: &mut Task, nexus: &mut Nexus, cdb: &[u8; 10], data_out_bytes: u32) -> Status {
    let mut padded = [0; 16];
    padded.iter_mut().zip(cdb).for_each(|(to, from)| *to = *from);
    let command = Command { cdb: padded, lun: 0, data_out_bytes };
    let mut step = task.start(nexus, &command, Tick::ZERO);
    loop {
        step = match step {
            Step::Data { bytes } => task.data_out(nexus, one(bytes)),
            Step::Buffers { bytes } => task.buffers(nexus, one(bytes)),
            Step::Submit { .. } => {
                let mut io = task.take_io();
                io.status = IoStatus::Success;
                task.completed(nexus, io)
            }
            Step::Control { .. } => panic!("not of a read or write"),
            Step::Done => break,
        };
    }
    drop(task.take_blocks());
    task.answer().status
}

fn one(bytes: u32) -> Sg {
    let mut list = Sg::new();
    list.push(Buf::alloc(usize::try_from(bytes).unwrap()).unwrap());
    list
}

#[test]
fn a_read_or_write_allocates_nothing() {
    let null = Null::new("n", Uuid::from_u128(1), 1000, 4096).unwrap();
    let descriptor = Descriptor::unregistered(null, OpenMode::ReadWrite);
    let config = Arc::new(LuConfig::new(LuId(1), descriptor, "iqn.2024-01.io.penstock:t"));
    let reservations = Rc::new(RefCell::new(Reservations::new()));
    let owner = LuOwner::new(config, reservations, Rc::new(RefCell::new(Nowhere)));
    let mut nexus = Nexus::new(&iscsi_transport_id("iqn.2024-01.host:1", None), 1, Seal::new([1; 16]));
    nexus.apply_luns(&[(0, Arc::clone(owner.view()))]);
    let mut task = Task::new();
    let (read, write) = ([0x28, 0, 0, 0, 0, 7, 0, 0, 2, 0], [0x2a, 8, 0, 0, 0, 7, 0, 0, 2, 0]);
    // The first tells of the power on.
    assert_eq!(run(&mut task, &mut nexus, &read, 0), Status::CHECK_CONDITION);
    let mut before = 0;
    for round in 0..2000 {
        if round == 1000 {
            before = penstock_allocations::count();
        }
        assert_eq!(run(&mut task, &mut nexus, &read, 0), Status::GOOD);
        assert_eq!(run(&mut task, &mut nexus, &write, 8192), Status::GOOD);
    }
    assert_eq!(penstock_allocations::count() - before, 0);
}
