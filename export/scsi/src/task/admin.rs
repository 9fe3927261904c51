//! Dispatch, and the commands that move no blocks.

use penstock_bdev::{IoFlags, Op, Sg};
use penstock_spec::scsi::cdb;
use penstock_spec::scsi::opcode::{CopyOut, Opcode, PrIn, PrOut};
use penstock_spec::scsi::sense::{Asc, SenseKey, Status};

use super::job::{CopyEnd, Job};
use super::{Fault, Sense, Step, Task};
use crate::command::table::{Entry, Kind};
use crate::command::{
    LIST_BYTES_MAX, capacity, copy, inquiry, mode, ports, report, reserve, token, unmap, view,
};
use crate::lu::{Control, Reply};
use crate::nexus::Nexus;

impl Task {
    /// Sends a command that has passed all gates on its way.
    #[inline]
    pub(super) fn dispatch(&mut self, nexus: &mut Nexus, entry: &'static Entry) -> Result<Step, Fault> {
        match entry.kind {
            Kind::Read => self.begin_read(nexus),
            Kind::Write => self.begin_write(nexus),
            Kind::WriteVerify => self.begin_write_verify(nexus),
            Kind::Verify => self.begin_verify(nexus),
            Kind::OrWrite => self.begin_or_write(nexus),
            Kind::CompareAndWrite => self.begin_compare_and_write(nexus),
            Kind::WriteSame => self.begin_write_same(nexus),
            Kind::WriteAtomic => self.begin_write_atomic(nexus),
            Kind::PreFetch => self.begin_pre_fetch(nexus),
            Kind::SyncCache => self.begin_sync(nexus),
            Kind::TestUnitReady => Ok(Step::Done),
            Kind::Unmap => {
                let flags = view::<cdb::Basic10>(&self.cdb)?.flags;
                // ANCHOR: ANC_SUP is clear.
                if flags & 0x01 != 0 {
                    return Err(Sense::cdb(1).into());
                }
                self.want_list(nexus, u32::from(view::<cdb::Basic10>(&self.cdb)?.len.get()))
            }
            Kind::ModeSelect => self.begin_mode_select(nexus),
            Kind::PrOut => {
                // PARAMETER LIST LENGTH has 32 bits here.
                let cdb = view::<cdb::Basic10>(&self.cdb)?;
                let len = (u32::from(cdb.len_high.get()) << 16) | u32::from(cdb.len.get());
                self.want_list(nexus, len)
            }
            Kind::SetPortGroups => self.want_list(nexus, view::<cdb::Basic12>(&self.cdb)?.len.get()),
            Kind::ExtendedCopy | Kind::PopulateToken | Kind::WriteUsingToken => {
                self.want_list(nexus, view::<cdb::Copy16>(&self.cdb)?.len.get())
            }
            Kind::StartStop => self.begin_start_stop(nexus),
            Kind::PreventAllow => {
                let prevent = view::<cdb::Basic6>(&self.cdb)?.len & 0x01 != 0;
                Ok(self.ask_owner(Control::Prevent(prevent)))
            }
            Kind::LbaStatus => {
                let first = view::<cdb::ServiceActionIn16>(&self.cdb)?.lba.get();
                let room_bytes = self.allocation_length(entry)?;
                let asked = capacity::lba_status_asked(self.config(nexus)?, first, room_bytes)?;
                Ok(self.ask_owner(asked))
            }
            Kind::Reserve6 => Ok(self.ask_owner(Control::Reserve6)),
            Kind::Release6 => Ok(self.ask_owner(Control::Release6)),
            _ => self.answer_at_once(nexus, entry),
        }
    }

    pub(super) fn without_lu(&mut self, nexus: &Nexus, entry: &Entry) -> Result<Step, Fault> {
        let mut out = std::mem::take(&mut self.bytes);
        let made = match entry.kind {
            Kind::Inquiry => {
                let cdb = view::<cdb::Inquiry>(&self.cdb)?;
                inquiry::inquiry(cdb, None, nexus.id().port, &mut out)
            }
            Kind::ReportLuns => report::luns(view::<cdb::Basic12>(&self.cdb)?.options, nexus, &mut out),
            _ => {
                let descriptor = view::<cdb::Basic6>(&self.cdb)?.flags & 0x01 != 0;
                let sense = Sense::illegal(Asc::LU_NOT_SUPPORTED);
                out.extend_from_slice(sense.encode(descriptor).as_slice());
                Ok(())
            }
        };
        self.bytes = out;
        made?;
        self.truncate(self.allocation_length(entry)?)
    }

