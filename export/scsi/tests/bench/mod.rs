//! A transport without wires: runs commands of several nexuses against disks in vectors.
#![allow(
    dead_code,
    unreachable_pub,
    missing_debug_implementations,
    reason = "each test file uses its part of the bench"
)]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "test code"
)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use penstock_bdev::reservation::{PersistedReservations, ReservationStore, Reservations};
use penstock_bdev::{
    Bdev, BdevError, Caps, Channel, Descriptor, Io, IoStatus, Op, OpenMode, Sg, Shared, SharedConfig,
};
use penstock_reactor::mem::Buf;
use penstock_reactor::{Cx, Tick};
use penstock_scsi::{
    Command, Control, DataIn, LuConfig, LuId, LuOwner, Nexus, Seal, SharedReservations, Step, Task,
    iscsi_transport_id, lun_to_wire,
};
use uuid::Uuid;

/// A bdev that only has a geometry; the bench does its I/Os itself.
#[derive(Debug)]
pub struct Paper(Arc<Shared>);

impl Bdev for Paper {
    fn shared(&self) -> &Arc<Shared> {
        &self.0
    }

    fn open_channel(&self, _cx: &Cx) -> Result<Box<dyn Channel>, BdevError> {
        Err(BdevError::NotFound { name: self.0.name().to_owned() })
    }

    fn driver_specific(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    fn config(&self) -> (&'static str, serde_json::Value) {
        ("", serde_json::Value::Null)
    }
}

/// What is saved, in a map.
#[derive(Debug, Default)]
pub struct Saved(pub BTreeMap<Uuid, PersistedReservations>, pub bool);

impl ReservationStore for Saved {
    fn save(&mut self, bdev: Uuid, state: Option<&PersistedReservations>) -> std::io::Result<()> {
        if self.1 {
            return Err(std::io::Error::other("the store is broken"));
        }
        match state {
            Some(state) => self.0.insert(bdev, state.clone()),
            None => self.0.remove(&bdev),
        };
        Ok(())
    }

    fn load(&mut self, bdev: Uuid) -> std::io::Result<Option<PersistedReservations>> {
        Ok(self.0.get(&bdev).cloned())
    }
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub status: u8,
    /// Sense key and additional sense code, with CHECK CONDITION.
    pub sense: Option<(u8, u16)>,
    pub sense_bytes: Vec<u8>,
    pub data: Vec<u8>,
    pub transfer_bytes: u64,
    /// Operations that the disks were asked for.
    pub ops: Vec<Op>,
}

impl Outcome {
    #[track_caller]
    pub fn good(self) -> Vec<u8> {
        assert_eq!((self.status, self.sense), (0, None));
        self.data
    }

    #[track_caller]
    pub fn check(&self, key: u8, asc: u16) {
        assert_eq!((self.status, self.sense), (2, Some((key, asc))));
    }

    #[track_caller]
    pub fn conflict(&self) {
        assert_eq!(self.status, 0x18, "{self:?}");
    }
}

pub const INVALID_CDB: (u8, u16) = (5, 0x2400);
pub const LBA_OOB: (u8, u16) = (5, 0x2100);

/// Somebody else's write.
pub type Meanwhile = Box<dyn FnMut(&mut Vec<u8>)>;

/// Disks, owners, nexuses.
pub struct Bench {
    pub disks: Vec<Vec<u8>>,
    pub owners: Vec<LuOwner>,
    pub nexuses: Vec<Nexus>,
    pub reservations: Vec<SharedReservations>,
    pub store: Rc<RefCell<Saved>>,
    pub now: Tick,
    /// The status that the next I/O of that kind ends with.
    pub fail: Option<(Op, IoStatus)>,
    /// Called before each compare and write: somebody else's write.
    pub meanwhile: Option<Meanwhile>,
    task: Task,
}

pub const BLOCKS: u64 = 4096;

/// Caps of a thin disk.
pub fn thin() -> Caps {
    Caps {
        native_ops: Caps::ops(&[
            Op::Read,
            Op::Write,
            Op::Flush,
            Op::Unmap,
            Op::WriteZeroes,
            Op::Compare,
            Op::Copy,
        ]),
        io_blocks_max: 0,
        boundary_blocks: 0,
        optimal_blocks: 0,
        write_cache: true,
        unmap_zeroes: true,
        late_buffers: false,
    }
}

pub fn descriptor(number: u64, block_bytes: u32, caps: Caps) -> Descriptor {
    let shared = Shared::new(SharedConfig {
        name: format!("disk{number}"),
        product: "Paper disk",
        uuid: Uuid::from_u64_pair(0x1234_5678, number),
        block_bytes,
        physical_block_bytes: block_bytes.max(4096),
        blocks: BLOCKS,
        caps,
    })
    .unwrap();
    Descriptor::unregistered(Arc::new(Paper(shared)), OpenMode::ReadWrite)
}

impl Bench {
    /// `luns` thin disks of 512-byte blocks, seen by `nexuses` nexuses whose power-on attentions are cleared.
    pub fn new(luns: u64, nexuses: u8) -> Self {
        Self::with(luns, nexuses, 512, |_| {})
    }

