use std::collections::BTreeMap;

use penstock_reactor::rng::Rng;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::format::{Identity, Magic};
use crate::id::LaneNo;

/// Stored nodes, behind a cache that is too small for them.
struct Bench {
    cache: NodeCache,
    stored: BTreeMap<NodeRef, Vec<u8>>,
    root: Root,
    next: u64,
    misses: u64,
}

fn identity_of(node: &NodeRef) -> Identity {
    let (address, sequence) = (u64::from(node.extent.0), node.egroup.0);
    Identity { magic: Magic::NODE, pool: Uuid::nil(), disk: 0, lane: LaneNo(0), address, sequence }
}

impl Bench {
    fn new() -> Self {
        Self {
            cache: NodeCache::new(NODES_MIN),
            stored: BTreeMap::new(),
            root: Root::default(),
            next: 1,
            misses: 0,
        }
    }

    fn fetch(&mut self, miss: Miss) {
        self.misses += 1;
        let page = Page::parse(&identity_of(&miss.0), miss.0.crc, &self.stored[&miss.0]).unwrap();
        self.cache.insert(miss.0.key(), page);
    }

    fn replace(&mut self, edit: &mut Edit, mut block: u64, mut blocks: u64, mut target: Option<Target>) {
        while blocks > 0 {
            match edit.replace(&self.cache, VBlock(block), blocks, target) {
                Err(miss) => self.fetch(miss),
                Ok(done) => {
                    assert!(done > 0 && done <= blocks);
                    (block, blocks) = (block + done, blocks - done);
                    if let Some(target) = &mut target {
                        target.first += u8::try_from(done).unwrap();
                    }
                }
            }
        }
    }

    fn store(&mut self, edit: Edit) {
        let (next, stored) = (&mut self.next, &mut self.stored);
        let mut place = |_| {
            *next += 1;
            let node =
                NodeRef { egroup: EgroupId(*next / 100), extent: ExtentNo((*next % 100) as u16), crc: 0 };
            (node, identity_of(&node))
        };
        let mut keep = |node, page: Page| drop(stored.insert(node, page.bytes().to_vec()));
        self.root = edit.store(&mut place, &mut keep);
    }

    fn lookup(&mut self, root: Root, block: u64) -> Found {
        loop {
            match lookup(&self.cache, root, VBlock(block)) {
                Ok(found) => return found,
                Err(miss) => self.fetch(miss),
            }
        }
    }

    /// The whole map, block by block, by way of lookups.
    fn all(&mut self, root: Root, end: u64) -> BTreeMap<u64, (u64, u16, u8)> {
        let (mut all, mut block) = (BTreeMap::new(), 0);
        while block < end {
            match self.lookup(root, block) {
                Found::Hole { blocks } => block += blocks.max(1).min(end - block),
                Found::Run { egroup, extent, first, blocks } => {
                    for at in 0..blocks {
                        all.insert(block + at, (egroup.0, extent.0, first + u8::try_from(at).unwrap()));
                    }
                    block += blocks;
                }
            }
        }
        all
    }

    /// Every node that a root leads to; checks each.
    fn nodes(&self, root: Root) -> Vec<NodeRef> {
        let mut nodes = Vec::new();
        let mut todo: Vec<(NodeRef, u8)> = root.node.map(|node| (node, root.level)).into_iter().collect();
        while let Some((node, level)) = todo.pop() {
            let page = Page::parse(&identity_of(&node), node.crc, &self.stored[&node]).unwrap();
            assert_eq!(page.level(), level);
            nodes.push(node);
            if level > 0 {
                todo.extend(
                    (0..page.count()).map(|at| (page.inner(at).unwrap().stored().unwrap(), level - 1)),
                );
            }
        }
        nodes
    }
}

type Model = BTreeMap<u64, (u64, u16, u8)>;

