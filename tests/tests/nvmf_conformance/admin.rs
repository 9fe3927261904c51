//! Admin commands and properties.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use penstock_tests::target::Target;

use crate::wire::{
    Answer, CAPSULE_RESP, DISCOVERY_NQN, Sqe, Wire, completion, property_get, property_set, put, u16_at,
    u32_at,
};
use crate::{BLOCKS, target};

const SUCCESS: u16 = 0;
const INVALID_OPCODE: u16 = 0x001;
const INVALID_FIELD: u16 = 0x002;
const INVALID_NAMESPACE: u16 = 0x00b;
const SEQUENCE_ERROR: u16 = 0x00c;
const DATA_SGL_LENGTH: u16 = 0x00f;
const INVALID_LOG_PAGE: u16 = 0x109;

const GET_LOG_PAGE: u8 = 0x02;
const IDENTIFY: u8 = 0x06;
const ABORT: u8 = 0x08;
const SET_FEATURES: u8 = 0x09;
const GET_FEATURES: u8 = 0x0a;
const EVENT_REQUEST: u8 = 0x0c;
const KEEP_ALIVE: u8 = 0x18;

fn identify(cns: u32, nsid: u32) -> Sqe {
    Sqe::new(IDENTIFY).nsid(nsid).dw(10, cns).moves(4096)
}

fn log_page(lid: u32, len: u32) -> Sqe {
    let dwords = len / 4 - 1;
    Sqe::new(GET_LOG_PAGE).dw(10, (dwords & 0xffff) << 16 | lid).dw(11, dwords >> 16).sgl(0x5a, 0, len)
}

#[test]
fn properties_have_their_sizes_and_the_rest_is_refused() -> Result<()> {
    let target = target()?;
    let mut wire = Wire::initialized(target.port())?;
    wire.connect(target.nqn(), 0, 0xffff)?;
    let known: [(u32, bool); 5] = [(0x00, true), (0x08, false), (0x14, false), (0x1c, false), (0x68, false)];
    for offset in (0..0x80).step_by(4) {
        for eight in [false, true] {
            let answer = wire.execute(property_get(offset, eight), &[])?;
            // NSSR, at 20h, may be there or not.
            let expected = if known.contains(&(offset, eight)) { SUCCESS } else { INVALID_FIELD };
            let open = (offset, eight) == (0x20, false);
            ensure!(open || answer.status == expected, "property {offset:#x}, 8 bytes {eight}: {answer:x?}");
        }
    }
    let cap = wire.execute(property_get(0, true), &[])?;
    ensure!(cap.dw0 & 0xffff >= 127 && cap.dw0 >> 16 & 1 == 1, "CAP.MQES, CQR: {cap:x?}");
    ensure!(cap.dw1 >> 5 & 1 == 1, "CAP.CSS: NVM command set");
    ensure!(wire.execute(property_get(8, false), &[])?.dw0 >= 0x0001_0400, "VS");
    for offset in [0x00, 0x08, 0x0c, 0x10, 0x18, 0x24, 0x28, 0x40, 0x1000] {
        let answer = wire.execute(property_set(offset, 0), &[])?;
        ensure!(answer.status == INVALID_FIELD, "writing property {offset:#x}: {answer:x?}");
    }
    let eight = wire.execute(property_set(0x14, 0x0046_0001).dw(10, 1), &[])?;
    ensure!(eight.status == INVALID_FIELD, "CC has four bytes: {eight:x?}");
    for (what, cc) in [
        ("CSS 3", 0x0046_0031),
        ("MPS 15", 0x0046_0781),
        ("weighted round robin", 0x0046_0801),
        ("SHN 3", 0x0046_c001),
    ] {
        let answer = wire.execute(property_set(0x14, cc), &[])?;
        ensure!(answer.status == INVALID_FIELD, "{what}: {answer:x?}");
        ensure!(wire.execute(property_get(0x1c, false), &[])?.dw0 & 1 == 0, "{what}: enabled nevertheless");
    }
    wire.enable()
}

