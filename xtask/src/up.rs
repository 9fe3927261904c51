//! `cargo xtask up`: a node on this machine that needs no root, no hugepages, no kernel module and no spare disk.
//!
//! The vdisk is in a pool on a sparse file; the file, the daemon's state and its control socket lie in one directory, which may be
//! moved: the daemon runs in it and names are relative. What was written is there after the next `up`.

mod iscsi;

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::run;

const SOCKET: &str = "penstock.sock";
const STATE: &str = "state.json";
/// The pool's only disk, a sparse file.
const IMAGE: &str = "pool0.img";
const DISK: &str = "disk0";
const POOL: &str = "pool0";
const BDEV: &str = "vdisk0";
/// Before there were pools the vdisk itself was this file.
const OLD_IMAGE: &str = "vdisk0.img";
/// The pool's file is so many times as long as the vdisk is at first: room for maps, garbage and snapshots.
const POOL_FACTOR: u64 = 4;
/// The pool's file is at least so long, in MiB.
const POOL_MIB_MIN: u64 = 4096;
const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";
/// Between two looks whether the daemon is there, or has ended.
const LOOK_PERIOD: Duration = Duration::from_millis(50);
/// Looks until the daemon must be there.
const LOOKS_MAX: u32 = 600;

/// Where the node keeps its things, and how it is reached.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory of the vdisk, the state and the control socket
    #[arg(long, default_value = ".penstock", value_name = "DIR")]
    dir: PathBuf,
    /// Length of the vdisk, like 8G; a vdisk that is there can grow (default: 4G)
    #[arg(long, value_name = "SIZE")]
    size: Option<String>,
    /// Address that NVMe/TCP and iSCSI listen on
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    addr: IpAddr,
    /// Port that NVMe/TCP listens on
    #[arg(long, default_value_t = 4420)]
    port: u16,
    /// Name of the subsystem
    #[arg(long, default_value = "nqn.2026-11.io.penstock:vdisk0")]
    nqn: String,
    /// Port that iSCSI listens on
    #[arg(long, default_value_t = 3260)]
    iscsi_port: u16,
    /// Name of the iSCSI target
    #[arg(long, default_value = "iqn.2026-11.io.penstock:vdisk0")]
    iqn: String,
    /// Address of the Prometheus metrics, or "none"
    #[arg(long, default_value = "127.0.0.1:9440", value_name = "ADDR")]
    metrics: String,
    /// Number of reactors
    #[arg(long, value_name = "N")]
    reactors: Option<u32>,
    /// Pin one reactor to each of these cores, like 0-3
    #[arg(long, value_name = "LIST")]
    cores: Option<String>,
    /// Let the reactors poll for ever instead of sleeping when nothing comes
    #[arg(long)]
    busy: bool,
    /// Use a debug build: slower, but sooner there
    #[arg(long)]
    debug: bool,
}

impl Args {
    fn address(&self) -> SocketAddr {
        SocketAddr::new(self.addr, self.port)
    }

    fn iscsi_address(&self) -> SocketAddr {
        SocketAddr::new(self.addr, self.iscsi_port)
    }

    fn metrics(&self) -> Result<Option<SocketAddr>> {
        if self.metrics == "none" {
            return Ok(None);
        }
        let address = self.metrics.parse();
        address
            .map(Some)
            .with_context(|| format!("--metrics {:?} is no address like 127.0.0.1:9440", self.metrics))
    }
}

/// Builds the daemon, starts it, sets up the vdisk, and waits until it is told to end.
pub(crate) fn main(args: &Args) -> Result<()> {
    let size = args.size.as_deref().map(bytes_of).transpose()?;
    let metrics = args.metrics()?;
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("cannot catch Ctrl-C")?;
    fs::create_dir_all(&args.dir)
        .with_context(|| format!("cannot make the directory {}", args.dir.display()))?;
    let dir = args.dir.canonicalize().with_context(|| format!("cannot use {}", args.dir.display()))?;
    check_free(args, &dir, metrics)?;
    check_layout(&dir)?;
    let programs = build(args.debug)?;
    adopt_addresses(&dir, &args.nqn, args.address(), args.iscsi_address())?;
    println!("starting the node in {}", dir.display());
    let mut daemon = start(args, &dir, &programs, metrics)?;
    let client = Client { program: programs.join("penstock"), dir: dir.clone() };
    let set_up = wait_until_ready(&mut daemon, &dir).and_then(|()| set_up(args, size, &client));
    if let Err(error) = set_up {
        end(&mut daemon)?;
        return Err(error);
    }
    print_how_to(args, &dir, metrics);
    let status = supervise(daemon, &mut signals)?;
    ensure!(
        status.success(),
        "the daemon ended with {status}; its log is {}",
        dir.join("penstockd.log").display()
    );
    println!("stopped; what was written is in {} for the next `cargo xtask up`", dir.join(IMAGE).display());
    Ok(())
}