    /// Commands whose answer is known at once.
    fn answer_at_once(&mut self, nexus: &mut Nexus, entry: &'static Entry) -> Result<Step, Fault> {
        let mut out = std::mem::take(&mut self.bytes);
        let made = self.make(nexus, entry, &mut out);
        self.bytes = out;
        made?;
        self.truncate(self.allocation_length(entry)?)
    }

    fn make(&self, nexus: &mut Nexus, entry: &'static Entry, out: &mut Vec<u8>) -> Result<(), Fault> {
        let cdb = &self.cdb;
        let lu =
            std::sync::Arc::clone(&nexus.lu(self.lun).ok_or(Sense::illegal(Asc::LU_NOT_SUPPORTED))?.view);
        let config = &lu.config;
        let twelve = || view::<cdb::Basic12>(cdb);
        let copy = || view::<cdb::Copy16>(cdb);
        match entry.kind {
            Kind::Inquiry => inquiry::inquiry(view(cdb)?, Some(&lu), nexus.id().port, out),
            Kind::ReportLuns => {
                nexus.forget_everywhere(Asc::LUNS_CHANGED);
                report::luns(twelve()?.options, nexus, out)
            }
            Kind::RequestSense => {
                let descriptor = view::<cdb::Basic6>(cdb)?.flags & 0x01 != 0;
                let attention = nexus.lu_mut(self.lun).and_then(crate::nexus::NexusLu::take_attention);
                let sense = match attention {
                    Some(asc) => Sense::attention(asc),
                    None if lu.ejected => Sense::not_ready(Asc::MEDIUM_NOT_PRESENT),
                    None => Sense::new(SenseKey::NO_SENSE, Asc::NONE),
                };
                out.extend_from_slice(sense.encode(descriptor).as_slice());
                Ok(())
            }
            Kind::ModeSense => mode::sense(self.mode_sense_asked()?, &lu, out),
            Kind::PrIn => {
                let action = view::<cdb::Basic10>(cdb)?.flags & cdb::SERVICE_ACTION_MASK;
                reserve::read(PrIn(action), &lu.reservations, out)
            }
            Kind::Capacity10 => {
                let cdb = view::<cdb::Rw10>(cdb)?;
                capacity::capacity10(config, cdb.lba.get(), cdb.len.get() & 0x0001 != 0, out)
            }
            Kind::Capacity16 => {
                capacity::capacity16(config, out);
                Ok(())
            }
            Kind::DefectData => {
                let long = entry.opcode == Opcode::READ_DEFECT_DATA_12;
                let lists = if long { twelve()?.service_action } else { view::<cdb::Basic10>(cdb)?.page };
                capacity::defect_data(lists, long, out);
                Ok(())
            }
            Kind::ReportOpcodes => report::opcodes(twelve()?, &lu, out),
            Kind::ReportTmfs => {
                report::tmfs(twelve()?.options & 0x80 != 0, out);
                Ok(())
            }
            Kind::ReportPortGroups => ports::report(twelve()?.service_action >> 5, &lu, out),
            Kind::CopyParameters => {
                copy::parameters(config.info().block_bytes, out);
                Ok(())
            }
            Kind::CopyStatus => {
                let [list_id, ..] = copy()?.list_id_in.get().to_be_bytes();
                nexus.copies.status(list_id, out)
            }
            // Nothing is held: failures are told by the sense data of the copy itself.
            Kind::CopyFailure => {
                out.extend([0, 0, 0, 0]);
                Ok(())
            }
            Kind::TokenInformation => nexus.copies.token_information(copy()?.list_id_in.get(), out),
            _ => Err(Sense::illegal(Asc::INVALID_OPCODE).into()),
        }
    }

