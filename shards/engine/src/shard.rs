//! A shard: the only place where its keys change.
//!
//! It owns one log, one index and one extent table. Every mutation goes the same way: lock the key, look at what is there
//! now, ask the caller's guard, form records that name what they supersede, commit. Reads look at the index,
//! which holds durable state alone.

pub(crate) mod checkpoint;
pub(crate) mod collect;
pub(crate) mod commit;
mod epoch;
pub(crate) mod leases;
pub(crate) mod list;
pub(crate) mod mutate;
mod pins;
pub(crate) mod rebuild;
pub(crate) mod recovery;
pub(crate) mod repair;
pub(crate) mod scrub;
mod serve;
pub(crate) mod space;
mod spare;
pub(crate) mod uploads;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use basalt_reactor::Core;

use self::commit::CommitQueue;
use self::leases::Leases;
use self::pins::Pins;
use self::repair::{RepairCounts, Repairs};
use self::scrub::{Scrub, ScrubStats};
use self::space::Space;
use crate::buckets::Buckets;
use crate::error::EngineError;
use crate::extent::table::Extent;
use crate::extent::{ArenaFiles, ExtentClass, ExtentId, Placement};
use crate::format::root::{Rebuild, Root};
use crate::index::Index;
use crate::wait::{Event, KeyLocks};

/// Log bytes after which a checkpoint starts, in slots of a log extent: bounds how long recovery replays.
const CHECKPOINT_LOG_SLOTS: u64 = 8;

pub(crate) struct Shard {
    pub(crate) id: u16,
    pub(crate) core: Core,
    pub(crate) files: Rc<ArenaFiles>,
    pub(crate) deployment: [u8; 16],
    pub(crate) index: Rc<Index>,
    pub(crate) space: Rc<Space>,
    pub(crate) buckets: Rc<Buckets>,
    /// The newest durable root.
    root: RefCell<Root>,
    /// Held by whoever makes the next one.
    roots: Rc<KeyLocks>,
    /// How far the disks that are behind have been rebuilt.
    rebuilds: RefCell<Vec<Rebuild>>,
    rebuilding: Event,
    /// The epoch that the log is in.
    log_epoch: Cell<u64>,
    commits: CommitQueue,
    locks: Rc<KeyLocks>,
    leases: Leases,
    pins: Pins,
    repairs: Rc<Repairs>,
    scrub: Scrub,
    /// The last time handed out, nanoseconds since the Unix epoch.
    clock: Cell<u64>,
    obsolete: RefCell<checkpoint::Obsolete>,
    /// Why the shard takes no writes any more.
    failed: RefCell<Option<String>>,
    /// Buckets on their way out: no mutation enters them. What comes waits for how it ends, unless that will not show.
    fenced: RefCell<BTreeMap<u64, Fence>>,
    /// Mutations under way per bucket, for fencing to wait for.
    under_way: RefCell<BTreeMap<u64, u32>>,
    /// A mutation left a bucket, or a fence changed.
    drained: Event,
    background: Event,
    pub(crate) collection: collect::Collection,
    checkpoint_wanted: Cell<bool>,
    checkpoint_running: Cell<bool>,
    /// How the last one ended.
    checkpoint_result: RefCell<Result<(), EngineError>>,
    checkpoint_done: Event,
    checkpoints: Cell<u64>,
}

/// What becomes of a mutation that meets a fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fence {
    Waits,
    /// The bucket's home failed while it dropped the record.
    Refused,
}

