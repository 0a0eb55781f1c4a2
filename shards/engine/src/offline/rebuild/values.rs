//! Values made anew from what directories say: what the index would have, but for what it alone knew.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;

use basalt_md5::Md5;

use super::Work;
use super::bodies::{FoundBody, place_of};
use super::names::{Gathered, PartSource, weakest};
use super::replay::Name;
use super::report::{ETagSource, How};
use crate::body::directory::Content;
use crate::body::{BodyError, Places, StripedBody};
use crate::extent::ExtentId;
use crate::format::pack::{self, PACK_LEN_MAX, TRAILER_LEN};
use crate::index::key::{Key, VALUE_LEN_MAX};
use crate::value::{
    self, Body, Footprint, Object, Packed, Part, PartBody, Striped, UploadedPart, Value, ValueError,
};

/// Longest blob that is read, bytes: the parts of an object of 5 TiB.
const BLOB_LEN_MAX: u64 = 64 << 20;

/// Why no value can be made.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The list of its blocks, or of its parts, does not fit a value and has no blob.
    TooLong(usize),
    Blob(BodyError),
    BlobValue(ValueError),
    BlobLen(u64),
    /// A part lies where no extent is.
    NoExtent(u64),
    /// Bytes of a part are lost: whoever completes its upload would not know.
    Damaged,
    /// The list of a pack is lost, or does not say what it should.
    PackList,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refusal::TooLong(len) => write!(out, "its description takes {len} bytes, and its blob is lost"),
            Refusal::Blob(error) => write!(out, "its blob: {error}"),
            Refusal::BlobValue(error) => write!(out, "its blob: {error}"),
            Refusal::BlobLen(len) => write!(out, "its blob has {len} bytes"),
            Refusal::PackList => write!(out, "its list cannot be had"),
            Refusal::NoExtent(extent) => write!(out, "extent {extent} is not there"),
            Refusal::Damaged => write!(out, "some of its bytes are lost"),
        }
    }
}

/// A small object that a pack lists.
pub(super) struct PackedObject {
    pub(super) name: Name,
    pub(super) object: Object,
    /// All its bytes can be had.
    pub(super) is_whole: bool,
}

