//! Group commit: the one place where a shard changes.
//!
//! Mutations queue up while a batch is on its way to the disks; the next batch takes all of them. After it is durable on
//! every replica it is applied to the index and the extent table, in log order, and only then are its
//! mutations answered. Readers see the index alone, so nobody ever sees what is not durable.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use super::Shard;
use super::spare::Spare;
use crate::body::BodyError;
use crate::error::EngineError;
use crate::extent::table::ExtentTable;
use crate::extent::{ExtentClass, ExtentId};
use crate::format::batch::BATCH_HEADER_LEN;
use crate::format::manifest::ExtentEntry;
use crate::format::record::Record;
use crate::format::root::LogPosition;
use crate::index::Index;
use crate::log::{Appended, Batch, LogError, LogExtent, LogWriter};
use crate::value::{self, InlinePlace};
use crate::wait::{Event, Giver, once};

/// Room kept in each batch for the records the commit loop adds itself.
const OWN_RECORDS_LEN_MAX: usize = 1024;

/// One mutation's records, atomic: they land in one batch.
#[derive(Default)]
pub(crate) struct Change {
    pub(crate) records: Vec<Record>,
    /// Body of the one record that has an inline span; spans count from its start.
    pub(crate) payload: Vec<u8>,
}

impl Change {
    fn len_max(&self) -> usize {
        self.records.iter().map(Record::len_max).sum::<usize>() + self.payload.len()
    }

    /// Whether it fits a batch of at most `batch_len_max` bytes that recovery can read back.
    fn check(&self, batch_len_max: usize) -> Result<(), EngineError> {
        let malformed = |what| Err(EngineError::Body(BodyError::Malformed { what }));
        if BATCH_HEADER_LEN + self.len_max() + OWN_RECORDS_LEN_MAX > batch_len_max {
            return malformed("its records are too long for a batch of the log");
        }
        if self.records.iter().any(|record| !record.is_within_bounds()) {
            return malformed("a key, a value or a list of extents is too long for a record");
        }
        Ok(())
    }
}

struct Pending {
    change: Change,
    done: Giver<Result<(), EngineError>>,
}

/// The state of a shard at the boundary between two batches: everything before `log` is in it, nothing after.
pub(crate) struct Boundary {
    pub(crate) log: LogPosition,
    pub(crate) extents: Vec<ExtentEntry>,
    pub(crate) next_extent: u64,
}

#[derive(Default)]
pub(crate) struct CommitQueue {
    pending: RefCell<VecDeque<Pending>>,
    boundaries: RefCell<Vec<Giver<Boundary>>>,
    pub(super) spare: Spare,
    /// The extent the log has just left; the next batch says so.
    sealing: Cell<Option<ExtentId>>,
    /// Checkpoints that ended, well or not.
    checkpoints_ended: Cell<u64>,
    /// Where the batches end that are durable on every replica.
    durable_to: Cell<Option<LogPosition>>,
    work: Event,
    /// Bytes of log written since the last checkpoint began.
    pub(crate) log_len: Cell<u64>,
}

impl CommitQueue {
    pub(crate) fn len(&self) -> usize {
        self.pending.borrow().len()
    }

    fn has_work(&self) -> bool {
        !self.pending.borrow().is_empty() || !self.boundaries.borrow().is_empty() || self.spare.is_prepared()
    }

    /// Where the batches end that are durable on every replica; `None` until the shard serves.
    pub(super) fn durable_to(&self) -> Option<LogPosition> {
        self.durable_to.get()
    }

    pub(super) fn set_durable_to(&self, position: LogPosition) {
        self.durable_to.set(Some(position));
    }

    pub(super) fn checkpoints_ended(&self) -> u64 {
        self.checkpoints_ended.get()
    }

    pub(super) fn checkpoint_ended(&self) {
        self.checkpoints_ended.set(self.checkpoints_ended.get() + 1);
        self.work.notify();
    }

    pub(super) fn wake(&self) {
        self.work.notify();
    }

    /// Completes when somebody waits for a boundary.
    pub(super) async fn boundary_asked(&self) {
        self.work.wait_until(|| !self.boundaries.borrow().is_empty()).await;
    }

    /// Wakes whoever waits for room: called when slots came free.
    pub(crate) fn retry_spare(&self) {
        self.spare.retry();
        self.work.notify();
    }
}

impl Shard {
    /// Makes `change` durable and applies it. Dropping the future does not undo it.
    ///
    /// # Errors
    /// [`EngineError::ShardFailed`] when the log's device failed; [`EngineError::NoSpace`] when the log has no room;
    /// [`EngineError::Body`] when the change is too long for any batch.
    pub(crate) async fn commit(&self, change: Change) -> Result<(), EngineError> {
        self.check_healthy()?;
        change.check(LogWriter::batch_len_max(&self.files))?;
        let (done, answer) = once();
        let begun = self.core.now();
        self.commits.pending.borrow_mut().push_back(Pending { change, done });
        self.commits.work.notify();
        let answer = answer.await;
        self.files.reads().throttle().note_user(begun, self.core.now());
        answer.unwrap_or(Err(EngineError::Closed))
    }

