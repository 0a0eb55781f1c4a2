//! Objects by name: put, look up, read, delete, list.

use std::cmp::Ordering;
use std::rc::Rc;

use super::write::Content;
use super::{Engine, ObjectReader, WrittenBody};
use crate::error::EngineError;
use crate::index::key::{self, VersionOrder};
use crate::request::{Ask, Reply};
use crate::shard::list::{ListChunk, ListItem, ListQuery};
use crate::shard::mutate::{Found, Guard, PutDone, PutObject};
use crate::value::{Body, Checksum, Extension, Object};

/// What the caller says of an object; the rest the engine knows.
#[derive(Clone, Debug, Default)]
pub struct ObjectDraft {
    /// MD5 of the body, or of the parts' MD5s.
    pub etag: [u8; 16],
    pub attributes: Vec<(String, String)>,
    pub checksum: Option<Checksum>,
    pub extensions: Vec<Extension>,
}

/// A page of a listing.
#[derive(Clone, Debug, Default)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// More follows behind the last item.
    pub truncated: bool,
}

impl Engine {
    /// Puts an object under `name`, replacing what is there if `guard` agrees. Durable when it returns.
    ///
    /// # Errors
    /// [`EngineError::Refused`] by the guard, [`EngineError::NoSuchBucket`], [`EngineError::NoSpace`].
    pub async fn put(
        &self,
        bucket: u64,
        name: &[u8],
        draft: ObjectDraft,
        body: WrittenBody,
        guard: Option<Guard>,
    ) -> Result<PutDone, EngineError> {
        let shard = self.shard_of(bucket, name);
        // Leases count for the shard that gave them.
        assert_eq!(shard, body.shard, "a body was written for another name");
        let (len, _memory) = (body.len, body.memory);
        let (body, footprint, payload, leases) = match body.content {
            Content::Inline { bytes, crcs } => (Body::Inline { crcs }, Vec::new(), bytes, Vec::new()),
            Content::Striped { body, footprint, leases } => {
                let leases = super::uploads::lease_uses(leases);
                (body.into(), footprint, Vec::new(), leases)
            }
        };
        let object = Object {
            uuid: [0; 16],
            modified: 0,
            len,
            etag: draft.etag,
            part_count: 0,
            attributes: draft.attributes,
            checksum: draft.checksum,
            body,
            footprint,
            extensions: draft.extensions,
        };
        let put = PutObject { bucket, name: name.to_vec(), guard, object, payload, leases };
        match self.ask(shard, Ask::Put(Box::new(put))).await? {
            Reply::Put(result) => result,
            _ => Err(EngineError::Closed),
        }
    }

    /// What is known of the object under `name`.
    ///
    /// # Errors
    /// [`EngineError::Damaged`].
    pub async fn lookup(&self, bucket: u64, name: &[u8]) -> Result<Option<Object>, EngineError> {
        let shard = self.shard_of(bucket, name);
        let key = key::object(bucket, name, VersionOrder::NULL);
        Ok(self.find(shard, key, false).await?.map(|found| found.object))
    }

    /// Opens the object under `name` for reading; its bytes stay readable for as long as the reader lives, whatever
    /// happens to the name.
    ///
    /// # Errors
    /// [`EngineError::Damaged`].
    pub async fn open(&self, bucket: u64, name: &[u8]) -> Result<Option<ObjectReader>, EngineError> {
        let shard = self.shard_of(bucket, name);
        let key = key::object(bucket, name, VersionOrder::NULL);
        let open = async move |engine: &Engine| match engine.find(shard, key, true).await? {
            Some(found) => ObjectReader::new(engine, shard, found).map(Some),
            None => Ok(None),
        };
        if self.own_shard(shard).is_some() {
            return open(self).await;
        }
        // In a task of its own: if the caller goes away while the answer is on its way, the pin still goes back.
        let engine = self.clone();
        let task = self.inner.core.spawn(async move { open(&engine).await });
        task.await.unwrap_or(Err(EngineError::Closed))
    }

    /// The value of `key`, with a pin if one is asked for.
    async fn find(&self, shard: u16, key: Vec<u8>, pin: bool) -> Result<Option<Found>, EngineError> {
        if let Some(shard) = self.own_shard(shard) {
            return shard.lookup(&key, pin).await;
        }
        match self.ask(shard, Ask::Lookup { key, pin }).await? {
            Reply::Found(found) => found,
            _ => Err(EngineError::Closed),
        }
    }

