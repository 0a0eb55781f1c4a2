//! Which body a name has when directories know more of it than the log does.
//!
//! A record in the unbroken end of the log decides alone. Otherwise the youngest claim wins: the last record there is, by the
//! time it was made, or a whole body, by the time it began. Parts are a claim when their numbers have no hole.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::bodies::{FoundBody, place_of};
use super::replay::{Name, UploadFound, UploadName, Verdict};
use super::report::{ETagSource, How};
use super::values::Refusal;
use super::{RebuildError, Work};
use crate::blob::FootprintSum;
use crate::body::directory::Content;
use crate::format::part_list::{self, PartSpan};
use crate::index::key::{self, VersionOrder};
use crate::value::{
    self, Body, Extension, Object, PARTS_EXTENSION, Part, PartBody, Striped, Upload, UploadState,
    UploadedPart,
};

/// Where a part of an upload comes from.
pub(super) enum PartSource {
    Record(UploadedPart),
    /// Index of its body in the survey.
    Body(usize),
}

/// An upload with the parts that are there.
pub(super) struct Gathered {
    pub(super) id: [u8; 16],
    pub(super) record: Option<Upload>,
    pub(super) parts: BTreeMap<u16, PartSource>,
    /// Whether the log knows that it is over, one way or the other.
    over: bool,
    /// When the youngest part was begun.
    begun: u64,
}

impl Gathered {
    /// Whether the parts are numbered from 1 without a hole, as clients do.
    fn is_contiguous(&self) -> bool {
        self.parts.keys().copied().eq(1..=u16::try_from(self.parts.len()).unwrap_or(0))
    }
}

/// What a name may be.
enum Claim {
    Body(usize),
    /// A blob with the list of an object's parts.
    List(usize),
    Parts(Gathered),
    /// A small object that a pack lists, and whether its bytes can be had.
    Packed(Box<Object>, bool),
}

/// What decides for a name.
struct Bounds {
    /// First number of the log's unbroken end, and the time before which a body that it does not know was committed.
    tail: u64,
    tail_clock: u64,
}

impl Bounds {
    /// Whether a body that began at `begun` and has no record in the tail may be the name's.
    fn may_be_live(&self, begun: u64, verdict: Option<&Verdict>) -> bool {
        begun <= self.tail_clock
            && verdict.is_none_or(|verdict| verdict.sequence < self.tail && verdict.time < begun)
    }
}

