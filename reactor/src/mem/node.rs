//! The allocators of the machine's NUMA nodes, and each thread's cache in front of its own.

use std::cell::{Cell, RefCell};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{OnceLock, TryLockError};

use super::arena::{ARENA_BYTES, Arena, Backing, Hugepages};
use super::buddy::Buddy;
use super::{ORDERS, PAGE_BYTES, observer};
use crate::error::ReactorError;
use crate::sys::numa::NumaTopology;

/// NUMA nodes that are told apart; memory of further ones is taken from the last.
pub(crate) const NODES_MAX: usize = 64;
/// Arenas of one node at most.
const ARENAS_MAX: usize = 4096;
/// A thread keeps at most this many bytes of one size to itself.
const CACHE_BYTES_PER_ORDER: usize = 2 << 20;
/// [`maintain`] maps more when less than this part (1/n) of a node is free.
const FREE_PART: u64 = 4;

#[expect(
    clippy::disallowed_types,
    reason = "only ever try-locked by reactors, when a cache is empty or full"
)]
type Lock<T> = std::sync::Mutex<T>;

/// How much memory for data, and of what kind.
#[derive(Debug, Clone, Copy)]
pub struct MemConfig {
    /// Whether to use hugepages.
    pub hugepages: Hugepages,
    /// Mapped per NUMA node at start-up, in bytes; rounded up to whole arenas.
    pub initial_bytes: usize,
    /// Mapped per NUMA node at most, in bytes; rounded down to whole arenas, at least one.
    pub max_bytes: usize,
    /// NUMA nodes to keep apart, as [`NumaTopology`] counts them.
    pub nodes: usize,
}

impl Default for MemConfig {
    /// 64 MiB, growing to 1 GiB, on each node of this machine.
    fn default() -> Self {
        let nodes = NumaTopology::system().nodes_len();
        Self { hugepages: Hugepages::Auto, initial_bytes: 64 << 20, max_bytes: 1 << 30, nodes }
    }
}

/// Memory of all nodes, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemStats {
    /// Mapped.
    pub mapped_bytes: u64,
    /// In no buffer and no thread's cache.
    pub free_bytes: u64,
    /// Requests for a buffer that found none.
    pub misses: u64,
}

/// An arena, for devices that must be told of memory beforehand (registered buffers, DMA mappings).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArenaInfo {
    /// First address.
    pub base: usize,
    /// Length in bytes.
    pub len: usize,
    /// What it is made of.
    pub backing: Backing,
    /// Its NUMA node.
    pub node: usize,
}

struct Inner {
    arenas: Vec<(Arena, Buddy)>,
}

struct Node {
    inner: Lock<Inner>,
    misses: AtomicU64,
}

struct Memory {
    config: MemConfig,
    nodes: Vec<Node>,
}

static MEMORY: OnceLock<Memory> = OnceLock::new();

thread_local! {
    static CACHE: RefCell<Cache> = const { RefCell::new(Cache { stacks: [const { Vec::new() }; ORDERS] }) };
    static NODE: Cell<usize> = const { Cell::new(0) };
    /// Set on reactors: a node's lock that is held just then is not waited for.
    static NEVER_WAITS: Cell<bool> = const { Cell::new(false) };
}

/// Sets the memory up. Without it, the first buffer sets it up with the defaults.
///
/// # Errors
/// [`ReactorError::Memory`] when the initial memory cannot be mapped. A second call changes nothing and succeeds.
pub fn init(config: MemConfig) -> Result<(), ReactorError> {
    if MEMORY.get().is_some() {
        return Ok(());
    }
    let mut nodes = Vec::new();
    for node in 0..config.nodes.clamp(1, NODES_MAX) {
        let mut arenas = Vec::with_capacity(ARENAS_MAX.min(config.max_bytes / ARENA_BYTES + 1));
        let wanted = config.initial_bytes.div_ceil(ARENA_BYTES).clamp(1, ARENAS_MAX);
        while arenas.len() < wanted {
            let room_bytes = (wanted - arenas.len()) * ARENA_BYTES;
            let mapped = Arena::map(config.hugepages, node, room_bytes)?;
            arenas.extend(mapped.into_iter().map(|arena| (arena, new_buddy())));
        }
        arenas.sort_by_key(|(arena, _)| arena.base());
        nodes.push(Node { inner: Lock::new(Inner { arenas }), misses: AtomicU64::new(0) });
    }
    MEMORY.get_or_init(|| Memory { config, nodes });
    Ok(())
}

