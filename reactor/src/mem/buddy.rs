//! The buddy allocator of one arena (Knuth, The Art of Computer Programming, volume 1, §2.5): a free block of 2^k
//! pages is merged with its buddy as soon as both are free, so a load of small buffers does not starve large ones for
//! longer than it lasts. Knows page numbers only, no memory.

use super::ORDERS;

/// No page.
const NIL: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Page {
    /// Order of the free block that begins here, or `NOT_FREE`.
    free_order: u8,
    next: u32,
    prev: u32,
}

const NOT_FREE: u8 = u8::MAX;

/// Free and used blocks of one arena.
#[derive(Debug)]
pub(crate) struct Buddy {
    pages: Vec<Page>,
    heads: [u32; ORDERS],
    free_pages: u32,
}

impl Buddy {
    /// An arena of `pages` pages, all free; `pages` is a multiple of the largest block.
    pub(crate) fn new(pages: u32) -> Self {
        let largest = 1 << (ORDERS - 1);
        assert!(pages.is_multiple_of(largest), "an arena is made of largest blocks");
        let page = Page { free_order: NOT_FREE, next: NIL, prev: NIL };
        let mut buddy = Self { pages: vec![page; index(pages)], heads: [NIL; ORDERS], free_pages: pages };
        for block in (0..pages / largest).rev() {
            buddy.link(block * largest, ORDERS - 1);
        }
        buddy
    }

    /// Takes a block of 2^`order` pages; its first page.
    pub(crate) fn take(&mut self, order: usize) -> Option<u32> {
        let found = (order..ORDERS).find(|order| self.heads.get(*order).is_some_and(|head| *head != NIL))?;
        let first = *self.heads.get(found)?;
        self.unlink(first, found);
        for half in (order..found).rev() {
            self.link(first + (1 << half), half);
        }
        self.free_pages -= 1 << order;
        Some(first)
    }

    /// Gives a block back.
    pub(crate) fn give(&mut self, first: u32, order: usize) {
        assert!(first.is_multiple_of(1 << order), "page {first} begins no block of order {order}");
        assert!(!self.is_free(first), "page {first} given back twice");
        self.free_pages += 1 << order;
        let (mut first, mut order) = (first, order);
        while order < ORDERS - 1 {
            let other = first ^ (1 << order);
            if !self.begins_free(other, order) {
                break;
            }
            self.unlink(other, order);
            first = first.min(other);
            order += 1;
        }
        self.link(first, order);
    }

    /// Pages that are free.
    pub(crate) fn free_pages(&self) -> u32 {
        self.free_pages
    }

    fn begins_free(&self, page: u32, order: usize) -> bool {
        self.pages.get(index(page)).is_some_and(|page| usize::from(page.free_order) == order)
    }

    fn is_free(&self, page: u32) -> bool {
        self.pages.get(index(page)).is_none_or(|page| page.free_order != NOT_FREE)
    }

    fn link(&mut self, first: u32, order: usize) {
        let Some(head) = self.heads.get_mut(order) else { return };
        let next = std::mem::replace(head, first);
        if let Some(page) = self.pages.get_mut(index(next)) {
            page.prev = first;
        }
        if let Some(page) = self.pages.get_mut(index(first)) {
            *page = Page { free_order: u8::try_from(order).unwrap_or(NOT_FREE), next, prev: NIL };
        }
    }

    fn unlink(&mut self, first: u32, order: usize) {
        let Some(page) = self.pages.get_mut(index(first)) else { return };
        let Page { next, prev, .. } =
            std::mem::replace(page, Page { free_order: NOT_FREE, next: NIL, prev: NIL });
        if let Some(page) = self.pages.get_mut(index(next)) {
            page.prev = prev;
        }
        if let Some(page) = self.pages.get_mut(index(prev)) {
            page.next = next;
        } else if let Some(head) = self.heads.get_mut(order) {
            *head = next;
        }
    }
}

/// `NIL` becomes an index that is never there.
fn index(page: u32) -> usize {
    usize::try_from(page).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn blocks_never_overlap_and_all_merge_again() {
        let mut buddy = Buddy::new(1024);
        let mut rng = Rng::seeded(42);
        let mut used = vec![false; 1024];
        let mut held = Vec::new();
        for _ in 0..20_000 {
            if rng.chance(550) {
                let order = usize::try_from(rng.below(9)).unwrap();
                let Some(first) = buddy.take(order) else { continue };
                for page in first..first + (1 << order) {
                    assert!(!std::mem::replace(&mut used[index(page)], true), "page {page} taken twice");
                }
                held.push((first, order));
            } else if !held.is_empty() {
                let at = usize::try_from(rng.below(held.len() as u64)).unwrap();
                let (first, order) = held.swap_remove(at);
                buddy.give(first, order);
                used[index(first)..index(first + (1 << order))].fill(false);
            }
            let free = used.iter().filter(|used| !**used).count();
            assert_eq!(index(buddy.free_pages()), free);
        }
        for (first, order) in held {
            buddy.give(first, order);
        }
        assert_eq!(
            (0..4).filter_map(|_| buddy.take(8)).count(),
            4,
            "all four largest blocks are whole again"
        );
        assert_eq!(buddy.take(0), None);
    }
}
