//! One core's way to a file or block device, by the core's rings: reads and volatile writes by the polled one where the
//! device has polled queues, all else by the ordinary one, since the kernel polls for nothing else.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use penstock_reactor::{Cx, Rest, Tick};

use super::file::Disk;
use super::request::{FileRef, Request};
use super::ring::{Ended, Ring};
use crate::channel::{Busy, Channel};
use crate::io::{Io, IoFlags, IoStatus, Op};

/// Room for ended I/Os, so that none is made per I/O.
const ENDED_LEN: usize = 1024;

pub(super) struct UringChannel {
    disk: Arc<Disk>,
    ordinary: Way,
    polled: Option<Way>,
    ended: Ended,
}

/// A ring, and what the file is called there.
struct Way {
    ring: Rc<RefCell<Ring>>,
    file: FileRef,
}

impl Way {
    fn new(ring: Rc<RefCell<Ring>>, disk: &Disk) -> Self {
        let index = ring.borrow_mut().add_file(disk.fd());
        let file = index.map_or(FileRef::Descriptor(disk.fd()), FileRef::Registered);
        Self { ring, file }
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        if let FileRef::Registered(index) = self.file {
            self.ring.borrow_mut().remove_file(index);
        }
    }
}

impl UringChannel {
    pub(super) fn open(disk: Arc<Disk>, cx: &Cx) -> io::Result<Self> {
        let ordinary = Way::new(Ring::of(cx)?, &disk);
        // A kernel without such rings only costs speed.
        let ring = if disk.is_polled() { Ring::polled(cx).ok() } else { None };
        let polled = ring.map(|ring| Way::new(ring, &disk));
        let ended = Rc::new(RefCell::new(VecDeque::with_capacity(ENDED_LEN)));
        Ok(Self { disk, ordinary, polled, ended })
    }

    fn way(&self, io: &Io) -> &Way {
        let is_transfer = matches!(io.op, Op::Read | Op::Write) && !io.flags.contains(IoFlags::FUA);
        self.polled.as_ref().filter(|_| is_transfer && self.disk.is_polled()).unwrap_or(&self.ordinary)
    }
}

impl Channel for UringChannel {
    fn submit(&mut self, mut io: Box<Io>, _now: Tick) -> Result<(), Busy> {
        if self.disk.has_failed() && (io.op.is_write() || io.op == Op::Flush) {
            io.status = IoStatus::WriteError;
            self.ended.borrow_mut().push_back(io);
            return Ok(());
        }
        let Way { ring, file } = self.way(&io);
        let mut ring = ring.borrow_mut();
        if !ring.has_room() {
            return Err(Busy(io));
        }
        let request = Request::new(io, &self.disk, *file).map_err(Busy)?;
        ring.submit(request, &self.ended);
        Ok(())
    }

    fn poll(&mut self, _now: Tick, budget: usize, done: &mut Vec<Box<Io>>) -> usize {
        let mut ended = self.ended.borrow_mut();
        let count = ended.len().min(budget);
        done.extend(ended.drain(..count));
        count
    }

    fn abort(&mut self, tag: u64) -> bool {
        // The kernel cancels nothing that it polls for.
        self.ordinary.ring.borrow_mut().cancel(tag, &self.ended)
    }

    fn rest(&self, _now: Tick) -> Rest {
        if self.ended.borrow().is_empty() { Rest::UntilWoken } else { Rest::Never }
    }
}
