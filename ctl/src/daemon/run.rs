//! The daemon's life: start, serve, drain.

use std::rc::Rc;
use std::time::Duration;

use penstock_bdev::{Descriptor, Io, IoFlags, IoStatus, Lba, Op, OpenMode};
use penstock_reactor::{Clock, Cx, mem};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;
use tokio::time::timeout;

use crate::daemon::app::Parts;
use crate::daemon::config::{self, Calls};
use crate::daemon::logging::{Level, Log};
use crate::daemon::options::{Args, Settings};
use crate::daemon::reactors::Reactors;
use crate::daemon::{App, DaemonError, state};
use crate::metrics;
use crate::rpc::server;
use crate::rpc::socket::ControlSocket;

/// From the signal to the end.
pub const DRAIN_SECONDS: u64 = 10;
/// For the reactors to end, once nothing is left on them.
const REACTORS_LIMIT: Duration = Duration::from_secs(3);
/// How often the memory is looked after.
const MEMORY_PERIOD: Duration = Duration::from_millis(20);
/// Between looks whether a flush has ended.
const FLUSH_POLL: Duration = Duration::from_micros(200);
/// The exit code after a second signal, as a shell gives it for SIGINT.
const EXIT_AT_ONCE: i32 = 130;

/// Runs the daemon until it is told to end.
///
/// # Errors
/// Why it did not start, or did not end well.
pub fn run(args: Args) -> Result<(), DaemonError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name("penstockd-files")
        .build()
        .map_err(|source| DaemonError::Os { what: "start the control thread", source })?;
    let done = LocalSet::new().block_on(&runtime, live(args));
    runtime.shutdown_timeout(Duration::from_millis(100));
    done
}

async fn live(args: Args) -> Result<(), DaemonError> {
    let file = args.config.as_deref().map(config::read).transpose()?.unwrap_or_default();
    let settings = args.settings.or(file.daemon);
    let cores = settings.reactor_cores()?;
    let poll_mode = settings.poll_mode()?;
    let mem_config = settings.mem_config()?;
    let (print, level) =
        (settings.print_level.unwrap_or(Level::Notice), settings.log_level.unwrap_or(Level::Info));
    let (log, _log_guard) = Log::start(print, level, settings.log_file.as_deref())?;
    let signals = Signals::catch()?;
    let mut socket = ControlSocket::bind(&settings.socket_path())?;
    mem::init(mem_config)?;
    let clock = Clock::system();
    let reactors = Reactors::start(&cores, poll_mode, &clock)?;
    let (state, vhost_dir) = (settings.state.clone(), settings.vhost_dir());
    let parts = Parts { reactors: reactors.handles(), clock, poll_mode, log, state, vhost_dir };
    let app = App::new(parts);
    tokio::task::spawn_local(app.registry.look_after_removals());
    tokio::task::spawn_local(app.iscsi.clone().serve_owners());
    tokio::task::spawn_local(app.nvme.look_after());
    tokio::task::spawn_local(app.remote.look_after());
    tokio::task::spawn_local(app.fabric.clone().examine());
    tokio::task::spawn_local(app.fabric.clone().look_after(tokio::time::sleep));
    tokio::task::spawn_local(app.fabric.clone().watch_disks(tokio::time::sleep));
    tokio::task::spawn_local(app.fabric.clone().tend_disks(tokio::time::sleep));
    tokio::task::spawn_local(app.target.look_after_reservations());
    tokio::task::spawn_local(look_after_memory());
    tokio::task::spawn_local(signals.watch(Rc::clone(&app)));
    let seed = Calls { subsystems: file.subsystems };
    let served =
        serve(&app, &settings, &args_config_path(&args.config), seed, args.wait_for_rpc, &mut socket).await;
    tracing::info!("draining");
    let drained = timeout(Duration::from_secs(DRAIN_SECONDS), drain(&app)).await;
    let ended = reactors.stop(REACTORS_LIMIT).await;
    drop(socket);
    served?;
    match (drained, ended) {
        (Ok(()), true) => {
            tracing::info!("ended");
            Ok(())
        }
        (Err(_), _) => Err(DaemonError::Drain { seconds: DRAIN_SECONDS, what: "I/O under way" }),
        (Ok(()), false) => Err(DaemonError::Drain { seconds: REACTORS_LIMIT.as_secs(), what: "a reactor" }),
    }
}

fn args_config_path(config: &Option<std::path::PathBuf>) -> std::path::PathBuf {
    config.clone().unwrap_or_default()
}

/// Initialises the daemon and serves until it is asked to end.
async fn serve(
    app: &Rc<App>,
    settings: &Settings,
    config_path: &std::path::Path,
    seed: Calls,
    wait_for_rpc: bool,
    socket: &mut ControlSocket,
) -> Result<(), DaemonError> {
    let os = |what| move |source| DaemonError::Os { what, source };
    let metrics = match settings.metrics {
        Some(address) => Some(metrics::http::bind(address).await?),
        None => None,
    };
    let listener = socket.take_listener().map(UnixListener::from_std).transpose();
    let listener = listener.map_err(os("listen on the control socket"))?;
    let mut stopping = app.stopping();
    let serve_rpc = |listener: Option<UnixListener>| {
        listener.map(|listener| {
            tokio::task::spawn_local(server::serve(listener, Rc::clone(app) as _, app.stopping()))
        })
    };
    let mut listener = listener;
    let mut server = None;
    if wait_for_rpc {
        server = serve_rpc(listener.take());
        tokio::select! {
            () = app.asked_to_start() => {}
            _ = stopping.wait_for(|stop| *stop) => return Ok(()),
        }
    }
    initialise(app, config_path, &seed).await?;
    let server = server.or_else(|| serve_rpc(listener.take()));
    let metrics = metrics.map(|listener| {
        tokio::task::spawn_local(metrics::http::serve(listener, Rc::clone(app), app.stopping()))
    });
    tracing::info!(
        socket = %socket.path().display(),
        reactors = app.reactors.len(),
        metrics = settings.metrics.map(|address| address.to_string()),
        "penstockd {} is ready", env!("CARGO_PKG_VERSION"),
    );
    drop(stopping.wait_for(|stop| *stop).await);
    // Calls under way are answered; a client that hangs does not hold the end up.
    let ends = async {
        if let Some(server) = server {
            drop(server.await);
        }
        if let Some(metrics) = metrics {
            drop(metrics.await);
        }
    };
    if timeout(Duration::from_secs(DRAIN_SECONDS / 2), ends).await.is_err() {
        tracing::warn!("a control connection did not end in time");
    }
    Ok(())
}