impl Work<'_> {
    /// Decides for every name and upload that directories speak of, and writes what was decided to the index.
    pub(super) async fn decide(&mut self, gone: &BTreeSet<u64>) -> Result<(), RebuildError> {
        let bounds = Bounds { tail: self.history.tail, tail_clock: self.history.tail_clock() };
        let mut claims: BTreeMap<Name, Vec<(u64, Claim)>> = BTreeMap::new();
        for gathered in self.gather(&bounds) {
            let (name, upload, is_open) = gathered;
            if gone.contains(&name.0) {
                continue;
            }
            if is_open || !upload.is_contiguous() {
                self.keep_upload(&name, upload, is_open).await?;
            } else {
                claims.entry(name).or_default().push((upload.begun, Claim::Parts(upload)));
            }
        }
        let payloads: BTreeSet<[u8; 16]> = self.payloads().keys().copied().collect();
        for (index, body) in self.survey.bodies.iter().enumerate() {
            let owner = &body.owner;
            let claim = match (&owner.part, body.content) {
                (None, Content::Payload) => Claim::Body(index),
                // A blob of a body that is there is that body's list of blocks, or the copy of its value.
                (None, Content::Blob)
                    if !payloads.contains(&owner.body)
                        && !payloads.contains(&value::record_uuid(owner.body)) =>
                {
                    Claim::List(index)
                }
                _ => continue,
            };
            if !gone.contains(&owner.bucket) {
                claims.entry((owner.bucket, owner.name.clone())).or_default().push((owner.begun, claim));
            }
        }
        let mut refused = Vec::new();
        for (index, body) in self.survey.bodies.iter().enumerate() {
            if body.content != Content::Pack {
                continue;
            }
            match self.objects_of_pack(body).await {
                Ok(objects) => {
                    for packed in objects.into_iter().filter(|packed| !gone.contains(&packed.name.0)) {
                        let modified = packed.object.modified;
                        let claim = Claim::Packed(Box::new(packed.object), packed.is_whole);
                        claims.entry(packed.name).or_default().push((modified, claim));
                    }
                }
                Err(refusal) => refused.push((index, refusal.to_string())),
            }
        }
        self.refused.extend(refused);
        // Whose parts were moved may have no claim of its own.
        let known = self.replayed.verdicts.iter().filter(|(name, _)| !gone.contains(&name.0));
        let moved = known.filter(|(_, verdict)| verdict.sequence < bounds.tail && verdict.put.is_some());
        for name in moved.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            claims.entry(name).or_default();
        }
        for (name, mut claims) in claims {
            claims.sort_by_key(|(begun, _)| Reverse(*begun));
            self.settle(&name, claims, &bounds).await?;
            self.flush_if_full().await?;
        }
        Ok(())
    }

    /// Gives the name to the youngest claim that can be had.
    async fn settle(
        &mut self,
        name: &Name,
        claims: Vec<(u64, Claim)>,
        bounds: &Bounds,
    ) -> Result<(), RebuildError> {
        let put = self.replayed.verdicts.get(name).and_then(|verdict| verdict.put.as_deref());
        let mut listed = match put.filter(|put| self.absent(&put.footprint).is_none()) {
            Some(put) => self.places_of_parts(put).await,
            None => BTreeSet::new(),
        };
        let (mut settled, mut likely) = (false, None);
        let recorded = self.replayed.verdicts.get(name).map_or(0, |verdict| verdict.time);
        let spilled = self.moved_with_its_blob(name, bounds);
        for (begun, claim) in claims {
            settled = settled || begun <= recorded && self.relocate(name, bounds).await;
            let verdict = self.replayed.verdicts.get(name);
            // A pack's list has the time of the record, which may be in an extent that was given to others since.
            let began_by = if matches!(claim, Claim::Packed(..)) { begun.saturating_add(1) } else { begun };
            let may_be_live = bounds.may_be_live(began_by, verdict);
            // What the record put had begun before, and is as long.
            let of_record =
                spilled.as_ref().filter(|_| begun <= recorded && !matches!(claim, Claim::Packed(..)));
            if !settled && (may_be_live || of_record.is_some()) {
                let made = match &claim {
                    Claim::Packed(object, true) => Ok(((**object).clone(), How::LastKnown)),
                    Claim::Packed(object, false) => Ok(((**object).clone(), How::LastKnownInPart)),
                    Claim::Body(index) => self.object_of_body(*index).await,
                    Claim::List(index) => self.object_of_list(*index).await.map(|(object, etag, places)| {
                        listed = places;
                        let count = object.part_count;
                        (object, How::Parts { count, end_seen: true, etag })
                    }),
                    Claim::Parts(upload) => self.object_of_parts(upload).await.map(|(object, etag)| {
                        let (count, end_seen) = (object.part_count, is_end_seen(&object));
                        (object, How::Parts { count, end_seen, etag })
                    }),
                };
                match made.map(|made| vouched(made, spilled.as_ref())) {
                    Ok((object, how)) if may_be_live || how == How::LastKnown => {
                        self.give(name, &object, how);
                        settled = true;
                        continue;
                    }
                    // As long, but the record's ETag does not vouch for it: an older claim that it vouches for goes first.
                    Ok((object, how)) => {
                        if of_record.is_some_and(|put| put.len == object.len) && likely.is_none() {
                            likely = Some((object, how));
                        }
                    }
                    Err(refusal) => self.refuse(name, &claim, refusal),
                }
            }
            // Its parts may yet be wanted, unless they are known not to be, or are the object's.
            if let Claim::Parts(upload) = claim
                && !upload.over
                && !upload.parts.values().any(|part| self.begins_in(part, &listed))
            {
                self.keep_upload(name, upload, false).await?;
            }
        }
        if !settled
            && !self.relocate(name, bounds).await
            && let Some((object, how)) = likely
        {
            self.give(name, &object, how);
        }
        Ok(())
    }

    fn give(&mut self, name: &Name, object: &Object, how: How) {
        let key = key::object(name.0, &name.1, VersionOrder::NULL);
        self.index.put(&key, &value::encode(object));
        self.how.insert(key, how);
    }

    /// Gives a name what its last record put, where that lies elsewhere by now: collection moved it, and the record of the move is
    /// in a gap of the log. What has the same length and checksums is the same.
    async fn relocate(&mut self, name: &Name, bounds: &Bounds) -> bool {
        let Some(verdict) = self.replayed.verdicts.get(name) else { return false };
        let Some(put) = verdict.put.as_deref().filter(|_| verdict.sequence < bounds.tail) else {
            return false;
        };
        if self.absent(&put.footprint).is_none() {
            return false;
        }
        if let Some(object) = self.merged(put).await {
            let key = key::object(name.0, &name.1, VersionOrder::NULL);
            self.index.put(&key, &value::encode(&object));
            self.how.insert(key, How::LastKnown);
            return true;
        }
        let mut footprint = FootprintSum::default();
        let mut find = |striped: &Striped| {
            let is_same = |found: &&FoundBody| {
                let owner = (found.owner.bucket, &found.owner.name);
                owner == (name.0, &name.1)
                    && (found.striped.len, &found.striped.crcs) == (striped.len, &striped.crcs)
            };
            let found = self.survey.bodies.iter().find(is_same)?;
            footprint.merge(&found.footprint);
            Some(found.striped.clone())
        };
        let body = match &put.body {
            Body::Striped(striped) => find(striped).map(Body::Striped),
            Body::Parts(parts) => {
                let moved = parts.iter().map(|part| match &part.body {
                    PartBody::Striped(striped) => {
                        let body = PartBody::Striped(find(striped)?);
                        Some(Part { body, ..part.clone() })
                    }
                    // Its checksums are in the blob that is not there.
                    PartBody::Spilled { .. } => None,
                });
                moved.collect::<Option<Vec<_>>>().map(Body::Parts)
            }
            _ => None,
        };
        let (Some(body), Ok(footprint)) = (body, footprint.finish()) else { return false };
        let object = Object { body, footprint, ..put.clone() };
        let key = key::object(name.0, &name.1, VersionOrder::NULL);
        self.index.put(&key, &value::encode(&object));
        self.how.insert(key, How::LastKnown);
        true
    }

    /// What the last record of a name put, if that lies elsewhere by now and nothing but a blob said what it consists of: its bytes can
    /// only be told by where they end, and by its ETag.
    fn moved_with_its_blob(&self, name: &Name, bounds: &Bounds) -> Option<Object> {
        let verdict = self.replayed.verdicts.get(name)?;
        let put = verdict.put.as_deref().filter(|_| verdict.sequence < bounds.tail)?;
        let is_spilled = match &put.body {
            Body::Spilled { .. } | Body::SpilledParts { .. } => true,
            Body::Parts(parts) => parts.iter().any(|part| matches!(part.body, PartBody::Spilled { .. })),
            Body::Inline { .. } | Body::Striped(_) | Body::Packed(_) => false,
        };
        (is_spilled && self.absent(&put.footprint).is_some()).then(|| put.clone())
    }

    /// The object `put` with its parts in one body, if they were merged: the body has the object's uuid.
    async fn merged(&self, put: &Object) -> Option<Object> {
        let is_it = |found: &&FoundBody| {
            (found.content, found.owner.body, found.striped.len) == (Content::Payload, put.uuid, put.len)
        };
        let found = self.survey.bodies.iter().find(is_it)?;
        if let Some(object) = self.recorded(found).await {
            return Some(object);
        }
        let (body, footprint) = self.describe(found).await.ok()?;
        let mut object = Object { body: body.into(), footprint, ..put.clone() };
        object.set_record_place(None);
        let parts = match &put.body {
            Body::Parts(parts) => Some(parts.clone()),
            // Without its list the object has its bytes and its ETag still.
            Body::SpilledParts { map } => self.read_blob(map).await.ok(),
            _ => None,
        };
        let spans: Option<Vec<PartSpan>> =
            parts.map(|parts: Vec<Part>| parts.into_iter().map(PartSpan::from).collect());
        if let Some(bytes) = spans.and_then(|spans| part_list::encode(&spans)) {
            object.extensions.push(Extension { id: PARTS_EXTENSION, bytes });
        }
        Some(object)
    }

    /// Where the bodies of an object's parts begin.
    async fn places_of_parts(&self, object: &Object) -> BTreeSet<(u64, u32)> {
        let parts = match &object.body {
            Body::Parts(parts) => parts.clone(),
            Body::SpilledParts { map } => self.read_blob(map).await.unwrap_or_default(),
            _ => Vec::new(),
        };
        let mut places = BTreeSet::new();
        for part in parts {
            let striped = match part.body {
                PartBody::Striped(striped) => Some(striped),
                PartBody::Spilled { map } => self.read_blob::<Striped>(&map).await.ok(),
            };
            places.extend(striped.and_then(|striped| striped.segments.first().map(place_of)));
        }
        places
    }

    /// Whether the part's body begins in one of `places`.
    fn begins_in(&self, part: &PartSource, places: &BTreeSet<(u64, u32)>) -> bool {
        let striped = match part {
            PartSource::Body(index) => &self.survey.bodies[*index].striped,
            PartSource::Record(UploadedPart { body: PartBody::Striped(striped), .. }) => striped,
            // Only a body that is not described by directories has no other place.
            PartSource::Record(UploadedPart { body: PartBody::Spilled { .. }, .. }) => return false,
        };
        striped.segments.first().is_some_and(|first| places.contains(&place_of(first)))
    }

    /// Remembers why a body cannot be had, for its line of the report.
    fn refuse(&mut self, name: &Name, claim: &Claim, refusal: Refusal) {
        tracing::debug!(bucket = name.0, name = %name.1.escape_ascii(), %refusal, "a body cannot be recovered");
        if let Claim::Body(index) | Claim::List(index) = claim {
            self.refused.insert(*index, refusal.to_string());
        }
    }

    /// All uploads with their parts, from records and from directories; the last field says that the log surely has it open.
    fn gather(&mut self, bounds: &Bounds) -> Vec<(Name, Gathered, bool)> {
        let mut uploads: BTreeMap<UploadName, UploadFound> = std::mem::take(&mut self.replayed.uploads);
        let mut of_bodies: BTreeMap<UploadName, BTreeMap<u16, usize>> = BTreeMap::new();
        for (index, body) in self.survey.bodies.iter().enumerate() {
            let Some((id, number)) = body.owner.part.filter(|_| body.content == Content::Payload) else {
                continue;
            };
            let name = (body.owner.bucket, body.owner.name.clone());
            uploads.entry((name.clone(), id)).or_default();
            let place = of_bodies.entry((name, id)).or_default().entry(number).or_insert(index);
            if self.survey.bodies[*place].owner.begun < body.owner.begun {
                *place = index;
            }
        }
        let mut gathered = Vec::new();
        for ((name, id), found) in uploads {
            if found.over {
                continue;
            }
            let mut begun = 0;
            let mut parts = BTreeMap::new();
            for (number, part) in found.parts {
                if self.absent(&part.footprint).is_some() {
                    continue;
                }
                begun = begun.max(part.modified);
                parts.insert(number, PartSource::Record(part));
            }
            for (number, index) in of_bodies.remove(&(name.clone(), id)).unwrap_or_default() {
                let own = self.survey.bodies[index].owner.begun;
                let newer = match parts.get(&number) {
                    Some(PartSource::Record(part)) => part.modified < own,
                    _ => !found.dead.contains(&number),
                };
                if newer && own <= bounds.tail_clock {
                    begun = begun.max(own);
                    parts.insert(number, PartSource::Body(index));
                }
            }
            let open = found.record.is_some() && !found.dropped;
            let certain = open && found.sequence >= bounds.tail;
            let of_dead = self.survey.dead_parts.get(&(name.clone(), id)).into_iter().flatten();
            if !certain && of_dead.into_iter().any(|number| !parts.contains_key(number)) {
                // A part was given back and not sent again: what had it is gone as a whole.
                continue;
            }
            if certain || !parts.is_empty() {
                let record = found.record;
                gathered.push((name, Gathered { id, record, parts, over: found.dropped, begun }, certain));
            }
        }
        gathered
    }

    /// Makes an upload one that can be completed, or aborted.
    async fn keep_upload(
        &mut self,
        (bucket, name): &Name,
        upload: Gathered,
        certain: bool,
    ) -> Result<(), RebuildError> {
        let mut count = 0;
        let mut len = 0;
        for (number, source) in upload.parts {
            let part = match source {
                PartSource::Record(part) => part,
                PartSource::Body(index) => match self.part_of_body(index).await {
                    Ok(part) => part,
                    Err(refusal) => {
                        self.refused.insert(index, refusal.to_string());
                        continue;
                    }
                },
            };
            count += 1;
            len += part.len;
            self.index.put(&key::part(*bucket, name, upload.id, number), &value::encode(&part));
            self.flush_if_full().await?;
        }
        let made_up = || Upload {
            // An id begins with the time at which the upload was.
            initiated: u64::from_be_bytes(*upload.id.first_chunk().expect("an id is longer")),
            attributes: Vec::new(),
            checksum_algorithm: 0,
            checksum_composite: false,
            state: UploadState::Open,
            extensions: Vec::new(),
        };
        let record = upload.record.unwrap_or_else(made_up);
        self.index.put(&key::upload(*bucket, name, upload.id), &value::encode(&record));
        self.uploads.push((*bucket, name.clone(), len, How::Upload { id: upload.id, parts: count, certain }));
        Ok(())
    }

    /// Bodies of clients by their uuid.
    pub(super) fn payloads(&self) -> BTreeMap<[u8; 16], usize> {
        let bodies = self.survey.bodies.iter().enumerate();
        let payloads = bodies.filter(|(_, body)| body.content == Content::Payload);
        payloads.map(|(index, body)| (body.owner.body, index)).collect()
    }
}

