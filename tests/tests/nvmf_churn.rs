//! A storm: for the better part of a minute hosts connect, read, write, reset and vanish on many threads, while namespaces,
//! listeners and a whole subsystem come and go under them. Each command is answered once or its connection is closed, and
//! afterwards nothing is left: no connection, no I/O, no buffer, no file, no memory.

use std::io::{Error, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use penstock_tests::initiator::{Connect, Host, Queue};
use penstock_tests::target::{Backend, Penstock, Target};
use penstock_tests::{net, rpc, wait};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
/// Pools and tables grow to their size meanwhile.
const WARM_UP: Duration = Duration::from_secs(12);
const STORM: Duration = Duration::from_secs(30);
const HOSTS: u64 = 6;
/// A subsystem that is deleted and created all the time.
const FLEETING: &str = "nqn.2026-11.io.penstock:fleeting";

/// How often what happened to hosts.
#[derive(Debug, Default)]
struct Counts {
    done: AtomicU64,
    cut_off: AtomicU64,
    resets: AtomicU64,
}

/// Numbers that differ from thread to thread and are the same in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// A connection that ended and a command that failed are what the storm is about; silence and wrong answers are not.
fn is_of_the_storm(error: &anyhow::Error) -> bool {
    let silent = error.chain().any(|cause| {
        let kind = cause.downcast_ref::<Error>().map(Error::kind);
        matches!(kind, Some(ErrorKind::WouldBlock | ErrorKind::TimedOut))
    });
    !silent && !format!("{error:#}").contains("PDU type")
}

/// One life of a host.
fn live(port: u16, numbers: &mut Numbers, counts: &Counts, nqn: &str) -> Result<()> {
    let mut admin = Queue::open(port)?;
    admin.initialize()?;
    let controller = admin.connect(&Connect::admin(nqn))?;
    admin.enable()?;
    let mut io = Queue::open(port)?;
    io.initialize()?;
    io.connect(&Connect::io(nqn, controller, 1))?;
    let mut host = Host { admin, io };
    for _ in 0..numbers.below(40) {
        let (nsid, lba) = (1 + u32::from(numbers.below(4) == 0), numbers.below(1024));
        match numbers.below(8) {
            0 => {
                // Data that is announced and never sent, and answers that nobody reads.
                host.io.announce_write(nsid, lba, 128, 512)?;
                host.io.submit_read(nsid, lba, 256, 512)?;
                return Ok(());
            }
            1 => {
                counts.resets.fetch_add(1, Ordering::Relaxed);
                host.admin.reset()?;
                host.admin.enable()?;
                host.io = Queue::open(port)?;
                host.io.initialize()?;
                host.io.connect(&Connect::io(nqn, controller, 1))?;
            }
            2 => {
                host.io.submit_write(nsid, lba, &[7; 512])?;
                host.io.completion()?;
            }
            _ => drop(host.io.read(nsid, lba, 8, 512)?),
        }
        counts.done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

fn spawn_hosts<'scope>(
    scope: &'scope Scope<'scope, '_>,
    port: u16,
    stop: &'scope AtomicBool,
    counts: &Arc<Counts>,
    nqn: &'scope str,
) -> Vec<ScopedJoinHandle<'scope, Result<()>>> {
    let host = |seed| {
        let counts = Arc::clone(counts);
        scope.spawn(move || {
            let mut numbers = Numbers(seed);
            while !stop.load(Ordering::Relaxed) {
                let nqn = if numbers.below(3) == 0 { FLEETING } else { nqn };
                let Err(error) = live(port, &mut numbers, &counts, nqn) else { continue };
                ensure!(is_of_the_storm(&error), "host {seed}: {error:#}");
                counts.cut_off.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        })
    };
    (1..=HOSTS).map(host).collect()
}

/// What an operator does meanwhile.
struct Operator {
    socket: std::path::PathBuf,
    nqn: String,
    port: u16,
    second: u16,
}

impl Operator {
    fn call(&self, method: &str, params: Value) -> Result<Value> {
        rpc::call(&self.socket, method, &params)
    }

    fn address(port: u16) -> Value {
        json!({"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": port.to_string()})
    }

    fn create_fleeting(&self) -> Result<()> {
        self.call("nvmf_create_subsystem", json!({"nqn": FLEETING, "allow_any_host": true}))?;
        let namespace = json!({"bdev_name": "fleeting", "nsid": 1});
        self.call("nvmf_subsystem_add_ns", json!({"nqn": FLEETING, "namespace": namespace}))?;
        let listener = json!({"nqn": FLEETING, "listen_address": Self::address(self.port)});
        self.call("nvmf_subsystem_add_listener", listener).map(drop)
    }

    /// One of each kind of change.
    fn change(&self) -> Result<()> {
        self.call("bdev_malloc_create", json!({"name": "plugged", "num_blocks": 2048, "block_size": 512}))?;
        let namespace = json!({"bdev_name": "plugged", "nsid": 2});
        self.call("nvmf_subsystem_add_ns", json!({"nqn": self.nqn, "namespace": namespace}))?;
        std::thread::sleep(Duration::from_millis(100));
        self.call("bdev_malloc_delete", json!({"name": "plugged"}))?;
        self.call("nvmf_delete_subsystem", json!({"nqn": FLEETING}))?;
        let second = json!({"nqn": self.nqn, "listen_address": Self::address(self.second)});
        self.call("nvmf_subsystem_add_listener", second.clone())?;
        let mut by_second = Host::connect(self.second, &self.nqn)?;
        by_second.io.submit_read(1, 0, 256, 512)?;
        self.call("nvmf_subsystem_remove_listener", second)?;
        self.create_fleeting()?;
        std::thread::sleep(Duration::from_millis(100));
        Ok(())
    }
}

/// Sums of what the reactors' groups have now.
fn left(target: &mut Penstock) -> Result<Vec<(&'static str, u64)>> {
    let stats = target.daemon().call("nvmf_get_stats", json!({}))?;
    let groups = stats.get("poll_groups").and_then(Value::as_array).context("no poll groups")?;
    let fields =
        ["connections", "current_admin_qpairs", "current_io_qpairs", "pending_bdev_io", "buffer_bytes"];
    Ok(fields.map(|name| (name, groups.iter().filter_map(|group| group.get(name)?.as_u64()).sum())).to_vec())
}

/// Hosts and an operator for so long; then everything must come to rest.
fn storm(target: &mut Penstock, operator: &Operator, length: Duration) -> Result<Arc<Counts>> {
    let (stop, counts) = (AtomicBool::new(false), Arc::new(Counts::default()));
    let changes = std::thread::scope(|scope| {
        let hosts = spawn_hosts(scope, operator.port, &stop, &counts, &operator.nqn);
        let begin = Instant::now();
        let mut changes = 0;
        let mut changed = Ok(());
        while begin.elapsed() < length && changed.is_ok() && !hosts.iter().any(ScopedJoinHandle::is_finished)
        {
            changed = operator.change();
            changes += 1;
        }
        stop.store(true, Ordering::Relaxed);
        for host in hosts {
            let Ok(ended) = host.join() else { bail!("a host's thread panicked") };
            ended?;
        }
        changed.with_context(|| format!("change {changes}"))?;
        Ok(changes)
    })?;
    let rest = wait::until(Duration::from_secs(20), || {
        Ok(left(target)?.iter().all(|(_, count)| *count == 0).then_some(()))
    });
    rest.with_context(|| format!("left over: {:?}", left(target)))?;
    ensure!(changes > 5, "only {changes} changes");
    Ok(counts)
}

#[test]
fn after_a_storm_of_hosts_and_changes_nothing_is_left() -> Result<()> {
    let mut target = Penstock::start(Backend::Malloc, 512)?;
    target.add_namespace(1, MIB)?;
    let operator = Operator {
        socket: target.daemon().socket(),
        nqn: target.nqn().to_owned(),
        port: target.port(),
        second: net::free_port()?,
    };
    let fleeting = json!({"name": "fleeting", "num_blocks": 2048, "block_size": 512});
    operator.call("bdev_malloc_create", fleeting)?;
    operator.create_fleeting()?;
    storm(&mut target, &operator, WARM_UP)?;
    let files_before = target.daemon().process().open_files()?;
    let bytes_before = target.daemon().process().resident_bytes()?;
    let counts = storm(&mut target, &operator, STORM)?;
    for (what, count) in [("commands", &counts.done), ("ends", &counts.cut_off), ("resets", &counts.resets)] {
        ensure!(count.load(Ordering::Relaxed) > 50, "too few {what}: {counts:?}");
    }
    let files = wait::until(Duration::from_secs(10), || {
        let files = target.daemon().process().open_files()?;
        Ok((files <= files_before).then_some(files))
    });
    files.with_context(|| format!("more files than {files_before} are open"))?;
    let grown = target.daemon().process().resident_bytes()?.saturating_sub(bytes_before);
    ensure!(grown < 8 * MIB, "{} KiB more than before the storm", grown >> 10);
    let mut host = Host::connect(target.port(), target.nqn())?;
    host.io.read(1, 0, 8, 512)?;
    drop(host);
    target.daemon().stop()
}
