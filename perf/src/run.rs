//! Starts the workers, shows progress, sums up.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use penstock_bdev::Descriptor;
use penstock_reactor::mem::{self, BUF_BYTES_MAX, MemConfig};
use penstock_reactor::{Clock, Cx, PollMode, Reactor, ReactorConfig, ReactorId, Started};

use crate::args::Args;
use crate::report::{Report, Totals};
use crate::target::Target;
use crate::verify::Verifier;
use crate::worker::{Device, Progress, Task, Worker};
use crate::workload::Generator;

/// Runs the load of `args` to its end.
///
/// # Errors
/// When the target cannot be opened, the load does not fit it, or a worker cannot start.
pub fn run(args: &Args) -> anyhow::Result<Report> {
    let cores: Vec<Option<u32>> =
        args.cores.as_ref().map_or_else(|| vec![None], |cores| cores.iter().copied().map(Some).collect());
    let per_worker = usize::try_from(u64::from(args.qd) * args.bs.next_power_of_two().max(4096))?;
    let bytes = (per_worker * cores.len() * 2).max(64 << 20);
    mem::init(MemConfig { initial_bytes: bytes, max_bytes: bytes, ..MemConfig::default() })?;
    let mut reactors = Vec::new();
    for (index, core) in cores.iter().enumerate() {
        reactors.push(start_reactor(index, *core, args.seed)?);
    }
    let handles: Vec<_> = reactors.iter().map(|started| started.handle.clone()).collect();
    let mut target = Target::open(args, &handles)?;
    let progress = Arc::new(Progress::default());
    let (report, reports) = mpsc::channel();
    for (index, started) in reactors.iter().enumerate() {
        let task = plan(args, &target, index, cores.len(), Arc::clone(&progress))?;
        start_worker(started, &mut target, args, task, report.clone())?;
    }
    drop(report);
    let totals = wait(args, &progress, &reports, cores.len());
    for started in reactors {
        started.handle.stop();
        drop(started.join.join());
    }
    match target {
        Target::Remote(remote) => remote.close()?,
        Target::Pcie(pcie) => pcie.detach(),
        Target::Bdev(_) | Target::Iscsi(_) => {}
    }
    let pattern = format!("{:?}", args.rw).to_lowercase();
    Ok(Report::new(&args.target, &pattern, args.bs, args.qd, cores.len(), &totals?))
}

fn start_reactor(index: usize, core: Option<u32>, seed: u64) -> anyhow::Result<Started> {
    let id = u32::try_from(index)?;
    let seed = seed.wrapping_add(u64::from(id));
    let config =
        ReactorConfig { id: ReactorId(id), core, mode: PollMode::Busy, clock: Clock::system(), seed };
    Ok(Reactor::start(config)?)
}

/// The part of the device and of the load that one worker gets.
fn plan(
    args: &Args,
    target: &Target,
    index: usize,
    workers: usize,
    progress: Arc<Progress>,
) -> anyhow::Result<(Task, (u64, u64))> {
    let (block_bytes, blocks) = target.geometry();
    ensure!(
        args.bs.is_multiple_of(u64::from(block_bytes)),
        "--bs {} is no multiple of the block size {block_bytes}",
        args.bs
    );
    ensure!(args.bs <= u64::try_from(BUF_BYTES_MAX)?, "--bs {} is above 1M", args.bs);
    let device_bytes = blocks.saturating_mul(u64::from(block_bytes));
    let used_bytes = args.size.unwrap_or(device_bytes);
    ensure!(used_bytes <= device_bytes, "--size {used_bytes} is more than the device's {device_bytes} bytes");
    let per_worker = used_bytes / args.bs / u64::try_from(workers)?;
    ensure!(per_worker > 0, "the device is too small for {workers} workers with --bs {}", args.bs);
    ensure!(!args.verify || per_worker <= 1 << 28, "too large to verify: give --size");
    let first = per_worker * u64::try_from(index)?;
    let seed = args.seed.wrapping_mul(0x9e37_79b9).wrapping_add(u64::try_from(index)?);
    let nanoseconds = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    let task = Task {
        load: Generator::new(args.rw, args.rwmix, first, per_worker, seed),
        blocks_per_io: u32::try_from(args.bs / u64::from(block_bytes))?,
        bytes_per_io: args.bs,
        queue_depth: args.qd,
        prefill: args.prefill,
        warm_up_ns: nanoseconds(args.warm_up()),
        measured_ns: nanoseconds(args.measured()),
        pause_ns: args.pause_ms.saturating_mul(1_000_000),
        ios_max: args.ios.unwrap_or(u64::MAX),
        verifier: args.verify.then(|| Verifier::new(seed, first, per_worker)),
        progress,
    };
    Ok((task, (first, per_worker)))
}

