//! Lookups and mutations of objects.
//!
//! A mutation holds its key's lock from the look at the current value until the change is applied. Writes to one key
//! are therefore one after the other, and what a guard saw is still true when the record becomes durable.

use std::rc::Rc;

use super::commit::Change;
use super::leases::RECLAIM_COUNT_MAX;
use super::{Fence, Shard};
use crate::error::{EngineError, Refused};
use crate::extent::{ExtentId, Placement};
use crate::format::record::{InlineSpan, LiveDelta, Record};
use crate::index::key::{self, VersionOrder};
use crate::mutant::Mutant;
use crate::value::{self, Body, Footprint, Object};

/// The caller's condition on the current object, evaluated while its key is locked.
pub type Guard = Box<dyn FnOnce(Option<&Object>) -> Result<(), Refused> + Send>;

/// A lease that ends with a mutation: its id and how many of its blocks were written.
#[derive(Clone, Copy, Debug)]
pub struct LeaseUse {
    pub id: u64,
    pub blocks: u32,
}

/// An object to put. The shard fills in uuid and time.
pub struct PutObject {
    pub bucket: u64,
    pub name: Vec<u8>,
    pub guard: Option<Guard>,
    pub object: Object,
    /// The body, when it is inline.
    pub payload: Vec<u8>,
    pub leases: Vec<LeaseUse>,
}

/// What a put did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutDone {
    pub uuid: [u8; 16],
    pub modified: u64,
}

/// An object as a reader gets it: its extents' places, and the pin that keeps them.
#[derive(Debug)]
pub struct Found {
    pub object: Object,
    /// Where the body lies, if it is inline.
    pub inline: Option<value::InlinePlace>,
    pub placements: Vec<Placement>,
    /// To be given back; `None` when the reader asked for none.
    pub pin: Option<u64>,
}

/// Counts a mutation of a bucket as under way until dropped.
pub(super) struct UnderWay {
    shard: Rc<Shard>,
    bucket: u64,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut under_way = self.shard.under_way.borrow_mut();
        let count = under_way.get_mut(&self.bucket).expect("counted when it entered");
        *count -= 1;
        if *count == 0 {
            under_way.remove(&self.bucket);
            drop(under_way);
            self.shard.drained.notify();
        }
    }
}

/// Ends leases unused unless the mutation they belong to got its way.
pub(super) struct LeaseGuard {
    shard: Rc<Shard>,
    leases: Vec<LeaseUse>,
    used: bool,
}

impl LeaseGuard {
    pub(super) fn new(shard: &Rc<Shard>, leases: Vec<LeaseUse>) -> LeaseGuard {
        LeaseGuard { shard: Rc::clone(shard), leases, used: false }
    }

    pub(super) fn committed(mut self) {
        self.used = true;
    }
}

impl Drop for LeaseGuard {
    fn drop(&mut self) {
        // A failed shard lends nothing any more, and its last batch may be durable after all: nothing goes back.
        let blocks_stay = self.used || self.shard.failed.borrow().is_some();
        // Last lease first, so that unused tails of one extent go back one after the other.
        for lease in self.leases.iter().rev() {
            self.shard.end_lease(lease.id, if blocks_stay { lease.blocks } else { 0 });
        }
    }
}

impl Shard {
    /// Admits a mutation into `bucket`. While somebody tries to delete it, waits for how that ends: the bucket may stay.
    pub(super) async fn enter(self: &Rc<Self>, bucket: u64) -> Result<UnderWay, EngineError> {
        let fence = || self.fenced.borrow().get(&bucket).copied();
        self.drained.wait_until(|| fence() != Some(Fence::Waits)).await;
        if self.buckets.by_id(bucket).is_none() || fence().is_some() {
            return Err(EngineError::NoSuchBucket);
        }
        *self.under_way.borrow_mut().entry(bucket).or_insert(0) += 1;
        Ok(UnderWay { shard: Rc::clone(self), bucket })
    }

    /// Whether a mutation that grows the store may go on.
    pub(super) async fn admit_growth(&self) -> Result<(), EngineError> {
        let mut attempts = 0;
        while self.space.is_full() {
            if attempts == RECLAIM_COUNT_MAX || !self.reclaim(attempts == 0).await? {
                return Err(EngineError::NoSpace);
            }
            attempts += 1;
        }
        self.await_collection().await;
        self.wait_for_index().await
    }

