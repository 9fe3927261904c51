//! What a command's data lies in.

/// Memory that a command reads from or writes to, in one or several pieces.
///
/// The bytes must not change and the pieces must not move while a command that writes owns the payload:
/// a driver may have given their addresses to the kernel.
pub trait Payload {
    /// Length of the whole, in bytes.
    fn len_bytes(&self) -> usize;

    /// The longest contiguous piece from `off` on; empty only at the end.
    fn chunk(&self, off: usize) -> &[u8];

    /// The longest contiguous piece from `off` on; empty only at the end.
    fn chunk_mut(&mut self, off: usize) -> &mut [u8];
}

/// A payload in one piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contiguous<T>(pub T);

impl<T: AsRef<[u8]> + AsMut<[u8]>> Payload for Contiguous<T> {
    fn len_bytes(&self) -> usize {
        self.0.as_ref().len()
    }

    fn chunk(&self, off: usize) -> &[u8] {
        self.0.as_ref().get(off..).unwrap_or_default()
    }

    fn chunk_mut(&mut self, off: usize) -> &mut [u8] {
        self.0.as_mut().get_mut(off..).unwrap_or_default()
    }
}

impl Payload for Vec<u8> {
    fn len_bytes(&self) -> usize {
        self.len()
    }

    fn chunk(&self, off: usize) -> &[u8] {
        self.get(off..).unwrap_or_default()
    }

    fn chunk_mut(&mut self, off: usize) -> &mut [u8] {
        self.get_mut(off..).unwrap_or_default()
    }
}

impl Payload for Box<[u8]> {
    fn len_bytes(&self) -> usize {
        self.len()
    }

    fn chunk(&self, off: usize) -> &[u8] {
        self.get(off..).unwrap_or_default()
    }

    fn chunk_mut(&mut self, off: usize) -> &mut [u8] {
        self.get_mut(off..).unwrap_or_default()
    }
}
