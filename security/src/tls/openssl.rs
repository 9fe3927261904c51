//! The calls of OpenSSL's library, found at run time: `libssl.so.3`, and `libcrypto.so.3` that it brings along.
//!
//! Nothing here decides anything; the module around it does. Types are opaque pointers; the ABI of version 3 is stable by
//! OpenSSL's own promise. Every wrapper takes what keeps its pointers alive.

use std::ffi::{CStr, c_char, c_int, c_long, c_uchar, c_void};
use std::ptr::{null, null_mut};
use std::sync::OnceLock;

use libloading::Library;

/// The names of the library, tried in this order.
const NAMES: [&str; 2] = ["libssl.so.3", "libssl.so"];
const CTRL_MODE: c_int = 33;
const CTRL_SET_GROUPS_LIST: c_int = 92;
const CTRL_SET_MIN_PROTO: c_int = 123;
const CTRL_SET_MAX_PROTO: c_int = 124;
const TLS1_3: c_int = 0x0304;
/// Partial writes, from a buffer that may have moved.
const MODES: c_long = 1 | 2;
const EXT_PSK: u32 = 41;
const ALERT_UNKNOWN_PSK_IDENTITY: c_int = 115;
/// The groups of the key exchange: those that are fast. A host that insists on a finite field is refused.
const GROUPS: &CStr = c"X25519:P-256:P-384";

pub(super) type Ptr = *mut c_void;
type FindSession = extern "C" fn(Ptr, *const c_uchar, usize, *mut Ptr) -> c_int;
type UseSession = extern "C" fn(Ptr, *const c_void, *mut *const c_uchar, *mut usize, *mut Ptr) -> c_int;
type ClientHello = extern "C" fn(Ptr, *mut c_int, Ptr) -> c_int;

macro_rules! functions {
    ($($name:ident: fn($($arg:ty),*) $(-> $ret:ty)?;)*) => {
        /// The functions, as their manual pages declare them.
        #[allow(non_snake_case, reason = "the library's names")]
        struct Functions {
            $($name: unsafe extern "C" fn($($arg),*) $(-> $ret)?,)*
            /// Keeps them where they are.
            _library: Library,
        }

        impl Functions {
            fn load(library: Library) -> Result<Self, libloading::Error> {
                Ok(Self {
                    $($name: {
                        // SAFETY: the type is the one that the manual page of the function declares.
                        let symbol = unsafe { library.get(stringify!($name).as_bytes()) };
                        *symbol?
                    },)*
                    _library: library,
                })
            }
        }
    };
}

functions! {
    BIO_ctrl_get_write_guarantee: fn(Ptr) -> usize;
    BIO_ctrl_pending: fn(Ptr) -> usize;
    BIO_free: fn(Ptr) -> c_int;
    BIO_new_bio_pair: fn(*mut Ptr, usize, *mut Ptr, usize) -> c_int;
    BIO_nread: fn(Ptr, *mut *mut c_char, c_int) -> c_int;
    BIO_nread0: fn(Ptr, *mut *mut c_char) -> c_int;
    BIO_nwrite: fn(Ptr, *mut *mut c_char, c_int) -> c_int;
    BIO_nwrite0: fn(Ptr, *mut *mut c_char) -> c_int;
    ERR_clear_error: fn();
    ERR_get_error: fn() -> u64;
    ERR_reason_error_string: fn(u64) -> *const c_char;
    SSL_CIPHER_find: fn(Ptr, *const c_uchar) -> *const c_void;
    SSL_CTX_ctrl: fn(Ptr, c_int, c_long, Ptr) -> c_long;
    SSL_CTX_free: fn(Ptr);
    SSL_CTX_new: fn(*const c_void) -> Ptr;
    SSL_CTX_set_client_hello_cb: fn(Ptr, ClientHello, Ptr);
    SSL_CTX_set_num_tickets: fn(Ptr, usize) -> c_int;
    SSL_CTX_set_psk_find_session_callback: fn(Ptr, FindSession);
    SSL_CTX_set_psk_use_session_callback: fn(Ptr, UseSession);
    SSL_SESSION_new: fn() -> Ptr;
    SSL_SESSION_free: fn(Ptr);
    SSL_SESSION_set1_master_key: fn(Ptr, *const c_uchar, usize) -> c_int;
    SSL_SESSION_set_cipher: fn(Ptr, *const c_void) -> c_int;
    SSL_SESSION_set_protocol_version: fn(Ptr, c_int) -> c_int;
    SSL_client_hello_get0_ext: fn(Ptr, u32, *mut *const c_uchar, *mut usize) -> c_int;
    SSL_do_handshake: fn(Ptr) -> c_int;
    SSL_free: fn(Ptr);
    SSL_get_error: fn(Ptr, c_int) -> c_int;
    SSL_get_ex_data: fn(Ptr, c_int) -> Ptr;
    SSL_new: fn(Ptr) -> Ptr;
    SSL_read_ex: fn(Ptr, *mut c_uchar, usize, *mut usize) -> c_int;
    SSL_set_accept_state: fn(Ptr);
    SSL_set_bio: fn(Ptr, Ptr, Ptr);
    SSL_set_ciphersuites: fn(Ptr, *const c_char) -> c_int;
    SSL_set_connect_state: fn(Ptr);
    SSL_set_ex_data: fn(Ptr, c_int, Ptr) -> c_int;
    SSL_shutdown: fn(Ptr) -> c_int;
    SSL_write_ex: fn(Ptr, *const c_uchar, usize, *mut usize) -> c_int;
    TLS_method: fn() -> *const c_void;
}

