//! The sorted inputs of a scan: a memtable, or a run of tables that do not overlap.
//!
//! Moving never waits. A source that has arrived where it has no block yet says [`Arrival::Load`]; only loading waits.

use std::collections::VecDeque;
use std::ops::Bound;
use std::rc::Rc;

use basalt_reactor::disk::BLOCK_LEN;

use super::error::IndexError;
use super::memtable::{Memtable, Value};
use super::table::Table;
use super::table::block::{Block, BlockCursor};
use super::table::store::TableStore;

/// Entries taken from a memtable at once: few after a seek, for a delimiter may seek again; then twice as many each time.
const CHUNK_COUNT_MIN: usize = 4;
const CHUNK_COUNT_MAX: usize = 256;

/// Tables in key order, none overlapping another.
pub(crate) type Run = Rc<[Rc<Table>]>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// On an entry.
    Entry,
    End,
    /// Blocks must be loaded first.
    Load,
}

/// How a scan reads blocks.
#[derive(Clone, Copy)]
pub(crate) struct ReadAhead {
    /// Blocks read at once after the first, at most.
    pub(crate) block_count_max: usize,
    /// Whether blocks are looked up and kept in the cache.
    pub(crate) cached: bool,
}

pub(crate) enum Source {
    Memory(MemorySource),
    Run(RunSource),
}

impl Source {
    /// Forward to the first entry with a key not below `target`; stays when it is there or beyond.
    pub(crate) fn seek(&mut self, target: &[u8]) {
        match self {
            Source::Memory(source) => source.seek(target),
            Source::Run(source) => source.seek(target),
        }
    }

    /// On to the next entry. Only where [`Source::arrive`] said [`Arrival::Entry`].
    pub(crate) fn advance(&mut self) -> Result<(), IndexError> {
        match self {
            Source::Memory(source) => {
                source.advance();
                Ok(())
            }
            Source::Run(source) => source.advance(),
        }
    }

    pub(crate) fn arrive(&mut self, store: &TableStore) -> Result<Arrival, IndexError> {
        match self {
            Source::Memory(source) if source.at < source.chunk.len() => Ok(Arrival::Entry),
            Source::Memory(_) => Ok(Arrival::End),
            Source::Run(source) => source.arrive(store),
        }
    }

    pub(crate) async fn load(&mut self, store: &TableStore) -> Result<(), IndexError> {
        match self {
            Source::Memory(_) => Ok(()),
            Source::Run(source) => source.load(store).await,
        }
    }

    #[inline]
    pub(crate) fn key(&self) -> &[u8] {
        match self {
            Source::Memory(source) => &source.chunk[source.at].0,
            Source::Run(source) => source.cursor.key(),
        }
    }

    #[inline]
    pub(crate) fn value(&self) -> Option<&[u8]> {
        match self {
            Source::Memory(source) => source.chunk[source.at].1.as_deref(),
            Source::Run(source) => source.cursor.value(),
        }
    }
}

pub(crate) struct MemorySource {
    table: Rc<Memtable>,
    /// Exclusive.
    end: Option<Rc<[u8]>>,
    chunk: Vec<(Rc<[u8]>, Value)>,
    at: usize,
    chunk_count: usize,
    begun: bool,
}

impl MemorySource {
    /// Before the first entry; seek first.
    pub(crate) fn new(table: Rc<Memtable>, end: Option<Rc<[u8]>>) -> MemorySource {
        MemorySource { table, end, chunk: Vec::new(), at: 0, chunk_count: CHUNK_COUNT_MIN, begun: false }
    }

    fn seek(&mut self, target: &[u8]) {
        self.at += self.chunk[self.at..].partition_point(|(key, _)| key.as_ref() < target);
        let ended = self.begun && self.chunk.is_empty();
        if self.at == self.chunk.len() && !ended {
            self.chunk_count = CHUNK_COUNT_MIN;
            self.fill(Bound::Included(target));
        }
    }

    fn advance(&mut self) {
        self.at += 1;
        if self.at == self.chunk.len()
            && let Some((last, _)) = self.chunk.last()
        {
            let last = Rc::clone(last);
            self.chunk_count = (2 * self.chunk_count).min(CHUNK_COUNT_MAX);
            self.fill(Bound::Excluded(&last));
        }
    }

    fn fill(&mut self, from: Bound<&[u8]>) {
        self.begun = true;
        self.chunk.clear();
        self.at = 0;
        self.table.read_chunk(from, self.end.as_deref(), self.chunk_count, &mut self.chunk);
    }
}