impl Work<'_> {
    /// The object that a body put at once was, or one whose parts were merged.
    pub(super) async fn object_of_body(&self, index: usize) -> Result<(Object, How), Refusal> {
        let found = &self.survey.bodies[index];
        if let Some(object) = self.recorded(found).await {
            fitting(&object)?;
            let (_, source) = self.etag(&found.striped, found.owner.body).await;
            let is_damaged = source == ETagSource::Damaged;
            return Ok((object, if is_damaged { How::LastKnownInPart } else { How::LastKnown }));
        }
        let (body, footprint) = self.describe(found).await?;
        let (etag, source) = self.etag(&found.striped, found.owner.body).await;
        let object = Object {
            uuid: found.owner.body,
            modified: found.owner.begun,
            len: found.striped.len,
            etag,
            part_count: 0,
            attributes: Vec::new(),
            checksum: None,
            body: body.into(),
            footprint,
            extensions: Vec::new(),
        };
        fitting(&object)?;
        Ok((object, How::Directory { etag: source }))
    }

    /// The object whose body was found and beside it the copy of its value.
    pub(super) async fn recorded(&self, found: &FoundBody) -> Option<Object> {
        let blob = *self.blobs.get(&value::record_uuid(found.owner.body))?;
        let blob = &self.survey.bodies[blob];
        let record: Object = self.read_blob(&blob.striped).await.ok()?;
        if (record.uuid, record.len) != (found.owner.body, found.striped.len) {
            return None;
        }
        let (body, footprint) = self.describe(found).await.ok()?;
        let footprint = sum(footprint.into_iter().chain(blob.footprint.iter().copied()));
        let mut object = Object { body: body.into(), footprint, ..record };
        object.set_record_place(Some(&blob.striped));
        object.merged_parts().ok()?;
        Some(object)
    }

    /// The record of a part whose body was found.
    pub(super) async fn part_of_body(&self, index: usize) -> Result<UploadedPart, Refusal> {
        let found = &self.survey.bodies[index];
        let (body, footprint) = self.describe(found).await?;
        let (etag, source) = self.etag(&found.striped, found.owner.body).await;
        if source == ETagSource::Damaged {
            return Err(Refusal::Damaged);
        }
        let part = UploadedPart {
            uuid: found.owner.body,
            modified: found.owner.begun,
            len: found.striped.len,
            etag,
            checksum: None,
            body,
            footprint,
            extensions: Vec::new(),
        };
        fitting(&part)?;
        Ok(part)
    }

    /// The object that the parts of an upload make.
    pub(super) async fn object_of_parts(&self, upload: &Gathered) -> Result<(Object, ETagSource), Refusal> {
        let mut parts = Vec::with_capacity(upload.parts.len());
        let mut footprints = Vec::new();
        let mut modified = 0;
        let (mut etags, mut sources) = (Md5::new(), Vec::new());
        for (&number, source) in &upload.parts {
            let part = match source {
                PartSource::Record(part) => part.clone(),
                PartSource::Body(index) => {
                    let found = &self.survey.bodies[*index];
                    let (body, footprint) = self.describe(found).await?;
                    let (etag, source) = self.etag(&found.striped, found.owner.body).await;
                    sources.push(source);
                    UploadedPart {
                        uuid: found.owner.body,
                        modified: found.owner.begun,
                        len: found.striped.len,
                        etag,
                        checksum: None,
                        body,
                        footprint,
                        extensions: Vec::new(),
                    }
                }
            };
            modified = modified.max(part.modified);
            etags.update(&part.etag);
            footprints.push(part.footprint);
            parts.push(Part { number, len: part.len, checksum: part.checksum, body: part.body });
        }
        let object = Object {
            uuid: upload.id,
            modified,
            len: parts.iter().map(|part| part.len).sum(),
            etag: etags.finalize(),
            part_count: parts.len() as u32,
            attributes: upload.record.as_ref().map(|upload| upload.attributes.clone()).unwrap_or_default(),
            checksum: None,
            body: Body::Parts(parts),
            footprint: sum(footprints.into_iter().flatten()),
            extensions: Vec::new(),
        };
        fitting(&object)?;
        Ok((object, weakest(sources.into_iter())))
    }

    /// The object whose parts a blob lists, and where their bodies begin.
    pub(super) async fn object_of_list(
        &self,
        index: usize,
    ) -> Result<(Object, ETagSource, BTreeSet<(u64, u32)>), Refusal> {
        let blob = &self.survey.bodies[index];
        let parts: Vec<Part> = self.read_blob(&blob.striped).await?;
        let (payloads, blobs) =
            (self.by_first_segment(Content::Payload), self.by_first_segment(Content::Blob));
        let mut prints = blob.footprint.clone();
        let (mut etags, mut sources) = (Md5::new(), Vec::new());
        let mut places = BTreeSet::new();
        for part in &parts {
            let (striped, map) = match &part.body {
                PartBody::Striped(striped) => (striped.clone(), None),
                PartBody::Spilled { map } => (self.read_blob::<Striped>(map).await?, Some(map)),
            };
            let lost =
                |striped: &Striped| Refusal::NoExtent(striped.segments.first().map_or(0, |s| s.extent));
            for (striped, known) in std::iter::once((&striped, &payloads)).chain(map.map(|map| (map, &blobs)))
            {
                let Some(first) = striped.segments.first() else { continue };
                let found = known.get(&place_of(first)).ok_or_else(|| lost(striped))?;
                prints.extend_from_slice(&self.survey.bodies[*found].footprint);
            }
            places.extend(striped.segments.first().map(place_of));
            let mut uuid = [0; 16];
            uuid[..8].copy_from_slice(&part.len.to_le_bytes());
            let (etag, source) = self.etag(&striped, uuid).await;
            etags.update(&etag);
            sources.push(source);
        }
        let object = Object {
            uuid: blob.owner.body,
            modified: blob.owner.begun,
            len: parts.iter().map(|part| part.len).sum(),
            etag: etags.finalize(),
            part_count: u32::try_from(parts.len()).unwrap_or(u32::MAX),
            attributes: Vec::new(),
            checksum: None,
            body: Body::SpilledParts { map: blob.striped.clone() },
            footprint: sum(prints.into_iter()),
            extensions: Vec::new(),
        };
        fitting(&object)?;
        Ok((object, weakest(sources.into_iter()), places))
    }

    /// How a value has the body, and what it takes: with its blob, if it has one.
    pub(super) async fn describe(&self, found: &FoundBody) -> Result<(PartBody, Vec<Footprint>), Refusal> {
        if let Some(&blob) = self.blobs.get(&found.owner.body) {
            let blob = &self.survey.bodies[blob];
            // Only if it says the same; otherwise the body is described as if there were none.
            if self.read_blob::<Striped>(&blob.striped).await.is_ok_and(|map| map == found.striped) {
                let footprint = sum(found.footprint.iter().chain(&blob.footprint).copied());
                return Ok((PartBody::Spilled { map: blob.striped.clone() }, footprint));
            }
        }
        Ok((PartBody::Striped(found.striped.clone()), found.footprint.clone()))
    }

    fn by_first_segment(&self, content: Content) -> BTreeMap<(u64, u32), usize> {
        let bodies = self.survey.bodies.iter().enumerate().filter(|(_, body)| body.content == content);
        bodies.filter_map(|(index, body)| Some((place_of(body.striped.segments.first()?), index))).collect()
    }

    /// The MD5 of a body's bytes, or its uuid where that cannot be had.
    async fn etag(&self, striped: &Striped, uuid: [u8; 16]) -> ([u8; 16], ETagSource) {
        if !self.etags {
            return (uuid, ETagSource::Opaque);
        }
        let mut md5 = Md5::new();
        match self.read(striped, |bytes| md5.update(bytes)).await {
            Ok(()) => (md5.finalize(), ETagSource::Bytes),
            Err(_) => (uuid, ETagSource::Damaged),
        }
    }

    /// The small objects that a pack lists. Of a pack that cannot be restored as a whole, each is tried alone.
    pub(super) async fn objects_of_pack(&self, found: &FoundBody) -> Result<Vec<PackedObject>, Refusal> {
        if found.striped.len > PACK_LEN_MAX as u64 {
            return Err(Refusal::BlobLen(found.striped.len));
        }
        let [print] = found.footprint.as_slice() else { return Err(Refusal::PackList) };
        let (bytes, is_whole) = self.bytes_of_pack(&found.striped).await?;
        let items = pack::decode_list(&bytes).map_err(|_| Refusal::PackList)?;
        let mut objects = Vec::with_capacity(items.len());
        for item in items {
            let Ok(Key::Object { bucket, name, .. }) = Key::decode(&item.key) else { continue };
            let object = value::decode::<Object>(&item.value).map_err(Refusal::BlobValue)?;
            let Body::Inline { crcs } = &object.body else { continue };
            let (pack, offset) = (found.striped.clone(), item.offset.into());
            let packed = Packed { pack, offset, crcs: crcs.clone() };
            let is_whole = is_whole || self.is_readable(&packed, item.len).await;
            let bytes = item.share(print.bytes, found.striped.len);
            let footprint = vec![Footprint { bytes, ..*print }];
            let object = Object { body: Body::Packed(Box::new(packed)), footprint, ..object };
            objects.push(PackedObject { name: (bucket, name.into_owned()), object, is_whole });
        }
        Ok(objects)
    }

    /// The bytes of a pack, and whether all of them are there: at least those of its list are.
    async fn bytes_of_pack(&self, pack: &Striped) -> Result<(Vec<u8>, bool), Refusal> {
        let mut bytes = Vec::new();
        if self.read(pack, |piece| bytes.extend_from_slice(piece)).await.is_ok() {
            return Ok((bytes, true));
        }
        let range = async |from: u64, to: u64| {
            let mut bytes = Vec::new();
            let read = self.read_range(pack, from..to, |piece| bytes.extend_from_slice(piece)).await;
            read.map(|()| bytes).map_err(|_| Refusal::PackList)
        };
        let trailer = range(pack.len.saturating_sub(TRAILER_LEN as u64), pack.len).await?;
        let list = pack::list_range(pack.len as usize, &trailer).map_err(|_| Refusal::PackList)?;
        let mut bytes = vec![0; list.start];
        bytes.extend(range(list.start as u64, pack.len).await?);
        Ok((bytes, false))
    }

    /// Whether a packed object can be read, as a server would: by its own checksums, or restored.
    async fn is_readable(&self, packed: &Packed, len: u32) -> bool {
        let placement =
            packed.pack.segments.first().and_then(|first| self.placements.get(&ExtentId(first.extent)));
        let Some(placement) = placement else { return false };
        if len == 0 {
            return true;
        }
        if let Ok(Some(_)) = self.bodies.read_packed(placement, &packed.body(len), 0..len).await {
            return true;
        }
        let range = packed.offset..packed.offset + u64::from(len);
        self.read_range(&packed.pack, range, |_| {}).await.is_ok()
    }

    pub(super) async fn read_blob<T: Value>(&self, map: &Striped) -> Result<T, Refusal> {
        if map.len > BLOB_LEN_MAX {
            return Err(Refusal::BlobLen(map.len));
        }
        let mut bytes = Vec::new();
        self.read(map, |piece| bytes.extend_from_slice(piece)).await.map_err(Refusal::Blob)?;
        value::decode(&bytes).map_err(Refusal::BlobValue)
    }

    async fn read(&self, striped: &Striped, take: impl FnMut(&[u8])) -> Result<(), BodyError> {
        self.read_range(striped, 0..striped.len, take).await
    }

    async fn read_range(
        &self,
        striped: &Striped,
        range: Range<u64>,
        mut take: impl FnMut(&[u8]),
    ) -> Result<(), BodyError> {
        let placements = Rc::clone(&self.placements);
        let places: Places = Rc::new(move |extent: ExtentId| placements.get(&extent).cloned());
        let body = Rc::new(StripedBody::from(striped));
        let mut reader = self.bodies.reader(body, range, places, Rc::new(|_, _| {}), None)?;
        while let Some(bytes) = reader.next().await {
            take(&bytes?);
        }
        Ok(())
    }
}

/// Refuses a value that the index would not take.
fn fitting<T: Value>(value: &T) -> Result<(), Refusal> {
    let len = value::encode(value).len();
    if len <= VALUE_LEN_MAX { Ok(()) } else { Err(Refusal::TooLong(len)) }
}

/// Live bytes per extent, summed up.
fn sum(prints: impl Iterator<Item = Footprint>) -> Vec<Footprint> {
    let mut extents: BTreeMap<u64, Footprint> = BTreeMap::new();
    for print in prints {
        let sum = extents.entry(print.extent).or_insert(Footprint { bytes: 0, end_block: 0, ..print });
        sum.bytes += print.bytes;
        sum.end_block = sum.end_block.max(print.end_block);
    }
    extents.into_values().collect()
}
