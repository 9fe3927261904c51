//! The place of one command.

use penstock_reactor::net::SlotData;
use penstock_spec::nvme::Cqe;

use super::Transfer;
use crate::payload::Payload;

/// Where a command is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SlotState {
    /// No command. `submit` moves it on.
    Free,
    /// Sent or being sent. A response, or data with SUCCESS, moves it on.
    Active,
    /// Completed by the target while its payload is still in the transmit queue. `tx_consume` moves it on.
    Draining,
    /// In the completion queue. `poll` moves it on.
    Done,
}

/// One command: its identity, its payload and how far it has come.
#[derive(Debug)]
pub(super) struct Slot<B> {
    pub(super) state: SlotState,
    /// Identifier on the wire: slot index and generation.
    pub(super) cid: u16,
    pub(super) transfer: Transfer,
    /// Data went with the capsule, so R2Ts are out of place.
    pub(super) in_capsule: bool,
    /// Read: bytes received. Write: bytes that R2Ts have asked for.
    pub(super) moved_bytes: u32,
    /// The C2HData with LAST_PDU has come.
    pub(super) last_seen: bool,
    /// A data digest did not match.
    pub(super) ddgst_failed: bool,
    /// R2Ts whose data is not all in the transmit queue yet.
    pub(super) r2ts: u16,
    /// Segments of the transmit queue that refer to the payload.
    pub(super) tx_refs: u32,
    pub(super) user: u64,
    pub(super) cqe: Cqe,
    pub(super) payload: Option<B>,
}

impl<B> Slot<B> {
    pub(super) fn new(cid: u16) -> Self {
        Self {
            state: SlotState::Free,
            cid,
            transfer: Transfer::None,
            in_capsule: false,
            moved_bytes: 0,
            last_seen: false,
            ddgst_failed: false,
            r2ts: 0,
            tx_refs: 0,
            user: 0,
            cqe: Cqe::default(),
            payload: None,
        }
    }
}

/// The slots of a queue pair, as its send queue sees them.
#[derive(Debug)]
pub(super) struct Slots<B>(pub(super) Box<[Slot<B>]>);

impl<B: Payload> SlotData for Slots<B> {
    #[inline]
    fn bytes_from(&self, slot: u16, at: u32) -> &[u8] {
        let payload = self.0.get(usize::from(slot)).and_then(|slot| slot.payload.as_ref());
        payload.map_or(&[], |payload| payload.chunk(usize::try_from(at).unwrap_or(usize::MAX)))
    }
}
