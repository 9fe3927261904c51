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

codes! {
    /// Failure Reason Code Explanation of AUTH_Failure1 and AUTH_Failure2 (Base 8.3.5.5.5).
    pub struct AuthFailureReason(u8) {
        FAILED = 0x01, "Authentication failed";
        PROTOCOL_UNUSABLE = 0x02, "Authentication protocol not usable";
        CONCATENATION_MISMATCH = 0x03, "Secure channel concatenation mismatch";
        HASH_UNUSABLE = 0x04, "Hash function not usable";
        DHGROUP_UNUSABLE = 0x05, "DH group not usable";
        INCORRECT_PAYLOAD = 0x06, "Incorrect payload";
        INCORRECT_MESSAGE = 0x07, "Incorrect protocol message";
    }
}

codes! {
    /// Secure Channel Concatenation of AUTH_Negotiate (Base 8.3.5.5.2).
    pub struct SecureChannel(u8) {
        NONE = 0x00, "no secure channel concatenation";
        NEW_TLS_PSK = 0x02, "a TLS PSK is generated";
        REPLACE_TLS_PSK = 0x03, "the TLS PSK in use is replaced";
    }
}

/// Failure Reason Code: authentication failure, the only one.
pub const AUTH_FAILURE: u8 = 0x01;

/// Authentication Protocol Identifier of DH-HMAC-CHAP in AUTH_Negotiate.
pub const PROTOCOL_DH_HMAC_CHAP: u8 = 0x01;

/// Identifiers in each of the two lists of an [`AuthProtocol`].
pub const AUTH_IDS_MAX: usize = 30;

wire! {
    /// AUTH_Negotiate, followed by `napd` times [`AuthProtocol`] (Base 8.3.5.5.2).
    pub struct AuthNegotiate[8] {
        /// Common message, AUTH_Negotiate.
        pub hdr @ 0: AuthMessageHdr,
        /// Secure Channel Concatenation.
        pub sc_c @ 6: SecureChannel,
        /// Number of Authentication Protocol Descriptors.
        pub napd @ 7: u8,
    }
}

wire! {
    /// Authentication Protocol Descriptor of DH-HMAC-CHAP.
    pub struct AuthProtocol[64] {
        /// Authentication Protocol Identifier.
        pub authid @ 0: u8,
        rsvd1 @ 1: u8,
        /// Hash identifiers in `hashes`.
        pub halen @ 2: u8,
        /// Group identifiers in `dhgroups`.
        pub dhlen @ 3: u8,
        /// Hash functions that the host can use.
        pub hashes @ 4: [u8; AUTH_IDS_MAX],
        /// Diffie-Hellman groups that the host can use.
        pub dhgroups @ 34: [u8; AUTH_IDS_MAX],
    }
}

wire! {
    /// DH-HMAC-CHAP_Challenge, followed by the challenge (`hl` bytes) and the DH value (`dhvlen` bytes).
    pub struct DhchapChallenge[16] {
        /// DH-HMAC-CHAP message, Challenge.
        pub hdr @ 0: AuthMessageHdr,
        /// Hash Length, bytes.
        pub hl @ 6: u8,
        rsvd7 @ 7: u8,
        /// Hash function.
        pub hash_id @ 8: u8,
        /// Diffie-Hellman group.
        pub dhg_id @ 9: u8,
        /// DH Value Length, bytes.
        pub dhvlen @ 10: U16,
        /// Sequence Number.
        pub seqnum @ 12: U32,
    }
}

wire! {
    /// DH-HMAC-CHAP_Reply, followed by the response (`hl` bytes), the host's challenge (`hl` bytes) and its DH value.
    pub struct DhchapReply[16] {
        /// DH-HMAC-CHAP message, Reply.
        pub hdr @ 0: AuthMessageHdr,
        /// Hash Length, bytes.
        pub hl @ 6: u8,
        rsvd7 @ 7: u8,
        /// Challenge Valid: the host wants the controller to authenticate itself.
        pub cvalid @ 8: u8,
        rsvd9 @ 9: u8,
        /// DH Value Length, bytes.
        pub dhvlen @ 10: U16,
        /// Sequence Number of the host's challenge; 0 where the host wants no authentication of the controller.
        pub seqnum @ 12: U32,
    }
}

wire! {
    /// DH-HMAC-CHAP_Success1, followed by the controller's response (`hl` bytes) where `rvalid` is set.
    pub struct DhchapSuccess1[16] {
        /// DH-HMAC-CHAP message, Success1.
        pub hdr @ 0: AuthMessageHdr,
        /// Hash Length, bytes.
        pub hl @ 6: u8,
        rsvd7 @ 7: u8,
        /// Response Valid.
        pub rvalid @ 8: u8,
        rsvd9 @ 9: [u8; 7],
    }
}

wire! {
    /// DH-HMAC-CHAP_Success2.
    pub struct DhchapSuccess2[16] {
        /// DH-HMAC-CHAP message, Success2.
        pub hdr @ 0: AuthMessageHdr,
        rsvd6 @ 6: [u8; 10],
    }
}

wire! {
    /// AUTH_Failure1 (of the controller) and AUTH_Failure2 (of the host).
    pub struct AuthFailure[8] {
        /// Common message, AUTH_Failure1 or AUTH_Failure2.
        pub hdr @ 0: AuthMessageHdr,
        /// Reason Code: [`AUTH_FAILURE`].
        pub rc @ 6: u8,
        /// Reason Code Explanation.
        pub rce @ 7: AuthFailureReason,
    }
}

impl AuthMessageHdr {
    /// Head of a message of transaction `t_id`.
    #[must_use]
    pub fn new(auth_type: AuthType, auth_id: AuthId, t_id: u16) -> Self {
        Self { auth_type, auth_id, t_id: U16::new(t_id), ..Self::default() }
    }
}