/// Gauges and counters of one shard.
#[derive(Clone, Copy, Debug, Default)]
pub struct ShardStats {
    /// Mutations waiting for their batch.
    pub commit_backlog: usize,
    /// Log written since the last checkpoint began, bytes.
    pub log_len: u64,
    pub log_extents: usize,
    pub data_extents: usize,
    /// Bytes some key still names, in log and data extents.
    pub live_len: u64,
    /// The same before redundancy: a data extent's live bytes count once per data column.
    pub live_body_len: u64,
    /// Bytes of the index's tables on one replica, and entries in them and in memtables.
    pub index_len: u64,
    pub index_entries: u64,
    /// Bytes on all disks that those extents take, and how many of them hold what some key names: their ratio is the space
    /// amplification.
    pub used_len: u64,
    pub needed_len: u64,
    /// What collection has moved since the start: bytes of bodies, and bodies.
    pub moved_len: u64,
    pub moved_count: u64,
    /// Moves that came too late, because their key had changed.
    pub outrun_count: u64,
    /// Extents that collection has emptied.
    pub emptied_count: u64,
    /// Of the memtable that takes writes and of those that wait for their flush.
    pub memtable_len: usize,
    pub checkpoints: u64,
    pub repair: RepairCounts,
    pub scrub: ScrubStats,
    pub full: bool,
    pub failed: bool,
}

impl Shard {
    pub(crate) fn check_healthy(&self) -> Result<(), EngineError> {
        match &*self.failed.borrow() {
            None => Ok(()),
            Some(reason) => Err(EngineError::ShardFailed { shard: self.id, reason: reason.clone() }),
        }
    }

    /// Takes no writes from here on. What is on its way is answered by the commit loop.
    pub(crate) fn fail(&self, reason: String) {
        tracing::error!(shard = self.id, %reason, "the shard takes no more writes");
        self.failed.borrow_mut().get_or_insert(reason);
        self.commits.wake();
        self.background.notify();
        self.checkpoint_done.notify();
        self.repairs.wake();
        self.collection.stop();
    }

    /// The next instant of the hybrid clock: now, or just after the last one.
    fn tick(&self) -> u64 {
        let next = self.core.wall().0.max(self.clock.get() + 1);
        self.clock.set(next);
        next
    }

    /// Where the extents `ids` lie; unknown ones are left out.
    pub(crate) fn placements(&self, ids: &[ExtentId]) -> Vec<Placement> {
        let extents = self.space.extents.borrow();
        ids.iter().filter_map(|&id| extents.get(id)).map(|extent| (*extent.placement).clone()).collect()
    }

    pub(crate) fn wake_background(&self) {
        self.background.notify();
    }

    #[must_use]
    pub(crate) fn stats(&self) -> ShardStats {
        let scrub = self.scrub_stats();
        let extents = self.space.extents.borrow();
        let collected = self.collection.counters();
        let copies = |extent: &Extent| extent.placement.columns.len() as u64;
        let slot_len = |extent: &Extent| self.files.geometry().slot_len(extent.placement.class);
        let of = |class| extents.iter().filter(|extent| extent.placement.class == class).count();
        let data_columns = u64::from(self.files.geometry().k);
        let body_len = |extent: &Extent| match extent.placement.class {
            ExtentClass::Data => extent.live_len * data_columns,
            ExtentClass::Log | ExtentClass::Table => extent.live_len,
        };
        let index = self.index.stats();
        ShardStats {
            commit_backlog: self.commits.len(),
            log_len: self.commits.log_len.get(),
            log_extents: of(ExtentClass::Log),
            data_extents: of(ExtentClass::Data),
            live_len: extents.iter().map(|extent| extent.live_len).sum(),
            used_len: extents.iter().map(|extent| slot_len(extent) * copies(extent)).sum(),
            needed_len: extents.iter().map(|extent| extent.live_len * copies(extent)).sum(),
            moved_len: collected.moved_len,
            moved_count: collected.moved_count,
            outrun_count: collected.outrun_count,
            emptied_count: collected.emptied_count,
            live_body_len: extents.iter().map(body_len).sum(),
            index_len: index.table_len,
            index_entries: index.entry_count,
            memtable_len: index.memtable_len,
            checkpoints: self.checkpoints.get(),
            repair: self.repairs.counts(),
            scrub,
            full: self.space.is_full(),
            failed: self.failed.borrow().is_some(),
        }
    }
}
