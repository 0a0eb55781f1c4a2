//! Opening a shard for reading alone: what root, log and index have on the disks that are there, and not a byte written.
//!
//! The last batch of the log is served from where it lies. Nobody knows whether it was acknowledged, so it cannot be left out;
//! a later start repeats it, if one of its replicas is there then.

use std::rc::Rc;

use super::{Recovered, ShardContext, apply_replayed};
use crate::error::EngineError;
use crate::shard::Shard;

/// Why the shard takes no writes, whoever asks.
const READ_ONLY: &str = "started read-only";

impl Shard {
    /// As [`Shard::open`] for a shard that takes no writes, and starts no task.
    ///
    /// # Errors
    /// As [`Shard::open`]; also when root, manifest, log or index have no replica on the disks that are there.
    pub(crate) async fn open_for_reading(
        context: ShardContext,
    ) -> Result<(Rc<Shard>, Recovered), EngineError> {
        debug_assert!(context.read_only, "it says so to what writes while it recovers");
        let (shard, replayed) = Shard::recover(context).await?;
        let recovered = replayed.found;
        if let Some(last) = replayed.last {
            apply_replayed(last, &shard.index, &shard.space);
        }
        *shard.failed.borrow_mut() = Some(READ_ONLY.to_owned());
        shard.load_buckets().await?;
        Ok((shard, recovered))
    }
}
