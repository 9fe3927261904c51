//! vdisks as bdevs, over two reactors: I/O of any shape, restarts, snapshots, full pools.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "a test")]

mod node;

use node::{Node, Script, disk, script_on};
use penstock_bdev::{IoStatus, Op};
use penstock_fabric::node::{ContainerOptions, FabricError, Resize, SnapshotRequest};
use penstock_reactor::rng::Rng;
use uuid::Uuid;

/// Random I/O of any shape over 12 MiB, checked against bytes in memory.
async fn random_io(script: Script, seed: u64, block: usize, steps: u64, mut model: Vec<u8>) -> Vec<u8> {
    let mut rng = Rng::seeded(seed);
    let all = (model.len() / block) as u64;
    for step in 0..steps {
        let blocks = 1 + if rng.chance(300) { rng.below(4096 * 512 / block as u64) } else { rng.below(24) };
        let blocks = blocks.min(all);
        let lba = rng.below(all - blocks + 1);
        let (from, to) = (lba as usize * block, (lba + blocks) as usize * block);
        let count = u32::try_from(blocks).unwrap();
        match rng.below(10) {
            0..=3 => {
                let (status, data) = script.io(step, Op::Read, lba, count, &[]).await;
                assert_eq!(status, IoStatus::Success);
                assert!(data == model[from..to], "step {step}: {blocks} blocks at {lba} differ");
            }
            4..=6 => {
                rng.fill(&mut model[from..to]);
                let data = model[from..to].to_vec();
                assert_eq!(script.io(step, Op::Write, lba, count, &data).await.0, IoStatus::Success);
            }
            7 => {
                let op = if rng.chance(500) { Op::Unmap } else { Op::WriteZeroes };
                model[from..to].fill(0);
                assert_eq!(script.io(step, op, lba, count, &[]).await.0, IoStatus::Success);
            }
            8 => {
                let count = count.min(8);
                let to = from + count as usize * block;
                let mut data = model[from..to].to_vec();
                let mut new = data.clone();
                rng.fill(&mut new);
                let equal = rng.chance(700);
                if equal {
                    model[from..to].copy_from_slice(&new);
                } else {
                    data[0] ^= 1;
                }
                data.extend(new);
                let wanted = if equal { IoStatus::Success } else { IoStatus::Miscompare };
                assert_eq!(script.io(step, Op::CompareAndWrite, lba, count, &data).await.0, wanted);
            }
            _ => {
                let to = rng.below(all - blocks + 1);
                if to.abs_diff(lba) < blocks {
                    continue;
                }
                let target = to as usize * block;
                model.copy_within(from..from + blocks as usize * block, target);
                let status = script.io_from(step, Op::Copy, to, count, &[], lba).await.0;
                assert_eq!(status, IoStatus::Success);
            }
        }
    }
    model
}

fn check(node: &Node, at: usize, name: &str, block: usize, model: Vec<u8>) {
    node.run(at, name, move |script| async move {
        for (number, part) in model.chunks(1 << 19).enumerate() {
            let lba = (number << 19) / block;
            let blocks = u32::try_from(part.len() / block).unwrap();
            let (status, data) = script.io(1, Op::Read, lba as u64, blocks, &[]).await;
            assert_eq!(status, IoStatus::Success);
            assert!(data == part, "the part at {} KiB differs", number << 9);
        }
    });
}

#[test]
fn io_of_any_shape_from_any_core_is_what_a_vector_would_do_and_survives_kills() {
    let disks = [disk(1, 768, 512), disk(2, 768, 4096)];
    let node = Node::new();
    node.plug(&disks);
    node.create_pool(&["m1", "m2"]).unwrap();
    node.create_vdisk("v512", 12 << 20, 512).unwrap();
    node.create_vdisk("v4k", 12 << 20, 4096).unwrap();
    let mut models = [vec![0; 12 << 20], vec![0; 12 << 20]];
    let mut node = Some(node);
    for life in 0..2_u64 {
        let now = node.take().unwrap();
        for (number, (name, block)) in [("v512", 512), ("v4k", 4096)].into_iter().enumerate() {
            let model = std::mem::take(&mut models[number]);
            let at = usize::try_from(life % 2).unwrap();
            let seed = life * 2 + number as u64;
            models[number] = now.run(at, name, move |script| random_io(script, seed, block, 60, model));
        }
        now.kill();
        let again = Node::new();
        again.plug(&disks);
        check(&again, 0, "v512", 512, models[0].clone());
        check(&again, 1, "v4k", 4096, models[1].clone());
        node = Some(again);
    }
    let node = node.unwrap();
    node.wait(node.fabric.shut_down());
    assert!(node.registry.find("v512").is_err());
    node.plug(&[]);
    node.kill();
}

