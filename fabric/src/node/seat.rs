//! A lane's seat on a reactor: its channels to the disks, its desk, its poller and its background.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use penstock_bdev::{BdevChannel, BdevError, Descriptor};
use penstock_reactor::{Cx, Poller, PollerId, Rest, Tick};

use super::FabricError;
use crate::driver::Channels;
use crate::flow::Flow;
use crate::lane::{Lane, LaneError, LaneOptions, LanePlace};
use crate::vdisk::{Desk, Hub, Mesh};

/// Between looks whether something has ended.
const LOOK: Duration = Duration::from_micros(200);
/// How long buffers for a log are waited for: the daemon maps memory as it is needed.
const BUFFER_TRIES: u32 = 500;
/// Looks until I/O under way is given up when a seat is closed.
const CLOSE_LOOKS: u32 = 25_000;

/// A lane's seat.
#[derive(Debug)]
pub struct Seat {
    flow: Flow,
    lane: OnceCell<Lane>,
    desk: Desk,
    channels: RefCell<Channels>,
    poller: Cell<Option<PollerId>>,
    /// The disks are let go: what the lane still wants of them is not wanted any more.
    closed: Cell<bool>,
    background: RefCell<Option<async_task::Task<()>>>,
    /// Why the background ended.
    problem: RefCell<Option<String>>,
}

impl Seat {
    /// A seat without a lane: only control flows over [`Self::flow`] have I/O; unless it is `counted`, the disks' statistics
    /// leave it out.
    ///
    /// # Errors
    /// What a disk's channel says.
    pub fn new(
        cx: &Cx,
        disks: &[Option<Descriptor>],
        hub: &Rc<Hub>,
        counted: bool,
    ) -> Result<Rc<Self>, FabricError> {
        let channels = disks
            .iter()
            .map(|disk| disk.as_ref().map(|disk| channel(disk, cx, counted)).transpose())
            .collect::<Result<Vec<_>, _>>()?;
        let seat = Rc::new(Self {
            flow: Flow::new(),
            lane: OnceCell::new(),
            desk: Desk::default(),
            channels: RefCell::new(Channels::new(channels)),
            poller: Cell::new(None),
            closed: Cell::new(false),
            background: RefCell::new(None),
            problem: RefCell::new(None),
        });
        let poller = SeatPoller { seat: Rc::clone(&seat), hub: Rc::clone(hub) };
        seat.poller.set(Some(cx.add_poller("lane", Box::new(poller))));
        Ok(seat)
    }

    /// Opens a lane here and gives it a number at the core's hub. Its background does not run yet.
    ///
    /// # Errors
    /// [`FabricError::Lane`], [`FabricError::Bdev`].
    pub async fn open(
        cx: Cx,
        mesh: Arc<Mesh>,
        disks: Vec<Option<Descriptor>>,
        place: LanePlace,
        options: LaneOptions,
    ) -> Result<u32, FabricError> {
        let hub = Hub::of(&cx, &mesh);
        let seat = Self::new(&cx, &disks, &hub, true)?;
        let mut tries = 0;
        let opened = loop {
            let life = cx.with_rng(penstock_reactor::rng::Rng::next_u64);
            match Lane::open(&seat.flow, &place, &options, life).await {
                Err(LaneError::NoBuffers { .. }) if tries < BUFFER_TRIES => {
                    tries += 1;
                    cx.sleep(Duration::from_millis(10)).await;
                }
                other => break other,
            }
        };
        match opened {
            Ok((lane, report)) => {
                tracing::debug!(lane = place.log.lane.0, ?report, "lane opened");
                drop(seat.lane.set(lane));
                Ok(hub.add_seat(seat))
            }
            Err(error) => {
                seat.close(&cx, &hub).await;
                Err(error.into())
            }
        }
    }

