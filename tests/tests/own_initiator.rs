//! Goal: our own initiator works with targets that share no code with it, and with ours.
//! Method: bring a controller up, hear of a namespace that comes, write and read back transfers of every
//! power of two, with and without digests.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use penstock_nvme_tcp::blocking::{BlockingController, BlockingQpair};
use penstock_nvme_tcp::controller::{ControllerConfig, Event};
use penstock_nvme_tcp::{QpairConfig, Transfer, command};
use penstock_spec::nvme::event::{EventResult, EventType, NoticeEvent};
use penstock_tests::target::{Backend, Nvmet, Penstock, Target};

const TIMEOUT: Duration = Duration::from_secs(20);
const NAMESPACE_BYTES: u64 = 16 << 20;
/// Transfers under way, and of each size.
const TRANSFERS: u64 = 16;

#[test]
fn our_initiator_works_with_the_kernels_target() -> Result<()> {
    with_every_digest(&mut Nvmet::start()?)
}

#[test]
fn our_initiator_works_with_our_target() -> Result<()> {
    with_every_digest(&mut Penstock::start(Backend::Malloc, 512)?)
}

fn with_every_digest(target: &mut impl Target) -> Result<()> {
    target.add_namespace(1, NAMESPACE_BYTES)?;
    for (hdgst, ddgst) in [(false, false), (true, false), (false, true), (true, true)] {
        data_comes_back(target, hdgst, ddgst).with_context(|| format!("digests {hdgst} {ddgst}"))?;
    }
    a_namespace_that_comes_is_told(target)
}

fn connect(target: &impl Target, hdgst: bool, ddgst: bool) -> Result<BlockingController> {
    let hostnqn = "nqn.2026-11.io.penstock:own-initiator".parse()?;
    let admin = QpairConfig::admin([9; 16], hostnqn, target.nqn().parse()?);
    let admin = QpairConfig { hdgst, ddgst, maxr2t: 4, kato_ms: 15_000, ..admin };
    let config = ControllerConfig { admin, io_queues: 1, step_timeout_ns: 20_000_000_000 };
    let addr = SocketAddr::from(([127, 0, 0, 1], target.port()));
    Ok(BlockingController::connect(addr, config, TIMEOUT)?)
}

fn data_comes_back(target: &impl Target, hdgst: bool, ddgst: bool) -> Result<()> {
    let mut controller = connect(target, hdgst, ddgst)?;
    ensure!(controller.active_namespaces()? == [1], "namespace 1 alone is active");
    let block_len = controller.identify_namespace(1)?.block_len().context("a format")?;
    let limit = controller.controller().transfer_bytes_max().unwrap_or(1 << 20).min(1 << 20);
    let mut io = controller.open_io(1, 32)?;
    let mut len = block_len;
    while u64::from(len) <= limit {
        let count = TRANSFERS.min(NAMESPACE_BYTES / u64::from(len));
        transfer(&mut io, block_len, len, count, true)?;
        transfer(&mut io, block_len, len, count, false)?;
        len *= 2;
    }
    let flushed = io.execute(command::flush(1), Transfer::None, None)?;
    ensure!(flushed.status().is_success(), "flush: {}", flushed.status());
    let beyond = NAMESPACE_BYTES / u64::from(block_len);
    let read = io.execute(command::read(1, beyond, 1), Transfer::Read(block_len), Some(buffer(block_len)))?;
    ensure!(!read.status().is_success(), "a read past the end fails");
    controller.shut_down()?;
    Ok(())
}

fn buffer(len: u32) -> Vec<u8> {
    vec![0xa5; usize::try_from(len).expect("a length of memory")]
}

/// Writes `count` transfers of `len` bytes one behind the other, all at once; or reads and compares them.
fn transfer(
    io: &mut BlockingQpair<Vec<u8>>,
    block_len: u32,
    len: u32,
    count: u64,
    write: bool,
) -> Result<()> {
    let blocks = len / block_len;
    let pattern = |i: u64| -> Vec<u8> {
        let seed = (i + u64::from(len)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (0..u64::from(len) / 8).flat_map(|w| (seed ^ w.wrapping_mul(0x2545_f491)).to_le_bytes()).collect()
    };
    for i in 0..count {
        let slba = i * u64::from(blocks);
        if write {
            io.submit(command::write(1, slba, blocks, false), Transfer::Write(len), i, Some(pattern(i)))?;
        } else {
            io.submit(command::read(1, slba, blocks), Transfer::Read(len), i, Some(buffer(len)))?;
        }
    }
    for _ in 0..count {
        let done = io.wait()?;
        ensure!(done.status().is_success(), "transfer of {len} bytes: {}", done.status());
        ensure!(done.payload == Some(pattern(done.user)), "{len} bytes came back different");
    }
    Ok(())
}

fn a_namespace_that_comes_is_told(target: &mut impl Target) -> Result<()> {
    let mut controller = connect(target, false, false)?;
    target.add_namespace(2, NAMESPACE_BYTES)?;
    let Event::Async(event) = controller.next_event(TIMEOUT)? else { anyhow::bail!("an asynchronous event") };
    let EventResult(raw) = event;
    ensure!(event.kind() == EventType::NOTICE, "event {raw:#x}");
    ensure!(event.info() == NoticeEvent::NS_ATTRIBUTE_CHANGED.0, "event {raw:#x}");
    ensure!(controller.active_namespaces()? == [1, 2], "both are active");
    controller.shut_down()?;
    Ok(())
}
