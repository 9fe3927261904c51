//! A scatter-gather list: the buffers of one I/O, in order.

mod alias;

use penstock_reactor::mem::Buf;

pub(crate) use alias::Lender;

/// Buffers of one I/O. One buffer costs no allocation; a list that grew keeps its room when it is cleared, so an
/// [`Io`](crate::Io) that is used again allocates nothing.
#[derive(Debug, Default)]
pub struct Sg {
    first: Option<Buf>,
    rest: Vec<Buf>,
}

impl Sg {
    /// Buffers in one list at most (virtio's usual `seg_max`).
    pub const SEGMENTS_MAX: usize = 256;

    /// An empty list.
    #[must_use]
    pub const fn new() -> Self {
        Self { first: None, rest: Vec::new() }
    }

    /// Appends a buffer.
    ///
    /// # Panics
    /// Beyond [`Self::SEGMENTS_MAX`] buffers.
    #[inline]
    pub fn push(&mut self, buf: Buf) {
        if self.first.is_none() {
            self.first = Some(buf);
            return;
        }
        assert!(self.rest.len() + 1 < Self::SEGMENTS_MAX, "more than {} segments", Self::SEGMENTS_MAX);
        self.rest.push(buf);
    }

    /// Takes the only buffer out; `None` where there are none or several.
    #[inline]
    pub fn take_single(&mut self) -> Option<Buf> {
        if self.rest.is_empty() { self.first.take() } else { None }
    }

    /// Takes the first buffer out.
    pub fn pop_front(&mut self) -> Option<Buf> {
        let first = self.first.take()?;
        if !self.rest.is_empty() {
            self.first = Some(self.rest.remove(0));
        }
        Some(first)
    }

    /// Drops all buffers.
    #[inline]
    pub fn clear(&mut self) {
        self.first = None;
        self.rest.clear();
    }

    /// Whether there is no buffer.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// How many buffers.
    #[must_use]
    pub fn segments(&self) -> usize {
        usize::from(self.first.is_some()) + self.rest.len()
    }

    /// Bytes in all buffers.
    #[inline]
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.iter().map(|buf| buf.len()).sum()
    }

    /// The buffers, in order.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = &Buf> {
        self.first.iter().chain(&self.rest)
    }

    /// The buffers, in order.
    #[inline]
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Buf> {
        self.first.iter_mut().chain(&mut self.rest)
    }

    /// Where this list's bytes, from byte `at` on, first differ from `other`, counted from `at`.
    #[must_use]
    pub fn first_difference(&self, at: usize, other: &[u8]) -> Option<usize> {
        let (mut skip, mut done) = (at, 0);
        for buf in self.iter() {
            let Some(mine) = buf.get(skip..) else {
                skip -= buf.len();
                continue;
            };
            skip = 0;
            let theirs = other.get(done..)?;
            if let Some(offset) = mine.iter().zip(theirs).position(|(mine, theirs)| mine != theirs) {
                return Some(done + offset);
            }
            done += mine.len().min(theirs.len());
        }
        None
    }

    /// Copies `from` over the list's bytes, from byte `at` on; returns how many bytes fitted.
    pub fn copy_in(&mut self, at: usize, from: &[u8]) -> usize {
        let (mut skip, mut left) = (at, from);
        for buf in self.iter_mut() {
            let Some(room) = buf.get_mut(skip..) else {
                skip -= buf.len();
                continue;
            };
            skip = 0;
            let (now, later) = left.split_at(room.len().min(left.len()));
            if let Some(to) = room.get_mut(..now.len()) {
                to.copy_from_slice(now);
            }
            left = later;
        }
        from.len() - left.len()
    }

    /// Copies the list's bytes, from byte `at` on, over `to`; returns how many there were.
    pub fn copy_out(&self, at: usize, to: &mut [u8]) -> usize {
        let (mut skip, mut done) = (at, 0);
        for buf in self.iter() {
            let Some(there) = buf.get(skip..) else {
                skip -= buf.len();
                continue;
            };
            skip = 0;
            let count = there.len().min(to.len() - done);
            if let (Some(to), Some(from)) = (to.get_mut(done..done + count), there.get(..count)) {
                to.copy_from_slice(from);
            }
            done += count;
        }
        done
    }
}

impl FromIterator<Buf> for Sg {
    fn from_iter<I: IntoIterator<Item = Buf>>(bufs: I) -> Self {
        let mut list = Self::new();
        bufs.into_iter().for_each(|buf| list.push(buf));
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_copied_in_across_buffers_come_out_again() {
        let mut list: Sg = [512, 4096, 512].iter().map(|len| Buf::zeroed(*len).unwrap()).collect();
        let bytes: Vec<u8> = (0..=u8::MAX).cycle().take(5000).collect();
        assert_eq!(list.copy_in(100, &bytes), 5000);
        let mut back = vec![0; 6000];
        assert_eq!(list.copy_out(100, &mut back), 5020);
        assert_eq!((&back[..5000], &back[5000..5020]), (&bytes[..], &[0; 20][..]));
        assert_eq!(list.copy_in(5119, &[1, 2]), 1);
        assert_eq!(list.copy_in(9000, &[1]), 0);
    }
}
