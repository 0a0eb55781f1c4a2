//! Verified data blocks in memory, up to a number of bytes.
//!
//! First in, first out with a second chance: a block asked for again since it came in, or since its last chance, stays. A
//! long scan, which asks for each block once, so passes through without driving out what lookups use.

use std::cell::Cell;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::rc::Rc;

use super::table::block::Block;
use crate::extent::ExtentId;

/// Memory of a cached block beyond its bytes.
const BLOCK_OVERHEAD: usize = 128;

/// An extent and a block's offset in it, in 4 KiB blocks. Extent ids are never used twice, so no entry is ever stale.
type Address = (ExtentId, u32);

pub(crate) struct BlockCache {
    capacity: usize,
    len: usize,
    // Not `RandomState`: a simulation is to be reproducible.
    blocks: HashMap<Address, Cached, BuildHasherDefault<DefaultHasher>>,
    queue: VecDeque<Address>,
}

struct Cached {
    block: Rc<Block>,
    used_again: Cell<bool>,
}

impl BlockCache {
    pub(crate) fn new(capacity: usize) -> BlockCache {
        BlockCache { capacity, len: 0, blocks: HashMap::default(), queue: VecDeque::new() }
    }

    pub(crate) fn get(&self, extent: ExtentId, block: u32) -> Option<Rc<Block>> {
        let cached = self.blocks.get(&(extent, block))?;
        cached.used_again.set(true);
        Some(Rc::clone(&cached.block))
    }

    pub(crate) fn insert(&mut self, extent: ExtentId, offset: u32, block: &Rc<Block>) {
        let len = block.len() + BLOCK_OVERHEAD;
        if len > self.capacity {
            return;
        }
        let Entry::Vacant(entry) = self.blocks.entry((extent, offset)) else { return };
        entry.insert(Cached { block: Rc::clone(block), used_again: Cell::new(false) });
        self.queue.push_back((extent, offset));
        self.len += len;
        while self.len > self.capacity {
            self.evict();
        }
    }

    fn evict(&mut self) {
        let address = self.queue.pop_front().expect("a cache over its capacity holds blocks");
        let Entry::Occupied(entry) = self.blocks.entry(address) else { return };
        if entry.get().used_again.replace(false) {
            self.queue.push_back(address);
        } else {
            self.len -= entry.remove().block.len() + BLOCK_OVERHEAD;
        }
    }

    /// Bytes of memory.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::table::block::BlockBuilder;
    use crate::index::table::frame::FRAME_HEAD_LEN;

    fn block() -> Rc<Block> {
        let mut builder = BlockBuilder::new();
        builder.add(b"key", Some(&[0; 1000]));
        let len = builder.len();
        let payload = builder.finish(ExtentId(1), 0, |frame| frame[FRAME_HEAD_LEN..len].to_vec());
        Rc::new(Block::new(&payload).expect("well-formed"))
    }

    #[test]
    fn stays_below_its_capacity_and_keeps_what_is_used_again() {
        let block = block();
        let mut cache = BlockCache::new(10 * (block.len() + BLOCK_OVERHEAD));
        for offset in 0..10 {
            cache.insert(ExtentId(1), offset, &block);
        }
        for scanned in 100..150 {
            assert!(cache.get(ExtentId(1), 3).is_some(), "block {scanned} drove it out");
            cache.insert(ExtentId(2), scanned, &block);
            cache.insert(ExtentId(2), scanned, &block);
            assert!(cache.len() <= cache.capacity);
        }
        assert!(cache.get(ExtentId(1), 4).is_none());
        assert_eq!((cache.blocks.len(), cache.queue.len()), (10, 10));
    }
}