    pub fn with(luns: u64, nexuses: u8, block_bytes: u32, change: impl Fn(&mut LuConfig)) -> Self {
        let store = Rc::new(RefCell::new(Saved::default()));
        let mut bench = Self {
            disks: Vec::new(),
            owners: Vec::new(),
            nexuses: Vec::new(),
            reservations: Vec::new(),
            store: Rc::clone(&store),
            now: Tick::ZERO,
            fail: None,
            meanwhile: None,
            task: Task::new(),
        };
        for number in 0..luns {
            let descriptor = descriptor(number, block_bytes, thin());
            let mut config = LuConfig::new(LuId(number), descriptor, "iqn.2024-01.io.penstock:test");
            change(&mut config);
            let reservations: SharedReservations = Rc::new(RefCell::new(Reservations::new()));
            let shared_store: Rc<RefCell<dyn ReservationStore>> = store.clone();
            bench.owners.push(LuOwner::new(Arc::new(config), Rc::clone(&reservations), shared_store));
            bench.reservations.push(reservations);
            bench.disks.push(vec![0; (BLOCKS * u64::from(block_bytes)) as usize]);
        }
        for number in 0..nexuses {
            bench.add_nexus(number);
            for lun in 0..luns {
                bench.clear_attentions(usize::from(number), lun as u16);
            }
        }
        bench
    }

    pub fn add_nexus(&mut self, number: u8) {
        let id = iscsi_transport_id(&format!("iqn.2024-01.host:{number}"), Some([0, 2, 3, 4, 5, number]));
        let mut nexus = Nexus::new(&id, 1, Seal::new([7; 16]));
        let luns: Vec<_> = self
            .owners
            .iter()
            .enumerate()
            .map(|(lun, owner)| (lun as u16, Arc::clone(owner.view())))
            .collect();
        nexus.apply_luns(&luns);
        self.nexuses.push(nexus);
    }

    pub fn clear_attentions(&mut self, nexus: usize, lun: u16) -> usize {
        let mut count = 0;
        while self.run(nexus, lun, &[0; 6], &[]).sense.is_some_and(|(key, _)| key == 6) {
            count += 1;
        }
        count
    }

    /// Does what only the owner of a logical unit can do.
    pub fn control(&mut self, nexus: usize, lun: u16, control: &Control) -> penstock_scsi::Reply {
        let id = self.nexuses[nexus].id().clone();
        let reply = self.owners[usize::from(lun)].handle(&id, control);
        if reply.changed {
            let view = Arc::clone(self.owners[usize::from(lun)].view());
            self.nexuses.iter_mut().for_each(|nexus| nexus.apply_lu(&view));
        }
        reply
    }

    pub fn publish(&mut self, lun: u16) {
        let view = Arc::clone(self.owners[usize::from(lun)].view());
        self.nexuses.iter_mut().for_each(|nexus| nexus.apply_lu(&view));
    }

    /// Runs a command from beginning to end.
    pub fn run(&mut self, nexus: usize, lun: u16, cdb: &[u8], data_out: &[u8]) -> Outcome {
        self.run_wire(nexus, lun_to_wire(lun), cdb, data_out)
    }

    pub fn run_wire(&mut self, nexus: usize, lun: u64, cdb: &[u8], data_out: &[u8]) -> Outcome {
        let mut padded = [0; 16];
        padded[..cdb.len()].copy_from_slice(cdb);
        let command = Command { cdb: padded, lun, data_out_bytes: data_out.len() as u32 };
        let mut task = std::mem::take(&mut self.task);
        let mut ops = Vec::new();
        let mut step = task.start(&mut self.nexuses[nexus], &command, self.now);
        for _ in 0..100_000 {
            step = match step {
                Step::Done => break,
                Step::Data { bytes } => {
                    let data = &data_out[..bytes as usize];
                    task.data_out(&mut self.nexuses[nexus], sg(data, bytes))
                }
                Step::Buffers { bytes } => task.buffers(&mut self.nexuses[nexus], sg(&[], bytes)),
                Step::Submit { lu } => {
                    let mut io = task.take_io();
                    ops.push(io.op);
                    self.execute(lu, &mut io);
                    task.completed(&mut self.nexuses[nexus], io)
                }
                Step::Control { lu } => {
                    let control = task.take_control();
                    let reply = self.control(nexus, lu.0 as u16, &control);
                    task.replied(&reply)
                }
            };
        }
        assert_eq!(step, Step::Done, "the command does not end: {cdb:02x?}");
        let answer = *task.answer();
        let data = match task.data_in() {
            DataIn::None => Vec::new(),
            DataIn::Bytes(bytes) => bytes.to_vec(),
            DataIn::Blocks(blocks) => {
                let mut bytes = vec![0; blocks.len_bytes()];
                blocks.copy_out(0, &mut bytes);
                bytes
            }
        };
        self.task = task;
        let sense_bytes = answer.sense.as_slice().to_vec();
        let sense = penstock_scsi::Sense::decode(&sense_bytes).map(|(key, asc)| (key.0, asc.0));
        assert_eq!(sense.is_some(), answer.status.0 == 2, "sense with CHECK CONDITION, and only with it");
        Outcome {
            status: answer.status.0,
            sense,
            sense_bytes,
            data,
            transfer_bytes: answer.transfer_bytes,
            ops,
        }
    }

