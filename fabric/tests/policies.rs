//! What containers say of compression, whole vdisks from and to elsewhere, and what pools and vdisks say of themselves.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]

mod node;

use std::time::Duration;

use node::{Node, disk};
use penstock_bdev::{IoStatus, Op};
use penstock_fabric::node::{
    CodecNote, CompressionNote, ContainerOptions, NewVdisk, PoolUsage, SnapshotRequest,
};
use serde_json::Value;
use uuid::Uuid;

const MIB: u64 = 1 << 20;

/// 1 MiB that shrinks to a quarter or less.
fn compressible(seed: u8) -> Vec<u8> {
    let byte =
        move |at: usize| if at % 16 < 2 { u8::try_from((at / 16) % 251).unwrap() ^ seed } else { seed };
    (0..1 << 20).map(byte).collect()
}

fn write(node: &Node, name: &str, mib: std::ops::Range<u64>, seed: u8) {
    node.run(0, name, move |script| async move {
        for at in mib {
            let (status, _) = script.io(at, Op::Write, at * 2048, 2048, &compressible(seed)).await;
            assert_eq!(status, IoStatus::Success);
        }
    });
}

/// Waits until all that was written is in its place.
fn usage(node: &Node, name: &str) -> PoolUsage {
    node.wait(async {
        let mut export = node.fabric.export(name, None).await.unwrap();
        export.close().await;
        export.finish().await;
        node.fabric.pool(None).unwrap().usage().await.unwrap()
    })
}

fn compress(node: &Node, compression: Option<(CodecNote, Option<u64>)>) {
    let note = compression.map(|(codec, delay_s)| CompressionNote { codec, delay_s });
    let options = ContainerOptions { compression: Some(note), ..ContainerOptions::default() };
    let pool = node.fabric.pool(None).unwrap();
    node.wait(node.fabric.set_container(&pool, "default", &options)).unwrap();
}

/// What `bytes` of the disk hold now that did not before.
fn grown(before: &PoolUsage, after: &PoolUsage) -> (u64, u64) {
    ((after.used - before.used) / MIB, (after.decoded - before.decoded) / MIB)
}

#[test]
fn compression_is_changed_live_and_kept_over_restarts() {
    let disks = [disk(1, 512, 4096)];
    let node = Node::new();
    node.plug(&disks);
    node.create_pool(&["m1"]).unwrap();
    node.create_vdisk("v", 64 * MIB, 512).unwrap();
    let empty = usage(&node, "v");
    write(&node, "v", 0..8, 1);
    let raw = usage(&node, "v");
    assert!(grown(&empty, &raw).0 >= 8, "{raw:?}");
    compress(&node, Some((CodecNote::Lz4, None)));
    write(&node, "v", 8..16, 2);
    let (used, decoded) = grown(&raw, &usage(&node, "v"));
    assert!(used <= 4 && decoded >= 8, "{used} MiB for {decoded}");
    node.wait(node.fabric.shut_down());
    node.kill();

    let node = Node::new();
    node.plug(&disks);
    let said = node.wait(node.fabric.pool(None).unwrap().describe_containers()).unwrap();
    assert_eq!(said[0]["compression"], "lz4", "{said:?}");
    let before = usage(&node, "v");
    write(&node, "v", 16..24, 3);
    let after = usage(&node, "v");
    assert!(grown(&before, &after).0 <= 4, "forgotten at the restart: {before:?}, {after:?}");
    compress(&node, None);
    write(&node, "v", 24..32, 4);
    let off = usage(&node, "v");
    assert!(grown(&after, &off).0 >= 7, "still compressed: {after:?}, {off:?}");
    // After a delay: first as they are, then smaller, all that is not compressed yet.
    compress(&node, Some((CodecNote::Zstd, Some(1))));
    write(&node, "v", 32..40, 5);
    let mut now = usage(&node, "v");
    for _ in 0..400 {
        if now.decoded > now.used * 2 {
            break;
        }
        node.wait(async {
            drop(
                node.reactors[0]
                    .call_async(|cx| async move { cx.sleep(Duration::from_millis(50)).await })
                    .await,
            )
        });
        now = node.wait(node.fabric.pool(None).unwrap().usage()).unwrap();
    }
    assert!(now.decoded > now.used * 2, "not compressed in the background: {now:?}");
    node.run(1, "v", |script| async move {
        for (mib, seed) in [(0, 1), (9, 2), (17, 3), (25, 4), (39, 5)] {
            let (status, data) = script.io(mib, Op::Read, mib * 2048, 2048, &[]).await;
            assert!(status == IoStatus::Success && data == compressible(seed), "MiB {mib}: {status:?}");
        }
    });
    node.kill();
}

fn new_vdisk(name: &str) -> NewVdisk {
    let (container, shards) = ("default".into(), None);
    NewVdisk { name: name.into(), uuid: Uuid::new_v4(), bytes: 32 * MIB, block: 512, container, shards }
}

