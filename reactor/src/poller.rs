//! What a reactor calls every turn.

use crate::clock::Tick;
use crate::cx::Cx;

/// A function that looks for completions: of a device, of a group of sockets, of anything.
///
/// A poller has its own budget: it does a bounded amount of work per call (a turn should stay well below 1 ms, and a
/// poller that holds the core longer is reported by name) and takes the rest up at the next call.
pub trait Poller {
    /// Looks once; returns how many events it handled, 0 where there was nothing to do.
    fn poll(&mut self, cx: &Cx, now: Tick) -> usize;

    /// Whether the core may sleep as far as this poller goes. Asked only after an idle stretch, never per turn.
    ///
    /// The default suits a poller whose events come through descriptors of the reactor's
    /// [`SleepSet`](crate::sys::wake::SleepSet), messages or timers.
    fn rest(&mut self, _now: Tick) -> Rest {
        Rest::UntilWoken
    }
}

/// How long a poller can do without being called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// It must be called every turn: work is under way that nothing announces.
    Never,
    /// Until that time, or a wake-up.
    Until(Tick),
    /// Until a wake-up.
    UntilWoken,
}
