//! Every login key, all combinations of burst limits, digests, and bytes that no initiator should send, over sockets.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

mod raw;

use penstock_iscsi::config::{IscsiOptions, TRANSFER_BYTES_MAX};
use penstock_reactor::mem::BUF_BYTES_MAX;
use penstock_spec::iscsi::header::IMMEDIATE;
use penstock_spec::iscsi::{Bhs, DataLen, Opcode, RejectReason, TAG_NONE};
use raw::{Bench, Client, READ, TARGET, WRITE, crc, pattern, rw10};
use zerocopy::IntoBytes;

const FINAL: u8 = 0x80;

/// What a login with one key more comes to: the status, and what is said of the key.
fn said(bench: &Bench, key: &str, value: &str) -> (u16, Option<String>) {
    let mut client = Client::connect(bench.addr);
    let (status, answers) = client.login(1, 0, 0, &format!("{key}={value}"));
    (status, answers.get(key).cloned())
}

#[test]
fn every_key_is_answered_in_and_out_of_range() {
    let bench = Bench::new();
    for (key, value, answer) in [
        ("HeaderDigest", "CRC32C,None", "CRC32C"),
        ("HeaderDigest", "None", "None"),
        ("HeaderDigest", "MD5", "Reject"),
        ("DataDigest", "None,CRC32C", "None"),
        ("DataDigest", "SHA", "Reject"),
        ("MaxConnections", "1", "1"),
        ("MaxConnections", "65535", "4"),
        ("MaxConnections", "0", "Reject"),
        ("MaxConnections", "65536", "Reject"),
        ("InitialR2T", "Yes", "Yes"),
        ("InitialR2T", "No", "No"),
        ("InitialR2T", "no", "Reject"),
        ("ImmediateData", "Yes", "Yes"),
        ("ImmediateData", "No", "No"),
        ("ImmediateData", "1", "Reject"),
        ("MaxBurstLength", "512", "512"),
        ("MaxBurstLength", "16777215", "1048576"),
        ("MaxBurstLength", "0xffffff", "1048576"),
        ("MaxBurstLength", "511", "Reject"),
        ("MaxBurstLength", "16777216", "Reject"),
        ("FirstBurstLength", "512", "512"),
        ("FirstBurstLength", "16777215", "65536"),
        ("FirstBurstLength", "511", "Reject"),
        ("FirstBurstLength", "-1", "Reject"),
        ("MaxOutstandingR2T", "1", "1"),
        ("MaxOutstandingR2T", "65535", "4"),
        ("MaxOutstandingR2T", "0", "Reject"),
        ("MaxOutstandingR2T", "65536", "Reject"),
        ("DefaultTime2Wait", "3600", "3600"),
        ("DefaultTime2Wait", "0", "2"),
        ("DefaultTime2Wait", "3601", "Reject"),
        ("DefaultTime2Retain", "20", "0"),
        ("DefaultTime2Retain", "3601", "Reject"),
        ("DataPDUInOrder", "Yes", "Yes"),
        ("DataPDUInOrder", "No", "Yes"),
        ("DataPDUInOrder", "Maybe", "Reject"),
        ("DataSequenceInOrder", "No", "Yes"),
        ("ErrorRecoveryLevel", "0", "0"),
        ("ErrorRecoveryLevel", "2", "0"),
        ("ErrorRecoveryLevel", "3", "Reject"),
        ("IFMarker", "Yes", "No"),
        ("OFMarker", "No", "No"),
        ("OFMarkInt", "2048~8192", "Irrelevant"),
        ("TaskReporting", "RFC3720,FastAbort", "RFC3720"),
        ("TaskReporting", "FastAbort", "Reject"),
        ("iSCSIProtocolLevel", "2", "1"),
        ("iSCSIProtocolLevel", "32", "Reject"),
        ("X-io.penstock.key", "1", "NotUnderstood"),
        ("SendTargets", "All", "NotUnderstood"),
    ] {
        let (status, said) = said(&bench, key, value);
        if key == "SendTargets" {
            // Not in a login.
            assert!(status != 0 || said.as_deref() != Some("All"), "{said:?}");
            continue;
        }
        assert_eq!((status, said.as_deref()), (0, Some(answer)), "{key}={value}");
    }
    // Declared, and answered with our own.
    for (value, answer) in
        [("512", "262144"), ("16777215", "262144"), ("511", "Reject"), ("16777216", "Reject")]
    {
        let (status, said) = said(&bench, "MaxRecvDataSegmentLength", value);
        let fits = said.as_deref() == Some(answer) || said.as_deref() == Some("262144");
        assert!(status == 0 && fits, "{value}: {said:?}");
    }
}

