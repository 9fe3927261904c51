//! Namespaces: which there are, and what each is as a block device.

use penstock_bdev::{Caps, Op};
use penstock_reactor::mem::BUF_BYTES_MAX;
use penstock_spec::nvme::identify::controller::OptionalNvm;
use penstock_spec::nvme::identify::namespace::{DeallocateFeatures, ns_id_descriptors};
use penstock_spec::nvme::identify::{Cns, IdentifyController, IdentifyNamespace, Nidt, NsList};
use penstock_spec::nvme::log::Lid;
use penstock_spec::nvme::{NSID_ALL, opcode::Csi};
use penstock_spec::nvmf::property::Vs;
use uuid::Uuid;
use zerocopy::FromBytes;

use super::{Admin, AdminError, Waiter};
use crate::command;
use crate::queue::{COPY_RANGES_MAX, NsParams};

/// Namespaces of one controller that are looked at, at most.
pub const NAMESPACES_MAX: usize = 1024;

/// Why a namespace is no bdev.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Its format has metadata.
    #[error(
        "its format has {bytes} bytes of metadata a block, which is not supported; format it without (nvme format)"
    )]
    Metadata {
        /// Bytes of metadata.
        bytes: u16,
    },
    /// It has protection information.
    #[error(
        "it is formatted with protection information type {kind}, which is not supported; format it without (nvme format --pi=0)"
    )]
    Protection {
        /// Its type.
        kind: u8,
    },
    /// Neither 512 nor 4096.
    #[error("its blocks have {bytes} bytes; 512 and 4096 are supported: format it so (nvme format)")]
    BlockLength {
        /// Length, or 0 where its format says nothing usable.
        bytes: u32,
    },
    /// Another command set.
    #[error("it uses the {0}, which is not supported")]
    CommandSet(Csi),
    /// No blocks.
    #[error("it has no blocks")]
    Empty,
    /// Another path's namespace of the same number is another one.
    #[error(
        "another path has {there} by this number, and this one {here}: they are not paths to one namespace"
    )]
    Differs {
        /// What the other path has.
        there: String,
        /// What this one has.
        here: String,
    },
}

impl Refusal {
    /// Whether it is one only beside another path.
    #[must_use]
    pub const fn differs(&self) -> bool {
        matches!(self, Self::Differs { .. })
    }
}

/// A namespace, as Identify tells.
#[derive(Debug, Clone, PartialEq)]
pub struct Namespace {
    /// Namespace Identifier.
    pub nsid: u32,
    /// Its identity: its UUID or NGUID, or one made of the controller's serial number and its EUI-64 or NSID.
    pub uuid: Uuid,
    /// Length of a block in bytes.
    pub block_bytes: u32,
    /// Length of a physical block in bytes, where it says something of that.
    pub physical_block_bytes: u32,
    /// Length in blocks.
    pub blocks: u64,
    /// What its bdev can do.
    pub caps: Caps,
    /// What its queues need to know.
    pub params: NsParams,
    /// Whether it is write protected now.
    pub write_protected: bool,
}

/// A namespace by its NSID, or why it is no bdev.
pub type Found = (u32, Result<Namespace, Refusal>);

impl Admin {
    /// All active namespaces, in order; those that cannot be used with the reason.
    ///
    /// # Errors
    /// All of [`AdminError`].
    pub fn namespaces(&mut self, waiter: &mut dyn Waiter) -> Result<Vec<Found>, AdminError> {
        let mut found = Vec::new();
        for nsid in self.active(waiter)? {
            found.push((nsid, self.namespace(nsid, waiter)?));
        }
        Ok(found)
    }

    /// One namespace.
    ///
    /// # Errors
    /// All of [`AdminError`].
    pub fn namespace(
        &mut self,
        nsid: u32,
        waiter: &mut dyn Waiter,
    ) -> Result<Result<Namespace, Refusal>, AdminError> {
        let page = self.read("Identify Namespace", command::identify(Cns::NAMESPACE, nsid), waiter)?;
        let identify = IdentifyNamespace::read_from_bytes(page).map_err(|_| AdminError::Memory)?;
        let (uuid, csi) = self.descriptors(nsid, &identify, waiter)?;
        Ok(self.traits().judge(nsid, &identify, uuid, csi))
    }

