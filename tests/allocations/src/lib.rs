//! The allocator of tests that show that nothing is allocated: the system's, counting the allocations of each thread.
//!
//! Invariant: a program that uses this crate has it as its global allocator; only tests do.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Passes everything on to the system's allocator. What grows or shrinks in place counts too, as the trait's own
/// `realloc` allocates.
struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: forwards to `System` unchanged; the counter neither allocates nor is dropped.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: the caller upholds the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: `ptr` came from `System.alloc` with this `layout`.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Allocations of the calling thread so far.
#[must_use]
pub fn count() -> u64 {
    COUNT.get()
}

#[cfg(test)]
mod tests {
    #[test]
    fn allocations_of_the_thread_are_counted_and_no_others() {
        let before = super::count();
        let mut bytes = vec![0_u8; 100];
        assert_eq!(super::count() - before, 1);
        bytes.reserve_exact(1000);
        assert_eq!(super::count() - before, 2);
        let others = std::thread::spawn(|| drop(vec![0_u8; 100]));
        let started = super::count();
        others.join().ok();
        assert_eq!(super::count(), started);
        drop(bytes);
        assert_eq!(super::count(), started);
    }
}
