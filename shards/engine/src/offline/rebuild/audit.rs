//! Going through the new index once it is complete: what it names must be there, and what lives in each extent is counted.
//!
//! Live bytes are counted from the values themselves, not from records: of those some are missing.

use std::collections::{BTreeMap, BTreeSet};

use super::bodies::{FoundBody, place_of, places_of};
use super::report::{Entry, Fate, How, Line, NameSource, Why};
use super::{RebuildError, Work};
use crate::body::directory::Content;
use crate::extent::ExtentId;
use crate::index::key::Key;
use crate::value::{self, Body, Footprint, Object, Part, PartBody, Striped, UploadedPart};

/// What the index names.
#[derive(Default)]
pub(super) struct Named {
    /// Bytes that live in each extent, and the first block behind them.
    pub(super) live: BTreeMap<ExtentId, (u64, u32)>,
    /// Buckets that something is in.
    pub(super) used: BTreeSet<u64>,
    /// Names of buckets by id.
    pub(super) buckets: BTreeMap<u64, (String, NameSource)>,
    /// The latest time in any value.
    pub(super) clock: u64,
    /// Where the bodies' segments are.
    places: BTreeSet<(u64, u32)>,
}

impl Named {
    fn count(&mut self, footprint: &[Footprint]) {
        for print in footprint {
            let live = self.live.entry(ExtentId(print.extent)).or_insert((0, 0));
            live.0 += print.bytes;
            live.1 = live.1.max(print.end_block);
        }
    }

    fn note(&mut self, striped: &Striped) {
        self.places.extend(places_of(striped));
    }

    fn note_part(&mut self, body: &PartBody) {
        match body {
            PartBody::Striped(striped) | PartBody::Spilled { map: striped } => self.note(striped),
        }
    }
}