    /// The NSIDs that changed since this was asked last; `None`: too many to name.
    ///
    /// # Errors
    /// All of [`AdminError`].
    pub fn changed(&mut self, waiter: &mut dyn Waiter) -> Result<Option<Vec<u32>>, AdminError> {
        let sqe = command::get_log_page(Lid::CHANGED_NS_LIST, NSID_ALL, 4096);
        let page = self.read("Get Log Page (changed namespaces)", sqe, waiter)?;
        let list = NsList::ref_from_bytes(page).map_err(|_| AdminError::Memory)?;
        let all: Vec<u32> = list.iter().collect();
        Ok((all != [NSID_ALL]).then_some(all))
    }

    fn active(&mut self, waiter: &mut dyn Waiter) -> Result<Vec<u32>, AdminError> {
        let mut all: Vec<u32> = Vec::new();
        if self.vs.0 < Vs::new(1, 1, 0).0 {
            // Before there were lists, all up to NN were active.
            return Ok((1..=self.identify.nn.get()).take(NAMESPACES_MAX).collect());
        }
        while all.len() < NAMESPACES_MAX {
            let after = all.last().copied().unwrap_or(0);
            let page = self.read(
                "Identify (namespace list)",
                command::identify(Cns::ACTIVE_NS_LIST, after),
                waiter,
            )?;
            let list = NsList::ref_from_bytes(page).map_err(|_| AdminError::Memory)?;
            let before = all.len();
            // In rising order, or it would not end.
            all.extend(list.iter().filter(|nsid| *nsid > after));
            if all.len() - before < list.nsids.len() {
                break;
            }
        }
        all.truncate(NAMESPACES_MAX);
        Ok(all)
    }

    fn descriptors(
        &mut self,
        nsid: u32,
        identify: &IdentifyNamespace,
        waiter: &mut dyn Waiter,
    ) -> Result<(Uuid, Csi), AdminError> {
        let mut descriptors = Vec::new();
        if self.vs.0 >= Vs::new(1, 3, 0).0 {
            let sqe = command::identify(Cns::NS_ID_DESCRIPTORS, nsid);
            match self.read("Identify (namespace descriptors)", sqe, waiter) {
                Ok(page) => descriptors.extend_from_slice(page),
                Err(AdminError::Refused { status, .. }) => tracing::debug!(nsid, ?status, "no descriptors"),
                Err(error) => return Err(error),
            }
        }
        Ok(self.traits().identity(nsid, identify, &descriptors))
    }

    fn traits(&self) -> Traits<'_> {
        let page_bytes = 4096_u64 << self.cap.mpsmin();
        Traits { identify: &self.identify, page_bytes, write_cache: self.write_cache }
    }
}

/// What a controller says that holds for all of its namespaces.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Traits<'a> {
    /// Identify Controller.
    pub(crate) identify: &'a IdentifyController,
    /// Length of the smallest memory page (CAP.MPSMIN), which MDTS counts.
    pub(crate) page_bytes: u64,
    /// Whether it has a volatile write cache.
    pub(crate) write_cache: bool,
}

