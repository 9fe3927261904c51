use penstock_bdev::null::Null;
use penstock_bdev::{Descriptor, OpenMode};
use penstock_spec::nvme::identify::controller::ControllerType;
use penstock_spec::nvme::identify::namespace::ns_id_descriptors;
use penstock_spec::nvme::identify::{
    Cns, ControllerList, IdentifyController, IdentifyControllerNvm, IdentifyNamespace, IoCommandSets, Nidt,
    NsList,
};
use penstock_spec::nvme::log::Lid;
use penstock_spec::nvme::log::health::SmartLog;
use penstock_spec::nvme::log::support::{CommandsSupportedLog, SupportedLogPages};
use penstock_spec::nvme::sgl::SglDescriptor;
use penstock_spec::nvme::{NSID_ALL, NvmOpcode};
use penstock_spec::nvmf::property::{Cap, Cc, Csts, PropertySize, offset};
use proptest::prelude::*;
use uuid::Uuid;
use zerocopy::FromBytes;
use zerocopy::little_endian::{U32, U64};

use super::*;
use crate::config::NamespaceConfig;

const SECOND_NS: u64 = 1_000_000_000;

fn nqn(name: &str) -> Nqn {
    format!("nqn.2026-11.io.penstock:{name}").parse().unwrap()
}

fn at(seconds: u64) -> Tick {
    Tick::from_ns(seconds * SECOND_NS)
}

fn namespace(nsid: u32, blocks: u64, block_bytes: u32) -> NamespaceConfig {
    let uuid = Uuid::from_u128(u128::from(nsid) << 64 | 5);
    let bdev = Null::new(&format!("null{nsid}"), uuid, blocks, block_bytes).unwrap();
    NamespaceConfig {
        nsid: Nsid(nsid),
        descriptor: Descriptor::unregistered(bdev, OpenMode::ReadWrite),
        blocks,
        block_bytes,
        uuid,
        nguid: *uuid.as_bytes(),
        eui64: [0; 8],
        anagrpid: 1,
    }
}

/// Namespaces 1 (512 bytes a block) and 3 (4096).
fn subsystem(kind: SubsystemKind) -> SubsystemConfig {
    let mut config = SubsystemConfig::new(nqn("disk"), kind);
    config.allow_any_host = true;
    config.serial_number = "SN1".into();
    config.namespaces.insert(Nsid(1), namespace(1, 1000, 512));
    config.namespaces.insert(Nsid(3), namespace(3, 2000, 4096));
    config
}

fn controller(kind: SubsystemKind, kato_ms: u32) -> Controller {
    let subsystem = Arc::new(subsystem(kind));
    let cntlid = subsystem.controller_ids.claim(1, 10).unwrap();
    let params = ControllerParams {
        cntlid,
        subsystem,
        discovery: Arc::default(),
        options: Arc::default(),
        hostnqn: nqn("host"),
        hostid: [7; 16],
        kato_ms,
        portid: 1,
        seed: 1,
        local: "127.0.0.1:4420".parse().unwrap(),
    };
    Controller::new(params, Tick::ZERO)
}

fn done(outcome: AdminOutcome) -> Completion {
    match outcome {
        AdminOutcome::Done(completion) => completion,
        other => panic!("{other:?}"),
    }
}

fn run(controller: &mut Controller, sqe: &Sqe) -> (Completion, Vec<u8>) {
    let mut out = Vec::new();
    let completion = done(controller.admin(sqe, &[], &mut out, at(0)));
    (completion, out)
}

fn fabrics(fctype: FabricsType, attrib: u8, ofst: u32, value: u32) -> Sqe {
    let mut sqe = Sqe::new(AdminOpcode::FABRICS.0, u32::from(fctype.0));
    (sqe.cdw10, sqe.cdw11, sqe.cdw12) = (U32::new(attrib.into()), U32::new(ofst), U32::new(value));
    sqe
}

