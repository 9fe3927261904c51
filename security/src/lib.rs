//! What proves to hosts and targets who the other is: secrets, in-band authentication, TLS with pre-shared keys.
//!
//! - [`hash`]: SHA-2, HMAC and HKDF as the protocols use them; [`dh`]: the finite-field groups of RFC 7919.
//! - [`secret`]: DH-HMAC-CHAP secrets (`DHHC-1:…`); [`psk`]: TLS pre-shared keys (`NVMeTLSkey-1:…`) and their identities.
//! - [`chap`]: both sides of DH-HMAC-CHAP as state machines without I/O.
//! - [`keyring`]: secrets in files, by name.
//! - [`tls`]: TLS 1.3 over OpenSSL's library, found at run time; bytes in, bytes out.
//!
//! Invariants: what is secret is wiped when it is dropped, compared in constant time, and its `Debug` shows nothing of
//! it; what costs more than some microseconds is handed out as a [`chap::Job`] for another thread; nothing here reads a
//! clock or a socket.

pub mod chap;
pub mod dh;
pub mod hash;
pub mod keyring;
pub mod psk;
pub mod secret;
pub mod tls;
