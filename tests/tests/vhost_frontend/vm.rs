//! A virtual machine without a processor: rust-vmm's frontend, memory, and one queue whose rings the test writes.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MmapRegion,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Entries of the queue.
pub(crate) const SIZE: u16 = 64;
/// Where the parts of the ring are.
pub(crate) const DESC: u64 = 0;
pub(crate) const AVAIL: u64 = 0x1000;
pub(crate) const USED: u64 = 0x2000;
/// Where requests have their header and status.
const HEADER: u64 = 0x3000;
const STATUS: u64 = 0x4000;
/// What the first region has room for behind them.
pub(crate) const DATA: u64 = 0x10000;
pub(crate) const MIB: u64 = 1 << 20;

/// Kinds of requests.
pub(crate) const IN: u32 = 0;
pub(crate) const OUT: u32 = 1;

/// Flags of descriptors.
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// Features: VERSION_1, PROTOCOL_FEATURES, INDIRECT_DESC.
const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 28;

/// A descriptor: address, length, flags, next.
pub(crate) type Desc = (u64, u32, u16, u16);

pub(crate) struct Vm {
    pub(crate) frontend: Frontend,
    memory: GuestMemoryMmap,
    kick: EventFd,
    _call: EventFd,
    offered: u16,
}

/// A piece of shared memory at a guest address.
pub(crate) fn region(gpa: u64, len: u64) -> Result<GuestRegionMmap> {
    let path = std::env::temp_dir().join(format!("penstock-vm-{}-{:p}", std::process::id(), &gpa));
    let file = std::fs::File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
    std::fs::remove_file(&path)?;
    file.set_len(len)?;
    let mapping = MmapRegion::from_file(FileOffset::new(file, 0), usize::try_from(len)?)?;
    GuestRegionMmap::new(mapping, GuestAddress(gpa)).context("a region")
}

/// How a region is told to the other side.
pub(crate) fn info(region: &GuestRegionMmap) -> Result<VhostUserMemoryRegionInfo> {
    Ok(VhostUserMemoryRegionInfo::from_guest_region(region)?)
}