#[test]
fn logins_that_break_the_rules_are_refused_with_their_status() {
    let bench = Bench::new();
    let who = "InitiatorName=iqn.2026-11.h:1\0";
    let to = format!("TargetName={TARGET}\0");
    for (text, flags, status) in [
        (to.clone(), 0x87, 0x0207),
        (who.to_owned(), 0x87, 0x0207),
        (format!("{who}TargetName=iqn.2026-11.nobody:1\0"), 0x87, 0x0203),
        (format!("{who}{to}SessionType=Strange\0"), 0x87, 0x0209),
        (format!("{who}{to}InitiatorName=iqn.2026-11.h:1\0"), 0x87, 0x0200),
        (format!("{who}{to}no key at all\0"), 0x87, 0x0200),
        // Reserved stages, T with C, and a step back.
        (format!("{who}{to}"), 0x8b, 0x020b),
        (format!("{who}{to}"), 0xc7, 0x020b),
        (format!("{who}{to}"), 0x84, 0x020b),
    ] {
        let mut client = Client::connect(bench.addr);
        assert_eq!(client.login_text(1, 0, 0, flags, &text).0, status, "{text:?} {flags:#x}");
        assert!(client.has_ended());
    }
    let mut client = Client::connect(bench.addr);
    assert_eq!(client.login_text(1, 77, 0, 0x87, &format!("{who}{to}")).0, 0x020a, "no such session");
    // Anything but a login comes before it: closed without a word.
    let mut client = Client::connect(bench.addr);
    client.send(Bhs { opcode: 0x40, flags: FINAL, ttt: TAG_NONE.into(), ..Bhs::default() }, &[]);
    assert!(client.try_recv().is_none());
}

#[test]
fn a_write_of_any_length_arrives_under_all_combinations_of_limits() {
    let bench = Bench::new();
    let mut isid = 0;
    for initial_r2t in ["Yes", "No"] {
        for immediate in ["Yes", "No"] {
            for (first, burst, r2ts) in
                [(512, 512, 1), (1024, 512, 3), (1536, 4096, 1), (4096, 8192, 2), (65_536, 262_144, 65_535)]
            {
                isid += 1;
                let keys = format!(
                    "InitialR2T={initial_r2t} ImmediateData={immediate} FirstBurstLength={first} \
                     MaxBurstLength={burst} MaxOutstandingR2T={r2ts} MaxRecvDataSegmentLength=1024"
                );
                let keys = keys.replace("  ", " ");
                let mut client = bench.session(isid, &keys);
                // What the target takes in one PDU; FirstBurstLength is at most MaxBurstLength.
                client.agreed.segment = 1024;
                client.agreed.first_burst = first.min(burst);
                for blocks in [1_u16, 2, 5, 16, 33] {
                    let len = usize::from(blocks) * 512;
                    let data = pattern(len, isid ^ blocks as u8);
                    let outcome = client.command(WRITE, len as u32, &rw10(0x2a, 7, blocks), &data);
                    assert_eq!(outcome.status, 0, "{keys} {blocks}");
                    let unasked = if immediate == "No" && initial_r2t == "Yes" { 0 } else { 1 };
                    let asked: u32 = outcome.r2ts.iter().map(|r2t| r2t.len.get()).sum();
                    assert!(
                        asked as usize <= len && (unasked == 1 || asked as usize == len),
                        "{keys} {blocks}"
                    );
                    for (at, r2t) in outcome.r2ts.iter().enumerate() {
                        assert!(r2t.len.get() as usize <= burst && r2t.r2t_sn.get() == at as u32);
                    }
                    let read = client.command(READ, len as u32, &rw10(0x28, 7, blocks), &[]);
                    assert!(read.data == data, "{keys} {blocks}");
                    assert!(read.data_ins.iter().all(|hdr| hdr.data_len.get() <= 1024));
                }
                assert_eq!(client.logout(0, 0), 0);
            }
        }
    }
}

