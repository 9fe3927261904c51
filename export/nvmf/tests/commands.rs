//! Goal: the commands beyond read and write do what the standard says, over sockets: fused pairs, Copy, Verify, Dataset
//! Management to its limits.
//! Method: our own initiator against a group on a malloc bdev; several queues, so that pairs can cross.
#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test makes bytes of small numbers, may panic, and waits on a thread of its own"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use penstock_bdev::malloc::{Malloc, MallocOptions};
use penstock_bdev::{Bdev, Descriptor, OpenMode};
use penstock_nvme_tcp::blocking::{BlockingController, BlockingQpair};
use penstock_nvme_tcp::controller::ControllerConfig;
use penstock_nvme_tcp::{QpairConfig, Transfer, command};
use penstock_nvmf::TransportOptions;
use penstock_nvmf::config::{ListenerConfig, NamespaceConfig, Nsid, SubsystemConfig, SubsystemKind};
use penstock_nvmf::group::{GroupCell, Peers};
use penstock_reactor::{Clock, PollMode, Reactor, ReactorConfig, ReactorId, Started};
use penstock_spec::nvme::nvm::{CopyCmd, CopyControl, CopyRange0, DsmRange, RwControl};
use penstock_spec::nvme::{Fuse, NvmOpcode, Sqe, Status};
use penstock_spec::nvmf::Nqn;
use uuid::Uuid;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

const TIMEOUT: Duration = Duration::from_secs(10);
const BLOCKS: u64 = 65_536;
const BLOCK: usize = 512;
const DMRSL: u32 = 100;

type Io = BlockingQpair<Vec<u8>>;

/// A target on two reactors with two namespaces.
struct Node {
    started: Vec<Started>,
    addr: SocketAddr,
}

impl Node {
    fn new() -> Self {
        let start = |id| {
            let mode = PollMode::Adaptive { spin_ns: 50_000 };
            let config =
                ReactorConfig { id: ReactorId(id), core: None, mode, clock: Clock::system(), seed: 1 };
            Reactor::start(config).unwrap()
        };
        let started: Vec<_> = (0..2).map(start).collect();
        let peers = Peers::new(started.iter().map(|started| started.handle.clone()).collect());
        let options = Arc::new(TransportOptions::default());
        let mut config = SubsystemConfig::new(subnqn(), SubsystemKind::Nvm);
        config.allow_any_host = true;
        config.dmrsl = DMRSL;
        for nsid in [1, 2] {
            config.namespaces.insert(Nsid(nsid), namespace(nsid));
        }
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        config.listeners.push(ListenerConfig::tcp(1, any));
        let config = Arc::new(config);
        let mut addr = any;
        for (index, reactor) in started.iter().enumerate() {
            let (peers, options, config) = (Arc::clone(&peers), Arc::clone(&options), Arc::clone(&config));
            let (answer, answered) = sync_channel(1);
            let begin = move |cx: &penstock_reactor::Cx| {
                let cell = GroupCell::start(cx, &options, peers, index).unwrap();
                cell.apply(cx, &config);
                answer.send((index == 0).then(|| cell.listen(any, 1).unwrap())).unwrap();
            };
            reactor.handle.send(begin).unwrap();
            addr = answered.recv_timeout(TIMEOUT).unwrap().unwrap_or(addr);
        }
        Self { started, addr }
    }

    fn connect(&self) -> BlockingController {
        let hostnqn: Nqn = "nqn.2026-11.io.penstock:host".parse().unwrap();
        let admin = QpairConfig { kato_ms: 10_000, ..QpairConfig::admin([7; 16], hostnqn, subnqn()) };
        let config = ControllerConfig { admin, io_queues: 4, step_timeout_ns: 10_000_000_000 };
        BlockingController::connect(self.addr, config, TIMEOUT).unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for started in self.started.drain(..) {
            started.handle.stop();
            started.join.join().unwrap();
        }
    }
}

fn subnqn() -> Nqn {
    "nqn.2026-11.io.penstock:commands".parse().unwrap()
}

