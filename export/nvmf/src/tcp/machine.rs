//! The connection's machine, as its socket sees it.

use std::io::IoSlice;

use penstock_reactor::net::{Machine, PIECES_MAX};

use super::conn::{Conn, Sink};

impl<L, S: Sink<Link = L>> Machine<S> for Conn<L> {
    #[inline]
    fn wants_bytes(&self) -> bool {
        Self::wants_bytes(self)
    }

    #[inline]
    fn direct(&mut self) -> Option<&mut [u8]> {
        Self::direct(self)
    }

    #[inline]
    fn room_bytes(&self) -> usize {
        Self::room_bytes(self)
    }

    #[inline]
    fn direct_came(&mut self, len: usize, sink: &mut S) {
        Self::direct_came(self, len, sink);
    }

    #[inline]
    fn receive(&mut self, bytes: &[u8], sink: &mut S) {
        Self::receive(self, bytes, sink);
    }

    #[inline]
    fn is_amid(&self) -> bool {
        Self::is_amid(self)
    }

    #[inline]
    fn has_unsent(&self) -> bool {
        !self.tx.is_empty()
    }

    #[inline]
    fn gather<'a>(&'a self, pieces: &mut [IoSlice<'a>; PIECES_MAX]) -> (usize, usize) {
        self.tx.gather(self.slab(), pieces)
    }

    #[inline]
    fn sent(&mut self, len: usize, sink: &mut S) {
        Self::sent(self, len, sink);
    }
}
