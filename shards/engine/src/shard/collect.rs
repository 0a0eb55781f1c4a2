//! Collection: extents that hold little are emptied, so that overwriting and deleting give their space back.
//!
//! What lives in a victim is copied into new data extents, read verified and written with parity like any body: small objects
//! many at a time into packs, large ones segment by segment. Then its record is changed by a move, which commits only if the
//! record still is what was copied, looked at under the key's lock; so a client's write always wins. The victim is
//! freed by the next checkpoint, when its readers' pins are gone. Which extent comes next is [`policy`]'s choice. When none is
//! worth it, short parts of multipart objects are merged ([`merge`]).
//!
//! It works in small units and lets clients go first, unless somebody waits for space. One data extent is kept from everybody
//! else, so a step is possible on a full disk too.

mod large;
mod merge;
mod policy;
mod small;
mod victim;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use basalt_reactor::Monotonic;
use basalt_reactor::disk::BLOCK_LEN;

use self::policy::{Candidate, Situation};
use super::Shard;
use super::leases::Stream;
use super::space::Claim;
use crate::body::directory::Origin;
use crate::body::{Bodies, BodyCore, BodyError, Lease, LeaseFuture, Lessor, OnDamage};
use crate::error::EngineError;
use crate::extent::{ExtentClass, ExtentId};
use crate::wait::Event;

/// Log extents emptied before a checkpoint frees them, while nobody waits for space.
const UNFREED_COUNT_MAX: u64 = 4;

/// How long a request waits at a time for space to be made.
const RECLAIM_FOR: Duration = Duration::from_secs(30);

/// How long a mutation waits for collection to catch up.
const CATCH_UP_MAX: Duration = Duration::from_secs(1);

/// Of a data extent's columns, the share (one in so many) that may be left at their end without being worth a step: no mover
/// fills an extent to the last block, and what it leaves must not make it move the same again.
const TAIL_SHARE: u64 = 32;

/// How long collection rests after a step that failed.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The same after many in a row.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// How long an extent that could not be emptied is left alone, unless less lives in it.
const SKIPPED_FOR: Duration = Duration::from_secs(60);

/// The longest that a unit of work waits for the log to have nothing to do, and rests after itself.
const YIELD_MAX: Duration = Duration::from_millis(20);

/// Amplification from which collection no longer rests, in thousandths.
const HURRY_FROM: u64 = 1_180;

/// What a shard knows of its collection.
#[derive(Default)]
pub(crate) struct Collection {
    /// A collector runs.
    attached: Cell<bool>,
    /// Something has changed since it last looked.
    due: Cell<bool>,
    /// Somebody waits for space.
    wanted: Cell<bool>,
    /// Garbage has piled up beyond what is promised, or nearly so.
    behind: Cell<bool>,
    /// The last pass gained nothing.
    stalled: Cell<bool>,
    wake: Event,
    running: Cell<bool>,
    /// Passes that ended, and those of them that gave space back.
    passes: Cell<u64>,
    gains: Cell<u64>,
    passed: Event,
    proposals: merge::Proposals,
    counters: Cell<Counters>,
}

/// What collection has done since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Bytes of bodies that moved.
    pub(crate) moved_len: u64,
    pub(crate) moved_count: u64,
    /// Moves that came too late: the key had changed.
    pub(crate) outrun_count: u64,
    /// Extents left with nothing in them.
    pub(crate) emptied_count: u64,
}

impl Collection {
    pub(crate) fn counters(&self) -> Counters {
        self.counters.get()
    }

