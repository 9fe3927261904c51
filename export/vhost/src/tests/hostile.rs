//! Guests that write anything into their rings at any moment, from seeds: a fixed budget of what the fuzz target does for
//! longer, with a disk behind the ring, several requests under way, and a neighbour.

use penstock_spec::virtio::blk::{RequestType, Status};

use super::guest::{Guest, Host, malloc};
use crate::ring::driver::{DATA, GPA};

const SEEDS: u64 = 300;
const STEPS: usize = 40;
/// Good requests among them; so many fit into the ring.
const REQUESTS: usize = 4;
/// Bytes of the driver's memory that its rings and tables are in.
const RING_BYTES: u64 = 0x2_4000;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// A number that means something somewhere, or nearly.
    fn word(&mut self) -> u64 {
        let known = [0, 1, 16, 512, GPA, GPA + DATA, GPA + 0x2_0000, GPA + (16 << 20), 1 << 32, u64::MAX];
        let at = usize::try_from(self.below(10)).unwrap();
        match self.below(4) {
            0 => self.next(),
            // A descriptor's length, flags and next, a ring's flags and index.
            1 => self.below(8192) | self.below(8) << 32 | self.below(20) << 48,
            2 => known[at],
            _ => known[at].wrapping_add(self.below(64)).wrapping_sub(32),
        }
    }
}

/// Where drivers write: mostly at the beginning of one of the ring's parts.
fn place(random: &mut Random) -> usize {
    let part = [0, 0, 0x8000, 0xa000, 0x2_0000][usize::try_from(random.below(5)).unwrap()];
    let offset = if random.below(8) == 0 { random.below(RING_BYTES) } else { part + random.below(96) };
    usize::try_from(offset & !7).unwrap()
}

fn attack(host: &mut Host, bad: &mut Guest, offered: &mut usize, random: &mut Random) {
    match random.below(4) {
        0 if *offered < REQUESTS => {
            *offered += 1;
            let kinds = [RequestType::IN, RequestType::OUT, RequestType::DISCARD, RequestType::FLUSH];
            let kind = kinds[usize::try_from(random.below(4)).unwrap()];
            let data = vec![1; usize::try_from(random.below(3) * 512).unwrap()];
            bad.submit(
                random.below(3),
                kind,
                random.below(40_000),
                u32::try_from(data.len()).unwrap(),
                &data,
            );
        }
        1 => host.turns(usize::try_from(random.below(3)).unwrap()),
        _ => bad.driver.memory().store_u64(place(random), random.word()),
    }
}

#[test]
fn whatever_a_guest_writes_into_its_rings_its_neighbour_does_not_notice() {
    let mut broken = 0;
    for seed in 0..SEEDS {
        let mut random = Random(seed);
        let mut host = Host::new(malloc(512));
        let (packed, mut offered) = (seed % 2 == 1, 0);
        let (mut good, mut bad) = (host.guest(packed, 16), host.guest(packed, 16));
        for step in 0..STEPS {
            attack(&mut host, &mut bad, &mut offered, &mut random);
            if step % 16 == 0 {
                assert_eq!(
                    good.run(&mut host, RequestType::IN, 0, 512, &[]),
                    (Status::OK, 513),
                    "seed {seed}"
                );
            }
        }
        host.turns(3);
        broken += usize::from(bad.session.is_broken());
        assert!(!good.session.is_broken(), "seed {seed}");
        let mut stopped = host.worker.stop(bad.key).unwrap();
        host.turns(3);
        assert!(matches!(stopped.try_recv(), Ok(Some(_))), "seed {seed}: its queue does not stop");
        assert_eq!(good.run(&mut host, RequestType::OUT, 8, 512, &[7; 512]), (Status::OK, 1), "seed {seed}");
    }
    let all = usize::try_from(SEEDS).unwrap();
    assert!(
        (all / 10..all).contains(&broken),
        "{broken} of {SEEDS} were broken: the attacks are not what they should be"
    );
}
