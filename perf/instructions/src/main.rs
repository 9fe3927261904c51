//! `penstock-instructions CASE IOS`: so many I/Os through one layer, in one thread and on a clock that stands still, so
//! that every run executes the same instructions. Wall-clock figures of a shared machine move by tens of per cent; these
//! do not, and a change that makes the path longer shows at once:
//!
//! ```text
//! valgrind --tool=callgrind --callgrind-out-file=/dev/null penstock-instructions CASE 2000     the sum it prints at the end,
//! valgrind --tool=callgrind --callgrind-out-file=/dev/null penstock-instructions CASE 4000     minus that, over 2,000
//! ```
//!
//! The end-to-end tests do that for every case and hold the result against `limits.toml`. For NVMe/TCP and iSCSI the initiator runs in
//! the same thread, for the PCIe driver the model of a controller; `--toggle-collect` counts our side alone. What the kernel executes is not counted.

mod bdevs;
mod iscsi;
mod nvme;
mod nvme_tcp;

use anyhow::{Context as _, ensure};
use clap::Parser;
use penstock_bdev::{Io, IoFlags, IoStatus, Lba, Op};
use penstock_perf::worker::Device;
use penstock_reactor::mem::Buf;
use penstock_reactor::{Clock, PollMode, Reactor, ReactorConfig, ReactorId, Tick};

/// Blocks of every device here, and bytes of a block.
const BLOCKS: u64 = 4096;
const BLOCK_BYTES: u32 = 4096;

/// Runs a fixed number of I/Os through one layer; meant to be run under Valgrind.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// LAYER/BDEV/OPERATION/QUEUE-DEPTH: layer `bdev`, `iscsi` or `nvme-tcp` with bdev `null` or `malloc`, or layer `nvme` with `model`;
    /// operation `read` or `write`.
    case: String,
    /// 4 KiB each.
    ios: u64,
    /// NVMe/TCP connections that are open beside the one that is used.
    #[arg(long, default_value_t = 0)]
    idle_connections: u16,
}

/// One case, parsed.
#[derive(Debug, Clone, Copy)]
struct Load {
    op: Op,
    queue_depth: u32,
    ios: u64,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let [layer, bdev, op, queue_depth] = *args.case.split('/').collect::<Vec<_>>() else {
        anyhow::bail!("a case is LAYER/BDEV/OPERATION/QUEUE-DEPTH, as bdev/null/read/1");
    };
    let op = match op {
        "read" => Op::Read,
        "write" => Op::Write,
        _ => anyhow::bail!("unknown operation {op}: it is read or write"),
    };
    let load = Load { op, queue_depth: queue_depth.parse().context("the queue depth")?, ios: args.ios };
    ensure!((1..=1024).contains(&load.queue_depth), "a queue depth is 1 to 1024");
    if layer == "nvme" {
        return nvme::run(bdev, load);
    }
    let bdev = bdevs::open(bdev)?;
    let (clock, hand) = Clock::simulated();
    let config = ReactorConfig { id: ReactorId(0), core: None, mode: PollMode::Busy, clock, seed: 1 };
    let mut reactor = Reactor::new(&config)?;
    match layer {
        "bdev" => bdevs::run(&mut reactor, bdev, load),
        "iscsi" => iscsi::run(&mut reactor, &hand, bdev, load),
        "nvme-tcp" => nvme_tcp::run(&mut reactor, &hand, bdev, load, args.idle_connections),
        _ => anyhow::bail!("unknown layer {layer}: it is bdev, iscsi, nvme or nvme-tcp"),
    }
}

/// Keeps the queue of `device` full until all I/Os have ended; `turn` lets the other side work.
#[inline(never)]
fn drive(device: &mut impl Device, load: Load, mut turn: impl FnMut()) -> anyhow::Result<()> {
    let mut idle = Vec::new();
    for tag in 0..u64::from(load.queue_depth) {
        let mut io = Io::boxed();
        io.tag = tag;
        io.data.push(Buf::zeroed(4096).context("no memory")?);
        idle.push(io);
    }
    let mut done = Vec::with_capacity(idle.len());
    let (mut issued, mut ended) = (0, 0);
    while ended < load.ios {
        while issued < load.ios
            && let Some(mut io) = idle.pop()
        {
            // An odd multiplier visits the blocks in an order that is none.
            let lba = issued * 2_654_435_761 % BLOCKS;
            let tag = io.tag;
            io.set(tag, load.op, IoFlags::NONE, Lba(lba), 1);
            ensure!(device.submit(io, Tick::ZERO).is_ok(), "the device is busy");
            issued += 1;
        }
        device.flush_queue();
        turn();
        device.poll(Tick::ZERO, 256, &mut done);
        for io in done.drain(..) {
            ensure!(io.status == IoStatus::Success, "an I/O ended with {:?}", io.status);
            ended += 1;
            idle.push(io);
        }
    }
    Ok(())
}