#[test]
fn until_it_is_enabled_a_controller_executes_only_fabrics_commands() -> Result<()> {
    let target = target()?;
    let mut wire = Wire::initialized(target.port())?;
    wire.connect(target.nqn(), 0, 0xffff)?;
    let commands = [
        ("Identify", identify(1, 0)),
        ("Get Log Page", log_page(2, 512)),
        ("Get Features", Sqe::new(GET_FEATURES).dw(10, 7)),
        ("Asynchronous Event Request", Sqe::new(EVENT_REQUEST)),
        ("Keep Alive", Sqe::new(KEEP_ALIVE)),
    ];
    for (what, sqe) in commands {
        ensure!(wire.execute(sqe, &[])?.status == SEQUENCE_ERROR, "{what}");
    }
    // Enabled, shut down, reset, and enabled again.
    wire.enable()?;
    ensure!(wire.execute(identify(1, 0), &[])?.status == SUCCESS);
    ensure!(wire.execute(property_set(0x14, 0x0046_4001), &[])?.status == SUCCESS, "normal shutdown");
    penstock_tests::wait::until(std::time::Duration::from_secs(5), || {
        Ok((wire.execute(property_get(0x1c, false), &[])?.dw0 >> 2 & 3 == 2).then_some(()))
    })
    .context("CSTS.SHST")?;
    ensure!(wire.execute(identify(1, 0), &[])?.status == SEQUENCE_ERROR, "after a shutdown");
    ensure!(wire.execute(property_set(0x14, 0x0046_0000), &[])?.status == SUCCESS);
    wire.enable()?;
    ensure!(wire.execute(identify(1, 0), &[])?.status == SUCCESS);
    Ok(())
}

#[test]
fn an_admin_opcode_that_is_none_is_invalid() -> Result<()> {
    let target = target()?;
    let (mut admin, _) = Wire::admin(target.port(), target.nqn())?;
    let effects = admin.execute(log_page(5, 4096), &[])?;
    ensure!(effects.status == SUCCESS && effects.data.len() == 4096, "{effects:x?}");
    let supported = |opcode: u8| effects.data[usize::from(opcode) * 4] & 1 == 1;
    for opcode in [GET_LOG_PAGE, IDENTIFY, ABORT, SET_FEATURES, GET_FEATURES, EVENT_REQUEST, KEEP_ALIVE] {
        ensure!(supported(opcode), "opcode {opcode:#04x} is mandatory");
    }
    for opcode in (0..=u8::MAX).filter(|opcode| !supported(*opcode) && *opcode != 0x7f) {
        let answer = admin.execute(Sqe::new(opcode), &[])?;
        ensure!(answer.status == INVALID_OPCODE && answer.dnr, "opcode {opcode:#04x}: {answer:x?}");
    }
    for fuse in 1..4 {
        let answer = admin.execute(identify(1, 0).byte(1, 0x40 | fuse), &[])?;
        ensure!(answer.status == INVALID_FIELD, "FUSE {fuse}: {answer:x?}");
    }
    let disconnect = admin.execute(Sqe::fabrics(8), &[])?;
    ensure!(disconnect.status == 0x185, "Invalid Queue Type: {disconnect:x?}");
    let again = admin.execute(crate::wire::connect_sqe(0), &[0; 1024])?;
    ensure!(again.status == SEQUENCE_ERROR, "Connect again: {again:x?}");
    Ok(())
}

#[test]
fn identify_has_its_structures_and_checks_what_it_is_asked_for() -> Result<()> {
    let target = target()?;
    let (mut admin, cntlid) = Wire::admin(target.port(), target.nqn())?;
    let controller = admin.execute(identify(1, 0), &[])?.data;
    ensure!(u16_at(&controller, 78) == cntlid, "CNTLID");
    ensure!(controller[111] == 1, "CNTRLTYPE");
    ensure!(u16_at(&controller, 514) >= 32, "MAXCMD");
    ensure!(u32_at(&controller, 536) >> 20 & 1 == 1, "SGLS: offsets");
    ensure!(controller[768..].starts_with(target.nqn().as_bytes()), "SUBNQN");
    ensure!(u32_at(&controller, 1792) >= 4 && u32_at(&controller, 1796) == 1, "IOCCSZ, IORCSZ");
    ensure!(controller[1800..1802] == [0, 0], "ICDOFF");
    // Compare, DSM, Write Zeroes; the fused operation that goes with Compare.
    ensure!(u16_at(&controller, 520) & 0b1101 == 0b1101 && u16_at(&controller, 522) == 1, "ONCS, FUSES");
    let namespace = admin.execute(identify(0, 1), &[])?.data;
    ensure!(namespace[..8] == BLOCKS.to_le_bytes(), "NSZE");
    ensure!(namespace[104..120].iter().any(|byte| *byte != 0), "NGUID");
    ensure!(namespace[130] == 9, "LBADS");
    ensure!(admin.execute(identify(2, 0), &[])?.data[..8] == [1, 0, 0, 0, 0, 0, 0, 0], "active namespaces");
    let cases: [(&str, Sqe, u16); 13] = [
        ("NSID 0", identify(0, 0), INVALID_NAMESPACE),
        ("NSID FFFFFFFFh", identify(0, u32::MAX), INVALID_NAMESPACE),
        ("NSID FFFFFFFEh", identify(0, 0xffff_fffe), INVALID_NAMESPACE),
        ("an inactive namespace", identify(0, 2), SUCCESS),
        ("descriptors", identify(3, 1), SUCCESS),
        ("descriptors of none", identify(3, 0), INVALID_NAMESPACE),
        ("a list from FFFFFFFEh on", identify(2, 0xffff_fffe), INVALID_NAMESPACE),
        ("a list from FFFFFFFFh on", identify(2, u32::MAX), INVALID_NAMESPACE),
        ("CNS FFh", identify(0xff, 0), INVALID_FIELD),
        ("CNS 80h", identify(0x80, 0), INVALID_FIELD),
        ("too little room", identify(1, 0).moves(4092), DATA_SGL_LENGTH),
        ("no room", identify(1, 0).moves(0), DATA_SGL_LENGTH),
        ("more room than needed", identify(1, 0).moves(8192), SUCCESS),
    ];
    for (what, sqe, status) in cases {
        let answer = admin.execute(sqe, &[])?;
        ensure!(answer.status == status, "{what}: {answer:x?}");
    }
    ensure!(admin.execute(identify(0, 2), &[])?.data == [0; 4096], "an inactive namespace is all zero");
    Ok(())
}