/// Takes the calling thread's buffers from `node` from now on.
///
/// What it keeps of its old node's goes back first: the number in a buffer must be that of the node it came from.
pub fn bind_thread_to_node(node: usize) {
    let node = node.min(NODES_MAX - 1);
    if node != NODE.get() {
        CACHE.with_borrow_mut(Cache::empty);
        NODE.set(node);
    }
}

/// Makes the calling thread one that never waits for a node's lock: finding it held counts as finding no buffer.
pub(crate) fn never_wait() {
    NEVER_WAITS.set(true);
}

/// Maps more memory where a node runs low and may grow. For a control thread, every few milliseconds: it may block.
///
/// # Errors
/// [`ReactorError::Memory`] when the system has no more; nothing is lost.
pub fn maintain() -> Result<(), ReactorError> {
    let memory = memory();
    for (index, node) in memory.nodes.iter().enumerate() {
        let (mapped, free) = node.with(Inner::bytes);
        let wants_more = free < mapped / FREE_PART
            && mapped.saturating_add(arena_bytes()) <= to_u64(memory.config.max_bytes);
        if !wants_more {
            continue;
        }
        let room_bytes =
            memory.config.max_bytes.saturating_sub(usize::try_from(mapped).unwrap_or(usize::MAX));
        let new = Arena::map(memory.config.hugepages, index, room_bytes)?;
        let infos: Vec<ArenaInfo> = new.iter().map(|arena| info_of(arena, index)).collect();
        observer::announce(&infos, || {
            for arena in new {
                let buddy = new_buddy();
                node.with(|inner| {
                    let at = inner.arenas.partition_point(|(other, _)| other.base() < arena.base());
                    inner.arenas.insert(at, (arena, buddy));
                });
            }
        });
    }
    Ok(())
}

/// How much there is.
#[must_use]
pub fn stats() -> MemStats {
    let mut stats = MemStats::default();
    for node in &memory().nodes {
        let (mapped, free) = node.with(Inner::bytes);
        stats.mapped_bytes += mapped;
        stats.free_bytes += free;
        stats.misses += node.misses.load(Ordering::Relaxed);
    }
    stats
}

/// All arenas, by node and address. The list only grows.
#[must_use]
pub fn arenas() -> Vec<ArenaInfo> {
    let mut all = Vec::new();
    for (index, node) in memory().nodes.iter().enumerate() {
        node.with(|inner| {
            all.extend(inner.arenas.iter().map(|(arena, _)| info_of(arena, index)));
        });
    }
    all
}

/// Takes a block of 4 KiB << `order`, and the node it comes from.
#[inline]
pub(crate) fn take(order: usize) -> Option<(NonNull<u8>, u8)> {
    let node = NODE.get();
    let cached = CACHE.with_borrow_mut(|cache| cache.stacks.get_mut(order).and_then(Vec::pop));
    let block = cached.or_else(|| refill(order, node))?;
    Some((block, u8::try_from(node).unwrap_or(0)))
}

/// Gives a block back, to the calling thread's cache.
#[inline]
pub(crate) fn give(block: NonNull<u8>, order: usize, node: u8) {
    let foreign = usize::from(node) != NODE.get();
    // A thread that is ending has no cache any more.
    let kept = !foreign && CACHE.try_with(|cache| cache.borrow_mut().put(block, order)).is_ok();
    if !kept {
        // The one place where a reactor may wait for a lock, a few microseconds at most: a buffer from another core's node.
        memory().node(usize::from(node)).with(|inner| inner.give(block, order));
    }
}

#[cold]
fn refill(order: usize, node: usize) -> Option<NonNull<u8>> {
    let node = memory().node(node);
    let batch = cache_len(order) / 2;
    let first = node.try_with(|inner| {
        let first = inner.take(order)?;
        CACHE.with_borrow_mut(|cache| {
            let stack = cache.stacks.get_mut(order)?;
            stack.reserve_exact(cache_len(order).saturating_sub(stack.len()));
            for _ in 1..batch {
                let Some(block) = inner.take(order) else { break };
                stack.push(block);
            }
            Some(())
        });
        Some(first)
    });
    let block = first.flatten();
    if block.is_none() {
        node.misses.fetch_add(1, Ordering::Relaxed);
    }
    block
}