#[test]
fn neighbouring_sectors_are_written_from_two_cores_at_once_and_none_is_lost() {
    let node = Node::new();
    node.plug(&[disk(1, 512, 4096)]);
    node.create_pool(&["m1"]).unwrap();
    node.create_vdisk("v", 64 << 20, 512).unwrap();
    let writer = |at: usize| {
        let disk = node.open("v");
        let reactor = node.reactors[at].clone();
        async move {
            let write = move |script: Script| async move {
                for round in 0..8_u64 {
                    for sector in (at as u64..16).step_by(2) {
                        let value = u8::try_from(round + 1).unwrap();
                        let done = script.io(sector, Op::Write, sector, 1, &[value; 512]).await;
                        assert_eq!(done.0, IoStatus::Success);
                    }
                }
            };
            script_on(&reactor, disk, write).await;
        }
    };
    let (one, other) = (writer(0), writer(1));
    node.wait(async {
        let mut both = [Box::pin(one) as std::pin::Pin<Box<dyn Future<Output = ()>>>, Box::pin(other)];
        let mut done = [false; 2];
        std::future::poll_fn(|cx| {
            for (task, done) in both.iter_mut().zip(&mut done).filter(|(_, done)| !**done) {
                *done = task.as_mut().poll(cx).is_ready();
            }
            if done == [true; 2] { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
    });
    check(&node, 0, "v", 512, vec![8; 16 * 512]);
    node.kill();
}

#[test]
fn snapshots_clones_reverts_and_differences_go_over_all_shards() {
    let disks = [disk(1, 768, 512)];
    let node = Node::new();
    node.plug(&disks);
    node.create_pool(&["m1"]).unwrap();
    node.create_vdisk("a", 12 << 20, 512).unwrap();
    node.create_vdisk("b", 12 << 20, 4096).unwrap();
    let old = node.run(0, "a", |script| random_io(script, 1, 512, 40, vec![0; 12 << 20]));
    let old_b = node.run(1, "b", |script| random_io(script, 2, 4096, 40, vec![0; 12 << 20]));
    let request = |name: &str| SnapshotRequest { vdisks: vec!["a".into(), "b".into()], name: name.into() };
    assert_eq!(node.wait(node.fabric.snapshot(&request("s1"))).unwrap().len(), 2);
    assert!(matches!(node.wait(node.fabric.snapshot(&request("s1"))), Err(FabricError::Exists { .. })));
    let model = old.clone();
    let new = node.run(1, "a", move |script| random_io(script, 3, 512, 40, model));
    node.wait(node.fabric.snapshot(&request("s2"))).unwrap();
    let shown = node.wait(node.fabric.show_snapshot("a", "s1")).unwrap();
    assert_eq!(shown, "a@s1");
    check(&node, 1, "a@s1", 512, old.clone());
    node.run(0, "a@s1", |script| async move {
        assert_eq!(script.io(1, Op::Write, 0, 1, &[1; 512]).await.0, IoStatus::WriteProtected);
    });
    // What differs, block by block.
    let (ranges, stop) = node.wait(node.fabric.diff("a", Some("s1"), "s2", 0, 1 << 20)).unwrap();
    assert_eq!(stop, None);
    for (number, (old, new)) in old.chunks(4096).zip(new.chunks(4096)).enumerate() {
        let at = number as u64 * 4096;
        let named = ranges.iter().any(|range| (range.first..range.first + range.blocks).contains(&at));
        assert!(named || old == new, "block {number} changed and is not named");
    }
    node.wait(node.fabric.clone_vdisk("a", "s1", "c", Uuid::new_v4())).unwrap();
    check(&node, 0, "c", 512, old.clone());
    // Over a kill: names, the shown snapshot, the clone.
    node.kill();
    let node = Node::new();
    node.plug(&disks);
    check(&node, 1, "a", 512, new);
    check(&node, 0, "a@s1", 512, old.clone());
    let model = old.clone();
    let clone = node.run(1, "c", move |script| random_io(script, 4, 512, 60, model));
    node.wait(node.fabric.revert_vdisk("a", "s1")).unwrap();
    check(&node, 0, "a", 512, old.clone());
    check(&node, 0, "c", 512, clone.clone());
    check(&node, 1, "b", 4096, old_b);
    node.wait(node.fabric.rename_vdisk("a", "renamed")).unwrap();
    assert!(node.registry.find("a").is_err() && node.registry.find("renamed@s1").is_ok());
    assert!(matches!(
        node.wait(node.fabric.delete_vdisk("renamed", false, false)),
        Err(FabricError::InUse { .. })
    ));
    node.wait(node.fabric.delete_snapshot("renamed", "s1")).unwrap();
    node.wait(node.fabric.delete_vdisk("renamed", true, false)).unwrap();
    check(&node, 1, "c", 512, clone);
    node.wait(node.fabric.delete_vdisk("c", false, false)).unwrap();
    assert!(matches!(node.wait(node.fabric.delete_pool("p0", false)), Err(FabricError::InUse { .. })));
    node.wait(node.fabric.delete_pool("p0", true)).unwrap();
    node.create_pool(&["m1"]).unwrap();
    node.kill();
}

#[test]
fn a_shrunk_vdisk_that_grows_again_reads_zeroes_there() {
    let node = Node::new();
    node.plug(&[disk(1, 512, 512)]);
    node.create_pool(&["m1"]).unwrap();
    node.create_vdisk("v", 8 << 20, 512).unwrap();
    let model = node.run(0, "v", |script| random_io(script, 5, 512, 60, vec![0; 8 << 20]));
    let shorter = Resize { bytes: 3 << 20, shrink: false };
    assert!(node.wait(node.fabric.resize_vdisk("v", shorter)).is_err(), "not without saying so");
    node.wait(node.fabric.resize_vdisk("v", Resize { shrink: true, ..shorter })).unwrap();
    assert_eq!(node.open("v").shared().blocks(), (3 << 20) / 512);
    node.wait(node.fabric.resize_vdisk("v", Resize { bytes: 1 << 62, shrink: false })).unwrap();
    let mut model = model;
    model[3 << 20..].fill(0);
    check(&node, 1, "v", 512, model);
    // All of a vdisk is unmapped at once, however long it is.
    node.run(0, "v", |script| async move {
        assert_eq!(script.io(1, Op::Unmap, 0, u32::MAX, &[]).await.0, IoStatus::Success);
        let last = (1 << 62) / 512 - 3;
        assert_eq!(script.io(2, Op::Write, last, 3, &[9; 1536]).await.0, IoStatus::Success);
        assert_eq!(script.io(3, Op::Read, last, 3, &[]).await.1, [9; 1536]);
    });
    check(&node, 1, "v", 512, vec![0; 8 << 20]);
    node.kill();
}

/// Writes `mib` MiB in pieces until one fails; returns how many were written, and how it failed.
async fn fill(script: Script, mib: u64) -> (u64, IoStatus) {
    for piece in 0..mib * 4 {
        let status = script.io(piece, Op::Write, piece * 64, 64, &[7; 1 << 18]).await.0;
        if status != IoStatus::Success {
            return (piece, status);
        }
    }
    (mib * 4, IoStatus::Success)
}

#[test]
fn a_full_pool_says_so_reads_on_and_lives_again_after_an_unmap_or_a_deletion() {
    let node = Node::new();
    node.plug(&[disk(1, 320, 4096)]);
    node.create_pool(&["m1"]).unwrap();
    node.create_vdisk("v", 1 << 40, 4096).unwrap();
    node.create_vdisk("w", 1 << 40, 4096).unwrap();
    let (pieces, status) = node.run(0, "v", |script| fill(script, 1000));
    assert_eq!(status, IoStatus::NoSpace);
    assert!(pieces > 100, "{pieces} pieces of 256 KiB only");
    node.run(1, "v", move |script| async move {
        for piece in 0..pieces {
            let (status, data) = script.io(1, Op::Read, piece * 64, 64, &[]).await;
            assert_eq!((status, data[0], data[(1 << 18) - 1]), (IoStatus::Success, 7, 7), "piece {piece}");
        }
        // Half of it goes.
        let half = u32::try_from(pieces * 32).unwrap();
        assert_eq!(script.io(2, Op::Unmap, 0, half, &[]).await.0, IoStatus::Success);
    });
    let written = node.run(0, "w", |script| async move {
        for attempt in 0..200_u64 {
            if script.io(attempt, Op::Write, attempt * 64, 64, &[8; 1 << 18]).await.0 == IoStatus::Success {
                return true;
            }
            script.cx.sleep(std::time::Duration::from_millis(20)).await;
        }
        false
    });
    assert!(written, "an unmap did not bring it back to life");
    assert_eq!(node.run(0, "w", |script| fill(script, 1000)).1, IoStatus::NoSpace);
    node.wait(node.fabric.delete_vdisk("v", false, false)).unwrap();
    let (after, _) = node.run(1, "w", |script| async move {
        script.cx.sleep(std::time::Duration::from_millis(300)).await;
        fill(script, 20).await
    });
    assert_eq!(after, 80, "a deletion did not bring it back to life");
    node.kill();
}

#[test]
fn a_container_keeps_its_vdisks_below_its_limit_and_others_out_of_its_reservation() {
    let node = Node::new();
    node.plug(&[disk(1, 512, 4096)]);
    node.create_pool(&["m1"]).unwrap();
    let pool = node.fabric.pool(None).unwrap();
    node.create_vdisk("v", 1 << 40, 4096).unwrap();
    let limit = |limit, reserve| ContainerOptions {
        limit: Some(limit),
        reserve: Some(reserve),
        ..ContainerOptions::default()
    };
    node.wait(node.fabric.set_container(&pool, "default", &limit(16 << 20, 0))).unwrap();
    let (pieces, status) = node.run(0, "v", |script| fill(script, 100));
    assert_eq!(status, IoStatus::NoSpace);
    assert!((60..=64).contains(&pieces), "{pieces} pieces of 256 KiB in 16 MiB");
    // Overwriting goes on; unmapping makes room; a larger limit too.
    let (over, status) = node.run(1, "v", |script| async move {
        script.cx.sleep(std::time::Duration::from_millis(200)).await;
        let first = script.io(1, Op::Unmap, 0, 16 * 64, &[]).await.0;
        assert_eq!(first, IoStatus::Success);
        script.cx.sleep(std::time::Duration::from_millis(400)).await;
        fill(script, 4).await
    });
    assert_eq!((over, status), (16, IoStatus::Success));
    node.wait(node.fabric.set_container(&pool, "default", &limit(0, 0))).unwrap();
    assert_eq!(node.run(0, "v", |script| fill(script, 30)), (120, IoStatus::Success));
    // All but 40 MiB is another's.
    let rest = pool.capacity_blocks() * 4096 - (40 << 20);
    let other = ContainerOptions { limit: None, reserve: Some(rest), ..ContainerOptions::default() };
    node.wait(node.fabric.create_container(&pool, "gold", &other)).unwrap();
    let (pieces, status) = node.run(0, "v", |script| fill(script, 60));
    assert_eq!(status, IoStatus::NoSpace, "{pieces} pieces");
    let too_much = ContainerOptions { limit: None, reserve: Some(41 << 20), ..ContainerOptions::default() };
    assert!(node.wait(node.fabric.create_container(&pool, "silver", &too_much)).is_err());
    node.kill();
}