/// Transfers above 1 MiB were refused: an initiator that takes MAXIMUM TRANSFER LENGTH for what it asks for got errors.
#[test]
fn a_transfer_of_several_buffers_arrives_with_digests_and_without() {
    let bench = Bench::new();
    for (isid, digests) in [(1, "None"), (2, "CRC32C")] {
        let keys = format!(
            "HeaderDigest={digests} DataDigest={digests} InitialR2T=No MaxRecvDataSegmentLength=196608 \
             FirstBurstLength=65536 MaxBurstLength=917504"
        );
        let mut client = bench.session(isid, &keys);
        // Whole buffers and a part, and pieces that lie across their ends.
        for blocks in [2048_u16, 2049, 5000, 16_384] {
            let len = usize::from(blocks) * 512;
            let data = pattern(len, isid ^ blocks as u8);
            assert_eq!(
                client.command(WRITE, len as u32, &rw10(0x2a, 3, blocks), &data).status,
                0,
                "{blocks}"
            );
            let read = client.command(READ, len as u32, &rw10(0x28, 3, blocks), &[]);
            assert!(read.status == 0 && read.data == data, "{blocks}");
        }
        let too_long = TRANSFER_BYTES_MAX / 512 + 1;
        let outcome = client.command(READ, 512, &rw10(0x28, 0, too_long as u16), &[]);
        assert_eq!(
            (outcome.status, outcome.last.sense()),
            (2, (5, 0x24, 0)),
            "beyond MAXIMUM TRANSFER LENGTH"
        );
    }
}

#[test]
fn r2ts_are_out_as_many_as_agreed_and_no_more() {
    let bench = Bench::new();
    for wanted in [1_u16, 3] {
        let keys =
            format!("ImmediateData=No MaxBurstLength=512 FirstBurstLength=512 MaxOutstandingR2T={wanted}");
        let mut client = bench.session(1, &keys);
        let bhs = client.command_bhs(0, FINAL | WRITE, 8 * 512, &rw10(0x2a, 0, 8));
        client.send(bhs, &[]);
        for _ in 0..wanted {
            assert_eq!(client.recv().opcode(), Opcode::R2T);
        }
        client.assert_silent();
        assert_eq!(client.logout(0, 0), 0);
    }
}