type Outcome = anyhow::Result<Totals>;

fn start_worker(
    started: &Started,
    target: &mut Target,
    args: &Args,
    (task, slots): (Task, (u64, u64)),
    report: mpsc::Sender<Outcome>,
) -> anyhow::Result<()> {
    match target {
        Target::Bdev(descriptor) => start_on_bdev(started, descriptor.clone(), task, slots, report)?,
        Target::Pcie(pcie) => start_on_bdev(started, pcie.descriptor().clone(), task, slots, report)?,
        Target::Remote(remote) => {
            let queues = remote.open_queues(args.queues, args.qd)?;
            started.handle.send(move |cx| add_worker(cx, Ok(queues), task, slots, report))?;
        }
        Target::Iscsi(target) => {
            let session = target.open_session(args.qd)?;
            started.handle.send(move |cx| add_worker(cx, Ok(session), task, slots, report))?;
        }
    }
    Ok(())
}

fn start_on_bdev(
    started: &Started,
    descriptor: Descriptor,
    task: Task,
    slots: (u64, u64),
    report: mpsc::Sender<Outcome>,
) -> anyhow::Result<()> {
    Ok(started.handle.send(move |cx| {
        let channel = descriptor.channel(cx).map_err(anyhow::Error::from);
        add_worker(cx, channel, task, slots, report);
    })?)
}

fn add_worker<D: Device + 'static>(
    cx: &Cx,
    device: anyhow::Result<D>,
    task: Task,
    slots: (u64, u64),
    report: mpsc::Sender<Outcome>,
) {
    let failed = report.clone();
    let finished = Box::new(move |totals| drop(report.send(Ok(totals))));
    let worker = device.and_then(|device| {
        Worker::new(device, task, slots, finished).context("no memory for the buffers: lower --qd or --bs")
    });
    match worker {
        Ok(worker) => {
            cx.add_poller("worker", Box::new(worker));
        }
        Err(error) => drop(failed.send(Err(error))),
    }
}

/// Waits for all workers, showing how far they are.
fn wait(args: &Args, progress: &Progress, reports: &mpsc::Receiver<Outcome>, workers: usize) -> Outcome {
    let show = !args.quiet && !args.json && std::io::stderr().is_terminal();
    let mut totals = Totals::default();
    let (mut ended, mut last) = (0, 0);
    while ended < workers {
        match reports.recv_timeout(Duration::from_secs(1)) {
            Ok(outcome) => {
                totals.merge(outcome.inspect_err(|_| progress.stop.store(true, Ordering::Relaxed))?);
                ended += 1;
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let now = progress.ended.load(Ordering::Relaxed);
                if show {
                    let mut stderr = std::io::stderr().lock();
                    write!(stderr, "\r{:>12} IOPS", now - last).and_then(|()| stderr.flush()).ok();
                }
                last = now;
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => bail!("a worker ended without a result"),
        }
    }
    if show {
        writeln!(std::io::stderr()).ok();
    }
    Ok(totals)
}