#[test]
fn a_vdisk_that_is_not_filled_is_gone_after_a_kill_and_a_filled_one_is_read_as_of_one_moment() {
    let disks = [disk(1, 512, 4096)];
    let node = Node::new();
    node.plug(&disks);
    node.create_pool(&["m1"]).unwrap();
    let pool = node.fabric.pool(None).unwrap();
    let under_way = node.wait(async {
        let mut whole = node.fabric.import(&pool, &new_vdisk("whole")).await.unwrap();
        let mut bytes = compressible(7);
        bytes[4096..3 * 4096].fill(0);
        assert_eq!(whole.write(5 * MIB, bytes).await.unwrap(), MIB - 8192);
        assert_eq!(whole.write(7 * MIB, vec![0; 1 << 20]).await.unwrap(), 0);
        whole.close().await;
        whole.finish().await.unwrap();
        let half = node.fabric.import(&pool, &new_vdisk("half")).await.unwrap();
        half.write(0, vec![1; 4096]).await.unwrap();
        // Nobody else writes to it meanwhile.
        assert!(node.registry.open("half", penstock_bdev::OpenMode::ReadWrite, "other").is_err());
        let mut given_up = node.fabric.import(&pool, &new_vdisk("given-up")).await.unwrap();
        given_up.close().await;
        given_up.abort().await;
        assert!(node.fabric.vdisk("given-up").is_err());
        // An export that a kill ends leaves nothing either.
        (half, node.fabric.export("whole", None).await.unwrap())
    });
    drop(pool);
    node.kill();
    drop(under_way);

    let node = Node::new();
    node.plug(&disks);
    assert!(node.fabric.vdisk("half").is_err(), "half a vdisk is there");
    assert!(node.registry.find("half").is_err());
    let pool = node.fabric.pool(None).unwrap();
    assert!(pool.catalog().snapshots.is_empty(), "the snapshot of an export is left behind");
    let export = node.wait(node.fabric.export("whole", None)).unwrap();
    write(&node, "whole", 5..6, 9);
    let mut export = node.wait(async {
        let (ranges, next) = export.ranges(0, 100).await.unwrap();
        let mapped: u64 = ranges.iter().map(|range| range.blocks).sum();
        assert!(next.is_none() && mapped == MIB - 8192 && ranges[0].first == 5 * MIB, "{ranges:?}");
        let bytes = export.read(5 * MIB, MIB).await.unwrap();
        let old = compressible(7);
        assert!(
            bytes[..4096] == old[..4096] && bytes[3 * 4096..] == old[3 * 4096..],
            "not as of that moment"
        );
        assert!(bytes[4096..3 * 4096].iter().all(|byte| *byte == 0));
        export
    });
    node.wait(async {
        export.close().await;
        export.finish().await;
    });
    assert!(pool.catalog().snapshots.is_empty());
    drop(pool);
    node.kill();
}

fn member(value: &Value, pointer: &str) -> u64 {
    value.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("no {pointer} in {value}"))
}

#[test]
fn a_pool_says_who_uses_it_and_a_vdisk_why_it_is_as_it_is() {
    let disks = [disk(1, 512, 4096)];
    let node = Node::new();
    node.plug(&disks);
    node.create_pool(&["m1"]).unwrap();
    node.create_vdisk("v", 64 * MIB, 512).unwrap();
    write(&node, "v", 0..8, 1);
    node.wait(async {
        let request = SnapshotRequest { vdisks: vec!["v".into()], name: "s".into() };
        node.fabric.snapshot(&request).await.unwrap();
        node.fabric.clone_vdisk("v", "s", "c", Uuid::new_v4()).await.unwrap();
    });
    write(&node, "v", 0..2, 2);
    usage(&node, "v");
    let pool = node.fabric.pool(None).unwrap();
    let said = node.wait(pool.describe_usage()).unwrap();
    assert_eq!(member(&said, "/vdisks/0/mapped_bytes"), 8 * MIB, "{said}");
    assert_eq!(member(&said, "/vdisks/0/exclusive_bytes"), 2 * MIB);
    assert_eq!(member(&said, "/vdisks/0/shared_bytes"), 6 * MIB);
    assert_eq!(member(&said, "/vdisks/1/exclusive_bytes"), 0);
    // 8 of the vdisk, 8 of its snapshot, 8 of the clone: 10 are stored.
    assert_eq!(member(&said, "/reduction/techniques/1/before_bytes"), 24 * MIB);
    assert_eq!(member(&said, "/reduction/techniques/1/after_bytes"), 10 * MIB);

    let why = |name| node.wait(node.fabric.why(name));
    let fine = why("v").unwrap();
    assert_eq!(fine["state"], "online", "{fine}");
    assert!(why("nothing").is_err());
    let limit = ContainerOptions { limit: Some(16 * MIB), ..ContainerOptions::default() };
    node.wait(node.fabric.set_container(&pool, "default", &limit)).unwrap();
    let status =
        node.run(0, "v", |script| async move { script.io(1, Op::Write, 16 * 2048, 8, &[1; 4096]).await.0 });
    assert_eq!(status, IoStatus::NoSpace);
    let full = why("v").unwrap();
    assert!(full["state"] == "full" && full.to_string().contains("container default"), "{full}");
    assert!(full["causes"][0]["next"].as_str().unwrap().contains("raise the limit"), "{full}");
    drop(pool);
    node.wait(node.fabric.shut_down());
    node.kill();
    // One of two disks.
    let node = Node::new();
    let disks = [disk(2, 512, 4096), disk(3, 512, 4096)];
    node.plug(&disks);
    node.create_pool(&["m2", "m3"]).unwrap();
    node.wait(node.fabric.shut_down());
    node.kill();
    let node = Node::new();
    node.plug(&disks[..1]);
    let lost = node.wait(node.fabric.why("v")).unwrap();
    assert!(lost["state"] == "unknown" && lost.to_string().contains("1 of 2 disks"), "{lost}");
    node.kill();
}