#[test]
fn digests_are_made_and_checked() {
    let bench = Bench::new();
    let mut isid = 0;
    for header in ["CRC32C", "None"] {
        for data in ["CRC32C", "None"] {
            isid += 1;
            let mut client = bench.session(isid, &format!("HeaderDigest={header} DataDigest={data}"));
            let bytes = pattern(100 * 512, isid);
            let outcome = client.command(WRITE, bytes.len() as u32, &rw10(0x2a, 0, 100), &bytes);
            assert_eq!(outcome.status, 0);
            assert!(client.command(READ, bytes.len() as u32, &rw10(0x28, 0, 100), &[]).data == bytes);
            client.ping();
        }
    }
    // Data with a wrong digest: Reject, and the command fails; the connection goes on.
    let mut client = bench.session(9, "DataDigest=CRC32C");
    let bhs = client.command_bhs(0, FINAL | WRITE, 512, &rw10(0x2a, 3, 1));
    let bhs = Bhs { data_len: DataLen::new(512), ..bhs };
    client.send_bytes(bhs.as_bytes());
    client.send_bytes(&[9; 512]);
    client.send_bytes(&[0; 4]);
    let reject = client.recv();
    assert_eq!((reject.opcode(), reject.bhs.specific[0]), (Opcode::REJECT, RejectReason::DATA_DIGEST.0));
    assert_eq!(reject.data[..48], *bhs.as_bytes());
    assert_eq!(client.recv().sense(), (0x0b, 0x47, 0x05));
    // A ping with a wrong digest is rejected and gets no answer.
    let nop = Bhs {
        opcode: IMMEDIATE,
        flags: FINAL,
        data_len: DataLen::new(4),
        itt: 5.into(),
        ttt: TAG_NONE.into(),
        cmd_sn: client.cmd_sn.into(),
        ..Bhs::default()
    };
    client.send_bytes(nop.as_bytes());
    client.send_bytes(&[1, 2, 3, 4, 0, 0, 0, 0]);
    assert_eq!(client.recv().opcode(), Opcode::REJECT);
    client.ping();
    // A header with a wrong digest: nothing that follows can be trusted.
    let mut client = bench.session(10, "HeaderDigest=CRC32C");
    let bhs = client.command_bhs(0, FINAL | READ, 512, &rw10(0x28, 3, 1));
    client.send_bytes(bhs.as_bytes());
    client.send_bytes(&(u32::from_le_bytes(crc(bhs.as_bytes())) ^ 1).to_le_bytes());
    assert!(client.try_recv().is_none());
}

#[test]
fn every_reject_has_its_reason() {
    let bench = Bench::new();
    let mut client = bench.session(1, "");
    let mut reject_of = |bhs: Bhs, data: &[u8], reason: RejectReason| {
        client.send(bhs, data);
        let pdu = client.recv();
        assert_eq!((pdu.opcode(), RejectReason(pdu.bhs.specific[0])), (Opcode::REJECT, reason));
        client.cmd_sn
    };
    let base = Bhs { flags: FINAL, itt: 7.into(), ttt: TAG_NONE.into(), ..Bhs::default() };
    let cmd_sn = reject_of(Bhs { opcode: Opcode::SNACK.0, ..base }, &[], RejectReason::SNACK);
    let immediate = |opcode: Opcode| Bhs { opcode: opcode.0 | IMMEDIATE, cmd_sn: cmd_sn.into(), ..base };
    // A text request with a tag that was never given, and one that is no text.
    reject_of(Bhs { ttt: 4711.into(), ..immediate(Opcode::TEXT_REQ) }, &[], RejectReason::PROTOCOL);
    reject_of(immediate(Opcode::TEXT_REQ), b"no pair\0", RejectReason::INVALID_FIELD);
    reject_of(
        Bhs { flags: FINAL | 0x40, ..immediate(Opcode::TEXT_REQ) },
        b"A=B\0",
        RejectReason::INVALID_FIELD,
    );
    reject_of(Bhs { flags: FINAL | 9, ..immediate(Opcode::LOGOUT_REQ) }, &[], RejectReason::INVALID_FIELD);
    // More immediate commands than there may be: those to the slow disk stay.
    let mut client = bench.session(2, "");
    for at in 0..17 {
        let mut bhs = client.command_bhs(1, FINAL | READ, 512, &rw10(0x28, 0, 1));
        client.cmd_sn -= 1;
        bhs.opcode |= IMMEDIATE;
        client.send(bhs, &[]);
        if at == 16 {
            let pdu = client.recv();
            assert_eq!(RejectReason(pdu.bhs.specific[0]), RejectReason::IMMEDIATE);
        }
    }
    for _ in 0..16 {
        assert_eq!(client.recv().status(), 0);
    }
    // A tag that is in use.
    let first = client.command_bhs(1, FINAL | READ, 512, &rw10(0x28, 0, 1));
    client.send(first, &[]);
    let second = client.command_bhs(1, FINAL | READ, 512, &rw10(0x28, 0, 1));
    client.send(Bhs { itt: first.itt, ..second }, &[]);
    assert_eq!(RejectReason(client.recv().bhs.specific[0]), RejectReason::TASK_IN_PROGRESS);
    assert_eq!(client.recv().status(), 0);
}

