//! Segments that no directory chunk describes, in whatever column.
//!
//! They are read as ever, for the index has their checksums; but a lost index could not be rebuilt with them, collection
//! would not come by them, and scrub neither. What is in use of an extent and covered by no chunk is a *gap*. Leases that were given up leave
//! gaps too, so they prove nothing: now and then the index is asked, once for all of them, whether something lives there. If so,
//! the chunk is made anew from the value and the bytes. That comes before the progress of scrub is kept, so no gap is forgotten by a
//! restart.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use basalt_reactor::disk::BLOCK_LEN;

use crate::body::directory::{Content, DirectoryEntry, Owner};
use crate::body::layout::StripeShape;
use crate::body::{Bodies, Mended};
use crate::error::EngineError;
use crate::extent::{ExtentClass, ExtentId, Placement};
use crate::index::key::{Family, Key};
use crate::shard::Shard;
use crate::value::{self, Body, Footprint, Object, Part, PartBody, SegmentValue, Striped, UploadedPart};

/// Gaps that are remembered; of an extent with more than there is room for, what lies between them counts as well.
const GAP_COUNT_MAX: usize = 1 << 16;

/// Entries of the index looked at before a rest.
const UNIT_COUNT: usize = 4096;
const REST: Duration = Duration::from_millis(5);

/// Entries decoded before others have a turn: a value may be long.
const YIELD_COUNT: usize = 64;

/// Values that name something in a gap's extent, taken along before they are looked at.
const HELD_COUNT_MAX: usize = 32;

/// Blocks in use that no chunk covers, by extent.
#[derive(Default)]
pub(in crate::shard) struct Gaps {
    by_extent: RefCell<BTreeMap<ExtentId, Vec<Range<u32>>>>,
    /// Places of chunks that were looked at since. Many objects may lie in one pack, which is not looked at for each of them.
    seen: RefCell<BTreeSet<(u64, u64)>>,
}

impl Gaps {
    /// Remembers the gaps of an extent instead of those it had.
    pub(super) fn note(&self, extent: ExtentId, gaps: Vec<Range<u32>>) {
        let mut by_extent = self.by_extent.borrow_mut();
        by_extent.remove(&extent);
        let known: usize = by_extent.values().map(Vec::len).sum();
        let (Some(first), Some(last)) = (gaps.first(), gaps.last()) else { return };
        let hull = first.start..last.end;
        let fit = known + gaps.len() <= GAP_COUNT_MAX;
        by_extent.insert(extent, if fit { gaps } else { std::iter::once(hull).collect() });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_extent.borrow().is_empty()
    }

    /// Whether the chunk at `block` of `extent` would lie in one.
    fn contain(&self, extent: u64, block: u64) -> bool {
        let by_extent = self.by_extent.borrow();
        let gaps = by_extent.get(&ExtentId(extent)).into_iter().flatten();
        gaps.into_iter().any(|gap| (u64::from(gap.start)..u64::from(gap.end)).contains(&block))
    }

    fn forget(&self) {
        self.by_extent.borrow_mut().clear();
        self.seen.borrow_mut().clear();
    }

    fn touch(&self, footprint: &[Footprint]) -> bool {
        let by_extent = self.by_extent.borrow();
        footprint.iter().any(|print| by_extent.contains_key(&ExtentId(print.extent)))
    }
}

/// What shares a body uuid: a body, and the blob with its list of blocks.
struct Related {
    bodies: Vec<(Content, Striped)>,
    /// Of a part of an upload.
    part: Option<u16>,
    /// The uuid to be told where no other segment has it, if it is not to be drawn.
    uuid: Option<[u8; 16]>,
}

impl Related {
    fn one(content: Content, striped: Striped) -> Related {
        Related { bodies: vec![(content, striped)], part: None, uuid: None }
    }
}

/// What a value says of everything that it has in stripes.
struct Told {
    bucket: u64,
    name: Vec<u8>,
    upload: Option<[u8; 16]>,
    modified: u64,
    related: Vec<Related>,
}

impl Shard {
    /// Looks for what lives in the gaps that were met since the last time, and describes it anew.
    pub(super) async fn close_gaps(self: &Rc<Self>, bodies: &Rc<Bodies>) {
        if self.scrub.gaps.is_empty() {
            return;
        }
        if let Err(error) = self.look_into_gaps(bodies).await {
            tracing::warn!(shard = self.id, %error, "what no directory chunk describes is not all looked for");
        }
        self.scrub.gaps.forget();
    }

