//! libblkio, a driver of somebody else's, on the daemon's vhost-user-blk sockets: no guest, no kernel.

use std::mem::MaybeUninit;

use anyhow::{Context, Result, ensure};
use blkio::{Blkio, Blkioq, Completion, ReqFlags};
use penstock_tests::daemon::Daemon;
use serde_json::json;

const BLOCK: usize = 4096;

fn words(error: blkio::Error) -> anyhow::Error {
    anyhow::anyhow!("{}", error.message())
}

/// Waits for the one request under way; its negated errno, or 0.
fn ended(queue: &mut Blkioq) -> Result<i32> {
    let mut completions = [MaybeUninit::<Completion>::uninit()];
    ensure!(queue.do_io(&mut completions, 1, None, None).map_err(words)? == 1, "no completion");
    let [completion] = completions;
    // SAFETY: `do_io` has filled it.
    Ok(unsafe { completion.assume_init() }.ret)
}

/// Connects to a controller of the daemon's, and runs `work` with a queue and a buffer of eight blocks.
fn with_queue<T>(
    daemon: &Daemon,
    controller: &str,
    work: impl FnOnce(&mut Blkioq, &mut [u8]) -> Result<T>,
) -> Result<T> {
    let mut device = Blkio::new("virtio-blk-vhost-user").map_err(words)?;
    let socket = daemon.dir().join(controller);
    device.set_str("path", socket.to_str().context("a path of ASCII")?).map_err(words)?;
    device.set_bool("read-only", controller == "readonly").map_err(words)?;
    device.connect().map_err(words)?;
    ensure!(device.get_u64("capacity").map_err(words)? == 16 << 20, "the capacity is wrong");
    device.set_i32("num-queues", 2).map_err(words)?;
    let mut started = device.start().map_err(words)?;
    let region = device.alloc_mem_region(8 * BLOCK).map_err(words)?;
    device.map_mem_region(&region).map_err(words)?;
    let memory: *mut u8 = std::ptr::with_exposed_provenance_mut(region.addr);
    // SAFETY: the region is mapped until the device goes, and only requests that have ended have touched it when it is read.
    let bytes = unsafe { std::slice::from_raw_parts_mut(memory, 8 * BLOCK) };
    work(started.queues.last_mut().context("no queue")?, bytes)
}

#[test]
fn libblkio_reads_back_what_it_wrote() -> Result<()> {
    let daemon = Daemon::start(2)?;
    daemon.call("bdev_malloc_create", json!({"name": "mem", "num_blocks": 32768, "block_size": 512}))?;
    daemon.call("vhost_create_blk_controller", json!({"ctrlr": "disk", "dev_name": "mem"}))?;
    with_queue(&daemon, "disk", |queue, bytes| {
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::try_from(index % 251)?;
        }
        let written = bytes.to_vec();
        queue.write(BLOCK as u64, bytes.as_ptr(), bytes.len(), 0, ReqFlags::empty());
        ensure!(ended(queue)? == 0);
        bytes.fill(0);
        queue.read(BLOCK as u64, bytes.as_mut_ptr(), bytes.len(), 0, ReqFlags::empty());
        ensure!(ended(queue)? == 0 && bytes == written, "other bytes came back");
        queue.flush(0, ReqFlags::empty());
        ensure!(ended(queue)? == 0);
        queue.discard(BLOCK as u64, 2 * BLOCK as u64, 0, ReqFlags::empty());
        ensure!(ended(queue)? == 0);
        queue.write_zeroes(3 * BLOCK as u64, BLOCK as u64, 0, ReqFlags::empty());
        ensure!(ended(queue)? == 0);
        queue.read(BLOCK as u64, bytes.as_mut_ptr(), bytes.len(), 0, ReqFlags::empty());
        ensure!(ended(queue)? == 0);
        let (zeroed, kept) = bytes.split_at(3 * BLOCK);
        ensure!(zeroed.iter().all(|byte| *byte == 0) && written.ends_with(kept), "the wrong bytes are zero");
        queue.read(16 << 20, bytes.as_mut_ptr(), BLOCK, 0, ReqFlags::empty());
        ensure!(ended(queue)? != 0, "a read beyond the end succeeds");
        Ok(())
    })
}

#[test]
fn a_controller_can_be_read_only_and_is_kept_over_a_restart() -> Result<()> {
    let mut daemon = Daemon::start(1)?;
    let disk = json!({"name": "disk", "filename": daemon.dir().join("disk.img"), "block_size": 4096, "create_size_mib": 16});
    daemon.call("bdev_uring_create", disk)?;
    let controller = json!({"ctrlr": "readonly", "dev_name": "disk", "readonly": true, "cpumask": "0x1"});
    daemon.call("vhost_create_blk_controller", controller)?;
    let coalescing = json!({"ctrlr": "readonly", "delay_base_us": 10, "iops_threshold": 50_000});
    daemon.call("vhost_controller_set_coalescing", coalescing)?;
    let before = daemon.call("vhost_get_controllers", json!({}))?;
    for restart in [false, true] {
        if restart {
            daemon.stop()?;
            daemon.restart()?;
            ensure!(
                daemon.call("vhost_get_controllers", json!({}))? == before,
                "it came back as another one"
            );
        }
        with_queue(&daemon, "readonly", |queue, bytes| {
            queue.read(0, bytes.as_mut_ptr(), bytes.len(), 0, ReqFlags::empty());
            ensure!(ended(queue)? == 0);
            // Nobody deletes what is in use.
            ensure!(daemon.call("vhost_delete_controller", json!({"ctrlr": "readonly"})).is_err());
            Ok(())
        })?;
    }
    penstock_tests::wait::until(std::time::Duration::from_secs(10), || {
        Ok(daemon.call("vhost_delete_controller", json!({"ctrlr": "readonly"})).ok())
    })?;
    ensure!(!daemon.dir().join("readonly").exists(), "its socket is left behind");
    for (method, params, words) in [
        ("vhost_delete_controller", json!({"ctrlr": "none"}), "none"),
        ("vhost_create_blk_controller", json!({"ctrlr": "a/b", "dev_name": "disk"}), "name of a file"),
        ("vhost_create_blk_controller", json!({"ctrlr": "a", "dev_name": "nothing"}), "nothing"),
        (
            "vhost_create_blk_controller",
            json!({"ctrlr": "a", "dev_name": "disk", "cpumask": "0x800"}),
            "core 11",
        ),
        (
            "vhost_create_blk_controller",
            json!({"ctrlr": "a", "dev_name": "disk", "transport": "vfio"}),
            "vhost_user_blk",
        ),
    ] {
        let error = format!("{:#}", daemon.call(method, params).err().context("not refused")?);
        ensure!(error.contains(words), "{error}");
    }
    Ok(())
}
