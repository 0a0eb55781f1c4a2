//! Which pages of an arena are free: a buddy allocator over page indices, without the memory itself.
//!
//! Buddies keep both directions cheap (a handful of steps to split or to merge) and make the block that a page
//! belongs to a matter of masking, which is how an address is turned back into its block.

/// Orders of blocks: order `k` is `1 << k` pages.
pub(super) const ORDER_COUNT: usize = 9;

const NIL: u32 = u32::MAX;

/// Page state: inside a free block, but not its first page. Zero, so that fresh metadata need not be touched.
const FREE_INSIDE: u8 = 0;
/// Page state: first page of a free block; the low bits hold its order.
const FREE_HEAD: u8 = 0x80;
/// Page state: any page of a handed-out block; the low bits hold its order.
const TAKEN: u8 = 0x40;

pub(super) struct Buddy {
    page_count: u32,
    free_pages: u32,
    state: Box<[u8]>,
    next: Box<[u32]>,
    prev: Box<[u32]>,
    heads: [u32; ORDER_COUNT],
}

impl Buddy {
    pub(super) fn new(page_count: u32) -> Buddy {
        let len = page_count as usize;
        let mut buddy = Buddy {
            page_count,
            free_pages: page_count,
            state: vec![FREE_INSIDE; len].into_boxed_slice(),
            next: vec![0; len].into_boxed_slice(),
            prev: vec![0; len].into_boxed_slice(),
            heads: [NIL; ORDER_COUNT],
        };
        // From the end, so that the lists hand out low pages first and untouched memory stays untouched.
        let mut end = page_count;
        while end > 0 {
            let order = end.trailing_zeros().min(ORDER_COUNT as u32 - 1);
            end -= 1 << order;
            buddy.push(end, order as usize);
        }
        buddy
    }

    pub(super) fn free_pages(&self) -> u32 {
        self.free_pages
    }

    /// Takes a block of `1 << order` pages; its first page comes back.
    pub(super) fn alloc(&mut self, order: usize) -> Option<u32> {
        let from = (order..ORDER_COUNT).find(|&candidate| self.heads[candidate] != NIL)?;
        let page = self.heads[from];
        self.unlink(page, from);
        for split in (order..from).rev() {
            self.push(page + (1 << split), split);
        }
        let (start, end) = (page as usize, page as usize + (1 << order));
        self.state[start..end].fill(TAKEN | order as u8);
        self.free_pages -= 1 << order;
        Some(page)
    }

    /// Returns the handed-out block that starts at `page`, merging it with its free buddies.
    pub(super) fn free(&mut self, page: u32) {
        let (head, order) = self.block_of(page).expect("only handed-out blocks are freed");
        assert_eq!(head, page, "a block is freed by its first page");
        self.state[page as usize..page as usize + (1 << order)].fill(FREE_INSIDE);
        self.free_pages += 1 << order;
        let (mut page, mut order) = (page, order);
        while order + 1 < ORDER_COUNT {
            let buddy = page ^ (1 << order);
            if buddy >= self.page_count || self.state[buddy as usize] != FREE_HEAD | order as u8 {
                break;
            }
            self.unlink(buddy, order);
            page = page.min(buddy);
            order += 1;
        }
        self.push(page, order);
    }

    /// First page and order of the handed-out block that `page` belongs to.
    pub(super) fn block_of(&self, page: u32) -> Option<(u32, usize)> {
        let state = self.state[page as usize];
        if state & TAKEN == 0 {
            return None;
        }
        let order = usize::from(state & !TAKEN);
        Some((page & !((1 << order) - 1), order))
    }

    fn push(&mut self, page: u32, order: usize) {
        let head = self.heads[order];
        self.state[page as usize] = FREE_HEAD | order as u8;
        self.next[page as usize] = head;
        self.prev[page as usize] = NIL;
        if head != NIL {
            self.prev[head as usize] = page;
        }
        self.heads[order] = page;
    }

    fn unlink(&mut self, page: u32, order: usize) {
        let (prev, next) = (self.prev[page as usize], self.next[page as usize]);
        if prev == NIL {
            self.heads[order] = next;
        } else {
            self.next[prev as usize] = next;
        }
        if next != NIL {
            self.prev[next as usize] = prev;
        }
        self.state[page as usize] = FREE_INSIDE;
    }
}
