//! Authentication Send and Receive commands (Base 6.1, 6.2; 8.3.5 "NVMe In-band Authentication").

use zerocopy::little_endian::{U16, U32};

use crate::nvme::command::sqe_view;
use crate::nvme::sgl::SglDescriptor;

/// SECP of NVMe in-band authentication.
pub const SECP_NVME: u8 = 0xe9;

wire! {
    /// Authentication Send and Authentication Receive (the same layout; `len` is TL or AL).
    pub struct AuthCmd[64] {
        /// Opcode 7Fh.
        pub opc @ 0: u8,
        /// FUSE and PSDT.
        pub flags @ 1: u8,
        /// Command Identifier.
        pub cid @ 2: U16,
        /// Fabrics Command Type: 05h send, 06h receive.
        pub fctype @ 4: u8,
        rsvd5 @ 5: [u8; 19],
        /// SGL Entry 1.
        pub sgl1 @ 24: SglDescriptor,
        rsvd40 @ 40: u8,
        /// SP Specific 0: 01h.
        pub spsp0 @ 41: u8,
        /// SP Specific 1: 01h.
        pub spsp1 @ 42: u8,
        /// Security Protocol: E9h.
        pub secp @ 43: u8,
        /// Transfer Length (send) or Allocation Length (receive), bytes.
        pub len_bytes @ 44: U32,
        rsvd48 @ 48: [u8; 16],
    }
}

sqe_view!(AuthCmd);

codes! {
    /// AUTH_TYPE of an authentication message.
    pub struct AuthType(u8) {
        COMMON = 0x00, "common message";
        DH_HMAC_CHAP = 0x01, "DH-HMAC-CHAP message";
    }
}

codes! {
    /// AUTH_ID of an authentication message (both types).
    pub struct AuthId(u8) {
        NEGOTIATE = 0x00, "AUTH_Negotiate";
        CHALLENGE = 0x01, "DH-HMAC-CHAP_Challenge";
        REPLY = 0x02, "DH-HMAC-CHAP_Reply";
        SUCCESS1 = 0x03, "DH-HMAC-CHAP_Success1";
        SUCCESS2 = 0x04, "DH-HMAC-CHAP_Success2";
        FAILURE2 = 0xf0, "AUTH_Failure2";
        FAILURE1 = 0xf1, "AUTH_Failure1";
    }
}

wire! {
    /// Head that all authentication messages share.
    pub struct AuthMessageHdr[6] {
        /// Authentication Type.
        pub auth_type @ 0: AuthType,
        /// Authentication message identifier.
        pub auth_id @ 1: AuthId,
        rsvd2 @ 2: [u8; 2],
        /// Transaction Identifier.
        pub t_id @ 4: U16,
    }
}
