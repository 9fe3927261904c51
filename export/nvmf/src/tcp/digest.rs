//! CRC32C, as NVMe/TCP uses it for headers and data.

use penstock_spec::nvme_tcp::DIGEST_LEN;

/// The digest of `bytes`, as it stands on the wire.
#[inline]
pub(crate) fn digest(bytes: &[u8]) -> [u8; DIGEST_LEN] {
    crc_fast::crc32_iscsi(bytes).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_crc_of_rfc_3720_in_its_byte_order() {
        // RFC 3720, B.4: 32 bytes of zeroes, of ones, and 0, 1, 2, …
        assert_eq!(digest(&[0; 32]), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(digest(&[0xff; 32]), [0x43, 0xab, 0xa8, 0x62]);
        let counted: Vec<u8> = (0..32).collect();
        assert_eq!(digest(&counted), [0x4e, 0x79, 0xdd, 0x46]);
    }
}