    /// The state between two batches, as soon as the one in flight is applied.
    pub(crate) async fn boundary(&self) -> Result<Boundary, EngineError> {
        self.check_healthy()?;
        let (giver, taker) = once();
        self.commits.boundaries.borrow_mut().push(giver);
        self.commits.work.notify();
        taker.await.ok_or_else(|| self.check_healthy().err().unwrap_or(EngineError::NoSpace))
    }

    /// Runs the log until its device fails.
    pub(crate) async fn run_log(self: Rc<Self>, mut log: LogWriter) {
        loop {
            self.commits
                .work
                .wait_until(|| {
                    self.commits.has_work() || self.failed.borrow().is_some() || self.is_epoch_due(&log)
                })
                .await;
            if self.is_epoch_due(&log)
                && self.check_healthy().is_ok()
                && self.enter_epoch(&mut log).await.is_ok()
            {
                continue;
            }
            if self.check_healthy().is_err() {
                self.fail_all();
                return;
            }
            self.give_boundaries(&log);
            let (group, len) = self.take_group();
            if group.is_empty() && !self.commits.spare.is_prepared() {
                continue;
            }
            let mut room = self.make_room(&mut log, len).await;
            if room == Err(EngineError::NoSpace) {
                // Log extents that hold nothing live are freed by a checkpoint; deletes go through that way.
                self.await_checkpoint(&log).await;
                room = self.make_room(&mut log, len).await;
            }
            if let Err(error) = self.check_healthy().and(room) {
                self.answer(group, &Err(error));
                if self.check_healthy().is_err() {
                    self.fail_all();
                    return;
                }
                continue;
            }
            if let Err(reason) = self.append(&mut log, group).await {
                self.fail(reason);
                self.fail_all();
                return;
            }
        }
    }

    pub(super) fn give_boundaries(&self, log: &LogWriter) {
        for boundary in self.commits.boundaries.take() {
            // Without a fresh memtable there is no boundary: the asker hears that by the drop.
            if !self.index.rotate() {
                continue;
            }
            self.commits.log_len.set(0);
            self.seal_idle();
            let extents = self.space.extents.borrow();
            boundary.give(Boundary {
                log: log.position(),
                extents: extents.snapshot(),
                next_extent: extents.next_id(),
            });
        }
    }

    /// Lets one checkpoint begin and end, and what it freed be tried.
    async fn await_checkpoint(&self, log: &LogWriter) {
        // One that is under way already may have begun too early to free what is dead by now.
        let target = self.commits.checkpoints_ended.get() + if self.checkpoint_running.get() { 2 } else { 1 };
        self.want_checkpoint();
        let over = || {
            let ended = self.commits.checkpoints_ended.get() >= target && self.commits.spare.is_decided();
            // A failed shard makes no checkpoint any more.
            ended || self.failed.borrow().is_some()
        };
        while !over() {
            self.commits.work.wait_until(|| over() || !self.commits.boundaries.borrow().is_empty()).await;
            self.give_boundaries(log);
        }
    }

    fn take_group(&self) -> (Vec<Pending>, usize) {
        let limit = LogWriter::batch_len_max(&self.files) - OWN_RECORDS_LEN_MAX;
        let mut pending = self.commits.pending.borrow_mut();
        let mut len = BATCH_HEADER_LEN;
        let mut group = Vec::new();
        while let Some(next) = pending.front() {
            // What lies in the log itself keeps its extent: that would take what deletes go on in. It may have been let in
            // before the disk was full.
            if !next.change.payload.is_empty() && self.space.is_full() {
                if let Some(refused) = pending.pop_front() {
                    refused.done.give(Err(EngineError::NoSpace));
                }
                continue;
            }
            let next_len = next.change.len_max();
            if !group.is_empty() && len + next_len > limit {
                break;
            }
            len += next_len;
            group.extend(pending.pop_front());
        }
        (group, len + OWN_RECORDS_LEN_MAX)
    }

    /// Leaves `log` in an extent where a batch of `len` bytes fits.
    async fn make_room(&self, log: &mut LogWriter, len: usize) -> Result<(), EngineError> {
        let spare = &self.commits.spare;
        if log.fits(len, spare.is_named() || spare.is_prepared()) {
            return Ok(());
        }
        if !spare.is_named() {
            spare.want();
            self.commits.work.wait_until(|| spare.is_decided()).await;
            if !spare.is_prepared() {
                return Err(EngineError::NoSpace);
            }
            // The room kept back holds just the batch that names the successor.
            self.append(log, Vec::new()).await.map_err(|reason| {
                self.fail(reason.clone());
                EngineError::ShardFailed { shard: self.id, reason }
            })?;
        }
        let Some(next) = spare.take_named() else {
            // A disk went out under that batch, and the log has begun an empty extent.
            return Ok(());
        };
        self.commits.sealing.set(Some(log.extent()));
        log.switch(next);
        spare.want();
        Ok(())
    }

