//! Identify (Base 5.2.14, NVM Command Set 4.1.5).

use penstock_bdev::{BLOCK_BYTES_MAX, Op, OpenMode};
use penstock_spec::nvme::completion::Cqe;
use penstock_spec::nvme::identify::controller::{
    ControllerAttributes, ControllerType, LogPageAttributes, MultipathCapabilities, OptionalNvm, SglSupport,
    WriteCache,
};
use penstock_spec::nvme::identify::namespace::{DeallocateFeatures, NSTAT_READY, NamespaceFeatures};
use penstock_spec::nvme::identify::{
    CONTROLLER_LIST_MAX, Cns, ControllerList, IDENTIFY_LEN, IdentifyCmd, IdentifyController,
    IdentifyControllerNvm, IdentifyNamespace, IdentifyNamespaceIndependent, IdentifyNamespaceNvm,
    IoCommandSets, LbaFormat, NS_LIST_MAX, Nidt, NsIdDescriptor,
};
use penstock_spec::nvme::opcode::Csi;
use penstock_spec::nvme::{NSID_ALL, Sqe, Status};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use super::error_log::ENTRIES;
use super::event::AER_MAX;
use super::keep_alive::KAS;
use super::property::version;
use super::{ABORTS_MAX, Controller, INVALID_FIELD, INVALID_NAMESPACE};
use crate::config::NamespaceConfig;
use crate::io_cmd::{COPY_RANGES_MAX, copy_blocks_max};
use crate::transport_options::{ADMIN_IN_CAPSULE_DATA, IO_SIZE_MAX};

/// SQES and CQES over fabrics: 64 and 16 bytes, required and maximum.
const SQES: u8 = 0x66;
const CQES: u8 = 0x44;
/// VWC: Flush with NSID FFFFFFFFh flushes all namespaces.
const FLUSH_ALL: u8 = 3;
/// SGLS: SGLs without alignment rules.
const SGLS_UNALIGNED: u8 = 1;
/// FRMW: one slot (3:1), read-only (0).
const FRMW: u8 = 0b11;
/// NMIC: the namespace may be attached to several controllers.
const NMIC_SHARED: u8 = 1;
/// NSFEAT of CNS 08h: a volatile write cache is present (VWCNP).
const NSFEAT_VWC: u8 = 1 << 5;
/// DCTYPE: a direct discovery controller.
const DCTYPE_DDC: u8 = 1;
/// NSATTR: write protected.
const NSATTR_PROTECTED: u8 = 1;
/// CDFS: Copy with descriptor format 0h.
const CDFS_FORMAT_0: u16 = 1;
/// FUSES: Compare and Write.
const FUSES_COMPARE_AND_WRITE: u16 = 1;
/// NVM Command Set Specification 1.0.
const NVM_VERSION: u32 = 0x0001_0000;

const _: () = assert!(size_of::<Cqe>() == 16 && ADMIN_IN_CAPSULE_DATA <= IO_SIZE_MAX);

/// OFCS: Disconnect is supported.
const OFCS_DISCONNECT: u16 = 1;

