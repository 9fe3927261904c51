//! A session in its full feature phase, polled: commands out, data and status in.
//!
//! Invariants: an I/O is in one slot from its submission until its status has come and nothing of it is in the send
//! queue; its tag on the wire is the slot's number; a target that breaks a rule ends the connection, and with it every I/O.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};

use penstock_bdev::{Busy, Io, IoFlags, IoStatus, Lba, Op};
use penstock_reactor::Tick;
use penstock_reactor::net::{PIECES_MAX, SendQueue, SlotData, TcpSocket};
use penstock_spec::iscsi::header::{FINAL, IMMEDIATE};
use penstock_spec::iscsi::{
    BHS_LEN, Bhs, DataInHdr, DataLen, DataOutHdr, NopInHdr, NopOutHdr, Opcode, R2tHdr, ScsiCommandHdr,
    TAG_NONE, pad_len,
};
use zerocopy::{FromBytes as _, IntoBytes as _, transmute_ref};

use super::{Agreed, Numbers};
use crate::worker::Device;

/// Bytes received at once.
const RECV_BYTES: usize = 256 << 10;
/// From so many bytes on, data are received straight into their buffer.
const DIRECT_MIN: usize = 4096;
/// After a PDU with so many bytes of data or more, only ...
const BULK_MIN: u32 = 32 << 10;
/// ... so many bytes behind the expected ones are received, to be copied from there.
const BULK_ROOM: usize = 4096;
/// FUA of a CDB's second byte.
const CDB_FUA: u8 = 0x08;

/// A command under way, or none.
#[derive(Debug, Default)]
struct Slot {
    io: Option<Box<Io>>,
    /// PDUs with its data that are not sent.
    unsent: u32,
    /// SCSI status, once it has come.
    status: Option<u8>,
}

#[derive(Debug)]
struct Slots(Vec<Slot>);

impl SlotData for Slots {
    #[inline]
    fn bytes_from(&self, slot: u16, at: u32) -> &[u8] {
        let io = self.0.get(usize::from(slot)).and_then(|slot| slot.io.as_ref());
        io.and_then(|io| io.data.iter().next()?.get(at as usize..)).unwrap_or_default()
    }
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Header,
    /// Data of a read: where they go, and how many are left.
    Data {
        slot: u16,
        at: usize,
        left: usize,
        /// They are the last, and the status came with them.
        ends: bool,
    },
    /// What nobody wants: padding, sense data.
    Skip(usize),
}

/// See the module.
#[derive(Debug)]
pub struct Session {
    socket: TcpSocket,
    lun: u64,
    agreed: Agreed,
    numbers: Numbers,
    slots: Slots,
    free: Vec<u16>,
    tx: SendQueue,
    phase: Phase,
    header: Vec<u8>,
    recv: Box<[u8]>,
    /// The last PDU was a long one.
    bulk: bool,
    done: VecDeque<Box<Io>>,
    /// Nothing more comes; what was under way fails.
    lost: bool,
}

/// Where the data that come next go.
fn room(slots: &mut Slots, phase: Phase) -> Option<&mut [u8]> {
    let Phase::Data { slot, at, left, .. } = phase else { return None };
    let io = slots.0.get_mut(usize::from(slot))?.io.as_mut()?;
    io.data.iter_mut().next()?.get_mut(at..at + left)
}

fn broken(what: &str) -> io::Error {
    io::Error::other(what.to_owned())
}

impl Session {
    pub(super) fn new(socket: TcpSocket, lun: u64, depth: u16, agreed: Agreed, numbers: Numbers) -> Self {
        Self {
            socket,
            lun,
            agreed,
            numbers,
            slots: Slots((0..depth).map(|_| Slot::default()).collect()),
            free: (0..depth).rev().collect(),
            tx: SendQueue::default(),
            phase: Phase::Header,
            header: Vec::with_capacity(BHS_LEN),
            recv: vec![0; RECV_BYTES].into_boxed_slice(),
            bulk: false,
            done: VecDeque::with_capacity(usize::from(depth)),
            lost: false,
        }
    }

