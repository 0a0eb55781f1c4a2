//! The index of a shard: a log-structured merge tree from keys to small values.
//!
//! Writes go to a memtable; full ones are frozen, flushed to sorted tables, and tables are merged level by level. So a
//! write costs memory only, a flush writes long and in order, and reads find what they want in a few places that filters
//! narrow down. The index keeps no log of its own: the shard's log holds every write since the last checkpoint and
//! replays it. A state of the tables ([`IndexManifest`]) becomes durable only through the shard's manifest, and what it
//! no longer names is handed over as obsolete, to be freed once that manifest is durable and nobody reads it any more.
//!
//! One shard, one core, one thread: reads, scans, flushes and compactions are tasks that interleave at their waits. Each
//! works on the version of the tables it began with; no borrow lives across a wait.

mod cache;
mod cursor;
mod error;
pub(crate) mod frames;
pub mod key;
mod maintenance;
mod manifest;
mod memtable;
mod merge;
pub mod policy;
mod source;
pub(crate) mod table;
mod version;

#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::rc::Rc;

use basalt_reactor::Core;

pub use self::cursor::Cursor;
pub use self::error::{Damage, DamageCause, IndexError, NoSpace};
pub use self::maintenance::ObsoleteTable;
pub use self::manifest::{IndexManifest, TABLE_COUNT_MAX};
pub use self::policy::Compaction;
pub use self::table::TableDescriptor;
pub use self::table::frame::Fault;
pub use self::version::LEVEL_COUNT;

use self::cache::BlockCache;
use self::key::{KEY_LEN_MAX, VALUE_LEN_MAX};
use self::memtable::Memtable;
use self::merge::Merge;
use self::source::{MemorySource, ReadAhead, Run, RunSource, Source};
use self::table::Table;
use self::table::block::BLOCK_FRAME_LEN_MAX;
use self::table::filter::{filter_hash, filter_hash_of_name};
use self::table::store::{Counters, TableStore, count};
use self::table::writer::{SLOT_LEN_MIN, TRANSFER_LEN_MIN};
use self::version::{Version, table_of};
use crate::extent::{ArenaFiles, ExtentId, Placement};

/// Frozen memtables that may wait for their flush; beyond that [`Index::rotate`] refuses.
pub const FROZEN_COUNT_MAX: usize = 4;

/// Blocks that a scan reads at once when it reads many in a row.
const SCAN_READ_AHEAD: usize = 8;

/// Gives out and takes back the extents that tables are written to. The shard's: the index knows no disk.
pub trait TableAllocator {
    /// A free table extent with a place on every disk that is to hold a replica.
    ///
    /// # Errors
    /// [`NoSpace`] when every slot is taken.
    fn allocate(&self) -> Result<Placement, NoSpace>;

    /// Takes back an extent that was never installed. No write to it is in flight any more.
    fn discard(&self, id: ExtentId);
}

#[derive(Clone)]
pub struct IndexConfig {
    /// Written into every table, for forensics: whose it is and from which epoch.
    pub shard: u32,
    pub epoch: u64,
    /// Bytes of a memtable at which [`Index::is_memtable_full`] says so.
    pub memtable_len_max: usize,
    /// Length that data blocks aim at: what one cold lookup reads. A multiple of 4 KiB, at most 64 KiB.
    pub block_len: usize,
    /// Longest single read or write of a flush or compaction, a power of two of at least 128 KiB, at most 1 MiB.
    pub transfer_len: usize,
    /// Data blocks kept in memory, bytes.
    pub cache_len: usize,
    /// Bytes that level 1 may hold; each level below holds [`policy::LEVEL_RATIO`] times more.
    pub level_base_len: u64,
    /// Hears of every replica that did not hold what it should. Called in the middle of a read: it only takes note.
    pub report: Rc<dyn Fn(Damage)>,
}

impl Default for IndexConfig {
    fn default() -> IndexConfig {
        IndexConfig {
            shard: 0,
            epoch: 0,
            memtable_len_max: 32 << 20,
            block_len: 16 << 10,
            transfer_len: 256 << 10,
            cache_len: 32 << 20,
            level_base_len: 256 << 20,
            report: Rc::new(|_| {}),
        }
    }
}