impl Controller {
    pub(super) fn identify(&self, sqe: &Sqe, out: &mut Vec<u8>) -> Result<(), Status> {
        let cmd = IdentifyCmd::from_sqe(sqe);
        let nsid = cmd.nsid.get();
        if cmd.cns == Cns::CONTROLLER {
            out.extend_from_slice(self.identify_controller().as_bytes());
            return Ok(());
        }
        if self.is_discovery() {
            return Err(INVALID_FIELD);
        }
        match cmd.cns {
            Cns::NAMESPACE | Cns::ALLOCATED_NAMESPACE => {
                let (namespace, io_size) = (self.valid_namespace(nsid)?, self.params.options.max_io_size);
                let data = namespace.map(|ns| {
                    let mut data = self.on_path(ns, identify_namespace(ns, io_size));
                    data.rescap = self.reservation_capabilities(ns);
                    data
                });
                out.extend_from_slice(data.unwrap_or_default().as_bytes());
            }
            Cns::ACTIVE_NS_LIST | Cns::ALLOCATED_NS_LIST => self.ns_list(nsid, out)?,
            Cns::NS_ID_DESCRIPTORS => {
                let namespace = self.valid_namespace(nsid)?.ok_or(INVALID_NAMESPACE)?;
                ns_id_descriptors(namespace, out);
            }
            Cns::INDEPENDENT_NAMESPACE => {
                let namespace = self.valid_namespace(nsid)?;
                let data = namespace.map(|ns| {
                    let mut data = self.on_path_independent(ns, identify_independent(ns));
                    data.rescap = self.reservation_capabilities(ns);
                    data
                });
                out.extend_from_slice(data.unwrap_or_default().as_bytes());
            }
            Cns::CSI_NAMESPACE | Cns::CSI_CONTROLLER | Cns::CSI_ACTIVE_NS_LIST if cmd.csi != Csi::NVM => {
                // A command set that this controller does not have (CNS 1Ch).
                return Err(INVALID_FIELD);
            }
            Cns::CSI_NAMESPACE => {
                let namespace = self.valid_namespace(nsid)?;
                out.extend_from_slice(namespace.map(identify_nvm).unwrap_or_default().as_bytes());
            }
            Cns::CSI_CONTROLLER => {
                out.extend_from_slice(self.nvm_limits().as_bytes());
            }
            Cns::CSI_ACTIVE_NS_LIST => self.ns_list(nsid, out)?,
            Cns::NS_CONTROLLER_LIST => {
                self.valid_namespace(nsid)?.ok_or(INVALID_FIELD)?;
                out.extend_from_slice(self.controller_list(cmd.cntid.get()).as_bytes());
            }
            Cns::CONTROLLER_LIST => {
                out.extend_from_slice(self.controller_list(cmd.cntid.get()).as_bytes());
            }
            Cns::IO_COMMAND_SET => {
                if cmd.cntid.get() != u16::MAX && cmd.cntid.get() != self.params.cntlid {
                    return Err(INVALID_FIELD);
                }
                out.extend_from_slice(io_command_sets().as_bytes());
            }
            _ => return Err(INVALID_FIELD),
        }
        Ok(())
    }

    /// The namespace, `None` where it is inactive; an error where the NSID cannot be that of a namespace.
    fn valid_namespace(&self, nsid: u32) -> Result<Option<&NamespaceConfig>, Status> {
        if nsid == 0 || nsid > self.params.subsystem.max_namespaces {
            return Err(INVALID_NAMESPACE);
        }
        Ok(self.params.subsystem.namespace(nsid))
    }

    /// Base 3.2.1: an inactive NSID is an invalid field, any other an invalid namespace.
    pub(super) fn no_namespace(&self, nsid: u32) -> Status {
        if nsid != 0 && nsid <= self.params.subsystem.max_namespaces {
            INVALID_FIELD
        } else {
            INVALID_NAMESPACE
        }
    }

    fn ns_list(&self, after: u32, out: &mut Vec<u8>) -> Result<(), Status> {
        if after >= NSID_ALL - 1 {
            return Err(INVALID_NAMESPACE);
        }
        let later = self.params.subsystem.namespaces.keys().filter(|nsid| nsid.0 > after);
        out.extend(later.take(NS_LIST_MAX).flat_map(|nsid| nsid.0.to_le_bytes()));
        out.resize(IDENTIFY_LEN, 0);
        Ok(())
    }

    fn controller_list(&self, from: u16) -> ControllerList {
        let mut list = ControllerList::default();
        let known = self.params.subsystem.controller_ids.iter().filter(|cntlid| *cntlid >= from);
        let mut count = 0;
        for (slot, cntlid) in list.cntlids.iter_mut().zip(known.take(CONTROLLER_LIST_MAX)) {
            *slot = U16::new(cntlid);
            count += 1;
        }
        list.count = U16::new(count);
        list
    }

    /// CNS 06h: what [`IoLimits`](crate::io_cmd::IoLimits) enforces. DMRL stays 0, as all 256 ranges of a command count.
    fn nvm_limits(&self) -> IdentifyControllerNvm {
        let subsystem = &self.params.subsystem;
        let mut limits = IdentifyControllerNvm::default();
        limits.vsl = self.params.options.mdts();
        limits.wzsl = subsystem.wzsl;
        limits.dmrsl = U32::new(subsystem.dmrsl);
        limits.dmsl = U64::new(subsystem.dmrsl.into());
        limits.ver = U32::new(NVM_VERSION);
        limits
    }

