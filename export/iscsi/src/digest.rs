//! CRC32C, as iSCSI uses it for headers and data (RFC 7143, 13.1).

use penstock_spec::iscsi::DIGEST_LEN;

/// The digest of `bytes`, as it stands on the wire.
#[inline]
pub(crate) fn digest(bytes: &[u8]) -> [u8; DIGEST_LEN] {
    crc_fast::crc32_iscsi(bytes).to_le_bytes()
}

/// The digest of data with their padding, `pad` bytes of zero.
#[inline]
pub(crate) fn padded_digest(bytes: &[u8], pad: usize) -> [u8; DIGEST_LEN] {
    pieces_digest(std::iter::once(bytes), pad)
}

/// As [`padded_digest`], of data that lie in pieces.
pub(crate) fn pieces_digest<'a>(pieces: impl Iterator<Item = &'a [u8]>, pad: usize) -> [u8; DIGEST_LEN] {
    let mut crc = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    pieces.for_each(|bytes| crc.update(bytes));
    crc.update([0; 3].get(..pad).unwrap_or_default());
    u32::try_from(crc.finalize()).unwrap_or(0).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_crc_of_rfc_7143_in_its_byte_order() {
        // RFC 7143, appendix A.4: 32 bytes of zeroes and of ones.
        assert_eq!(digest(&[0; 32]), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(digest(&[0xff; 32]), [0x43, 0xab, 0xa8, 0x62]);
        assert_eq!(padded_digest(&[0; 29], 3), digest(&[0; 32]));
    }
}