static FUNCTIONS: OnceLock<Result<Functions, String>> = OnceLock::new();

/// Finds the library.
fn functions() -> Result<&'static Functions, &'static str> {
    let found = FUNCTIONS.get_or_init(|| {
        let mut problem = String::new();
        for name in NAMES {
            // SAFETY: OpenSSL's initialisers may run on any thread and at any time.
            let library = unsafe { Library::new(name) };
            match library.and_then(Functions::load) {
                Ok(functions) => return Ok(functions),
                Err(error) if problem.is_empty() => problem = error.to_string(),
                Err(_) => {}
            }
        }
        Err(problem)
    });
    found.as_ref().map_err(String::as_str)
}

/// The functions, for those who hold an object that could not be without them.
fn loaded() -> &'static Functions {
    match functions() {
        Ok(functions) => functions,
        Err(error) => unreachable!("an object of a library that was not loaded: {error}"),
    }
}

/// Whether the library is there; why not.
pub(super) fn available() -> Result<(), &'static str> {
    functions().map(drop)
}

/// The reason of the calling thread's last error.
pub(super) fn last_error() -> String {
    let f = loaded();
    // SAFETY: a plain call.
    let code = unsafe { (f.ERR_get_error)() };
    // SAFETY: any number may be asked for.
    let reason = unsafe { (f.ERR_reason_error_string)(code) };
    if reason.is_null() {
        return "no reason given".to_owned();
    }
    // SAFETY: a non-null reason is a static C string.
    let reason = unsafe { CStr::from_ptr(reason) };
    reason.to_string_lossy().into_owned()
}

/// What the library asks for during a handshake; reached by a pointer in the connection that is set while it runs.
pub(super) trait Callbacks {
    /// A host names a key: the name of its cipher suite and the key, where it is known. The last one asked for is used.
    fn find(&mut self, identity: &[u8]) -> Option<Found>;

    /// The identity that a client names.
    fn identity(&self) -> Option<&[u8]>;
}

/// A key, as the library takes it.
pub(super) struct Found {
    pub(super) key: crate::hash::Bytes,
    /// The cipher suite: its number and its name.
    pub(super) suite: [u8; 2],
    pub(super) name: &'static CStr,
}

/// What the connection's pointer points to.
struct Hook<'a>(&'a mut dyn Callbacks);

/// The callbacks of the connection whose handshake runs on this thread.
fn hook<'a>(ssl: Ptr) -> Option<&'a mut Hook<'a>> {
    // SAFETY: `ssl` is the connection that the library calls back for.
    let hook = unsafe { (loaded().SSL_get_ex_data)(ssl, 0) };
    // SAFETY: the pointer is set by `Connection::handshake` only, for as long as its hook lives; the library calls back on
    // the same thread, one callback at a time.
    unsafe { hook.cast::<Hook<'a>>().as_mut() }
}

extern "C" fn on_find(ssl: Ptr, identity: *const c_uchar, len: usize, session: *mut Ptr) -> c_int {
    // SAFETY: the library passes `len` bytes that live through the callback.
    let identity = unsafe { std::slice::from_raw_parts(identity, len) };
    let found = hook(ssl).and_then(|hook| hook.0.find(identity));
    let made = found.map_or(null_mut(), |found| new_session(ssl, &found));
    // SAFETY: the library passes a place for the session.
    unsafe { session.write(made) };
    1
}