impl Work<'_> {
    /// Goes through the index; `gone` are buckets that were deleted. What cannot be kept is taken out.
    pub(super) async fn audit(
        &mut self,
        gone: &BTreeSet<u64>,
        report: &mut dyn FnMut(&Line),
    ) -> Result<(), RebuildError> {
        let mut named = Named::default();
        let mut cursor = self.index.cursor(&[], None);
        while let Some((key, value)) = cursor.next().await? {
            let kept = match Key::decode(key) {
                Ok(Key::Object { bucket, name, .. }) => {
                    self.audit_object(gone, &mut named, key, value, (bucket, &name), report).await
                }
                Ok(Key::Upload { bucket, .. }) => {
                    named.used.insert(bucket);
                    true
                }
                Ok(Key::Part { .. }) => self.audit_part(&mut named, value),
                Ok(Key::Bucket { .. }) => {
                    if let Ok(bucket) = value::decode::<value::Bucket>(value) {
                        named.clock = named.clock.max(bucket.created);
                        let source = match self.replayed.is_certain(key) {
                            true => NameSource::Current,
                            false => NameSource::LastKnown,
                        };
                        named.buckets.insert(bucket.id, (bucket.name, source));
                    }
                    true
                }
                Ok(Key::Blob { .. } | Key::Background { .. }) | Err(_) => false,
            };
            if !kept {
                self.index.delete(key);
            }
        }
        drop(cursor);
        for (bucket, name, len, how) in std::mem::take(&mut self.uploads) {
            report(&self.line(bucket, &name, len, Fate::Recovered(how)));
        }
        self.report_rest(gone, &named, report);
        self.named = named;
        Ok(())
    }

    async fn audit_object(
        &self,
        gone: &BTreeSet<u64>,
        named: &mut Named,
        key: &[u8],
        bytes: &[u8],
        (bucket, name): (u64, &[u8]),
        report: &mut dyn FnMut(&Line),
    ) -> bool {
        let object = match value::decode::<Object>(bytes) {
            Ok(object) => object,
            Err(error) => {
                let lost = Fate::NotRecovered(Why::Lost(error.to_string()));
                report(&self.line(bucket, name, 0, lost));
                return false;
            }
        };
        if gone.contains(&bucket) {
            report(&self.line(bucket, name, object.len, Fate::NotRecovered(Why::BucketDeleted)));
            return false;
        }
        let inline = value::inline_place(bytes).filter(|place| place.len > 0);
        let absent = self.absent(&object.footprint).or_else(|| {
            let place = inline?;
            (!self.replayed.logs.contains_key(&place.extent)).then_some(place.extent.0)
        });
        if let Some(extent) = absent {
            // Slots are given back only when nothing in them is live.
            let why = if self.survey.dead.contains(&ExtentId(extent)) && !self.replayed.is_certain(key) {
                Why::Superseded
            } else {
                Why::Lost(format!("extent {extent} is not there"))
            };
            report(&self.line(bucket, name, object.len, Fate::NotRecovered(why)));
            return false;
        }
        named.used.insert(bucket);
        named.clock = named.clock.max(object.modified);
        named.count(&object.footprint);
        if let Some(place) = inline {
            named.live.entry(place.extent).or_insert((0, 0)).0 += u64::from(place.len);
        }
        match &object.body {
            Body::Inline { .. } => {}
            Body::Striped(striped) | Body::Spilled { map: striped } => named.note(striped),
            Body::Packed(packed) => named.note(&packed.pack),
            Body::Parts(parts) => parts.iter().for_each(|part| named.note_part(&part.body)),
            Body::SpilledParts { map } => {
                named.note(map);
                if let Ok(parts) = self.read_blob::<Vec<Part>>(map).await {
                    parts.iter().for_each(|part| named.note_part(&part.body));
                }
            }
        }
        let how = self
            .how
            .get(key)
            .cloned()
            .unwrap_or_else(|| if self.replayed.is_certain(key) { How::Current } else { How::LastKnown });
        report(&self.line(bucket, name, object.len, Fate::Recovered(how)));
        true
    }

    /// Parts are listed with their uploads.
    fn audit_part(&self, named: &mut Named, value: &[u8]) -> bool {
        let Ok(part) = value::decode::<UploadedPart>(value) else { return false };
        if self.absent(&part.footprint).is_some() {
            return false;
        }
        named.count(&part.footprint);
        named.clock = named.clock.max(part.modified);
        named.note_part(&part.body);
        true
    }

    /// An extent of the footprint that is not there.
    pub(super) fn absent(&self, footprint: &[Footprint]) -> Option<u64> {
        let absent = footprint.iter().find(|print| !self.placements.contains_key(&ExtentId(print.extent)));
        absent.map(|print| print.extent)
    }

    /// A line for each body that became nothing.
    fn report_rest(&self, gone: &BTreeSet<u64>, named: &Named, report: &mut dyn FnMut(&Line)) {
        let is_named = |body: &FoundBody| {
            let first = body.striped.segments.first();
            let own = first.is_some_and(|first| named.places.contains(&place_of(first)));
            own || self.has_named_blob(named, &body.owner.body)
        };
        let tail_clock = self.history.tail_clock();
        for (index, body) in self.survey.bodies.iter().enumerate() {
            if body.content != Content::Payload || is_named(body) {
                continue;
            }
            let why = if gone.contains(&body.owner.bucket) {
                Why::BucketDeleted
            } else if let Some(refusal) = self.refused.get(&index) {
                Why::Incomplete(refusal.clone())
            } else if body.owner.begun > tail_clock
                && !self.replayed.verdicts.contains_key(&(body.owner.bucket, body.owner.name.clone()))
            {
                Why::Uncommitted
            } else {
                Why::Superseded
            };
            let owner = &body.owner;
            report(&self.line(owner.bucket, &owner.name, body.striped.len, Fate::NotRecovered(why)));
        }
        for (index, pack) in self.survey.bodies.iter().enumerate() {
            let Some(refusal) = self.refused.get(&index).filter(|_| pack.content == Content::Pack) else {
                continue;
            };
            let (extent, block) = pack.striped.segments.first().map_or((0, 0), place_of);
            let what = format!(
                "a pack at block {block} of data extent {extent}: {refusal}; small objects that it held are missing"
            );
            report(&self.line(0, b"", pack.striped.len, Fate::NotRecovered(Why::Incomplete(what))));
        }
        for fragment in &self.survey.fragments {
            let owner = &fragment.owner;
            let is_named = fragment.segments.iter().any(|segment| named.places.contains(&place_of(segment)));
            if is_named || self.has_named_blob(named, &owner.body) {
                continue;
            }
            let len = fragment.segments.iter().map(|segment| segment.len).sum();
            let what = format!("{} segments are there, not all", fragment.segments.len());
            report(&self.line(owner.bucket, &owner.name, len, Fate::NotRecovered(Why::Incomplete(what))));
        }
    }

    fn has_named_blob(&self, named: &Named, body: &[u8; 16]) -> bool {
        let blob = self.blobs.get(body).map(|&blob| &self.survey.bodies[blob]);
        let first = blob.and_then(|blob| blob.striped.segments.first());
        first.is_some_and(|first| named.places.contains(&place_of(first)))
    }

    fn line(&self, bucket: u64, name: &[u8], len: u64, fate: Fate) -> Line {
        Line::Entry(Entry { shard: self.shard.id, bucket, name: name.to_vec(), len, fate })
    }
}
