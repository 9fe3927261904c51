//! A memory barrier on all threads of the process at once, so that those who pass it often need none of their own.
//!
//! Two threads that each write a word and then read the other's both need a full barrier in between, or both may miss the
//! other. Where one of them does so for every I/O and the other rarely, the rare one calls [`every_core`] between its
//! write and its read; for the frequent one [`light`] is enough, which costs nothing. A thread that does not run just
//! now is not waited for: being scheduled out is a barrier.

use std::sync::OnceLock;
use std::sync::atomic::{Ordering, compiler_fence};

/// `enum membarrier_cmd` of linux/membarrier.h.
const PRIVATE_EXPEDITED: libc::c_int = 1 << 3;
const REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;

/// Puts a full barrier between what every other thread of the process did before this call and what it does after it.
/// Returns whether that was possible: kernels before 4.14 and some sandboxes cannot.
#[must_use]
pub fn every_core() -> bool {
    static IS_REGISTERED: OnceLock<bool> = OnceLock::new();
    let registered = *IS_REGISTERED.get_or_init(|| call(REGISTER_PRIVATE_EXPEDITED));
    registered && call(PRIVATE_EXPEDITED)
}

/// The frequent side's part, between its write and its read: the compiler keeps their order.
#[inline]
pub fn light() {
    compiler_fence(Ordering::SeqCst);
}

fn call(command: libc::c_int) -> bool {
    if cfg!(miri) {
        return false;
    }
    // SAFETY: membarrier takes numbers only and touches no memory of the process.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn of_two_who_announce_themselves_at_least_one_sees_the_other() {
        if !every_core() {
            return;
        }
        for _ in 0..2_000 {
            let words = [AtomicU32::new(0), AtomicU32::new(0)];
            let seen = std::thread::scope(|scope| {
                let frequent = scope.spawn(|| {
                    words[0].store(1, Ordering::Relaxed);
                    light();
                    words[1].load(Ordering::Relaxed)
                });
                words[1].store(1, Ordering::Relaxed);
                assert!(every_core());
                [frequent.join().unwrap(), words[0].load(Ordering::Relaxed)]
            });
            assert_ne!(seen, [0, 0]);
        }
    }
}