extern "C" fn on_use(
    ssl: Ptr,
    _md: *const c_void,
    id: *mut *const c_uchar,
    len: *mut usize,
    session: *mut Ptr,
) -> c_int {
    let Some(hook) = hook(ssl) else { return 0 };
    let Some(identity) = hook.0.identity().map(<[u8]>::to_vec) else { return 0 };
    let Some(found) = hook.0.find(&identity) else { return 0 };
    // The library reads the identity after the callback: it must be the hook's own.
    let Some(identity) = hook.0.identity() else { return 0 };
    // SAFETY: the library passes a place for the pointer.
    unsafe { id.write(identity.as_ptr()) };
    // SAFETY: and one for the length.
    unsafe { len.write(identity.len()) };
    let made = new_session(ssl, &found);
    // SAFETY: and one for the session.
    unsafe { session.write(made) };
    c_int::from(!made.is_null())
}

/// The first key of a ClientHello that is known decides about the cipher suite, which the library would choose before.
extern "C" fn on_client_hello(ssl: Ptr, alert: *mut c_int, _arg: Ptr) -> c_int {
    let (mut ext, mut len) = (null(), 0);
    // SAFETY: called within a ClientHello callback, with places for pointer and length.
    let there = unsafe { (loaded().SSL_client_hello_get0_ext)(ssl, EXT_PSK, &raw mut ext, &raw mut len) };
    let found = if there == 1 {
        // SAFETY: the library has set pointer and length of an extension that lives through the callback.
        let ext = unsafe { std::slice::from_raw_parts(ext, len) };
        hook(ssl).and_then(|hook| super::identities(ext).find_map(|identity| hook.0.find(identity)))
    } else {
        None
    };
    if let Some(found) = found {
        // SAFETY: the connection is alive, the name is a static C string.
        return unsafe { (loaded().SSL_set_ciphersuites)(ssl, found.name.as_ptr()) };
    }
    // SAFETY: the library passes a place for the alert.
    unsafe { alert.write(ALERT_UNKNOWN_PSK_IDENTITY) };
    0
}

/// A session of TLS 1.3 with that key; null where the library has no memory or not that cipher.
fn new_session(ssl: Ptr, found: &Found) -> Ptr {
    let f = loaded();
    // SAFETY: the connection is alive, the number has two bytes.
    let cipher = unsafe { (f.SSL_CIPHER_find)(ssl, found.suite.as_ptr()) };
    // SAFETY: a plain call.
    let session = unsafe { (f.SSL_SESSION_new)() };
    let key = found.key.as_slice();
    if !session.is_null() {
        // SAFETY: the session is ours; the library copies the key.
        let keyed = unsafe { (f.SSL_SESSION_set1_master_key)(session, key.as_ptr(), key.len()) } == 1;
        // SAFETY: the session is ours; ciphers are static.
        let suited = !cipher.is_null() && unsafe { (f.SSL_SESSION_set_cipher)(session, cipher) } == 1;
        // SAFETY: the session is ours.
        let versioned = unsafe { (f.SSL_SESSION_set_protocol_version)(session, TLS1_3) } == 1;
        if keyed && suited && versioned {
            return session;
        }
        // SAFETY: the session is ours and nobody else's.
        unsafe { (f.SSL_SESSION_free)(session) };
    }
    null_mut()
}

/// Settings that connections are made with.
#[derive(Debug)]
pub(super) struct Context(Ptr);

// SAFETY: the library counts references to a context atomically and only reads it when connections are made.
unsafe impl Send for Context {}
// SAFETY: as above; nothing changes it after `new`.
unsafe impl Sync for Context {}

