//! Errors as a client sees them: a code and words that say what, which object, why, and what to do.

use penstock_bdev::BdevError;
use serde_json::{Value, json};

/// JSON-RPC 2.0: the text is no JSON.
pub const PARSE_ERROR: i64 = -32700;
/// JSON-RPC 2.0: the JSON is no request.
pub const INVALID_REQUEST: i64 = -32600;
/// JSON-RPC 2.0: no such method.
pub const METHOD_NOT_FOUND: i64 = -32601;
/// JSON-RPC 2.0: the parameters do not fit the method.
pub const INVALID_PARAMS: i64 = -32602;
/// JSON-RPC 2.0: the daemon failed.
pub const INTERNAL_ERROR: i64 = -32603;
/// SPDK: the method does not fit the daemon's state.
pub const INVALID_STATE: i64 = -1;

/// What a method, or the server before it, refuses with. Codes that are not JSON-RPC's are negative `errno`s, as
/// SPDK's are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RpcError {
    /// JSON-RPC's code, or a negative `errno`.
    pub code: i64,
    /// The words.
    pub message: String,
}

impl RpcError {
    /// An error of that code.
    pub fn new(code: i64, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The text is no JSON.
    pub fn parse(message: impl Into<String>) -> Self {
        Self::new(PARSE_ERROR, message)
    }

    /// The JSON is no request.
    pub fn invalid_request(message: impl Into<String>) -> Self {
        Self::new(INVALID_REQUEST, message)
    }

    /// The parameters do not fit the method.
    pub fn invalid_params(message: impl Into<String>) -> Self {
        Self::new(INVALID_PARAMS, message)
    }

    /// The object that was named is not there (`ENODEV`).
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(-i64::from(errno::NODEV), message)
    }

    /// The object is there already (`EEXIST`).
    pub fn exists(message: impl Into<String>) -> Self {
        Self::new(-i64::from(errno::EXIST), message)
    }

    /// The daemon itself failed.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(INTERNAL_ERROR, message)
    }

    /// An error of any crate, with all its causes in the words.
    pub fn of(code: i64, error: &dyn std::error::Error) -> Self {
        Self::new(code, chain(error))
    }

    /// The `error` member of a response.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({"code": self.code, "message": self.message})
    }
}

/// An error and its causes, joined by colons.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        words.push_str(": ");
        words.push_str(&cause.to_string());
        source = cause.source();
    }
    words
}

/// The numbers of `errno` that SPDK's methods answer with.
pub mod errno {
    /// Not permitted.
    pub const PERM: i32 = 1;
    /// No such file.
    pub const NOENT: i32 = 2;
    /// Input or output failed.
    pub const IO: i32 = 5;
    /// It is being used.
    pub const BUSY: i32 = 16;
    /// It is there already.
    pub const EXIST: i32 = 17;
    /// It is not there.
    pub const NODEV: i32 = 19;
    /// A value does not make sense.
    pub const INVAL: i32 = 22;
    /// There is no room for one more.
    pub const NOSPC: i32 = 28;
    /// It cannot do that.
    pub const OPNOTSUPP: i32 = 95;
    /// It did not come in time.
    pub const TIMEDOUT: i32 = 110;
}

/// The code of a bdev's error.
pub(crate) fn bdev_code(error: &BdevError) -> i64 {
    let errno = match error {
        BdevError::NotFound { .. } => errno::NODEV,
        BdevError::Exists { .. } => errno::EXIST,
        BdevError::Claimed { .. } | BdevError::InUse { .. } | BdevError::Removing { .. } => errno::BUSY,
        BdevError::Unsupported { .. } => errno::OPNOTSUPP,
        BdevError::Full { .. } => errno::NOSPC,
        BdevError::Invalid { .. } | BdevError::WrongKind { .. } => return INVALID_PARAMS,
        BdevError::Os { source, .. } => source.raw_os_error().unwrap_or(errno::IO),
        _ => return INTERNAL_ERROR,
    };
    -i64::from(errno)
}

impl From<BdevError> for RpcError {
    fn from(error: BdevError) -> Self {
        Self::of(bdev_code(&error), &error)
    }
}