    fn count(&self, change: impl FnOnce(&mut Counters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }

    /// Has the collector look whether there is something to do.
    pub(super) fn look(&self) {
        self.due.set(true);
        self.wake.notify();
    }

    /// For a shard that failed: nobody waits any more.
    pub(super) fn stop(&self) {
        self.wake.notify();
        self.passed.notify();
    }
}

impl Shard {
    /// Makes room for a request that found none: `first` by a checkpoint, then by emptying an extent. `false` when there is
    /// nothing to be had that way.
    pub(super) async fn reclaim(&self, first: bool) -> Result<bool, EngineError> {
        if first {
            // What died since the last checkpoint may be room enough; whether it is, the next one shows.
            self.checkpoint_now().await?;
            return Ok(true);
        }
        let collection = &self.collection;
        if !collection.attached.get() {
            return Ok(false);
        }
        // A pass that is under way may have begun before what it needs was there.
        let gains = collection.gains.get();
        let target = collection.passes.get() + if collection.running.get() { 2 } else { 1 };
        collection.wanted.set(true);
        collection.look();
        let ended = || collection.passes.get() >= target || self.failed.borrow().is_some();
        let mut passed = pin!(collection.passed.wait_until(ended));
        let mut late = pin!(self.core.sleep(RECLAIM_FOR));
        poll_fn(|cx| match passed.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending => late.as_mut().poll(cx),
        })
        .await;
        self.check_healthy()?;
        Ok(collection.gains.get() > gains)
    }
}

impl Shard {
    /// Lets collection catch up with clients who write faster than it moves what they leave, one step for each mutation: where
    /// space is tight garbage must not pile up, and a log never gives back what it has taken.
    pub(super) async fn await_collection(&self) {
        let collection = &self.collection;
        let is_behind = self.space.is_log_long() || (self.space.is_tight() && collection.behind.get());
        if !is_behind || collection.stalled.get() || !collection.attached.get() {
            return;
        }
        collection.look();
        let passes = collection.passes.get();
        let ended = || collection.passes.get() != passes || self.failed.borrow().is_some();
        let mut ended = pin!(collection.passed.wait_until(ended));
        let mut late = pin!(self.core.sleep(CATCH_UP_MAX));
        poll_fn(|cx| match ended.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending => late.as_mut().poll(cx),
        })
        .await;
    }
}

/// The task that collects one shard's extents, on the shard's core.
pub(crate) struct Collector {
    shard: Rc<Shard>,
    bodies: Rc<Bodies>,
    on_damage: OnDamage,
    claim: Rc<Cell<Claim>>,
    /// Extents that could not be emptied: what lived in them, and until when they are left alone.
    skipped: RefCell<BTreeMap<ExtentId, (u64, Monotonic)>>,
    /// Until then nothing is logged anew: the last time it took as much of the log as it gave back.
    no_logging_until: Cell<Monotonic>,
    /// Bytes of log that logging anew took in this step, of one replica.
    logged_len: Cell<u64>,
    /// Log extents emptied since the last checkpoint.
    unfreed: Cell<u64>,
    in_hurry: Cell<bool>,
    /// When the last unit of work began.
    unit_begun: Cell<Monotonic>,
}

impl Collector {
    /// A collector of `shard`, which moves bodies in the memory of `core`.
    pub(crate) fn new(
        shard: &Rc<Shard>,
        core: &Rc<BodyCore>,
        origin: Origin,
        on_damage: OnDamage,
    ) -> Collector {
        let claim = Rc::new(Cell::new(Claim::Repacking));
        let lessor = Rc::new(CollectionLessor { shard: Rc::clone(shard), claim: Rc::clone(&claim) });
        let bodies = Bodies::new(Rc::clone(core), Rc::clone(&shard.files), lessor, origin);
        Collector {
            shard: Rc::clone(shard),
            bodies,
            on_damage,
            claim,
            skipped: RefCell::default(),
            unfreed: Cell::new(0),
            in_hurry: Cell::new(false),
            no_logging_until: Cell::default(),
            logged_len: Cell::new(0),
            unit_begun: Cell::default(),
        }
    }

    /// Looks after every checkpoint, and whenever somebody waits for space, until the shard fails.
    pub(crate) async fn run(self) {
        let shard = Rc::clone(&self.shard);
        let collection = &shard.collection;
        collection.attached.set(true);
        let mut retry_after = RETRY_AFTER;
        loop {
            collection.wake.wait_until(|| collection.due.get() || shard.failed.borrow().is_some()).await;
            if shard.failed.borrow().is_some() {
                collection.attached.set(false);
                collection.passed.notify();
                return;
            }
            collection.due.set(false);
            collection.running.set(true);
            let result = self.pass().await;
            collection.running.set(false);
            collection.stalled.set(result != Ok(true));
            collection.gains.set(collection.gains.get() + u64::from(result == Ok(true)));
            collection.passes.set(collection.passes.get() + 1);
            collection.passed.notify();
            match result {
                Ok(gained) => {
                    retry_after = RETRY_AFTER;
                    if gained || self.merge_next().await {
                        collection.due.set(true);
                    }
                }
                Err(error) => {
                    tracing::debug!(shard = shard.id, %error, "a collection step is put off");
                    self.put_off(&mut retry_after).await;
                    collection.due.set(true);
                }
            }
        }
    }

