//! The time-stamp counter, calibrated against `CLOCK_MONOTONIC`.

use std::sync::OnceLock;

use rustix::time::{ClockId, clock_gettime};

/// How long the calibration looks at both clocks. An error of 20 ns at each end is 20 ppm.
const CALIBRATION_NS: u64 = 2_000_000;

/// `CLOCK_MONOTONIC`, in nanoseconds.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let secs = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    secs.saturating_mul(1_000_000_000).saturating_add(nanos)
}

/// `CLOCK_MONOTONIC` when this process first asked: the zero of every clock of the process.
pub fn monotonic_base_ns() -> u64 {
    static BASE: OnceLock<u64> = OnceLock::new();
    *BASE.get_or_init(monotonic_ns)
}

/// A calibrated counter: `ns = (tsc - base) * mult >> 32`.
#[derive(Debug, Clone, Copy)]
pub struct Tsc {
    base: u64,
    mult: u64,
}

impl Tsc {
    /// The process's counter, or `None` where it is not invariant.
    #[must_use]
    pub fn calibrated() -> Option<Self> {
        static TSC: OnceLock<Option<Tsc>> = OnceLock::new();
        *TSC.get_or_init(|| is_invariant().then(calibrate).flatten())
    }

    /// Nanoseconds since calibration began.
    #[inline]
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        let cycles = read().saturating_sub(self.base);
        // 64 × 64 bits, shifted by 32, overflows 64 bits only after centuries.
        u64::try_from((u128::from(cycles) * u128::from(self.mult)) >> 32).unwrap_or(u64::MAX)
    }
}

fn calibrate() -> Option<Tsc> {
    let (ns0, base) = (monotonic_ns(), read());
    let (mut ns1, mut end) = (ns0, base);
    while ns1.saturating_sub(ns0) < CALIBRATION_NS {
        ns1 = monotonic_ns();
        end = read();
    }
    let cycles = end.checked_sub(base).filter(|cycles| *cycles > 0)?;
    let mult = (u128::from(ns1 - ns0) << 32) / u128::from(cycles);
    Some(Tsc { base, mult: u64::try_from(mult).ok()? })
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn read() -> u64 {
    // SAFETY: RDTSC reads a counter; it exists on every x86-64 and user space may use it wherever
    // `is_invariant` found the kernel using it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
#[inline]
fn read() -> u64 {
    monotonic_ns()
}

/// The kernel itself keeps time by the TSC only where it found it stable and synchronised over all cores.
fn is_invariant() -> bool {
    cfg!(target_arch = "x86_64")
        && std::fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource")
            .is_ok_and(|source| source.trim() == "tsc")
}
