//! Every entry of the index: it decodes, it belongs to this shard, the extents it names exist, its bytes are whole, and live
//! counts are the sum of it all.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;

use super::bodies::Collected;
use super::{CheckedShard, Checker, Owner, Phase, Progress, Structure};
use crate::ScrubProgress;
use crate::body::StripedBody;
use crate::extent::{ExtentClass, ExtentId};
use crate::format::pack::PACK_LEN_MAX;
use crate::index::key::{self, Family, Key};
use crate::offline::table::Entries;
use crate::value::{
    self, Body, Bucket, Footprint, Object, Packed, Part, PartBody, Striped, Upload, UploadState,
    UploadedPart, ValueError,
};

/// Longest blob that is read into memory, bytes.
const BLOB_LEN_MAX: u64 = 64 << 20;

/// What the entries of a shard add up to.
#[derive(Default)]
struct Sums {
    /// Live bytes by extent.
    live: BTreeMap<ExtentId, u64>,
    /// Parts that an object took over, by upload: a bit each, zeros at the end cut off.
    taken_over: BTreeMap<[u8; 16], Vec<u8>>,
    /// Packs that were read, by extent and first block, and what of each cannot be had.
    packs: BTreeMap<(u64, u32), Vec<Range<u64>>>,
}

impl Checker<'_> {
    /// Takes the names of buckets whose records lie in this shard.
    pub(super) async fn learn_buckets(&mut self, shard: &CheckedShard) {
        let (from, to) =
            (key::start_of_prefix(Family::Bucket, 0, b""), key::end_of_prefix(Family::Bucket, 0, b""));
        let overlay = &shard.state.overlay;
        let mut entries = Entries::new(self.core, &shard.files, overlay, &shard.runs, &from, Some(to));
        while let Some((_, value)) = entries.next().await {
            if let Ok(bucket) = value::decode::<Bucket>(&value) {
                self.buckets.insert(bucket.id, bucket.name);
            }
        }
    }

    pub(super) async fn entries(&mut self, shard: &CheckedShard) {
        let mut sums = Sums::default();
        let overlay = &shard.state.overlay;
        let mut entries = Entries::new(self.core, &shard.files, overlay, &shard.runs, b"", None);
        let columns = |class| match class {
            ExtentClass::Data => shard.files.geometry.columns(),
            ExtentClass::Log | ExtentClass::Table => shard.files.geometry.replicas(),
        };
        let extents = shard.state.extents.values();
        let total = extents.map(|entry| entry.live_len * columns(entry.placement.class) as u64).sum();
        let before = self.report.read_len;
        while let Some((key, value)) = entries.next().await {
            self.entry(shard, &key, &value, &mut sums).await;
            let done = self.report.read_len - before;
            self.listener.progress(Progress { shard: shard.files.shard, phase: Phase::Bodies, done, total });
        }
        // Blocks that are lost were told of when their table was looked at.
        if !shard.index_lost && shard.state.replayed.error.is_none() {
            self.live_counts(shard, &sums);
        }
    }

    async fn entry(&mut self, shard: &CheckedShard, bytes: &[u8], value: &[u8], sums: &mut Sums) {
        let id = shard.files.shard;
        let key = match Key::decode(bytes) {
            Ok(key) => key,
            Err(error) => return self.contradiction(Structure::Entry, id, None, error.to_string()),
        };
        let (bucket_id, name) = match &key {
            Key::Object { bucket, name, .. }
            | Key::Upload { bucket, name, .. }
            | Key::Part { bucket, name, .. }
            | Key::Blob { bucket, name } => (*bucket, name),
            Key::Bucket { name } => (0, name),
            // Each shard has its own.
            Key::Background { .. } => return self.background(id, value),
        };
        let mut owner = Owner { bucket_id, key: name.to_vec(), ..Owner::default() };
        owner.bucket = self.buckets.get(&bucket_id).cloned();
        let home = self.set.superblock.shard_of(bucket_id, name);
        if home != id {
            let reason = format!("its key belongs to shard {home}");
            self.contradiction(Structure::Entry, id, Some(&owner), reason);
        }
        if bucket_id > 0 && owner.bucket.is_none() && !shard.index_lost {
            self.contradiction(Structure::Entry, id, Some(&owner), "its bucket has no record".to_owned());
        }
        let checked = match key {
            Key::Object { .. } => {
                self.report.object_count += 1;
                self.object(shard, value, &owner, sums).await
            }
            Key::Upload { upload, .. } => {
                self.report.upload_count += 1;
                value::decode::<Upload>(value).map(|decoded| sums.note(upload, decoded.state))
            }
            Key::Part { upload, part, .. } => {
                self.report.part_count += 1;
                owner.part = Some(part);
                // Of a part that an object took over the object speaks.
                let taken_over = sums.is_taken_over(upload, part);
                self.part(shard, value, &owner, (!taken_over).then_some(sums)).await
            }
            Key::Bucket { .. } => {
                self.report.bucket_count += 1;
                value::decode::<Bucket>(value).map(drop)
            }
            Key::Blob { .. } | Key::Background { .. } => Ok(()),
        };
        if let Err(error) = checked {
            self.contradiction(Structure::Entry, id, Some(&owner), error.to_string());
        }
    }

    fn background(&mut self, shard: u16, value: &[u8]) {
        if let Err(error) = value::decode::<ScrubProgress>(value) {
            self.contradiction(Structure::Entry, shard, None, format!("progress of the scrub: {error}"));
        }
    }

    async fn object(
        &mut self,
        shard: &CheckedShard,
        value: &[u8],
        owner: &Owner,
        sums: &mut Sums,
    ) -> Result<(), ValueError> {
        let object = value::decode::<Object>(value)?;
        self.footprint(shard, &object.footprint, owner, sums);
        match &object.body {
            Body::Inline { crcs } => match value::inline_place(value) {
                // Nothing is live of an empty body, and its extent may be gone.
                Some(place) if place.len == 0 && object.len == 0 => {}
                Some(place) => {
                    sums.add(place.extent, place.len.into());
                    self.inline(shard, place, object.len, crcs, owner).await;
                }
                None if object.len > 0 => {
                    let reason = "its body is in the log, at no place".to_owned();
                    self.contradiction(Structure::Entry, shard.files.shard, Some(owner), reason);
                }
                None => {}
            },
            Body::Packed(packed) => self.packed(shard, packed, object.len, owner, sums).await,
            Body::Striped(body) => {
                self.body(shard, body, owner, false).await;
            }
            Body::Spilled { map } => self.spilled(shard, map, owner).await,
            Body::Parts(parts) => self.parts(shard, parts, owner).await,
            Body::SpilledParts { map } => {
                if let Some(parts) = self.blob::<Vec<Part>>(shard, map, owner).await {
                    self.parts(shard, &parts, owner).await;
                }
            }
        }
        if let Some(map) = object.record_place()?
            && let Some(record) = self.blob::<Object>(shard, &map, owner).await
            && (record.uuid, record.len, record.etag) != (object.uuid, object.len, object.etag)
        {
            let reason = "the copy of its value beside its body is another's".to_owned();
            self.contradiction(Structure::Entry, shard.files.shard, Some(owner), reason);
        }
        object.merged_parts().map(drop)
    }

    /// Many share a pack. It is read once, and what of it is lost is told for each of them that has bytes there.
    async fn packed(
        &mut self,
        shard: &CheckedShard,
        packed: &Packed,
        len: u64,
        owner: &Owner,
        sums: &mut Sums,
    ) {
        let id = shard.files.shard;
        let end = packed.offset.saturating_add(len);
        let [first] = packed.pack.segments.as_slice() else {
            let reason = "its pack is not one segment".to_owned();
            return self.contradiction(Structure::Entry, id, Some(owner), reason);
        };
        if end > packed.pack.len || packed.pack.len > PACK_LEN_MAX as u64 {
            let reason = "its body reaches beyond its pack".to_owned();
            return self.contradiction(Structure::Entry, id, Some(owner), reason);
        }
        let place = (first.extent, first.block);
        let lost = match sums.packs.entry(place) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(self.pack(shard, &packed.pack).await),
        };
        if lost.iter().any(|run| run.start < end && run.end > packed.offset) {
            let reason =
                format!("its bytes in the pack at block {} of data extent {} are lost", place.1, place.0);
            self.lost(Structure::Packed, id, Some(owner), reason, "too few blocks of the pack are whole");
        }
    }

    /// Without `sums` the part is an object's by now.
    async fn part(
        &mut self,
        shard: &CheckedShard,
        value: &[u8],
        owner: &Owner,
        sums: Option<&mut Sums>,
    ) -> Result<(), ValueError> {
        let part = value::decode::<UploadedPart>(value)?;
        if let Some(sums) = sums {
            self.footprint(shard, &part.footprint, owner, sums);
            self.part_body(shard, &part.body, owner).await;
        }
        Ok(())
    }

    async fn parts(&mut self, shard: &CheckedShard, parts: &[Part], owner: &Owner) {
        for part in parts {
            self.part_body(shard, &part.body, owner).await;
        }
    }

    async fn part_body(&mut self, shard: &CheckedShard, body: &PartBody, owner: &Owner) {
        match body {
            PartBody::Striped(body) => {
                self.body(shard, body, owner, false).await;
            }
            PartBody::Spilled { map } => self.spilled(shard, map, owner).await,
        }
    }

    async fn spilled(&mut self, shard: &CheckedShard, map: &Striped, owner: &Owner) {
        if let Some(body) = self.blob::<Striped>(shard, map, owner).await {
            self.body(shard, &body, owner, false).await;
        }
    }

    /// The value that lies in a blob, if it can be read.
    async fn blob<T: value::Value>(
        &mut self,
        shard: &CheckedShard,
        map: &Striped,
        owner: &Owner,
    ) -> Option<T> {
        if map.len > BLOB_LEN_MAX {
            let reason = format!("a blob of {} bytes", map.len);
            self.contradiction(Structure::Entry, shard.files.shard, Some(owner), reason);
            return None;
        }
        let found = self.body(shard, map, owner, true).await?;
        if !found.lost.is_empty() {
            return None;
        }
        match value::decode(&found.bytes) {
            Ok(value) => Some(value),
            Err(error) => {
                let reason = format!("in a blob: {error}");
                self.contradiction(Structure::Entry, shard.files.shard, Some(owner), reason);
                None
            }
        }
    }

    async fn body(
        &mut self,
        shard: &CheckedShard,
        body: &Striped,
        owner: &Owner,
        collect: bool,
    ) -> Option<Collected> {
        self.striped(shard, &StripedBody::from(body), Some(owner), collect).await
    }

    fn footprint(&mut self, shard: &CheckedShard, footprint: &[Footprint], owner: &Owner, sums: &mut Sums) {
        let blocks = shard.files.geometry.data_slot_len / basalt_reactor::disk::BLOCK_LEN as u64;
        for print in footprint {
            sums.add(ExtentId(print.extent), print.bytes);
            let known = shard.state.extents.get(&ExtentId(print.extent));
            let is_data = known.is_some_and(|entry| entry.placement.class == ExtentClass::Data);
            if !is_data {
                let reason = format!("it names data extent {}, which does not exist", print.extent);
                self.contradiction(Structure::Entry, shard.files.shard, Some(owner), reason);
            } else if u64::from(print.end_block) > blocks {
                let reason = format!("it names blocks beyond data extent {}", print.extent);
                self.contradiction(Structure::Entry, shard.files.shard, Some(owner), reason);
            }
        }
    }

    fn live_counts(&mut self, shard: &CheckedShard, sums: &Sums) {
        for (id, entry) in &shard.state.extents {
            let live = sums.live.get(id).copied().unwrap_or(0);
            if live != entry.live_len {
                let reason =
                    format!("extent {} counts {} live bytes, the index names {live}", id.0, entry.live_len);
                self.contradiction(Structure::LiveCount, shard.files.shard, None, reason);
            }
        }
    }
}

impl Sums {
    fn add(&mut self, extent: ExtentId, bytes: u64) {
        *self.live.entry(extent).or_default() += bytes;
    }

    fn note(&mut self, upload: [u8; 16], state: UploadState) {
        if let UploadState::Completed { mut listed, .. } = state {
            let len = listed.iter().rposition(|&bits| bits != 0).map_or(0, |last| last + 1);
            listed.truncate(len);
            listed.shrink_to_fit();
            self.taken_over.insert(upload, listed);
        }
    }

    fn is_taken_over(&self, upload: [u8; 16], part: u16) -> bool {
        let listed = self.taken_over.get(&upload);
        listed
            .and_then(|listed| listed.get(usize::from(part / 8)))
            .is_some_and(|bits| bits >> (part % 8) & 1 == 1)
    }
}
