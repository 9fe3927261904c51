//! No request allocates memory once the queues have been filled: counted by the allocator itself.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use penstock_spec::virtio::blk::{RequestType, Status};

use super::guest::{Host, malloc};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: forwards to `System` unchanged; the counter has no effect on the memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.try_with(|count| count.set(count.get() + 1)).ok();
        // SAFETY: the caller upholds the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: `ptr` came from `System.alloc` with this `layout`.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static GLOBAL: Counting = Counting;

/// Turns of a queue with 32 requests under way; returns the allocations of the device's side.
fn allocations(packed: bool, turns: usize) -> u64 {
    let mut host = Host::new(malloc(512));
    let mut guest = host.guest(packed, 128);
    for place in 0..32 {
        let (kind, data) =
            if place % 3 == 0 { (RequestType::OUT, vec![7; 8192]) } else { (RequestType::IN, vec![]) };
        guest.submit(place, kind, place * 16, 8192, &data);
    }
    let (mut counted, mut done) = (0, 0_usize);
    for turn in 0..2 * turns {
        let before = ALLOCATIONS.get();
        host.turns(1);
        if turn >= turns {
            counted += ALLOCATIONS.get() - before;
        }
        while let Some((place, status, _)) = guest.ended() {
            assert_eq!(status, Status::OK);
            guest.resubmit(place, 8192, place % 3 != 0);
            done += 1;
        }
    }
    assert!(done >= 32 * turns, "only {done} requests in {} turns", 2 * turns);
    counted
}

#[test]
fn requests_in_a_steady_state_allocate_nothing() {
    for packed in [false, true] {
        assert_eq!(allocations(packed, 400), 0, "packed: {packed}");
    }
}