fn get(controller: &mut Controller, ofst: u32, size: PropertySize) -> Result<u64, Status> {
    let (end, _) = run(controller, &fabrics(FabricsType::PROPERTY_GET, size.attrib(), ofst, 0));
    if end.status.is_success() { Ok(u64::from(end.dw1) << 32 | u64::from(end.dw0)) } else { Err(end.status) }
}

fn csts(controller: &mut Controller) -> Csts {
    Csts(u32::try_from(get(controller, offset::CSTS, PropertySize::Four).unwrap()).unwrap())
}

fn set_cc(controller: &mut Controller, cc: Cc) -> Status {
    run(controller, &fabrics(FabricsType::PROPERTY_SET, 0, offset::CC, cc.0)).0.status
}

fn enable() -> Cc {
    Cc(0).with_en(true).with_iosqes(6).with_iocqes(4)
}

fn ready(kind: SubsystemKind) -> Controller {
    let mut controller = controller(kind, 0);
    assert_eq!(set_cc(&mut controller, enable()), Status::SUCCESS);
    controller
}

fn io() -> Controller {
    ready(SubsystemKind::Nvm)
}

fn identify(controller: &mut Controller, cns: Cns, nsid: u32) -> Result<Vec<u8>, Status> {
    let mut sqe = Sqe::new(AdminOpcode::IDENTIFY.0, nsid).with_sgl(SglDescriptor::transport(4096));
    sqe.cdw10 = U32::new(u32::from(cns.0));
    let (end, out) = run(controller, &sqe);
    if end.status.is_success() { Ok(out) } else { Err(end.status) }
}

fn log(controller: &mut Controller, lid: Lid, rae: bool, len: u32, lpo: u64) -> Result<Vec<u8>, Status> {
    let mut sqe = Sqe::new(AdminOpcode::GET_LOG_PAGE.0, NSID_ALL).with_sgl(SglDescriptor::transport(len));
    sqe.cdw10 = U32::new(u32::from(lid.0) | u32::from(rae) << 15 | (len / 4 - 1) << 16);
    let mut cmd = *GetLogPageCmd::from_sqe(&sqe);
    cmd.lpo = U64::new(lpo);
    let (end, out) = run(controller, cmd.as_sqe());
    if end.status.is_success() { Ok(out) } else { Err(end.status) }
}

fn feature(controller: &mut Controller, opcode: AdminOpcode, dw10: u32, dw11: u32) -> (Completion, Vec<u8>) {
    let mut sqe = Sqe::new(opcode.0, 0).with_sgl(SglDescriptor::transport(16));
    (sqe.cdw10, sqe.cdw11) = (U32::new(dw10), U32::new(dw11));
    run(controller, &sqe)
}

fn hold(controller: &mut Controller, cid: u16) -> AdminOutcome {
    let mut sqe = Sqe::new(AdminOpcode::ASYNC_EVENT_REQUEST.0, 0);
    sqe.cid.set(cid);
    controller.admin(&sqe, &[], &mut Vec::new(), at(0))
}

#[test]
fn properties_have_the_sizes_and_values_of_the_standard() {
    let mut c = controller(SubsystemKind::Nvm, 0);
    let cap = Cap(get(&mut c, offset::CAP, PropertySize::Eight).unwrap());
    assert_eq!((cap.mqes0(), cap.cqr(), cap.to(), cap.mpsmin(), cap.mpsmax()), (1023, true, 1, 0, 0));
    assert!(cap.css_nvm() && cap.css_iocs() && !cap.nssrs() && cap.crms() == 1);
    assert_eq!(get(&mut c, offset::VS, PropertySize::Four), Ok(0x2_0000));
    assert_eq!(get(&mut c, offset::CRTO, PropertySize::Four), Ok(1));
    assert_eq!(get(&mut c, offset::CAP, PropertySize::Four), Err(INVALID_FIELD));
    assert_eq!(get(&mut c, 0x1000, PropertySize::Four), Err(INVALID_FIELD));
    let write = fabrics(FabricsType::PROPERTY_SET, 0, offset::CSTS, 1);
    assert_eq!(run(&mut c, &write).0.status, INVALID_FIELD);
}