    fn execute(&mut self, lu: LuId, io: &mut Io) {
        let config = Arc::clone(&self.owners[lu.0 as usize].view().config);
        let disk = &mut self.disks[lu.0 as usize];
        io.status = match self.fail.take_if(|(op, _)| *op == io.op) {
            Some((_, status)) => status,
            None => {
                if let (Op::CompareAndWrite, Some(meanwhile)) = (io.op, &mut self.meanwhile) {
                    meanwhile(disk);
                }
                do_io(disk, config.info().block_bytes, io)
            }
        };
    }
}

/// Buffers in uneven pieces that hold `data`, or rubbish.
pub fn sg(data: &[u8], bytes: u32) -> Sg {
    let mut list = Sg::new();
    let mut left = bytes as usize;
    let mut piece = 1024;
    while left > 0 {
        let mut buf = Buf::alloc(left.min(piece)).unwrap();
        buf.fill(0xee);
        left -= buf.len();
        list.push(buf);
        piece = (piece * 2).min(64 << 10);
    }
    list.copy_in(0, data);
    list
}

/// The model of a disk: a vector of bytes.
fn do_io(disk: &mut [u8], block_bytes: u32, io: &mut Io) -> IoStatus {
    let block = block_bytes as usize;
    let len = io.blocks as usize * block;
    if !io.op.has_range() {
        return IoStatus::Success;
    }
    let Some(first) = usize::try_from(io.lba.0).ok().and_then(|lba| lba.checked_mul(block)) else {
        return IoStatus::OutOfRange;
    };
    if len == 0 || first.checked_add(len).is_none_or(|end| end > disk.len()) {
        return IoStatus::OutOfRange;
    }
    if io.op.data_factor() > 0 && io.data.len_bytes() != len * io.op.data_factor() {
        return IoStatus::BadLength;
    }
    let mut data = vec![0; io.data.len_bytes()];
    io.data.copy_out(0, &mut data);
    let range = first..first + len;
    let differs = |there: &[u8]| there.iter().zip(&data).position(|(a, b)| a != b);
    match io.op {
        Op::Read => {
            io.data.copy_in(0, &disk[range]);
        }
        Op::Write => disk[range].copy_from_slice(&data),
        Op::Unmap | Op::WriteZeroes => disk[range].fill(0),
        Op::Copy => {
            let from = io.src_lba.0 as usize * block;
            disk.copy_within(from..from + len, first);
        }
        Op::Compare | Op::CompareAndWrite => {
            if let Some(at) = differs(&disk[range.clone()]) {
                io.result = at as u64;
                return IoStatus::Miscompare;
            }
            if io.op == Op::CompareAndWrite {
                disk[range].copy_from_slice(&data[len..]);
            }
        }
        Op::Flush | Op::Reset => {}
    }
    IoStatus::Success
}

/// READ(16) and its kin.
pub fn rw16(opcode: u8, flags: u8, lba: u64, blocks: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = opcode;
    cdb[1] = flags;
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

/// READ(10) and its kin.
pub fn rw10(opcode: u8, flags: u8, lba: u32, blocks: u16) -> [u8; 10] {
    let mut cdb = [0; 10];
    cdb[0] = opcode;
    cdb[1] = flags;
    cdb[2..6].copy_from_slice(&lba.to_be_bytes());
    cdb[7..9].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

/// READ(12) and its kin.
pub fn rw12(opcode: u8, flags: u8, lba: u32, blocks: u32) -> [u8; 12] {
    let mut cdb = [0; 12];
    cdb[0] = opcode;
    cdb[1] = flags;
    cdb[2..6].copy_from_slice(&lba.to_be_bytes());
    cdb[6..10].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

/// COMPARE AND WRITE.
pub fn caw(flags: u8, lba: u64, blocks: u8) -> [u8; 16] {
    let mut cdb = rw16(0x89, flags, lba, 0);
    cdb[13] = blocks;
    cdb
}

/// INQUIRY of a VPD page.
pub fn vpd(page: u8, alloc: u16) -> [u8; 6] {
    let [high, low] = alloc.to_be_bytes();
    [0x12, 1, page, high, low, 0]
}

/// PERSISTENT RESERVE OUT and its parameter list.
pub fn pr_out(action: u8, kind: u8, key: u64, action_key: u64, flags: u8) -> ([u8; 10], [u8; 24]) {
    let cdb = [0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0];
    let mut list = [0; 24];
    list[..8].copy_from_slice(&key.to_be_bytes());
    list[8..16].copy_from_slice(&action_key.to_be_bytes());
    list[20] = flags;
    (cdb, list)
}

/// PERSISTENT RESERVE IN.
pub fn pr_in(action: u8) -> [u8; 10] {
    [0x5e, action, 0, 0, 0, 0, 0, 0x40, 0, 0]
}
