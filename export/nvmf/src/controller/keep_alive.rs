//! The keep-alive timer (Base 3.9), traffic based: a command of any queue counts.

use penstock_reactor::Tick;

/// KAS: granularity of the timer, in units of 100 ms.
pub(super) const KAS: u16 = 1;
/// The granularity in milliseconds.
const GRANULARITY_MS: u64 = KAS as u64 * 100;
/// A controller that is not enabled for so long after its Connect or a reset is given up.
const ENABLE_TIMEOUT_NS: u64 = 120_000_000_000;
/// A discovery controller without a keep-alive timer is given up after so long without a command (Base 3.1.3.3).
const DISCOVERY_IDLE_NS: u64 = 120_000_000_000;

/// How late the timer may be looked at, at least, before it counts as not looked at at all.
const LEASE_GRACE_NS: u64 = 1_000_000_000;

/// One controller's timer. It runs while the controller is enabled; else the time to its enabling is bounded.
#[derive(Debug)]
pub(super) struct KeepAlive {
    kato_ms: u32,
    running: bool,
    discovery: bool,
    deadline: Tick,
}

impl KeepAlive {
    /// The timer of a controller that was just connected; `kato_ms` is Connect's.
    pub(super) fn new(kato_ms: u32, discovery: bool, now: Tick) -> Self {
        let deadline = now.plus_ns(ENABLE_TIMEOUT_NS);
        Self { kato_ms: rounded(kato_ms), running: false, discovery, deadline }
    }

    /// KATO as it is in force, in milliseconds; 0 where there is no timer.
    pub(super) const fn kato_ms(&self) -> u32 {
        self.kato_ms
    }

    /// Changes KATO (Set Features); rounded up to the granularity.
    pub(super) fn set_kato_ms(&mut self, kato_ms: u32, now: Tick) {
        self.kato_ms = rounded(kato_ms);
        self.restart(now);
    }

    /// The controller became ready, or ceased to be.
    pub(super) fn set_running(&mut self, running: bool, now: Tick) {
        self.running = running;
        self.restart(now);
    }

    /// A Keep Alive command came.
    pub(super) fn restart(&mut self, now: Tick) {
        self.deadline = match (self.running, self.kato_ms, self.discovery) {
            (false, ..) => now.plus_ns(ENABLE_TIMEOUT_NS),
            (true, 0, true) => now.plus_ns(DISCOVERY_IDLE_NS),
            (true, 0, false) => Tick::NEVER,
            (true, kato_ms, _) => now.plus_ns(u64::from(kato_ms) * 1_000_000),
        };
    }

    /// When to look next.
    pub(super) const fn deadline(&self) -> Tick {
        self.deadline
    }

    /// Whether the host is gone: the time is over and no command came in it.
    pub(super) fn expired(&mut self, traffic: impl FnOnce() -> bool, now: Tick) -> bool {
        if now < self.deadline {
            return false;
        }
        if !self.running || !traffic() || now > self.lease() {
            return true;
        }
        // The next interval begins where this one ended, however late that is seen: a command came in it, and that is all
        // that is known.
        let ended = if self.deadline == Tick::NEVER { now } else { self.deadline };
        self.restart(ended);
        self.deadline = self.deadline.max(now);
        false
    }

    /// Until when commands may be executed: the deadline, and a time in which this reactor has certainly looked at it. A
    /// host that hears nothing takes the controller for dead after three times KATO and CQT (Base 3.9, 9.6).
    pub(super) fn lease(&self) -> Tick {
        match (self.running, self.kato_ms) {
            (true, kato_ms @ 1..) => {
                self.deadline.plus_ns(u64::from(kato_ms).saturating_mul(1_000_000).max(LEASE_GRACE_NS))
            }
            _ => Tick::NEVER,
        }
    }
}

fn rounded(kato_ms: u32) -> u32 {
    let rounded = u64::from(kato_ms).next_multiple_of(GRANULARITY_MS);
    u32::try_from(rounded).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Tick {
        Tick::from_ns(ms * 1_000_000)
    }

    #[test]
    fn the_timer_runs_only_while_the_controller_is_enabled() {
        let mut timer = KeepAlive::new(1000, false, at(0));
        assert!(!timer.expired(|| false, at(5000)));
        timer.set_running(true, at(5000));
        assert!(!timer.expired(|| false, at(5999)));
        assert!(timer.expired(|| false, at(6000)));
    }

    #[test]
    fn traffic_or_a_keep_alive_command_restarts_it() {
        let mut timer = KeepAlive::new(950, false, at(0));
        assert_eq!(timer.kato_ms(), 1000);
        timer.set_running(true, at(0));
        timer.restart(at(900));
        assert!(!timer.expired(|| false, at(1899)));
        assert!(!timer.expired(|| true, at(1900)));
        assert!(timer.expired(|| false, at(2900)));
    }

    /// A process that was stopped executed what had come meanwhile when it went on, though its host had failed over: the
    /// traffic of before counted as of now.
    #[test]
    fn traffic_of_before_a_standstill_does_not_keep_a_controller_alive() {
        let mut timer = KeepAlive::new(5000, false, at(0));
        timer.set_running(true, at(0));
        assert_eq!(timer.lease(), at(10_000));
        assert!(!timer.expired(|| true, at(5200)));
        assert_eq!((timer.deadline(), timer.lease()), (at(10_000), at(15_000)));
        assert!(timer.expired(|| true, at(15_001)));
        assert_eq!(KeepAlive::new(0, false, at(0)).lease(), Tick::NEVER);
    }

    #[test]
    fn without_kato_only_an_idle_discovery_controller_or_one_never_enabled_expires() {
        let mut io = KeepAlive::new(0, false, at(0));
        assert!(io.expired(|| true, at(120_000)));
        io.set_running(true, at(0));
        assert!(!io.expired(|| false, at(1 << 40)));
        let mut discovery = KeepAlive::new(0, true, at(0));
        discovery.set_running(true, at(0));
        assert!(!discovery.expired(|| true, at(120_000)));
        assert!(discovery.expired(|| false, at(240_000)));
        assert_eq!(rounded(u32::MAX), u32::MAX);
    }
}