    /// Appends and applies `group` and whatever the log itself has to say.
    async fn append(&self, log: &mut LogWriter, group: Vec<Pending>) -> Result<(), String> {
        let mut batch = Batch::default();
        if let Some(extent) = self.commits.sealing.take() {
            batch.records.push(Record::ExtentSealed { extent });
        }
        if let Some(prepared) = self.commits.spare.begin_naming() {
            batch.records.push(Record::ExtentOpened {
                placement: (*prepared.placement).clone(),
                nonce: prepared.nonce,
            });
        }
        let mut payload_len = 0u32;
        let mut answers = Vec::with_capacity(group.len());
        for pending in group {
            for mut record in pending.change.records {
                if let Record::Put { inline: Some(span), .. } = &mut record {
                    span.offset += payload_len;
                }
                batch.records.push(record);
            }
            payload_len += u32::try_from(pending.change.payload.len()).expect("bounded by the batch length");
            batch.payload.push(pending.change.payload);
            answers.push(pending.done);
        }
        let appended = match self.append_in_any_epoch(log, &mut batch).await {
            Ok(appended) => appended,
            Err(reason) => {
                for done in answers {
                    done.give(Err(EngineError::ShardFailed { shard: self.id, reason: reason.clone() }));
                }
                return Err(reason);
            }
        };
        self.commits.log_len.set(self.commits.log_len.get() + appended.disk_len);
        self.commits.set_durable_to(log.position());
        for record in batch.records {
            let opened = apply(
                record,
                appended.extent,
                appended.payload_offset,
                &self.index,
                &mut self.space.extents.borrow_mut(),
            );
            if let Some(extent) = opened {
                self.commits.spare.named(extent);
            }
        }
        for done in answers {
            done.give(Ok(()));
        }
        self.wake_background();
        Ok(())
    }

    /// Appends `batch`, as often as a disk is taken out under it.
    async fn append_in_any_epoch(&self, log: &mut LogWriter, batch: &mut Batch) -> Result<Appended, String> {
        loop {
            match log.append(batch, self.clock.get()).await {
                Ok(appended) => return Ok(appended),
                Err(error @ LogError::Device { .. }) => return Err(error.to_string()),
                Err(LogError::Out { .. }) => {
                    // The extent that the batch was to name may lie on that disk as well.
                    batch.records.retain(|record| match record {
                        Record::ExtentOpened { placement, .. } if placement.class == ExtentClass::Log => {
                            self.space.extents.borrow_mut().release(placement);
                            false
                        }
                        _ => true,
                    });
                    self.enter_epoch(log).await.map_err(|error| error.to_string())?;
                }
            }
        }
    }

    fn answer(&self, group: Vec<Pending>, result: &Result<(), EngineError>) {
        for pending in group {
            pending.done.give(result.clone());
        }
    }

    fn fail_all(&self) {
        let pending = self.commits.pending.take();
        let error = self.check_healthy().err().unwrap_or(EngineError::Closed);
        self.answer(pending.into(), &Err(error));
        self.commits.boundaries.take();
        self.wake_background();
    }
}

/// Applies one durable record; recovery and the commit loop do the same thing here. Returns the log extent it opened.
pub(crate) fn apply(
    record: Record,
    batch_extent: ExtentId,
    payload_offset: u64,
    index: &Index,
    extents: &mut ExtentTable,
) -> Option<LogExtent> {
    match record {
        Record::Put { key, mut value, inline, deltas } => {
            for delta in &deltas {
                extents.apply(delta);
            }
            if let Some(span) = inline {
                let place = InlinePlace {
                    extent: batch_extent,
                    offset: payload_offset + u64::from(span.offset),
                    len: span.len,
                };
                value::set_inline_place(&mut value, place);
                let extent = extents.get_mut(batch_extent).expect("a batch lies in a known log extent");
                extent.live_len += u64::from(span.len);
            }
            index.put(&key, &value);
        }
        Record::Delete { key, deltas } => {
            for delta in &deltas {
                extents.apply(delta);
            }
            index.delete(&key);
        }
        Record::ExtentOpened { placement, nonce } => {
            extents.insert(&ExtentEntry {
                placement: placement.clone(),
                sealed: false,
                live_len: 0,
                next_block: 0,
                nonce,
            });
            if placement.class == ExtentClass::Log {
                return Some(LogExtent { placement: Rc::new(placement), nonce });
            }
        }
        Record::ExtentSealed { extent } => {
            if let Some(extent) = extents.get_mut(extent) {
                extent.sealed = true;
            }
        }
    }
    None
}