    fn mode_sense_asked(&self) -> Result<mode::Asked, Fault> {
        let long = self.cdb.first() == Some(&Opcode::MODE_SENSE_10.0);
        // Both layouts have these bytes at the same places.
        let cdb = view::<cdb::Basic6>(&self.cdb)?;
        Ok(mode::Asked {
            long,
            dbd: cdb.flags & 0x08 != 0,
            llbaa: long && cdb.flags & 0x10 != 0,
            page: cdb.page,
            subpage: cdb.subpage,
        })
    }

    /// ALLOCATION LENGTH of a command that returns parameter data.
    fn allocation_length(&self, entry: &Entry) -> Result<u32, Fault> {
        let cdb = &self.cdb;
        Ok(match entry.opcode {
            Opcode::INQUIRY => u32::from(view::<cdb::Inquiry>(cdb)?.alloc.get()),
            Opcode::REQUEST_SENSE | Opcode::MODE_SENSE_6 => u32::from(view::<cdb::Basic6>(cdb)?.len),
            // READ CAPACITY(10) has none: eight bytes always.
            Opcode::READ_CAPACITY_10 => 8,
            Opcode::MODE_SENSE_10 | Opcode::PERSISTENT_RESERVE_IN | Opcode::READ_DEFECT_DATA_10 => {
                u32::from(view::<cdb::Basic10>(cdb)?.len.get())
            }
            Opcode::SERVICE_ACTION_IN_16 => view::<cdb::ServiceActionIn16>(cdb)?.alloc.get(),
            Opcode::THIRD_PARTY_COPY_IN => view::<cdb::Copy16>(cdb)?.len.get(),
            _ => view::<cdb::Basic12>(cdb)?.len.get(),
        })
    }

    fn truncate(&mut self, allocation_length: u32) -> Result<Step, Fault> {
        self.bytes.truncate(usize::try_from(allocation_length).unwrap_or(usize::MAX));
        self.answer.transfer_bytes = u64::try_from(self.bytes.len()).unwrap_or(0);
        Ok(Step::Done)
    }

    /// The owner has done what it was asked.
    pub(super) fn on_replied(&mut self, reply: &Reply) -> Result<Step, Fault> {
        let entry = crate::command::table::find(&self.cdb)?;
        if entry.kind != Kind::LbaStatus {
            return Ok(Step::Done);
        }
        let first = view::<cdb::ServiceActionIn16>(&self.cdb)?.lba.get();
        capacity::lba_status(first, &reply.runs, &mut self.bytes);
        self.truncate(self.allocation_length(entry)?)
    }

    pub(super) fn ask_owner(&mut self, control: Control) -> Step {
        self.control = Some(control);
        self.job = Job::Control;
        Step::Control { lu: self.lu }
    }

    fn begin_mode_select(&mut self, nexus: &mut Nexus) -> Result<Step, Fault> {
        let long = self.cdb.first() == Some(&Opcode::MODE_SELECT_10.0);
        let basic = view::<cdb::Basic6>(&self.cdb)?;
        // PF has to be set, SP to be clear: nothing is saved.
        if basic.flags & 0x11 != 0x10 {
            return Err(Sense::cdb(1).into());
        }
        let len =
            if long { u32::from(view::<cdb::Basic10>(&self.cdb)?.len.get()) } else { u32::from(basic.len) };
        self.want_list(nexus, len)
    }

    fn begin_start_stop(&mut self, nexus: &Nexus) -> Result<Step, Fault> {
        let bits = view::<cdb::Basic6>(&self.cdb)?.len;
        let (power_condition, no_flush, loej, start) =
            (bits >> 4, bits & 0x04 != 0, bits & 0x02 != 0, bits & 0x01 != 0);
        // A power condition is taken note of: there is nothing that spins. LOEJ and START do not count then.
        if power_condition != 0 {
            return Ok(Step::Done);
        }
        if loej {
            if !self.config(nexus)?.removable {
                return Err(Sense::cdb(4).into());
            }
            return Ok(self.ask_owner(Control::Load(start)));
        }
        if start || no_flush { Ok(Step::Done) } else { self.flush(nexus) }
    }