struct Cache {
    stacks: [Vec<NonNull<u8>>; ORDERS],
}

impl Cache {
    fn put(&mut self, block: NonNull<u8>, order: usize) {
        let Some(stack) = self.stacks.get_mut(order) else { return };
        if stack.len() >= cache_len(order) {
            let keep = stack.len() / 2;
            let node = memory().node(NODE.get());
            // A node that is busy just now leaves the cache larger for a moment.
            node.try_with(|inner| stack.drain(keep..).for_each(|block| inner.give(block, order)));
        }
        stack.push(block);
    }

    /// Gives all back to the node.
    fn empty(&mut self) {
        for (order, stack) in self.stacks.iter_mut().enumerate() {
            if !stack.is_empty() {
                memory()
                    .node(NODE.get())
                    .with(|inner| stack.drain(..).for_each(|block| inner.give(block, order)));
            }
        }
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        self.empty();
    }
}

impl Memory {
    fn node(&self, node: usize) -> &Node {
        let last = self.nodes.len().saturating_sub(1);
        self.nodes.get(node.min(last)).unwrap_or_else(|| unreachable!("there is at least one node"))
    }
}

impl Node {
    fn with<R>(&self, function: impl FnOnce(&mut Inner) -> R) -> R {
        // A panic while it was locked left the lists as they were: they are changed last.
        function(&mut self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    fn try_with<R>(&self, function: impl FnOnce(&mut Inner) -> R) -> Option<R> {
        if !NEVER_WAITS.get() {
            return Some(self.with(function));
        }
        match self.inner.try_lock() {
            Ok(mut inner) => Some(function(&mut inner)),
            Err(TryLockError::Poisoned(poisoned)) => Some(function(&mut poisoned.into_inner())),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

impl Inner {
    fn take(&mut self, order: usize) -> Option<NonNull<u8>> {
        self.arenas.iter_mut().find_map(|(arena, buddy)| {
            let page = usize::try_from(buddy.take(order)?).ok()?;
            Some(offset(arena.base(), page * PAGE_BYTES))
        })
    }

    fn give(&mut self, block: NonNull<u8>, order: usize) {
        let after = self.arenas.partition_point(|(arena, _)| arena.base() <= block);
        let owner = after.checked_sub(1).and_then(|at| self.arenas.get_mut(at));
        let Some((arena, buddy)) = owner else { unreachable!("a block belongs to an arena of its node") };
        let at_bytes = block.addr().get() - arena.base().addr().get();
        assert!(at_bytes < ARENA_BYTES, "a block belongs to an arena of its node");
        buddy.give(u32::try_from(at_bytes / PAGE_BYTES).unwrap_or(u32::MAX), order);
    }

    fn bytes(&mut self) -> (u64, u64) {
        let mapped = to_u64(self.arenas.len() * ARENA_BYTES);
        let pages: u64 = self.arenas.iter().map(|(_, buddy)| u64::from(buddy.free_pages())).sum();
        (mapped, pages * to_u64(PAGE_BYTES))
    }
}

fn memory() -> &'static Memory {
    MEMORY.get().unwrap_or_else(|| {
        if let Err(error) = init(MemConfig::default()) {
            panic!("no memory for data: {error}");
        }
        MEMORY.get().unwrap_or_else(|| unreachable!("init has set it"))
    })
}

fn info_of(arena: &Arena, node: usize) -> ArenaInfo {
    ArenaInfo { base: arena.base().addr().get(), len: ARENA_BYTES, backing: arena.backing(), node }
}

fn new_buddy() -> Buddy {
    Buddy::new(u32::try_from(ARENA_BYTES / PAGE_BYTES).unwrap_or(0))
}

fn cache_len(order: usize) -> usize {
    (CACHE_BYTES_PER_ORDER / (PAGE_BYTES << order)).max(2)
}

fn arena_bytes() -> u64 {
    to_u64(ARENA_BYTES)
}

fn to_u64(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

fn offset(base: NonNull<u8>, bytes: usize) -> NonNull<u8> {
    debug_assert!(bytes < ARENA_BYTES, "within the arena");
    // SAFETY: `bytes` is below the arena's length, so the result lies in the same mapping.
    unsafe { base.add(bytes) }
}
