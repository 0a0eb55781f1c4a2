//! Merging: a multipart object whose parts are short becomes one body.
//!
//! Every part ends in a short stripe and has a directory chunk of its own, and parts that came at the same time lie among one another.
//! Where that costs much, the parts are copied behind one another and the object's value gets one body, as if it had been
//! put at once; numbers, lengths and checksums of its parts stay in the value ([`crate::format::part_list`]). It happens once per
//! object, when nothing else is to be collected and nobody waits for space (docs/decisions/0018).
//!
//! Objects are proposed when they are completed, after a start when their upload's record is still there, and by scrub when it
//! comes by a part that wastes space. A proposal that is lost costs nothing but time.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use super::Collector;
use super::large::{damaged, places_of};
use crate::blob::{FootprintSum, describe, segment_len, whole_len, write_blob};
use crate::body::directory::{Content, DirectoryEntry, Owner};
use crate::body::{Leases, Places, StripedBody};
use crate::error::EngineError;
use crate::extent::{ExtentId, Geometry};
use crate::format::part_list::{self, PartSpan};
use crate::format::record::VALUE_LEN_MAX;
use crate::index::key::{self, Key, VersionOrder};
use crate::shard::Shard;
use crate::shard::space::Claim;
use crate::value::{self, Body, Extension, Object, PARTS_EXTENSION, Part, PartBody, Striped};

/// Longest object that is merged, bytes: it is copied as a whole, or not at all. Parts so short that it is worth it make longer
/// ones in the thousands alone.
const MERGE_LEN_MAX: u64 = 1 << 30;

/// Thousandths of what the parts take that must come back: what collection asks of an extent.
const GAIN_MIN: u64 = 80;

/// Bytes of the copy of a value beside the merged body, when parts are as alike as clients make them.
const RECORD_LEN_USUAL: u64 = 1024;

/// Objects that are remembered for merging; of more, scrub reminds.
const PROPOSED_COUNT_MAX: usize = 256;

/// Objects to be merged, by their keys.
#[derive(Default)]
pub(super) struct Proposals {
    keys: RefCell<VecDeque<Vec<u8>>>,
}

impl Proposals {
    fn push(&self, key: Vec<u8>) -> bool {
        let mut keys = self.keys.borrow_mut();
        let is_new = keys.len() < PROPOSED_COUNT_MAX && !keys.contains(&key);
        if is_new {
            keys.push_back(key);
        }
        is_new
    }
}

impl Shard {
    /// Has the parts of an object merged if that is worth it.
    pub(in crate::shard) fn propose_merge(&self, key: &[u8], object: &Object) {
        if let Ok(Key::Object { name, .. }) = Key::decode(key)
            && is_worth(self.files.geometry(), name.len(), object)
            && self.collection.proposals.push(key.to_vec())
        {
            self.collection.look();
        }
    }

    /// The same for the object that a part may have become which wastes space.
    pub(in crate::shard) fn propose_merge_of(&self, entry: &DirectoryEntry) {
        let geometry = self.files.geometry();
        let (owner, k) = (&entry.owner, u64::from(geometry.k));
        let taken = segment_len(geometry, owner.name.len(), entry.len) * k;
        if entry.content == Content::Payload
            && owner.part.is_some()
            && gives_back(taken, entry.len)
            && self.collection.proposals.push(key::object(owner.bucket, &owner.name, VersionOrder::NULL))
        {
            self.collection.look();
        }
    }
}

impl Collector {
    /// Merges the parts of the next object that was proposed; `false` when there is none, or space is short.
    pub(super) async fn merge_next(&self) -> bool {
        if self.needs_space() {
            return false;
        }
        let Some(key) = self.shard.collection.proposals.keys.borrow_mut().pop_front() else { return false };
        self.claim.set(Claim::Repacking);
        if let Err(error) = self.merge(&key).await {
            tracing::debug!(shard = self.shard.id, %error, "the parts of an object are left apart");
        }
        true
    }

