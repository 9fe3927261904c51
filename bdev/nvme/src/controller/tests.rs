//! Whole controllers on reactors, with a model that works on a thread of its own.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::task::{Context, Poll, Waker};

use penstock_bdev::{BdevChannel, Descriptor, Io, IoFlags, IoStatus, Lba, Op, OpenMode};
use penstock_reactor::mem::Buf;
use penstock_reactor::{PollMode, Reactor, ReactorConfig, ReactorId};

use super::*;
use crate::bdev::NvmeBdev;
use crate::device::Device;
use crate::model::{Model, ModelNs};

struct Rig {
    reactors: Vec<Reactor>,
    model: Arc<Model>,
    works: Arc<AtomicBool>,
    worker: Option<std::thread::JoinHandle<()>>,
    controller: Option<Arc<Controller>>,
    events: Receiver<ControllerEvent>,
}

impl Rig {
    fn new(reactors: u32, io_queues_max: Option<u16>, options: NvmeOptions) -> Self {
        let clock = Clock::system();
        let make = |id| {
            let clock = clock.clone();
            let config =
                ReactorConfig { id: ReactorId(id), core: None, mode: PollMode::Busy, clock, seed: 1 };
            Reactor::new(&config).unwrap()
        };
        let reactors: Vec<Reactor> = (0..reactors).map(make).collect();
        let model = Model::new();
        let works = Arc::new(AtomicBool::new(true));
        let worker = {
            let (model, works) = (Arc::clone(&model), Arc::clone(&works));
            std::thread::spawn(move || {
                while works.load(Ordering::Relaxed) {
                    if model.step() == 0 {
                        std::thread::yield_now();
                    }
                }
            })
        };
        let (sender, events) = channel();
        let config = ControllerConfig {
            name: "Nvme0".to_owned(),
            address: "model".to_owned(),
            reactors: reactors.iter().map(|reactor| reactor.cx().handle()).collect(),
            clock,
            options,
            io_queues_max,
        };
        let device = Arc::clone(&model);
        let open = move || Ok(Box::new(device) as Box<dyn Device>);
        let on_event: OnEvent = Box::new(move |event| sender.send(event).unwrap_or(()));
        let mut rig = Self { reactors, model, works, worker: Some(worker), controller: None, events };
        let attached = rig.wait(attach(config, open, on_event)).unwrap();
        rig.controller = Some(attached);
        rig
    }

    /// Turns the reactors until the future ends.
    fn wait<T>(&mut self, future: impl Future<Output = T>) -> T {
        let mut future = std::pin::pin!(future);
        loop {
            if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                return value;
            }
            self.reactors.iter_mut().for_each(|reactor| {
                reactor.turn();
            });
            std::thread::yield_now();
        }
    }

    fn until(&mut self, what: &str, mut is_so: impl FnMut(&mut Self) -> bool) {
        let clock = Clock::system();
        let end = clock.now().plus_ns(20_000_000_000);
        while !is_so(self) {
            assert!(clock.now() < end, "in vain: {what}");
            self.reactors.iter_mut().for_each(|reactor| {
                reactor.turn();
            });
            std::thread::yield_now();
        }
    }

    fn controller(&self) -> &Arc<Controller> {
        self.controller.as_ref().unwrap()
    }

    fn channel(&mut self, reactor: usize) -> BdevChannel {
        let ns = self.controller().namespace(1).unwrap();
        let bdev = NvmeBdev::new(Arc::clone(self.controller()), &ns).unwrap();
        let descriptor = Descriptor::unregistered(bdev, OpenMode::ReadWrite);
        descriptor.channel(self.reactors[reactor].cx()).unwrap()
    }

    fn detach(mut self) {
        let controller = self.controller.take().unwrap();
        self.wait(controller.detach());
        self.works.store(false, Ordering::Relaxed);
        self.worker.take().unwrap().join().unwrap();
        assert!(!self.model.inner().is_enabled(), "the controller was stopped");
    }
}