fn namespace(nsid: u32) -> NamespaceConfig {
    let options = format!(r#"{{"num_blocks":{BLOCKS},"block_size":{BLOCK}}}"#);
    let options: MallocOptions = serde_json::from_str(&options).unwrap();
    let bdev: Arc<dyn Bdev> = Malloc::new(&format!("M{nsid}"), &options).unwrap();
    NamespaceConfig {
        nsid: Nsid(nsid),
        descriptor: Descriptor::unregistered(bdev, OpenMode::ReadWrite),
        blocks: BLOCKS,
        block_bytes: 512,
        uuid: Uuid::from_u128(nsid.into()),
        nguid: [1; 16],
        eui64: [0; 8],
        anagrpid: 1,
    }
}

fn write(io: &mut Io, lba: u64, data: Vec<u8>) -> Status {
    let blocks = (data.len() / BLOCK) as u32;
    let transfer = Transfer::Write(data.len() as u32);
    io.execute(command::write(1, lba, blocks, false), transfer, Some(data)).unwrap().status()
}

fn read(io: &mut Io, lba: u64, len: usize) -> Vec<u8> {
    let sqe = command::read(1, lba, (len / BLOCK) as u32);
    let done = io.execute(sqe, Transfer::Read(len as u32), Some(vec![0; len])).unwrap();
    assert!(done.status().is_success(), "{}", done.status());
    done.payload.unwrap()
}

fn half(opcode: NvmOpcode, fuse: Fuse, nsid: u32, lba: u64, len: usize) -> Sqe {
    let mut sqe = command::rw(opcode, nsid, lba, (len / BLOCK) as u32, RwControl(0));
    sqe.set_fuse(fuse);
    sqe
}

/// Sends both commands of a pair; the statuses of the first and of the second.
fn pair(io: &mut Io, first: (Sqe, Vec<u8>), second: (Sqe, Vec<u8>)) -> [Status; 2] {
    for (tag, (sqe, data)) in [first, second].into_iter().enumerate() {
        io.submit(sqe, Transfer::Write(data.len() as u32), tag as u64, Some(data)).unwrap();
    }
    statuses(io)
}

fn statuses<const N: usize>(io: &mut Io) -> [Status; N] {
    let mut ended = [None; N];
    for _ in 0..N {
        let done = io.wait().unwrap();
        ended[done.user as usize] = Some(done.status());
    }
    ended.map(Option::unwrap)
}

fn compare_and_write(io: &mut Io, lba: u64, old: Vec<u8>, new: Vec<u8>) -> [Status; 2] {
    let len = old.len();
    let first = half(NvmOpcode::COMPARE, Fuse::First, 1, lba, len);
    let second = half(NvmOpcode::WRITE, Fuse::Second, 1, lba, len);
    pair(io, (first, old), (second, new))
}

#[test]
fn a_fused_pair_writes_where_all_is_equal_and_nothing_where_it_is_not() {
    let node = Node::new();
    let controller = node.connect();
    let mut io: Io = controller.open_io(1, 16).unwrap();
    // Within the capsule, by R2T, and more than one piece of the bdev's own emulation.
    for len in [512, 8192, 65_536, 1 << 20] {
        let (old, new) = (vec![1; len], vec![2; len]);
        assert!(write(&mut io, 64, old.clone()).is_success());
        let [first, second] = compare_and_write(&mut io, 64, old.clone(), new.clone());
        assert!(first.is_success() && second.is_success(), "{len}: {first} {second}");
        assert!(read(&mut io, 64, len) == new);
        let [first, second] = compare_and_write(&mut io, 64, old.clone(), vec![3; len]);
        assert!(first.is(Status::COMPARE_FAILURE) && second.is(Status::ABORTED_FAILED_FUSED), "{len}");
        assert!(read(&mut io, 64, len) == new);
    }
}

#[test]
fn half_a_pair_fails_and_what_comes_after_it_does_not() {
    let node = Node::new();
    let controller = node.connect();
    let mut io: Io = controller.open_io(1, 16).unwrap();
    let mut other: Io = controller.open_io(2, 16).unwrap();
    for len in [512_usize, 16_384] {
        let zeroes = || vec![0_u8; len];
        let first = || half(NvmOpcode::COMPARE, Fuse::First, 1, 0, len);
        let second = || half(NvmOpcode::WRITE, Fuse::Second, 1, 0, len);
        let transfer = Transfer::Write(len as u32);
        // A second alone.
        let alone = io.execute(second(), transfer, Some(vec![9; len])).unwrap().status();
        assert!(alone.is(Status::ABORTED_MISSING_FUSED), "{alone}");
        // A first, then something else.
        let plain = command::write(1, 0, (len / BLOCK) as u32, false);
        let [one, two] = pair(&mut io, (first(), zeroes()), (plain, zeroes()));
        assert!(one.is(Status::ABORTED_MISSING_FUSED) && two.is_success(), "{one} {two}");
        // Two firsts, then a second: the newer first has it.
        io.submit(first(), transfer, 0, Some(zeroes())).unwrap();
        io.submit(first(), transfer, 1, Some(zeroes())).unwrap();
        io.submit(second(), transfer, 2, Some(zeroes())).unwrap();
        let [one, two, three] = statuses(&mut io);
        assert!(one.is(Status::ABORTED_MISSING_FUSED) && two.is_success() && three.is_success());
        // Pairs do not cross queues: the second of another queue has no first.
        io.submit(first(), transfer, 0, Some(zeroes())).unwrap();
        let alone = other.execute(second(), transfer, Some(vec![9; len])).unwrap().status();
        assert!(alone.is(Status::ABORTED_MISSING_FUSED), "{alone}");
        io.submit(second(), transfer, 1, Some(zeroes())).unwrap();
        let ended: [Status; 2] = statuses(&mut io);
        assert!(ended.iter().all(|status| status.is_success()), "{ended:?}");
        assert!(read(&mut io, 0, len).iter().all(|byte| *byte == 0), "nothing of these was written");
    }
}

#[test]
fn the_two_of_a_pair_must_agree_and_one_that_is_refused_fails_the_other() {
    let node = Node::new();
    let controller = node.connect();
    let mut io: Io = controller.open_io(1, 16).unwrap();
    let data = |len: usize| vec![0_u8; len];
    let first = |nsid, lba| (half(NvmOpcode::COMPARE, Fuse::First, nsid, lba, 512), data(512));
    let second = |nsid, lba| (half(NvmOpcode::WRITE, Fuse::Second, nsid, lba, 512), data(512));
    for other in [second(1, 1), second(2, 0), (half(NvmOpcode::WRITE, Fuse::Second, 1, 0, 1024), data(1024))]
    {
        let [one, two] = pair(&mut io, first(1, 0), other);
        assert!(one.is(Status::ABORTED_FAILED_FUSED) && two.is(Status::INVALID_FIELD), "{one} {two}");
    }
    let [one, two] = pair(&mut io, first(1, BLOCKS), second(1, BLOCKS));
    assert!(one.is(Status::LBA_OUT_OF_RANGE) && two.is(Status::LBA_OUT_OF_RANGE), "{one} {two}");
    let [one, two] = pair(&mut io, first(1, BLOCKS), second(1, 0));
    assert!(one.is(Status::LBA_OUT_OF_RANGE) && two.is(Status::ABORTED_FAILED_FUSED), "{one} {two}");
    let [one, two] = pair(&mut io, first(1, 0), second(1, BLOCKS));
    assert!(one.is(Status::ABORTED_FAILED_FUSED) && two.is(Status::LBA_OUT_OF_RANGE), "{one} {two}");
    let [one, two] = pair(&mut io, first(1, 0), second(1, 0));
    assert!(one.is_success() && two.is_success(), "{one} {two}");
}

/// Four queues on two reactors count by compare-and-write; no count is lost.
#[test]
fn counting_by_fused_pairs_from_all_queues_loses_nothing() {
    const EACH: u64 = 100;
    let node = Node::new();
    let controller = node.connect();
    let mut counters: Vec<Io> = (1..=4).map(|qid| controller.open_io(qid, 8).unwrap()).collect();
    std::thread::scope(|scope| {
        for io in &mut counters {
            scope.spawn(move || {
                let mut done = 0;
                while done < EACH {
                    let old = read(io, 8, 4096);
                    let mut new = old.clone();
                    let count = u64::from_le_bytes(old[..8].try_into().unwrap()) + 1;
                    for word in new.chunks_exact_mut(8) {
                        word.copy_from_slice(&count.to_le_bytes());
                    }
                    let [first, second] = compare_and_write(io, 8, old, new);
                    assert_eq!(first.is_success(), second.is_success());
                    assert!(first.is_success() || first.is(Status::COMPARE_FAILURE), "{first}");
                    done += u64::from(first.is_success());
                }
            });
        }
    });
    let data = read(&mut counters[0], 8, 4096);
    assert!(data.chunks_exact(8).all(|word| word == (4 * EACH).to_le_bytes()));
}

fn copy(io: &mut Io, to: u64, ranges: &[(u64, u32)]) -> (Status, u32) {
    let list: Vec<CopyRange0> = ranges
        .iter()
        .map(|(lba, blocks)| CopyRange0 {
            slba: U64::new(*lba),
            nlb0: U16::new((blocks - 1) as u16),
            ..CopyRange0::default()
        })
        .collect();
    let data = list.as_bytes().to_vec();
    let mut cmd = *CopyCmd::from_sqe(&Sqe::new(NvmOpcode::COPY.0, 1));
    cmd.sdlba = U64::new(to);
    cmd.cdw12 = U32::new(CopyControl(0).with_nr0((ranges.len() - 1) as u8).0);
    let done = io.execute(*cmd.as_sqe(), Transfer::Write(data.len() as u32), Some(data)).unwrap();
    (done.status(), done.cqe.dw0.get())
}

#[test]
fn copy_gathers_its_ranges_in_order_and_says_which_one_it_cannot() {
    let node = Node::new();
    let controller = node.connect();
    let mut io: Io = controller.open_io(1, 16).unwrap();
    let data: Vec<u8> = (0..256 * BLOCK).map(|at| (at / BLOCK) as u8).collect();
    assert!(write(&mut io, 0, data).is_success());
    let all: Vec<(u64, u32)> = (0..256).map(|index| (255 - index, 1)).collect();
    let (status, _) = copy(&mut io, 1000, &all);
    assert!(status.is_success(), "{status}");
    let back = read(&mut io, 1000, 256 * BLOCK);
    assert!(back.chunks_exact(BLOCK).enumerate().all(|(at, block)| block == [(255 - at) as u8; BLOCK]));
    let (status, range) = copy(&mut io, 2000, &[(0, 8), (BLOCKS - 1, 2)]);
    assert!(status.is(Status::LBA_OUT_OF_RANGE) && range == 1, "{status} {range}");
    assert!(read(&mut io, 2000, 4096).iter().all(|byte| *byte == 0), "all or nothing is begun");
    assert!(copy(&mut io, 4, &[(0, 8)]).0.is(Status::OVERLAPPING_IO_RANGE));
    assert!(copy(&mut io, 20_000, &[(0, 16_384)]).0.is_success());
    assert!(copy(&mut io, 20_000, &[(0, 16_385)]).0.is(Status::COMMAND_SIZE_LIMIT_EXCEEDED));
}

#[test]
fn verify_and_compare_look_at_blocks_and_move_nothing_to_the_host() {
    let node = Node::new();
    let controller = node.connect();
    let mut io: Io = controller.open_io(1, 16).unwrap();
    let mut verify = |lba, blocks| {
        let sqe = command::rw(NvmOpcode::VERIFY, 1, lba, blocks, RwControl(0));
        io.execute(sqe, Transfer::None, None).unwrap().status()
    };
    assert!(verify(0, 2048).is_success());
    assert!(verify(0, 2049).is(Status::INVALID_FIELD), "VSL");
    assert!(verify(BLOCKS - 1, 2).is(Status::LBA_OUT_OF_RANGE));
    let compare = command::rw(NvmOpcode::COMPARE, 1, 0, 1, RwControl(0));
    let done = io.execute(compare, Transfer::Write(512), Some(vec![1; 512])).unwrap();
    assert!(done.status().is(Status::COMPARE_FAILURE));
}

#[test]
fn deallocation_takes_all_256_ranges_and_stops_at_its_limit() {
    let node = Node::new();
    let controller = node.connect();
    let mut io: Io = controller.open_io(1, 16).unwrap();
    let deallocate = |io: &mut Io, ranges: &[(u64, u32)]| {
        let range = |(lba, blocks): &(u64, u32)| DsmRange {
            slba: U64::new(*lba),
            len_blocks: U32::new(*blocks),
            ..DsmRange::default()
        };
        let list: Vec<DsmRange> = ranges.iter().map(range).collect();
        let data = list.as_bytes().to_vec();
        let sqe = command::deallocate(1, ranges.len() as u16);
        io.execute(sqe, Transfer::Write(data.len() as u32), Some(data)).unwrap().status()
    };
    let len = 600 * BLOCK;
    assert!(write(&mut io, 0, vec![1; len]).is_success());
    // Every other block: 100 of the 256 are within DMSL, the rest is left as it is.
    let all: Vec<(u64, u32)> = (0..256).map(|index| (index * 2, 1)).collect();
    assert!(deallocate(&mut io, &all).is_success());
    let back = read(&mut io, 0, len);
    let want = |at: usize| if at < 200 && at.is_multiple_of(2) { [0; BLOCK] } else { [1; BLOCK] };
    assert!(back.chunks_exact(BLOCK).enumerate().all(|(at, block)| block == want(at)));
    assert!(write(&mut io, 0, vec![1; len]).is_success());
    assert!(deallocate(&mut io, &[(0, 5000)]).is_success());
    let back = read(&mut io, 0, len);
    assert!(back.chunks_exact(BLOCK).enumerate().all(|(at, block)| (block[0] == 0) == (at < 100)));
    assert!(deallocate(&mut io, &[(0, 1), (BLOCKS, 1)]).is(Status::LBA_OUT_OF_RANGE));
}
