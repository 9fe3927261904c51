//! One command, from its CDB to its status: a state machine that is fed data, buffers and completions.
//!
//! ```text
//!   start ──► Data ──► data_out ──┐            ┌──► Submit ──► take_io … completed ──┐
//!         ──► Buffers ► buffers ──┼─► (again) ─┼──► Control ─► take_control … replied ┼──► Done: answer, data_in
//!         ────────────────────────┘            └─────────────────────────────────────┘
//! ```
//!
//! Each [`Step`] says what the task waits for, and only that may be called next; anything else is a bug of the caller and
//! asserted. One I/O of a task is under way at a time. A task is used again and allocates nothing for reads and writes.

mod admin;
mod blocks;
mod copying;
mod job;
mod write_same;

use penstock_bdev::{Io, IoFlags, Op, Sg};
use penstock_reactor::Tick;
use penstock_spec::scsi::cdb::{CDB_BYTES_MAX, CONTROL_NACA};
use penstock_spec::scsi::sense::{Asc, SenseKey, Status};

use crate::command::table::{self, Entry, Kind};
use crate::config::{LuConfig, LuId};
use crate::lu::{Control, LuView, Reply, access_fault};
use crate::nexus::{Nexus, lun_of};
use crate::sense::{Fault, Sense, SenseBytes};
use job::Job;

/// A command as a transport has got it.
#[derive(Debug, Clone, Copy)]
pub struct Command {
    /// Command descriptor block; bytes beyond its length are 0.
    pub cdb: [u8; CDB_BYTES_MAX],
    /// LUN, as its eight bytes.
    pub lun: u64,
    /// Bytes that the initiator has to send at most (iSCSI: the Expected Data Transfer Length of a write; 0 else).
    pub data_out_bytes: u32,
}

/// What a task waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Step {
    /// `bytes` bytes of the initiator's data (never more than it has), for [`Task::data_out`].
    Data {
        /// How many.
        bytes: u32,
    },
    /// Empty buffers of `bytes` bytes, for [`Task::buffers`]. Which bytes they hold does not matter.
    Buffers {
        /// How many bytes.
        bytes: u32,
    },
    /// [`Task::take_io`] is to be submitted to the bdev of `lu`; when done, [`Task::completed`].
    Submit {
        /// Whose bdev.
        lu: LuId,
    },
    /// [`Task::take_control`] is for the owner of `lu`; its reply, for [`Task::replied`].
    Control {
        /// Whose owner.
        lu: LuId,
    },
    /// Nothing: [`Task::answer`] and [`Task::data_in`] are there.
    Done,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Status.
    pub status: Status,
    /// Sense data; empty unless the status is CHECK CONDITION.
    pub sense: SenseBytes,
    /// Bytes that the command moves by its CDB, whatever the transport could: residuals are the difference to what the
    /// initiator expected.
    pub transfer_bytes: u64,
}

