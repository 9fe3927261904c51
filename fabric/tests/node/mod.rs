//! A node of two reactors with a pool on disks in memory, and I/O by scripts that run on any of them.

#![allow(dead_code, reason = "no test uses all of it")]

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use penstock_bdev::malloc::Malloc;
use penstock_bdev::{BdevChannel, Descriptor, Io, IoFlags, IoStatus, Lba, Op, OpenMode, Registry};
use penstock_fabric::format::superblock::Tier;
use penstock_fabric::node::{Fabric, FabricError, NewPool, NewVdisk};
use penstock_fabric::pool::PoolOptions;
use penstock_reactor::mem::Buf;
use penstock_reactor::{Clock, Cx, PollMode, Reactor, ReactorConfig, ReactorHandle, ReactorId, Started};
use serde_json::json;
use uuid::Uuid;

pub(crate) const OPTIONS: PoolOptions =
    PoolOptions { lanes: 3, segment_blocks: 1024, segments: 4, region_blocks: 2048, copies: 1 };

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

type Background = Rc<RefCell<Vec<Pin<Box<dyn Future<Output = ()>>>>>>;

pub(crate) struct Node {
    started: Vec<Started>,
    pub(crate) reactors: Vec<ReactorHandle>,
    pub(crate) registry: Registry,
    pub(crate) fabric: Fabric,
    background: Background,
}

impl Node {
    pub(crate) fn new() -> Self {
        let clock = Clock::system();
        let start = |id| {
            let mode = PollMode::Adaptive { spin_ns: 50_000 };
            let config =
                ReactorConfig { id: ReactorId(id), core: None, mode, clock: clock.clone(), seed: id.into() };
            Reactor::start(config).unwrap()
        };
        let started: Vec<Started> = (0..2).map(start).collect();
        let reactors: Vec<ReactorHandle> = started.iter().map(|started| started.handle.clone()).collect();
        let registry = Registry::new();
        let fabric = Fabric::new(reactors.clone(), registry.clone(), || 7);
        let background: Background = Rc::default();
        background.borrow_mut().push(Box::pin(fabric.clone().examine()));
        let timer = reactors[0].clone();
        let pause = move |duration| {
            let timer = timer.clone();
            async move { drop(timer.call_async(move |cx| async move { cx.sleep(duration).await }).await) }
        };
        background.borrow_mut().push(Box::pin(fabric.clone().look_after(pause.clone())));
        background.borrow_mut().push(Box::pin(fabric.clone().watch_disks(pause.clone())));
        background.borrow_mut().push(Box::pin(fabric.clone().tend_disks(pause)));
        background.borrow_mut().push(Box::pin(registry.look_after_removals()));
        Self { started, reactors, registry, fabric, background }
    }

    pub(crate) fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut context = Context::from_waker(&waker);
        let mut future = Box::pin(future);
        loop {
            self.background.borrow_mut().retain_mut(|task| task.as_mut().poll(&mut context).is_pending());
            if let Poll::Ready(done) = future.as_mut().poll(&mut context) {
                return done;
            }
            // As a daemon's control thread: reactors wait for buffers and never map memory themselves.
            penstock_reactor::mem::maintain().unwrap();
            std::thread::park_timeout(std::time::Duration::from_millis(20));
        }
    }

    /// Has a task polled whenever something is waited for.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.background.borrow_mut().push(Box::pin(task));
    }

    /// Registers disks, which lose nothing when the node ends.
    pub(crate) fn plug(&self, disks: &[Arc<dyn penstock_bdev::Bdev>]) {
        for disk in disks {
            self.registry.register(Arc::clone(disk), &[]).unwrap();
        }
        self.wait(self.fabric.examined());
    }

    pub(crate) fn create_pool(&self, bdevs: &[&str]) -> Result<(), FabricError> {
        self.create_pool_with(bdevs, 1)
    }

    /// The same with so many copies of everything.
    pub(crate) fn create_pool_with(&self, bdevs: &[&str], copies: u8) -> Result<(), FabricError> {
        let new = NewPool {
            name: "p0".into(),
            uuid: Uuid::new_v4(),
            bdevs: bdevs.iter().map(|name| (*name).to_owned()).collect(),
            tier: Tier::Ssd,
            options: PoolOptions { copies, ..OPTIONS },
            force: false,
        };
        self.wait(self.fabric.create_pool(&new)).map(drop)
    }

    pub(crate) fn create_vdisk(&self, name: &str, bytes: u64, block: u32) -> Result<(), FabricError> {
        let pool = self.fabric.pool(None)?;
        let (container, shards) = ("default".into(), None);
        let new = NewVdisk { name: name.into(), uuid: Uuid::new_v4(), bytes, block, container, shards };
        self.wait(self.fabric.create_vdisk(&pool, &new))
    }

    pub(crate) fn open(&self, name: &str) -> Descriptor {
        self.registry.open(name, OpenMode::ReadWrite, "test").unwrap()
    }

    /// Runs a script over a channel to `name` on reactor `at`.
    pub(crate) fn run<T, F, Fut>(&self, at: usize, name: &str, script: F) -> T
    where
        T: Send + 'static,
        F: FnOnce(Script) -> Fut + Send + 'static,
        Fut: Future<Output = T> + 'static,
    {
        let disk = self.open(name);
        self.wait(script_on(&self.reactors[at], disk, script))
    }

    /// Ends as after a kill: nothing is closed but the threads.
    pub(crate) fn kill(self) {
        for reactor in &self.reactors {
            reactor.stop();
        }
        for started in self.started {
            started.join.join().unwrap();
        }
    }
}

