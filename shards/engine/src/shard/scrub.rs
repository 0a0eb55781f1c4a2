//! Scrub: every byte at rest that matters is verified within a deadline, and mended where it does not hold.
//!
//! In rounds: the shard's root and manifest, then its extents in order of their ids, new ones included. Log extents are
//! verified by their batches, tables by their frames, data extents by their directory chunks, each on every disk that is
//! there; what no chunk describes is looked for through the index. What is dead is passed over, or read without harm. Where a round is, is kept in the index, so that restarts do
//! not begin it again.

mod data;
mod live;
pub(super) mod pace;
pub(crate) mod progress;
mod roots;
mod undescribed;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use self::pace::{Pace, Pacer};
use self::progress::Progress;
use super::Shard;
use super::commit::Change;
use crate::body::Bodies;
use crate::error::EngineError;
use crate::extent::{ExtentClass, ExtentId};
use crate::format::record::Record;
use crate::index::key;
use crate::value;

/// Within which everything is verified unless told otherwise.
pub const DEADLINE_DEFAULT: Duration = Duration::from_secs(30 * 86_400);

/// The part of the deadline that a round takes, in tenths; the rest is for what delays it.
const ROUND_TENTHS: u32 = 9;

/// The part of the deadline after which progress is kept, at most.
const SAVES_PER_DEADLINE: u32 = 256;

/// The same while there are gaps that the index is to be asked about, which takes a walk over all of it.
const GAP_LOOKS_PER_DEADLINE: u32 = 32;

/// How long a finished round waits before it looks for new extents again.
const IDLE_NAP: Duration = Duration::from_secs(30);

/// What scrub has done since the start, and what is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubStats {
    /// Bytes read in order to verify them, of all copies and columns.
    pub scrubbed_len: u64,
    /// Rounds ended.
    pub rounds: u64,
    /// How long ago the byte that has waited longest was verified or written, at most.
    pub oldest: Duration,
}

/// The scrub of one shard.
#[derive(Default)]
pub(super) struct Scrub {
    /// `None` until scrub has started.
    progress: RefCell<Option<Progress>>,
    scrubbed_len: Cell<u64>,
    rounds: Cell<u64>,
    /// When progress was last kept, nanoseconds since the Unix epoch.
    saved: Cell<u64>,
    gaps: undescribed::Gaps,
}

impl Scrub {
    pub(super) fn count(&self, len: u64) {
        self.scrubbed_len.set(self.scrubbed_len.get() + len);
    }
}

impl Shard {
    /// Scrubs for as long as the shard is healthy.
    pub(crate) async fn run_scrub(self: Rc<Self>, bodies: Rc<Bodies>, deadline: Duration) {
        let round = deadline * ROUND_TENTHS / 10;
        let kept = match self.kept_progress().await {
            Ok(kept) => kept,
            Err(error) => {
                tracing::warn!(shard = self.id, %error, "scrub begins anew");
                None
            }
        };
        *self.scrub.progress.borrow_mut() = Some(kept.unwrap_or_else(|| Progress::new(self.core.wall().0)));
        while self.check_healthy().is_ok() {
            let (cursor, started) = self.position();
            if cursor == 0 {
                self.scrub_roots().await;
            }
            if let Some((id, class)) = self.extent_after(ExtentId(cursor)) {
                let (done, total) = self.scrub_lens(id);
                let (done, last) = (Cell::new(done), Cell::new(self.core.now()));
                let pace = Pace::Scrub(Pacer { started, round, total, done, last });
                match class {
                    ExtentClass::Log => drop(self.mend_log(id, None, &pace).await),
                    ExtentClass::Data => self.scrub_data(&bodies, id, &pace).await,
                    ExtentClass::Table => drop(self.mend_table(id, None, &pace).await),
                }
                if self.check_healthy().is_ok() {
                    // What is kept as verified has no gaps that a restart would forget.
                    let has_gaps = !self.scrub.gaps.is_empty();
                    let save_after =
                        deadline / if has_gaps { GAP_LOOKS_PER_DEADLINE } else { SAVES_PER_DEADLINE };
                    if has_gaps && self.is_save_due(save_after) {
                        self.close_gaps(&bodies).await;
                    }
                    self.advance(|progress, now| progress.pass(id.0, now), save_after).await;
                }
                continue;
            }
            let elapsed = Duration::from_nanos(self.core.wall().0.saturating_sub(started));
            if elapsed < round {
                self.core.sleep((round - elapsed).min(IDLE_NAP)).await;
                continue;
            }
            self.close_gaps(&bodies).await;
            self.scrub.rounds.set(self.scrub.rounds.get() + 1);
            self.advance(|progress, now| progress.finish(now), Duration::ZERO).await;
        }
    }