    fn needs_space(&self) -> bool {
        let (space, collection) = (&self.shard.space, &self.shard.collection);
        collection.wanted.get() || space.is_full() || space.is_data_low()
    }

    async fn merge(&self, key: &[u8]) -> Result<(), EngineError> {
        let Some(value) = self.shard.index.get(key).await? else { return Ok(()) };
        let Ok(Key::Object { bucket, name, .. }) = Key::decode(key) else {
            return Err(damaged("an index key does not decode"));
        };
        let object = value::decode::<Object>(&value)?;
        let geometry = self.bodies.geometry();
        if !is_worth(geometry, name.len(), &object) {
            return Ok(());
        }
        let extents: Vec<_> = object.footprint.iter().map(|print| ExtentId(print.extent)).collect();
        let places = places_of(self.shard.placements(&extents));
        // Where one is going, the value was superseded.
        let Some(_pin) = self.shard.pin_extents(extents) else { return Ok(()) };
        let parts = match &object.body {
            Body::Parts(parts) => parts.clone(),
            Body::SpilledParts { map } => self.read_blob(map, &places).await?,
            _ => return Ok(()),
        };
        let spans: Vec<PartSpan> = parts.iter().cloned().map(PartSpan::from).collect();
        let Some(list) = part_list::encode(&spans) else { return Ok(()) };
        let source = Rc::new(StripedBody::from(&self.joined(parts, &places).await?));
        source.check(geometry)?;
        let owner = self.owner_of_merged(&object, (bucket, &name), &source, &places).await;
        let goes_on = || if self.needs_space() { Err(EngineError::NoSpace) } else { Ok(()) };
        let written = self.copy(&source, 0..source.len, places, (owner.clone(), 0), &goes_on).await?;
        let mut footprint = FootprintSum::default();
        footprint.add(&written);
        let striped = Striped::from(&written.body);
        let mut leases = Leases::new(self.bodies.lessor());
        leases.append(written.leases);
        let memory = self.writer_memory(name.len()).await?;
        let beside = Owner { body: value::record_uuid(owner.body), ..owner.clone() };
        let (described, memory) =
            describe(&self.bodies, owner, Some(memory), &mut footprint, &mut leases, striped).await?;
        let mut merged = Object { body: described.into(), ..object };
        let mut old = FootprintSum::default();
        old.merge(&merged.footprint);
        merged.extensions.push(Extension { id: PARTS_EXTENSION, bytes: list });
        // Directories know of one body: what it was made of lies beside it.
        let record = write_blob(&self.bodies, beside, memory, &mut footprint, &merged.record()).await?;
        leases.append(record.leases);
        merged.set_record_place(Some(&record.map));
        let deltas = footprint.changes_since(&old);
        let gained: i64 = deltas.iter().map(|delta| -delta.bytes).sum();
        merged.footprint = footprint.finish()?;
        let moved = value::encode(&merged);
        // Where extents end, a body may be cut into more than was thought.
        if gained <= 0 || moved.len() > VALUE_LEN_MAX {
            return Ok(());
        }
        self.commit_body(key, key, &value, moved, deltas, leases, merged.len).await
    }

    /// One description of all parts, as they lie.
    async fn joined(&self, parts: Vec<Part>, places: &Places) -> Result<Striped, EngineError> {
        let mut joined = Striped { len: 0, segments: Vec::new(), crcs: Vec::new() };
        for part in parts {
            let striped: Striped = match &part.body {
                PartBody::Striped(striped) => striped.clone(),
                PartBody::Spilled { map } => self.read_blob(map, places).await?,
            };
            joined.len = joined.len.saturating_add(striped.len);
            joined.segments.extend(striped.segments);
            joined.crcs.extend(striped.crcs);
        }
        Ok(joined)
    }