impl Traits<'_> {
    /// Identity and command set of a namespace, by its Identify data and its descriptors (empty: it has none).
    pub(crate) fn identity(
        &self,
        nsid: u32,
        identify: &IdentifyNamespace,
        descriptors: &[u8],
    ) -> (Uuid, Csi) {
        let (mut uuid, mut csi) = (None, Csi::NVM);
        for (kind, bytes) in ns_id_descriptors(descriptors) {
            match (kind, bytes) {
                (Nidt::UUID, bytes) => uuid = Uuid::from_slice(bytes).ok().filter(|uuid| !uuid.is_nil()),
                (Nidt::CSI, [set, ..]) => csi = Csi(*set),
                _ => {}
            }
        }
        let nguid = Uuid::from_bytes(identify.nguid);
        let made = || {
            let mut name = self.identify.sn.to_vec();
            name.extend_from_slice(&identify.eui64);
            name.extend_from_slice(&if identify.eui64 == [0; 8] { nsid } else { 0 }.to_le_bytes());
            Uuid::new_v5(&Uuid::NAMESPACE_OID, &name)
        };
        let uuid = uuid.or(Some(nguid).filter(|nguid| !nguid.is_nil()));
        (uuid.unwrap_or_else(made), csi)
    }

    /// The namespace as a block device.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(crate) fn judge(
        &self,
        nsid: u32,
        ns: &IdentifyNamespace,
        uuid: Uuid,
        csi: Csi,
    ) -> Result<Namespace, Refusal> {
        if csi != Csi::NVM {
            return Err(Refusal::CommandSet(csi));
        }
        let (bytes, blocks) = (ns.block_len().unwrap_or(0), ns.nsze.get());
        if ns.dps & 7 != 0 {
            return Err(Refusal::Protection { kind: ns.dps & 7 });
        }
        match ns.format().map(|format| format.ms.get()) {
            Some(0) => {}
            Some(metadata) => return Err(Refusal::Metadata { bytes: metadata }),
            None => return Err(Refusal::BlockLength { bytes: 0 }),
        }
        if !matches!(bytes, 512 | 4096) {
            return Err(Refusal::BlockLength { bytes });
        }
        if blocks == 0 {
            return Err(Refusal::Empty);
        }
        let caps = self.caps(ns, bytes);
        Ok(Namespace {
            nsid,
            uuid,
            block_bytes: bytes,
            physical_block_bytes: bytes,
            blocks,
            caps,
            params: NsParams {
                nsid,
                block_shift: bytes.trailing_zeros(),
                copy_range_blocks: u32::from(ns.mssrl.get()),
                deallocates_zeroes: DeallocateFeatures(ns.dlfeat).write_zeroes_deallocate(),
            },
            write_protected: ns.nsattr & 1 == 1,
        })
    }

    fn caps(&self, ns: &IdentifyNamespace, block_bytes: u32) -> Caps {
        let mdts_bytes = match self.identify.mdts {
            0 => u64::MAX,
            mdts => self.page_bytes.checked_shl(u32::from(mdts)).unwrap_or(u64::MAX),
        };
        let io_bytes = mdts_bytes.min(u64::try_from(BUF_BYTES_MAX).unwrap_or(u64::MAX));
        let io_blocks_max = u32::try_from(io_bytes / u64::from(block_bytes)).unwrap_or(1).clamp(1, 65_536);
        let offered = OptionalNvm(self.identify.oncs.get());
        let mut native_ops = Caps::ops(&[Op::Read, Op::Write]);
        let mut add = |wanted: bool, op: Op| native_ops |= if wanted { Caps::ops(&[op]) } else { 0 };
        add(self.write_cache, Op::Flush);
        add(offered.nvmdsmsv(), Op::Unmap);
        add(offered.nvmwzsv(), Op::WriteZeroes);
        add(offered.nvmcmps(), Op::Compare);
        // A fused pair or a copy that the device would do only for short ranges is made of reads and writes for all.
        let fused_blocks = u32::from(self.identify.acwu0.get()) + 1;
        let fused_bytes = u64::from(io_blocks_max) * u64::from(block_bytes) * 2;
        let fits = fused_blocks >= io_blocks_max
            && usize::try_from(fused_bytes).is_ok_and(|len| len <= BUF_BYTES_MAX);
        add(offered.nvmcmps() && self.identify.fuses.get() & 1 == 1 && fits, Op::CompareAndWrite);
        let ranges = usize::from(ns.msrc0).saturating_add(1).min(COPY_RANGES_MAX);
        let copy_blocks =
            u32::from(ns.mssrl.get()).saturating_mul(u32::try_from(ranges).unwrap_or(1)).min(ns.mcl.get());
        let takes_format0 = self.identify.cdfs.get() == 0 || self.identify.cdfs.get() & 1 == 1;
        add(offered.nvmcpys() && takes_format0 && copy_blocks >= io_blocks_max, Op::Copy);
        let boundary = u32::from(ns.noiob.get());
        Caps {
            native_ops,
            io_blocks_max,
            boundary_blocks: if boundary.is_power_of_two() { boundary } else { 0 },
            optimal_blocks: 0,
            write_cache: self.write_cache,
            unmap_zeroes: DeallocateFeatures(ns.dlfeat).read_behavior() == 1,
            late_buffers: false,
        }
    }
}
