//! TLS 1.3 with pre-shared keys, without I/O (TCP transport 3.6.1): bytes of the network go in and come out, and so do the
//! bytes that they carry.
//!
//! ```text
//!   socket ──net_space/net_came──► ring ──► OpenSSL ──read──► PDUs
//!   socket ◄──net_bytes/net_sent── ring ◄── OpenSSL ◄─write── PDUs
//! ```
//!
//! Two cipher suites, by the hash of the key: AES-128-GCM with SHA-256, AES-256-GCM with SHA-384; always with an exchange of
//! ephemeral keys. No certificates, no tickets, no early data. The library is looked for at run time; where it is missing,
//! making a [`Context`] says so.
//!
//! Invariants: a handshake takes some hundred microseconds of computing and belongs on a thread for such things; reading
//! and writing afterwards allocate nothing, as the rings and the library's buffers are there from the beginning.

mod openssl;
#[cfg(test)]
mod tests;

use std::ffi::CStr;
use std::sync::Arc;

use crate::hash::Hash;
use crate::psk::TlsPsk;
use openssl::{Callbacks, Connection, Found, Outcome};

/// Bytes of the rings between a session and the network, each.
pub const RING_BYTES: usize = 64 << 10;
/// Bytes of data that one record carries at most.
pub const RECORD_BYTES_MAX: usize = 16 << 10;
/// What a record is longer than its data, and a key update besides.
const RECORD_OVERHEAD: usize = 256;
const _: () = assert!(RING_BYTES > 2 * (RECORD_BYTES_MAX + RECORD_OVERHEAD));

/// Why there is no TLS.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// There is no library.
    #[error("TLS needs OpenSSL 3's library (Debian's libssl3), which was not found: {0}")]
    Library(String),
    /// The library refuses to make a connection.
    #[error("OpenSSL: {0}")]
    Setup(String),
    /// The handshake failed, or what the peer sent cannot be decrypted.
    #[error("TLS failed: {0}")]
    Failed(String),
    /// The key cannot be used.
    #[error("the key for TLS has a hash that goes with no cipher suite")]
    Key,
}

/// Knows keys by their identities.
pub trait PskStore {
    /// The key of that identity.
    fn find(&self, identity: &[u8]) -> Option<Arc<TlsPsk>>;
}

/// Settings for connections; any number of them share one.
#[derive(Debug)]
pub struct Context(openssl::Context);

impl Context {
    /// The settings.
    ///
    /// # Errors
    /// [`TlsError::Library`] where there is no library, [`TlsError::Setup`] where it refuses.
    pub fn new() -> Result<Self, TlsError> {
        openssl::available().map_err(|error| TlsError::Library(error.to_owned()))?;
        openssl::Context::new().map(Self).map_err(TlsError::Setup)
    }
}

/// How far a handshake is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// More of the peer's bytes are wanted.
    Blocked,
    /// It is over: data may flow.
    Done,
}

/// What a session is: of a host, or of a target.
#[derive(Debug)]
enum Side {
    Server,
    Client(Arc<TlsPsk>),
}

/// One connection.
#[derive(Debug)]
pub struct Session {
    connection: Connection,
    side: Side,
    /// The key in use, once it is known.
    psk: Option<Arc<TlsPsk>>,
    is_open: bool,
}

/// Asks the store, or the client's own key, in the middle of a handshake.
struct Lookup<'a> {
    store: Option<&'a dyn PskStore>,
    client: Option<Arc<TlsPsk>>,
    used: Option<Arc<TlsPsk>>,
}

impl Callbacks for Lookup<'_> {
    fn find(&mut self, identity: &[u8]) -> Option<Found> {
        let own = self.client.as_ref().filter(|psk| psk.identity.as_bytes() == identity).cloned();
        let psk = own.or_else(|| self.store.and_then(|store| store.find(identity)))?;
        let (suite, name) = suite(psk.hash)?;
        let key = psk.key.clone();
        self.used = Some(psk);
        Some(Found { key, suite, name })
    }

    fn identity(&self) -> Option<&[u8]> {
        self.client.as_ref().map(|psk| psk.identity.as_bytes())
    }
}

impl Session {
    /// The target's side.
    ///
    /// # Errors
    /// [`TlsError::Setup`]: no memory.
    pub fn server(context: &Context) -> Result<Self, TlsError> {
        let connection = Connection::new(&context.0, true, RING_BYTES).map_err(TlsError::Setup)?;
        Ok(Self { connection, side: Side::Server, psk: None, is_open: false })
    }

    /// The host's side, with the key that it will use.
    ///
    /// # Errors
    /// [`TlsError::Setup`]: no memory; [`TlsError::Key`].
    pub fn client(context: &Context, psk: Arc<TlsPsk>) -> Result<Self, TlsError> {
        let mut connection = Connection::new(&context.0, false, RING_BYTES).map_err(TlsError::Setup)?;
        let (_, name) = suite(psk.hash).ok_or(TlsError::Key)?;
        if !connection.set_suite(name) {
            return Err(TlsError::Setup(openssl::last_error()));
        }
        Ok(Self { connection, side: Side::Client(psk), psk: None, is_open: false })
    }

