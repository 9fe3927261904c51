//! A LUN of an iSCSI target as a device: a lean initiator of our own, polled (RFC 7143). One session with one connection
//! for each worker; no digests, no CHAP, error recovery level 0. It exists to measure targets, not to keep data.

mod login;
mod session;

pub use login::IscsiTarget;
pub use session::Session;

/// What a login has agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Agreed {
    /// Bytes of one PDU's data to the target at most.
    segment: u32,
    /// Bytes of a write that go with its command at most; 0: none.
    immediate: u32,
}

/// The numbers of a session.
#[derive(Debug, Clone, Copy)]
struct Numbers {
    cmd_sn: u32,
    max_cmd_sn: u32,
    exp_stat_sn: u32,
}