/// Says beforehand, and plainly, what is taken.
fn check_free(args: &Args, dir: &Path, metrics: Option<SocketAddr>) -> Result<()> {
    if UnixStream::connect(dir.join(SOCKET)).is_ok() {
        bail!(
            "a node runs in {} already; stop it with Ctrl-C where it was started, or use another --dir, --port, --iscsi-port and --metrics",
            dir.display()
        );
    }
    let wanted = [
        (Some(args.address()), "--port"),
        (Some(args.iscsi_address()), "--iscsi-port"),
        (metrics, "--metrics"),
    ];
    for (address, option) in wanted {
        let Some(address) = address else { continue };
        match TcpListener::bind(address) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                bail!("another program listens on {address} already; choose something else with {option}");
            }
            Err(error) => {
                return Err(error).with_context(|| format!("cannot listen on {address} ({option})"));
            }
        }
    }
    Ok(())
}

/// Refuses a directory whose vdisk is a plain file.
fn check_layout(dir: &Path) -> Result<()> {
    let old = dir.join(OLD_IMAGE);
    ensure!(
        !old.exists() || dir.join(IMAGE).exists(),
        "{} was made by an older version, which kept {BDEV} as the plain file {}. It is left as it is: that file is a raw image of the \
         disk. Start with another --dir, or move it away",
        dir.display(),
        old.display()
    );
    Ok(())
}

/// Builds daemon and tool; returns where they are.
fn build(debug: bool) -> Result<PathBuf> {
    let mut cargo = run::cargo();
    cargo.args(["build", "--package", "penstock-ctl", "--bins"]);
    if !debug {
        cargo.arg("--release");
    }
    run::run(&mut cargo)?;
    Ok(run::target_dir().join(if debug { "debug" } else { "release" }))
}