    /// The value of `key`; with `pin`, its extents stay until the pin is given back.
    ///
    /// # Errors
    /// [`EngineError::Damaged`].
    pub(crate) async fn lookup(&self, key: &[u8], pin: bool) -> Result<Option<Found>, EngineError> {
        loop {
            let Some(value) = self.index.get(key).await? else { return Ok(None) };
            let object = value::decode::<Object>(&value)?;
            let inline = value::inline_place(&value);
            if !pin {
                return Ok(Some(Found { object, inline, placements: Vec::new(), pin: None }));
            }
            let extents = extents_of(&object, inline);
            let placements = self.placements(&extents);
            // No pin: the value was superseded while it was read, and its extents are being freed.
            if let Some(pin) = self.pin(extents) {
                // No await between the pin and the answer: a caller that goes away leaves no pin behind.
                return Ok(Some(Found { object, inline, placements, pin: Some(pin) }));
            }
            self.core.yield_now().await;
        }
    }

    /// Puts an object in the null version's place.
    ///
    /// # Errors
    /// [`EngineError`]; nothing has changed then, except after [`EngineError::ShardFailed`], which leaves it open.
    pub(crate) async fn put(self: &Rc<Self>, request: PutObject) -> Result<PutDone, EngineError> {
        let leases = LeaseGuard::new(self, request.leases);
        let _under_way = self.enter(request.bucket).await?;
        self.admit_growth().await?;
        let key = key::object(request.bucket, &request.name, VersionOrder::NULL);
        let _lock = if Mutant::KeysUnlocked.is_active() { None } else { Some(self.locks.lock(&key).await) };
        let old = self.current(&key).await?;
        if let Some(guard) = request.guard {
            guard(old.as_ref().map(|(object, _)| object)).map_err(EngineError::Refused)?;
        }
        let mut object = request.object;
        object.modified = self.tick();
        self.core.fill_random(&mut object.uuid);
        let done = PutDone { uuid: object.uuid, modified: object.modified };
        let mut deltas = value::deltas_of(&object.footprint, true).collect::<Vec<_>>();
        if let Some((object, value)) = &old {
            deltas.extend(deltas_of_death(&object.footprint, value));
        }
        let inline = matches!(object.body, Body::Inline { .. }).then(|| InlineSpan {
            offset: 0,
            len: u32::try_from(request.payload.len()).expect("an inline body is at most 64 KiB"),
        });
        let record = Record::Put { key, value: value::encode(&object), inline, deltas };
        self.commit(Change { records: vec![record], payload: request.payload }).await?;
        leases.committed();
        Ok(done)
    }

    /// Deletes the object in the null version's place; `false` when there was none.
    ///
    /// # Errors
    /// As [`Shard::put`].
    pub(crate) async fn delete(
        self: &Rc<Self>,
        bucket: u64,
        name: &[u8],
        guard: Option<Guard>,
    ) -> Result<bool, EngineError> {
        let _under_way = self.enter(bucket).await?;
        let key = key::object(bucket, name, VersionOrder::NULL);
        let _lock = self.locks.lock(&key).await;
        let old = self.current(&key).await?;
        if let Some(guard) = guard {
            guard(old.as_ref().map(|(object, _)| object)).map_err(EngineError::Refused)?;
        }
        let Some((object, value)) = old else { return Ok(false) };
        let deltas = deltas_of_death(&object.footprint, &value).collect();
        self.commit(Change { records: vec![Record::Delete { key, deltas }], payload: Vec::new() }).await?;
        if self.space.is_full() {
            self.want_checkpoint();
        }
        Ok(true)
    }

    pub(super) async fn current(&self, key: &[u8]) -> Result<Option<(Object, Vec<u8>)>, EngineError> {
        match self.index.get(key).await? {
            None => Ok(None),
            Some(value) => Ok(Some((value::decode::<Object>(&value)?, value.to_vec()))),
        }
    }
}

/// What no longer naming a value changes: its stripes and its inline body die.
pub(super) fn deltas_of_death<'a>(
    footprint: &'a [Footprint],
    value: &[u8],
) -> impl Iterator<Item = LiveDelta> + use<'a> {
    let inline = live_place(value).map(|place| LiveDelta {
        extent: place.extent,
        bytes: -i64::from(place.len),
        end_block: 0,
    });
    value::deltas_of(footprint, false).chain(inline)
}

/// Where an inline body lies, unless it is empty: nothing of an empty body is live anywhere.
fn live_place(value: &[u8]) -> Option<value::InlinePlace> {
    value::inline_place(value).filter(|place| place.len > 0)
}

/// The extents an object lies in, its inline body included.
fn extents_of(object: &Object, inline: Option<value::InlinePlace>) -> Vec<ExtentId> {
    let inline = inline.filter(|place| place.len > 0).map(|place| place.extent);
    object.footprint.iter().map(|print| ExtentId(print.extent)).chain(inline).collect()
}
