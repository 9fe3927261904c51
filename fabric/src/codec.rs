//! Codecs of stored bytes: LZ4 (blocks, `lz4_flex`) and Zstandard (frames, `zstd`), with working memory of their own.
//!
//! Whether something is stored encoded is decided where it is stored: only what becomes smaller by [`pays`] is.

use std::fmt;

use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};

use crate::format::FormatError;
use crate::id::BLOCK_BYTES;

/// Level of Zstandard: speed matters more than the last per cent.
const ZSTD_LEVEL: i32 = 1;
/// Bytes that are encoded or decoded at once at most: an extent.
pub const DECODED_MAX: usize = crate::format::egroup::EXTENT_BLOCKS_MAX * BLOCK_BYTES;

/// How bytes are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Codec {
    /// As they are.
    #[default]
    Raw = 0,
    /// An LZ4 block.
    Lz4 = 1,
    /// A Zstandard frame.
    Zstd = 2,
}

impl Codec {
    /// The codec of a code on disk.
    ///
    /// # Errors
    /// [`FormatError::Field`].
    pub fn of(code: u8) -> Result<Self, FormatError> {
        match code {
            0 => Ok(Self::Raw),
            1 => Ok(Self::Lz4),
            2 => Ok(Self::Zstd),
            _ => Err(FormatError::Field { field: "codec" }),
        }
    }
}

/// What becomes of a shard's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Compression {
    /// The codec.
    pub codec: Codec,
    /// When it is drained, and in the log; else later, by [`Lane::compress`](crate::lane::Lane::compress).
    pub inline: bool,
}

/// Whether `stored` bytes instead of `decoded` are worth it: an eighth less.
#[must_use]
pub fn pays(stored: usize, decoded: usize) -> bool {
    stored <= decoded - decoded / 8
}

/// The codecs' working memory.
pub struct Coder {
    small: CompressTable,
    large: CompressTable,
    zstd: Option<(zstd::bulk::Compressor<'static>, zstd::bulk::Decompressor<'static>)>,
    input: Box<[u8]>,
    output: Box<[u8]>,
}

impl fmt::Debug for Coder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coder").finish_non_exhaustive()
    }
}

impl Default for Coder {
    fn default() -> Self {
        Self::new()
    }
}

impl Coder {
    /// New working memory: about 1 MiB.
    #[must_use]
    pub fn new() -> Self {
        let zstd = zstd::bulk::Compressor::new(ZSTD_LEVEL).ok().zip(zstd::bulk::Decompressor::new().ok());
        let output = get_maximum_output_size(DECODED_MAX).max(zstd::zstd_safe::compress_bound(DECODED_MAX));
        Self {
            small: CompressTable::small(),
            large: CompressTable::large(),
            zstd,
            input: vec![0; DECODED_MAX].into_boxed_slice(),
            output: vec![0; output].into_boxed_slice(),
        }
    }

    /// Room for `len` bytes (at most [`DECODED_MAX`]) that [`Self::encode`] encodes.
    pub fn input(&mut self, len: usize) -> &mut [u8] {
        self.input.get_mut(..len).unwrap_or_default()
    }

    /// Encodes the first `len` bytes of [`Self::input`]; `None` where that does not pay.
    pub fn encode(&mut self, codec: Codec, len: usize) -> Option<&[u8]> {
        let input = self.input.get(..len)?;
        let stored = match codec {
            Codec::Raw => return None,
            Codec::Lz4 => {
                let table = if len < usize::from(u16::MAX) { &mut self.small } else { &mut self.large };
                compress_into_with_table(input, &mut self.output, table).ok()?
            }
            Codec::Zstd => self.zstd.as_mut()?.0.compress_to_buffer(input, &mut self.output[..]).ok()?,
        };
        if pays(stored, len) { self.output.get(..stored) } else { None }
    }

    /// Decodes `stored` into exactly `len` bytes (at most [`DECODED_MAX`]); `None` where it is nothing that an encoder made.
    pub fn decode(&mut self, codec: Codec, stored: &[u8], len: usize) -> Option<&[u8]> {
        let room = self.output.get_mut(..len)?;
        let decoded = match codec {
            Codec::Raw => return None,
            Codec::Lz4 => decompress_into(stored, room).ok()?,
            Codec::Zstd => self.zstd.as_mut()?.1.decompress_to_buffer(stored, room).ok()?,
        };
        if decoded == len { self.output.get(..len) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_pays_comes_back_and_what_is_cut_does_not(
            seed in prop::collection::vec(any::<u8>(), 1..200), blocks in 1..=16_usize, zstd: bool,
        ) {
            let codec = if zstd { Codec::Zstd } else { Codec::Lz4 };
            let bytes: Vec<u8> = seed.iter().copied().cycle().take(blocks * BLOCK_BYTES).collect();
            let mut coder = Coder::new();
            coder.input(bytes.len()).copy_from_slice(&bytes);
            let stored = coder.encode(codec, bytes.len()).map(<[u8]>::to_vec);
            let Some(stored) = stored else { panic!("what repeats itself does not shrink") };
            prop_assert_eq!(coder.decode(codec, &stored, bytes.len()), Some(&bytes[..]));
            prop_assert_eq!(coder.decode(codec, &stored[..stored.len() - 1], bytes.len()), None);
            prop_assert_eq!(coder.decode(codec, &stored, bytes.len() - 1), None);
        }

        #[test]
        fn foreign_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..5000), zstd: bool) {
            let codec = if zstd { Codec::Zstd } else { Codec::Lz4 };
            let mut coder = Coder::new();
            let len = coder.decode(codec, &bytes, DECODED_MAX).map_or(DECODED_MAX, <[u8]>::len);
            prop_assert_eq!(len, DECODED_MAX);
        }
    }

    #[test]
    fn noise_is_left_as_it_is() {
        let mut rng = penstock_reactor::rng::Rng::seeded(1);
        let mut coder = Coder::new();
        for word in coder.input(DECODED_MAX).chunks_mut(8) {
            word.copy_from_slice(&rng.next_u64().to_le_bytes());
        }
        assert!(
            coder.encode(Codec::Lz4, DECODED_MAX).is_none()
                && coder.encode(Codec::Zstd, DECODED_MAX).is_none()
        );
    }
}
