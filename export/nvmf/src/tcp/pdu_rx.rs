//! Where a connection is in the stream of PDUs that comes in.

use penstock_spec::nvme_tcp::{CheckedHdr, CommonHdr, DIGEST_LEN, HLEN_MAX, PduError, RxRules};
use zerocopy::FromBytes;

/// The longest header with its digest, in bytes.
pub(crate) const HDR_MAX: usize = HLEN_MAX + DIGEST_LEN;

/// What part of a PDU comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The header and its digest.
    Header,
    /// Padding.
    Pad,
    /// Data.
    Data,
    /// The data's digest.
    Digest,
}

/// The PDU whose header has come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pdu {
    /// Whose data it brings; `None`: nobody wants it.
    pub(crate) slot: Option<u16>,
    /// Where the data goes in the request's.
    pub(crate) at: u32,
    pub(crate) pad_left: u32,
    pub(crate) data_len: u32,
    pub(crate) data_left: u32,
    pub(crate) has_digest: bool,
}

/// The receiving side of a connection.
#[derive(Debug)]
pub(crate) struct Rx {
    pub(crate) phase: Phase,
    pub(crate) pdu: Pdu,
    hdr: [u8; HDR_MAX],
    hdr_len: usize,
    digest: [u8; DIGEST_LEN],
    digest_len: usize,
}

/// What was found at the beginning of some bytes.
pub(crate) enum Frame {
    /// Not yet a whole header; so many bytes of it must be there before it is worth looking again.
    Short(usize),
    /// A header with its digest of so many bytes.
    Hdr(CheckedHdr, usize),
    /// A header that breaks the rules.
    Bad(PduError),
}

/// Looks for a header at the beginning of `bytes`.
#[inline]
pub(crate) fn frame(bytes: &[u8], rules: &RxRules) -> Frame {
    let Ok((ch, _)) = CommonHdr::ref_from_prefix(bytes) else { return Frame::Short(CommonHdr::LEN) };
    match CheckedHdr::parse(ch, rules) {
        Err(error) => Frame::Bad(error),
        Ok(hdr) => {
            let need = usize::from(hdr.psh_end());
            if bytes.len() < need { Frame::Short(need) } else { Frame::Hdr(hdr, need) }
        }
    }
}

impl Rx {
    pub(crate) const fn new() -> Self {
        let pdu = Pdu { slot: None, at: 0, pad_left: 0, data_len: 0, data_left: 0, has_digest: false };
        Self {
            phase: Phase::Header,
            pdu,
            hdr: [0; HDR_MAX],
            hdr_len: 0,
            digest: [0; DIGEST_LEN],
            digest_len: 0,
        }
    }

    /// Whether a part of a header is kept.
    #[inline]
    pub(crate) fn has_part(&self) -> bool {
        self.hdr_len > 0
    }

    /// The part of a header that is kept.
    pub(crate) fn part(&self) -> &[u8] {
        self.hdr.get(..self.hdr_len).unwrap_or_default()
    }

    /// Takes bytes out of `rest` until `want` bytes of the header are kept, as far as there are so many.
    pub(crate) fn keep(&mut self, rest: &mut &[u8], want: usize) {
        let count = want.saturating_sub(self.hdr_len).min(rest.len());
        let (now, later) = rest.split_at(count);
        if let Some(to) = self.hdr.get_mut(self.hdr_len..self.hdr_len + count) {
            to.copy_from_slice(now);
            self.hdr_len += count;
        }
        *rest = later;
    }

    /// The kept header, to be handled, and its length; nothing is kept any more.
    pub(crate) fn take_part(&mut self) -> ([u8; HDR_MAX], usize) {
        (self.hdr, std::mem::take(&mut self.hdr_len))
    }

    /// Takes bytes of a data digest out of `rest`; the digest once it is whole.
    pub(crate) fn take_digest(&mut self, rest: &mut &[u8]) -> Option<[u8; DIGEST_LEN]> {
        let count = (DIGEST_LEN - self.digest_len).min(rest.len());
        let (now, later) = rest.split_at(count);
        if let Some(to) = self.digest.get_mut(self.digest_len..self.digest_len + count) {
            to.copy_from_slice(now);
        }
        self.digest_len += count;
        *rest = later;
        if self.digest_len < DIGEST_LEN {
            return None;
        }
        self.digest_len = 0;
        Some(self.digest)
    }

    /// A PDU's header has been handled: its padding and data follow.
    #[inline]
    pub(crate) fn begin(&mut self, pdu: Pdu) {
        self.pdu = pdu;
        self.phase = match (pdu.data_len, pdu.pad_left) {
            (0, _) => Phase::Header,
            (_, 0) => Phase::Data,
            _ => Phase::Pad,
        };
    }
}