fn change(model: &mut Model, block: u64, blocks: u64, target: Option<Target>) -> u64 {
    let mut dead = 0;
    for at in 0..blocks {
        let old = match target {
            Some(target) => {
                model.insert(block + at, (target.egroup.0, target.extent.0, target.first + at as u8))
            }
            None => model.remove(&(block + at)),
        };
        dead += u64::from(old.is_some());
    }
    dead
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    #[test]
    fn a_map_agrees_with_a_naive_one_and_snapshots_stay_as_they_were(seed: u64, span in 50..4000_u64, steps in 1..40_usize) {
        let mut rng = Rng::seeded(seed);
        let mut bench = Bench::new();
        let mut model = Model::new();
        let mut snapshots: Vec<(Root, Model)> = Vec::new();
        for step in 0..steps {
            let mut edit = Edit::new(bench.root);
            let mut dead = 0;
            for change_no in 0..1 + rng.below(200) {
                let block = rng.below(span);
                let (blocks, target) = if rng.chance(200) {
                    (1 + rng.below(span / 4), None)
                } else {
                    let first = rng.below(4) as u8;
                    let (egroup, extent) = (EgroupId(1_000_000 + step as u64), ExtentNo(change_no as u16));
                    (1 + rng.below(12), Some(Target { egroup, extent, first }))
                };
                bench.replace(&mut edit, block, blocks, target);
                dead += change(&mut model, block, blocks, target);
            }
            let said: u64 = edit.take_dead().iter().filter(|dead| dead.egroup.0 >= 1_000_000).map(|dead| dead.blocks).sum();
            prop_assert_eq!(said, dead);
            let before = snapshots.last().map_or(0, |(_, model)| model.len() as i64);
            prop_assert_eq!(before + edit.mapped(), model.len() as i64);
            bench.store(edit);
            snapshots.push((bench.root, model.clone()));
            bench.nodes(bench.root);
        }
        for (root, model) in snapshots.iter().step_by(3) {
            prop_assert_eq!(&bench.all(*root, span + 5000), model);
        }
    }
}

#[test]
fn removing_everything_leaves_an_empty_map_and_names_every_node_as_dead() {
    let mut bench = Bench::new();
    let mut edit = Edit::new(bench.root);
    for number in 0..20_000 {
        let target = Target { egroup: EgroupId(1 << 40), extent: ExtentNo((number % 1000) as u16), first: 0 };
        bench.replace(&mut edit, number * 3, 2, Some(target));
    }
    bench.store(edit);
    let nodes = bench.nodes(bench.root);
    assert!(bench.root.level == 1 && nodes.len() < 20_000 / 140, "{} nodes for runs in order", nodes.len());
    let mut edit = Edit::new(bench.root);
    bench.replace(&mut edit, 0, u64::MAX / 2, None);
    let dead = edit.take_dead();
    let (runs, gone): (Vec<Dead>, Vec<Dead>) = dead.iter().partition(|dead| dead.egroup.0 == 1 << 40);
    assert_eq!(runs.iter().map(|dead| dead.blocks).sum::<u64>(), 40_000);
    assert_eq!((gone.len(), edit.mapped()), (nodes.len(), -40_000));
    bench.store(edit);
    assert_eq!(bench.root, Root::default());
}

#[test]
fn runs_of_one_extent_become_one_entry_again() {
    let mut bench = Bench::new();
    let mut edit = Edit::new(bench.root);
    for first in [0, 2, 1, 3, 7, 5, 6, 4] {
        let target = Target { egroup: EgroupId(9), extent: ExtentNo(1), first };
        bench.replace(&mut edit, 100 + u64::from(first), 1, Some(target));
    }
    bench.store(edit);
    let found = bench.lookup(bench.root, 100);
    assert_eq!(found, Found::Run { egroup: EgroupId(9), extent: ExtentNo(1), first: 0, blocks: 8 });
}

#[test]
fn a_node_that_is_not_the_one_the_parent_knows_is_refused() {
    let mut bench = Bench::new();
    let mut edit = Edit::new(bench.root);
    bench.replace(&mut edit, 5, 1, Some(Target { egroup: EgroupId(9), extent: ExtentNo(1), first: 0 }));
    bench.store(edit);
    let node = bench.root.node.unwrap();
    let bytes = &bench.stored[&node];
    assert!(Page::parse(&identity_of(&node), node.crc, bytes).is_ok());
    assert!(Page::parse(&identity_of(&node), node.crc ^ 1, bytes).is_err());
    let other = NodeRef { extent: ExtentNo(node.extent.0 + 1), ..node };
    assert!(Page::parse(&identity_of(&other), node.crc, bytes).is_err());
}
