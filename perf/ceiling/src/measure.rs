//! Rounds of all backends in turns.

use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, ensure};
use penstock_reactor::net::{SocketOptions, TcpListener, TcpSocket};
use penstock_reactor::sys::affinity;

use crate::args::{Args, Backend, Case};
use crate::exchange::{Meter, Side};
use crate::report::CaseResult;
use crate::{grouped, plain, uring};

/// Measures one case with all backends.
pub(crate) fn measure(args: &Args, case: Case, memory: &'static [u8]) -> anyhow::Result<Vec<CaseResult>> {
    ensure!(case.block_bytes > 0 && case.block_bytes <= args.memory, "a block has 1 to --memory bytes");
    ensure!(case.qd > 0 && case.connections > 0, "there must be a request in flight");
    let mut iops = vec![Vec::new(); args.backend.len()];
    for _ in 0..args.rounds.max(1) {
        for (backend, iops) in args.backend.iter().zip(&mut iops) {
            iops.push(round(args, case, *backend, memory).with_context(|| format!("{backend:?}, {case:?}"))?);
        }
    }
    let result = |(backend, iops): (&Backend, Vec<f64>)| CaseResult::new(*backend, case, iops);
    Ok(args.backend.iter().zip(iops).map(result).collect())
}

fn round(args: &Args, case: Case, backend: Backend, memory: &'static [u8]) -> anyhow::Result<f64> {
    let listener = TcpListener::bind(args.address, &SocketOptions::default(), false)?;
    let address = listener.local_addr()?;
    let stop = AtomicBool::new(false);
    let counted = std::thread::scope(|scope| {
        let server = scope.spawn(|| serve(args, case, backend, memory, &listener, &stop));
        let client = scope.spawn(|| request(args, case, backend, memory, address));
        let counted = client.join();
        stop.store(true, Ordering::Relaxed);
        let served = server.join();
        let counted = counted.map_err(|_| anyhow::anyhow!("the client panicked"))??;
        // The server sees the client go; what it says matters only where the client has nothing to say.
        served.map_err(|_| anyhow::anyhow!("the server panicked"))?.ok();
        anyhow::Ok(counted)
    })?;
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    Ok(counted as f64 * 1000.0 / args.time_ms.max(1) as f64)
}

fn serve(
    args: &Args,
    case: Case,
    backend: Backend,
    memory: &'static [u8],
    listener: &TcpListener,
    stop: &AtomicBool,
) -> anyhow::Result<()> {
    affinity::pin(args.server_core)?;
    let mut sockets = Vec::new();
    while sockets.len() < case.connections && !stop.load(Ordering::Relaxed) {
        sockets.extend(listener.accept()?.map(|(socket, _)| socket));
    }
    let side = Side::server(case, memory);
    drive(&sockets, &side, 0, backend, &mut Meter::until_stopped(stop))
}

fn request(
    args: &Args,
    case: Case,
    backend: Backend,
    memory: &'static [u8],
    address: SocketAddr,
) -> anyhow::Result<u64> {
    affinity::pin(args.client_core)?;
    let mut sockets = Vec::new();
    for _ in 0..case.connections {
        let stream = TcpStream::connect(address)?;
        sockets.push(TcpSocket::from_fd(stream.into(), &SocketOptions::default())?);
    }
    let side = Side::client(case, memory);
    let never = AtomicBool::new(false);
    let mut meter = Meter::timed(&never, args.warm_up_ms, args.time_ms);
    drive(&sockets, &side, case.qd, backend, &mut meter)?;
    Ok(meter.counted())
}

fn drive(
    sockets: &[TcpSocket],
    side: &Side,
    owed: u32,
    backend: Backend,
    meter: &mut Meter<'_>,
) -> anyhow::Result<()> {
    match backend {
        Backend::Syscall => plain::drive(sockets, side, owed, meter),
        Backend::Group => grouped::drive(sockets, side, owed, meter),
        Backend::Uring => uring::drive(sockets, side, owed, false, meter),
        Backend::UringZc => uring::drive(sockets, side, owed, true, meter),
    }
}
