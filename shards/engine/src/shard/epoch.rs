//! Entering a new epoch while the shard serves: the log goes on elsewhere, and a root says so first.
//!
//! Of the batch that was on its way nobody knows where it has arrived. It is never written again in the same place: the
//! shard takes a log extent on disks that are there, brings everything applied so far under a root that names this extent as
//! the place of the next batch, and only then appends the batch again. A crash in between finds the old root with the old
//! extent, or the new one; the batch was not acknowledged in either.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use super::Shard;
use super::checkpoint::ROOT_TURN;
use super::commit::Boundary;
use crate::error::EngineError;
use crate::extent::{ExtentClass, ExtentId};
use crate::format::manifest::ExtentEntry;
use crate::log::LogWriter;
use crate::wait::KeyGuard;

impl Shard {
    /// Whether the log is still of an older epoch than the members.
    pub(super) fn is_epoch_due(&self, log: &LogWriter) -> bool {
        self.files.members().epoch() != log.epoch()
    }

    /// Leaves `log` at the start of an empty extent of the members' epoch.
    ///
    /// # Errors
    /// [`EngineError`]: the shard has failed.
    pub(super) async fn enter_epoch(&self, log: &mut LogWriter) -> Result<(), EngineError> {
        let _turn = self.take_root_turn(log).await;
        // Whatever the reserve is for, this comes first, and gives the room back.
        self.space.use_reserve(true);
        let entered = loop {
            match self.try_enter(log).await {
                Err(EngineError::MembersChanged) => {}
                Ok(()) if self.is_epoch_due(log) => {}
                ended => break ended,
            }
        };
        self.space.use_reserve(false);
        if let Err(error) = &entered {
            self.fail(format!("no log for epoch {}: {error}", self.files.members().epoch()));
        }
        self.commits.retry_spare();
        entered
    }

    /// Waits until nobody else makes a root, and meanwhile gives a checkpoint the boundary that it waits for.
    async fn take_root_turn(&self, log: &LogWriter) -> KeyGuard {
        let mut turn = pin!(self.roots.lock(ROOT_TURN));
        loop {
            let mut asked = pin!(self.commits.boundary_asked());
            let taken = poll_fn(|cx| match turn.as_mut().poll(cx) {
                Poll::Ready(guard) => Poll::Ready(Some(guard)),
                Poll::Pending => asked.as_mut().poll(cx).map(|()| None),
            });
            if let Some(guard) = taken.await {
                return guard;
            }
            self.give_boundaries(log);
        }
    }

    async fn try_enter(&self, log: &mut LogWriter) -> Result<(), EngineError> {
        // Extents prepared before may lie on a disk that is out. One that the log has not named was never of use.
        self.drop_prepared();
        let (extent, epoch) = self.prepare_log_extent().await?;
        let id = extent.placement.id;
        self.space.extents.borrow_mut().insert(&ExtentEntry {
            placement: (*extent.placement).clone(),
            sealed: false,
            live_len: 0,
            next_block: 0,
            nonce: extent.nonce,
        });
        // From here on the log is there, whether or not a root says so yet; another attempt leaves it as it leaves this one.
        log.enter(epoch, extent);
        self.enter_extent(id);
        self.seal_logs_before(id);
        if self.index.stats().frozen_count > 0 {
            self.flush_index().await?;
        }
        if !self.index.rotate() {
            return Err(EngineError::Damaged("the index takes no fresh memtable".to_owned()));
        }
        self.seal_idle();
        let boundary = {
            let extents = self.space.extents.borrow();
            Boundary { log: log.position(), extents: extents.snapshot(), next_extent: extents.next_id() }
        };
        self.commits.log_len.set(0);
        self.flush_index().await?;
        self.install(boundary).await?;
        self.log_epoch.set(epoch);
        self.space.refresh_full();
        tracing::info!(shard = self.id, epoch, "epoch entered");
        Ok(())
    }

    /// No log extent before `log` takes another batch.
    fn seal_logs_before(&self, log: ExtentId) {
        for extent in self.space.extents.borrow_mut().iter_mut() {
            if extent.placement.class == ExtentClass::Log && extent.placement.id != log {
                extent.sealed = true;
            }
        }
    }
}