#[test]
fn a_controller_is_enabled_reset_and_shut_down_with_the_right_status() {
    let mut c = controller(SubsystemKind::Nvm, 0);
    assert_eq!(identify(&mut c, Cns::CONTROLLER, 0), Err(SEQUENCE_ERROR));
    assert_eq!(set_cc(&mut c, enable().with_css(3)), INVALID_FIELD);
    assert_eq!(set_cc(&mut c, enable().with_mps(1)), INVALID_FIELD);
    assert!(!csts(&mut c).rdy() && c.io_queue_allowed().is_err());
    assert_eq!(set_cc(&mut c, enable()), Status::SUCCESS);
    assert!(csts(&mut c).rdy() && c.io_queue_allowed().is_ok() && c.shared().is_ready());
    assert!(c.shared().claim_queue(1));
    assert_eq!(hold(&mut c, 9), AdminOutcome::Held);
    assert_eq!(set_cc(&mut c, enable().with_en(false)), Status::SUCCESS);
    assert!(c.take_io_teardown() && !c.take_io_teardown() && csts(&mut c).rdy() && !c.shared().is_ready());
    assert_eq!(c.poll_event(), Some((9, Status::ABORTED_SQ_DELETION.into())));
    assert_eq!(set_cc(&mut c, enable()), Status::COMMAND_SEQUENCE_ERROR);
    c.shared().release_queue(1);
    c.io_queues_gone();
    assert!(!csts(&mut c).rdy());
    assert_eq!(set_cc(&mut c, enable()), Status::SUCCESS);
    assert_eq!(set_cc(&mut c, enable().with_shn(1)), Status::SUCCESS);
    assert_eq!(csts(&mut c).shst(), 2);
    assert_eq!(identify(&mut c, Cns::CONTROLLER, 0), Err(SEQUENCE_ERROR));
    assert_eq!(set_cc(&mut c, Cc(0)), Status::SUCCESS);
    assert_eq!((csts(&mut c), set_cc(&mut c, enable())), (Csts(0), Status::SUCCESS));
}

#[test]
fn identify_controller_tells_what_is_there_and_nothing_else() {
    let data = identify(&mut io(), Cns::CONTROLLER, 0).unwrap();
    let id = IdentifyController::ref_from_bytes(&data).unwrap();
    assert_eq!((id.cntlid.get(), id.cntrltype, id.ver.get()), (1, ControllerType::IO, 0x2_0000));
    assert_eq!((&id.sn[..4], &id.mn[..9]), (b"SN1 ".as_slice(), b"Penstock ".as_slice()));
    assert_eq!((id.mdts, id.nn.get(), id.maxcmd.get(), id.kas.get()), (8, 32, 1024, 1));
    assert_eq!(
        (id.sqes, id.cqes, id.ioccsz.get(), id.iorcsz.get(), id.icdoff.get()),
        (0x66, 0x44, 516, 1, 0)
    );
    assert_eq!((id.oacs.get(), id.oncs.get(), id.fuses.get(), id.vwc), (0, 0b1_1011_1101, 1, 7));
    assert_eq!((id.acl0, id.aerl0, id.elpe0, id.lpa, id.anacap), (3, 3, 63, 0b10_0110, 0));
    assert_eq!((id.sgls.get(), id.ctratt.get(), id.oaes.get()), (0x30_0001, 0x41, 0x10_0100));
    assert_eq!(id.subnqn, nqn("disk").to_field());
    let data = identify(&mut io(), Cns::CSI_CONTROLLER, 0).unwrap();
    let limits = IdentifyControllerNvm::ref_from_bytes(&data).unwrap();
    assert_eq!((limits.wzsl, limits.vsl, limits.dmrl), (11, 8, 0));
    assert_eq!((limits.dmrsl.get(), limits.dmsl.get()), (2 << 20, 2 << 20));
    let data = identify(&mut io(), Cns::IO_COMMAND_SET, 0);
    assert_eq!(data, Err(INVALID_FIELD), "CNTID 0 is another controller");
}

