//! The shard's one entry: every request, from whichever core, is answered here.

use std::rc::Rc;

use super::commit::Change;
use super::{Fence, Shard};
use crate::error::EngineError;
use crate::format::record::Record;
use crate::index::key;
use crate::request::{Ask, Reply};
use crate::value::{self, Bucket};

impl Shard {
    pub(crate) async fn serve(self: &Rc<Self>, ask: Ask) -> Reply {
        match ask {
            Ask::Lookup { key, pin } => Reply::Found(self.lookup(&key, pin).await),
            Ask::Place { extents } => Reply::Places(self.placements(&extents)),
            Ask::Unpin(pin) => {
                self.unpin(pin);
                Reply::Done(Ok(()))
            }
            Ask::Lease { blocks_min, blocks_max } => Reply::Lease(self.lease(blocks_min, blocks_max).await),
            Ask::EndLease(id) => {
                self.end_lease(id, 0);
                Reply::Done(Ok(()))
            }
            Ask::Put(put) => Reply::Put(self.put(*put).await),
            Ask::Delete { bucket, name, guard } => Reply::Deleted(self.delete(bucket, &name, guard).await),
            Ask::List(query) => Reply::List(self.list(&query).await),
            Ask::CreateUpload { bucket, name, upload } => {
                Reply::Upload(self.create_upload(bucket, &name, *upload).await)
            }
            Ask::PutPart(part) => Reply::Put(self.put_part(*part).await),
            Ask::ListParts { bucket, name, id, after, limit } => {
                Reply::Parts(self.list_parts(bucket, &name, id, after, limit).await)
            }
            Ask::CompleteUpload(complete) => Reply::Completed(self.complete_upload(*complete).await),
            Ask::AbortUpload { bucket, name, id } => Reply::Done(self.abort_upload(bucket, &name, id).await),
            Ask::ListUploads(query) => Reply::Uploads(self.list_uploads(&query).await),
            Ask::CreateBucket { name, settings } => Reply::Bucket(self.create_bucket(name, settings).await),
            Ask::StoreBucket(bucket) => Reply::Done(self.store_bucket(&bucket).await),
            Ask::DropBucket(bucket) => Reply::Done(self.drop_bucket(&bucket).await),
            Ask::Fence(bucket) => Reply::Empty(self.fence(bucket).await),
            Ask::Refuse(bucket) => {
                self.fenced.borrow_mut().insert(bucket, Fence::Refused);
                self.drained.notify();
                Reply::Done(Ok(()))
            }
            Ask::Unfence(bucket) => {
                self.unfence(bucket);
                Reply::Done(Ok(()))
            }
            Ask::Stats => Reply::Stats(self.stats()),
            Ask::Checkpoint => Reply::Done(self.checkpoint_now().await),
            Ask::Collect => Reply::Collected(self.reclaim(false).await),
            Ask::Repair(suspect) => {
                self.suspect(suspect);
                Reply::Done(Ok(()))
            }
        }
    }

    /// Waits for a checkpoint that begins from here on.
    pub(super) async fn checkpoint_now(&self) -> Result<(), EngineError> {
        // One that is under way already began before this was asked for.
        let target = self.commits.checkpoints_ended() + if self.checkpoint_running.get() { 2 } else { 1 };
        self.want_checkpoint();
        self.checkpoint_done
            .wait_until(|| self.commits.checkpoints_ended() >= target || self.failed.borrow().is_some())
            .await;
        self.check_healthy()?;
        self.checkpoint_result.borrow().clone()
    }

    /// Records a new bucket; this shard is its home.
    async fn create_bucket(
        self: &Rc<Self>,
        name: String,
        settings: Vec<(String, Vec<u8>)>,
    ) -> Result<Bucket, EngineError> {
        let key = key::bucket(name.as_bytes());
        let _lock = self.locks.lock(&key).await;
        if self.index.get(&key).await?.is_some() {
            return Err(EngineError::BucketExists);
        }
        let created = self.tick();
        let mut id = 0;
        // Drawn, not counted, so that no two shards can ever hand out the same; 0 names the buckets themselves.
        while id == 0 || self.buckets.by_id(id).is_some() {
            id = self.core.random_u64();
        }
        let bucket = Bucket { id, name, created, deleting: false, settings, extensions: Vec::new() };
        self.write_bucket(key, &bucket).await?;
        Ok(bucket)
    }

    async fn write_bucket(&self, key: Vec<u8>, bucket: &Bucket) -> Result<(), EngineError> {
        let record = Record::Put { key, value: value::encode(bucket), inline: None, deltas: Vec::new() };
        self.commit(Change { records: vec![record], payload: Vec::new() }).await
    }

    async fn stored(&self, key: &[u8], id: u64) -> Result<(), EngineError> {
        let value = self.index.get(key).await?.ok_or(EngineError::NoSuchBucket)?;
        if value::decode::<Bucket>(&value)?.id == id { Ok(()) } else { Err(EngineError::NoSuchBucket) }
    }

    async fn store_bucket(self: &Rc<Self>, bucket: &Bucket) -> Result<(), EngineError> {
        let key = key::bucket(bucket.name.as_bytes());
        let _lock = self.locks.lock(&key).await;
        self.stored(&key, bucket.id).await?;
        self.write_bucket(key, bucket).await
    }

    async fn drop_bucket(self: &Rc<Self>, bucket: &Bucket) -> Result<(), EngineError> {
        let key = key::bucket(bucket.name.as_bytes());
        let _lock = self.locks.lock(&key).await;
        self.stored(&key, bucket.id).await?;
        let records = vec![Record::Delete { key, deltas: Vec::new() }];
        self.commit(Change { records, payload: Vec::new() }).await
    }

    /// Lets mutations into `bucket` again, or forgets a bucket that is gone.
    pub(crate) fn unfence(&self, bucket: u64) {
        self.fenced.borrow_mut().remove(&bucket);
        self.drained.notify();
    }

    async fn fence(self: &Rc<Self>, bucket: u64) -> Result<bool, EngineError> {
        self.fenced.borrow_mut().insert(bucket, Fence::Waits);
        self.drained.wait_until(|| !self.under_way.borrow().contains_key(&bucket)).await;
        Ok(!self.has_objects(bucket).await?)
    }
}
