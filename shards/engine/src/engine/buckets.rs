//! Creating, changing and deleting buckets, known on every core before the caller hears of it.

use std::rc::Rc;

use basalt_reactor::CoreId;

use super::Engine;
use crate::buckets::BUCKET_COUNT_MAX;
use crate::error::EngineError;
use crate::request::{Ask, BucketChange, Reply, Request};
use crate::value::Bucket;

impl Engine {
    /// The bucket called `name`.
    ///
    /// # Errors
    /// [`EngineError::NoSuchBucket`]; [`EngineError::Unreadable`] when nobody can say whether there is one.
    pub fn bucket(&self, name: &str) -> Result<Rc<Bucket>, EngineError> {
        match self.inner.buckets.get(name) {
            Some(bucket) => Ok(bucket),
            None => self.check_served(self.home_of(name)).and(Err(EngineError::NoSuchBucket)),
        }
    }

    /// All buckets, by name.
    ///
    /// # Errors
    /// [`EngineError::Unreadable`] when there may be others.
    pub fn all_buckets(&self) -> Result<Vec<Rc<Bucket>>, EngineError> {
        match self.unserved().into_iter().next() {
            Some((_, error)) => Err(error),
            None => Ok(self.inner.buckets.all()),
        }
    }

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
        let change = BucketChange::Create { name: name.to_owned(), settings };
        match self.ask_home(name, change).await? {
            Reply::Bucket(bucket) => bucket.map(Rc::new),
            _ => Err(EngineError::Closed),
        }
    }

    /// Replaces a bucket's settings.
    ///
    /// # Errors
    /// [`EngineError::NoSuchBucket`] when it was deleted meanwhile.
    pub async fn update_bucket(&self, bucket: Bucket) -> Result<(), EngineError> {
        let name = bucket.name.clone();
        done(self.ask_home(&name, BucketChange::Update(bucket)).await?)
    }

    /// Deletes an empty bucket. Its record says Deleting before any shard fences it, so a crash in between ends with the
    /// bucket as it was or gone, never half.
    ///
    /// # Errors
    /// [`EngineError::BucketNotEmpty`], [`EngineError::NoSuchBucket`].
    pub async fn delete_bucket(&self, name: &str) -> Result<(), EngineError> {
        done(self.ask_home(name, BucketChange::Delete { name: name.to_owned() }).await?)
    }

    async fn ask_home(&self, name: &str, change: BucketChange) -> Result<Reply, EngineError> {
        self.inner.members.take_writes()?;
        let owner = self.access(self.home_of(name)).owner;
        let change = self.inner.port.call(owner, Request::ChangeBucket(change));
        self.inner.members.unless_lost(async { change.await.map_err(|_| EngineError::Closed) }).await
    }

    /// Carries a change out, on the core of the bucket's home shard. Whoever asked may be gone: it runs to its end, and
    /// no other change of the same bucket meets it halfway.
    pub(super) async fn change_bucket(&self, change: BucketChange) -> Reply {
        match change {
            BucketChange::Create { name, settings } => {
                let _one = self.inner.bucket_locks.lock(name.as_bytes()).await;
                Reply::Bucket(self.create_here(name, settings).await)
            }
            BucketChange::Update(bucket) => {
                let _one = self.inner.bucket_locks.lock(bucket.name.as_bytes()).await;
                Reply::Done(self.update_here(bucket).await)
            }
            BucketChange::Delete { name } => {
                let _one = self.inner.bucket_locks.lock(name.as_bytes()).await;
                Reply::Done(self.delete_here(&name).await)
            }
        }
    }

    async fn create_here(
        &self,
        name: String,
        settings: Vec<(String, Vec<u8>)>,
    ) -> Result<Bucket, EngineError> {
        let home = self.home_of(&name);
        let Reply::Bucket(created) = self.ask(home, Ask::CreateBucket { name, settings }).await? else {
            return Err(EngineError::Closed);
        };
        let bucket = created?;
        self.tell_all(&bucket).await?;
        Ok(bucket)
    }

    async fn update_here(&self, bucket: Bucket) -> Result<(), EngineError> {
        let bucket = Bucket { deleting: false, ..bucket };
        done(self.ask(self.home_of(&bucket.name), Ask::StoreBucket(Box::new(bucket.clone()))).await?)?;
        self.tell_all(&bucket).await
    }

    async fn delete_here(&self, name: &str) -> Result<(), EngineError> {
        let bucket = self.inner.buckets.get(name).ok_or(EngineError::NoSuchBucket)?;
        let home = self.home_of(name);
        let deleting = Bucket { deleting: true, ..(*bucket).clone() };
        done(self.ask(home, Ask::StoreBucket(Box::new(deleting))).await?)?;
        let mut outcome = self.fence_all(bucket.id).await;
        if outcome.is_ok() {
            outcome = self.ask(home, Ask::DropBucket(Box::new((*bucket).clone()))).await.and_then(done);
            match outcome {
                Ok(()) => return self.tell_gone(bucket.id).await,
                // Whether the record is gone shows at the next start; until then nothing may enter the bucket.
                Err(EngineError::ShardFailed { .. } | EngineError::Closed) => {
                    for shard in 0..self.shard_count() {
                        done(self.ask(shard, Ask::Refuse(bucket.id)).await?)?;
                    }
                    return outcome;
                }
                Err(_) => {}
            }
        }
        for shard in 0..self.shard_count() {
            done(self.ask(shard, Ask::Unfence(bucket.id)).await?)?;
        }
        done(self.ask(home, Ask::StoreBucket(Box::new((*bucket).clone()))).await?)?;
        outcome
    }

    /// Keeps every shard from letting anything into the bucket; fails when some shard has an object of it.
    async fn fence_all(&self, bucket: u64) -> Result<(), EngineError> {
        for shard in 0..self.shard_count() {
            match self.ask(shard, Ask::Fence(bucket)).await? {
                Reply::Empty(Ok(true)) => {}
                Reply::Empty(Ok(false)) => return Err(EngineError::BucketNotEmpty),
                Reply::Empty(Err(error)) => return Err(error),
                _ => return Err(EngineError::Closed),
            }
        }
        Ok(())
    }

    async fn tell_gone(&self, bucket: u64) -> Result<(), EngineError> {
        for core in 0..self.inner.core_count {
            let gone = Request::BucketGone(bucket);
            self.inner.port.call(CoreId(core), gone).await.map_err(|_| EngineError::Closed)?;
        }
        Ok(())
    }

    /// At start: returns once every core has told all others of the buckets it is home to.
    pub(super) async fn await_buckets(&self) -> Result<(), EngineError> {
        for core in 0..self.inner.core_count {
            let ask = Request::AwaitBuckets;
            self.inner.port.call(CoreId(core), ask).await.map_err(|_| EngineError::Closed)?;
        }
        Ok(())
    }

    fn home_of(&self, name: &str) -> u16 {
        self.shard_of(0, name.as_bytes())
    }

    async fn tell_all(&self, bucket: &Bucket) -> Result<(), EngineError> {
        for core in 0..self.inner.core_count {
            let changed = Request::BucketChanged(bucket.clone());
            self.inner.port.call(CoreId(core), changed).await.map_err(|_| EngineError::Closed)?;
        }
        Ok(())
    }

    /// At start: tells every core of the buckets whose records this core's shards hold. A deletion that a crash cut
    /// off is over: the bucket is as it was.
    pub(super) async fn share_buckets(&self) -> Result<(), EngineError> {
        for bucket in self.inner.buckets.all() {
            let home = self.home_of(&bucket.name);
            if self.own_shard(home).is_none() {
                continue;
            }
            let mut bucket = (*bucket).clone();
            if std::mem::take(&mut bucket.deleting) && !self.is_read_only() {
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
