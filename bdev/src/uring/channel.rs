//! One core's way to a file or block device, by the core's ring.

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
use crate::io::{Io, IoStatus, Op};

/// Room for ended I/Os, so that none is made per I/O.
const ENDED_LEN: usize = 1024;

pub(super) struct UringChannel {
    disk: Arc<Disk>,
    ring: Rc<RefCell<Ring>>,
    file: FileRef,
    ended: Ended,
}

impl UringChannel {
    pub(super) fn open(disk: Arc<Disk>, cx: &Cx) -> io::Result<Self> {
        let ring = Ring::of(cx)?;
        let index = ring.borrow_mut().add_file(disk.fd());
        let file = index.map_or(FileRef::Descriptor(disk.fd()), FileRef::Registered);
        let ended = Rc::new(RefCell::new(VecDeque::with_capacity(ENDED_LEN)));
        Ok(Self { disk, ring, file, ended })
    }
}

impl Channel for UringChannel {
    fn submit(&mut self, mut io: Box<Io>, _now: Tick) -> Result<(), Busy> {
        if self.disk.has_failed() && (io.op.is_write() || io.op == Op::Flush) {
            io.status = IoStatus::WriteError;
            self.ended.borrow_mut().push_back(io);
            return Ok(());
        }
        let mut ring = self.ring.borrow_mut();
        if !ring.has_room() {
            return Err(Busy(io));
        }
        let request = Request::new(io, &self.disk, self.file).map_err(Busy)?;
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
        self.ring.borrow_mut().cancel(tag, &self.ended)
    }

    fn rest(&self, _now: Tick) -> Rest {
        if self.ended.borrow().is_empty() { Rest::UntilWoken } else { Rest::Never }
    }
}

impl Drop for UringChannel {
    fn drop(&mut self) {
        if let FileRef::Registered(index) = self.file {
            self.ring.borrow_mut().remove_file(index);
        }
    }
}