    /// The next command's number, if the window has room for it.
    fn next_cmd_sn(&mut self) -> Option<u32> {
        let cmd_sn = self.numbers.cmd_sn;
        // Serial number arithmetic (RFC 1982).
        let has_room = self.numbers.max_cmd_sn.wrapping_sub(cmd_sn) < 1 << 31;
        has_room.then(|| {
            self.numbers.cmd_sn = cmd_sn.wrapping_add(1);
            cmd_sn
        })
    }

    fn push_command(&mut self, slot: u16, io: &Io, cmd_sn: u32) {
        let len = u32::try_from(io.data.len_bytes()).unwrap_or(u32::MAX);
        let (opcode, direction) = match io.op {
            Op::Read => (0x88, ScsiCommandHdr::READ),
            _ => (0x8a, ScsiCommandHdr::WRITE),
        };
        let mut cdb = [0; 16];
        let fua = if io.flags.contains(IoFlags::FUA) { CDB_FUA } else { 0 };
        let Lba(lba) = io.lba;
        let fields = [opcode, fua].into_iter().chain(lba.to_be_bytes()).chain(io.blocks.to_be_bytes());
        cdb.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
        let now = if io.op == Op::Write { len.min(self.agreed.immediate) } else { 0 };
        let hdr = ScsiCommandHdr {
            opcode: Opcode::SCSI_COMMAND.0,
            flags: FINAL | direction | 1,
            data_len: DataLen::new(now),
            lun: self.lun.into(),
            itt: u32::from(slot).into(),
            edtl: len.into(),
            cmd_sn: cmd_sn.into(),
            exp_stat_sn: self.numbers.exp_stat_sn.into(),
            cdb,
            ..ScsiCommandHdr::default()
        };
        self.tx.push(hdr.as_bytes());
        if now > 0 {
            self.push_data(slot, 0, now);
        }
    }

    /// Data of a write, behind the header just pushed. All lengths are multiples of four.
    fn push_data(&mut self, slot: u16, at: u32, len: u32) {
        self.tx.push_data(slot, at, len, true);
        if let Some(slot) = self.slots.0.get_mut(usize::from(slot)) {
            slot.unsent += 1;
        }
    }

    /// Sends what was asked for.
    fn answer_r2t(&mut self, hdr: &R2tHdr) -> io::Result<()> {
        let slot = self.busy(hdr.itt.get())?;
        let (mut at, end) = (hdr.offset.get(), hdr.offset.get().saturating_add(hdr.len.get()));
        let io = self.slots.0.get(usize::from(slot)).and_then(|slot| slot.io.as_ref());
        let fits = io.is_some_and(|io| io.op == Op::Write && end as usize <= io.data.len_bytes());
        if !fits || !end.is_multiple_of(4) {
            return Err(broken("the target asks for data that the command does not have"));
        }
        let mut data_sn = 0_u32;
        while at < end {
            let now = self.agreed.segment.min(end - at);
            let out = DataOutHdr {
                opcode: Opcode::DATA_OUT.0,
                flags: if at + now == end { FINAL } else { 0 },
                data_len: DataLen::new(now),
                lun: hdr.lun,
                itt: hdr.itt,
                ttt: hdr.ttt,
                exp_stat_sn: self.numbers.exp_stat_sn.into(),
                data_sn: data_sn.into(),
                offset: at.into(),
                ..DataOutHdr::default()
            };
            self.tx.push(out.as_bytes());
            self.push_data(slot, at, now);
            at += now;
            data_sn += 1;
        }
        Ok(())
    }

    /// The slot that a tag names.
    fn busy(&self, itt: u32) -> io::Result<u16> {
        let slot = u16::try_from(itt).ok();
        let found =
            slot.and_then(|slot| self.slots.0.get(usize::from(slot))).and_then(|slot| slot.io.as_ref());
        slot.filter(|_| found.is_some())
            .ok_or_else(|| broken("the target answers a command that is not there"))
    }

    /// Takes numbers over that every PDU of a target has; `counts`: it has used its StatSN up.
    fn note(&mut self, bhs: &Bhs, counts: bool) {
        let hdr: &DataInHdr = transmute_ref!(bhs);
        if counts {
            self.numbers.exp_stat_sn = hdr.stat_sn.get().wrapping_add(1);
        }
        let max = hdr.max_cmd_sn.get();
        if max.wrapping_sub(self.numbers.max_cmd_sn) < 1 << 31 {
            self.numbers.max_cmd_sn = max;
        }
    }