fn io(tag: u64, op: Op, lba: u64, byte: u8) -> Box<Io> {
    let mut io = Io::boxed();
    io.set(tag, op, IoFlags::NONE, Lba(lba), 8);
    let mut buf = Buf::zeroed(4096).unwrap();
    buf.fill(byte);
    io.data.push(buf);
    io
}

/// Submits all, and polls until all have ended; by tag.
fn run(rig: &mut Rig, channel: &mut BdevChannel, ios: Vec<Box<Io>>) -> Vec<Box<Io>> {
    let (mut done, count) = (Vec::new(), ios.len());
    let clock = Clock::system();
    for io in ios {
        channel.submit(io, clock.now()).unwrap();
    }
    rig.until("I/Os end", |_| {
        channel.poll(clock.now(), 64, &mut done);
        done.len() == count
    });
    done.sort_by_key(|io| io.tag);
    done
}

#[test]
fn reactors_without_a_queue_of_their_own_use_anothers() {
    let mut rig = Rig::new(3, Some(1), NvmeOptions::default());
    assert_eq!(rig.controller().report().identity.io_queues, 1);
    let mut channels: Vec<BdevChannel> = (0..3).map(|reactor| rig.channel(reactor)).collect();
    for (index, channel) in (0_u8..).zip(&mut channels) {
        let lba = u64::from(index) * 8;
        let written = run(&mut rig, channel, vec![io(1, Op::Write, lba, index + 1)]);
        assert_eq!(written[0].status, IoStatus::Success);
    }
    for channel in &mut channels {
        let read = run(&mut rig, channel, (0..3).map(|tag| io(tag, Op::Read, tag * 8, 0)).collect());
        for (io, byte) in read.iter().zip(1..) {
            assert_eq!(io.status, IoStatus::Success);
            assert!(io.data.iter().all(|buf| buf.iter().all(|found| *found == byte)));
        }
    }
    drop(channels);
    rig.detach();
}

#[test]
fn a_reset_under_load_loses_nothing() {
    let mut rig = Rig::new(2, None, NvmeOptions::default());
    assert_eq!(rig.controller().report().identity.io_queues, 2);
    let mut channels = [rig.channel(0), rig.channel(1)];
    for round in 0..5 {
        rig.model.inner().faults.silent = true;
        let clock = Clock::system();
        for channel in &mut channels {
            for tag in 0..100 {
                channel.submit(io(tag, Op::Write, tag * 8, round), clock.now()).unwrap();
            }
        }
        rig.until("commands arrive", |rig| rig.model.inner().held() == 200);
        rig.model.inner().faults.silent = false;
        let controller = Arc::clone(rig.controller());
        rig.wait(controller.reset()).unwrap();
        let mut done = Vec::new();
        rig.until("I/Os end", |_| {
            channels.iter_mut().for_each(|channel| {
                channel.poll(clock.now(), 64, &mut done);
            });
            done.len() == 200
        });
        assert!(done.iter().all(|io| io.status == IoStatus::Success));
    }
    assert_eq!(rig.controller().report().resets, 5);
    drop(channels);
    rig.detach();
}

#[test]
fn a_command_without_an_answer_is_aborted_then_the_controller_reset() {
    let options = NvmeOptions { timeout_us: 50_000, ..NvmeOptions::default() };
    let mut rig = Rig::new(1, None, options);
    let mut channel = rig.channel(0);
    rig.model.inner().faults.lost_completions = 1;
    rig.model.inner().faults.deaf_to_aborts = true;
    let done = run(&mut rig, &mut channel, vec![io(1, Op::Write, 0, 1), io(2, Op::Read, 8, 0)]);
    assert!(done.iter().all(|io| io.status == IoStatus::Success));
    let report = rig.controller().report();
    assert_eq!((report.resets, report.aborts, report.state), (1, 1, ControllerState::Live));
    drop(channel);
    rig.detach();
}