#[test]
fn namespaces_are_identified_by_every_mandatory_structure() {
    let mut c = io();
    let data = identify(&mut c, Cns::NAMESPACE, 3).unwrap();
    let ns = IdentifyNamespace::ref_from_bytes(&data).unwrap();
    assert_eq!((ns.nsze.get(), ns.ncap.get(), ns.block_len(), ns.nmic), (2000, 2000, Some(4096), 1));
    assert_eq!(identify(&mut c, Cns::NAMESPACE, 2), Ok(vec![0; 4096]));
    for nsid in [0, 33, NSID_ALL] {
        assert_eq!(identify(&mut c, Cns::NAMESPACE, nsid), Err(INVALID_NAMESPACE));
    }
    let list = |c: &mut Controller, cns, after| {
        NsList::read_from_bytes(&identify(c, cns, after).unwrap()).unwrap().iter().collect::<Vec<_>>()
    };
    assert_eq!(list(&mut c, Cns::ACTIVE_NS_LIST, 0), [1, 3]);
    assert_eq!(list(&mut c, Cns::CSI_ACTIVE_NS_LIST, 1), [3]);
    assert_eq!(list(&mut c, Cns::ALLOCATED_NS_LIST, 3), [0; 0]);
    assert_eq!(identify(&mut c, Cns::ACTIVE_NS_LIST, NSID_ALL - 1), Err(INVALID_NAMESPACE));
    let data = identify(&mut c, Cns::NS_ID_DESCRIPTORS, 1).unwrap();
    let found: Vec<_> = ns_id_descriptors(&data).map(|(kind, nid)| (kind, nid.len())).collect();
    assert_eq!(found, [(Nidt::NGUID, 16), (Nidt::UUID, 16), (Nidt::CSI, 1)]);
    assert_eq!(identify(&mut c, Cns::NS_ID_DESCRIPTORS, 2), Err(INVALID_NAMESPACE));
    assert_eq!(identify(&mut c, Cns::INDEPENDENT_NAMESPACE, 1).unwrap()[14], 1);
    let data = identify(&mut c, Cns::CONTROLLER_LIST, 0).unwrap();
    let list = ControllerList::ref_from_bytes(&data).unwrap();
    assert_eq!((list.count.get(), list.cntlids[0].get()), (1, 1));
    let mut sqe = Sqe::new(AdminOpcode::IDENTIFY.0, 0).with_sgl(SglDescriptor::transport(4096));
    sqe.cdw10 = U32::new(u32::from(Cns::IO_COMMAND_SET.0) | 0xffff_0000);
    let (_, data) = run(&mut c, &sqe);
    assert_eq!(IoCommandSets::ref_from_bytes(&data).unwrap().vectors[0].get(), 1);
    sqe.sgl1 = SglDescriptor::transport(4095);
    assert_eq!(run(&mut c, &sqe).0.status, Status::DATA_SGL_LENGTH_INVALID.with_dnr());
}

