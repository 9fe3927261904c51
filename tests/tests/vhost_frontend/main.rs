//! The daemon's vhost-user sockets under a frontend that does what no hypervisor does: memory that comes and goes, hostile
//! rings, disks that vanish, connections that break, reservations of hosts that come by NVMe.

mod vm;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use penstock_tests::daemon::Daemon;
use penstock_tests::initiator::{Host, Queue};
use penstock_tests::target::{Backend, Penstock, Target};
use penstock_tests::wait;
use serde_json::{Value, json};
use vhost::VringConfigData;
use vhost::vhost_user::VhostUserFrontend;
use vm::{AVAIL, DATA, DESC, Desc, IN, INDIRECT, MIB, NEXT, OUT, SIZE, USED, Vm, WRITE, info, region};

const IOERR: u8 = 1;
const SOON: Duration = Duration::from_secs(20);

fn malloc(daemon: &Daemon, name: &str) -> Result<()> {
    let params = json!({"name": name, "num_blocks": 8192, "block_size": 512});
    daemon.call("bdev_malloc_create", params).map(drop)
}

fn controller(daemon: &Daemon, ctrlr: &str, dev_name: &str) -> Result<()> {
    daemon.call("vhost_create_blk_controller", json!({"ctrlr": ctrlr, "dev_name": dev_name})).map(drop)
}

fn start(daemon: &Daemon, ctrlr: &str) -> Result<Vm> {
    Vm::start(&daemon.dir().join(ctrlr)).with_context(|| format!("a machine on {ctrlr}"))
}

/// What a controller's sessions are broken by.
fn broken(daemon: &Daemon, ctrlr: &str) -> Result<Vec<String>> {
    let found = daemon.call("vhost_get_controllers", json!({"name": ctrlr}))?;
    let sessions = found.pointer("/0/sessions").and_then(Value::as_array).context("no sessions")?;
    Ok(sessions.iter().filter_map(|one| one.get("broken")?.as_str().map(str::to_owned)).collect())
}

/// A disk whose reads take `ms`.
fn slow(daemon: &Daemon, name: &str, ms: u64) -> Result<()> {
    malloc(daemon, &format!("{name}-base"))?;
    let params = json!({
        "name": name, "base_bdev_name": format!("{name}-base"), "avg_read_latency": ms * 1000,
        "p99_read_latency": ms * 1000, "avg_write_latency": 0, "p99_write_latency": 0,
    });
    daemon.call("bdev_delay_create", params).map(drop)
}

#[test]
fn memory_comes_and_goes_while_requests_are_under_way() -> Result<()> {
    const FAR: u64 = 4 << 30;
    let daemon = Daemon::start(2)?;
    slow(&daemon, "slow", 300)?;
    controller(&daemon, "vm", "slow")?;
    let mut vm = start(&daemon, "vm")?;
    vm.works(1)?;
    let next = vm.plug(MIB, MIB)?;
    let far = vm.plug(FAR, 16 * MIB)?;
    // Out of the one, into the other; and over the border of two that lie side by side.
    vm.write(MIB + 4096, &[7; 4096])?;
    ensure!(vm.transfer(OUT, 0, MIB + 4096, 4096)? == 0);
    ensure!(vm.transfer(IN, 0, FAR + 16 * MIB - 4096, 4096)? == 0);
    ensure!(vm.read(FAR + 16 * MIB - 4096, 4096)? == [7; 4096]);
    ensure!(vm.transfer(IN, 0, MIB - 2048, 4096)? == 0, "over a border");
    ensure!(vm.read(MIB - 2048, 2048)? == [7; 2048] && vm.read(MIB, 2048)? == [7; 2048]);
    // What cannot be is refused, and nothing has changed.
    let overlapping = region(FAR + 8 * MIB, 16 * MIB)?;
    ensure!(vm.frontend.add_mem_region(&info(&overlapping)?).is_err(), "an overlap is taken");
    let mut other = far;
    other.memory_size = MIB;
    ensure!(vm.frontend.remove_mem_region(&other).is_err(), "what was never there is removed");
    vm.works(2)?;
    // It goes while a device fills it: the request ends well, as the memory stays for it.
    vm.submit(IN, 0, FAR, 4096)?;
    std::thread::sleep(Duration::from_millis(50));
    vm.frontend.remove_mem_region(&far)?;
    ensure!(vm.ended(SOON)? == Some(0));
    ensure!(vm.read(FAR, 4096)? == [7; 4096]);
    vm.frontend.remove_mem_region(&next)?;
    // The same place may be used again.
    vm.frontend.add_mem_region(&next)?;
    ensure!(vm.transfer(IN, 0, MIB, 4096)? == 0);
    vm.frontend.remove_mem_region(&next)?;
    ensure!(broken(&daemon, "vm")?.is_empty());
    // Memory that is not there any more is against the rules.
    let answered = vm.used()?;
    vm.submit(IN, 0, FAR, 4096)?;
    wait::until(SOON, || Ok((!broken(&daemon, "vm")?.is_empty()).then_some(())))?;
    ensure!(vm.used()? == answered, "answered all the same");
    drop(vm);
    start(&daemon, "vm")?.works(3)
}