    /// Deletes the object under `name`; `false` when there was none.
    ///
    /// # Errors
    /// As [`Engine::put`].
    pub async fn delete(&self, bucket: u64, name: &[u8], guard: Option<Guard>) -> Result<bool, EngineError> {
        let shard = self.shard_of(bucket, name);
        match self.ask(shard, Ask::Delete { bucket, name: name.to_vec(), guard }).await? {
            Reply::Deleted(result) => result,
            _ => Err(EngineError::Closed),
        }
    }

    /// One page of a bucket's names in bytewise order. It shows every write that was answered before this was called.
    ///
    /// # Errors
    /// [`EngineError::Damaged`].
    pub async fn list(&self, query: &ListQuery) -> Result<Page<ListItem>, EngineError> {
        let engine = self.clone();
        let fetch = move |shard, query: ListQuery| {
            let engine = engine.clone();
            async move {
                match engine.ask(shard, Ask::List(query)).await? {
                    Reply::List(chunk) => chunk.map(|ListChunk { items, exhausted }| (items, exhausted)),
                    _ => Err(EngineError::Closed),
                }
            }
        };
        let at = |last: Option<&ListItem>, limit| {
            let mut query = query.clone();
            query.limit = limit;
            if let Some(last) = last {
                query.start = last.resume();
            }
            query
        };
        let order = |a: &ListItem, b: &ListItem| a.name().cmp(b.name());
        self.merge(query.limit, fetch, at, order).await
    }

    /// Merges ordered streams of all shards into one page. Each shard sends about its share, and more when the
    /// merge runs dry of it.
    pub(super) async fn merge<T, Q, F>(
        &self,
        limit: usize,
        fetch: impl Fn(u16, Q) -> F + 'static,
        at: impl Fn(Option<&T>, usize) -> Q,
        order: impl Fn(&T, &T) -> Ordering,
    ) -> Result<Page<T>, EngineError>
    where
        T: Clone + 'static,
        Q: 'static,
        F: Future<Output = Result<(Vec<T>, bool), EngineError>> + 'static,
    {
        if limit == 0 {
            return Ok(Page { items: Vec::new(), truncated: false });
        }
        let fetch = Rc::new(fetch);
        let shards = usize::from(self.shard_count());
        // One more than asked for tells whether the page is the last.
        let wanted = limit + 1;
        let share = (wanted / shards + wanted / (4 * shards) + 16).min(wanted);
        let mut streams = Vec::with_capacity(shards);
        let mut tasks = Vec::with_capacity(shards);
        for shard in 0..self.shard_count() {
            let (fetch, query) = (Rc::clone(&fetch), at(None, share));
            tasks.push(self.inner.core.spawn(async move { fetch(shard, query).await }));
        }
        for task in tasks {
            let (items, exhausted) = task.await.unwrap_or(Err(EngineError::Closed))?;
            streams.push(Stream { items: items.into_iter().peekable(), last: None, exhausted });
        }
        let mut merged: Vec<T> = Vec::with_capacity(wanted);
        while merged.len() < wanted {
            for shard in 0..self.shard_count() {
                let stream = &mut streams[usize::from(shard)];
                if stream.items.peek().is_none() && !stream.exhausted {
                    let (items, exhausted) = fetch(shard, at(stream.last.as_ref(), share)).await?;
                    stream.items = items.into_iter().peekable();
                    stream.exhausted = exhausted;
                }
            }
            let smallest = streams
                .iter_mut()
                .enumerate()
                .filter_map(|(index, stream)| stream.items.peek().map(|item| (index, item)))
                .min_by(|(_, a), (_, b)| order(a, b))
                .map(|(index, _)| index);
            let Some(index) = smallest else { break };
            let stream = &mut streams[index];
            let item = stream.items.next().expect("it was peeked just now");
            if stream.items.peek().is_none() {
                stream.last = Some(item.clone());
            }
            // Two shards may know the same common prefix.
            if merged.last().is_none_or(|last| order(last, &item) != Ordering::Equal) {
                merged.push(item);
            }
        }
        let truncated = merged.len() > limit;
        merged.truncate(limit);
        Ok(Page { items: merged, truncated })
    }
}

/// What one shard has sent and the merge has not taken yet.
struct Stream<T> {
    items: std::iter::Peekable<std::vec::IntoIter<T>>,
    /// The last item of the last chunk, behind which the shard goes on.
    last: Option<T>,
    exhausted: bool,
}
