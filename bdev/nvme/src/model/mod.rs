//! A model of a controller: registers, queues and a disk in memory, with whatever can go wrong on demand.
//!
//! It behaves as the standard says until it is told otherwise by its [`Faults`]. It does nothing by itself: a register access
//! only notes, [`Model::step`] works. Tests of the driver drive both in virtual time; benches count the driver alone.

mod admin;
mod drive;
mod nvm;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, MutexGuard, PoisonError};

use penstock_spec::nvme::identify::{IdentifyController, IdentifyNamespace, LbaFormat};
use penstock_spec::nvme::{Cqe, Sqe, Status};
use penstock_spec::nvmf::property::{Cap, Cc, Csts, Vs};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

pub use drive::ModelTime;

use crate::dma::PeerMemory;
use crate::register::{GONE, Registers, offset};

#[expect(clippy::disallowed_types, reason = "a model is no data path")]
type Lock<T> = std::sync::Mutex<T>;

/// Queue pairs that the model has room for, the admin queue included.
const QUEUES_MAX: usize = 65;

/// What the model does wrong.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Steps from CC.EN to CSTS.RDY and back; `None`: never ready.
    pub never_ready: bool,
    /// CSTS.CFS is set.
    pub fatal: bool,
    /// Every register reads as all ones, and nothing is done: pulled out.
    pub gone: bool,
    /// Commands are taken and not answered.
    pub silent: bool,
    /// The next so many I/O completions are not posted.
    pub lost_completions: u32,
    /// Aborts are answered, but abort nothing.
    pub deaf_to_aborts: bool,
    /// Completions come in an order drawn from this seed; 0: in the order of submission.
    pub shuffle: u64,
    /// Posted once, as it is, on the first I/O queue (phase and head are made right).
    pub garbage: Option<Cqe>,
    /// The head that this completion and those after it carry, where it is not the right one.
    pub wrong_head: Option<u16>,
    /// What commands that touch this block end with.
    pub bad_block: Option<(u64, Status)>,
    /// The next so many I/O commands end so.
    pub transient: Option<(u32, Status)>,
    /// Creating I/O queues beyond so many fails.
    pub queues_max: Option<u16>,
}

/// A namespace of the model.
#[derive(Debug, Clone)]
pub struct ModelNs {
    /// What Identify says of it.
    pub identify: Box<IdentifyNamespace>,
    /// Its NGUID-like UUID, told by descriptor.
    pub uuid: [u8; 16],
    /// Command set.
    pub csi: u8,
    /// Its blocks.
    pub data: Vec<u8>,
}

impl ModelNs {
    /// `blocks` blocks of `2^lbads` bytes, all zero.
    #[must_use]
    pub fn new(number: u8, blocks: u64, lbads: u8) -> Self {
        let mut identify = Box::new(IdentifyNamespace::default());
        identify.nsze = U64::new(blocks);
        identify.ncap = U64::new(blocks);
        identify.lbaf[0] = LbaFormat::new(lbads);
        identify.mssrl = U16::new(64);
        identify.mcl = U32::new(4096);
        identify.msrc0 = 127;
        identify.dlfeat = 0b1001;
        let len = usize::try_from(blocks << lbads).unwrap_or(0);
        Self { identify, uuid: [number; 16], csi: 0, data: vec![0; len] }
    }