/// What the index holds and what its use has cost. Lengths in bytes, costs since it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IndexStats {
    /// Entries of memtables and tables, older versions of a key and tombstones included.
    pub entry_count: u64,
    pub tombstone_count: u64,
    /// The active and the frozen memtables.
    pub memtable_len: usize,
    pub frozen_count: usize,
    /// Filters and directories of open tables.
    pub table_memory_len: usize,
    pub cache_len: usize,
    /// Bytes of tables on one replica.
    pub table_len: u64,
    /// Per level.
    pub table_counts: Vec<usize>,
    /// Runs in level 0; writers should be slowed down when they pile up.
    pub flushed_run_count: usize,
    pub obsolete_count: usize,
    pub block_reads: u64,
    pub cache_hits: u64,
    /// Lookups in a table that its filter let pass, and that it answered by itself.
    pub filter_passes: u64,
    pub filter_denials: u64,
    /// Entries that scans stepped onto, and sources that they placed.
    pub steps: u64,
}

struct State {
    active: Rc<Memtable>,
    /// Newest first.
    frozen: Vec<Rc<Memtable>>,
    version: Rc<Version>,
    next_sequence: u64,
    obsolete: Vec<Rc<Table>>,
    flushing: bool,
    compacting: bool,
}

/// One shard's index. To be shared in an `Rc`.
pub struct Index {
    store: Rc<TableStore>,
    allocator: Rc<dyn TableAllocator>,
    config: IndexConfig,
    state: RefCell<State>,
}

impl Index {
    /// An empty index.
    ///
    /// # Panics
    /// If the geometry's table slots are shorter than 256 KiB or a length of the configuration is out of its bounds.
    #[must_use]
    pub fn new(
        core: Core,
        files: Rc<ArenaFiles>,
        allocator: Rc<dyn TableAllocator>,
        config: IndexConfig,
    ) -> Index {
        assert!(files.geometry().table_slot_len >= SLOT_LEN_MIN, "table slots have at least 256 KiB");
        assert!(
            config.block_len.is_multiple_of(4096) && (4096..=BLOCK_FRAME_LEN_MAX).contains(&config.block_len)
        );
        assert!(
            config.transfer_len.is_power_of_two()
                && (TRANSFER_LEN_MIN..=1 << 20).contains(&config.transfer_len)
        );
        let store = TableStore {
            core,
            files,
            cache: RefCell::new(BlockCache::new(config.cache_len)),
            counters: Counters::default(),
            report: Rc::clone(&config.report),
            transfer_len: config.transfer_len,
        };
        let state = State {
            active: Rc::default(),
            frozen: Vec::new(),
            version: Rc::new(Version::empty()),
            next_sequence: 1,
            obsolete: Vec::new(),
            flushing: false,
            compacting: false,
        };
        Index { store: Rc::new(store), allocator, config, state: RefCell::new(state) }
    }

    /// Sets `key` to `value`.
    ///
    /// # Panics
    /// If either is longer than [`KEY_LEN_MAX`] or [`VALUE_LEN_MAX`]: records are checked where they are made.
    pub fn put(&self, key: &[u8], value: &[u8]) {
        assert!(value.len() <= VALUE_LEN_MAX, "a value of {} bytes", value.len());
        self.insert(key, Some(value));
    }

    /// Makes `key` absent.
    ///
    /// # Panics
    /// As [`Index::put`].
    pub fn delete(&self, key: &[u8]) {
        self.insert(key, None);
    }

    fn insert(&self, key: &[u8], value: Option<&[u8]>) {
        assert!(key.len() <= KEY_LEN_MAX, "a key of {} bytes", key.len());
        self.state.borrow().active.insert(key, value);
    }

    /// What `key` maps to. At most one block is read per table that may hold it, and none when it is in memory.
    ///
    /// # Errors
    /// [`IndexError::Corrupt`], [`IndexError::Read`] or [`IndexError::Absent`] when a block has no readable replica.
    pub async fn get(&self, key: &[u8]) -> Result<Option<Rc<[u8]>>, IndexError> {
        let version = {
            let state = self.state.borrow();
            let found = std::iter::once(&state.active).chain(&state.frozen).find_map(|table| table.get(key));
            if let Some(value) = found {
                return Ok(value);
            }
            Rc::clone(&state.version)
        };
        let hash = filter_hash(key);
        for run in version.runs() {
            let Some(table) = table_of(run, key) else { continue };
            if !self.passes(table, hash) {
                continue;
            }
            if let Some(value) = table.get(&self.store, key).await? {
                return Ok(value);
            }
        }
        Ok(None)
    }

