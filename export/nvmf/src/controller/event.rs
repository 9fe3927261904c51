//! Asynchronous events (Base 5.2.2): requests that wait, events that wait, and which of them the host has not yet looked at.
//!
//! An event that was reported is not reported again until the host has read its log page without Retain Asynchronous
//! Event. At most [`AER_MAX`] requests and one event of each kind wait.

use penstock_spec::nvme::event::{EventConfig, EventResult, EventType, IoCommandEvent, NoticeEvent};
use penstock_spec::nvme::log::Lid;

/// Asynchronous Event Requests that one controller holds (AERL plus one).
pub const AER_MAX: usize = 4;

/// What can happen to a controller that its host wants to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// A namespace was added, removed or changed.
    NamespaceAttribute,
    /// The discovery log page changed for this host.
    DiscoveryLog,
    /// The state of an ANA group changed, or the group of a namespace.
    AnaChange,
    /// A Cross-Controller Reset that was begun is complete.
    CrossReset,
    /// There is a notice in the reservation notification log page.
    ReservationLog,
}

impl Event {
    const ALL: [Self; 5] = [
        Self::CrossReset,
        Self::AnaChange,
        Self::NamespaceAttribute,
        Self::DiscoveryLog,
        Self::ReservationLog,
    ];

    const fn bit(self) -> u8 {
        match self {
            Self::NamespaceAttribute => 1,
            Self::DiscoveryLog => 2,
            Self::AnaChange => 4,
            Self::CrossReset => 8,
            Self::ReservationLog => 16,
        }
    }

    /// Completion dword 0.
    fn result(self) -> EventResult {
        let (info, lid) = match self {
            Self::NamespaceAttribute => (NoticeEvent::NS_ATTRIBUTE_CHANGED, Lid::CHANGED_NS_LIST),
            Self::DiscoveryLog => (NoticeEvent::DISCOVERY_LOG_CHANGE, Lid::DISCOVERY),
            Self::AnaChange => (NoticeEvent::ANA_CHANGE, Lid::ANA),
            Self::CrossReset => (NoticeEvent::CROSS_CONTROLLER_RESET_COMPLETED, Lid::CROSS_CONTROLLER_RESET),
            Self::ReservationLog => {
                let info = IoCommandEvent::RESERVATION_LOG_AVAILABLE.0;
                return EventResult::new(EventType::IO_COMMAND_SET, info, Lid::RESERVATION_NOTIFICATION);
            }
        };
        EventResult::new(EventType::NOTICE, info.0, lid)
    }

    /// Whether the host asked for it.
    fn is_enabled(self, config: EventConfig) -> bool {
        match self {
            Self::NamespaceAttribute => config.ns_attribute(),
            Self::DiscoveryLog => config.discovery_log(),
            Self::AnaChange => config.ana_change(),
            Self::CrossReset => config.cross_reset(),
            // Each namespace has a mask of its own (feature 82h).
            Self::ReservationLog => true,
        }
    }
}

/// Events of one controller.
#[derive(Debug, Default)]
pub(super) struct Events {
    /// Feature 0Bh.
    config: EventConfig,
    /// Command identifiers of held requests, the oldest first.
    held: Vec<u16>,
    pending: u8,
    /// Reported, and the log page not read since.
    unread: u8,
}

impl Events {
    pub(super) const fn config(&self) -> EventConfig {
        self.config
    }

    pub(super) fn set_config(&mut self, config: EventConfig) {
        self.config = config;
    }

    /// Holds a request; false where [`AER_MAX`] are held.
    pub(super) fn hold(&mut self, cid: u16) -> bool {
        if self.held.len() >= AER_MAX {
            return false;
        }
        self.held.push(cid);
        true
    }

    /// Takes a held request out: it is to be aborted.
    pub(super) fn abort(&mut self, cid: u16) -> bool {
        let found = self.held.iter().position(|held| *held == cid);
        found.map(|at| self.held.remove(at)).is_some()
    }

    /// Something happened. Told once until the host has looked at it.
    pub(super) fn raise(&mut self, event: Event) {
        if event.is_enabled(self.config) && self.unread & event.bit() == 0 {
            self.pending |= event.bit();
        }
    }

    /// The host has read the log page of an event.
    pub(super) fn was_read(&mut self, event: Event) {
        self.unread &= !event.bit();
        self.pending &= !event.bit();
    }

    /// An event for a request: the request's command identifier and completion dword 0.
    pub(super) fn next(&mut self) -> Option<(u16, EventResult)> {
        let event = Event::ALL.into_iter().find(|event| self.pending & event.bit() != 0)?;
        if self.held.is_empty() {
            return None;
        }
        self.pending &= !event.bit();
        self.unread |= event.bit();
        Some((self.held.remove(0), event.result()))
    }

    /// A controller level reset: everything is forgotten; returns the requests that were held.
    pub(super) fn reset(&mut self) -> Vec<u16> {
        std::mem::take(self).held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enabled() -> Events {
        let mut events = Events::default();
        events.set_config(EventConfig(0).with_ns_attribute(true).with_discovery_log(true));
        events
    }

    #[test]
    fn an_event_waits_for_a_request_and_is_told_once_until_its_log_is_read() {
        let mut events = enabled();
        events.raise(Event::NamespaceAttribute);
        assert_eq!(events.next(), None);
        assert!(events.hold(7) && events.hold(8));
        let (cid, result) = events.next().unwrap();
        assert_eq!((cid, result.0), (7, 0x04_00_02));
        events.raise(Event::NamespaceAttribute);
        assert_eq!(events.next(), None);
        events.was_read(Event::NamespaceAttribute);
        events.raise(Event::NamespaceAttribute);
        assert_eq!(events.next().unwrap().0, 8);
    }

    #[test]
    fn an_event_that_nobody_asked_for_is_not_told() {
        let mut events = Events::default();
        assert!(events.hold(1));
        events.raise(Event::DiscoveryLog);
        assert_eq!(events.next(), None);
        events.set_config(EventConfig(0).with_discovery_log(true));
        events.raise(Event::DiscoveryLog);
        assert_eq!(events.next().unwrap().1.0, 0x70_f0_02);
    }

    #[test]
    fn requests_beyond_the_limit_are_refused_and_an_abort_takes_one_out() {
        let mut events = enabled();
        for cid in 0..4 {
            assert!(events.hold(cid));
        }
        assert!(!events.hold(4));
        assert!(events.abort(2) && !events.abort(2));
        assert!(events.hold(4));
        assert_eq!(events.reset(), [0, 1, 3, 4]);
        assert_eq!(events.config(), EventConfig(0));
    }
}
