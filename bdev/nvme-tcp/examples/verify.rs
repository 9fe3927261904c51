//! Connects to an NVMe/TCP target, says what it finds, and verifies namespace 1 by writing all over it.
//!
//! `cargo run -p penstock-nvme-tcp --example verify -- 127.0.0.1:4420 NQN [hdgst] [ddgst]`; without an NQN
//! it asks the discovery service. THE NAMESPACE'S DATA IS LOST.
#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use penstock_nvme_tcp::blocking::{BlockingController, BlockingQpair};
use penstock_nvme_tcp::controller::ControllerConfig;
use penstock_nvme_tcp::{QpairConfig, Transfer, command};
use penstock_spec::nvmf::Nqn;

type Outcome<T> = Result<T, Box<dyn Error>>;

const TIMEOUT: Duration = Duration::from_secs(10);
const DEPTH: u16 = 32;
const NSID: u32 = 1;

fn main() -> Outcome<()> {
    let mut args = std::env::args().skip(1);
    let addr: SocketAddr = args.next().ok_or("usage: verify ADDRESS:PORT [NQN [hdgst] [ddgst]]")?.parse()?;
    let subnqn = args.next().map_or(Ok(Nqn::discovery()), |name| name.parse())?;
    let flags: Vec<String> = args.collect();
    let hostnqn: Nqn = "nqn.2026-11.io.penstock:verify".parse()?;
    let admin = QpairConfig {
        hdgst: flags.iter().any(|f| f == "hdgst"),
        ddgst: flags.iter().any(|f| f == "ddgst"),
        maxr2t: 4,
        kato_ms: 10_000,
        ..QpairConfig::admin([7; 16], hostnqn, subnqn)
    };
    let config = ControllerConfig { admin, io_queues: 1, step_timeout_ns: 10_000_000_000 };
    let mut controller = BlockingController::connect(addr, config, TIMEOUT)?;
    describe(&controller);
    if subnqn.is_discovery() {
        for entry in controller.discover()? {
            let at = (entry.traddr().unwrap_or("?"), entry.trsvcid().unwrap_or("?"));
            println!("{} {} at {}:{}, {}", entry.trtype, entry.subsystem()?, at.0, at.1, entry.subtype);
        }
    } else {
        for nsid in controller.active_namespaces()? {
            let ns = controller.identify_namespace(nsid)?;
            println!("namespace {nsid}: {} blocks of {:?}", ns.nsze.get(), ns.block_len());
        }
        let ns = controller.identify_namespace(NSID)?;
        let block_len = ns.block_len().ok_or("namespace 1 has no usable format")?;
        let limit = controller.controller().transfer_bytes_max().unwrap_or(1 << 20);
        let mut io = controller.open_io(1, DEPTH)?;
        println!(
            "I/O queue of {} commands, {} bytes in capsule",
            io.qpair().depth(),
            io.qpair().in_capsule_max()
        );
        let mut len = block_len;
        while u64::from(len) <= limit.min(1 << 20) {
            let count = (ns.nsze.get() / u64::from(len / block_len)).min(200);
            verify(&mut io, block_len, len, count)?;
            println!("{count} writes and reads of {len} bytes verified");
            len *= 2;
        }
        let done = io.execute(command::flush(NSID), Transfer::None, None)?;
        println!("flush: {}", done.status());
    }
    controller.shut_down()?;
    Ok(())
}

fn describe(controller: &BlockingController) {
    let controller = controller.controller();
    let id = controller.identify();
    let text = |field: &[u8]| String::from_utf8_lossy(field).trim().to_owned();
    println!(
        "{} {} {}: NVMe {}, controller {:#x} ({}), {} I/O queues, up to {:?} bytes a transfer",
        text(&id.mn),
        text(&id.sn),
        text(&id.fr),
        controller.vs(),
        controller.cntlid(),
        id.cntrltype,
        controller.io_queues(),
        controller.transfer_bytes_max(),
    );
}

/// Writes `count` transfers of `len` bytes with as many outstanding as go, then reads and compares them.
fn verify(io: &mut BlockingQpair<Vec<u8>>, block_len: u32, len: u32, count: u64) -> Outcome<()> {
    let blocks = len / block_len;
    let pattern = |i: u64| -> Vec<u8> {
        let seed = (i + u64::from(len)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (0..u64::from(len) / 8).flat_map(|w| (seed ^ w.wrapping_mul(0x2545_f491)).to_le_bytes()).collect()
    };
    for write in [true, false] {
        let (mut next, mut done) = (0, 0);
        while done < count {
            while next < count && io.qpair().outstanding() < io.qpair().depth() {
                let slba = next * u64::from(blocks);
                if write {
                    let sqe = command::write(NSID, slba, blocks, false);
                    io.submit(sqe, Transfer::Write(len), next, Some(pattern(next)))?;
                } else {
                    let payload = vec![0; usize::try_from(len)?];
                    io.submit(command::read(NSID, slba, blocks), Transfer::Read(len), next, Some(payload))?;
                }
                next += 1;
            }
            let completion = io.wait()?;
            let i = completion.user;
            if !completion.status().is_success() {
                return Err(format!("transfer {i} of {len} bytes failed: {}", completion.status()).into());
            }
            if completion.payload.as_ref() != Some(&pattern(i)) {
                return Err(format!("transfer {i} of {len} bytes came back different").into());
            }
            done += 1;
        }
    }
    Ok(())
}