#[test]
fn a_controller_that_does_not_come_back_ends_its_io_and_is_tried_again_later() {
    let mut options = NvmeOptions { timeout_us: 50_000, ..NvmeOptions::default() };
    options.loss.reconnect_delay_sec = 1;
    let mut rig = Rig::new(1, None, options);
    let mut channel = rig.channel(0);
    {
        let mut inner = rig.model.inner();
        inner.cap = inner.cap.with_to(1);
        inner.faults.silent = true;
        inner.faults.deaf_to_aborts = true;
        inner.faults.fatal = true;
    }
    let done = run(&mut rig, &mut channel, vec![io(1, Op::Read, 0, 0)]);
    assert_eq!(done[0].status, IoStatus::TimedOut);
    // Its I/O ends on its reactor; the controller is given up elsewhere, a moment before or after.
    rig.until("it is given up", |rig| matches!(rig.controller().report().state, ControllerState::Failed(_)));
    let done = run(&mut rig, &mut channel, vec![io(2, Op::Read, 0, 0)]);
    assert_eq!(done[0].status, IoStatus::TimedOut);
    let broken = std::mem::take(&mut rig.model.inner().faults);
    let controller = Arc::clone(rig.controller());
    rig.wait(controller.reset()).unwrap();
    let done = run(&mut rig, &mut channel, vec![io(3, Op::Read, 0, 0)]);
    assert_eq!(done[0].status, IoStatus::Success);
    rig.model.inner().faults = broken;
    let done = run(&mut rig, &mut channel, vec![io(4, Op::Read, 0, 0)]);
    assert_eq!(done[0].status, IoStatus::TimedOut);
    rig.model.inner().faults = Default::default();
    rig.until("it comes back by itself", |rig| rig.controller().report().state == ControllerState::Live);
    let done = run(&mut rig, &mut channel, vec![io(5, Op::Read, 0, 0)]);
    assert_eq!(done[0].status, IoStatus::Success);
    drop(channel);
    rig.detach();
}

#[test]
fn a_device_that_is_pulled_out_ends_all_io_and_is_told() {
    for wanted_back in [false, true] {
        let mut rig = Rig::new(2, None, NvmeOptions::default());
        let mut channel = rig.channel(1);
        rig.model.inner().faults.silent = true;
        let clock = Clock::system();
        channel.submit(io(1, Op::Read, 0, 0), clock.now()).unwrap();
        rig.until("it arrives", |rig| rig.model.inner().held() == 1);
        if wanted_back {
            rig.model.inner().wanted_back = true;
        } else {
            rig.model.inner().faults.gone = true;
        }
        let mut done = Vec::new();
        rig.until("it ends", |_| channel.poll(clock.now(), 8, &mut done) > 0);
        assert_eq!(done[0].status, IoStatus::Gone);
        rig.until("it is told", |rig| rig.events.try_recv() == Ok(ControllerEvent::Gone));
        rig.model.inner().faults.gone = false;
        drop(channel);
        let controller = rig.controller.take().unwrap();
        rig.wait(controller.detach());
        rig.works.store(false, Ordering::Relaxed);
    }
}

#[test]
fn namespaces_that_come_and_change_are_told() {
    let mut rig = Rig::new(1, None, NvmeOptions::default());
    rig.model.change_ns(7, Some(ModelNs::new(7, 64, 12)));
    rig.until("it is told", |rig| rig.events.try_recv() == Ok(ControllerEvent::Namespaces));
    let ns = rig.controller().namespace(7).unwrap();
    assert_eq!((ns.blocks, ns.block_bytes), (64, 4096));
    rig.model.change_ns(7, Some(ModelNs::new(7, 128, 12)));
    rig.until("it is told again", |rig| rig.events.try_recv() == Ok(ControllerEvent::Namespaces));
    assert_eq!(rig.controller().namespace(7).unwrap().blocks, 128);
    rig.model.inner().media_errors = 3;
    let controller = Arc::clone(rig.controller());
    let health = rig.wait(controller.read_health()).unwrap();
    assert_eq!((health.media_errors, health.temperature_celsius), (3, 37));
    rig.detach();
}
