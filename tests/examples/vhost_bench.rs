//! Random I/O of 4 KiB through libblkio on a vhost-user-blk socket, without a guest: `vhost_bench SOCKET DEPTH SECONDS [write]`.
//!
//! The client polls, as a guest's driver never does; so it shows what the device's side can do. `perf/vhost.sh` runs it
//! against penstockd and qemu-storage-daemon in turn.
#![expect(clippy::print_stdout, reason = "a program of its own")]

use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use blkio::{Blkio, Blkioq, Completion, ReqFlags};

const BLOCK: u64 = 4096;

/// The next block of a sequence that visits all of them in no order.
fn next(state: &mut u64, blocks: u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) % blocks * BLOCK
}

fn submit(queue: &mut Blkioq, base: usize, slot: usize, at: u64, writes: bool) {
    let buffer = base + slot * 4096;
    if writes {
        queue.write(at, std::ptr::with_exposed_provenance(buffer), 4096, slot, ReqFlags::empty());
    } else {
        queue.read(at, std::ptr::with_exposed_provenance_mut(buffer), 4096, slot, ReqFlags::empty());
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, depth, seconds, more @ ..] = &arguments[..] else {
        anyhow::bail!("usage: vhost_bench SOCKET DEPTH SECONDS [write]")
    };
    let (depth, seconds): (usize, u64) = (depth.parse()?, seconds.parse()?);
    let writes = more.first().is_some_and(|kind| kind == "write");
    let words = |error: blkio::Error| anyhow::anyhow!("{}", error.message());
    let mut device = Blkio::new("virtio-blk-vhost-user").map_err(words)?;
    device.set_str("path", socket).map_err(words)?;
    device.connect().map_err(words)?;
    let blocks = device.get_u64("capacity").map_err(words)? / BLOCK;
    device.set_i32("num-queues", 1).map_err(words)?;
    let mut started = device.start().map_err(words)?;
    let queue = started.queues.first_mut().context("no queue")?;
    let region = device.alloc_mem_region(depth * 4096).map_err(words)?;
    device.map_mem_region(&region).map_err(words)?;
    let mut ended: Vec<MaybeUninit<Completion>> = (0..depth).map(|_| MaybeUninit::uninit()).collect();
    let mut state = 1;
    for slot in 0..depth {
        submit(queue, region.addr, slot, next(&mut state, blocks), writes);
    }
    let (begin, limit, mut count) = (Instant::now(), Duration::from_secs(seconds), 0_u64);
    while begin.elapsed() < limit {
        let found = queue.do_io(&mut ended, 0, None, None).map_err(words)?;
        for completion in ended.iter().take(found) {
            // SAFETY: `do_io` has filled the first `found` completions.
            let completion = unsafe { completion.assume_init_ref() };
            ensure!(completion.ret == 0, "a request ended with {}", completion.ret);
            count += 1;
            submit(queue, region.addr, completion.user_data, next(&mut state, blocks), writes);
        }
    }
    println!("{}", count * 1_000_000 / u64::try_from(begin.elapsed().as_micros())?);
    Ok(())
}