/// Where the state says other addresses than those that are wanted now, puts the latter there.
fn adopt_addresses(dir: &Path, nqn: &str, address: SocketAddr, iscsi: SocketAddr) -> Result<()> {
    let path = dir.join(STATE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let mut state: Value = serde_json::from_str(&text)
        .with_context(|| format!("{} is no JSON; remove it to begin anew", path.display()))?;
    let mut changed = false;
    let subsystems = state.get_mut("subsystems").and_then(Value::as_array_mut).into_iter().flatten();
    let calls = subsystems.filter_map(|one| one.get_mut("config")?.as_array_mut()).flatten();
    for call in calls {
        changed |= iscsi::adopt_address(call, iscsi);
        let Some(params) =
            Some(call).filter(|call| is_listener(call)).and_then(|call| call.get_mut("params"))
        else {
            continue;
        };
        let ours = params
            .get("nqn")
            .and_then(Value::as_str)
            .is_some_and(|name| name == nqn || name == DISCOVERY_NQN);
        let wanted = listen_address(address);
        if let Some(found) = params.get_mut("listen_address").filter(|found| ours && **found != wanted) {
            *found = wanted;
            changed = true;
        }
    }
    if changed {
        fs::write(&path, serde_json::to_vec_pretty(&state)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn is_listener(call: &Value) -> bool {
    call.get("method").and_then(Value::as_str) == Some("nvmf_subsystem_add_listener")
}

fn listen_address(address: SocketAddr) -> Value {
    json!({
        "trtype": "TCP",
        "adrfam": if address.is_ipv4() { "IPv4" } else { "IPv6" },
        "traddr": address.ip().to_string(),
        "trsvcid": address.port().to_string(),
    })
}

fn start(args: &Args, dir: &Path, programs: &Path, metrics: Option<SocketAddr>) -> Result<Child> {
    let mut command = Command::new(programs.join("penstockd"));
    command.args([
        "--socket",
        SOCKET,
        "--state",
        STATE,
        "--log-file",
        "penstockd.log",
        "--print-level",
        "warning",
    ]);
    if let Some(address) = metrics {
        command.args(["--metrics", &address.to_string()]);
    }
    if let Some(reactors) = args.reactors {
        command.args(["--reactors", &reactors.to_string()]);
    }
    if let Some(cores) = &args.cores {
        command.args(["--cores", cores]);
    }
    if args.busy {
        command.args(["--poll", "busy"]);
    }
    // A group of its own: Ctrl-C comes to this program, which passes it on once.
    command.current_dir(dir).stdin(Stdio::null()).process_group(0);
    command.spawn().context("cannot start penstockd")
}

fn wait_until_ready(daemon: &mut Child, dir: &Path) -> Result<()> {
    for _ in 0..LOOKS_MAX {
        if let Some(status) = daemon.try_wait()? {
            bail!("penstockd did not start ({status}); it said why above");
        }
        if UnixStream::connect(dir.join(SOCKET)).is_ok() {
            return Ok(());
        }
        thread::sleep(LOOK_PERIOD);
    }
    bail!("penstockd does not answer; its log is {}", dir.join("penstockd.log").display())
}

/// The tool `penstock`, for calls.
struct Client {
    program: PathBuf,
    dir: PathBuf,
}

impl Client {
    fn call(&self, method: &str, params: &Value) -> Result<Value> {
        let mut command = Command::new(&self.program);
        command.current_dir(&self.dir).args(["--socket", SOCKET, "rpc", method, &params.to_string()]);
        let text = run::output(&mut command)?;
        serde_json::from_str(&text).with_context(|| format!("{method} answered {text:?}"))
    }
}

/// Makes what is not there yet.
fn set_up(args: &Args, size: Option<u64>, client: &Client) -> Result<()> {
    let bdevs = client.call("bdev_get_bdevs", &json!({}))?;
    match bdevs.as_array().into_iter().flatten().find(|bdev| bdev["name"] == BDEV) {
        Some(bdev) => grow(bdev, size, client)?,
        None => {
            let mib = size.unwrap_or(4 << 30) >> 20;
            println!("making {BDEV}: {mib} MiB, thin");
            make_pool(bdevs.as_array(), mib, client)?;
            client.call("vdisk_create", &json!({"name": BDEV, "pool": POOL, "bytes": mib << 20}))?;
        }
    }
    let transports = client.call("nvmf_get_transports", &json!({}))?;
    if transports.as_array().is_none_or(Vec::is_empty) {
        client.call("nvmf_create_transport", &json!({"trtype": "TCP"}))?;
    }
    let subsystems = client.call("nvmf_get_subsystems", &json!({}))?;
    let find = |nqn: &str| subsystems.as_array().into_iter().flatten().find(|one| one["nqn"] == nqn).cloned();
    if find(&args.nqn).is_none() {
        let params = json!({"nqn": args.nqn, "allow_any_host": true, "serial_number": "PENSTOCK0"});
        client.call("nvmf_create_subsystem", &params)?;
        let params = json!({"nqn": args.nqn, "namespace": {"bdev_name": BDEV, "nsid": 1}});
        client.call("nvmf_subsystem_add_ns", &params)?;
    }
    let wanted = listen_address(args.address());
    for nqn in [args.nqn.as_str(), DISCOVERY_NQN] {
        let listens =
            find(nqn).and_then(|one| one.get("listen_addresses")?.as_array().cloned()).unwrap_or_default();
        if !listens.contains(&wanted) {
            client.call("nvmf_subsystem_add_listener", &json!({"nqn": nqn, "listen_address": wanted}))?;
        }
    }
    iscsi::set_up(client, &args.iqn, args.iscsi_address())
}

/// Makes the disk and the pool on it, as far as an earlier start did not come to it.
fn make_pool(bdevs: Option<&Vec<Value>>, mib: u64, client: &Client) -> Result<()> {
    if !bdevs.into_iter().flatten().any(|bdev| bdev["name"] == DISK) {
        let mib = mib.saturating_mul(POOL_FACTOR).max(POOL_MIB_MIN);
        let params = json!({"name": DISK, "filename": IMAGE, "block_size": 512, "create_size_mib": mib});
        client.call("bdev_uring_create", &params)?;
    }
    client.call("bdev_wait_for_examine", &json!({}))?;
    let pools = client.call("pool_list", &json!({}))?;
    if !pools.as_array().into_iter().flatten().any(|pool| pool["name"] == POOL) {
        client.call("pool_create", &json!({"name": POOL, "bdevs": [DISK], "lanes": 4}))?;
    }
    Ok(())
}

fn grow(bdev: &Value, size: Option<u64>, client: &Client) -> Result<()> {
    let number = |member: &str| bdev[member].as_u64().unwrap_or(0);
    let now = number("num_blocks") * number("block_size");
    match size {
        None => Ok(()),
        Some(size) if size == now => Ok(()),
        Some(size) if size < now => bail!(
            "{BDEV} has {} MiB already and is not cut to {}: its end may hold data; use another --dir, or leave --size out",
            now >> 20,
            size >> 20
        ),
        Some(size) => client.call("vdisk_resize", &json!({"name": BDEV, "bytes": size})).map(drop),
    }
}

fn print_how_to(args: &Args, dir: &Path, metrics: Option<SocketAddr>) {
    let (addr, port, nqn, dir) = (args.addr, args.port, &args.nqn, dir.display());
    let iscsi = iscsi::how_to(&args.iqn, args.iscsi_address());
    println!(
        "
the node is up: {nqn} on {addr}:{port}

connect from Linux (as root; the device's name is the one that `nvme list` shows, here /dev/nvme1n1):
  modprobe nvme-tcp
  nvme discover -t tcp -a {addr} -s {port}
  nvme connect -t tcp -a {addr} -s {port} -n {nqn}
  nvme disconnect -n {nqn}

as a disk of a QEMU guest (QEMU speaks no NVMe/TCP itself; it takes the connected device):
  qemu-system-x86_64 … -drive file=/dev/nvme1n1,format=raw,if=virtio,cache=none,aio=io_uring

measure it (writes to the disk):
  fio --name=vdisk0 --filename=/dev/nvme1n1 --direct=1 --ioengine=io_uring --rw=randrw --rwmixread=70 \\
      --bs=4k --iodepth=32 --time_based --runtime=30 --group_reporting

or, without root, with our own initiator (writes to the disk):
  cargo run --release -p penstock-perf -- nvme-tcp://{addr}:{port}/{nqn} --rw randwrite --qd 32 --verify
{iscsi}

look at it and change it:
  target/release/penstock -s {dir}/{SOCKET} status
  target/release/penstock -s {dir}/{SOCKET} top"
    );
    if let Some(address) = metrics {
        println!("  curl http://{address}/metrics");
    }
    println!(
        "
Ctrl-C stops the node; a second one does not wait for I/O under way."
    );
}

/// Passes signals on until the daemon has ended.
fn supervise(mut daemon: Child, signals: &mut Signals) -> Result<ExitStatus> {
    loop {
        for _ in signals.pending() {
            println!("stopping");
            terminate(&daemon)?;
        }
        if let Some(status) = daemon.try_wait()? {
            return Ok(status);
        }
        thread::sleep(LOOK_PERIOD);
    }
}

fn terminate(daemon: &Child) -> Result<()> {
    let pid = i32::try_from(daemon.id()).ok().and_then(rustix::process::Pid::from_raw);
    let pid = pid.context("the daemon has no process ID")?;
    match rustix::process::kill_process(pid, rustix::process::Signal::TERM) {
        // It ended by itself just now.
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error).context("cannot stop penstockd"),
    }
}

fn end(daemon: &mut Child) -> Result<()> {
    if daemon.try_wait()?.is_none() {
        terminate(daemon)?;
        daemon.wait()?;
    }
    Ok(())
}

/// Bytes from `8G`, `512M`.
fn bytes_of(text: &str) -> Result<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text.get(digits.len()..).unwrap_or_default().to_ascii_lowercase().as_str() {
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => bail!("--size {text:?} is no size; write a whole number with M, G or T, like 8G"),
    };
    let number: u64 = digits.parse().with_context(|| format!("--size {text:?} is no size, like 8G"))?;
    let bytes = number.checked_mul(1 << shift).filter(|bytes| *bytes > 0);
    bytes.with_context(|| format!("--size {text:?} is out of range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        assert_eq!(bytes_of("4G").unwrap(), 4 << 30);
        assert_eq!(bytes_of("512MiB").unwrap(), 512 << 20);
        for bad in ["", "G", "4", "4X", "0G", "99999999999T"] {
            assert!(bytes_of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_new_port_is_put_into_the_state_for_our_subsystem_and_discovery_only() {
        let dir = std::env::temp_dir().join(format!("penstock-up-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let old = listen_address("127.0.0.1:4420".parse().unwrap());
        let call = |nqn: &str| json!({"method": "nvmf_subsystem_add_listener", "params": {"nqn": nqn, "listen_address": old}});
        let calls = json!([call("ours"), call("theirs"), call(DISCOVERY_NQN)]);
        let state = json!({"penstock_state": 1, "subsystems": [{"subsystem": "nvmf", "config": calls}]});
        fs::write(dir.join(STATE), state.to_string()).unwrap();
        let address = "127.0.0.1:5000".parse().unwrap();
        adopt_addresses(&dir, "ours", address, address).unwrap();
        let now: Value = serde_json::from_str(&fs::read_to_string(dir.join(STATE)).unwrap()).unwrap();
        let port = |index: usize| {
            now["subsystems"][0]["config"][index]["params"]["listen_address"]["trsvcid"].clone()
        };
        assert_eq!([port(0), port(1), port(2)], [json!("5000"), json!("4420"), json!("5000")]);
        fs::remove_dir_all(&dir).unwrap();
    }
}