/// What a command has for the initiator. A transport sends as much of it as was expected, and says what was left over.
#[derive(Debug)]
pub enum DataIn<'a> {
    /// Nothing.
    None,
    /// Blocks.
    Blocks(&'a Sg),
    /// Parameter data, truncated to the allocation length.
    Bytes(&'a [u8]),
}

/// One command. Kept by whoever runs commands and used again and again.
#[derive(Debug)]
pub struct Task {
    waits_for: Step,
    job: Job,
    io: Option<Box<Io>>,
    cdb: [u8; CDB_BYTES_MAX],
    lun: u16,
    lu: LuId,
    now: Tick,
    descriptor_sense: bool,
    data_out_bytes: u32,
    /// First block and number of blocks that are still to be done.
    lba: u64,
    blocks: u32,
    flags: IoFlags,
    /// Blocks for or from the initiator.
    data: Sg,
    /// Buffers of the task's own.
    work: Sg,
    bytes: Vec<u8>,
    has_blocks: bool,
    /// The bdev gives the read its buffers.
    late_buffers: bool,
    control: Option<Control>,
    answer: Answer,
}

const GOOD: Answer = Answer { status: Status::GOOD, sense: SenseBytes::EMPTY, transfer_bytes: 0 };

impl Default for Task {
    fn default() -> Self {
        Self::new()
    }
}

impl Task {
    /// A task that waits for a command.
    #[must_use]
    pub fn new() -> Self {
        Self {
            waits_for: Step::Done,
            job: Job::None,
            io: Some(Io::boxed()),
            cdb: [0; CDB_BYTES_MAX],
            lun: 0,
            lu: LuId(0),
            now: Tick::ZERO,
            descriptor_sense: false,
            data_out_bytes: 0,
            lba: 0,
            blocks: 0,
            flags: IoFlags::NONE,
            data: Sg::new(),
            work: Sg::new(),
            bytes: Vec::new(),
            has_blocks: false,
            late_buffers: false,
            control: None,
            answer: GOOD,
        }
    }

    /// Begins `command` of `nexus`.
    ///
    /// # Panics
    /// While another command of this task waits for something.
    pub fn start(&mut self, nexus: &mut Nexus, command: &Command, now: Tick) -> Step {
        assert!(self.waits_for == Step::Done && self.io.is_some(), "the task is busy");
        self.job = Job::None;
        self.cdb = command.cdb;
        self.now = now;
        self.descriptor_sense = false;
        self.data_out_bytes = command.data_out_bytes;
        self.late_buffers = false;
        self.flags = IoFlags::NONE;
        self.release_data();
        self.control = None;
        self.answer = GOOD;
        let outcome = self.begin(nexus, command.lun);
        self.settle(outcome)
    }

    /// Takes the initiator's data that [`Step::Data`] asked for.
    ///
    /// # Panics
    /// When it did not, or for another length.
    pub fn data_out(&mut self, nexus: &mut Nexus, data: Sg) -> Step {
        let Step::Data { bytes } = self.waits_for else { panic!("the task does not wait for data") };
        assert!(usize::try_from(bytes) == Ok(data.len_bytes()), "not the data that the task waits for");
        self.data = data;
        let outcome = self.on_data(nexus);
        self.settle(outcome)
    }

    /// Whether [`Self::buffers`] may be given an empty list instead of what [`Step::Buffers`] asks for: the bdev has buffers
    /// of the same length when it reads. Whoever counts buffers counts them from now on.
    #[inline]
    #[must_use]
    pub fn takes_late_buffers(&self) -> bool {
        self.late_buffers
    }

    /// Takes the buffers that [`Step::Buffers`] asked for.
    ///
    /// # Panics
    /// When it did not, or for another length.
    pub fn buffers(&mut self, nexus: &mut Nexus, buffers: Sg) -> Step {
        let Step::Buffers { bytes } = self.waits_for else { panic!("the task does not wait for buffers") };
        let none = buffers.is_empty() && self.late_buffers;
        assert!(
            none || usize::try_from(bytes) == Ok(buffers.len_bytes()),
            "not the buffers that the task waits for"
        );
        let outcome = self.on_buffers(nexus, buffers);
        self.settle(outcome)
    }

    /// The I/O that [`Step::Submit`] announced. Its tag is the caller's to set.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn take_io(&mut self) -> Box<Io> {
        assert!(matches!(self.waits_for, Step::Submit { .. }), "the task has no I/O to submit");
        self.io.take().unwrap_or_else(|| panic!("the I/O is under way already"))
    }

    /// Takes the I/O back that ended.
    ///
    /// # Panics
    /// When none is under way.
    pub fn completed(&mut self, nexus: &mut Nexus, mut io: Box<Io>) -> Step {
        assert!(
            matches!(self.waits_for, Step::Submit { .. }) && self.io.is_none(),
            "the task has no I/O under way"
        );
        let (status, result) = (io.status, io.result);
        let data = std::mem::take(&mut io.data);
        self.io = Some(io);
        let outcome = self.on_completed(nexus, data, status, result);
        self.settle(outcome)
    }

    /// The request that [`Step::Control`] announced.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn take_control(&mut self) -> Control {
        assert!(matches!(self.waits_for, Step::Control { .. }), "the task has nothing for the owner");
        self.control.take().unwrap_or_else(|| panic!("the owner has the request already"))
    }

    /// Takes the owner's reply. The view that goes with it is in `nexus` by now, and what it aborts is aborted.
    ///
    /// # Panics
    /// When none is awaited.
    pub fn replied(&mut self, reply: &Reply) -> Step {
        assert!(matches!(self.waits_for, Step::Control { .. }), "the task does not wait for its owner");
        let outcome = reply.result.and_then(|()| self.on_replied(reply));
        self.settle(outcome)
    }

    /// How the command ended. To be read after [`Step::Done`].
    #[must_use]
    pub fn answer(&self) -> &Answer {
        &self.answer
    }

    /// What it has for the initiator. To be read after [`Step::Done`].
    #[must_use]
    pub fn data_in(&self) -> DataIn<'_> {
        if self.has_blocks {
            DataIn::Blocks(&self.data)
        } else if self.bytes.is_empty() {
            DataIn::None
        } else {
            DataIn::Bytes(&self.bytes)
        }
    }

    /// Takes the blocks out, for sending them after the task is used again. Empty where [`Self::data_in`] has none.
    #[must_use]
    pub fn take_blocks(&mut self) -> Sg {
        if std::mem::take(&mut self.has_blocks) { std::mem::take(&mut self.data) } else { Sg::new() }
    }

    /// Gives buffers and data back, once they were sent.
    pub fn release_data(&mut self) {
        self.data.clear();
        self.work.clear();
        self.bytes.clear();
        self.has_blocks = false;
        if let Some(io) = &mut self.io {
            io.data.clear();
        }
    }

    /// Ends the command without an answer, whatever it waits for (an abort, a lost connection). An I/O that is under way
    /// must have come back before: `false`, and nothing happens, while it has not.
    #[must_use]
    pub fn abandon(&mut self) -> bool {
        if self.io.is_none() {
            return false;
        }
        self.waits_for = Step::Done;
        self.job = Job::None;
        self.control = None;
        self.release_data();
        true
    }

    fn settle(&mut self, outcome: Result<Step, Fault>) -> Step {
        let step = outcome.unwrap_or_else(|fault| {
            self.answer.status = fault.status;
            self.answer.sense =
                fault.sense.map_or(SenseBytes::EMPTY, |sense| sense.encode(self.descriptor_sense));
            self.bytes.clear();
            self.has_blocks = false;
            Step::Done
        });
        if step == Step::Done {
            if !self.has_blocks {
                self.data.clear();
            }
            self.work.clear();
            self.job = Job::None;
        }
        self.waits_for = step;
        step
    }

    fn begin(&mut self, nexus: &mut Nexus, wire_lun: u64) -> Result<Step, Fault> {
        let entry = table::find(&self.cdb);
        let Some((id, lu)) = lun_of(wire_lun).and_then(|lun| nexus.split(lun)) else {
            return self.begin_without_lu(nexus, entry);
        };
        self.lun = lu.lun;
        self.lu = lu.view.config.id;
        self.descriptor_sense = lu.view.modes.d_sense;
        let entry = entry?;
        if !table::is_there(entry, &lu.view.config) {
            return Err(Sense::illegal(Asc::INVALID_OPCODE).into());
        }
        let control_at = entry.usage.len() - 1;
        if self.cdb.get(control_at).is_some_and(|control| control & CONTROL_NACA != 0) {
            return Err(Sense::cdb(u16::try_from(control_at).unwrap_or(0)).into());
        }
        lu.notice_capacity();
        if entry.gate.attention
            && let Some(asc) = lu.take_attention()
        {
            return Err(Sense::attention(asc).into());
        }
        let reserved = lu.view.reserved_by.as_ref().is_some_and(|holder| holder != id);
        if entry.gate.reserve6 && reserved {
            return Err(Fault::CONFLICT);
        }
        if let Some(access) = entry.gate.access
            && !lu.may(id, access)
            && !is_start(entry, &self.cdb)
        {
            return Err(Fault::CONFLICT);
        }
        check_state(entry, &lu.view, id.port)?;
        self.dispatch(nexus, entry)
    }

    /// A LUN that leads nowhere: what is answered all the same (SPC-4 6.6.1, 6.33; SAM-5 5.14).
    fn begin_without_lu(
        &mut self,
        nexus: &Nexus,
        entry: Result<&'static Entry, Sense>,
    ) -> Result<Step, Fault> {
        match entry.map(|entry| entry.kind) {
            Ok(Kind::Inquiry | Kind::ReportLuns | Kind::RequestSense) => self.without_lu(nexus, entry?),
            _ => Err(Sense::illegal(Asc::LU_NOT_SUPPORTED).into()),
        }
    }

    fn config<'a>(&self, nexus: &'a Nexus) -> Result<&'a LuConfig, Fault> {
        Ok(&self.view(nexus)?.config)
    }

    /// The logical unit of the command. It may have gone since the command began.
    fn view<'a>(&self, nexus: &'a Nexus) -> Result<&'a LuView, Fault> {
        let lu = nexus.lu(self.lun).filter(|lu| lu.view.config.id == self.lu);
        lu.map(|lu| &*lu.view).ok_or(Sense::illegal(Asc::LU_NOT_SUPPORTED).into())
    }

    /// Fills the I/O in and asks for its submission.
    fn submit(&mut self, lu: LuId, op: Op, lba: u64, blocks: u32, data: Sg) -> Step {
        let flags = self.flags;
        if let Some(io) = &mut self.io {
            io.set(0, op, flags, penstock_bdev::Lba(lba), blocks);
            io.data = data;
        }
        Step::Submit { lu }
    }
}

/// START STOP UNIT with START and no power condition: allowed whatever is reserved (SBC-3 table 13).
fn is_start(entry: &Entry, cdb: &[u8]) -> bool {
    entry.kind == Kind::StartStop && matches!(cdb, [_, _, _, _, 0x01 | 0x05, ..])
}

/// What the medium, the port's access state and write protection have against it.
fn check_state(entry: &Entry, lu: &LuView, port: u16) -> Result<(), Fault> {
    let gate = &entry.gate;
    if !gate.any_state
        && let Some(fault) = lu.group_of(port).and_then(|group| access_fault(group.state))
    {
        return Err(fault.into());
    }
    if gate.ready && lu.ejected {
        return Err(Sense::not_ready(Asc::MEDIUM_NOT_PRESENT).into());
    }
    if gate.writes && (lu.modes.swp || lu.config.is_read_only()) {
        let by_software = lu.modes.swp && !lu.config.is_read_only();
        let asc = if by_software { Asc::SOFTWARE_WRITE_PROTECTED } else { Asc::WRITE_PROTECTED };
        return Err(Sense::new(SenseKey::DATA_PROTECT, asc).into());
    }
    Ok(())
}