#[test]
fn hostile_pdus_end_their_connection_and_nothing_else() {
    let bench = Bench::new();
    let mut good = bench.session(200, "");
    let data = pattern(4096, 1);
    let mut isid = 0;
    let mut hostile = |keys: &str, attack: &dyn Fn(&mut Client)| {
        isid += 1;
        let mut client = bench.session(isid, keys);
        attack(&mut client);
        assert!(client.has_ended());
    };
    // Longer than declared, an opcode of a target, an unknown one, additional headers without end.
    for opcode in [Opcode::DATA_OUT.0, Opcode::SCSI_COMMAND.0, IMMEDIATE] {
        hostile("", &|client| {
            let bhs = Bhs { opcode, flags: FINAL, data_len: DataLen::new(DataLen::MAX), ..Bhs::default() };
            client.send_bytes(bhs.as_bytes());
        });
    }
    for opcode in [0x20, 0x25, 0x31, 0x3f, 0x07, 0x1c, 0x3e, Opcode::LOGIN_REQ.0 | IMMEDIATE] {
        hostile("", &|client| {
            client.send(Bhs { opcode, flags: FINAL, cmd_sn: client.cmd_sn.into(), ..Bhs::default() }, &[])
        });
    }
    // Data beyond the first burst, beyond what an R2T asked for, in the wrong place, with the wrong tag.
    hostile("FirstBurstLength=512", &|client| {
        let bhs = client.command_bhs(0, FINAL | WRITE, 4096, &rw10(0x2a, 0, 8));
        client.send(bhs, &data[..1024]);
    });
    hostile("ImmediateData=No", &|client| {
        let bhs = client.command_bhs(0, FINAL | WRITE, 4096, &rw10(0x2a, 0, 8));
        client.send(bhs, &data[..512]);
    });
    hostile("", &|client| {
        // InitialR2T=Yes: nothing unasked.
        let bhs = client.command_bhs(0, WRITE, 4096, &rw10(0x2a, 0, 8));
        client.send(bhs, &data[..512]);
    });
    for (wrong_tag, wrong_offset, len) in [(1, 0, 4096), (0, 512, 3584), (0, 0, 512), (0, 0, 8192)] {
        hostile("ImmediateData=No MaxBurstLength=4096 FirstBurstLength=4096", &|client| {
            let bhs = client.command_bhs(0, FINAL | WRITE, 8192, &rw10(0x2a, 0, 16));
            client.send(bhs, &[]);
            let r2t = client.recv();
            let ttt = r2t.bhs.ttt.get() ^ wrong_tag;
            let data = pattern(len, 2);
            client.agreed.segment = 8192;
            client.data_out(bhs.itt.get(), ttt, wrong_offset, &data);
        });
    }
    // Bytes of no sense at all, in all beginnings.
    for seed in 0..60_u8 {
        let mut client = Client::connect(bench.addr);
        client.send_bytes(&pattern(400, seed.wrapping_mul(37)));
        drop(client);
        let mut client = bench.session(100, "");
        let mut noise = pattern(48 + usize::from(seed), seed.wrapping_mul(29));
        noise[0] = seed & 0x3f;
        client.send_bytes(&noise);
        drop(client);
    }
    assert_eq!(good.command(READ, 512, &rw10(0x28, 0, 1), &[]).status, 0, "nobody else has noticed");
    bench.wait("all is gone but one", |bench| bench.connections().iter().sum::<usize>() == 1);
}