    fn passes(&self, table: &Table, hash: u64) -> bool {
        let passes = table.filter.may_contain(hash);
        let counters = &self.store.counters;
        count(if passes { &counters.filter_passes } else { &counters.filter_denials }, 1);
        passes
    }

    /// A scan from `from` on, below `to` (`None`: to the end). It sees every write applied before this call.
    #[must_use]
    pub fn cursor(&self, from: &[u8], to: Option<&[u8]>) -> Cursor {
        self.scan(from, to, Rc::clone)
    }

    /// A scan of the keys that begin with `start`, which [`key::start_of_name`] made for objects: all versions of one name,
    /// the null version first, then the newest. Unlike [`Index::cursor`] it asks the filters, so that tables without the
    /// name cost nothing.
    #[must_use]
    pub fn cursor_of_name(&self, start: &[u8]) -> Cursor {
        let end = key::successor(start);
        let hash = filter_hash_of_name(start);
        self.scan(start, end.as_deref(), |run| {
            // The versions of a name may span a few tables.
            let first = run.partition_point(|table| *table.descriptor.max_key < *start);
            run[first..]
                .iter()
                .take_while(|table| end.as_ref().is_none_or(|end| *table.descriptor.min_key < **end))
                .filter(|table| self.passes(table, hash))
                .map(Rc::clone)
                .collect()
        })
    }

    fn scan(&self, from: &[u8], to: Option<&[u8]>, narrow: impl Fn(&Run) -> Run) -> Cursor {
        let to: Option<Rc<[u8]>> = to.map(Rc::from);
        let read_ahead = ReadAhead { block_count_max: SCAN_READ_AHEAD, cached: true };
        let state = self.state.borrow();
        let memory = std::iter::once(&state.active).chain(&state.frozen);
        let memory = memory.map(|table| Source::Memory(MemorySource::new(Rc::clone(table), to.clone())));
        let runs = state.version.runs().map(narrow).filter(|run| !run.is_empty());
        let runs = runs.map(|run| Source::Run(RunSource::new(run, read_ahead)));
        let merge = Merge::new(Rc::clone(&self.store), memory.chain(runs).collect(), from, to);
        Cursor::new(self.store.core.clone(), merge)
    }

    /// Bytes of the memtable that takes writes.
    #[must_use]
    pub fn memtable_len(&self) -> usize {
        self.state.borrow().active.len()
    }

    /// Bytes of a memtable that is full.
    #[must_use]
    pub fn memtable_len_max(&self) -> usize {
        self.config.memtable_len_max
    }

    /// Whether it is time to [`Index::rotate`].
    #[must_use]
    pub fn is_memtable_full(&self) -> bool {
        self.memtable_len() >= self.config.memtable_len_max
    }

    /// Freezes the memtable and begins a new one. `false`, and nothing changes, when [`FROZEN_COUNT_MAX`] wait for their
    /// flush; an empty memtable stays as it is.
    pub fn rotate(&self) -> bool {
        let mut state = self.state.borrow_mut();
        if state.active.entry_count() == 0 {
            return true;
        }
        if state.frozen.len() >= FROZEN_COUNT_MAX {
            return false;
        }
        let full = std::mem::take(&mut state.active);
        state.frozen.insert(0, full);
        true
    }

    #[must_use]
    pub fn stats(&self) -> IndexStats {
        let state = self.state.borrow();
        let counters = &self.store.counters;
        let mut stats = IndexStats {
            memtable_len: std::iter::once(&state.active).chain(&state.frozen).map(|table| table.len()).sum(),
            frozen_count: state.frozen.len(),
            cache_len: self.store.cache.borrow().len(),
            table_counts: (0..LEVEL_COUNT).map(|level| state.version.tables_of(level).len()).collect(),
            flushed_run_count: state.version.flushed.len(),
            obsolete_count: state.obsolete.len(),
            block_reads: counters.block_reads.get(),
            cache_hits: counters.cache_hits.get(),
            filter_passes: counters.filter_passes.get(),
            filter_denials: counters.filter_denials.get(),
            steps: counters.steps.get(),
            ..IndexStats::default()
        };
        for table in std::iter::once(&state.active).chain(&state.frozen) {
            stats.entry_count += table.entry_count() as u64;
        }
        for table in state.version.tables() {
            stats.entry_count += table.descriptor.entry_count;
            stats.tombstone_count += table.descriptor.tombstone_count;
            stats.table_len += table.descriptor.len;
            stats.table_memory_len += table.memory_len();
        }
        stats
    }
}
