//! Waiting on an epoll set, on every kernel that has one: `epoll_pwait2`, with its timeouts in nanoseconds, came with
//! Linux 5.11, and sandboxes and debuggers may not know it; `epoll_wait` counts milliseconds.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::Timespec;
use rustix::event::epoll::{self, Event};
use rustix::io::{Errno, Result};

/// Whether this kernel has said that it has no `epoll_pwait2`.
static IS_OLD: AtomicBool = AtomicBool::new(false);

/// How many events there are just now, put at the beginning of `events`.
#[inline]
pub(crate) fn look(set: impl AsFd, events: &mut [Event]) -> Result<usize> {
    wait_ms(set, events, 0)
}

/// As [`look`], but waits for an event as long as `timeout_ns`, or for ever where that is `None`.
pub(crate) fn sleep(set: impl AsFd, events: &mut [Event], timeout_ns: Option<u64>) -> Result<usize> {
    const NS_PER_S: u64 = 1_000_000_000;
    const NS_PER_MS: u64 = 1_000_000;
    let Some(ns) = timeout_ns else { return wait_ms(set, events, -1) };
    if !IS_OLD.load(Ordering::Relaxed) {
        let timeout = Timespec {
            tv_sec: i64::try_from(ns / NS_PER_S).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(ns % NS_PER_S).unwrap_or(0),
        };
        match epoll::wait(&set, &mut *events, Some(&timeout)) {
            Err(Errno::NOSYS) => IS_OLD.store(true, Ordering::Relaxed),
            waited => return waited,
        }
    }
    // Rounded down: the last part of a millisecond is spun away, rather than a timer served late.
    wait_ms(set, events, i32::try_from(ns / NS_PER_MS).unwrap_or(i32::MAX))
}

#[inline]
fn wait_ms(set: impl AsFd, events: &mut [Event], timeout_ms: i32) -> Result<usize> {
    const {
        assert!(size_of::<Event>() == size_of::<libc::epoll_event>());
        assert!(align_of::<Event>() >= align_of::<libc::epoll_event>());
    }
    let len = i32::try_from(events.len()).unwrap_or(i32::MAX);
    let list = events.as_mut_ptr().cast::<libc::epoll_event>();
    // SAFETY: the kernel writes at most `len` events to the list; rustix's type has the layout of libc's.
    let found = unsafe { libc::epoll_wait(set.as_fd().as_raw_fd(), list, len, timeout_ms) };
    usize::try_from(found)
        .map_err(|_| Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}

#[cfg(test)]
mod tests {
    use rustix::event::EventfdFlags;

    use super::*;

    fn set() -> (rustix::fd::OwnedFd, rustix::fd::OwnedFd) {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let bell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        epoll::add(&set, &bell, epoll::EventData::new_u64(7), epoll::EventFlags::IN).unwrap();
        (set, bell)
    }

    fn no_events() -> [Event; 4] {
        [Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 4]
    }

    #[test]
    fn both_ways_find_the_same_event() {
        let (set, bell) = set();
        let mut events = no_events();
        assert_eq!(look(&set, &mut events), Ok(0));
        rustix::io::write(&bell, &[1; 8]).unwrap();
        for found in
            [look(&set, &mut events), sleep(&set, &mut events, None), sleep(&set, &mut events, Some(5))]
        {
            assert_eq!(found, Ok(1));
            let Event { flags, data } = events[0];
            assert_eq!((flags, data.u64()), (epoll::EventFlags::IN, 7));
        }
    }

    #[test]
    fn a_sleep_ends_in_time_with_and_without_epoll_pwait2() {
        let (set, _bell) = set();
        for is_old in [false, true] {
            IS_OLD.store(is_old, Ordering::Relaxed);
            let start = crate::sys::tsc::monotonic_ns();
            assert_eq!(sleep(&set, &mut no_events(), Some(3_400_000)), Ok(0));
            let slept_ns = crate::sys::tsc::monotonic_ns() - start;
            assert!(slept_ns >= 2_900_000, "{is_old}: {slept_ns} ns");
        }
        IS_OLD.store(false, Ordering::Relaxed);
    }
}
