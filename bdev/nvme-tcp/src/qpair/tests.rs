//! Goal: whatever a target chooses and however the stream is cut, data arrives and every command completes
//! once; whatever rubbish it sends, the queue pair closes with the right H2CTermReq and loses nothing.
//! Method: a target in memory, random choices, random cuts, and by hand made violations.

use penstock_spec::nvme_tcp::{C2hDataHdr, CapsuleRespHdr, Fes, R2tHdr};
use proptest::prelude::*;

use super::*;
use crate::command;
use crate::fake_target::{BLOCK, Choices, FakeTarget};

fn config() -> QpairConfig {
    let nqn = "nqn.2026-11.io.penstock:t".parse().unwrap();
    QpairConfig { qid: 1, depth: 8, cntlid: 7, in_capsule_max: 0, ..QpairConfig::admin([1; 16], nqn, nqn) }
}

/// A payload in pieces of 700 bytes.
#[derive(Debug, Clone, PartialEq)]
struct Pieces(Vec<u8>);

impl Payload for Pieces {
    fn len_bytes(&self) -> usize {
        self.0.len()
    }

    fn chunk(&self, off: usize) -> &[u8] {
        let end = (off / 700 * 700 + 700).min(self.0.len());
        &self.0[off.min(end)..end]
    }

    fn chunk_mut(&mut self, off: usize) -> &mut [u8] {
        let end = (off / 700 * 700 + 700).min(self.0.len());
        &mut self.0[off.min(end)..end]
    }
}

/// Where to cut the streams: an endless sequence of lengths.
struct Cuts(Vec<usize>, usize);

impl Cuts {
    fn next(&mut self) -> usize {
        self.1 += 1;
        self.0[self.1 % self.0.len()]
    }
}

/// Moves bytes both ways until both sides are silent. Odd turns use the direct receive target.
fn exchange(qpair: &mut Qpair<Pieces>, target: &mut FakeTarget, cuts: &mut Cuts) -> Result<(), QpairError> {
    loop {
        let pending: Vec<u8> = qpair.tx_slices().flatten().copied().collect();
        assert_eq!(pending.len(), qpair.tx_len_bytes());
        let n = cuts.next().min(pending.len());
        target.feed(&pending[..n]);
        qpair.tx_consume(n);
        let mut m = cuts.next().min(target.output.len());
        if m % 2 == 1
            && let Some(place) = qpair.rx_target()
        {
            m = m.min(place.len());
            place[..m].copy_from_slice(&target.output[..m]);
            qpair.rx_received(m)?;
        } else {
            qpair.recv(&target.output[..m])?;
        }
        target.output.drain(..m);
        if qpair.tx_len_bytes() == 0 && target.output.is_empty() {
            return Ok(());
        }
    }
}

fn whole() -> Cuts {
    Cuts(vec![usize::MAX], 0)
}

fn live(config: QpairConfig, choices: Choices) -> (Qpair<Pieces>, FakeTarget) {
    let mut qpair = Qpair::new(config);
    let mut target = FakeTarget::new(choices, 1024);
    exchange(&mut qpair, &mut target, &mut whole()).unwrap();
    assert!(qpair.is_live());
    (qpair, target)
}

