//! What the fuzz target does with a hostile target's bytes; the corpus is replayed by the ordinary tests.

use penstock_spec::nvme::{Cqe, Status};
use penstock_spec::nvme_tcp::header::PduFlags;
use penstock_spec::nvme_tcp::{CapsuleRespHdr, CommonHdr, DigestFlags, IcResp, PduType};
use penstock_spec::nvmf::Nqn;
use penstock_spec::nvmf::connect::ConnectResult;
use zerocopy::IntoBytes;

use crate::command;
use crate::digest::crc32c;
use crate::qpair::{Qpair, QpairConfig, QpairState, Transfer};

/// Length of the payloads, in bytes: small, so that the end of a transfer is reached often.
const LEN: u32 = 64;

/// A queue pair, brought up if the first byte says so, then a program: each step is one byte of what to do
/// and what it needs. Every payload given away must come back exactly once, whatever the stream says.
pub fn initiator(bytes: &[u8]) {
    let Some(([setup, hpda], mut program)) = bytes.split_first_chunk::<2>() else { return };
    let (hdgst, ddgst) = (setup & 2 != 0, setup & 4 != 0);
    let nqn = Nqn::discovery();
    let admin = QpairConfig::admin([1; 16], nqn, nqn);
    let in_capsule_max = if setup & 8 != 0 { 8192 } else { 0 };
    let config = QpairConfig { depth: 4, maxr2t: 2, hdgst, ddgst, hpda: *hpda, in_capsule_max, ..admin };
    let mut qpair: Qpair<Vec<u8>> = Qpair::new(config);
    if setup & 1 != 0 {
        bring_up(&mut qpair, hdgst, ddgst);
    }
    let (mut given, mut back) = (0_u64, 0_u64);
    while let Some((&step, rest)) = program.split_first() {
        program = rest;
        let n = usize::from(step >> 2);
        match step & 3 {
            0 => given += u64::from(submit(&mut qpair, step, given)),
            1 => {
                let (now, rest) = program.split_at(n.min(program.len()));
                program = rest;
                receive(&mut qpair, now);
            }
            2 => {
                let total: usize = qpair.tx_slices().map(<[u8]>::len).sum();
                assert_eq!(total, qpair.tx_len_bytes(), "every queued byte can be gathered");
                qpair.tx_consume((n * 8).min(total));
            }
            _ => back += u64::from(qpair.poll().is_some_and(|done| done.payload.is_some())),
        }
    }
    qpair.close();
    while let Some(done) = qpair.abandon() {
        back += u64::from(done.payload.is_some());
    }
    assert_eq!(given, back, "every payload comes back once");
    assert!(matches!(qpair.state(), QpairState::Closed(_)));
    assert_eq!(qpair.outstanding(), 0, "every slot is free at the end");
}

fn submit(qpair: &mut Qpair<Vec<u8>>, step: u8, user: u64) -> bool {
    let payload = Some(vec![step; LEN as usize]);
    let (sqe, transfer) = match step & 4 {
        0 => (command::read(1, 0, 1), Transfer::Read(LEN)),
        _ => (command::write(1, 0, 1, false), Transfer::Write(LEN)),
    };
    qpair.submit(sqe, transfer, user, payload).is_ok()
}

/// Even lengths go through the shared buffer, odd ones directly where the data belongs.
fn receive(qpair: &mut Qpair<Vec<u8>>, bytes: &[u8]) {
    let mut rest = bytes;
    if bytes.len() % 2 == 1
        && let Some(place) = qpair.rx_target()
    {
        let n = place.len().min(bytes.len());
        let (now, later) = bytes.split_at(n);
        for (to, from) in place.iter_mut().zip(now) {
            *to = *from;
        }
        rest = later;
        if qpair.rx_received(n).is_err() {
            return;
        }
    }
    // An error closes the queue pair, which the caller looks at in the end.
    if qpair.recv(rest).is_err() {
        assert!(matches!(qpair.state(), QpairState::Closed(_)));
    }
}

fn bring_up(qpair: &mut Qpair<Vec<u8>>, hdgst: bool, ddgst: bool) {
    let dgst = DigestFlags(0).with_hdgst(hdgst).with_ddgst(ddgst);
    assert_eq!(qpair.recv(IcResp::new(3, dgst, 4096).as_bytes()), Ok(()));
    let flags = PduFlags(0).with_hdgst(hdgst).0;
    let plen = if hdgst { 28 } else { 24 };
    // The first command has slot 0 in generation 1.
    let cqe = Cqe::new(1 << 10, 0, Status::SUCCESS).with_dw0(ConnectResult(0).with_cntlid(1).0);
    let hdr = CapsuleRespHdr { ch: CommonHdr::new(PduType::CAPSULE_RESP, flags, 24, 0, plen), cqe };
    let mut pdu = hdr.as_bytes().to_vec();
    if hdgst {
        pdu.extend_from_slice(&crc32c(hdr.as_bytes()).to_le_bytes());
    }
    assert_eq!(qpair.recv(&pdu), Ok(()));
    assert!(qpair.is_live());
    qpair.tx_consume(qpair.tx_len_bytes());
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_corpus_of_the_initiator_passes() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/initiator");
        let mut count = 0;
        for file in std::fs::read_dir(dir).unwrap() {
            super::initiator(&std::fs::read(file.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 0, "{dir} is empty");
    }
}
