//! Get Log Page (Base 5.2.13).

use penstock_bdev::Op;
use penstock_reactor::Tick;
use penstock_spec::nvme::cross_reset::LSP_REMOVE_COMPLETED;
use penstock_spec::nvme::log::ana::LSP_RETURN_GROUPS_ONLY;
use penstock_spec::nvme::log::health::{FirmwareSlotLog, SmartLog};
use penstock_spec::nvme::log::{GetLogPageCmd, Lid};
use penstock_spec::nvme::opcode::Csi;
use penstock_spec::nvme::{NSID_ALL, Status};
use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

use super::event::Event;
use super::identify::firmware_revision;
use super::{Controller, INVALID_FIELD, effects};
use crate::config::ADMIN_DATA_LEN_MAX;
use crate::discovery;

/// NVMe-MI Commands Supported and Effects, in bytes; all zero, as no such command is supported.
const MI_LOG_LEN: usize = 4096;
/// Changed Namespace List, in bytes.
const CHANGED_LOG_LEN: usize = 4096;
/// Nanoseconds of an hour.
const HOUR_NS: u64 = 3_600_000_000_000;

impl Controller {
    pub(super) fn get_log_page(
        &self,
        cmd: &GetLogPageCmd,
        out: &mut Vec<u8>,
        now: Tick,
    ) -> Result<(), Status> {
        let len = usize::try_from(cmd.len_bytes()).unwrap_or(usize::MAX);
        if len > ADMIN_DATA_LEN_MAX || cmd.offset_is_index() || !cmd.lpo.get().is_multiple_of(4) {
            return Err(INVALID_FIELD);
        }
        if !effects::log_supported(cmd.lid, self.kind()) {
            return Err(Status::INVALID_LOG_PAGE.with_dnr());
        }
        // No page is per namespace (LPA bit 0 is clear).
        if !matches!(cmd.nsid.get(), 0 | NSID_ALL) {
            return Err(INVALID_FIELD);
        }
        let page = self.log_page(cmd, now)?;
        let from = usize::try_from(cmd.lpo.get()).unwrap_or(usize::MAX);
        let rest = page.get(from..).ok_or(INVALID_FIELD)?;
        out.extend_from_slice(rest.get(..len).unwrap_or(rest));
        // What is asked for beyond the page's end reads as zero.
        out.resize(len, 0);
        Ok(())
    }

    fn log_page(&self, cmd: &GetLogPageCmd, now: Tick) -> Result<Vec<u8>, Status> {
        let discovery = self.is_discovery();
        let page = match cmd.lid {
            Lid::SUPPORTED_LOG_PAGES => effects::supported_log_pages(self.kind()).as_bytes().to_vec(),
            Lid::ERROR_INFORMATION => self.errors.page(),
            Lid::SMART_HEALTH => self.smart(now).as_bytes().to_vec(),
            Lid::FIRMWARE_SLOT => firmware_slots().as_bytes().to_vec(),
            Lid::CHANGED_NS_LIST => self.changed_namespaces(),
            Lid::CROSS_CONTROLLER_RESET => self.cross_resets.page(),
            Lid::ANA => self.ana.page(cmd.lsp() & LSP_RETURN_GROUPS_ONLY != 0),
            Lid::COMMANDS_SUPPORTED => {
                let csi = Csi(u8::try_from(cmd.cdw14.get() >> 24).unwrap_or(u8::MAX));
                if csi != Csi::NVM {
                    return Err(INVALID_FIELD);
                }
                effects::commands_supported(discovery).as_bytes().to_vec()
            }
            Lid::FEATURES_SUPPORTED => effects::features_supported(discovery).as_bytes().to_vec(),
            Lid::RESERVATION_NOTIFICATION => self.notices.page().as_bytes().to_vec(),
            Lid::NVME_MI_COMMANDS_SUPPORTED => vec![0; MI_LOG_LEN],
            _ => discovery::log_page(&self.params.discovery, &self.params.hostnqn, self.params.local),
        };
        Ok(page)
    }

    /// A page that was delivered without Retain Asynchronous Event settles its event.
    pub(super) fn log_was_read(&mut self, cmd: &GetLogPageCmd) {
        if cmd.lid == Lid::CROSS_CONTROLLER_RESET && cmd.lsp() & LSP_REMOVE_COMPLETED != 0 {
            self.cross_resets.remove_completed();
        }
        if cmd.rae() {
            return;
        }
        match cmd.lid {
            Lid::CHANGED_NS_LIST => {
                self.changed.clear();
                self.events.was_read(Event::NamespaceAttribute);
            }
            Lid::RESERVATION_NOTIFICATION => self.notice_was_read(),
            Lid::DISCOVERY => self.events.was_read(Event::DiscoveryLog),
            Lid::ANA => self.events.was_read(Event::AnaChange),
            Lid::CROSS_CONTROLLER_RESET => self.events.was_read(Event::CrossReset),
            _ => {}
        }
    }

    fn changed_namespaces(&self) -> Vec<u8> {
        let mut page: Vec<u8> = self.changed.iter().flat_map(|nsid| nsid.0.to_le_bytes()).collect();
        if page.len() > CHANGED_LOG_LEN {
            page = u32::MAX.to_le_bytes().to_vec();
        }
        page.resize(CHANGED_LOG_LEN, 0);
        page
    }

    /// What the namespaces' bdevs have counted, on all reactors and for all hosts: the page is of the NVM subsystem.
    fn smart(&self, now: Tick) -> SmartLog {
        let (mut bytes, mut ops) = ([0_u64; 2], [0_u64; 2]);
        for namespace in self.params.subsystem.namespaces.values() {
            for (_, stats) in namespace.descriptor.shared().all_stats() {
                for (op, slot) in [(Op::Read, 0), (Op::Compare, 0), (Op::Write, 1), (Op::CompareAndWrite, 1)]
                {
                    let counted = stats.op(op);
                    if let (Some(bytes), Some(ops)) = (bytes.get_mut(slot), ops.get_mut(slot)) {
                        *bytes = bytes.saturating_add(counted.bytes.read());
                        *ops = ops.saturating_add(counted.ops.read());
                    }
                }
            }
        }
        let [read_bytes, written_bytes] = bytes;
        let [reads, writes] = ops;
        let mut data = SmartLog::default();
        data.avsp = 100;
        data.avspt = 10;
        data.data_units_read = units(read_bytes);
        data.data_units_written = units(written_bytes);
        data.host_read_commands = wide(reads);
        data.host_write_commands = wide(writes);
        data.power_cycles = wide(1);
        data.power_on_hours = wide(now.as_ns() / HOUR_NS);
        data.media_errors = wide(self.errors.media_errors());
        data.error_log_entries = wide(self.errors.count());
        data
    }
}

/// Thousands of 512-byte units, rounded up.
fn units(bytes: u64) -> [u8; 16] {
    wide(bytes.div_ceil(512_000))
}

fn wide(value: u64) -> [u8; 16] {
    u128::from(value).to_le_bytes()
}

/// One slot, read-only and active.
fn firmware_slots() -> FirmwareSlotLog {
    let mut page = FirmwareSlotLog::default();
    page.afi = 1;

    if let Some(slot) = page.frs.first_mut() {
        *slot = firmware_revision();
    }
    page
}

/// The list's entries are 32-bit.
const _: () = assert!(CHANGED_LOG_LEN / size_of::<U32>() == penstock_spec::nvme::log::CHANGED_NS_MAX);