fn choices() -> impl Strategy<Value = (Choices, QpairConfig)> {
    let digests = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let sizes = (0_u8..32, 0_u8..32, 1_u32..9, 1_u32..40, 1_u32..40, 1_u16..5);
    let rest = (any::<bool>(), 1_u16..10, 0_u32..3000);
    (digests, sizes, rest).prop_map(|(d, (cpda, hpda, maxh2c, r2t, c2h, maxr2t), (success, depth, icd))| {
        let choices = Choices {
            hdgst: d.0,
            ddgst: d.1,
            cpda,
            maxh2cdata: maxh2c * 4096,
            r2tl: r2t * 512,
            c2hl: c2h * 512,
            success,
            ..Choices::default()
        };
        let config =
            QpairConfig { hdgst: d.2, ddgst: d.3, hpda, maxr2t, depth, in_capsule_max: icd, ..config() };
        (choices, config)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn what_was_written_is_read_however_the_streams_are_cut(
        (choices, config) in choices(),
        lens in prop::collection::vec(1_usize..60, 1..20),
        cuts in prop::collection::vec(prop_oneof![1_usize..100, 1_usize..40_000], 2..30),
    ) {
        let mut cuts = Cuts(cuts, 0);
        let mut qpair = Qpair::new(config);
        let mut target = FakeTarget::new(choices, 1024);
        exchange(&mut qpair, &mut target, &mut cuts).unwrap();
        prop_assert!(qpair.is_live());
        let mut extents = Vec::new();
        let mut lba = 0;
        for (i, blocks) in lens.iter().enumerate() {
            if lba + blocks <= 1024 {
                let data: Vec<u8> = (0..blocks * BLOCK).map(|b| (b * 7 + b / 256 + i * 31) as u8).collect();
                extents.push((lba as u64, *blocks as u32, Pieces(data)));
                lba += blocks;
            }
        }
        for write in [true, false] {
            let mut queue: std::collections::VecDeque<_> = extents.iter().enumerate().collect();
            let mut completed = vec![false; extents.len()];
            while completed.contains(&false) {
                while let Some((i, (slba, blocks, data))) = queue.pop_front() {
                    let len = data.0.len() as u32;
                    let (sqe, transfer, payload) = if write {
                        (command::write(1, *slba, *blocks, false), Transfer::Write(len), data.clone())
                    } else {
                        let payload = Pieces(vec![0xee; data.0.len()]);
                        (command::read(1, *slba, *blocks), Transfer::Read(len), payload)
                    };
                    if let Err(rejected) = qpair.submit(sqe, transfer, i as u64, Some(payload)) {
                        prop_assert_eq!(rejected.reason, RejectReason::Busy);
                        queue.push_front((i, &extents[i]));
                        break;
                    }
                }
                exchange(&mut qpair, &mut target, &mut cuts).unwrap();
                while let Some(done) = qpair.poll() {
                    let i = done.user as usize;
                    prop_assert!(done.status().is_success() && !completed[i]);
                    prop_assert_eq!(done.payload.as_ref(), Some(&extents[i].2));
                    completed[i] = true;
                }
            }
        }
        prop_assert_eq!(qpair.outstanding(), 0);
    }

    #[test]
    fn rubbish_closes_the_queue_pair_and_every_payload_comes_back_once(
        (choices, config) in choices(),
        rubbish in prop::collection::vec(any::<u8>(), 1..600),
        ty in 0_u8..10,
        plausible: bool,
        after_live: bool,
    ) {
        let depth = config.depth;
        let (mut qpair, mut target) = if after_live {
            live(config, choices)
        } else {
            (Qpair::new(config), FakeTarget::new(choices, 64))
        };
        let mut submitted = 0;
        for i in 0..u64::from(depth) * u64::from(after_live) {
            let (sqe, transfer) = if i % 2 == 0 {
                (command::read(1, i, 1), Transfer::Read(512))
            } else {
                (command::write(1, i, 1, false), Transfer::Write(512))
            };
            qpair.submit(sqe, transfer, i, Some(Pieces(vec![1; 512]))).unwrap();
            submitted += 1;
        }
        let mut bytes = rubbish.clone();
        if plausible && bytes.len() >= 24 {
            target.output.clear();
            let ty = PduType(ty);
            let psh = &bytes[..usize::from(ty.hlen()).min(bytes.len())];
            if psh.len() >= 24 {
                target.send(ty, bytes[1], psh, &bytes[24..]);
                bytes = std::mem::take(&mut target.output);
            }
        }
        let result = bytes.chunks(13).try_for_each(|chunk| qpair.recv(chunk));
        if result.is_ok() {
            qpair.close();
        }
        prop_assert!(matches!(qpair.state(), QpairState::Closed(_)));
        prop_assert_eq!(qpair.recv(&[0]), Err(QpairError::Closed));
        let mut back = std::collections::BTreeSet::new();
        while let Some(done) = qpair.abandon() {
            prop_assert!(done.payload.is_some() && back.insert(done.user));
        }
        prop_assert_eq!(back.len(), submitted);
    }
}

/// What the target sends, and the FES and FEI of the H2CTermReq that must answer it.
fn refused(config: QpairConfig, send: impl FnOnce(&mut FakeTarget, u16, u16)) -> (Fes, u32) {
    let (mut qpair, mut target) = live(config, Choices::default());
    let read = command::read(1, 0, 2);
    let read = qpair.submit(read, Transfer::Read(1024), 0, Some(Pieces(vec![0; 1024]))).unwrap();
    let write = command::write(1, 0, 2, false);
    let write = qpair.submit(write, Transfer::Write(1024), 1, Some(Pieces(vec![0; 1024]))).unwrap();
    send(&mut target, read, write);
    qpair.recv(&target.output).unwrap_err();
    let pending: Vec<u8> = qpair.tx_slices().flatten().copied().collect();
    let mut peer = FakeTarget::new(Choices::default(), 64);
    // Behind the two capsules, whole, stands the H2CTermReq.
    peer.feed(&pending[144..]);
    let term = peer.term.expect("an H2CTermReq");
    (term.fes(), term.fei.get())
}

fn data(cid: u16, off: u32, len: u32) -> C2hDataHdr {
    C2hDataHdr { cccid: U16::new(cid), datao: U32::new(off), datal: U32::new(len), ..C2hDataHdr::default() }
}

fn r2t(cid: u16, off: u32, len: u32) -> R2tHdr {
    R2tHdr { cccid: U16::new(cid), r2to: U32::new(off), r2tl: U32::new(len), ..R2tHdr::default() }
}

#[test]
fn answers_to_commands_that_were_not_asked_are_refused_at_their_cid() {
    let invalid = Fes::INVALID_PDU_HEADER_FIELD;
    let answer = |cid| move |t: &mut FakeTarget, _, _| t.respond(Cqe::new(cid, 0, Status::SUCCESS));
    assert_eq!(refused(config(), answer(0xffff)), (invalid, 20));
    let twice = refused(config(), |t, _, write| {
        t.respond(Cqe::new(write, 0, Status::SUCCESS));
        t.respond(Cqe::new(write, 0, Status::SUCCESS));
    });
    assert_eq!(twice, (invalid, 20));
    let for_write = refused(config(), |t, _, write| {
        t.send(PduType::C2H_DATA, PduFlags::LAST, data(write, 0, 512).as_bytes(), &[0; 512]);
    });
    assert_eq!(for_write, (invalid, 8));
    let r2t_for_read =
        refused(config(), |t, read, _| t.send(PduType::R2T, 0, r2t(read, 0, 512).as_bytes(), &[]));
    assert_eq!(r2t_for_read, (invalid, 8));
}

#[test]
fn data_and_r2ts_out_of_range_or_order_are_refused() {
    let range = Fes::DATA_TRANSFER_OUT_OF_RANGE;
    for (off, len) in [(512, 512), (0, 2048), (1024, 4)] {
        let bytes = vec![0; len as usize];
        let got = refused(config(), move |t, read, _| {
            t.send(PduType::C2H_DATA, 0, data(read, off, len).as_bytes(), &bytes);
        });
        assert_eq!(got.0, range);
        let got = refused(config(), move |t, _, write| {
            t.send(PduType::R2T, 0, r2t(write, off, len).as_bytes(), &[]);
        });
        assert_eq!(got.0, range);
    }
    let too_many = refused(config(), |t, _, write| {
        t.send(PduType::R2T, 0, r2t(write, 0, 512).as_bytes(), &[]);
        t.send(PduType::R2T, 0, r2t(write, 512, 512).as_bytes(), &[]);
    });
    assert_eq!(too_many.0, Fes::LIMIT_EXCEEDED);
}

#[test]
fn success_without_all_the_data_is_refused_and_an_error_without_it_is_not() {
    let short = refused(config(), |t, read, _| t.respond(Cqe::new(read, 0, Status::SUCCESS)));
    assert_eq!(short, (Fes::DATA_TRANSFER_OUT_OF_RANGE, 12));
    let short = refused(config(), |t, read, _| {
        let flags = PduFlags::LAST | PduFlags::SUCCESS;
        t.send(PduType::C2H_DATA, flags, data(read, 0, 512).as_bytes(), &[0; 512]);
    });
    assert_eq!(short, (Fes::DATA_TRANSFER_OUT_OF_RANGE, 12));
    let (mut qpair, mut target) = live(config(), Choices::default());
    let read = command::read(1, 5000, 1);
    qpair.submit(read, Transfer::Read(512), 3, Some(Pieces(vec![9; 512]))).unwrap();
    exchange(&mut qpair, &mut target, &mut whole()).unwrap();
    let done = qpair.poll().unwrap();
    assert!(done.status().is(Status::LBA_OUT_OF_RANGE));
}

#[test]
fn a_bad_data_digest_fails_the_command_and_not_the_connection() {
    let choices = Choices { ddgst: true, ..Choices::default() };
    let (mut qpair, mut target) = live(QpairConfig { ddgst: true, ..config() }, choices);
    qpair.submit(command::read(1, 0, 1), Transfer::Read(512), 0, Some(Pieces(vec![0; 512]))).unwrap();
    let pending: Vec<u8> = qpair.tx_slices().flatten().copied().collect();
    target.feed(&pending);
    qpair.tx_consume(pending.len());
    target.output[30] ^= 1;
    qpair.recv(&target.output).unwrap();
    assert!(qpair.poll().unwrap().status().is(Status::TRANSIENT_TRANSPORT_ERROR));
    assert!(qpair.is_live());
}

#[test]
fn a_bad_header_digest_is_answered_with_the_digest_received() {
    let choices = Choices { hdgst: true, ..Choices::default() };
    let (mut qpair, mut target) = live(QpairConfig { hdgst: true, ..config() }, choices);
    let cid = qpair.submit(command::flush(1), Transfer::None, 0, None).unwrap();
    target.respond(Cqe::new(cid, 0, Status::SUCCESS));
    target.output[24] ^= 1;
    let error = qpair.recv(&target.output).unwrap_err();
    assert!(matches!(error, QpairError::Protocol(PduError::HeaderDigest { .. })));
}

#[test]
fn a_payload_is_kept_until_it_is_out_of_the_transmit_queue() {
    let (mut qpair, mut target) = live(QpairConfig { in_capsule_max: 4096, ..config() }, Choices::default());
    let write = command::write(1, 0, 1, false);
    let cid = qpair.submit(write, Transfer::Write(512), 0, Some(Pieces(vec![5; 512]))).unwrap();
    target.respond(Cqe::new(cid, 0, Status::WRITE_FAULT));
    qpair.recv(&target.output).unwrap();
    assert!(qpair.poll().is_none(), "the payload is still referred to");
    qpair.tx_consume(qpair.tx_len_bytes());
    assert!(qpair.poll().unwrap().status().is(Status::WRITE_FAULT));
}

/// A driver may learn of bytes in the direct target after it has closed the queue pair and taken the
/// commands back: they must not complete a second time.
#[test]
fn bytes_received_directly_after_the_end_complete_nothing() {
    let (mut qpair, mut target) = live(config(), Choices { success: true, ..Choices::default() });
    qpair.submit(command::read(1, 0, 1), Transfer::Read(512), 0, Some(Pieces(vec![0; 512]))).unwrap();
    let pending: Vec<u8> = qpair.tx_slices().flatten().copied().collect();
    target.feed(&pending);
    qpair.recv(&target.output[..24]).unwrap();
    assert_eq!(qpair.rx_target().map(|place| place.len()), Some(512));
    qpair.close();
    assert!(qpair.abandon().is_some_and(|done| done.status().is(Status::ABORTED_BY_HOST)));
    assert!(qpair.rx_target().is_none());
    assert_eq!(qpair.rx_received(512), Err(QpairError::Closed));
    assert!(qpair.abandon().is_none());
}

#[test]
fn a_refused_connect_and_a_term_req_say_why() {
    let choices = Choices { connect_status: Status::CONNECT_INVALID_HOST, ..Choices::default() };
    let mut qpair = Qpair::new(config());
    let mut target = FakeTarget::new(choices, 64);
    let error = exchange(&mut qpair, &mut target, &mut whole()).unwrap_err();
    assert!(error.to_string().contains("Connect Invalid Host"), "{error}");
    let (mut qpair, mut target) = live(config(), Choices::default());
    let term = TermReqHdr::new(PduType::C2H_TERM_REQ, &PduError::Type(PduType::R2T), 0);
    target.send(PduType::C2H_TERM_REQ, 0, term.as_bytes(), &[]);
    let fes = Fes::INVALID_PDU_HEADER_FIELD;
    assert_eq!(qpair.recv(&target.output), Err(QpairError::Terminated { fes, fei: 0 }));
    assert_eq!(qpair.tx_len_bytes(), 0, "a TermReq is not answered");
}

#[test]
fn a_full_queue_hands_the_command_back() {
    let (mut qpair, _target) = live(QpairConfig { depth: 2, ..config() }, Choices::default());
    for i in 0..2 {
        qpair.submit(command::flush(1), Transfer::None, i, None).unwrap();
    }
    let rejected = qpair.submit(command::read(1, 0, 1), Transfer::Read(4), 2, Some(Pieces(vec![7; 4])));
    let rejected = rejected.unwrap_err();
    assert_eq!((rejected.reason, rejected.payload), (RejectReason::Busy, Some(Pieces(vec![7; 4]))));
}

#[test]
fn reads_without_data_of_their_own_merge_into_one_piece() {
    let (mut qpair, _target) = live(config(), Choices::default());
    for i in 0..8 {
        let payload = Some(Pieces(vec![0; 512]));
        qpair.submit(command::read(1, i, 1), Transfer::Read(512), i, payload).unwrap();
    }
    assert_eq!(qpair.tx_slices().map(<[u8]>::len).collect::<Vec<_>>(), [8 * 72]);
    assert_eq!(size_of::<CapsuleRespHdr>(), 24);
}
