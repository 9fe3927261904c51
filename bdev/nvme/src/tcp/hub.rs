//! All remote disks of one reactor: the poller of their sockets, and the channels to them.

use std::cell::RefCell;
use std::rc::Rc;

use penstock_bdev::{BdevError, Busy, Channel, Io};
use penstock_reactor::{Cx, Poller, ReactorError, Rest, Tick};

use super::seat::{Seat, SeatRules};
use super::wire::Sockets;
use crate::queue::NsParams;

/// What a reactor has of remote disks.
pub(super) struct Hub {
    sockets: RefCell<Sockets>,
    seats: RefCell<Vec<(u64, Rc<RefCell<Seat>>)>>,
}

/// A reactor's hub, with its poller; made at the first use.
///
/// # Errors
/// [`ReactorError`] when there are no descriptors left.
fn hub(cx: &Cx) -> Result<Rc<Hub>, ReactorError> {
    if let Some(hub) = cx.find_service::<Hub>() {
        return Ok(hub);
    }
    let sockets = RefCell::new(Sockets::new(cx.sleep_set())?);
    let hub = cx.service(|_| Hub { sockets, seats: RefCell::default() });
    cx.add_poller("nvme-tcp", Box::new(HubPoller(Rc::clone(&hub))));
    Ok(hub)
}

impl Hub {
    fn seat(&self, disk: u64) -> Option<Rc<RefCell<Seat>>> {
        self.seats.borrow().iter().find(|(other, _)| *other == disk).map(|(_, seat)| Rc::clone(seat))
    }
}

/// Gives the reactor a disk.
///
/// # Errors
/// [`ReactorError`] when there are no descriptors left.
pub(super) fn install(cx: &Cx, disk: u64, rules: SeatRules) -> Result<(), ReactorError> {
    let hub = hub(cx)?;
    if hub.seat(disk).is_none() {
        hub.seats.borrow_mut().push((disk, Rc::new(RefCell::new(Seat::new(disk, rules)))));
    }
    Ok(())
}

/// Takes a disk, which has no paths any more, from the reactor. It goes as soon as the last channel to it has.
pub(super) fn remove(cx: &Cx, disk: u64) {
    if let Some(hub) = cx.find_service::<Hub>() {
        hub.seats.borrow_mut().retain(|(other, _)| *other != disk);
    }
}

/// Does something with a disk, if the reactor has it.
pub(super) fn with_seat(cx: &Cx, disk: u64, function: impl FnOnce(&mut Seat, &mut Sockets, Tick)) {
    let Some(hub) = cx.find_service::<Hub>() else { return };
    if let Some(seat) = hub.seat(disk) {
        function(&mut seat.borrow_mut(), &mut hub.sockets.borrow_mut(), cx.now());
    }
}

/// A channel to a namespace.
///
/// # Errors
/// [`BdevError::Os`] where the reactor does not know the disk.
pub(super) fn open(cx: &Cx, disk: u64, ns: NsParams, bdev: &str) -> Result<Box<dyn Channel>, BdevError> {
    let seat = cx.find_service::<Hub>().and_then(|hub| hub.seat(disk)).ok_or_else(|| BdevError::Os {
        name: bdev.to_owned(),
        what: format!("reach its target from reactor {}", cx.id()),
        source: std::io::ErrorKind::NotConnected.into(),
    })?;
    let end = seat.borrow_mut().open(ns);
    Ok(Box::new(SeatChannel { seat, end }))
}

struct HubPoller(Rc<Hub>);

impl Poller for HubPoller {
    #[inline]
    fn poll(&mut self, _cx: &Cx, now: Tick) -> usize {
        let mut sockets = self.0.sockets.borrow_mut();
        let seats = self.0.seats.borrow();
        if seats.is_empty() {
            return 0;
        }
        sockets.poll();
        for index in 0..sockets.ready.len() {
            let Some(ready) = sockets.ready.get(index).copied() else { break };
            let Some((disk, path)) = sockets.owner(ready.key) else { continue };
            if let Some((_, seat)) = seats.iter().find(|(other, _)| *other == disk) {
                seat.borrow_mut().is_ready(path, ready, &mut sockets);
            }
        }
        seats.iter().map(|(_, seat)| seat.borrow_mut().turn(&mut sockets, now)).sum()
    }

    fn rest(&mut self, _now: Tick) -> Rest {
        let mut rest = Rest::UntilWoken;
        for (_, seat) in self.0.seats.borrow().iter() {
            match (seat.borrow().rest(), rest) {
                (Rest::Never, _) => return Rest::Never,
                (Rest::Until(at), Rest::Until(other)) => rest = Rest::Until(Tick::min(at, other)),
                (Rest::Until(at), _) => rest = Rest::Until(at),
                (Rest::UntilWoken, _) => {}
            }
        }
        rest
    }
}

struct SeatChannel {
    seat: Rc<RefCell<Seat>>,
    end: usize,
}

impl Channel for SeatChannel {
    #[inline]
    fn submit(&mut self, io: Box<Io>, now: Tick) -> Result<(), Busy> {
        self.seat.borrow_mut().submit(self.end, io, now)
    }

    #[inline]
    fn poll(&mut self, _now: Tick, budget: usize, done: &mut Vec<Box<Io>>) -> usize {
        self.seat.borrow_mut().take_ended(self.end, budget, done)
    }

    fn abort(&mut self, tag: u64) -> bool {
        self.seat.borrow_mut().abort(self.end, tag)
    }

    fn reset(&mut self) {
        self.seat.borrow_mut().abort_all(self.end);
    }

    /// The poller of the sockets knows when what is under way has to be looked at.
    fn rest(&self, _now: Tick) -> Rest {
        if self.seat.borrow().has_ended(self.end) { Rest::Never } else { Rest::UntilWoken }
    }
}

impl Drop for SeatChannel {
    fn drop(&mut self) {
        self.seat.borrow_mut().close(self.end);
    }
}