/// Restores the state, or sets up what the configuration file says where there is no state yet.
async fn initialise(app: &Rc<App>, config_path: &std::path::Path, seed: &Calls) -> Result<(), DaemonError> {
    let kept = match app.state_path() {
        Some(path) => state::read(path)?.map(|calls| (path.clone(), calls)),
        None => None,
    };
    let (path, calls) = kept.unwrap_or_else(|| (config_path.to_owned(), seed.clone()));
    let refused = |(method, source)| DaemonError::Refused { path, method, source };
    app.restore(&calls).await.map_err(refused)?;
    app.set_initialised();
    Ok(())
}

async fn look_after_memory() {
    let mut failing = false;
    loop {
        tokio::time::sleep(MEMORY_PERIOD).await;
        match mem::maintain() {
            Ok(()) => failing = false,
            Err(error) if !failing => {
                failing = true;
                let error = crate::rpc::error::chain(&error);
                tracing::warn!(error, "memory for data does not grow; I/O waits for what there is");
            }
            Err(_) => {}
        }
    }
}

/// The signals that end the daemon.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn catch() -> Result<Self, DaemonError> {
        let caught = |kind| signal(kind).map_err(|source| DaemonError::Os { what: "catch signals", source });
        Ok(Self { terminate: caught(SignalKind::terminate())?, interrupt: caught(SignalKind::interrupt())? })
    }

    /// The first signal asks the daemon to end; the second ends the process.
    async fn watch(mut self, app: Rc<App>) {
        self.next().await;
        tracing::info!("asked to end; a second signal ends at once");
        app.ask_to_stop();
        self.next().await;
        std::process::exit(EXIT_AT_ONCE);
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Ends the I/O, makes what was written durable, and closes everything, from the top down.
async fn drain(app: &Rc<App>) {
    let (nvmf, iscsi) = tokio::join!(app.target.drain(), app.iscsi.drain());
    if let Err(error) = nvmf {
        let error = crate::rpc::error::chain(&error);
        tracing::warn!(error, "hosts were cut off");
    }
    if let Err(error) = iscsi {
        let error = crate::rpc::error::chain(&error);
        tracing::warn!(error, "initiators were cut off");
    }
    app.vhost.drain().await;
    // Filters on vdisks first, as they are in the way.
    app.fabric.shut_down().await;
    let bdevs = app.registry.list();
    for bdev in bdevs.iter().rev() {
        let name = bdev.shared().name();
        if !matches!(app.registry.claimed_by(name), Ok(None)) {
            // What stands on it passes its flush down.
            continue;
        }
        if let Err(problem) = flush(app, name).await {
            tracing::error!(bdev = name, problem, "the bdev was not flushed");
        }
    }
    let names: Vec<String> = bdevs.iter().rev().map(|bdev| bdev.shared().name().to_owned()).collect();
    drop(bdevs);
    for name in names {
        // It went with another one, or now.
        drop(app.registry.remove(&name).await);
    }
    app.nvme.shut_down().await;
    app.remote.shut_down().await;
}

/// Makes everything durable that was written to a bdev.
async fn flush(app: &Rc<App>, name: &str) -> Result<(), String> {
    let descriptor = match app.registry.open(name, OpenMode::ReadWrite, "shutdown") {
        Ok(descriptor) => descriptor,
        Err(error) => return Err(crate::rpc::error::chain(&error)),
    };
    let Some(reactor) = app.reactors.first() else { return Ok(()) };
    let status = reactor.call_async(move |cx| flush_there(cx, descriptor)).await;
    match status {
        Ok(Ok(IoStatus::Success)) => Ok(()),
        Ok(Ok(status)) => Err(format!("{status:?}")),
        Ok(Err(problem)) => Err(problem),
        Err(error) => Err(error.to_string()),
    }
}

async fn flush_there(cx: Cx, descriptor: Descriptor) -> Result<IoStatus, String> {
    let mut channel = descriptor.channel(&cx).map_err(|error| crate::rpc::error::chain(&error))?;
    let mut io = Io::boxed();
    io.set(0, Op::Flush, IoFlags::NONE, Lba(0), 0);
    let mut waiting = Some(io);
    let mut done = Vec::with_capacity(1);
    loop {
        if let Some(io) = waiting.take()
            && let Err(busy) = channel.submit(io, cx.now())
        {
            waiting = Some(busy.0);
        }
        channel.poll(cx.now(), 1, &mut done);
        if let Some(io) = done.pop() {
            return Ok(io.status);
        }
        cx.sleep(FLUSH_POLL).await;
    }
}