    /// For whom the merged body is written. It has the object's uuid, so that a record of the object leads to it, and the time of
    /// its last part: for an extent's directory it is as old as that.
    async fn owner_of_merged(
        &self,
        object: &Object,
        (bucket, name): (u64, &[u8]),
        source: &StripedBody,
        places: &Places,
    ) -> Owner {
        let last = source.segments.last();
        let placed = last.and_then(|last| Some((places(last.extent)?, last)));
        let described = match placed {
            Some((place, last)) => self.bodies.owner_of(&place, (last.block, last.len), name.len()).await,
            None => None,
        };
        let begun = described.map_or(object.modified, |owner| owner.begun);
        Owner { body: object.uuid, begun, bucket, name: name.to_vec(), part: None }
    }
}

/// Whether the parts of an object take so much more than one body that merging them is worth the writing.
fn is_worth(geometry: &Geometry, name_len: usize, object: &Object) -> bool {
    let is_apart = matches!(object.body, Body::Parts(_) | Body::SpilledParts { .. });
    let taken = object.footprint.iter().map(|print| print.bytes).sum();
    let needed =
        whole_len(geometry, name_len, object.len) + segment_len(geometry, name_len, RECORD_LEN_USUAL);
    is_apart && object.len <= MERGE_LEN_MAX && object.len > 0 && gives_back(taken, needed)
}

/// Whether enough of `taken` bytes comes back where `needed` would do.
fn gives_back(taken: u64, needed: u64) -> bool {
    taken.saturating_sub(needed) * 1000 >= taken * GAIN_MIN
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::Footprint;

    fn geometry(k: u8, m: u8) -> Geometry {
        let (log_slot_len, data_slot_len, table_slot_len) = (64 << 20, 1 << 30, 64 << 20);
        Geometry { k, m, strip_len: 65_536, log_slot_len, data_slot_len, table_slot_len }
    }

    /// An object of `count` parts of `len` bytes.
    fn object(geometry: &Geometry, count: u64, len: u64) -> Object {
        let bytes = count * segment_len(geometry, 10, len);
        Object {
            uuid: [1; 16],
            modified: 1,
            len: count * len,
            etag: [2; 16],
            part_count: u32::try_from(count).expect("few"),
            attributes: Vec::new(),
            checksum: None,
            body: Body::Parts(Vec::new()),
            footprint: vec![Footprint { extent: 7, bytes, end_block: 1 }],
            extensions: Vec::new(),
        }
    }

    #[test]
    fn parts_as_short_as_s3_allows_them_are_left_apart() {
        for (k, m) in [(1, 0), (2, 1), (4, 2), (10, 4), (14, 6)] {
            let geometry = geometry(k, m);
            for len in [5 << 20, (5 << 20) + 1, 8 << 20, 100 << 20] {
                assert!(!is_worth(&geometry, 10, &object(&geometry, 10, len)), "{k}+{m}: {len}");
            }
            assert!(!is_worth(&geometry, 10, &object(&geometry, 1, 1000)), "nothing to merge");
            assert!(!is_worth(&geometry, 10, &object(&geometry, 3, 0)), "nothing at all");
        }
    }

    #[test]
    fn short_parts_are_merged_once_and_not_beyond_what_is_copied_at_once() {
        let geometry = geometry(4, 2);
        assert!(!is_worth(&geometry, 10, &object(&geometry, 2, 10)), "the copy of its value takes as much");
        for (count, len) in [(3, 10), (50, 4096), (1000, 100_000)] {
            let mut object = object(&geometry, count, len);
            assert!(is_worth(&geometry, 10, &object), "{count} parts of {len}");
            object.body = Body::Striped(Striped { len: object.len, segments: Vec::new(), crcs: Vec::new() });
            assert!(!is_worth(&geometry, 10, &object), "it is one body");
        }
        assert!(!is_worth(&geometry, 10, &object(&geometry, 10_000, 110_000)), "longer than 1 GiB");
    }
}
