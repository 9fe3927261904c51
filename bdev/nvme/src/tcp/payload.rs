//! An I/O as its own command's payload.

use penstock_bdev::{Io, Sg};
use penstock_nvme_tcp::Payload;

/// The longest data of a command that are not the I/O's own: one source range of Copy.
pub(super) const EXTRA_BYTES: usize = 32;

/// An I/O with what its command needs beside its buffers. The qpair holds it as long as the kernel may read or write them.
#[derive(Debug)]
pub struct IoPayload {
    /// The I/O.
    pub(super) io: Box<Io>,
    /// What is sent in place of the I/O's buffers: ranges of Dataset Management or Copy.
    pub(super) extra: Option<[u8; EXTRA_BYTES]>,
}

impl Payload for IoPayload {
    fn len_bytes(&self) -> usize {
        match &self.extra {
            Some(extra) => extra.len(),
            None => self.io.data.len_bytes(),
        }
    }

    fn chunk(&self, off: usize) -> &[u8] {
        if let Some(extra) = &self.extra {
            return extra.get(off..).unwrap_or_default();
        }
        let mut skip = off;
        for buf in self.io.data.iter() {
            match buf.get(skip..) {
                Some(rest) if !rest.is_empty() => return rest,
                _ => skip -= buf.len(),
            }
        }
        &[]
    }

    fn chunk_mut(&mut self, off: usize) -> &mut [u8] {
        if let Some(extra) = &mut self.extra {
            return extra.get_mut(off..).unwrap_or_default();
        }
        let data: &mut Sg = &mut self.io.data;
        let mut skip = off;
        for buf in data.iter_mut() {
            if skip < buf.len() {
                return buf.get_mut(skip..).unwrap_or_default();
            }
            skip -= buf.len();
        }
        &mut []
    }
}

#[cfg(test)]
mod tests {
    use penstock_reactor::mem::Buf;

    use super::*;

    #[test]
    fn chunks_follow_the_buffers_and_end_with_them() {
        let mut io = Io::boxed();
        for len in [512, 4096] {
            io.data.push(Buf::zeroed(len).unwrap());
        }
        let mut payload = IoPayload { io, extra: None };
        assert_eq!(payload.len_bytes(), 4608);
        assert_eq!([0, 511, 512, 4607, 4608].map(|off| payload.chunk(off).len()), [512, 1, 4096, 1, 0]);
        assert_eq!([0, 511, 512, 4607, 4608].map(|off| payload.chunk_mut(off).len()), [512, 1, 4096, 1, 0]);
        payload.extra = Some([7; EXTRA_BYTES]);
        assert_eq!((payload.len_bytes(), payload.chunk(30)), (32, &[7, 7][..]));
    }
}