    fn identify_controller(&self) -> IdentifyController {
        let (params, options) = (&self.params, &self.params.options);
        let mut data = IdentifyController::default();
        data.mdts = options.mdts();
        data.cntlid = U16::new(params.cntlid);
        data.ver = U32::new(version().0);
        data.oaes = U32::new(self.offered_events().0);
        data.ctratt = U32::new(ControllerAttributes(0).with_hids(true).with_tbkas(true).0);
        data.cntrltype = ControllerType::IO;
        data.acl0 = ABORTS_MAX - 1;
        data.aerl0 = u8::try_from(AER_MAX - 1).unwrap_or(0);
        data.lpa = LogPageAttributes(0).with_cses(true).with_lpeds(true).with_mlps(true).0;
        data.elpe0 = u8::try_from(ENTRIES - 1).unwrap_or(u8::MAX);
        data.kas = U16::new(KAS);
        data.sqes = SQES;
        data.cqes = CQES;
        data.maxcmd = U16::new(options.max_queue_depth);
        data.sgls =
            U32::new(SglSupport(0).with_support(SGLS_UNALIGNED).with_offset(true).with_transport(true).0);
        data.subnqn = params.subsystem.alias.unwrap_or(params.subsystem.nqn).to_field();
        data.ioccsz = U32::new(options.ioccsz());
        data.iorcsz = U32::new(1);
        data.msdbd = 1;
        data.ofcs = U16::new(OFCS_DISCONNECT);

        data.fr = firmware_revision();
        if self.is_discovery() {
            data.cntrltype = ControllerType::DISCOVERY;
            data.dctype = DCTYPE_DDC;
            data.lpa = LogPageAttributes(0).with_lpeds(true).0;
            (data.sqes, data.cqes, data.ioccsz, data.iorcsz) = (0, 0, U32::new(0), U32::new(0));
            data.ofcs = U16::new(0);
            return data;
        }
        ascii(&params.subsystem.serial_number, &mut data.sn);
        ascii(&params.subsystem.model_number, &mut data.mn);
        data.cmic = MultipathCapabilities(0).with_mports(true).with_mctrs(true).0;
        self.tell_paths(&mut data);
        data.frmw = FRMW;
        data.nn = U32::new(params.subsystem.max_namespaces);
        data.mnan = U32::new(params.subsystem.max_namespaces);
        let commands = OptionalNvm(0)
            .with_nvmcmps(true)
            .with_nvmdsmsv(true)
            .with_nvmwzsv(true)
            .with_ssfs(true)
            .with_nvmvfys(true)
            .with_nvmcpys(true)
            .with_reservs(true);
        data.oncs = U16::new(commands.0);
        data.cdfs = U16::new(CDFS_FORMAT_0);
        data.fuses = U16::new(FUSES_COMPARE_AND_WRITE);
        // Whatever the length of the namespaces' blocks: NACWU tells of each what it can.
        data.acwu0 = U16::new(atomic_blocks0(options.max_io_size, BLOCK_BYTES_MAX));
        // Present whatever the namespaces of the moment have: hosts look once, and namespaces come and go.
        data.vwc = WriteCache(0).with_present(true).with_flush_behavior(FLUSH_ALL).0;
        data
    }
}

/// Padded with spaces.
fn ascii(text: &str, field: &mut [u8]) {
    let mut bytes = text.bytes();
    for to in field {
        *to = bytes.next().unwrap_or(b' ');
    }
}

/// FR: the version of this program.
pub(super) fn firmware_revision() -> [u8; 8] {
    let mut field = [b' '; 8];
    ascii(env!("CARGO_PKG_VERSION"), &mut field);
    field
}

/// Blocks that one Compare and Write replaces all or not at all, 0's based: any that one command can carry.
fn atomic_blocks0(io_size_max: u32, block_bytes: u32) -> u16 {
    u16::try_from((io_size_max / block_bytes).saturating_sub(1)).unwrap_or(u16::MAX)
}

fn nsattr(namespace: &NamespaceConfig) -> u8 {
    if namespace.descriptor.mode() == OpenMode::ReadOnly { NSATTR_PROTECTED } else { 0 }
}