    async fn look_into_gaps(self: &Rc<Self>, bodies: &Rc<Bodies>) -> Result<(), EngineError> {
        let mut from = vec![Family::Object as u8];
        let end = [Family::Part as u8 + 1];
        while self.check_healthy().is_ok() {
            let (mut held, mut last, mut taken) = (Vec::new(), None, 0_usize);
            let mut cursor = self.index.cursor(&from, Some(&end));
            for _ in 0..UNIT_COUNT {
                let Some((key, value)) = cursor.next().await? else {
                    last = None;
                    break;
                };
                last = Some(key.to_vec());
                taken += 1;
                if taken % YIELD_COUNT == 0 {
                    self.core.yield_now().await;
                }
                if self.scrub.gaps.touch(&footprint_of(value)) {
                    held.push((key.to_vec(), value.to_vec()));
                }
                if held.len() == HELD_COUNT_MAX {
                    break;
                }
            }
            drop(cursor);
            for (key, value) in held {
                if let Err(error) = self.describe_value(bodies, &key, &value).await {
                    tracing::debug!(shard = self.id, %error, "a value that cannot be read is not described");
                }
            }
            let Some(last) = last else { return Ok(()) };
            from = last;
            from.push(0);
            self.core.sleep(REST).await;
        }
        Ok(())
    }

    /// Gives what a value has in gaps its chunks back.
    async fn describe_value(
        self: &Rc<Self>,
        bodies: &Rc<Bodies>,
        key: &[u8],
        value: &[u8],
    ) -> Result<(), EngineError> {
        let Some(told) = self.told_by(bodies, key, value).await? else { return Ok(()) };
        for index in 0..told.related.len() {
            for (content, striped) in &told.related[index].bodies {
                let (mut offset, mut crc) = (0, 0);
                let shape = StripeShape::new(self.files.geometry());
                for segment in &striped.segments {
                    let crc_end = crc + shape.crc_count(segment.len) as usize;
                    let chunk = u64::from(segment.block) + shape.column_len(segment.len) / BLOCK_LEN as u64;
                    let place = (segment.extent, chunk);
                    if self.scrub.gaps.contain(segment.extent, chunk)
                        && self.scrub.gaps.seen.borrow_mut().insert(place)
                    {
                        let entry = DirectoryEntry {
                            block: segment.block,
                            len: segment.len,
                            body_offset: offset,
                            last: offset + segment.len == striped.len,
                            data_crcs: striped.crcs.get(crc..crc_end).unwrap_or_default().to_vec(),
                            parity_crcs: Vec::new(),
                            content: *content,
                            owner: Owner::default(),
                        };
                        self.describe_segment(bodies, &told, index, segment, entry).await;
                    }
                    (offset, crc) = (offset + segment.len, crc_end);
                }
            }
        }
        Ok(())
    }

    /// Writes the chunk of a segment, if really no column has one.
    async fn describe_segment(
        self: &Rc<Self>,
        bodies: &Rc<Bodies>,
        told: &Told,
        index: usize,
        segment: &SegmentValue,
        mut entry: DirectoryEntry,
    ) {
        let extent = ExtentId(segment.extent);
        let turn = self.repairs.turn().await;
        let Some(pin) = self.pin_guard(extent) else { return };
        let placements = self.placements(&[extent]);
        let [placement] = placements.as_slice() else { return };
        if placement.class != ExtentClass::Data || !bodies.are_all_readable(placement) {
            return;
        }
        let name_len = if entry.content == Content::Pack { 0 } else { told.name.len() };
        if bodies.owner_of(placement, (segment.block, segment.len), name_len).await.is_some() {
            return;
        }
        entry.owner = self.owner_to_tell(bodies, told, index, entry.content).await;
        let (bodies, place) = (Rc::clone(bodies), placement.clone());
        // A task of its own: see `mend_row`.
        let task = self.core.spawn(async move {
            let mended = bodies.describe_anew(&place, entry).await;
            drop((pin, turn));
            mended
        });
        let mended: Mended = task.await.unwrap_or_default();
        tracing::warn!(shard = self.id, extent = extent.0, block = segment.block, len = segment.len,
            bucket = told.bucket, key = %told.name.escape_ascii(), made_anew = !mended.repaired.is_empty(),
            "a directory chunk is lost in every column");
        self.note_mended(&mended, placement);
    }

    /// Whose a segment is to be told as: what other segments of its body say, and else what the value knows.
    async fn owner_to_tell(&self, bodies: &Rc<Bodies>, told: &Told, index: usize, content: Content) -> Owner {
        if content == Content::Pack {
            return Owner { begun: told.modified, ..bodies.owner(0, b"") };
        }
        let own = &told.related[index];
        if let Some(owner) = self.described_owner(bodies, own, told.name.len()).await {
            return owner;
        }
        let mut upload = told.upload;
        if own.part.is_some() && upload.is_none() {
            for other in told.related.iter().filter(|other| other.part.is_some()) {
                let owner = self.described_owner(bodies, other, told.name.len()).await;
                if let Some((id, _)) = owner.and_then(|owner| owner.part) {
                    upload = Some(id);
                    break;
                }
            }
        }
        let drawn = bodies.owner(told.bucket, &told.name);
        if own.part.is_some() && upload.is_none() {
            // No part says whose it is. The others find it here; without it each would pass for a whole object.
            upload = Some(bodies.owner(told.bucket, &told.name).body);
        }
        Owner {
            body: own.uuid.unwrap_or(drawn.body),
            begun: told.modified,
            part: upload.zip(own.part),
            ..drawn
        }
    }