/// Ways to break the rules: what the ring then holds.
fn evils() -> Vec<(&'static str, Vec<Desc>)> {
    let header = (0x3000, 16, NEXT, 1);
    let status = (0x4000, 1, WRITE, 0);
    vec![
        ("a loop", vec![header, (DATA, 512, NEXT | WRITE, 0)]),
        ("a loop of one", vec![(0x3000, 16, NEXT, 0)]),
        ("no such descriptor", vec![header, (DATA, 512, NEXT | WRITE, SIZE)]),
        ("memory that is not there", vec![header, (1 << 40, 512, NEXT | WRITE, 2), status]),
        ("the end of all addresses", vec![header, (u64::MAX - 511, 512, NEXT | WRITE, 2), status]),
        ("over the end of memory", vec![header, (MIB - 511, 512, NEXT | WRITE, 2), status]),
        ("no status", vec![header, (DATA, 512, 0, 0)]),
        ("a short header", vec![(0x3000, 15, NEXT, 1), status]),
        ("nothing", vec![(0, 0, 0, 0)]),
        ("a table of half a descriptor", vec![(DATA, 24, INDIRECT, 0)]),
        ("a table that is not there", vec![(1 << 40, 48, INDIRECT, 0)]),
        ("a table of nothing", vec![(DATA, 0, INDIRECT, 0)]),
        ("a table in a table", vec![(DATA + MIB / 2, 48, INDIRECT, 0)]),
        ("a table that loops", vec![(DATA + MIB / 2 + 0x1000, 48, INDIRECT, 0)]),
        ("a table as large as can be", vec![(DATA, u32::MAX - 15, INDIRECT, 0)]),
    ]
}

#[test]
fn a_hostile_guest_breaks_its_own_device_and_nobody_else_notices() -> Result<()> {
    let mut daemon = Daemon::start(1)?;
    malloc(&daemon, "disk")?;
    malloc(&daemon, "other")?;
    controller(&daemon, "vm", "disk")?;
    controller(&daemon, "good", "other")?;
    // One on the same disk and reactor, one on another disk.
    let (mut twin, mut good) = (start(&daemon, "vm")?, start(&daemon, "good")?);
    for (round, (what, descriptors)) in (0..).zip(evils()) {
        let mut bad = start(&daemon, "vm")?;
        let inner = DATA + MIB / 2;
        bad.describe(inner, 0, &[(inner + 0x1000, 48, INDIRECT, 0)])?;
        bad.describe(inner + 0x1000, 0, &[(0x3000, 16, NEXT, 1), (DATA, 512, NEXT | WRITE, 0)])?;
        bad.describe(DESC, 0, &descriptors)?;
        bad.offer(0)?;
        is_broken(&daemon, what)?;
        ensure!(bad.used()? == 0, "{what}: answered all the same");
        twin.works(round)?;
        good.works(round)?;
    }
    // Lengths that no disk has are answered.
    let mut greedy = start(&daemon, "vm")?;
    for len in [u32::MAX, u32::MAX - 511, 513] {
        ensure!(greedy.transfer(IN, 0, DATA, len)? == IOERR, "{len} bytes");
    }
    greedy.works(39)?;
    drop(greedy);
    for (round, index) in [(40, SIZE + 1), (41, u16::MAX), (42, 1 << 15)] {
        let mut bad = start(&daemon, "vm")?;
        bad.set_avail(index)?;
        is_broken(&daemon, "more than there may be")?;
        twin.works(round)?;
    }
    let mut bad = start(&daemon, "vm")?;
    bad.offer(SIZE + 7)?;
    is_broken(&daemon, "no such head")?;
    drop(bad);
    // Rings that are not in memory, or stand askew, are never served.
    for (desc, avail, used) in [(DESC, AVAIL, MIB - 2), (MIB - 16, AVAIL, USED), (DESC, AVAIL + 1, USED)] {
        let mut bad = Vm::connect(&daemon.dir().join("vm"))?;
        let config = VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            desc_table_addr: bad.host_address(desc)?,
            avail_ring_addr: bad.host_address(avail)?,
            used_ring_addr: bad.host_address(used)?,
            ..VringConfigData::default()
        };
        let served = bad.serve(&config);
        ensure!(served.is_err(), "a ring at {desc:#x}, {avail:#x}, {used:#x} is served");
        twin.works(99)?;
    }
    twin.works(100)?;
    good.works(101)?;
    ensure!(daemon.process().is_running()?);
    Ok(())
}