    /// Goes on with the handshake, with the bytes that have come. What is to be sent then is to be sent also where it
    /// fails: it tells the peer why.
    ///
    /// # Errors
    /// [`TlsError::Failed`]: the connection is over.
    pub fn handshake(&mut self, store: &dyn PskStore) -> Result<Progress, TlsError> {
        let client = match &self.side {
            Side::Client(psk) => Some(Arc::clone(psk)),
            Side::Server => None,
        };
        let mut lookup = Lookup { store: Some(store), client, used: self.psk.take() };
        let outcome = self.connection.handshake(&mut lookup);
        self.psk = lookup.used;
        match outcome {
            Outcome::Done(_) if self.psk.is_some() => {
                self.is_open = true;
                Ok(Progress::Done)
            }
            Outcome::Done(_) => Err(TlsError::Failed("the peer has shown no key".to_owned())),
            Outcome::Blocked => Ok(Progress::Blocked),
            Outcome::Closed => Err(TlsError::Failed("the peer closed the connection".to_owned())),
            Outcome::Failed(reason) => Err(TlsError::Failed(reason)),
        }
    }

    /// Whether the handshake is over.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.is_open
    }

    /// The key in use.
    #[must_use]
    pub fn psk(&self) -> Option<&Arc<TlsPsk>> {
        self.psk.as_ref().filter(|_| self.is_open)
    }

    /// Decrypts what has come into `buf`; how many bytes. `None`: nothing more has come. `Some(0)`: the peer has closed.
    ///
    /// # Errors
    /// [`TlsError::Failed`]: the connection is over.
    pub fn read(&mut self, buf: &mut [u8]) -> Result<Option<usize>, TlsError> {
        if buf.is_empty() {
            return Ok(None);
        }
        match self.connection.read(buf) {
            Outcome::Done(len) => Ok(Some(len)),
            Outcome::Blocked => Ok(None),
            Outcome::Closed => Ok(Some(0)),
            Outcome::Failed(reason) => Err(TlsError::Failed(reason)),
        }
    }

    /// Encrypts the beginning of `buf` as one record; how many bytes. `None`: the ring has no room.
    ///
    /// # Errors
    /// [`TlsError::Failed`]: the connection is over.
    pub fn write(&mut self, buf: &[u8]) -> Result<Option<usize>, TlsError> {
        let buf = buf.get(..RECORD_BYTES_MAX).unwrap_or(buf);
        // Looked at before: a record that was begun and does not fit would have to be offered again unchanged.
        let room = RING_BYTES.saturating_sub(self.connection.net_pending());
        if buf.is_empty() || room < buf.len() + 2 * RECORD_OVERHEAD {
            return Ok(None);
        }
        match self.connection.write(buf) {
            Outcome::Done(len) => Ok(Some(len)),
            Outcome::Blocked => Ok(None),
            Outcome::Closed => Err(TlsError::Failed("the peer closed the connection".to_owned())),
            Outcome::Failed(reason) => Err(TlsError::Failed(reason)),
        }
    }

    /// Tells the peer that nothing more comes; what that takes is to be sent.
    pub fn close(&mut self) {
        if self.is_open {
            self.connection.shutdown();
        }
    }

    /// Where bytes from the network go: a part of the ring, empty when that is full.
    pub fn net_space(&mut self) -> &mut [u8] {
        self.connection.net_space()
    }

    /// The first `len` bytes of [`Self::net_space`] have come.
    pub fn net_came(&mut self, len: usize) {
        self.connection.net_came(len);
    }

    /// Bytes that the ring has room for, in all.
    #[must_use]
    pub fn net_room(&self) -> usize {
        self.connection.net_room()
    }

    /// Bytes for the network: a part of them, empty when there are none.
    #[must_use]
    pub fn net_bytes(&self) -> &[u8] {
        self.connection.net_bytes()
    }

    /// The first `len` bytes of [`Self::net_bytes`] are sent.
    pub fn net_sent(&mut self, len: usize) {
        self.connection.net_sent(len);
    }
}

/// Number and name of the cipher suite of a hash.
const fn suite(hash: Hash) -> Option<([u8; 2], &'static CStr)> {
    match hash {
        Hash::Sha256 => Some(([0x13, 0x01], c"TLS_AES_128_GCM_SHA256")),
        Hash::Sha384 => Some(([0x13, 0x02], c"TLS_AES_256_GCM_SHA384")),
        Hash::Sha512 => None,
    }
}

/// The identities in a pre_shared_key extension of a ClientHello (RFC 8446 section 4.2.11), as far as it is well formed.
fn identities(ext: &[u8]) -> impl Iterator<Item = &[u8]> {
    fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
        let (len, rest) = bytes.split_first_chunk::<2>()?;
        rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))
    }
    let mut list = split(ext).map_or(&[][..], |(list, _)| list);
    std::iter::from_fn(move || {
        let (identity, rest) = split(list)?;
        // The obfuscated age of a ticket.
        list = rest.get(4..)?;
        Some(identity)
    })
}

/// Whether the first byte of a connection says that it begins with TLS rather than with a PDU of NVMe/TCP.
#[must_use]
pub const fn begins_tls(first: u8) -> bool {
    // A record with a handshake message; an ICReq begins with 0.
    first == 0x16
}
