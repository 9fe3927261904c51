//! What a connected controller has: its namespaces as block devices, and their states by this path.

use penstock_bdev::{Caps, Op};
use penstock_nvme_tcp::blocking::{BlockingController, BlockingError};
use penstock_nvme_tcp::{Transfer, command};
use penstock_spec::nvme::NSID_ALL;
use penstock_spec::nvme::feature::Fid;
use penstock_spec::nvme::identify::controller::WriteCache;
use penstock_spec::nvme::identify::{Cns, IDENTIFY_LEN, IdentifyController};
use penstock_spec::nvme::log::Lid;
use penstock_spec::nvme::log::ana::AnaState;
use penstock_spec::nvme::opcode::Csi;

use super::ana;
use crate::admin::{Found, NAMESPACES_MAX, Namespace, Traits};
use crate::controller::Identity;

/// CMIC: the subsystem reports asymmetric access.
const CMIC_ANA: u8 = 1 << 3;
/// Bytes of an ANA log page that are read first, and at most.
const ANA_LOG_BYTES: (usize, usize) = (4096, 1 << 20);
/// Bytes of a log page that is read only to have its event reported again.
const LOG_BYTES: usize = 512;

/// Whether namespaces have states by this path.
pub(super) fn has_ana(identify: &IdentifyController) -> bool {
    identify.cmic & CMIC_ANA != 0
}

/// All namespaces; those that cannot be used with the reason.
///
/// # Errors
/// The controller is lost or does not answer.
pub(super) fn namespaces(controller: &mut BlockingController) -> Result<Vec<Found>, BlockingError> {
    let identify = *controller.controller().identify();
    let page_bytes = 4096_u64 << controller.controller().cap().mpsmin();
    let write_cache = has_write_cache(controller, &identify)?;
    let traits = Traits { identify: &identify, page_bytes, write_cache };
    let mut found = Vec::new();
    for nsid in controller.active_namespaces()?.into_iter().take(NAMESPACES_MAX) {
        let ns = controller.identify_namespace(nsid)?;
        let sqe = command::identify(Cns::NS_ID_DESCRIPTORS, nsid, Csi::NVM);
        let descriptors = match controller.read("Identify (namespace descriptors)", sqe, IDENTIFY_LEN) {
            Ok(page) => page,
            Err(BlockingError::Command { .. }) => Box::default(),
            Err(error) => return Err(error),
        };
        let (uuid, csi) = traits.identity(nsid, &ns, &descriptors);
        let judged = traits.judge(nsid, &ns, uuid, csi).map(|mut ns| {
            ns.caps = caps_over_tcp(&ns);
            ns
        });
        found.push((nsid, judged));
    }
    Ok(found)
}

/// A compare brings the same bytes over the wire as a read, which also tells where they differ; a copy goes with one range.
fn caps_over_tcp(ns: &Namespace) -> Caps {
    let mut caps = ns.caps;
    caps.native_ops &= !Caps::ops(&[Op::Compare]);
    if ns.params.copy_range_blocks < caps.io_blocks_max {
        caps.native_ops &= !Caps::ops(&[Op::Copy]);
    }
    caps
}

fn has_write_cache(
    controller: &mut BlockingController,
    identify: &IdentifyController,
) -> Result<bool, BlockingError> {
    if !WriteCache(identify.vwc).present() {
        return Ok(false);
    }
    let sqe = command::get_features(Fid::VOLATILE_WRITE_CACHE, 0);
    let done = controller.execute(sqe, Transfer::None, None)?;
    Ok(!done.status().is_success() || done.cqe.dw0.get() & 1 == 1)
}

/// Each namespace's state by this path.
///
/// # Errors
/// The controller is lost or does not answer.
pub(super) fn states(
    controller: &mut BlockingController,
    found: &[Found],
) -> Result<Vec<(u32, AnaState)>, BlockingError> {
    if !has_ana(controller.controller().identify()) {
        return Ok(found.iter().map(|(nsid, _)| (*nsid, AnaState::OPTIMIZED)).collect());
    }
    let mut len = ANA_LOG_BYTES.0;
    loop {
        let bytes = u32::try_from(len).unwrap_or(u32::MAX);
        let sqe = command::get_log_page(Lid::ANA, NSID_ALL, 0, bytes);
        let page = controller.read("Get Log Page (ANA)", sqe, len)?;
        match ana::parse(&page) {
            Some(states) => return Ok(states),
            None if len < ANA_LOG_BYTES.1 => len *= 2,
            // One that says nothing of use: what is not in it counts as changing.
            None => return Ok(Vec::new()),
        }
    }
}

/// Reads a log page so that its event is reported again.
///
/// # Errors
/// The controller is lost or does not answer.
pub(super) fn clear_event(controller: &mut BlockingController, lid: Lid) -> Result<(), BlockingError> {
    let len = if lid == Lid::CHANGED_NS_LIST { IDENTIFY_LEN } else { LOG_BYTES };
    match log_page(controller, lid, len) {
        Ok(_) | Err(BlockingError::Command { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The beginning of a log page.
///
/// # Errors
/// The controller is lost, does not answer or refuses.
pub(super) fn log_page(
    controller: &mut BlockingController,
    lid: Lid,
    len: usize,
) -> Result<Box<[u8]>, BlockingError> {
    let sqe = command::get_log_page(lid, NSID_ALL, 0, u32::try_from(len).unwrap_or(0));
    controller.read("Get Log Page", sqe, len)
}

/// What the controller is.
pub(super) fn identity(controller: &BlockingController, io_queues: u16, depth: u16) -> Identity {
    let machine = controller.controller();
    let identify = machine.identify();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_matches([' ', '\0']).to_owned();
    Identity {
        vendor_id: format!("0x{:04x}", identify.vid.get()),
        model_number: text(&identify.mn),
        serial_number: text(&identify.sn),
        firmware_revision: text(&identify.fr),
        subnqn: text(&identify.subnqn),
        cntlid: machine.cntlid(),
        version: machine.vs().to_string(),
        mdts_bytes: machine.transfer_bytes_max().unwrap_or(0),
        io_queues,
        io_queue_entries: depth.saturating_add(1),
        shadow_doorbells: false,
        sgl: true,
    }
}
