//! Which disks get what: weighted rendezvous hashing, the same for the disks of a node as for the nodes of a cluster.
//!
//! Every key (an egroup, a lane's log) ranks all candidates by a score of its own; copies go to the first ones that are in different
//! failure domains and have room. What a candidate that comes or goes takes or leaves moves to or from it alone. Integers only, so that
//! everybody who computes it gets the same.

/// Something that copies can be put on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Its identity: as long as this stays, so does its rank.
    pub id: u64,
    /// What fails together: no two copies go to the same.
    pub domain: u64,
    /// Its share; 0: it is not to be used.
    pub weight: u64,
    /// Those with a lower class come first, whatever their scores: the tier that is wanted before others.
    pub class: u8,
}

/// The candidates for `key` by their places in `candidates`, the best first; of each domain only the best.
#[must_use]
pub fn ranked(key: u64, candidates: &[Candidate]) -> Vec<usize> {
    let mut order: Vec<(u8, u128, usize)> = candidates
        .iter()
        .enumerate()
        .filter(|(_, candidate)| candidate.weight > 0)
        .map(|(at, candidate)| (candidate.class, score(key, candidate), at))
        .collect();
    order.sort_unstable();
    let mut domains = std::collections::BTreeSet::new();
    order.retain(|(_, _, at)| candidates.get(*at).is_some_and(|candidate| domains.insert(candidate.domain)));
    order.into_iter().map(|(_, _, at)| at).collect()
}

/// The less, the better: an exponentially distributed number with the weight as its rate.
fn score(key: u64, candidate: &Candidate) -> u128 {
    let hash = mix(mix(key) ^ candidate.id);
    (u128::from(minus_log2(hash)) << 64) / u128::from(candidate.weight.max(1))
}

/// A good 64-bit mixer (the finalizer of `SplitMix64`).
fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// −log2 of `hash / 2^64`, with 32 bits after the point.
fn minus_log2(hash: u64) -> u64 {
    let hash = hash.max(1);
    let zeroes = hash.leading_zeros();
    // The mantissa, from 1 to 2, with 63 bits after the point.
    let mut mantissa = u128::from(hash << zeroes);
    let mut fraction = 0_u64;
    for _ in 0..32 {
        mantissa = (mantissa * mantissa) >> 63;
        fraction <<= 1;
        if mantissa >> 64 > 0 {
            mantissa >>= 1;
            fraction |= 1;
        }
    }
    ((u64::from(zeroes) + 1) << 32) - fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disks(count: u64) -> Vec<Candidate> {
        (0..count).map(|id| Candidate { id, domain: id, weight: 100, class: 0 }).collect()
    }

    #[test]
    fn logarithms_are_right() {
        for (hash, expected) in [(1_u64 << 63, 1.0), (1 << 62, 2.0), (3 << 62, 0.415_037_5), (1, 64.0)] {
            #[expect(clippy::cast_precision_loss, reason = "compared roughly")]
            let found = minus_log2(hash) as f64 / f64::from(u32::MAX);
            assert!((found - expected).abs() < 1e-6, "{hash:x}: {found}");
        }
    }

    #[test]
    fn shares_are_as_weights_say_and_domains_are_kept_apart() {
        let mut candidates = disks(4);
        candidates[3].weight = 300;
        let mut firsts = [0_u32; 4];
        for key in 0..60_000 {
            firsts[ranked(key, &candidates)[0]] += 1;
        }
        for (at, expected) in [(0, 10_000), (1, 10_000), (2, 10_000), (3, 30_000)] {
            assert!(firsts[at].abs_diff(expected) < 500, "{firsts:?}");
        }
        candidates[1].domain = candidates[0].domain;
        candidates[2].weight = 0;
        for key in 0..1000 {
            let order = ranked(key, &candidates);
            assert!(order.len() == 2 && order.contains(&3), "{order:?}");
        }
    }

    #[test]
    fn a_disk_that_goes_moves_only_what_it_had() {
        let before = disks(5);
        let mut after = before.clone();
        after[2].weight = 0;
        for key in 0..5000 {
            let was: Vec<usize> = ranked(key, &before).into_iter().filter(|at| *at != 2).collect();
            assert_eq!(ranked(key, &after), was);
        }
    }

    #[test]
    fn a_class_comes_before_every_score() {
        let mut candidates = disks(3);
        candidates[1].class = 1;
        assert!((0..1000).all(|key| ranked(key, &candidates)[2] == 1));
    }
}
