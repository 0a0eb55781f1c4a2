//! Whether what a directory chunk describes belongs to anybody: asked only where damage was found.
//!
//! A chunk can be there of a body that was never committed, whose stripes are whole on some disks alone, and whose blocks
//! may be lent to another writer by now. Nothing of those is damage. What some value names was committed, and stays as it is
//! for as long as its extent exists.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::body::directory::{Content, DirectoryEntry};
use crate::body::{Bodies, OnDamage, Places, StripedBody};
use crate::error::EngineError;
use crate::extent::ExtentId;
use crate::index::key::{self, Family};
use crate::shard::Shard;
use crate::value::{self, Body, Object, Part, PartBody, SegmentValue, Striped, UploadedPart, Value};

/// Longest blob that is read into memory, bytes.
const BLOB_LEN_MAX: u64 = 64 << 20;

/// What is looked for: a segment.
struct Segment {
    extent: ExtentId,
    block: u32,
    /// The part it was written for, if it was for one.
    part: Option<u16>,
}

impl Shard {
    /// Whether some value names the segment that `entry` of `extent` describes. What cannot be found out is taken for dead:
    /// it is left alone.
    pub(super) async fn is_live(
        &self,
        bodies: &Rc<Bodies>,
        extent: ExtentId,
        entry: &DirectoryEntry,
    ) -> bool {
        self.find(bodies, extent, entry).await.unwrap_or(false)
    }

    async fn find(
        &self,
        bodies: &Rc<Bodies>,
        extent: ExtentId,
        entry: &DirectoryEntry,
    ) -> Result<bool, EngineError> {
        if entry.content == Content::Pack {
            let segment = SegmentValue { extent: extent.0, block: entry.block, len: entry.len };
            let pack = Striped { len: entry.len, segments: vec![segment], crcs: entry.data_crcs.clone() };
            let bytes = self.read_whole(bodies, &pack).await?;
            return self.is_pack_live(&bytes, extent, entry.block).await;
        }
        let owner = &entry.owner;
        let segment = Segment { extent, block: entry.block, part: owner.part.map(|(_, number)| number) };
        if let Some((upload, number)) = owner.part {
            let key = key::part(owner.bucket, &owner.name, upload, number);
            if let Some(value) = self.index.get(&key).await? {
                let part = value::decode::<UploadedPart>(&value)?;
                if self.is_in_part(bodies, &part.body, &segment).await? {
                    return Ok(true);
                }
            }
        }
        let start = key::start_of_name(Family::Object, owner.bucket, &owner.name);
        let mut versions = self.index.cursor_of_name(&start);
        let mut objects = Vec::new();
        while let Some((_, value)) = versions.next().await? {
            let object = value::decode::<Object>(value)?;
            if object.footprint.iter().any(|print| print.extent == extent.0) {
                objects.push(object);
            }
        }
        for object in objects {
            if object.record_place()?.is_some_and(|map| names(&map, &segment)) {
                return Ok(true);
            }
            let found = match &object.body {
                Body::Inline { .. } | Body::Packed(_) => false,
                Body::Striped(striped) => names(striped, &segment),
                Body::Spilled { map } => {
                    names(map, &segment) || names(&self.blob::<Striped>(bodies, map).await?, &segment)
                }
                Body::Parts(parts) => self.is_in_parts(bodies, parts, &segment).await?,
                Body::SpilledParts { map } => {
                    names(map, &segment) || {
                        let parts = self.blob::<Vec<Part>>(bodies, map).await?;
                        self.is_in_parts(bodies, &parts, &segment).await?
                    }
                }
            };
            if found {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn is_in_parts(
        &self,
        bodies: &Rc<Bodies>,
        parts: &[Part],
        segment: &Segment,
    ) -> Result<bool, EngineError> {
        for part in parts.iter().filter(|part| segment.part.is_none_or(|number| number == part.number)) {
            if self.is_in_part(bodies, &part.body, segment).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn is_in_part(
        &self,
        bodies: &Rc<Bodies>,
        body: &PartBody,
        segment: &Segment,
    ) -> Result<bool, EngineError> {
        Ok(match body {
            PartBody::Striped(striped) => names(striped, segment),
            PartBody::Spilled { map } => {
                names(map, segment) || names(&self.blob::<Striped>(bodies, map).await?, segment)
            }
        })
    }

    /// Reads a value that was too long for the index. Should it be freed meanwhile, its checksums say so.
    pub(super) async fn blob<T: Value>(&self, bodies: &Rc<Bodies>, map: &Striped) -> Result<T, EngineError> {
        Ok(value::decode(&self.read_whole(bodies, map).await?)?)
    }

    async fn read_whole(&self, bodies: &Rc<Bodies>, map: &Striped) -> Result<Vec<u8>, EngineError> {
        if map.len > BLOB_LEN_MAX {
            return Err(EngineError::Damaged(format!("a blob of {} bytes", map.len)));
        }
        let body = StripedBody::from(map);
        let extents: Vec<ExtentId> = body.segments.iter().map(|segment| segment.extent).collect();
        let known: BTreeMap<ExtentId, _> =
            self.placements(&extents).into_iter().map(|place| (place.id, Rc::new(place))).collect();
        let places: Places = Rc::new(move |extent| known.get(&extent).cloned());
        let on_damage: OnDamage = Rc::new(|_, _| {});
        let mut reader = bodies.reader(Rc::new(body), 0..map.len, places, on_damage, None)?;
        let mut bytes = Vec::with_capacity(usize::try_from(map.len).unwrap_or(0));
        while let Some(slice) = reader.next().await {
            bytes.extend_from_slice(&slice?);
        }
        Ok(bytes)
    }
}

fn names(striped: &Striped, segment: &Segment) -> bool {
    striped.segments.iter().any(|named| named.extent == segment.extent.0 && named.block == segment.block)
}