pub(crate) async fn script_on<T, F, Fut>(reactor: &ReactorHandle, disk: Descriptor, script: F) -> T
where
    T: Send + 'static,
    F: FnOnce(Script) -> Fut + Send + 'static,
    Fut: Future<Output = T> + 'static,
{
    let done = reactor.call_async(move |cx| async move {
        let channel = Rc::new(RefCell::new(disk.channel(&cx).unwrap()));
        drop(disk);
        let script_channel = Script { channel: Rc::clone(&channel), cx: cx.clone(), ended: Rc::default() };
        let outcome = script(script_channel).await;
        while channel.borrow().in_flight() > 0 {
            channel.borrow_mut().poll(cx.now(), 64, &mut Vec::new());
            cx.sleep(std::time::Duration::from_micros(50)).await;
        }
        outcome
    });
    done.await.unwrap()
}

/// I/O of one channel, one or more at a time.
#[derive(Clone)]
pub(crate) struct Script {
    channel: Rc<RefCell<BdevChannel>>,
    pub(crate) cx: Cx,
    ended: Rc<RefCell<Vec<Box<Io>>>>,
}

impl Script {
    /// Does one I/O; data for writes and compares in, data of reads out.
    pub(crate) async fn io(
        &self,
        tag: u64,
        op: Op,
        lba: u64,
        blocks: u32,
        data: &[u8],
    ) -> (IoStatus, Vec<u8>) {
        self.io_from(tag, op, lba, blocks, data, 0).await
    }

    pub(crate) async fn io_from(
        &self,
        tag: u64,
        op: Op,
        lba: u64,
        blocks: u32,
        data: &[u8],
        src: u64,
    ) -> (IoStatus, Vec<u8>) {
        let mut io = Io::boxed();
        io.set(tag, op, IoFlags::NONE, Lba(lba), blocks);
        io.src_lba = Lba(src);
        let block = usize::try_from(self.channel.borrow().shared().block_bytes()).unwrap();
        let bytes = usize::try_from(blocks).unwrap() * block * op.data_factor();
        let mut at = 0;
        while at < bytes {
            // Odd pieces, as hosts send them.
            let len = (bytes - at).min(if at == 0 { 1536 } else { 65536 });
            let mut buf = Buf::alloc(len).unwrap();
            match data.get(at..at + len) {
                Some(data) => buf.copy_from_slice(data),
                None => buf.fill(0xee),
            }
            io.data.push(buf);
            at += len;
        }
        let mut waiting = Some(io);
        poll_fn(|context| {
            let now = self.cx.now();
            let mut channel = self.channel.borrow_mut();
            if let Some(io) = waiting.take() {
                waiting = channel.submit(io, now).err().map(|busy| busy.0);
            }
            let mut ended = self.ended.borrow_mut();
            channel.poll(now, 64, &mut ended);
            if let Some(at) = ended.iter().position(|io| io.tag == tag) {
                let io = ended.swap_remove(at);
                let mut bytes = vec![0; io.data.len_bytes()];
                io.data.copy_out(0, &mut bytes);
                return Poll::Ready((io.status, bytes));
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await
    }
}

/// A disk in memory.
pub(crate) fn disk(number: u128, mib: u64, block_size: u64) -> Arc<dyn penstock_bdev::Bdev> {
    let options = json!({
        "name": format!("m{number}"), "num_blocks": (mib << 20) / block_size, "block_size": block_size,
        "uuid": Uuid::from_u128(number).to_string(),
    });
    Malloc::new(&format!("m{number}"), &serde_json::from_value(options).unwrap()).unwrap()
}