    /// Starts the lane's background work.
    ///
    /// # Errors
    /// [`FabricError::Reactor`].
    pub fn start(self: &Rc<Self>, cx: &Cx) -> Result<(), FabricError> {
        let Some(lane) = self.lane.get().cloned() else { return Ok(()) };
        let seat = Rc::downgrade(self);
        let task = cx.spawn(async move {
            let ended = lane.background().await;
            if let (Err(error), Some(seat)) = (ended, seat.upgrade()) {
                tracing::error!(error = %error, "a lane of a pool has failed: its vdisks take no writes");
                *seat.problem.borrow_mut() = Some(error.to_string());
            }
        })?;
        *self.background.borrow_mut() = Some(task);
        Ok(())
    }

    /// Ends what waits, waits for what is under way, and lets the disks go.
    pub async fn close(&self, cx: &Cx, hub: &Hub) {
        drop(self.background.borrow_mut().take());
        self.desk.give_up(hub);
        for _ in 0..CLOSE_LOOKS {
            if self.desk.is_empty() && self.channels.borrow().in_flight() == 0 {
                break;
            }
            cx.sleep(LOOK).await;
            self.desk.give_up(hub);
        }
        if self.channels.borrow().in_flight() == 0 {
            self.closed.set(true);
            // The disks are free from here on, not only when the poller is dropped.
            drop(self.channels.replace(Channels::new(Vec::<BdevChannel>::new())));
        }
        if let Some(poller) = self.poller.take() {
            cx.remove_poller(poller);
        }
    }

    /// Its mouth, for control flows before there is a lane.
    #[must_use]
    pub fn flow(&self) -> &Flow {
        &self.flow
    }

    /// Lets go of a disk: what is for it from now on ends with an error.
    pub fn pull(&self, at: crate::id::DiskNo) {
        self.channels.borrow_mut().pull(at);
    }

    /// Plugs a disk in behind all others.
    ///
    /// # Errors
    /// What the disk's channel says; its place is empty then.
    pub fn plug(&self, cx: &Cx, disk: &Descriptor) -> Result<(), FabricError> {
        let channel = channel(disk, cx, true);
        let mut channels = self.channels.borrow_mut();
        match channel {
            Ok(channel) => channels.add(Some(channel)),
            Err(error) => {
                channels.add(None);
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Its channels' blocks, by number.
    #[must_use]
    pub fn plugged(&self) -> Vec<(crate::id::DiskNo, u64)> {
        self.channels.borrow().plugged()
    }

    /// Its desk.
    #[must_use]
    pub fn desk(&self) -> &Desk {
        &self.desk
    }

    /// Its lane.
    ///
    /// # Panics
    /// Before it is open: a bug of the caller, as only open seats have numbers.
    #[must_use]
    pub fn lane(&self) -> &Lane {
        match self.lane.get() {
            Some(lane) => lane,
            None => panic!("a seat without a lane was asked for it"),
        }
    }

    /// Why the lane's background ended.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.problem.borrow().clone()
    }
}

fn channel(disk: &Descriptor, cx: &Cx, counted: bool) -> Result<BdevChannel, BdevError> {
    if counted { disk.channel(cx) } else { disk.uncounted_channel(cx) }
}

struct SeatPoller {
    seat: Rc<Seat>,
    hub: Rc<Hub>,
}

impl Poller for SeatPoller {
    fn poll(&mut self, _cx: &Cx, now: Tick) -> usize {
        let seat = &*self.seat;
        if seat.closed.get() {
            return 0;
        }
        let mut channels = seat.channels.borrow_mut();
        let Some(lane) = seat.lane.get() else { return channels.turn(&seat.flow, now) };
        lane.tick(now);
        let pushed = seat.desk.push(lane, &self.hub);
        if !lane.is_resting() {
            lane.turn();
        }
        let moved = channels.turn(lane, now);
        drop(channels);
        pushed + moved + seat.desk.pull(lane, &self.hub)
    }

    fn rest(&mut self, now: Tick) -> Rest {
        let seat = &*self.seat;
        if seat.closed.get() {
            return Rest::UntilWoken;
        }
        if !seat.desk.is_idle() || seat.lane.get().is_some_and(|lane| !lane.is_resting()) {
            return Rest::Never;
        }
        let rest = seat.channels.borrow().rest(now);
        if seat.lane.get().is_some_and(Lane::wants_tick) { crate::driver::sooner(rest, now) } else { rest }
    }
}