    pub(super) fn block_bytes(&self) -> usize {
        self.identify.block_len().and_then(|len| usize::try_from(len).ok()).unwrap_or(512)
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Queue {
    sq: u64,
    cq: u64,
    sq_entries: u16,
    cq_entries: u16,
    /// Fetched up to here.
    head: u16,
    cq_tail: u16,
    phase: bool,
    has_sq: bool,
    has_cq: bool,
    /// The doorbell registers.
    tail_bell: u16,
    head_bell: u16,
}

#[derive(Debug)]
struct Pending {
    qid: usize,
    cqe: Cqe,
    sqe: Sqe,
    /// Not yet to be answered (asynchronous events, silence).
    held: bool,
}

/// What the model is made of and has done.
#[derive(Debug)]
pub struct Inner {
    /// CAP.
    pub cap: Cap,
    cc: Cc,
    csts: Csts,
    aqa: u32,
    asq: u64,
    acq: u64,
    queues: Vec<Queue>,
    /// Identify Controller.
    pub identify: Box<IdentifyController>,
    /// By NSID.
    pub namespaces: BTreeMap<u32, ModelNs>,
    /// What goes wrong.
    pub faults: Faults,
    memory: PeerMemory,
    pending: VecDeque<Pending>,
    events: VecDeque<u32>,
    changed: Vec<u32>,
    shadows: Option<(u64, u64)>,
    first_half: Option<Sqe>,
    /// I/O commands done.
    pub done: u64,
    /// Aborts that ended something.
    pub aborted: u64,
    /// Controller resets seen.
    pub resets: u64,
    /// Doorbell registers written.
    pub bells: u64,
    /// Flushes done.
    pub flushes: u64,
    /// Writes with FUA.
    pub fua_writes: u64,
    /// SMART / Health: media errors.
    pub media_errors: u64,
    /// The kernel would like to have it back.
    pub wanted_back: bool,
}

/// A controller, as its driver sees it.
#[derive(Debug)]
pub struct Model(Lock<Inner>);

impl Model {
    /// A controller with one namespace of 1024 blocks of 512 bytes, queues of up to 1024 entries, MDTS of 512 KiB.
    #[must_use]
    pub fn new() -> Arc<Self> {
        let cap = Cap(0).with_mqes0(1023).with_cqr(true).with_to(4).with_css_nvm(true).with_mpsmax(4);
        Arc::new(Self(Lock::new(Inner {
            cap,
            cc: Cc(0),
            csts: Csts(0),
            aqa: 0,
            asq: 0,
            acq: 0,
            queues: vec![Queue::default(); QUEUES_MAX],
            identify: admin::identify(),
            namespaces: BTreeMap::from([(1, ModelNs::new(1, 1024, 9))]),
            faults: Faults::default(),
            memory: PeerMemory::default(),
            pending: VecDeque::new(),
            events: VecDeque::new(),
            changed: Vec::new(),
            shadows: None,
            first_half: None,
            done: 0,
            aborted: 0,
            resets: 0,
            bells: 0,
            flushes: 0,
            fua_writes: 0,
            media_errors: 0,
            wanted_back: false,
        })))
    }

    /// Its inside.
    pub fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fetches what the doorbells tell of, does it, and posts the completions that may be posted. Returns how many.
    pub fn step(&self) -> usize {
        self.inner().step()
    }

    /// Raises an asynchronous event: dword 0 of its completion.
    pub fn raise(&self, event: u32) {
        self.inner().events.push_back(event);
    }

    /// Puts a namespace in, or another in its place, and tells of it as the standard has it.
    pub fn change_ns(&self, nsid: u32, ns: Option<ModelNs>) {
        let mut inner = self.inner();
        match ns {
            Some(ns) => drop(inner.namespaces.insert(nsid, ns)),
            None => drop(inner.namespaces.remove(&nsid)),
        }
        inner.changed.push(nsid);
        // Notice, Attached Namespace Attribute Changed, Changed Attached Namespace List.
        inner.events.push_back(0x0004_0002);
    }
}

impl Registers for Model {
    fn read32(&self, at: u32) -> u32 {
        let inner = self.inner();
        if inner.faults.gone {
            return GONE;
        }
        let low = |value: u64| u32::try_from(value & u64::from(u32::MAX)).unwrap_or(0);
        match at {
            offset::CAP => low(inner.cap.0),
            0x4 => low(inner.cap.0 >> 32),
            offset::VS => Vs::new(1, 4, 0).0,
            offset::CC => inner.cc.0,
            offset::CSTS => inner.csts.with_cfs(inner.faults.fatal).0,
            offset::AQA => inner.aqa,
            _ => 0,
        }
    }

    fn write32(&self, at: u32, value: u32) {
        let mut inner = self.inner();
        let set_low = |word: u64| word & !u64::from(u32::MAX) | u64::from(value);
        let set_high = |word: u64| word & u64::from(u32::MAX) | u64::from(value) << 32;
        match at {
            _ if inner.faults.gone => {}
            offset::CC => inner.configure(Cc(value)),
            offset::AQA => inner.aqa = value,
            offset::ASQ => inner.asq = set_low(inner.asq),
            0x2c => inner.asq = set_high(inner.asq),
            offset::ACQ => inner.acq = set_low(inner.acq),
            0x34 => inner.acq = set_high(inner.acq),
            _ if at >= offset::DOORBELLS => inner.bell(at, value),
            _ => {}
        }
    }
}

impl Inner {
    /// Whether the driver has the controller enabled.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.cc.en()
    }

    /// I/O queue pairs that exist.
    #[must_use]
    pub fn io_queues(&self) -> usize {
        self.queues.iter().skip(1).filter(|queue| queue.has_sq && queue.has_cq).count()
    }

    /// Commands fetched and not answered, events apart.
    #[must_use]
    pub fn held(&self) -> usize {
        self.pending.iter().filter(|pending| pending.qid > 0).count()
    }

    fn configure(&mut self, cc: Cc) {
        let was = std::mem::replace(&mut self.cc, cc);
        if was.en() && !cc.en() {
            self.queues.fill(Queue::default());
            self.pending.clear();
            self.shadows = None;
            self.first_half = None;
            self.resets += 1;
            if !self.faults.never_ready {
                self.csts = Csts(0);
            }
        }
        if cc.en() && !was.en() {
            let size = |bits: u32| u16::try_from(bits & 0xfff).unwrap_or(0) + 1;
            let admin = Queue {
                sq: self.asq,
                cq: self.acq,
                sq_entries: size(self.aqa),
                cq_entries: size(self.aqa >> 16),
                phase: true,
                has_sq: true,
                has_cq: true,
                ..Queue::default()
            };
            self.queues[0] = admin;
            self.csts = Csts(0).with_rdy(!self.faults.never_ready);
        }
        if cc.shn() != 0 {
            self.csts = self.csts.with_shst(2);
        }
    }

    fn bell(&mut self, at: u32, value: u32) {
        self.bells += 1;
        let index = (at - offset::DOORBELLS) >> (2 + u32::from(self.cap.dstrd()));
        let value = u16::try_from(value).unwrap_or(u16::MAX);
        let Some(queue) = usize::try_from(index / 2).ok().and_then(|qid| self.queues.get_mut(qid)) else {
            return;
        };
        if index.is_multiple_of(2) {
            queue.tail_bell = value;
        } else {
            queue.head_bell = value;
        }
    }

    fn step(&mut self) -> usize {
        if self.faults.gone || !self.cc.en() {
            return 0;
        }
        for qid in 0..self.queues.len() {
            self.fetch(qid);
        }
        self.post_events();
        self.post_garbage();
        self.post_all()
    }

    /// The tail that the driver has told of, by register or by shadow.
    fn tail(&mut self, qid: usize) -> u16 {
        let bell = self.queues[qid].tail_bell;
        let Some((shadow, event)) = self.shadows.filter(|_| qid > 0) else { return bell };
        let at = u64::try_from(qid).unwrap_or(0) * (8 << self.cap.dstrd());
        let mut word = [0; 4];
        self.memory.read(shadow + at, &mut word);
        self.memory.write(event + at, &word);
        u16::try_from(u32::from_le_bytes(word)).unwrap_or(bell)
    }

    fn fetch(&mut self, qid: usize) {
        if !self.queues[qid].has_sq {
            return;
        }
        let tail = self.tail(qid);
        while self.queues[qid].head != tail {
            let queue = &mut self.queues[qid];
            let at = queue.sq + u64::from(queue.head) * 64;
            queue.head = (queue.head + 1) % queue.sq_entries;
            let mut bytes = [0; 64];
            self.memory.read(at, &mut bytes);
            let Ok(sqe) = Sqe::read_from_bytes(&bytes) else { return };
            self.take(qid, sqe);
        }
    }

    fn take(&mut self, qid: usize, sqe: Sqe) {
        let answer = if qid == 0 { self.admin(&sqe) } else { self.io(&sqe) };
        let held = answer.is_none() || (qid > 0 && self.faults.silent);
        let cqe = answer.unwrap_or_default();
        self.pending.push_back(Pending { qid, cqe, sqe, held });
    }

    fn io(&mut self, sqe: &Sqe) -> Option<Cqe> {
        if let Some((left, status)) = &mut self.faults.transient
            && *left > 0
        {
            *left -= 1;
            return Some(Cqe::new(0, 0, *status));
        }
        self.done += 1;
        Some(self.nvm(sqe))
    }

    fn post_events(&mut self) {
        while !self.events.is_empty() {
            let waits = |pending: &Pending| pending.qid == 0 && pending.held;
            let Some(index) = self.pending.iter().position(waits) else { return };
            let (Some(event), Some(pending)) = (self.events.pop_front(), self.pending.get_mut(index)) else {
                return;
            };
            pending.held = false;
            pending.cqe.dw0 = U32::new(event);
        }
    }

    fn post_garbage(&mut self) {
        if let Some(cqe) = self.faults.garbage.take() {
            if self.queues[1].has_cq {
                let cid = cqe.cid.get();
                let sqid = cqe.sqid.get();
                self.post(1, cqe, cid, sqid);
            } else {
                self.faults.garbage = Some(cqe);
            }
        }
    }

    fn post_all(&mut self) -> usize {
        let mut ready: Vec<usize> =
            self.pending.iter().enumerate().filter(|(_, pending)| !pending.held).map(|(at, _)| at).collect();
        if self.faults.shuffle != 0 {
            let seed = &mut self.faults.shuffle;
            for at in (1..ready.len()).rev() {
                *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let other = usize::try_from(*seed >> 33).unwrap_or(0) % (at + 1);
                ready.swap(at, other);
            }
        }
        let mut posted = Vec::new();
        for at in ready {
            let (qid, cqe, cid) = {
                let pending = &self.pending[at];
                (pending.qid, pending.cqe, pending.sqe.cid.get())
            };
            if self.has_room(qid) {
                posted.push(at);
                if qid > 0 && self.faults.lost_completions > 0 {
                    self.faults.lost_completions -= 1;
                } else {
                    self.post(qid, cqe, cid, u16::try_from(qid).unwrap_or(0));
                }
            }
        }
        posted.sort_unstable();
        for at in posted.iter().rev() {
            self.pending.remove(*at);
        }
        posted.len()
    }

    fn has_room(&mut self, qid: usize) -> bool {
        let mut head = self.queues[qid].head_bell;
        if let Some((shadow, event)) = self.shadows.filter(|_| qid > 0) {
            let at = (u64::try_from(qid).unwrap_or(0) * 2 + 1) * (4 << self.cap.dstrd());
            let mut word = [0; 4];
            self.memory.read(shadow + at, &mut word);
            self.memory.write(event + at, &word);
            head = u16::try_from(u32::from_le_bytes(word)).unwrap_or(head);
        }
        let queue = &self.queues[qid];
        queue.has_cq && (queue.cq_tail + 1) % queue.cq_entries != head
    }

    fn post(&mut self, qid: usize, mut cqe: Cqe, cid: u16, sqid: u16) {
        let head = self.queues[qid].head;
        cqe.sqhd = U16::new(self.faults.wrong_head.filter(|_| qid > 0).unwrap_or(head));
        cqe.cid = U16::new(cid);
        cqe.sqid = U16::new(sqid);
        let queue = &mut self.queues[qid];
        cqe.status_raw = U16::new(cqe.status().with_phase(queue.phase).to_bits());
        let at = queue.cq + u64::from(queue.cq_tail) * 16;
        queue.cq_tail = (queue.cq_tail + 1) % queue.cq_entries;
        if queue.cq_tail == 0 {
            queue.phase = !queue.phase;
        }
        self.memory.write(at, cqe.as_bytes());
    }
}
