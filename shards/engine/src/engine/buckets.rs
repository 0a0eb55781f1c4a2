//! Creating, changing and deleting buckets, known on every core before the caller hears of it.

use std::rc::Rc;

use super::Engine;
use crate::buckets::BUCKET_COUNT_MAX;
use crate::error::EngineError;
use crate::request::{Ask, Reply, Request};
use crate::value::Bucket;

impl Engine {
    /// Creates a bucket.
    ///
    /// # Errors
    /// [`EngineError::BucketExists`], [`EngineError::NoSpace`].
    pub async fn create_bucket(
        &self,
        name: &str,
        settings: Vec<(String, Vec<u8>)>,
    ) -> Result<Rc<Bucket>, EngineError> {
        if self.inner.buckets.len() >= BUCKET_COUNT_MAX {
            return Err(EngineError::NoSpace);
        }
        let ask = Ask::CreateBucket { name: name.to_owned(), settings };
        let Reply::Bucket(created) = self.ask(self.home_of(name), ask).await? else {
            return Err(EngineError::Closed);
        };
        let bucket = created?;
        self.tell_all(&bucket).await?;
        Ok(Rc::new(bucket))
    }

    /// Replaces a bucket's settings.
    ///
    /// # Errors
    /// [`EngineError::NoSuchBucket`] when it was deleted meanwhile.
    pub async fn update_bucket(&self, bucket: Bucket) -> Result<(), EngineError> {
        let ask = Ask::StoreBucket(Box::new(bucket.clone()));
        done(self.ask(self.home_of(&bucket.name), ask).await?)?;
        self.tell_all(&bucket).await
    }

    /// Deletes an empty bucket. Its record says Deleting before any shard fences it, so a crash in between ends with the
    /// bucket as it was or gone, never half.
    ///
    /// # Errors
    /// [`EngineError::BucketNotEmpty`], [`EngineError::NoSuchBucket`].
    pub async fn delete_bucket(&self, name: &str) -> Result<(), EngineError> {
        let bucket = self.inner.buckets.get(name).ok_or(EngineError::NoSuchBucket)?;
        let home = self.home_of(name);
        let deleting = Bucket { deleting: true, ..(*bucket).clone() };
        done(self.ask(home, Ask::StoreBucket(Box::new(deleting))).await?)?;
        let mut empty = Ok(true);
        for shard in 0..self.shard_count() {
            match self.ask(shard, Ask::Fence(bucket.id)).await? {
                Reply::Empty(Ok(true)) => {}
                Reply::Empty(other) => {
                    empty = other;
                    break;
                }
                _ => {
                    empty = Err(EngineError::Closed);
                    break;
                }
            }
        }
        if let Ok(true) = empty {
            done(self.ask(home, Ask::DropBucket(Box::new((*bucket).clone()))).await?)?;
            for core in 0..self.inner.core_count {
                let gone = Request::BucketGone(bucket.id);
                self.inner
                    .port
                    .call(basalt_reactor::CoreId(core), gone)
                    .await
                    .map_err(|_| EngineError::Closed)?;
            }
            return Ok(());
        }
        done(self.ask(home, Ask::StoreBucket(Box::new((*bucket).clone()))).await?)?;
        for shard in 0..self.shard_count() {
            done(self.ask(shard, Ask::Unfence(bucket.id)).await?)?;
        }
        empty.and(Err(EngineError::BucketNotEmpty))
    }

    fn home_of(&self, name: &str) -> u16 {
        self.shard_of(0, name.as_bytes())
    }

    async fn tell_all(&self, bucket: &Bucket) -> Result<(), EngineError> {
        for core in 0..self.inner.core_count {
            let changed = Request::BucketChanged(bucket.clone());
            self.inner
                .port
                .call(basalt_reactor::CoreId(core), changed)
                .await
                .map_err(|_| EngineError::Closed)?;
        }
        Ok(())
    }

    /// At start: tells every core of the buckets whose records this core's shards hold. A deletion that a crash cut
    /// off is over: the bucket is as it was.
    pub(super) async fn share_buckets(&self) -> Result<(), EngineError> {
        for bucket in self.inner.buckets.all() {
            let home = self.home_of(&bucket.name);
            if !self.inner.shards.contains_key(&home) {
                continue;
            }
            let mut bucket = (*bucket).clone();
            if std::mem::take(&mut bucket.deleting) {
                done(self.ask(home, Ask::StoreBucket(Box::new(bucket.clone()))).await?)?;
            }
            self.tell_all(&bucket).await?;
        }
        Ok(())
    }
}

pub(super) fn done(reply: Reply) -> Result<(), EngineError> {
    match reply {
        Reply::Done(result) => result,
        _ => Err(EngineError::Closed),
    }
}
