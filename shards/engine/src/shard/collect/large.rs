//! Moving large bodies: the segments that lie in a victim are copied elsewhere, whatever else the body consists of stays.
//!
//! Objects and the parts of open uploads go the same way. A copy says of itself what the original said, body id and offset
//! included, so for an extent's directory it is the same body in another place. Where the description lies in a blob, the blob is
//! written anew. A part's record may move between the listing of an upload and its completion; the completion notices
//! that by the part's footprint ([`crate::shard::uploads`]).

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use super::Collector;
use super::victim::{Described, Victim};
use crate::blob::{Blob, FootprintSum, are_spilled, describe, write_blob};
use crate::body::budget::Permit;
use crate::body::directory::{Content, Owner};
use crate::body::layout::StripeShape;
use crate::body::{Leases, Places, StripedBody, Written};
use crate::error::EngineError;
use crate::extent::{ExtentId, Placement};
use crate::format::record::{LiveDelta, Record};
use crate::index::key::{self, Key};
use crate::mutant::Mutant;
use crate::shard::commit::Change;
use crate::shard::mutate::{LeaseGuard, LeaseUse};
use crate::value::{
    self, Body, Footprint, Object, Part, PartBody, Striped, Upload, UploadState, UploadedPart, Value,
};

/// Longest blob that is read into memory, bytes: the parts of an object of 5 TiB.
const BLOB_LEN_MAX: u64 = 64 << 20;

/// Bytes copied before others get their turn.
const UNIT_LEN: usize = 4 << 20;

/// What has a large body.
enum Holder {
    Object(Object),
    Part(UploadedPart),
}

impl Holder {
    fn footprint(&self) -> &[Footprint] {
        match self {
            Holder::Object(object) => &object.footprint,
            Holder::Part(part) => &part.footprint,
        }
    }
}

/// A body on its way out of a victim.
struct Relocation<'a> {
    collector: &'a Collector,
    victim: &'a Victim,
    /// For segments that the victim's directory does not describe.
    owner: Owner,
    places: Places,
    footprint: FootprintSum,
    leases: Leases,
    moved_len: u64,
}

impl Collector {
    /// Moves what `key` has in `victim`, if it is a large body.
    pub(super) async fn move_body(&self, victim: &Victim, key: &[u8]) -> Result<(), EngineError> {
        let Some(value) = self.shard.index.get(key).await? else { return Ok(()) };
        let parsed = Key::decode(key).map_err(|_| damaged("an index key does not decode"))?;
        let (holder, owner, lock) = match &parsed {
            Key::Object { bucket, name, .. } => {
                (Holder::Object(value::decode(&value)?), self.bodies.owner(*bucket, name), key.to_vec())
            }
            Key::Part { bucket, name, upload, part } => {
                let mut owner = self.bodies.owner(*bucket, name);
                owner.part = Some((*upload, *part));
                let lock = key::upload(*bucket, name, *upload);
                (Holder::Part(value::decode(&value)?), owner, lock)
            }
            _ => return Ok(()),
        };
        let footprint = holder.footprint();
        let is_small =
            matches!(&holder, Holder::Object(Object { body: Body::Inline { .. } | Body::Packed(_), .. }));
        if is_small || footprint.iter().all(|print| print.extent != victim.id.0) {
            return Ok(());
        }
        let extents: Vec<_> = footprint.iter().map(|print| ExtentId(print.extent)).collect();
        let placements = self.shard.placements(&extents);
        // Where one is going, the value was superseded.
        let Some(_pin) = self.shard.pin_extents(extents) else { return Ok(()) };
        let mut old = FootprintSum::default();
        old.merge(footprint);
        let mut footprint = old.clone();
        footprint.remove(victim.id.0);
        let mut relocation = Relocation {
            collector: self,
            victim,
            owner,
            places: places_of(placements),
            footprint,
            leases: Leases::new(self.bodies.lessor()),
            moved_len: 0,
        };
        let moved = match holder {
            Holder::Object(mut object) => {
                let body = relocation.object_body(&object.body).await?;
                let record = relocation.record(&object).await?;
                if body.is_none() && record.is_none() {
                    return Ok(());
                }
                if let Some(body) = body {
                    object.body = body;
                }
                if let Some(place) = record {
                    object.set_record_place(Some(&place));
                }
                object.footprint = relocation.footprint.clone().finish()?;
                value::encode(&object)
            }
            Holder::Part(mut part) => {
                let Some(body) = relocation.part_body(&part.body).await? else { return Ok(()) };
                part.body = body;
                part.footprint = relocation.footprint.clone().finish()?;
                value::encode(&part)
            }
        };
        let Relocation { leases, footprint, moved_len, .. } = relocation;
        let deltas = footprint.changes_since(&old);
        self.commit_body(key, &lock, &value, moved, deltas, leases, moved_len).await
    }