#[test]
fn log_pages_are_those_that_the_supported_page_names() {
    let mut c = io();
    let data = log(&mut c, Lid::SUPPORTED_LOG_PAGES, false, 1024, 0).unwrap();
    let supported = SupportedLogPages::ref_from_bytes(&data).unwrap();
    for lid in 0..=u8::MAX {
        let there = log(&mut c, Lid(lid), true, 64, 0).is_ok();
        assert_eq!(there, supported.lids[usize::from(lid)].get() & 1 == 1, "LID {lid:#x}");
    }
    let data = log(&mut c, Lid::COMMANDS_SUPPORTED, false, 4096, 0).unwrap();
    let commands = CommandsSupportedLog::ref_from_bytes(&data).unwrap();
    assert_eq!(commands.iocs[usize::from(NvmOpcode::WRITE.0)].get(), 3);
    assert_eq!(commands.iocs[usize::from(NvmOpcode::VERIFY.0)].get(), 1);
    assert_eq!(commands.iocs[usize::from(NvmOpcode::WRITE_UNCORRECTABLE.0)].get(), 0);
    let data = log(&mut c, Lid::SMART_HEALTH, false, 512, 0).unwrap();
    let smart = SmartLog::ref_from_bytes(&data).unwrap();
    assert_eq!(
        (smart.avsp, smart.error_log_entries[0]),
        (100, 0),
        "asking for what is not there is no error"
    );
    let (end, _) = feature(&mut c, AdminOpcode::SET_FEATURES, 0x77, 0);
    assert!(!end.status.is_success());
    let data = log(&mut c, Lid::SMART_HEALTH, false, 512, 0).unwrap();
    assert_eq!(SmartLog::ref_from_bytes(&data).unwrap().error_log_entries[0], 1);
    assert_eq!(log(&mut c, Lid::SMART_HEALTH, false, 64, 3), Err(INVALID_FIELD));
    assert_eq!(log(&mut c, Lid::SMART_HEALTH, false, 64, 516), Err(INVALID_FIELD));
    assert_eq!(log(&mut c, Lid::SMART_HEALTH, false, 64, 512), Ok(vec![0; 64]));
    assert_eq!(log(&mut c, Lid::DISCOVERY, false, 64, 0), Err(Status::INVALID_LOG_PAGE.with_dnr()));
}

#[test]
fn a_changed_namespace_is_told_once_and_again_after_its_list_was_read() {
    let mut c = io();
    let (end, _) = feature(&mut c, AdminOpcode::SET_FEATURES, 0x0b, 0x100);
    assert!(end.status.is_success());
    for cid in 0..4 {
        assert_eq!(hold(&mut c, cid), AdminOutcome::Held);
    }
    let limit = Status::ASYNC_EVENT_REQUEST_LIMIT_EXCEEDED.with_dnr();
    assert_eq!(done(hold(&mut c, 4)).status, limit);
    let mut config = SubsystemConfig::clone(&c.params().subsystem);
    config.namespaces.remove(&Nsid(3));
    config.namespaces.insert(Nsid(1), namespace(1, 5000, 512));
    c.set_subsystem(Arc::new(config.clone()));
    assert_eq!(c.poll_event(), Some((0, Completion::ok(0x04_0002))));
    config.namespaces.remove(&Nsid(1));
    c.set_subsystem(Arc::new(config.clone()));
    assert_eq!(c.poll_event(), None);
    let list = |c: &mut Controller, rae| {
        let data = log(c, Lid::CHANGED_NS_LIST, rae, 4096, 0).unwrap();
        NsList::read_from_bytes(&data).unwrap().iter().collect::<Vec<_>>()
    };
    assert_eq!(
        (list(&mut c, true), list(&mut c, false), list(&mut c, false)),
        (vec![1, 3], vec![1, 3], vec![])
    );
    config.namespaces.insert(Nsid(2), namespace(2, 5000, 512));
    c.set_subsystem(Arc::new(config));
    assert_eq!(c.poll_event(), Some((1, Completion::ok(0x04_0002))));
}

#[test]
fn features_have_current_default_and_saved_values_and_capabilities() {
    let mut c = io();
    let get =
        |c: &mut Controller, fid: u32, sel: u32| feature(c, AdminOpcode::GET_FEATURES, fid | sel << 8, 0).0;
    let set = |c: &mut Controller, fid: u32, value| feature(c, AdminOpcode::SET_FEATURES, fid, value).0;
    assert_eq!(set(&mut c, 0x07, 3 | 5 << 16), Completion::ok(5 | 5 << 16));
    assert_eq!((get(&mut c, 0x07, 0).dw0, get(&mut c, 0x07, 1).dw0), (0x5_0005, 0x7f_007f));
    assert_eq!(c.io_queues_max(), 6);
    assert_eq!(set(&mut c, 0x07, 0xffff).status, INVALID_FIELD);
    assert_eq!(set(&mut c, 0x0f, 950), Completion::ok(0));
    assert_eq!((get(&mut c, 0x0f, 0).dw0, get(&mut c, 0x0f, 2).dw0, get(&mut c, 0x0f, 3).dw0), (1000, 0, 4));
    assert_eq!((get(&mut c, 0x06, 0).dw0, get(&mut c, 0x06, 3).dw0), (1, 0));
    assert_eq!(set(&mut c, 0x06, 0).status, Status::FEATURE_NOT_CHANGEABLE.with_dnr());
    assert_eq!(set(&mut c, 0x8000_0001, 0).status, Status::FEATURE_NOT_SAVEABLE.with_dnr());
    assert_eq!(set(&mut c, 0x02, 1).status, INVALID_FIELD);
    assert_eq!(set(&mut c, 0x0b, 0x200).status, INVALID_FIELD);
    assert_eq!(set(&mut c, 0x81, 1).status, SEQUENCE_ERROR);
    assert_eq!(set(&mut c, 0x0e, 0).status, INVALID_FIELD);
    let (end, data) = feature(&mut c, AdminOpcode::GET_FEATURES, 0x81, 1);
    assert_eq!((end.status, data), (Status::SUCCESS, vec![7; 16]));
    assert_eq!(feature(&mut c, AdminOpcode::GET_FEATURES, 0x81, 0).0.status, INVALID_FIELD);
}

