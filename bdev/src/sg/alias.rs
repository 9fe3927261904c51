//! A list of buffers whose parts are lent out: how the pieces of an I/O get their buffers.
//!
//! Invariants, which make every view sound: the list outlives its views, as those that are out are counted, a view counts
//! as back only by being handed in, and a lender that is dropped before leaks the list; no two views overlap, as parts
//! are lent in ascending order until all are back; nobody looks at the list's bytes while a view is out.

use std::ptr::NonNull;

use penstock_reactor::mem::Buf;

use super::Sg;

/// The buffers of an I/O, some of them perhaps lent to its pieces.
#[derive(Debug, Default)]
pub(crate) struct Lender {
    list: Sg,
    /// Views that are not back.
    views: usize,
    /// Up to which byte parts were lent since all were back.
    lent_to: usize,
}

impl Lender {
    pub(crate) fn new(list: Sg) -> Self {
        Self { list, views: 0, lent_to: 0 }
    }

    /// Fills `piece` with views of `len` bytes of the list, from byte `at` on.
    ///
    /// # Panics
    /// When the part is not in the list, or before one that was lent since all views were back.
    pub(crate) fn lend(&mut self, piece: &mut Sg, at: usize, len: usize) {
        assert!(self.views == 0 || at >= self.lent_to, "parts are lent in ascending order");
        piece.clear();
        let (mut skip, mut left) = (at, len);
        for buf in self.list.iter_mut() {
            if skip >= buf.len() {
                skip -= buf.len();
                continue;
            }
            let count = (buf.len() - skip).min(left);
            if count == 0 {
                break;
            }
            let start = NonNull::new(buf.as_mut_ptr().wrapping_add(skip));
            let (Some(start), Ok(count_u32)) = (start, u32::try_from(count)) else { break };
            // SAFETY: `count` initialised bytes of a buffer of the list, from its byte `skip` on; that they stay valid
            // and unshared until the view is back is the module's invariant, kept by `views`, `lent_to` and `Drop`.
            piece.push(unsafe { Buf::foreign(start, count_u32) });
            self.views += 1;
            left -= count;
            skip = 0;
        }
        assert!(left == 0, "the piece lies inside the list");
        self.lent_to = at + len;
    }

    /// Empties `piece`; views of this list that were in it are back.
    pub(crate) fn take_back(&mut self, piece: &mut Sg) {
        if self.views > 0 {
            let back = piece.iter().filter(|buf| !buf.is_pooled() && self.list.holds(buf)).count();
            self.views -= back;
        }
        piece.clear();
    }

    /// The buffers.
    ///
    /// # Panics
    /// While a view is out.
    pub(crate) fn list(&self) -> &Sg {
        assert!(self.views == 0, "nobody looks at buffers that are lent");
        &self.list
    }

    /// The buffers, for good.
    ///
    /// # Panics
    /// While a view is out.
    pub(crate) fn take(&mut self) -> Sg {
        assert!(self.views == 0, "lent buffers are not given away");
        std::mem::take(&mut self.list)
    }
}

impl Drop for Lender {
    fn drop(&mut self) {
        if self.views > 0 {
            #[expect(
                clippy::mem_forget,
                reason = "who has a view may still write to it: better lost than reused"
            )]
            std::mem::forget(std::mem::take(&mut self.list));
        }
    }
}

impl Sg {
    /// Whether `view` lies in one of the buffers.
    fn holds(&self, view: &Buf) -> bool {
        let first = view.as_ptr().addr();
        self.iter().any(|buf| {
            let base = buf.as_ptr().addr();
            first >= base && first - base < buf.len()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lender() -> Lender {
        Lender::new([512, 4096, 512].iter().map(|len| Buf::zeroed(*len).unwrap()).collect())
    }

    #[test]
    fn what_is_put_into_views_is_in_the_list_when_they_are_back() {
        let mut lender = lender();
        let (mut first, mut second) = (Sg::new(), Sg::new());
        lender.lend(&mut first, 256, 1000);
        lender.lend(&mut second, 1256, 3864);
        assert_eq!((first.segments(), second.segments()), (2, 2));
        first.iter_mut().for_each(|buf| buf.fill(1));
        second.iter_mut().for_each(|buf| buf.fill(2));
        lender.take_back(&mut second);
        lender.take_back(&mut first);
        let mut bytes = vec![9; 5120];
        lender.list().copy_out(0, &mut bytes);
        assert_eq!(bytes, [vec![0; 256], vec![1; 1000], vec![2; 3864]].concat());
        // All is back: it begins anew.
        lender.lend(&mut first, 0, 512);
        lender.take_back(&mut first);
        assert_eq!(lender.take().len_bytes(), 5120);
    }

    #[test]
    #[should_panic(expected = "ascending order")]
    fn a_part_is_not_lent_twice() {
        let (mut lender, mut first, mut second) = (lender(), Sg::new(), Sg::new());
        lender.lend(&mut first, 0, 1024);
        lender.lend(&mut second, 512, 512);
    }

    #[test]
    #[should_panic(expected = "lent buffers are not given away")]
    fn lent_buffers_stay_until_the_last_view_is_back() {
        let (mut lender, mut first, mut other) = (lender(), Sg::new(), Sg::new());
        lender.lend(&mut first, 0, 1024);
        other.push(Buf::zeroed(512).unwrap());
        lender.take_back(&mut other);
        lender.take();
    }
}