    /// Rests after a failure, longer each time, unless somebody waits for space.
    async fn put_off(&self, retry_after: &mut Duration) {
        let (core, collection) = (&self.shard.core, &self.shard.collection);
        core.sleep(RETRY_AFTER).await;
        let is_called = || collection.wanted.get() || self.shard.failed.borrow().is_some();
        let mut called = pin!(collection.wake.wait_until(is_called));
        let mut over = pin!(core.sleep(retry_after.saturating_sub(RETRY_AFTER)));
        poll_fn(|cx| match called.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending => over.as_mut().poll(cx),
        })
        .await;
        *retry_after = (*retry_after * 2).min(RETRY_AFTER_MAX);
    }

    /// Empties the extent that is most worth it; `false` when none is.
    async fn pass(&self) -> Result<bool, EngineError> {
        let wanted = self.shard.collection.wanted.replace(false);
        loop {
            let (victim, situation) = self.choose(wanted);
            let Some(victim) = victim else {
                if self.unfreed.replace(0) > 0 {
                    self.shard.checkpoint_now().await?;
                    return Ok(wanted);
                }
                return Ok(false);
            };
            self.logged_len.set(0);
            let emptied = self.empty(victim).await;
            let left = self.live_len(victim);
            let until = self.shard.core.now() + SKIPPED_FOR;
            // What there was no room for is gone on with before anything else is begun.
            if left > 0 && emptied != Err(EngineError::NoSpace) {
                tracing::debug!(shard = self.shard.id, extent = victim.0, left, "not emptied");
                self.skipped.borrow_mut().insert(victim, (left, until));
            }
            if self.logged_len.get() * 8 > self.shard.files.geometry().log_slot_len * 7 {
                self.no_logging_until.set(until);
            }
            emptied?;
            if left > 0 {
                continue;
            }
            self.shard.collection.count(|counters| counters.emptied_count += 1);
            self.unfreed.set(self.unfreed.get() + 1);
            let is_data = self.shard.class_of(victim) == Some(ExtentClass::Data);
            if is_data || situation.is_short || self.unfreed.get() >= UNFREED_COUNT_MAX {
                self.unfreed.set(0);
                self.shard.checkpoint_now().await?;
            }
            return Ok(true);
        }
    }

    fn live_len(&self, extent: ExtentId) -> u64 {
        self.shard.space.extents.borrow().get(extent).map_or(0, |extent| extent.live_len)
    }

    fn choose(&self, wanted: bool) -> (Option<ExtentId>, Situation) {
        let space = &self.shard.space;
        let geometry = self.shard.files.geometry();
        let columns = geometry.columns() as u64;
        let is_log_long = space.is_log_long();
        let is_short = wanted || space.is_full() || space.is_data_low();
        let situation = Situation {
            data_extent_len: geometry.data_slot_len * columns,
            is_short,
            is_log_short: (is_log_long || (is_short && space.is_log_low()))
                && space.leaves_reserve(Claim::Repacking),
        };
        let candidates = self.candidates(is_short);
        let is_behind = policy::amplification(&candidates) >= HURRY_FROM;
        self.shard.collection.behind.set(is_behind);
        self.in_hurry.set(is_short || is_log_long || is_behind);
        (policy::choose(&candidates, situation), situation)
    }

    fn candidates(&self, is_short: bool) -> Vec<Candidate> {
        let now = self.shard.core.now();
        let space = &self.shard.space;
        let can_pack = space.leaves_reserve(Claim::Repacking) || self.pack_room().is_some();
        let can_log = now >= self.no_logging_until.get();
        let mut skipped = self.skipped.borrow_mut();
        let extents = space.extents.borrow();
        skipped.retain(|&id, &mut (left, until)| {
            now < until && extents.get(id).is_some_and(|extent| extent.live_len >= left)
        });
        let geometry = self.shard.files.geometry();
        let (k, columns) = (u64::from(geometry.k), geometry.columns() as u64);
        let log_start = self.shard.root.borrow().log.extent;
        let is_candidate = |extent: &&crate::extent::table::Extent| {
            let is_replayed = extent.placement.class == ExtentClass::Log && extent.placement.id >= log_start;
            // What is being read is not freed soon, which is no reason to leave it as it is, unless somebody waits.
            let is_used = extent.lease_count > 0 || (is_short && extent.pin_count > 0) || extent.condemned;
            let has_a_place = extent.placement.class == ExtentClass::Data || can_pack || can_log;
            extent.sealed && extent.live_len > 0 && !is_replayed && !is_used && has_a_place
        };
        extents
            .iter()
            .filter(is_candidate)
            .filter(|extent| !skipped.contains_key(&extent.placement.id))
            .map(|extent| {
                let class = extent.placement.class;
                let slot_len = geometry.slot_len(class);
                let used = slot_len * extent.placement.columns.len() as u64;
                let moved = match class {
                    // With the list and the directory chunk of a pack, by experience.
                    ExtentClass::Log if can_pack => extent.live_len * columns / k / 16 * 17,
                    // With what batches and records take, which for very small objects is more.
                    ExtentClass::Log => extent.live_len / 8 * 9 * extent.placement.columns.len() as u64,
                    ExtentClass::Data | ExtentClass::Table => {
                        let tail = slot_len - u64::from(extent.next_block) * BLOCK_LEN as u64;
                        (extent.live_len + tail.min(slot_len / TAIL_SHARE)) * columns
                    }
                };
                Candidate { id: extent.placement.id, class, used, moved: moved.max(1) }
            })
            .collect()
    }

    /// Lets clients go first: until the log has nothing to do, and for as long as the last unit took; not for long, and not
    /// when space is short.
    async fn rest(&self) {
        let core = &self.shard.core;
        if self.in_hurry.get() || self.shard.space.is_log_long() {
            core.yield_now().await;
        } else {
            let worked = core.now().since(self.unit_begun.get());
            let mut waited = Duration::ZERO;
            while waited < worked.min(YIELD_MAX) || (self.shard.commits.len() > 0 && waited < YIELD_MAX) {
                let step = Duration::from_millis(1);
                core.sleep(step).await;
                waited += step;
            }
        }
        self.unit_begun.set(core.now());
    }

    /// Leaves the last of the log to deletes. What moves have written there goes with the next checkpoint.
    async fn await_log(&self) -> Result<(), EngineError> {
        if !self.shard.space.has_log_slot() {
            self.shard.checkpoint_now().await?;
        }
        if self.shard.space.has_log_slot() { Ok(()) } else { Err(EngineError::NoSpace) }
    }

    /// Waits until the index has caught up, as clients do: what is moved must not fill the memory that they wait for. When it cannot
    /// catch up for want of space, space comes first.
    async fn await_index(&self) {
        if let Err(error) = self.shard.wait_for_index().await {
            tracing::debug!(shard = self.shard.id, %error, "collection goes on while the index is behind");
        }
    }
}

/// The shard as a lessor of blocks for what is moved.
struct CollectionLessor {
    shard: Rc<Shard>,
    claim: Rc<Cell<Claim>>,
}

impl Lessor for CollectionLessor {
    fn lease(&self, blocks_min: u32, blocks_max: u32) -> LeaseFuture {
        let (shard, stream) = (Rc::clone(&self.shard), Stream::Collection(self.claim.get()));
        Box::pin(async move {
            match shard.lease_from(stream, blocks_min, blocks_max).await {
                Ok(grant) => Ok(Lease {
                    id: grant.id,
                    placement: Rc::new(grant.placement),
                    block: grant.block,
                    blocks: grant.blocks,
                }),
                Err(EngineError::NoSpace) => Err(BodyError::NoSpace),
                Err(_) => Err(BodyError::Closed),
            }
        })
    }

    fn release(&self, lease: u64) {
        self.shard.end_lease(lease, 0);
    }
}