#[test]
fn the_association_ends_when_the_keep_alive_time_is_over() {
    let mut c = controller(SubsystemKind::Nvm, 5000);
    assert!(set_cc(&mut c, enable()).is_success());
    assert!(!c.tick(at(4)));
    assert!(!c.tick(at(5)), "Property Set counted as traffic");
    let keep_alive = Sqe::new(AdminOpcode::KEEP_ALIVE.0, 0);
    done(c.admin(&keep_alive, &[], &mut Vec::new(), at(9)));
    assert!(!c.tick(at(13)) && !c.tick(at(14)));
    assert_eq!(c.deadline(), at(19));
    assert!(c.tick(at(19)) && !c.shared().is_alive());
    assert!(csts(&mut c).cfs());
}

#[test]
fn an_abort_of_an_event_request_is_done_here_and_any_other_is_handed_out() {
    let mut c = io();
    assert_eq!(hold(&mut c, 5), AdminOutcome::Held);
    let mut abort = |sqid: u32, cid: u32| {
        let mut sqe = Sqe::new(AdminOpcode::ABORT.0, 0);
        sqe.cdw10 = U32::new(sqid | cid << 16);
        c.admin(&sqe, &[], &mut Vec::new(), at(0))
    };
    assert_eq!(done(abort(0, 5)), Completion::ok(0));
    for _ in 0..ABORTS_MAX {
        assert_eq!(abort(2, 6), AdminOutcome::Abort { sqid: 2, cid: 6 });
    }
    assert_eq!(done(abort(2, 6)).status, Status::ABORT_COMMAND_LIMIT_EXCEEDED);
    assert_eq!(c.poll_event(), Some((5, Status::ABORTED_BY_REQUEST.into())));
}

/// SPDK's host frees the identifiers of its event requests before it shuts the controller down.
#[test]
fn an_event_request_whose_identifier_is_used_again_is_forgotten() {
    let mut c = io();
    assert!(feature(&mut c, AdminOpcode::SET_FEATURES, 0x0b, 0x100).0.status.is_success());
    assert_eq!((hold(&mut c, 5), hold(&mut c, 6)), (AdminOutcome::Held, AdminOutcome::Held));
    let mut read = fabrics(FabricsType::PROPERTY_GET, 0, offset::CC, 0);
    read.cid.set(5);
    assert!(run(&mut c, &read).0.status.is_success());
    c.set_subsystem(Arc::new(SubsystemConfig::new(nqn("disk"), SubsystemKind::Nvm)));
    assert_eq!(c.poll_event(), Some((6, Completion::ok(0x04_0002))));
}