#[test]
fn log_pages_are_those_that_the_list_of_them_names() -> Result<()> {
    let target = target()?;
    let (mut admin, _) = Wire::admin(target.port(), target.nqn())?;
    let list = admin.execute(log_page(0, 1024), &[])?.data;
    for lid in 0..=0xff_u32 {
        let supported = list[usize::try_from(lid)? * 4] & 1 == 1;
        let answer = admin.execute(log_page(lid, 64), &[])?;
        let expected = if supported { SUCCESS } else { INVALID_LOG_PAGE };
        ensure!(answer.status == expected, "log page {lid:#04x}: {answer:x?}");
    }
    let cases: [(&str, Sqe, u16); 7] = [
        ("an offset within the page", log_page(2, 64).dw(12, 448), SUCCESS),
        ("an offset at the page's end", log_page(2, 64).dw(12, 512), SUCCESS),
        ("an offset beyond the page", log_page(2, 64).dw(12, 516), INVALID_FIELD),
        ("an offset of 2^32", log_page(2, 64).dw(13, 1), INVALID_FIELD),
        ("an offset at no multiple of 4", log_page(2, 64).dw(12, 2), INVALID_FIELD),
        ("a page of one namespace", log_page(2, 64).nsid(1), INVALID_FIELD),
        ("more than there is room for", log_page(2, 512).moves(256), DATA_SGL_LENGTH),
    ];
    for (what, sqe, status) in cases {
        let answer = admin.execute(sqe, &[])?;
        ensure!(answer.status == status, "{what}: {answer:x?}");
    }
    let (mut discovery, _) = Wire::admin(target.port(), DISCOVERY_NQN)?;
    let page = discovery.execute(log_page(0x70, 4096), &[])?;
    ensure!(page.status == SUCCESS, "{page:x?}");
    let records: Vec<_> = page.data[1024..].chunks(1024).take(u16_at(&page.data, 8).into()).collect();
    let of = |nqn: &str| records.iter().filter(|record| record[256..].starts_with(nqn.as_bytes())).count();
    ensure!((of(target.nqn()), of(DISCOVERY_NQN)) == (1, 1), "{} records", records.len());
    Ok(())
}

