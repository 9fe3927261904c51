use std::collections::BTreeMap;

use penstock_reactor::rng::Rng;

use super::*;

fn key(number: u64) -> BlockKey {
    BlockKey::new(
        EgroupId(1 + number / 1000),
        ExtentNo(u16::try_from(number % 1000 / 16).unwrap()),
        (number % 16) as u8,
    )
}

fn bytes(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(BLOCK_BYTES / 8)
}

/// Reads a block by way of the cache; true: it was there.
fn read(cache: &mut BlockCache, number: u64) -> bool {
    if let Some(found) = cache.get(key(number)) {
        assert!(found[..] == bytes(number)[..], "block {number} is another one");
        return true;
    }
    cache.insert(key(number), &bytes(number));
    false
}

fn read_all(cache: &mut BlockCache, numbers: std::ops::Range<u64>) {
    for number in numbers {
        read(cache, number);
    }
}

/// Every slot is in one list or free, and in its chain.
fn check(cache: &BlockCache) {
    let mut seen = vec![false; cache.slots.len()];
    for (list, pool) in [(cache.single, Pool::Single), (cache.multi, Pool::Multi)] {
        let (mut slot, mut before, mut len) = (list.first, NONE, 0);
        while slot != NONE {
            let found = cache.slot(slot);
            assert!(found.before == before && found.pool == pool && cache.find(found.key) == Some(slot));
            assert!(!std::mem::replace(&mut seen[index(slot)], true));
            (before, slot, len) = (slot, found.after, len + 1);
        }
        assert_eq!((list.last, list.len), (before, len));
    }
    for slot in &cache.free {
        assert!(!std::mem::replace(&mut seen[index(*slot)], true));
        assert_eq!(cache.slot(*slot).pool, Pool::Free);
    }
    assert!(seen.iter().all(|seen| *seen), "a slot is lost");
}

#[test]
fn a_scan_leaves_what_is_read_again_and_again() {
    let mut cache = BlockCache::new(1024);
    for _ in 0..4 {
        read_all(&mut cache, 0..500);
    }
    read_all(&mut cache, 10_000..30_000);
    let left = (0..500).filter(|number| read(&mut cache, *number)).count();
    assert!(left >= 490, "{left} of 500 hot blocks survived a scan of twenty times the cache");
    check(&cache);
}

#[test]
fn a_block_that_comes_back_soon_is_kept_longer() {
    let mut cache = BlockCache::new(256);
    read_all(&mut cache, 0..600);
    assert!(!read(&mut cache, 300), "block 300 should have given way");
    let stats = cache.stats();
    assert_eq!((stats.ghost_hits, stats.multi_blocks), (1, 1));
    check(&cache);
}

#[test]
fn blocks_are_what_they_were_through_any_history_and_size() {
    for seed in 0..20 {
        let mut rng = Rng::seeded(seed);
        let mut cache = BlockCache::new(512);
        let mut history: BTreeMap<u64, u64> = BTreeMap::new();
        for step in 0..4000 {
            let number = if rng.chance(500) { rng.below(200) } else { rng.below(3000) };
            read(&mut cache, number);
            *history.entry(number).or_insert(0) += 1;
            if rng.chance(3) {
                cache.set_blocks(usize::try_from(rng.below(5) * 256).unwrap());
                check(&cache);
            }
            assert!(
                cache.stats().single_blocks + cache.stats().multi_blocks <= cache.stats().blocks_max,
                "{step}"
            );
        }
        check(&cache);
        let stats = cache.stats();
        assert_eq!(stats.single_hits + stats.multi_hits + stats.misses, 4000);
    }
}