#[test]
fn a_discovery_controller_tells_of_changes_and_has_no_namespaces() {
    let mut c = ready(SubsystemKind::Discovery);
    let data = identify(&mut c, Cns::CONTROLLER, 0).unwrap();
    let id = IdentifyController::ref_from_bytes(&data).unwrap();
    assert_eq!((id.cntrltype, id.nn.get(), id.oaes.get()), (ControllerType::DISCOVERY, 0, 1 << 31));
    assert_eq!(identify(&mut c, Cns::ACTIVE_NS_LIST, 0), Err(INVALID_FIELD));
    assert!(c.io_queue_allowed().is_err());
    assert_eq!(log(&mut c, Lid::DISCOVERY, false, 1024, 0).unwrap()[8], 1);
    assert!(feature(&mut c, AdminOpcode::SET_FEATURES, 0x0b, 1 << 31).0.status.is_success());
    assert_eq!(hold(&mut c, 1), AdminOutcome::Held);
    c.set_discovery(Arc::new(DiscoveryConfig { genctr: 2, ..DiscoveryConfig::default() }));
    assert_eq!(c.poll_event(), None, "the host sees no difference");
    c.set_discovery(Arc::new(DiscoveryConfig { admin_queue_entries: 64, ..DiscoveryConfig::default() }));
    assert_eq!(c.poll_event(), Some((1, Completion::ok(0x70_f002))));
}

proptest! {
    #[test]
    fn any_64_bytes_are_answered_legally(
        commands in proptest::collection::vec((0..0x1a_u8, any::<[u8; 32]>(), any::<[u8; 32]>(), any::<bool>()), 1..40),
        discovery in any::<bool>(),
    ) {
        let mut c = ready(if discovery { SubsystemKind::Discovery } else { SubsystemKind::Nvm });
        let mut out = Vec::new();
        for (opcode, head, tail, well_formed) in commands {
            let mut sqe = Sqe::read_from_bytes(&[head, tail].concat()).unwrap();
            if well_formed {
                sqe = Sqe { opc: opcode, flags: Sqe::FLAGS_FABRICS, sgl1: SglDescriptor::transport(4096), ..sqe };
            }
            let transfer = admin_transfer(&sqe);
            match c.admin(&sqe, &[], &mut out, at(1)) {
                AdminOutcome::Done(end) if end.status.is_success() => {
                    let room = transfer.map_or(0, |transfer| transfer.len_bytes());
                    prop_assert!(out.len() <= room as usize);
                }
                AdminOutcome::Done(end) => prop_assert!(end.status.name().is_some() && out.is_empty()),
                AdminOutcome::Held => prop_assert_eq!(sqe.opc, AdminOpcode::ASYNC_EVENT_REQUEST.0),
                AdminOutcome::Abort { .. } => c.abort_done(),
                AdminOutcome::CrossReset(impacted) => {
                    c.cross_reset_answer(impacted, CrossReset::Gone);
                }
                AdminOutcome::Persist { .. } => prop_assert_eq!(sqe.opc, AdminOpcode::SET_FEATURES.0),
            }
        }
    }

    #[test]
    fn however_cc_is_written_ready_means_enabled_and_not_shut_down(
        steps in proptest::collection::vec((any::<u32>(), any::<bool>(), any::<bool>()), 1..60),
    ) {
        let mut c = controller(SubsystemKind::Nvm, 0);
        for (bits, plausible, gone) in steps {
            let cc = if plausible { enable().with_en(bits & 1 != 0).with_shn(u8::try_from(bits >> 1 & 3).unwrap()) } else { Cc(bits) };
            if c.shared().is_ready() {
                // Refused where it is connected already.
                let _connected = c.shared().claim_queue(1);
            }
            let before = csts(&mut c);
            let status = set_cc(&mut c, cc);
            if !status.is_success() {
                prop_assert_eq!(csts(&mut c), before);
            }
            if c.shared().queues() > 0 && (gone || !c.shared().is_ready()) {
                c.shared().release_queue(1);
                c.io_queues_gone();
            }
            let (now, cc) = (csts(&mut c), get(&mut c, offset::CC, PropertySize::Four).unwrap());
            let enabled = cc & 1 == 1;
            prop_assert_eq!(c.shared().is_ready(), enabled && now.rdy() && now.shst() == 0);
            prop_assert!(!now.rdy() || enabled);
        }
    }
}
