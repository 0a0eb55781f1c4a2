//! A deployment that was opened for reading alone: some of its shards may have nothing on the disks that are there.

use basalt_reactor::CoreId;

use super::{Engine, owner_of};
use crate::error::EngineError;
use crate::extent::members::MemberState;
use crate::extent::{ArenaFiles, DiskIndex};
use crate::request::Request;

impl Engine {
    /// Whether it was opened for reading alone.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.inner.deployment.read_only
    }

    /// Shards that cannot be read in a deployment that was opened for reading alone, and why.
    #[must_use]
    pub fn unserved(&self) -> Vec<(u16, EngineError)> {
        self.inner.unserved.borrow().iter().map(|(&shard, error)| (shard, error.clone())).collect()
    }

    /// # Errors
    /// Why the shard cannot be read, if so.
    pub(super) fn check_served(&self, shard: u16) -> Result<(), EngineError> {
        self.inner.unserved.borrow().get(&shard).cloned().map_or(Ok(()), Err)
    }

    /// The shard cannot be read from the disks that are there.
    pub(super) fn note_unserved(&self, shard: u16, files: &ArenaFiles, error: &EngineError) {
        tracing::error!(shard, %error, "the shard cannot be served");
        let is_out = |disk: &DiskIndex| files.members().state(*disk) == MemberState::Out;
        let disks = files.home_disks().into_iter().filter(is_out).collect();
        let what = format!("shard {shard} cannot be read without the missing disks: {error}");
        self.inner.unserved.borrow_mut().insert(shard, EngineError::Unreadable { disks, what });
    }

    /// Tells the other cores which of this core's shards cannot be read.
    pub(super) async fn tell_unserved(&self) -> Result<(), EngineError> {
        let own = |shard: &u16| owner_of(*shard, self.inner.core_count) == self.inner.core.id();
        let unserved = self.unserved();
        for (shard, error) in unserved.into_iter().filter(|(shard, _)| own(shard)) {
            for core in 0..self.inner.core_count {
                let told = Request::ShardUnserved { shard, error: error.clone() };
                self.inner.port.call(CoreId(core), told).await.map_err(|_| EngineError::Closed)?;
            }
        }
        Ok(())
    }
}