impl Context {
    /// TLS 1.3 with pre-shared keys and an exchange, and nothing else.
    pub(super) fn new() -> Result<Self, String> {
        let f = functions()?;
        // SAFETY: a plain call.
        let method = unsafe { (f.TLS_method)() };
        // SAFETY: methods are static.
        let this = Self(unsafe { (f.SSL_CTX_new)(method) });
        if this.0.is_null() {
            return Err(last_error());
        }
        let groups: Ptr = GROUPS.as_ptr().cast_mut().cast();
        let settings: [(c_int, c_long, Ptr); 4] = [
            (CTRL_SET_MIN_PROTO, c_long::from(TLS1_3), null_mut()),
            (CTRL_SET_MAX_PROTO, c_long::from(TLS1_3), null_mut()),
            (CTRL_SET_GROUPS_LIST, 0, groups),
            (CTRL_MODE, MODES, null_mut()),
        ];
        for (command, number, pointer) in settings {
            // SAFETY: the context is ours; the list of groups is a C string that is only read.
            if unsafe { (f.SSL_CTX_ctrl)(this.0, command, number, pointer) } == 0 {
                return Err(last_error());
            }
        }
        // SAFETY: the context is ours. Tickets are for sessions that come again; these do not.
        unsafe { (f.SSL_CTX_set_num_tickets)(this.0, 0) };
        // SAFETY: the context is ours; the callback lives for ever.
        unsafe { (f.SSL_CTX_set_psk_find_session_callback)(this.0, on_find) };
        // SAFETY: as above.
        unsafe { (f.SSL_CTX_set_psk_use_session_callback)(this.0, on_use) };
        // SAFETY: as above.
        unsafe { (f.SSL_CTX_set_client_hello_cb)(this.0, on_client_hello, null_mut()) };
        Ok(this)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: the context is ours; connections hold references of their own.
            unsafe { (loaded().SSL_CTX_free)(self.0) };
        }
    }
}

/// How a call ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Done(usize),
    /// More bytes of the peer, or room for ours, are wanted.
    Blocked,
    /// The peer has closed in order.
    Closed,
    Failed(String),
}

/// A connection, and the two rings of bytes between it and the network. The rings are as long as they were made: nothing
/// is allocated while data flow.
#[derive(Debug)]
pub(super) struct Connection {
    ssl: Ptr,
    /// The network's end of the pair of rings.
    net: Ptr,
}

// SAFETY: a connection may be used by any thread, one at a time, which `&mut` sees to.
unsafe impl Send for Connection {}

impl Connection {
    /// A connection with rings of so many bytes to and from the network.
    pub(super) fn new(context: &Context, server: bool, ring_bytes: usize) -> Result<Self, String> {
        let f = loaded();
        let (mut inner, mut net) = (null_mut(), null_mut());
        // SAFETY: the context is alive; the connection takes a reference.
        let ssl = unsafe { (f.SSL_new)(context.0) };
        if ssl.is_null() {
            return Err(last_error());
        }
        // SAFETY: places for two pointers.
        let made = unsafe { (f.BIO_new_bio_pair)(&raw mut inner, ring_bytes, &raw mut net, ring_bytes) } == 1;
        if !made {
            // SAFETY: the connection is ours.
            unsafe { (f.SSL_free)(ssl) };
            return Err(last_error());
        }
        // SAFETY: both are ours; the connection takes its end of the pair over.
        unsafe { (f.SSL_set_bio)(ssl, inner, inner) };
        if server {
            // SAFETY: the connection is ours.
            unsafe { (f.SSL_set_accept_state)(ssl) };
        } else {
            // SAFETY: the connection is ours.
            unsafe { (f.SSL_set_connect_state)(ssl) };
        }
        let mut this = Self { ssl, net };
        this.clear_ring();
        Ok(this)
    }

    /// The library does not clear the ring's memory, and nobody may look at memory that was never written.
    fn clear_ring(&mut self) {
        let mut place = null_mut();
        // SAFETY: the ring is ours.
        let len = unsafe { (loaded().BIO_nwrite0)(self.net, &raw mut place) };
        if let Ok(len) = usize::try_from(len) {
            // SAFETY: the library says that so many bytes may be written there: all of a fresh ring.
            unsafe { place.write_bytes(0, len) };
        }
    }

    /// Offers one cipher suite only.
    pub(super) fn set_suite(&mut self, name: &'static CStr) -> bool {
        // SAFETY: the connection is ours, the name a C string.
        unsafe { (loaded().SSL_set_ciphersuites)(self.ssl, name.as_ptr()) == 1 }
    }

    /// Goes on with the handshake.
    pub(super) fn handshake(&mut self, callbacks: &mut dyn Callbacks) -> Outcome {
        let f = loaded();
        let mut hook = Hook(callbacks);
        let pointer: Ptr = (&raw mut hook).cast();
        // SAFETY: the connection is ours; the pointer is taken back below, before the hook ends.
        unsafe { (f.SSL_set_ex_data)(self.ssl, 0, pointer) };
        // SAFETY: a plain call.
        unsafe { (f.ERR_clear_error)() };
        // SAFETY: the connection is ours.
        let ret = unsafe { (f.SSL_do_handshake)(self.ssl) };
        // SAFETY: the connection is ours.
        unsafe { (f.SSL_set_ex_data)(self.ssl, 0, null_mut()) };
        if ret == 1 { Outcome::Done(0) } else { self.failed(ret) }
    }