    /// Copies bytes `range` of a body to one of `owner`, from the given offset of it on. Whether to go on is asked between units.
    pub(super) async fn copy(
        &self,
        source: &Rc<StripedBody>,
        range: Range<u64>,
        places: Places,
        (owner, body_offset): (Owner, u64),
        goes_on: &dyn Fn() -> Result<(), EngineError>,
    ) -> Result<Written, EngineError> {
        let bodies = &self.bodies;
        let (len, reaches_end) = (range.end - range.start, range.end == source.len);
        let writer_len = bodies.writer_len(Some(len), owner.name.len());
        let admitted = bodies.admit_copy(len, source.len, 0, writer_len).await;
        let (read_memory, write_memory) = admitted.ok_or(EngineError::Busy)?;
        let on_damage = Rc::clone(&self.on_damage);
        let mut reader = bodies.reader(Rc::clone(source), range, places, on_damage, Some(read_memory))?;
        let writer = bodies.writer(Content::Payload, owner).in_memory(Some(write_memory));
        let mut writer = writer.at(body_offset, reaches_end);
        writer.expect(len);
        let mut unit_len = 0;
        while let Some(bytes) = reader.next().await {
            let bytes = bytes?;
            writer.write(&bytes).await?;
            unit_len += bytes.len();
            if unit_len >= UNIT_LEN {
                unit_len = 0;
                self.rest().await;
                goes_on()?;
            }
        }
        let written = writer.finish().await?;
        self.rest().await;
        Ok(written)
    }

    pub(super) async fn read_blob<T: Value>(&self, map: &Striped, places: &Places) -> Result<T, EngineError> {
        if map.len > BLOB_LEN_MAX {
            return Err(damaged("a blob is too long"));
        }
        let body = Rc::new(StripedBody::from(map));
        let on_damage = Rc::clone(&self.on_damage);
        let bytes = self.read_all(body, 0..map.len, Rc::clone(places), on_damage).await?;
        Ok(value::decode(&bytes)?)
    }

    /// Memory for a blob that follows a body.
    pub(super) async fn writer_memory(&self, name_len: usize) -> Result<Permit, EngineError> {
        let len = self.bodies.writer_len(None, name_len);
        self.bodies.admit(len).await.ok_or(EngineError::Busy)
    }

    /// Puts `moved` in the place of `value`, if that is still what `key` has.
    #[expect(clippy::too_many_arguments, reason = "each is a fact of one move; a struct would be named once")]
    pub(super) async fn commit_body(
        &self,
        key: &[u8],
        lock: &[u8],
        value: &[u8],
        moved: Vec<u8>,
        deltas: Vec<LiveDelta>,
        leases: Leases,
        moved_len: u64,
    ) -> Result<(), EngineError> {
        self.await_index().await;
        self.await_log().await?;
        let uses = leases.keep().into_iter();
        let uses = uses.map(|lease| LeaseUse { id: lease.id, blocks: lease.used_blocks }).collect();
        let leases = LeaseGuard::new(&self.shard, uses);
        let _lock = self.shard.locks.lock(lock).await;
        let is_current = self.shard.index.get(key).await?.as_deref() == Some(value);
        let is_owner = lock == key || self.is_open(lock).await?;
        let is_outrun = !is_current || !is_owner;
        if is_outrun && !Mutant::MovesUnchecked.is_active() {
            self.shard.collection.count(|counters| counters.outrun_count += 1);
            return Ok(());
        }
        let record = Record::Put { key: key.to_vec(), value: moved, inline: None, deltas };
        self.shard.commit(Change { records: vec![record], payload: Vec::new() }).await?;
        leases.committed();
        self.shard.collection.count(|counters| {
            counters.moved_len += moved_len;
            counters.moved_count += 1;
        });
        Ok(())
    }