#[test]
fn features_are_read_written_and_refused() -> Result<()> {
    let target = target()?;
    let (mut admin, _) = Wire::admin(target.port(), target.nqn())?;
    let get = |fid: u32| Sqe::new(GET_FEATURES).dw(10, fid).moves(4096);
    let set = |fid: u32, value: u32| Sqe::new(SET_FEATURES).dw(10, fid).dw(11, value);
    let hostid = admin.execute(get(0x81).dw(11, 1), &[])?;
    ensure!(hostid.status == SUCCESS && hostid.data.starts_with(b"conformance-test"), "HOSTID: {hostid:x?}");
    ensure!(admin.execute(get(0x81), &[])?.status == INVALID_FIELD, "a HOSTID of 64 bits");
    ensure!(
        admin.execute(set(0x81, 1), &[])?.status == SEQUENCE_ERROR,
        "a HOSTID that Connect did not bring"
    );
    for fid in (0..=0xff_u32).filter(|fid| *fid != 0x81) {
        // Some are of a namespace.
        let nsid = u32::from([0x05, 0x82, 0x83].contains(&fid));
        let current = admin.execute(get(fid).nsid(nsid), &[])?;
        let default = admin.execute(get(fid | 1 << 8).nsid(nsid), &[])?;
        ensure!(current.status == default.status, "feature {fid:#04x}: {current:x?} {default:x?}");
        if current.status != SUCCESS {
            ensure!(current.status == INVALID_FIELD, "feature {fid:#04x}: {current:x?}");
            let written = admin.execute(set(fid, 0), &[])?;
            ensure!(
                written.status == INVALID_FIELD,
                "feature {fid:#04x} cannot be read but written: {written:x?}"
            );
        }
    }
    for select in 4..8 {
        ensure!(admin.execute(get(7 | select << 8), &[])?.status == INVALID_FIELD, "SEL {select}");
    }
    let queues = admin.execute(set(7, 3 | 3 << 16), &[])?;
    ensure!((queues.status, queues.dw0) == (SUCCESS, 3 | 3 << 16), "number of queues: {queues:x?}");
    for bad in [0xffff, 0xffff << 16, u32::MAX] {
        ensure!(admin.execute(set(7, bad), &[])?.status == INVALID_FIELD, "{bad:#x} queues");
    }
    let saved = admin.execute(set(7 | 1 << 31, 0), &[])?;
    ensure!(saved.status == 0x10d, "not saveable: {saved:x?}");
    let kato = admin.execute(set(0x0f, 12_345), &[])?;
    ensure!(kato.status == SUCCESS, "{kato:x?}");
    let kato = admin.execute(get(0x0f), &[])?.dw0;
    ensure!((12_345..13_345).contains(&kato), "KATO {kato}");
    let events = admin.execute(set(0x0b, 0x100), &[])?;
    ensure!(events.status == SUCCESS, "namespace attribute notices: {events:x?}");
    ensure!(admin.execute(get(0x0b), &[])?.dw0 == 0x100, "they are on");
    Ok(())
}

#[test]
fn event_requests_have_a_limit_and_an_abort_says_what_it_did() -> Result<()> {
    let target = target()?;
    let (mut admin, _) = Wire::admin(target.port(), target.nqn())?;
    let limit = usize::from(admin.execute(identify(1, 0), &[])?.data[259]) + 1;
    let held: Vec<u16> =
        (0..limit).map(|_| admin.submit(Sqe::new(EVENT_REQUEST), &[])).collect::<Result<_>>()?;
    let more = admin.execute(Sqe::new(EVENT_REQUEST), &[])?;
    ensure!(more.status == 0x105, "event request {}: {more:x?}", limit + 1);
    let abort = |sqid: u16, cid: u16| Sqe::new(ABORT).dw(10, u32::from(cid) << 16 | u32::from(sqid));
    for (sqid, cid) in [(0, 0xabcd), (1, 1), (0xffff, 1)] {
        let answer = admin.execute(abort(sqid, cid), &[])?;
        ensure!((answer.status, answer.dw0 & 1) == (SUCCESS, 1), "nothing to abort: {answer:x?}");
    }
    // The event request that is aborted is answered, and the Abort.
    let cid = admin.submit(abort(0, held[0]), &[])?;
    let mut ends = [completion(&admin.receive()?), completion(&admin.receive()?)];
    ends.sort_by_key(|end| end.cid);
    ensure!((ends[0].cid, ends[0].status) == (held[0], 0x007), "{ends:x?}");
    ensure!((ends[1].cid, ends[1].status, ends[1].dw0 & 1) == (cid, SUCCESS, 0), "{ends:x?}");
    ensure!(admin.execute(Sqe::new(KEEP_ALIVE), &[])?.status == SUCCESS);
    Ok(())
}

/// ESXi 8 fills its whole admin queue at once when it scans.
#[test]
fn a_queue_full_of_admin_commands_at_once_is_answered_command_by_command() -> Result<()> {
    let target = target()?;
    let (mut admin, _) = Wire::admin(target.port(), target.nqn())?;
    for _ in 0..50 {
        let mut bytes = Vec::new();
        let mut waiting = BTreeSet::new();
        for at in 0..31_u32 {
            let sqe = match at % 6 {
                0 => identify(1, 0),
                1 => identify(0, 1),
                2 => identify(3, 1),
                3 => log_page(2, 512),
                4 => Sqe::new(GET_FEATURES).dw(10, 7),
                _ => Sqe::new(KEEP_ALIVE),
            };
            let (cid, mut sqe) = (admin.next_cid(), sqe);
            put(&mut sqe.0, 2, &cid.to_le_bytes());
            bytes.extend(admin.capsule(sqe, &[]));
            waiting.insert(cid);
        }
        admin.send(&bytes)?;
        while !waiting.is_empty() {
            let pdu = admin.receive()?;
            if pdu.kind == CAPSULE_RESP {
                let Answer { cid, status, .. } = completion(&pdu);
                ensure!(status == SUCCESS && waiting.remove(&cid), "command {cid}: {status:#x}");
            }
        }
    }
    Ok(())
}
