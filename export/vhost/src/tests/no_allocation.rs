//! No request allocates memory once the queues have been filled: counted by the allocator itself.

use penstock_spec::virtio::blk::{RequestType, Status};

use super::guest::{Host, malloc};

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
        let before = penstock_allocations::count();
        host.turns(1);
        if turn >= turns {
            counted += penstock_allocations::count() - before;
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