    /// The last extent verified in this round, and when that began.
    fn position(&self) -> (u64, u64) {
        let progress = self.scrub.progress.borrow();
        progress.as_ref().map_or((0, 0), |progress| (progress.cursor, progress.started()))
    }

    fn is_save_due(&self, save_after: Duration) -> bool {
        let saved = self.scrub.saved.get();
        Duration::from_nanos(self.core.wall().0.saturating_sub(saved)) >= save_after
    }

    /// Moves on, and keeps that if the last time was `save_after` ago.
    async fn advance(&self, step: impl FnOnce(&mut Progress, u64), save_after: Duration) {
        let now = self.core.wall().0;
        if let Some(progress) = &mut *self.scrub.progress.borrow_mut() {
            step(progress, now);
        }
        if !self.is_save_due(save_after) {
            return;
        }
        self.scrub.saved.set(now);
        let Some(progress) = self.scrub.progress.borrow().clone() else { return };
        let record = Record::Put {
            key: key::scrub(),
            value: value::encode(&progress),
            inline: None,
            deltas: Vec::new(),
        };
        // On a full disk it is kept later.
        if let Err(error) = self.commit(Change { records: vec![record], payload: Vec::new() }).await {
            tracing::debug!(shard = self.id, %error, "the progress of scrub is not kept");
        }
    }

    async fn kept_progress(&self) -> Result<Option<Progress>, EngineError> {
        match self.index.get(&key::scrub()).await? {
            None => Ok(None),
            Some(value) => Ok(Some(value::decode::<Progress>(&value)?)),
        }
    }

    /// The first extent behind `cursor`.
    fn extent_after(&self, cursor: ExtentId) -> Option<(ExtentId, ExtentClass)> {
        let extents = self.space.extents.borrow();
        let own = extents.iter().map(|extent| (extent.placement.id, extent.placement.class));
        let tables = self.index.table_extents().into_iter().map(|(id, _)| (id, ExtentClass::Table));
        own.chain(tables).filter(|&(id, _)| id > cursor).min_by_key(|&(id, _)| id)
    }

    /// Bytes to be read in a round, before `id` and in all.
    fn scrub_lens(&self, id: ExtentId) -> (u64, u64) {
        let geometry = self.files.geometry();
        let extents = self.space.extents.borrow();
        let own = extents.iter().map(|extent| {
            let per_column = match extent.placement.class {
                ExtentClass::Data => u64::from(extent.next_block) * basalt_reactor::disk::BLOCK_LEN as u64,
                class => geometry.slot_len(class),
            };
            (extent.placement.id, per_column * extent.placement.columns.len() as u64)
        });
        let replicas = geometry.replicas() as u64;
        let tables = self.index.table_extents().into_iter().map(|(id, len)| (id, len * replicas));
        own.chain(tables).fold((0, 0), |(before, total), (other, len)| {
            (before + if other < id { len } else { 0 }, total + len)
        })
    }

    pub(super) fn scrub_stats(&self) -> ScrubStats {
        let progress = self.scrub.progress.borrow();
        let oldest = progress.as_ref().map_or(Duration::ZERO, |progress| {
            let next = self.extent_after(ExtentId(progress.cursor)).map(|(id, _)| id.0);
            progress.oldest(next, self.core.wall().0)
        });
        ScrubStats { scrubbed_len: self.scrub.scrubbed_len.get(), rounds: self.scrub.rounds.get(), oldest }
    }
}
