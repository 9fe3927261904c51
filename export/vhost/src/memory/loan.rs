//! Guest memory as the buffers of an I/O, without a copy.
//!
//! Invariant: who has lent buffers gets the I/O that holds them back before the loan ends; a loan that is dropped before
//! keeps the mapping for ever, as whoever has the buffers may still write to them.

use std::rc::Rc;

use penstock_bdev::Sg;
use penstock_reactor::mem::Buf;

use super::map::Held;

/// The guest memory of one request: keeps the mapping alive while a device has it.
#[derive(Debug, Default)]
pub(crate) struct Loan {
    held: Option<Rc<Held>>,
}

impl Loan {
    /// Begins: what is lent from now on is looked up in `held`.
    pub(crate) fn begin(&mut self, held: &Rc<Held>) {
        self.held = Some(Rc::clone(held));
    }

    /// The table of this loan.
    pub(crate) fn held(&self) -> Option<&Rc<Held>> {
        self.held.as_ref()
    }

    /// Appends `len` bytes of the guest's at `gpa` to `list`; false, with a part of them in it, where not all are there or
    /// the list is full.
    pub(crate) fn lend(&self, list: &mut Sg, gpa: u64, len: u32) -> bool {
        let Some(held) = &self.held else { return false };
        let (mut at, mut left) = (gpa, len);
        while left > 0 {
            let Some((ptr, room)) = held.locate(at) else { return false };
            if list.segments() >= Sg::SEGMENTS_MAX {
                return false;
            }
            let count = u32::try_from(room).unwrap_or(u32::MAX).min(left);
            // SAFETY: `count` bytes from `ptr` on are mapped for as long as `held` lives, which this loan keeps until the
            // I/O with the buffers is back; the other side is a guest, which puts up with what DMA does.
            list.push(unsafe { Buf::foreign(ptr, count) });
            left -= count;
            at = at.saturating_add(u64::from(count));
        }
        true
    }

    /// Ends: `list` is what the buffers were lent to, back from the device.
    pub(crate) fn end(&mut self, list: &mut Sg) {
        list.clear();
        self.held = None;
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            #[expect(clippy::mem_forget, reason = "a device may still write there: better lost than reused")]
            std::mem::forget(held);
        }
    }
}