/// With what the record `put` knows of an object that was made from directories, if its length and its ETag, made from the bytes, are the
/// record's.
fn vouched((object, how): (Object, How), put: Option<&Object>) -> (Object, How) {
    let is_computed = matches!(
        how,
        How::Directory { etag: ETagSource::Bytes } | How::Parts { etag: ETagSource::Bytes, .. }
    );
    let identity = |object: &Object| (object.len, object.part_count, object.etag);
    match put {
        Some(put) if is_computed && identity(put) == identity(&object) => {
            let Object { body, footprint, .. } = object;
            (Object { body, footprint, ..put.clone() }, How::LastKnown)
        }
        _ => (object, how),
    }
}

/// Whether the last part of an object is shorter than its first, as clients send them.
fn is_end_seen(object: &Object) -> bool {
    let Body::Parts(parts) = &object.body else { return false };
    matches!(parts.as_slice(), [first, .., last] if last.len < first.len)
}

/// Of the ETags of an object's parts, the one that says least.
pub(super) fn weakest(sources: impl Iterator<Item = ETagSource>) -> ETagSource {
    let rank = |source: &ETagSource| match source {
        ETagSource::Bytes => 0,
        ETagSource::Opaque => 1,
        ETagSource::Damaged => 2,
    };
    sources.max_by_key(rank).unwrap_or(ETagSource::Bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_without_a_record_lives_when_it_is_younger_than_any_and_older_than_the_tail() {
        let bounds = Bounds { tail: 10, tail_clock: 1000 };
        let record = |sequence, time| Verdict { sequence, time, put: None };
        assert!(bounds.may_be_live(999, None));
        assert!(!bounds.may_be_live(1001, None), "never committed");
        assert!(bounds.may_be_live(500, Some(&record(9, 499))));
        assert!(!bounds.may_be_live(500, Some(&record(9, 500))), "the record is its own, or a younger one's");
        assert!(!bounds.may_be_live(500, Some(&record(10, 0))), "the tail knows it all");
    }

    #[test]
    fn parts_with_a_hole_are_no_object() {
        let gathered = |numbers: &[u16]| Gathered {
            id: [0; 16],
            record: None,
            parts: numbers.iter().map(|&number| (number, PartSource::Body(0))).collect(),
            over: false,
            begun: 0,
        };
        assert!(gathered(&[1, 2, 3]).is_contiguous());
        assert!(!gathered(&[1, 3]).is_contiguous() && !gathered(&[2]).is_contiguous());
    }
}