pub(crate) struct RunSource {
    tables: Run,
    table: usize,
    block: usize,
    cursor: BlockCursor,
    state: RunState,
    target: Vec<u8>,
    /// Blocks read ahead: `block`, if the cursor waits for it, and those after it.
    ahead: VecDeque<Rc<Block>>,
    read_ahead: ReadAhead,
    /// Blocks to read next time.
    read_count: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum RunState {
    /// The cursor is on an entry of `block`.
    Entry,
    /// Waits for `block`, to stand on its first entry.
    First,
    /// Waits for `block`, to find `target` in it.
    Seek,
    End,
}

impl RunSource {
    pub(crate) fn new(tables: Run, read_ahead: ReadAhead) -> RunSource {
        let state = if tables.is_empty() { RunState::End } else { RunState::First };
        RunSource {
            tables,
            table: 0,
            block: 0,
            cursor: BlockCursor::default(),
            state,
            target: Vec::new(),
            ahead: VecDeque::new(),
            read_ahead,
            read_count: 1,
        }
    }

    fn seek(&mut self, target: &[u8]) {
        match self.state {
            RunState::End => return,
            RunState::Entry if self.cursor.key() >= target => return,
            RunState::Seek if self.target.as_slice() >= target => return,
            _ => {}
        }
        let skipped = self.tables[self.table..].partition_point(|table| *table.descriptor.max_key < *target);
        let block = self.tables.get(self.table + skipped).and_then(|table| table.directory.find(target));
        let Some(block) = block else {
            self.end();
            return;
        };
        if skipped == 0 && block < self.block {
            // It waits for the first entry of a block that is beyond the target already.
            return;
        }
        self.target.clear();
        self.target.extend_from_slice(target);
        let inside = self.cursor.is_inside();
        if skipped > 0 {
            self.ahead.clear();
            self.read_count = 1;
        } else if !inside || block != self.block {
            // The first of `ahead` is the block waited for, or else the one after the current.
            let first = self.block + usize::from(inside);
            let passed = (block - first).min(self.ahead.len());
            self.ahead.drain(..passed);
            if block > first + passed {
                self.read_count = 1;
            }
        }
        if skipped > 0 || block != self.block {
            self.cursor.leave();
        }
        self.table += skipped;
        self.block = block;
        self.state = RunState::Seek;
    }

    fn end(&mut self) {
        self.state = RunState::End;
        self.cursor.leave();
        self.ahead.clear();
    }

    fn advance(&mut self) -> Result<(), IndexError> {
        let found = self.cursor.advance();
        if !found.map_err(|fault| self.tables[self.table].corrupt(self.block, fault))? {
            self.next_block();
        }
        Ok(())
    }

    fn next_block(&mut self) {
        self.cursor.leave();
        self.state = RunState::First;
        self.block += 1;
        if self.block == self.tables[self.table].directory.block_count() {
            self.block = 0;
            self.table += 1;
            if self.table == self.tables.len() {
                self.end();
            }
        }
    }

    fn arrive(&mut self, store: &TableStore) -> Result<Arrival, IndexError> {
        loop {
            match self.state {
                RunState::Entry => return Ok(Arrival::Entry),
                RunState::End => return Ok(Arrival::End),
                RunState::First | RunState::Seek => {}
            }
            let table = &self.tables[self.table];
            if !self.cursor.is_inside() {
                let block = self.ahead.pop_front();
                let cached = || self.read_ahead.cached.then(|| store.cached(table, self.block)).flatten();
                let Some(block) = block.or_else(cached) else { return Ok(Arrival::Load) };
                self.cursor.enter(block);
            }
            let found = match self.state {
                RunState::Seek => self.cursor.seek(&self.target),
                _ => self.cursor.advance(),
            };
            if found.map_err(|fault| table.corrupt(self.block, fault))? {
                self.state = RunState::Entry;
            } else {
                self.next_block();
            }
        }
    }

    async fn load(&mut self, store: &TableStore) -> Result<(), IndexError> {
        let table = Rc::clone(&self.tables[self.table]);
        let (start, _) = table.directory.place(self.block);
        let last = table.directory.block_count().min(self.block + self.read_count);
        let count = (self.block + 1..last)
            .take_while(|&index| {
                let (block, len) = table.directory.place(index);
                (block + len - start) as usize * BLOCK_LEN <= store.transfer_len
            })
            .count();
        let indices = self.block..self.block + 1 + count;
        let blocks = store.read_blocks(&table, indices.clone()).await?;
        if self.read_ahead.cached {
            for (index, block) in indices.zip(&blocks) {
                store.keep(&table, index, block);
            }
        }
        self.ahead = blocks.into();
        self.read_count = (2 * self.read_count).min(self.read_ahead.block_count_max);
        Ok(())
    }
}