    /// What the first segment says that is described.
    async fn described_owner(
        &self,
        bodies: &Rc<Bodies>,
        related: &Related,
        name_len: usize,
    ) -> Option<Owner> {
        let segments = related.bodies.iter().flat_map(|(_, striped)| &striped.segments);
        for segment in segments {
            let placements: Vec<Placement> = self.placements(&[ExtentId(segment.extent)]);
            let [placement] = placements.as_slice() else { continue };
            let owner = bodies.owner_of(placement, (segment.block, segment.len), name_len).await;
            if owner.is_some() {
                return owner;
            }
        }
        None
    }

    async fn told_by(
        &self,
        bodies: &Rc<Bodies>,
        key: &[u8],
        value: &[u8],
    ) -> Result<Option<Told>, EngineError> {
        Ok(match Key::decode(key) {
            Ok(Key::Object { bucket, name, .. }) => {
                let object = value::decode::<Object>(value)?;
                let mut related = match &object.body {
                    Body::Inline { .. } => Vec::new(),
                    Body::Packed(packed) => vec![Related::one(Content::Pack, packed.pack.clone())],
                    // Merged parts have the object's own.
                    Body::Striped(striped) => {
                        let one = Related::one(Content::Payload, striped.clone());
                        vec![Related { uuid: Some(object.uuid), ..one }]
                    }
                    Body::Spilled { map } => {
                        vec![Related { uuid: Some(object.uuid), ..self.related(bodies, map, None).await? }]
                    }
                    Body::Parts(parts) => self.related_parts(bodies, parts).await?,
                    Body::SpilledParts { map } => {
                        let parts = self.blob::<Vec<Part>>(bodies, map).await?;
                        let mut related = self.related_parts(bodies, &parts).await?;
                        related.push(Related::one(Content::Blob, map.clone()));
                        related
                    }
                };
                if let Some(map) = object.record_place()? {
                    let uuid = Some(value::record_uuid(object.uuid));
                    related.push(Related { uuid, ..Related::one(Content::Blob, map) });
                }
                let modified = object.modified;
                Some(Told { bucket, name: name.into_owned(), upload: None, modified, related })
            }
            Ok(Key::Part { bucket, name, upload, part: number }) => {
                let part = value::decode::<UploadedPart>(value)?;
                let related = vec![self.related_part(bodies, number, &part.body).await?];
                let (upload, modified) = (Some(upload), part.modified);
                Some(Told { bucket, name: name.into_owned(), upload, modified, related })
            }
            _ => None,
        })
    }

    async fn related_parts(&self, bodies: &Rc<Bodies>, parts: &[Part]) -> Result<Vec<Related>, EngineError> {
        let mut related = Vec::with_capacity(parts.len());
        for part in parts {
            related.push(self.related_part(bodies, part.number, &part.body).await?);
        }
        Ok(related)
    }

    async fn related_part(
        &self,
        bodies: &Rc<Bodies>,
        number: u16,
        body: &PartBody,
    ) -> Result<Related, EngineError> {
        match body {
            PartBody::Striped(striped) => {
                Ok(Related { part: Some(number), ..Related::one(Content::Payload, striped.clone()) })
            }
            PartBody::Spilled { map } => self.related(bodies, map, Some(number)).await,
        }
    }

    async fn related(
        &self,
        bodies: &Rc<Bodies>,
        map: &Striped,
        part: Option<u16>,
    ) -> Result<Related, EngineError> {
        let striped = self.blob::<Striped>(bodies, map).await?;
        let own = vec![(Content::Payload, striped), (Content::Blob, map.clone())];
        Ok(Related { bodies: own, part, uuid: None })
    }
}

/// What a value of any kind has in data extents.
fn footprint_of(value: &[u8]) -> Vec<Footprint> {
    match value.get(1).copied() {
        Some(<Object as value::Value>::KIND) => value::decode::<Object>(value).map(|object| object.footprint),
        Some(<UploadedPart as value::Value>::KIND) => {
            value::decode::<UploadedPart>(value).map(|part| part.footprint)
        }
        _ => return Vec::new(),
    }
    .unwrap_or_default()
}