impl Vm {
    /// Connects, with one region of a MiB at 0, and has its queue served.
    pub(crate) fn start(socket: &Path) -> Result<Self> {
        let mut vm = Self::connect(socket)?;
        let address = |gpa| Ok::<_, anyhow::Error>(vm.memory.get_host_address(GuestAddress(gpa))? as u64);
        let config = VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: address(DESC)?,
            used_ring_addr: address(USED)?,
            avail_ring_addr: address(AVAIL)?,
            log_addr: None,
        };
        vm.serve(&config)?;
        Ok(vm)
    }

    /// Connects and hands the memory over.
    pub(crate) fn connect(socket: &Path) -> Result<Self> {
        let mut frontend = Frontend::connect(socket, 1).context("nobody listens")?;
        frontend.set_owner()?;
        let offered = frontend.get_features()?;
        ensure!(offered & FEATURES == FEATURES, "features {offered:#x}");
        frontend.set_features(FEATURES)?;
        let wanted = VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS | VhostUserProtocolFeatures::REPLY_ACK;
        ensure!(frontend.get_protocol_features()?.contains(wanted), "no memory slots, or no answers");
        frontend.set_protocol_features(wanted)?;
        // From now on everything is answered.
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        ensure!(frontend.get_max_mem_slots()? >= 32, "too few slots");
        let first = region(0, MIB)?;
        frontend.add_mem_region(&info(&first)?)?;
        let memory = GuestMemoryMmap::from_regions(vec![first])?;
        let (kick, call) = (EventFd::new(EFD_NONBLOCK)?, EventFd::new(EFD_NONBLOCK)?);
        Ok(Self { frontend, memory, kick, _call: call, offered: 0 })
    }

    /// Has the queue served.
    pub(crate) fn serve(&mut self, config: &VringConfigData) -> Result<()> {
        self.frontend.set_vring_num(0, SIZE)?;
        self.frontend.set_vring_base(0, 0)?;
        self.frontend.set_vring_addr(0, config)?;
        self.frontend.set_vring_call(0, &self._call)?;
        self.frontend.set_vring_kick(0, &self.kick)?;
        self.frontend.set_vring_enable(0, true)?;
        Ok(())
    }

    /// Where the frontend has a guest address.
    pub(crate) fn host_address(&self, gpa: u64) -> Result<u64> {
        Ok(self.memory.get_host_address(GuestAddress(gpa))? as u64)
    }

    /// Adds a region, and tells the other side.
    pub(crate) fn plug(&mut self, gpa: u64, len: u64) -> Result<VhostUserMemoryRegionInfo> {
        let region = region(gpa, len)?;
        let info = info(&region)?;
        ensure!(info.mmap_handle == region.file_offset().context("a file")?.file().as_raw_fd());
        self.frontend.add_mem_region(&info)?;
        self.memory = self.memory.insert_region(std::sync::Arc::new(region))?;
        Ok(info)
    }

    pub(crate) fn write(&self, gpa: u64, bytes: &[u8]) -> Result<()> {
        Ok(self.memory.write_slice(bytes, GuestAddress(gpa))?)
    }

    pub(crate) fn read(&self, gpa: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(gpa))?;
        Ok(bytes)
    }

    /// Writes descriptors from `first` of the table at `table` on.
    pub(crate) fn describe(&self, table: u64, first: u16, descriptors: &[Desc]) -> Result<()> {
        for (index, (addr, len, flags, next)) in (u64::from(first)..).zip(descriptors) {
            let bytes =
                [&addr.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()];
            self.write(table + 16 * index, &bytes.concat())?;
        }
        Ok(())
    }

    /// Offers the chain that begins at descriptor `head`, and kicks.
    pub(crate) fn offer(&mut self, head: u16) -> Result<()> {
        self.write(AVAIL + 4 + 2 * u64::from(self.offered % SIZE), &head.to_le_bytes())?;
        self.offered = self.offered.wrapping_add(1);
        self.set_avail(self.offered)
    }

    /// Says that the available ring goes so far, and kicks.
    pub(crate) fn set_avail(&mut self, index: u16) -> Result<()> {
        self.memory.store(index, GuestAddress(AVAIL + 2), std::sync::atomic::Ordering::Release)?;
        Ok(self.kick.write(1)?)
    }

    /// How far the used ring goes.
    pub(crate) fn used(&self) -> Result<u16> {
        Ok(self.memory.load(GuestAddress(USED + 2), std::sync::atomic::Ordering::Acquire)?)
    }

    /// Offers a transfer of `len` bytes at `gpa`.
    pub(crate) fn submit(&mut self, kind: u32, sector: u64, gpa: u64, len: u32) -> Result<()> {
        let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        self.write(HEADER, &header)?;
        self.write(STATUS, &[0xff])?;
        let flags = if kind == IN { NEXT | WRITE } else { NEXT };
        self.describe(DESC, 0, &[(HEADER, 16, NEXT, 1), (gpa, len, flags, 2), (STATUS, 1, WRITE, 0)])?;
        self.offer(0)
    }

    /// How the request under way has ended; `None`: not within `limit`.
    pub(crate) fn ended(&self, limit: Duration) -> Result<Option<u8>> {
        let end = Instant::now() + limit;
        while self.used()? != self.offered {
            if Instant::now() > end {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(self.read(STATUS, 1)?.first().copied())
    }

    /// One transfer and how it ended.
    pub(crate) fn transfer(&mut self, kind: u32, sector: u64, gpa: u64, len: u32) -> Result<u8> {
        self.submit(kind, sector, gpa, len)?;
        self.ended(Duration::from_secs(20))?.context("a request does not end")
    }

    /// Writes and reads something back.
    pub(crate) fn works(&mut self, byte: u8) -> Result<()> {
        self.write(DATA, &[byte; 4096])?;
        ensure!(self.transfer(OUT, 64, DATA, 4096)? == 0, "a write fails");
        ensure!(self.transfer(IN, 64, DATA + 8192, 4096)? == 0, "a read fails");
        ensure!(self.read(DATA + 8192, 4096)? == [byte; 4096], "other bytes come back");
        Ok(())
    }
}