    fn header_came(&mut self, bhs: &Bhs) -> io::Result<()> {
        let len = bhs.data_len.get();
        self.bulk = len >= BULK_MIN;
        let padded = (len + pad_len(len)) as usize;
        self.phase = if padded == 0 { Phase::Header } else { Phase::Skip(padded) };
        if bhs.ahs_words > 0 {
            return Err(broken("a target's PDU with additional header segments"));
        }
        match Opcode(bhs.opcode & 0x3f) {
            Opcode::DATA_IN => {
                let hdr: &DataInHdr = transmute_ref!(bhs);
                let ends = hdr.flags & DataInHdr::STATUS != 0;
                self.note(bhs, ends);
                let slot = self.busy(hdr.itt.get())?;
                let at = hdr.offset.get() as usize;
                let Some(command) = self.slots.0.get_mut(usize::from(slot)) else { return Ok(()) };
                let room =
                    command.io.as_ref().filter(|io| io.op == Op::Read).map_or(0, |io| io.data.len_bytes());
                if at + len as usize > room || !len.is_multiple_of(4) {
                    return Err(broken("the target sends data beyond what was asked for"));
                }
                if ends {
                    command.status = Some(hdr.status);
                }
                match len {
                    0 if ends => self.finish(slot),
                    0 => {}
                    _ => self.phase = Phase::Data { slot, at, left: len as usize, ends },
                }
            }
            Opcode::SCSI_RESPONSE => {
                let hdr: &DataInHdr = transmute_ref!(bhs);
                self.note(bhs, true);
                let slot = self.busy(hdr.itt.get())?;
                // The service response is where Data-In has nothing.
                let status = if hdr.rsvd2 == 0 { hdr.status } else { u8::MAX };
                if let Some(command) = self.slots.0.get_mut(usize::from(slot)) {
                    command.status = Some(status);
                }
                self.finish(slot);
            }
            Opcode::R2T => {
                self.note(bhs, false);
                self.answer_r2t(transmute_ref!(bhs))?;
            }
            Opcode::NOP_IN => {
                let hdr: &NopInHdr = transmute_ref!(bhs);
                self.note(bhs, false);
                if hdr.ttt.get() != TAG_NONE {
                    let pong = NopOutHdr {
                        opcode: Opcode::NOP_OUT.0 | IMMEDIATE,
                        flags: FINAL,
                        lun: hdr.lun,
                        itt: TAG_NONE.into(),
                        ttt: hdr.ttt,
                        cmd_sn: self.numbers.cmd_sn.into(),
                        exp_stat_sn: self.numbers.exp_stat_sn.into(),
                        ..NopOutHdr::default()
                    };
                    self.tx.push(pong.as_bytes());
                }
            }
            _ => return Err(broken("the target rejects a PDU or ends the session")),
        }
        Ok(())
    }

    /// Gives an I/O back whose status has come, unless some of it waits to be sent.
    fn finish(&mut self, index: u16) {
        let Some(slot) = self.slots.0.get_mut(usize::from(index)).filter(|slot| slot.unsent == 0) else {
            return;
        };
        let Some(status) = slot.status.take() else { return };
        if let Some(mut io) = slot.io.take() {
            io.status = if status == 0 { IoStatus::Success } else { IoStatus::Internal };
            self.done.push_back(io);
            self.free.push(index);
        }
    }

    /// `len` bytes of data have come to where they belong.
    fn data_came(&mut self, len: usize) {
        let Phase::Data { slot, at, left, ends } = self.phase else { return };
        self.phase = Phase::Data { slot, at: at + len, left: left - len, ends };
        if left == len {
            self.phase = Phase::Header;
            if ends {
                self.finish(slot);
            }
        }
    }