/// The one bad machine on `vm` is broken; its twin is not.
fn is_broken(daemon: &Daemon, what: &str) -> Result<()> {
    let found = wait::until(SOON, || Ok(Some(broken(daemon, "vm")?).filter(|found| !found.is_empty())));
    let found = found.with_context(|| format!("{what}: not broken"))?;
    ensure!(found.len() == 1, "{what}: {found:?}");
    Ok(())
}

#[test]
fn what_is_no_message_ends_its_own_connection_only() -> Result<()> {
    let mut daemon = Daemon::start(1)?;
    malloc(&daemon, "disk")?;
    controller(&daemon, "vm", "disk")?;
    let mut good = start(&daemon, "vm")?;
    let message = |code: u32, flags: u32, len: u32, body: &[u8]| {
        [&code.to_le_bytes()[..], &flags.to_le_bytes(), &len.to_le_bytes(), body].concat()
    };
    for (round, bytes) in (0..).zip([
        message(9999, 1, 0, &[]),
        message(1, 2, 0, &[]),
        message(1, 1, u32::MAX, &[]),
        message(2, 1, 3, &[1, 2, 3]),
        // A memory table of regions that do not come, and without their files.
        message(5, 1, 8, &[200, 0, 0, 0, 0, 0, 0, 0]),
        message(5, 1, 40, &[&[1, 0, 0, 0, 0, 0, 0, 0][..], &[1; 32]].concat()),
        // Queues that there are not; a size that is none.
        message(8, 1, 8, &[255, 0, 0, 0, 64, 0, 0, 0]),
        message(8, 1, 8, &[0, 0, 0, 0, 63, 0, 0, 0]),
        // The first half of a message.
        message(9, 1, 40, &[0; 7]),
        vec![0xff; 5000],
    ]) {
        let mut stream = UnixStream::connect(daemon.dir().join("vm"))?;
        // It may be closed before all is said.
        stream.write_all(&bytes).ok();
        drop(stream);
        good.works(round)?;
    }
    ensure!(daemon.process().is_running()?);
    Ok(())
}

