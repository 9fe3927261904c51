//! A second list over a part of another list's bytes: how a piece of an I/O gets its buffers.

use std::ptr::NonNull;

use penstock_reactor::mem::Buf;

use super::Sg;

impl Sg {
    /// Fills `piece` with views of `len` bytes of this list, from byte `at` on.
    ///
    /// # Safety
    /// Until every buffer of `piece` has been dropped, this list is neither dropped, nor changed, nor read where a piece
    /// is being filled.
    pub(crate) unsafe fn alias_into(&mut self, piece: &mut Self, at: usize, len: usize) {
        let (mut skip, mut left) = (at, len);
        piece.clear();
        for buf in self.iter_mut() {
            if skip >= buf.len() {
                skip -= buf.len();
                continue;
            }
            let count = (buf.len() - skip).min(left);
            if count == 0 {
                break;
            }
            let (Some(ptr), Ok(count_u32)) =
                (NonNull::new(buf.as_mut_ptr().wrapping_add(skip)), u32::try_from(count))
            else {
                break;
            };
            // SAFETY: `count` bytes of a buffer that the caller keeps for as long as the view lives.
            piece.push(unsafe { Buf::foreign(ptr, count_u32) });
            left -= count;
            skip = 0;
        }
        assert!(left == 0, "the piece lies inside the list");
    }
}