    /// Decrypts into `buf`.
    pub(super) fn read(&mut self, buf: &mut [u8]) -> Outcome {
        let f = loaded();
        let mut len = 0;
        // SAFETY: a plain call.
        unsafe { (f.ERR_clear_error)() };
        // SAFETY: the connection is ours; the buffer is as long as said.
        let ret = unsafe { (f.SSL_read_ex)(self.ssl, buf.as_mut_ptr(), buf.len(), &raw mut len) };
        if ret == 1 { Outcome::Done(len) } else { self.failed(ret) }
    }

    /// Encrypts `buf`, or its beginning.
    pub(super) fn write(&mut self, buf: &[u8]) -> Outcome {
        let f = loaded();
        let mut len = 0;
        // SAFETY: a plain call.
        unsafe { (f.ERR_clear_error)() };
        // SAFETY: the connection is ours; the buffer is as long as said.
        let ret = unsafe { (f.SSL_write_ex)(self.ssl, buf.as_ptr(), buf.len(), &raw mut len) };
        if ret == 1 { Outcome::Done(len) } else { self.failed(ret) }
    }

    /// Tells the peer that nothing more comes.
    pub(super) fn shutdown(&mut self) {
        // SAFETY: the connection is ours.
        unsafe { (loaded().SSL_shutdown)(self.ssl) };
        // SAFETY: a plain call; a peer that is gone is no error of anybody else's.
        unsafe { (loaded().ERR_clear_error)() };
    }

    fn failed(&mut self, ret: c_int) -> Outcome {
        // SAFETY: the connection is ours; called right after the call that returned `ret`.
        match unsafe { (loaded().SSL_get_error)(self.ssl, ret) } {
            2 | 3 => Outcome::Blocked,
            6 => Outcome::Closed,
            _ => Outcome::Failed(last_error()),
        }
    }

    /// Where bytes from the network go: a part of the ring, empty when that is full.
    pub(super) fn net_space(&mut self) -> &mut [u8] {
        let mut place = null_mut();
        // SAFETY: the ring is ours.
        let len = unsafe { (loaded().BIO_nwrite0)(self.net, &raw mut place) };
        match usize::try_from(len) {
            // SAFETY: the library says that so many bytes may be written there; they are memory of its own that was
            // zeroed or written before, and stay so until the ring is used again, for which `self` is needed.
            Ok(len) if len > 0 => unsafe { std::slice::from_raw_parts_mut(place.cast(), len) },
            _ => &mut [],
        }
    }

    /// `len` bytes have come there.
    pub(super) fn net_came(&mut self, len: usize) {
        let mut place = null_mut();
        let len = c_int::try_from(len).unwrap_or(c_int::MAX);
        // SAFETY: the ring is ours; it takes no more than it has room for.
        unsafe { (loaded().BIO_nwrite)(self.net, &raw mut place, len) };
    }

    /// Bytes for the network: a part of the ring, empty when there are none.
    pub(super) fn net_bytes(&self) -> &[u8] {
        let mut place = null_mut();
        // SAFETY: the ring is ours, and only looked at.
        let len = unsafe { (loaded().BIO_nread0)(self.net, &raw mut place) };
        match usize::try_from(len) {
            // SAFETY: the library says that so many bytes are there; they stay until the ring is used again.
            Ok(len) if len > 0 => unsafe { std::slice::from_raw_parts(place.cast(), len) },
            _ => &[],
        }
    }

    /// `len` of them are sent.
    pub(super) fn net_sent(&mut self, len: usize) {
        let mut place = null_mut();
        let len = c_int::try_from(len).unwrap_or(c_int::MAX);
        // SAFETY: the ring is ours; it gives no more than it has.
        unsafe { (loaded().BIO_nread)(self.net, &raw mut place, len) };
    }

    /// Bytes for the network, in all.
    pub(super) fn net_pending(&self) -> usize {
        // SAFETY: the ring is ours.
        unsafe { (loaded().BIO_ctrl_pending)(self.net) }
    }

    /// Bytes that the ring from the network has room for, in all.
    pub(super) fn net_room(&self) -> usize {
        // SAFETY: the ring is ours.
        unsafe { (loaded().BIO_ctrl_get_write_guarantee)(self.net) }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: the connection is ours; its end of the pair goes with it.
        unsafe { (loaded().SSL_free)(self.ssl) };
        // SAFETY: this end is ours.
        unsafe { (loaded().BIO_free)(self.net) };
    }
}
