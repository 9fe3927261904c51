//! Disks of a node's pool pulled, added and left under I/O of several cores.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]

mod node;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use node::{Node, Script, disk, script_on};
use penstock_bdev::{IoStatus, Op};
use penstock_fabric::format::superblock::Tier;
use penstock_fabric::node::AddDisk;
use serde_json::Value;

/// What a writer has written, when it has ended.
type Newest = std::rc::Rc<std::cell::RefCell<Option<Vec<(u64, u64)>>>>;

const BLOCK: usize = 4096;
const SPAN: u64 = 600;

fn block(lba: u64, number: u64) -> Vec<u8> {
    [lba, number].map(u64::to_le_bytes).concat().repeat(BLOCK / 16)
}

/// Writes every block again and again until told to stop, then says what each must be.
async fn write_on(script: Script, first: u64, stop: Arc<AtomicBool>) -> Vec<(u64, u64)> {
    let mut newest: Vec<(u64, u64)> = (first..SPAN).step_by(2).map(|lba| (lba, 0)).collect();
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        for (lba, written) in &mut newest {
            number += 1;
            let (status, _) = script.io(number, Op::Write, *lba, 1, &block(*lba, number)).await;
            assert_eq!(status, IoStatus::Success, "a write of block {lba}");
            *written = number;
            if number.is_multiple_of(7) {
                let (status, found) = script.io(number, Op::Read, *lba, 1, &[]).await;
                assert!(
                    status == IoStatus::Success && found == block(*lba, number),
                    "block {lba}: {status:?}"
                );
            }
            if stop.load(Ordering::Relaxed) {
                break;
            }
        }
    }
    newest
}

async fn check_on(script: Script, newest: Vec<(u64, u64)>) {
    for (lba, number) in newest.into_iter().filter(|(_, number)| *number > 0) {
        let (status, found) = script.io(lba, Op::Read, lba, 1, &[]).await;
        assert!(status == IoStatus::Success && found == block(lba, number), "block {lba}: {status:?}");
    }
}

/// The bdevs of disks in use, and whether everything has its copies.
fn disks(node: &Node) -> (Vec<String>, bool) {
    let pool = node.fabric.pool(None).unwrap().describe();
    let list = pool["disks"].as_array().cloned().unwrap_or_default();
    let used = list.iter().filter(|disk| disk["state"] != "out");
    let used = used.map(|disk| disk["bdev"].as_str().unwrap_or_default().to_owned()).collect();
    (used, pool["degraded"] == Value::Bool(false))
}

fn pause(node: &Node) {
    let timer = node.reactors[0].clone();
    let pause = timer.call_async(|cx| async move { cx.sleep(std::time::Duration::from_millis(10)).await });
    node.wait(pause).unwrap();
}

fn wait_for(node: &Node, used: &[&str], whole: bool) {
    for _ in 0..6000 {
        if disks(node) == (used.iter().map(|name| (*name).to_owned()).collect(), whole) {
            return;
        }
        pause(node);
    }
    panic!("the pool's disks are {:?}, not {used:?}", disks(node));
}

fn add(node: &Node, name: &str) {
    let pool = node.fabric.pool(None).unwrap();
    let add = AddDisk { bdev: name.into(), tier: Tier::Ssd, force: false, copies: None };
    node.wait(node.fabric.add_disk(&pool, &add)).unwrap();
}

#[test]
fn disks_are_pulled_added_and_left_and_hosts_see_nothing_of_it() {
    let all = [disk(1, 192, 4096), disk(2, 192, 512), disk(3, 192, 4096), disk(4, 192, 4096)];
    let node = Node::new();
    node.plug(&all);
    node.create_pool_with(&["m1", "m2"], 2).unwrap();
    node.create_vdisk("v", 64 << 20, 4096).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let writers = (0..2_usize).map(|at| {
        let (stop, disk) = (Arc::clone(&stop), node.open("v"));
        let first = u64::try_from(at).unwrap();
        let reactor = node.reactors[at].clone();
        async move { script_on(&reactor, disk, move |script| write_on(script, first, stop)).await }
    });
    let mut writers = writers.map(Box::pin);
    let (first, second) = (writers.next().unwrap(), writers.next().unwrap());
    let both = [std::rc::Rc::default(), std::rc::Rc::default()];
    for (writer, newest) in [first, second].into_iter().zip(&both) {
        let newest: Newest = std::rc::Rc::clone(newest);
        node.spawn(async move { *newest.borrow_mut() = Some(writer.await) });
    }
    wait_for(&node, &["m1", "m2"], true);
    // Pulled.
    node.wait(node.registry.remove("m1")).unwrap();
    wait_for(&node, &["m2"], false);
    add(&node, "m3");
    wait_for(&node, &["m2", "m3"], true);
    let pool = node.fabric.pool(None).unwrap();
    assert!(node.wait(pool.remove_disk("m2")).is_err(), "the last disk but one can be left");
    // Left.
    add(&node, "m4");
    node.wait(pool.remove_disk("m2")).unwrap();
    wait_for(&node, &["m3", "m4"], true);
    let progress = node.wait(pool.repair_progress()).unwrap();
    assert!(progress.moved > 0 && progress.todo == 0 && progress.lost == 0, "{progress:?}");
    stop.store(true, Ordering::Relaxed);
    while both.iter().any(|newest| newest.borrow().is_none()) {
        wait_for(&node, &["m3", "m4"], true);
        pause(&node);
    }
    let [one, other] = both.map(|newest| newest.take().unwrap());
    drop(pool);
    node.kill();
    // The one that was pulled is old, the one that was left is blank.
    let node = Node::new();
    node.plug(&all);
    wait_for(&node, &["m3", "m4"], true);
    node.run(0, "v", move |script| check_on(script, one));
    node.run(1, "v", move |script| check_on(script, other));
    add(&node, "m2");
    wait_for(&node, &["m3", "m4", "m2"], true);
    node.kill();
}
