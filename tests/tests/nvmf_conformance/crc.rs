//! CRC32C, bit by bit, as RFC 3385 has it: the digest of headers and data (TCP Transport 3.3.1.1).

/// The digest as it stands on the wire.
pub(crate) fn digest(bytes: &[u8]) -> [u8; 4] {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    (!crc).to_le_bytes()
}

#[test]
fn the_digest_is_the_standards() {
    // RFC 3720, B.4: 32 bytes of zeroes, of ones, and incrementing.
    assert_eq!(digest(&[0; 32]), [0xaa, 0x36, 0x91, 0x8a]);
    assert_eq!(digest(&[0xff; 32]), [0x43, 0xab, 0xa8, 0x62]);
    assert_eq!(digest(&(0..32).collect::<Vec<u8>>()), [0x4e, 0x79, 0xdd, 0x46]);
}
