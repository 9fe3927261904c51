//! Login (RFC 7143, 11.12 and 11.13).

use core::fmt;

use zerocopy::big_endian::{U16, U32, U64};

/// Initiator session ID: the initiator's part of a session's name (11.12.5).
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::KnownLayout,
    zerocopy::Immutable,
    zerocopy::Unaligned,
)]
#[repr(transparent)]
pub struct Isid(pub [u8; 6]);

impl fmt::Display for Isid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Isid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Isid({self})")
    }
}

/// Stage of a login (11.12.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// SecurityNegotiation.
    Security,
    /// LoginOperationalNegotiation.
    Operational,
    /// FullFeaturePhase.
    FullFeature,
}

impl Stage {
    /// From its two bits; 2 is reserved.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits & 3 {
            0 => Some(Self::Security),
            1 => Some(Self::Operational),
            3 => Some(Self::FullFeature),
            _ => None,
        }
    }

    /// Its two bits.
    #[must_use]
    pub const fn bits(self) -> u8 {
        match self {
            Self::Security => 0,
            Self::Operational => 1,
            Self::FullFeature => 3,
        }
    }
}

pdu! {
    /// Login Request (11.12).
    pub struct LoginReqHdr: request {
        /// T, C, CSG and NSG.
        pub flags @ 1: u8,
        /// The highest version that the initiator speaks.
        pub version_max @ 2: u8,
        /// The lowest one.
        pub version_min @ 3: u8;
        /// ISID.
        pub isid @ 8: Isid,
        /// TSIH: zero for a new session.
        pub tsih @ 14: U16;
        /// CID.
        pub cid @ 20: U16,
        /// Zero.
        pub rsvd22 @ 22: U16;
        /// Zero.
        pub rsvd32 @ 32: [u8; 16],
    }
}

impl LoginReqHdr {
    /// T: the initiator wants the stage to end.
    pub const TRANSIT: u8 = 0x80;
    /// C: the keys go on in the next PDU.
    pub const CONTINUE: u8 = 0x40;

    /// The current stage; `None` where the bits are reserved.
    #[must_use]
    pub const fn csg(&self) -> Option<Stage> {
        Stage::from_bits(self.flags >> 2)
    }

    /// The stage wanted next (with T); `None` where the bits are reserved.
    #[must_use]
    pub const fn nsg(&self) -> Option<Stage> {
        Stage::from_bits(self.flags)
    }
}

pdu! {
    /// Login Response (11.13).
    pub struct LoginRespHdr: response {
        /// T, C, CSG and NSG.
        pub flags @ 1: u8,
        /// The highest version that the target speaks.
        pub version_max @ 2: u8,
        /// The version in use.
        pub version_active @ 3: u8;
        /// ISID of the request.
        pub isid @ 8: Isid,
        /// TSIH: given with the last response.
        pub tsih @ 14: U16;
        /// Zero.
        pub rsvd20 @ 20: U32;
        /// Status-Class and Status-Detail.
        pub status @ 36: U16,
        /// Zero.
        pub rsvd38 @ 38: U16,
        /// Zero.
        pub rsvd40 @ 40: U64,
    }
}

codes! {
    /// Status of a login: class and detail (11.13.5).
    pub struct LoginStatus(u16) {
        SUCCESS = 0x0000, "Success";
        MOVED_TEMPORARILY = 0x0101, "Target moved temporarily";
        MOVED_PERMANENTLY = 0x0102, "Target moved permanently";
        INITIATOR_ERROR = 0x0200, "Initiator error";
        AUTHENTICATION_FAILURE = 0x0201, "Authentication failure";
        AUTHORIZATION_FAILURE = 0x0202, "Authorization failure";
        NOT_FOUND = 0x0203, "Not found";
        TARGET_REMOVED = 0x0204, "Target removed";
        UNSUPPORTED_VERSION = 0x0205, "Unsupported version";
        TOO_MANY_CONNECTIONS = 0x0206, "Too many connections";
        MISSING_PARAMETER = 0x0207, "Missing parameter";
        CANNOT_INCLUDE = 0x0208, "Can't include in session";
        SESSION_TYPE_UNSUPPORTED = 0x0209, "Session type not supported";
        NO_SESSION = 0x020a, "Session does not exist";
        INVALID_REQUEST = 0x020b, "Invalid request during login";
        TARGET_ERROR = 0x0300, "Target error";
        SERVICE_UNAVAILABLE = 0x0301, "Service unavailable";
        OUT_OF_RESOURCES = 0x0302, "Out of resources";
    }
}