fn identify_namespace(namespace: &NamespaceConfig, io_size_max: u32) -> IdentifyNamespace {
    let info = namespace.descriptor.shared().info();
    let caps = info.caps;
    let bytes = u128::from(info.blocks) * u128::from(info.block_bytes);
    let physical_blocks0 =
        u16::try_from(info.physical_block_bytes / info.block_bytes).unwrap_or(1).max(1) - 1;
    let optimal0 = u16::try_from(caps.optimal_blocks.saturating_sub(1)).unwrap_or(u16::MAX);
    let deallocate = DeallocateFeatures(0)
        .with_read_behavior(u8::from(caps.unmap_zeroes))
        .with_write_zeroes_deallocate(caps.unmap_zeroes && caps.has(Op::Unmap));
    let mut data = IdentifyNamespace::default();
    data.nsze = U64::new(info.blocks);
    data.ncap = U64::new(info.blocks);
    data.nuse = U64::new(info.blocks);
    data.nsfeat = NamespaceFeatures(0).with_nsabp(true).with_optperf(1).0;
    // Writes are atomic by the block: what they race with may see, or leave, the old and the new of others.
    (data.nawun0, data.nawupf0) = (U16::new(0), U16::new(0));
    data.nacwu0 = U16::new(atomic_blocks0(io_size_max, info.block_bytes));
    let copy_blocks = copy_blocks_max(info.block_bytes);
    data.mssrl = U16::new(u16::try_from(copy_blocks).unwrap_or(u16::MAX));
    data.mcl = U32::new(copy_blocks);
    data.msrc0 = u8::try_from(COPY_RANGES_MAX - 1).unwrap_or(u8::MAX);
    data.nmic = NMIC_SHARED;
    data.dlfeat = deallocate.0;
    data.noiob = U16::new(u16::try_from(caps.boundary_blocks).unwrap_or(0));
    data.nvmcap = bytes.to_le_bytes();
    let preferred0 = optimal0.max(physical_blocks0);
    data.npwg0 = U16::new(preferred0);
    data.npwa0 = U16::new(preferred0);
    data.npdg0 = U16::new(preferred0);
    data.npda0 = U16::new(preferred0);
    data.nows0 = U16::new(preferred0);
    data.nsattr = nsattr(namespace);
    data.nguid = namespace.nguid;
    data.eui64 = namespace.eui64;

    if let Some(format) = data.lbaf.first_mut() {
        *format = LbaFormat::new(u8::try_from(info.block_bytes.ilog2()).unwrap_or(9));
    }
    data
}

fn identify_independent(namespace: &NamespaceConfig) -> IdentifyNamespaceIndependent {
    let write_cache = namespace.descriptor.shared().caps().write_cache;
    let mut data = IdentifyNamespaceIndependent::default();
    data.nsfeat = if write_cache { NSFEAT_VWC } else { 0 };
    data.nmic = NMIC_SHARED;
    data.nsattr = nsattr(namespace);
    data.nstat = NSTAT_READY;
    data
}

/// Without protection information there is nothing to say.
fn identify_nvm(_: &NamespaceConfig) -> IdentifyNamespaceNvm {
    IdentifyNamespaceNvm::default()
}

fn ns_id_descriptors(namespace: &NamespaceConfig, out: &mut Vec<u8>) {
    let mut put = |nidt: Nidt, nid: &[u8]| {
        if nid.iter().all(|byte| *byte == 0) && nidt != Nidt::CSI {
            return;
        }
        let nidl = u8::try_from(nid.len()).unwrap_or(0);
        out.extend_from_slice(NsIdDescriptor::new(nidt, nidl).as_bytes());
        out.extend_from_slice(nid);
    };
    put(Nidt::EUI64, &namespace.eui64);
    put(Nidt::NGUID, &namespace.nguid);
    put(Nidt::UUID, namespace.uuid.as_bytes());
    put(Nidt::CSI, &[Csi::NVM.0]);
    out.resize(IDENTIFY_LEN, 0);
}

/// One combination: the NVM command set alone.
fn io_command_sets() -> IoCommandSets {
    let mut data = IoCommandSets::default();
    if let Some(vector) = data.vectors.first_mut() {
        *vector = U64::new(1 << Csi::NVM.0);
    }
    data
}