#[test]
fn a_disk_that_is_removed_fails_its_guests_and_no_others() -> Result<()> {
    let daemon = Daemon::start(2)?;
    for name in ["zero", "one"] {
        malloc(&daemon, name)?;
    }
    for (ctrlr, name) in [("a", "zero"), ("b", "zero"), ("c", "one"), ("d", "one")] {
        controller(&daemon, ctrlr, name)?;
    }
    let mut machines =
        ["a", "b", "c", "d"].iter().map(|ctrlr| start(&daemon, ctrlr)).collect::<Result<Vec<_>>>()?;
    for (byte, machine) in (1..).zip(&mut machines) {
        machine.works(byte)?;
    }
    let [a, b, c, d] = &mut machines[..] else { anyhow::bail!("four") };
    daemon.call("bdev_malloc_delete", json!({"name": "zero"}))?;
    for machine in [a, b] {
        ensure!(
            machine.transfer(IN, 0, DATA, 512)? == IOERR && machine.transfer(OUT, 0, DATA, 512)? == IOERR
        );
    }
    c.works(5)?;
    d.works(6)?;
    let shown = daemon.call("vhost_get_controllers", json!({}))?;
    let bdevs: Vec<_> = shown
        .as_array()
        .context("a list")?
        .iter()
        .map(|one| one.pointer("/backend_specific/block/bdev"))
        .collect();
    ensure!(
        bdevs == [Some(&Value::Null), Some(&Value::Null), Some(&json!("one")), Some(&json!("one"))],
        "{bdevs:?}"
    );
    // Another disk of that name is another disk.
    malloc(&daemon, "zero")?;
    controller(&daemon, "e", "zero")?;
    start(&daemon, "e")?.works(7)?;
    drop(machines);
    for ctrlr in ["a", "b", "c", "d", "e"] {
        wait::until(SOON, || Ok(daemon.call("vhost_delete_controller", json!({"ctrlr": ctrlr})).ok()))?;
    }
    Ok(())
}

/// What a frontend had under way when its connection broke is done again on the next one: only then are newer requests
/// taken.
#[test]
fn a_frontend_that_comes_back_waits_for_what_its_old_connection_has_under_way() -> Result<()> {
    let daemon = Daemon::start(1)?;
    slow(&daemon, "slow", 1500)?;
    controller(&daemon, "vm", "slow")?;
    let mut old = start(&daemon, "vm")?;
    old.submit(IN, 0, DATA, 512)?;
    std::thread::sleep(Duration::from_millis(200));
    let begin = std::time::Instant::now();
    drop(old);
    // A write takes no time, but this one does.
    let mut new = start(&daemon, "vm")?;
    ensure!(new.transfer(OUT, 0, DATA, 512)? == 0);
    ensure!(begin.elapsed() > Duration::from_millis(1000), "served after {:?}", begin.elapsed());
    Ok(())
}

/// A command of reservations with its two keys in the capsule.
fn reserve(queue: &mut Queue, opcode: u8, dw10: u32, first: u64, second: u64) -> Result<()> {
    let head =
        [&[opcode, 0x40, 0, 0, 1][..], &[0; 27], &[16, 0, 0, 0, 0, 0, 0, 0x01], &dw10.to_le_bytes()].concat();
    let mut command = [0; 64];
    command.iter_mut().zip(head).for_each(|(to, from)| *to = from);
    queue.submit(&mut command, &[first.to_le_bytes(), second.to_le_bytes()].concat())?;
    let status = queue.completion()?.status;
    ensure!(status == 0, "reservation command {opcode:#x}: status {status:#06x}");
    Ok(())
}

#[test]
fn a_host_that_reserves_the_disk_by_nvme_keeps_guests_out() -> Result<()> {
    const KEY: u64 = 0x77;
    let mut target = Penstock::start(Backend::Malloc, 512)?;
    target.add_namespace(1, 4 * MIB)?;
    let mut host = Host::connect(target.port(), target.nqn())?;
    controller(target.daemon(), "vm", "ns1")?;
    let mut vm = start(target.daemon(), "vm")?;
    vm.works(1)?;
    reserve(&mut host.io, 0x0d, 8, 0, KEY)?;
    vm.works(2)?;
    for (kind, reads, forbids) in [(1, 0, "writes"), (2, IOERR, "reads and writes"), (5, 0, "writes")] {
        reserve(&mut host.io, 0x11, kind << 8, KEY, 0)?;
        ensure!(vm.transfer(OUT, 64, DATA, 512)? == IOERR, "type {kind}: a guest writes to a reserved disk");
        ensure!(vm.transfer(IN, 64, DATA, 512)? == reads, "type {kind}");
        let shown = target.daemon().call("vhost_get_controllers", json!({"name": "vm"}))?;
        ensure!(shown.pointer("/0/reservation_forbids") == Some(&json!(forbids)), "{shown}");
        // Who comes later is no better.
        let mut late = start(target.daemon(), "vm")?;
        ensure!(late.transfer(OUT, 64, DATA, 512)? == IOERR);
        reserve(&mut host.io, 0x15, kind << 8, KEY, 0)?;
        vm.works(3)?;
        late.works(4)?;
    }
    Ok(())
}