#[test]
fn commands_wait_for_buffers_and_what_a_connection_holds_is_bounded() {
    // Room for two commands of the largest kind, of all connections together.
    let options = IscsiOptions { buffer_bytes_max: 2 << 20, ..IscsiOptions::default() };
    let bench = Bench::with(options);
    let mut clients: Vec<Client> = (1..4)
        .map(|isid| bench.session(isid, "MaxRecvDataSegmentLength=262144 MaxBurstLength=1048576"))
        .collect();
    let read = |client: &mut Client| {
        let blocks = u16::try_from(BUF_BYTES_MAX / 512).unwrap();
        let bhs = client.command_bhs(0, FINAL | READ, BUF_BYTES_MAX as u32, &rw10(0x28, 0, blocks));
        client.send(bhs, &[]);
        bhs.itt.get()
    };
    let mut stuck = clients.remove(0);
    std::thread::scope(|scope| {
        for client in &mut clients {
            scope.spawn(move || {
                let tags: Vec<u32> = (0..8).map(|_| read(client)).collect();
                // Whoever gets a buffer first is first.
                client.finish_reads(&tags, BUF_BYTES_MAX);
            });
        }
    });
    // One that takes nothing has all buffers: it is given up, and the others go on.
    for _ in 0..100 {
        read(&mut stuck);
    }
    std::thread::sleep(std::time::Duration::from_millis(200));
    for client in &mut clients {
        // One of them is on the same reactor.
        let tag = read(client);
        assert_eq!(client.finish(tag, &[]).data.len(), BUF_BYTES_MAX);
    }
    bench.wait("it is gone", |bench| bench.connections().iter().sum::<usize>() == 2);
}

#[test]
fn discovery_tells_of_targets_and_does_nothing_else() {
    let bench = Bench::new();
    let mut client = Client::connect(bench.addr);
    let text = "InitiatorName=iqn.2026-11.h:1\0SessionType=Discovery\0";
    assert_eq!(client.login_text(1, 0, 0, 0x87, text).0, 0);
    let request = |flags, cmd_sn: u32| Bhs {
        opcode: Opcode::TEXT_REQ.0 | IMMEDIATE,
        flags,
        itt: 5.into(),
        ttt: TAG_NONE.into(),
        cmd_sn: cmd_sn.into(),
        ..Bhs::default()
    };
    client.send(request(FINAL, client.cmd_sn), b"SendTargets=All\0");
    let answer = client.recv();
    assert_eq!(answer.data, format!("TargetName={TARGET}\0TargetAddress=127.0.0.1:3260,1\0").as_bytes());
    // The keys in two PDUs.
    client.send(request(0x40, client.cmd_sn), b"SendTar");
    let more = client.recv();
    client.send(Bhs { ttt: more.bhs.ttt, ..request(FINAL, client.cmd_sn) }, b"gets=All\0X-a=b\0");
    let second = client.recv();
    assert!(second.data.starts_with(&answer.data) && second.data.ends_with(b"X-a=NotUnderstood\0"));
    let bhs = client.command_bhs(0, FINAL, 0, &[0; 6]);
    client.send(bhs, &[]);
    assert_eq!(client.recv().opcode(), Opcode::REJECT);
    assert_eq!(client.logout(0, 0), 0);
    // A normal session is told of its own target only; who asks in a wrong way is rejected.
    let mut client = bench.session(2, "");
    for (keys, told) in [
        ("SendTargets=All", true),
        ("SendTargets=", true),
        ("SendTargets=Alle", false),
        ("sENDtARGETS=aLL", false),
        ("SendTargetsPlease=All", false),
        ("SendTargets=iqn.2026-11.io.penstock:another", false),
    ] {
        client.send(request(FINAL, client.cmd_sn), format!("{keys}\0").as_bytes());
        let said = client.recv();
        assert_eq!(said.opcode(), if told { Opcode::TEXT_RESP } else { Opcode::REJECT }, "{keys}");
        assert!(!told || said.data == answer.data, "{keys}");
    }
}