    fn handle(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.phase {
                Phase::Header => {
                    if self.header.is_empty()
                        && let Ok((bhs, rest)) = Bhs::read_from_prefix(bytes)
                    {
                        bytes = rest;
                        self.header_came(&bhs)?;
                        continue;
                    }
                    let (now, rest) = bytes.split_at((BHS_LEN - self.header.len()).min(bytes.len()));
                    self.header.extend_from_slice(now);
                    bytes = rest;
                    if let Ok(bhs) = Bhs::read_from_bytes(&self.header) {
                        self.header.clear();
                        self.header_came(&bhs)?;
                    }
                }
                Phase::Data { left, .. } => {
                    let (now, rest) = bytes.split_at(left.min(bytes.len()));
                    let room = room(&mut self.slots, self.phase);
                    if let Some(room) = room.and_then(|room| room.get_mut(..now.len())) {
                        room.copy_from_slice(now);
                    }
                    bytes = rest;
                    self.data_came(now.len());
                }
                Phase::Skip(left) => {
                    let now = left.min(bytes.len());
                    bytes = bytes.get(now..).unwrap_or_default();
                    self.phase = if now == left { Phase::Header } else { Phase::Skip(left - now) };
                }
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> io::Result<()> {
        let mut recv = std::mem::take(&mut self.recv);
        let len = if self.bulk { BULK_ROOM } else { RECV_BYTES };
        let behind = recv.get_mut(..len).unwrap_or_default();
        let got = match room(&mut self.slots, self.phase) {
            Some(room) if room.len() >= DIRECT_MIN => {
                let direct = room.len();
                let mut bufs = [IoSliceMut::new(room), IoSliceMut::new(behind)];
                self.socket.recv_vectored(&mut bufs).map(|got| got.map(|got| (got, direct)))
            }
            _ => self.socket.recv(behind).map(|got| got.map(|got| (got, 0))),
        };
        let outcome = match got {
            Ok(Some((0, _))) => Err(io::ErrorKind::ConnectionReset.into()),
            Ok(Some((got, direct))) => {
                let placed = got.min(direct);
                if placed > 0 {
                    self.data_came(placed);
                }
                self.handle(recv.get(..got - placed).unwrap_or_default())
            }
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        self.recv = recv;
        outcome
    }

    fn send(&mut self) -> io::Result<()> {
        while !self.tx.is_empty() {
            let mut pieces = [IoSlice::new(&[]); PIECES_MAX];
            let (count, _) = self.tx.gather(&self.slots, &mut pieces);
            let Some(sent) = self.socket.send_vectored(pieces.get(..count).unwrap_or_default())? else {
                break;
            };
            let slots = &mut self.slots;
            let mut answered = Vec::new();
            self.tx.sent(sent, |index| {
                if let Some(slot) = slots.0.get_mut(usize::from(index)) {
                    slot.unsent -= 1;
                    if slot.status.is_some() {
                        answered.push(index);
                    }
                }
            });
            answered.into_iter().for_each(|index| self.finish(index));
        }
        Ok(())
    }

    fn lose(&mut self) {
        self.lost = true;
        self.tx.clear(|_| ());
        for slot in &mut self.slots.0 {
            if let Some(mut io) = slot.io.take() {
                io.status = IoStatus::Gone;
                self.done.push_back(io);
            }
        }
    }
}

impl Device for Session {
    fn submit(&mut self, mut io: Box<Io>, now: Tick) -> Result<(), Busy> {
        let can = !self.lost && matches!(io.op, Op::Read | Op::Write) && !self.free.is_empty();
        let Some(cmd_sn) = (if can { self.next_cmd_sn() } else { None }) else { return Err(Busy(io)) };
        let Some(slot) = self.free.pop() else { return Err(Busy(io)) };
        io.submitted = now;
        self.push_command(slot, &io, cmd_sn);
        if let Some(place) = self.slots.0.get_mut(usize::from(slot)) {
            place.io = Some(io);
        }
        Ok(())
    }

    fn poll(&mut self, _now: Tick, budget: usize, done: &mut Vec<Box<Io>>) -> usize {
        if !self.lost && (self.receive().is_err() || self.send().is_err()) {
            self.lose();
        }
        let count = self.done.len().min(budget);
        done.extend(self.done.drain(..count));
        count
    }

    fn flush_queue(&mut self) {
        if !self.lost && self.send().is_err() {
            self.lose();
        }
    }
}
