//! Example bytes of every structure on disk: what this program writes today, and what every later one must still read.
//!
//! `PENSTOCK_WRITE_FIXTURES=1 cargo test -p penstock-fabric --test fixtures` writes files that are missing; a file that
//! is there is never changed.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]

use std::fs;
use std::path::Path;

use penstock_bdev::IoStatus;
use penstock_fabric::codec::Codec;
use penstock_fabric::flow::Flow;
use penstock_fabric::format::checkpoint::{MetaKind, MetaOp};
use penstock_fabric::format::egroup::{ExtentEntry, HeaderPart, identity, write_header};
use penstock_fabric::format::log::{BATCH_HEADER_BYTES, BatchHeader, RECORD_BYTES, RecordHeader, RecordKind};
use penstock_fabric::format::superblock::{DiskState, Layout, Superblock, Tier};
use penstock_fabric::format::{Identity, Magic, Prefix};
use penstock_fabric::id::{
    BLOCK_BYTES, DiskBlock, DiskNo, EgroupId, ExtentNo, Generation, LaneNo, SegmentNo, ShardId, VBlock,
};
use penstock_fabric::log::{Homes, Log, LogPlace, LogPosition, Record};
use penstock_fabric::map::{Edit, Found, NODES_MIN, NodeCache, NodeRef, Page, Root, Target, lookup};
use uuid::Uuid;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

const POOL: Uuid = Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);

/// What an earlier version wrote as `name`, filled up to a block.
fn earlier(version: &str, name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(version).join(name);
    let mut bytes = fs::read(path).unwrap();
    bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
    bytes
}

/// The committed bytes of `name`, which must be `now`; trailing zeroes are not in the file.
fn pinned(name: &str, now: &[u8]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v4").join(name);
    let len = now.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    if !path.exists() && std::env::var_os("PENSTOCK_WRITE_FIXTURES").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &now[..len]).unwrap();
    }
    let committed = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(committed == now[..len], "{name}: the format has changed; give it a new version");
}

#[test]
fn a_superblock() {
    let layout = Layout {
        blocks: 1 << 20,
        lanes: 3,
        segment_blocks: 1024,
        segments: 16,
        checkpoint_blocks: 500,
        region_blocks: 16384,
    };
    let superblock = Superblock {
        pool: POOL,
        generation: 5,
        disk_no: DiskNo(1),
        disk: Uuid::from_u128(2),
        tier: Tier::Hdd,
        layout,
        disks: vec![Uuid::from_u128(1), Uuid::from_u128(2)],
        lane_homes: vec![DiskNo(0), DiskNo(1), DiskNo(0)],
        lane_seconds: vec![None; 3],
        states: vec![DiskState::In; 2],
        copies: 1,
        degraded: false,
    };
    for version in ["v1", "v2", "v3"] {
        let bytes = earlier(version, "superblock");
        assert_eq!(Superblock::parse(&bytes, DiskBlock(255)).unwrap(), superblock);
    }
    let superblock = Superblock {
        lane_seconds: vec![Some(DiskNo(1)), None, Some(DiskNo(1))],
        states: vec![DiskState::Leaving, DiskState::In],
        copies: 2,
        degraded: true,
        ..superblock
    };
    let bytes = superblock.to_block(DiskBlock(255));
    pinned("superblock", &bytes);
    assert_eq!(Superblock::parse(&bytes, DiskBlock(255)).unwrap(), superblock);
}

#[test]
fn a_log_segment_with_a_batch() {
    let place = LogPlace {
        pool: POOL,
        lane: LaneNo(2),
        homes: Homes::one(DiskNo(0)),
        first: DiskBlock(256),
        segment_blocks: 1024,
        segments: 16,
    };
    let flow = Flow::new();
    let mut log = Log::open(place, LogPosition::START, SegmentNo(1), 77, true, Vec::new()).unwrap();
    let record = |kind, blocks| Record {
        kind,
        flags: 0,
        shard: ShardId::new(9, 1).unwrap(),
        block: VBlock(40),
        blocks,
        shard_lsn: 3,
        epoch: 1,
    };
    log.append(&record(RecordKind::Write, 1), BLOCK_BYTES, |room| room.fill(0xab)).unwrap();
    log.append(&record(RecordKind::Zero, 1 << 40), 0, |_| {}).unwrap();
    let lz4 = [0x1f, 0xab, 1, 0, 255, 255];
    log.append_coded(&record(RecordKind::Write, 2), Codec::Lz4, 2 * BLOCK_BYTES, lz4.len(), |room| {
        room.copy_from_slice(&lz4);
    })
    .unwrap();
    let op = MetaOp { a: U64::new(2), b: U64::new(3), c: U64::new(4), ..MetaOp::of(MetaKind::EgroupLive, 5) };
    log.append(&record(RecordKind::Meta, 0), 64, |room| room.copy_from_slice(op.as_bytes())).unwrap();
    log.turn(&flow);
    let mut io = flow.take_out().unwrap();
    assert_eq!((io.io.lba.0, io.io.blocks), (256 + 1024, 1 + 1 + 2));
    let mut bytes = vec![0; io.io.data.len_bytes()];
    io.io.data.copy_out(0, &mut bytes);
    pinned("log_segment", &bytes);
    io.io.status = IoStatus::Success;
    log.complete(io);
    assert_eq!(log.durable_end().lsn.0, 5);
    for bytes in
        [bytes, earlier("v1", "log_segment"), earlier("v2", "log_segment"), earlier("v3", "log_segment")]
    {
        let batch = BatchHeader::parse(&bytes[BLOCK_BYTES..]).unwrap();
        for number in 0..usize::try_from(batch.records.get()).unwrap() {
            let header = &bytes[BLOCK_BYTES + BATCH_HEADER_BYTES + number * RECORD_BYTES..];
            let (header, _) = RecordHeader::read_from_prefix(header).unwrap();
            header.payload(&bytes[2 * BLOCK_BYTES..]).unwrap();
        }
    }
}