    /// Makes everything durable; nothing to do for a disk without a volatile cache that knows no flush.
    pub(super) fn flush(&mut self, nexus: &Nexus) -> Result<Step, Fault> {
        let caps = self.config(nexus)?.info().caps;
        if !caps.has(Op::Flush) {
            return Ok(Step::Done);
        }
        self.job = Job::Last;
        self.flags = IoFlags::NONE;
        Ok(self.submit(self.lu, Op::Flush, 0, 0, Sg::new()))
    }

    /// Asks for a parameter list of `len` bytes, or as much of it as the initiator has.
    fn want_list(&mut self, nexus: &mut Nexus, len: u32) -> Result<Step, Fault> {
        if len > LIST_BYTES_MAX {
            return Err(Sense::illegal(Asc::PARAMETER_LIST_LENGTH_ERROR).into());
        }
        self.answer.transfer_bytes = u64::from(len);
        self.job = Job::List;
        match len.min(self.data_out_bytes) {
            0 => self.on_list(nexus, &[]),
            bytes => Ok(Step::Data { bytes }),
        }
    }

    /// Goes on with a parameter list.
    pub(super) fn on_list(&mut self, nexus: &mut Nexus, list: &[u8]) -> Result<Step, Fault> {
        let entry = crate::command::table::find(&self.cdb)?;
        let action = view::<cdb::Basic10>(&self.cdb)?.flags & cdb::SERVICE_ACTION_MASK;
        match entry.kind {
            Kind::Unmap => {
                let mut left = unmap::parse(list, self.config(nexus)?)?;
                left.reverse();
                self.unmap_next(nexus, left)
            }
            Kind::ModeSelect => {
                let long = entry.opcode == Opcode::MODE_SELECT_10;
                let modes = mode::select(list, long, self.view(nexus)?)?;
                Ok(self.ask_owner(Control::ModeSelect(modes)))
            }
            Kind::PrOut => {
                let scope_type = view::<cdb::Basic10>(&self.cdb)?.page;
                let command = reserve::parse_out(PrOut(action), scope_type, list)?;
                Ok(self.ask_owner(Control::Pr(command)))
            }
            Kind::SetPortGroups => {
                let states = ports::parse_set(list)?;
                if states.is_empty() {
                    Ok(Step::Done)
                } else {
                    Ok(self.ask_owner(Control::SetPortGroups(states)))
                }
            }
            Kind::ExtendedCopy => {
                let plan = copy::parse(list, nexus)?;
                self.begin_copy(nexus, plan.extents, CopyEnd::Lid1(plan.list_id))
            }
            Kind::PopulateToken => self.populate_token(nexus, list),
            Kind::WriteUsingToken if list.is_empty() => Ok(Step::Done),
            Kind::WriteUsingToken => {
                let list_id = view::<cdb::Copy16>(&self.cdb)?.list_id_out.get();
                let extents = token::write_using(list, self.config(nexus)?, nexus, &nexus.seal, self.now)?;
                self.begin_copy(nexus, extents, CopyEnd::Token(list_id))
            }
            _ => Err(Fault { status: Status::CHECK_CONDITION, sense: Some(Sense::cdb(0)) }),
        }
    }

    fn populate_token(&mut self, nexus: &mut Nexus, list: &[u8]) -> Result<Step, Fault> {
        if list.is_empty() {
            return Ok(Step::Done);
        }
        let readable =
            nexus.lu(self.lun).is_some_and(|lu| lu.may(nexus.id(), penstock_bdev::reservation::Access::Read));
        if !readable {
            return Err(Fault::CONFLICT);
        }
        let list_id = view::<cdb::Copy16>(&self.cdb)?.list_id_out.get();
        let (token, blocks) = token::populate(list, self.config(nexus)?, &nexus.seal, self.now)?;
        nexus.copies.hold_token(token::Outcome {
            list_id,
            action: CopyOut::POPULATE_TOKEN.0,
            done: true,
            blocks,
            token: Some(token::boxed(&token)),
        });
        Ok(Step::Done)
    }
}