    /// Whether an upload's parts are its own still.
    async fn is_open(&self, upload: &[u8]) -> Result<bool, EngineError> {
        let Some(value) = self.shard.index.get(upload).await? else { return Ok(false) };
        Ok(value::decode::<Upload>(&value)?.state == UploadState::Open)
    }
}

impl Relocation<'_> {
    /// The body without anything in the victim; `None` if it had nothing there.
    async fn object_body(&mut self, body: &Body) -> Result<Option<Body>, EngineError> {
        Ok(match body {
            Body::Inline { .. } | Body::Packed(_) => None,
            Body::Striped(striped) => {
                self.part_body(&PartBody::Striped(striped.clone())).await?.map(Body::from)
            }
            Body::Spilled { map } => {
                self.part_body(&PartBody::Spilled { map: map.clone() }).await?.map(Body::from)
            }
            Body::Parts(parts) => match self.parts(parts.clone()).await? {
                None => None,
                Some(parts) => Some(self.describe_parts(self.owner.clone(), parts).await?),
            },
            Body::SpilledParts { map } => {
                let parts: Vec<Part> = self.read_blob(map).await?;
                let moved = self.parts(parts.clone()).await?;
                if moved.is_none() && !self.is_here(map) {
                    return Ok(None);
                }
                let owner = self.owner_of(map).unwrap_or(&self.owner).clone();
                self.forget(map)?;
                Some(self.describe_parts(owner, moved.unwrap_or(parts)).await?)
            }
        })
    }

    /// The new place of the copy of the value of `object`, if it had one in the victim.
    async fn record(&mut self, object: &Object) -> Result<Option<Striped>, EngineError> {
        let Some(map) = object.record_place()?.filter(|map| self.is_here(map)) else { return Ok(None) };
        let told = self.owner_of(&map).unwrap_or(&self.owner).clone();
        let owner = Owner { body: value::record_uuid(object.uuid), ..told };
        self.forget(&map)?;
        let memory = self.writer_memory().await?;
        let bodies = &self.collector.bodies;
        let blob = write_blob(bodies, owner, Some(memory), &mut self.footprint, &object.record()).await?;
        self.leases.append(blob.leases);
        Ok(Some(blob.map))
    }

    /// A body of `parts`, whose list goes to a blob of `owner` if it is too long for a value.
    async fn describe_parts(&mut self, owner: Owner, parts: Vec<Part>) -> Result<Body, EngineError> {
        if !are_spilled(&parts) {
            return Ok(Body::Parts(parts));
        }
        let memory = self.writer_memory().await?;
        let bodies = &self.collector.bodies;
        let blob = write_blob(bodies, owner, Some(memory), &mut self.footprint, &parts);
        let Blob { map, leases, .. } = blob.await?;
        self.leases.append(leases);
        Ok(Body::SpilledParts { map })
    }

    async fn parts(&mut self, mut parts: Vec<Part>) -> Result<Option<Vec<Part>>, EngineError> {
        let mut is_changed = false;
        for part in &mut parts {
            if let Some(moved) = self.part_body(&part.body).await? {
                part.body = moved;
                is_changed = true;
            }
        }
        Ok(is_changed.then_some(parts))
    }

    async fn part_body(&mut self, body: &PartBody) -> Result<Option<PartBody>, EngineError> {
        let (striped, map) = match body {
            PartBody::Striped(striped) => (striped.clone(), None),
            PartBody::Spilled { map } => (self.read_blob(map).await?, Some(map)),
        };
        let moved = self.striped(&striped).await?;
        if moved.is_none() && !map.is_some_and(|map| self.is_here(map)) {
            return Ok(None);
        }
        // Map and body stay told as one.
        let owner = self.owner_of(&striped).or_else(|| self.owner_of(map?)).unwrap_or(&self.owner).clone();
        if let Some(map) = map {
            self.forget(map)?;
        }
        let striped = moved.unwrap_or(striped);
        let memory = self.writer_memory().await?;
        let bodies = &self.collector.bodies;
        let (footprint, leases) = (&mut self.footprint, &mut self.leases);
        let (body, _) = describe(bodies, owner, Some(memory), footprint, leases, striped).await?;
        Ok(Some(body))
    }

    /// The same body with copies in the place of its segments in the victim.
    async fn striped(&mut self, striped: &Striped) -> Result<Option<Striped>, EngineError> {
        if !self.is_here(striped) {
            return Ok(None);
        }
        let shape = StripeShape::new(self.collector.bodies.geometry());
        let source = Rc::new(StripedBody::from(striped));
        source.check(self.collector.bodies.geometry())?;
        let mut moved = Striped { len: striped.len, segments: Vec::new(), crcs: Vec::new() };
        let (mut at, mut crc, mut index) = (0, 0, 0);
        while let Some(first) = striped.segments.get(index) {
            let is_here = first.extent == self.victim.id.0;
            let run = striped.segments[index..]
                .iter()
                .take_while(|segment| (segment.extent == self.victim.id.0) == is_here)
                .collect::<Vec<_>>();
            let len: u64 = run.iter().map(|segment| segment.len).sum();
            let crc_count: u64 = run.iter().map(|segment| shape.crc_count(segment.len)).sum();
            let crc_end = crc + usize::try_from(crc_count).expect("no more than the body has");
            if is_here {
                let copy = self.copy(&source, at..at + len, first.block).await?;
                moved.segments.extend(copy.segments);
                moved.crcs.extend(copy.crcs);
            } else {
                moved.segments.extend(run.iter().copied().copied());
                moved.crcs.extend_from_slice(&striped.crcs[crc..crc_end]);
            }
            (at, crc, index) = (at + len, crc_end, index + run.len());
        }
        Ok(Some(moved))
    }

    /// Copies bytes `range`, whose first segment begins at `block` of the victim.
    async fn copy(
        &mut self,
        source: &Rc<StripedBody>,
        range: Range<u64>,
        block: u32,
    ) -> Result<Striped, EngineError> {
        let collector = self.collector;
        let described = self.victim.described.get(&block);
        let (owner, body_offset) = match described {
            Some(Described { owner, body_offset }) => (owner.clone(), *body_offset),
            None => (self.owner.clone(), range.start),
        };
        let len = range.end - range.start;
        let places = Rc::clone(&self.places);
        let written = collector.copy(source, range, places, (owner, body_offset), &|| Ok(())).await?;
        self.footprint.add(&written);
        self.leases.append(written.leases);
        self.moved_len += len;
        Ok(Striped::from(&written.body))
    }

    /// Whose the body is by what the victim says of its segments.
    fn owner_of(&self, striped: &Striped) -> Option<&Owner> {
        let here = striped.segments.iter().filter(|segment| segment.extent == self.victim.id.0);
        let mut described = here.filter_map(|segment| self.victim.described.get(&segment.block));
        described.next().map(|described| &described.owner)
    }

    fn is_here(&self, striped: &Striped) -> bool {
        striped.segments.iter().any(|segment| segment.extent == self.victim.id.0)
    }

    /// Takes a blob that is not needed any more out of the footprint.
    fn forget(&mut self, map: &Striped) -> Result<(), EngineError> {
        let geometry = self.collector.bodies.geometry();
        if self.footprint.subtract(geometry, self.owner.name.len(), map, self.victim.id.0) {
            Ok(())
        } else {
            Err(damaged("a blob is not in its value's footprint"))
        }
    }

    async fn read_blob<T: Value>(&self, map: &Striped) -> Result<T, EngineError> {
        self.collector.read_blob(map, &self.places).await
    }

    async fn writer_memory(&self) -> Result<Permit, EngineError> {
        self.collector.writer_memory(self.owner.name.len()).await
    }
}

pub(super) fn places_of(placements: Vec<Placement>) -> Places {
    let known: BTreeMap<_, _> =
        placements.into_iter().map(|placement| (placement.id, Rc::new(placement))).collect();
    Rc::new(move |extent| known.get(&extent).cloned())
}

pub(super) fn damaged(what: &str) -> EngineError {
    EngineError::Damaged(what.to_owned())
}