#[test]
fn an_egroup_header() {
    let id = EgroupId::new(LaneNo(2), 77).unwrap();
    let identity = identity(POOL, 1, LaneNo(2), id, 5000);
    let extent = |block: u64, blocks: u8, sector: u32, first_crc: u16| ExtentEntry {
        shard: U64::new(ShardId::new(9, 1).unwrap().0),
        block: U64::new(block),
        sector: U32::new(sector),
        stored_bytes: U32::new(u32::from(blocks) * 4096),
        first_crc: U16::new(first_crc),
        blocks,
        codec: 0,
        kind: 0,
        reserved: [0; 3],
    };
    let mut bytes = [0; BLOCK_BYTES];
    let encoded = ExtentEntry { stored_bytes: U32::new(700), codec: 1, ..extent(200, 16, 32, 3) };
    let extents = [extent(40, 2, 8, 0), extent(99, 1, 24, 2), encoded];
    write_header(&identity, Generation(3), 5, &extents, &[11, 22, 33, 44], &mut bytes);
    pinned("egroup_header", &bytes);
    for bytes in [
        bytes.to_vec(),
        earlier("v1", "egroup_header"),
        earlier("v2", "egroup_header"),
        earlier("v3", "egroup_header"),
    ] {
        let part = HeaderPart::parse(&identity, Generation(3), &bytes[..]).unwrap();
        assert_eq!(part.extent(ExtentNo(1)), Some(extents[1]));
        assert_eq!(part.crc(&extents[1], 0), Some(33));
    }
}

#[test]
fn a_leaf_and_an_inner_node_of_a_map() {
    let node_identity = |node: &NodeRef| {
        let (address, sequence) = (u64::from(node.extent.0), node.egroup.0);
        Identity { magic: Magic::NODE, pool: POOL, disk: 0, lane: LaneNo(2), address, sequence }
    };
    let mut edit = Edit::new(Root::default());
    let mut cache = NodeCache::new(NODES_MIN);
    for number in 0..200_u16 {
        let target = Target { egroup: EgroupId(7), extent: ExtentNo(number), first: 1 };
        edit.replace(&cache, VBlock(u64::from(number) * 10), 3, Some(target)).unwrap();
    }
    let (mut next, mut nodes) = (0, Vec::new());
    let root = edit.store(
        &mut |_| {
            next += 1;
            let node = NodeRef { egroup: EgroupId(8), extent: ExtentNo(next), crc: 0 };
            (node, node_identity(&node))
        },
        &mut |node, page| nodes.push((node, page)),
    );
    assert_eq!((root.level, nodes.len()), (1, 3));
    // The checksums are other ones in earlier versions.
    for version in ["v1", "v2", "v3"] {
        let bytes = earlier(version, "map_leaf");
        let leaf = Prefix::parse(Magic::NODE, &bytes).unwrap();
        Page::parse(&node_identity(&nodes[0].0), leaf.crc.get(), &bytes).unwrap();
    }
    pinned("map_leaf", nodes[0].1.bytes());
    pinned("map_inner", nodes[2].1.bytes());
    for (node, page) in &nodes {
        cache.insert(node.key(), Page::parse(&node_identity(node), node.crc, page.bytes()).unwrap());
    }
    let found = lookup(&cache, root, VBlock(1991)).unwrap();
    assert_eq!(found, Found::Run { egroup: EgroupId(7), extent: ExtentNo(199), first: 2, blocks: 2 });
}
