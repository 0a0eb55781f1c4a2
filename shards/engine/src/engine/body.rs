//! Bodies as the connection's core moves them: written before they have a name, read while a pin keeps them.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::rc::Rc;

use basalt_reactor::Slice;
use basalt_reactor::disk::BLOCK_LEN;

use super::Engine;
use crate::body::directory::{self, Owner};
use crate::body::layout::BLOCK_CRC_LEN;
use crate::body::walk::ExtentDirectory;
use crate::body::{Bodies, InlineBody, Leases, Reader, StripedBody, Writer, Written};
use crate::checksum::crc32c;
use crate::error::EngineError;
use crate::extent::{ExtentId, Placement};
use crate::request::{Ask, Reply};
use crate::shard::mutate::Found;
use crate::value::{
    self, Body, FOOTPRINT_COUNT_MAX, Footprint, INLINE_LEN_MAX, Object, Part, PartBody, Striped, Value,
};

/// Block checksums a value holds itself; a body with more has them in a blob.
const CRC_COUNT_MAX: usize = 512;

/// Segments a value holds itself.
const SEGMENT_COUNT_MAX: usize = 64;

/// Longest archive of parts that a value holds itself, bytes.
const PARTS_LEN_MAX: usize = 8 << 10;

/// Longest blob that is read into memory, bytes: the parts of an object of 5 TiB.
const BLOB_LEN_MAX: u64 = 64 << 20;

/// A body being received for one name. Small ones stay in memory until their commit; larger ones go to the disks as
/// they come. Dropping it gives everything back.
pub struct BodyWriter {
    bodies: Rc<Bodies>,
    owner: Owner,
    shard: u16,
    len: u64,
    /// Bytes up to which the body stays inline.
    inline_max: usize,
    inline: Vec<u8>,
    striped: Option<Writer>,
    expected: Option<u64>,
}

/// A body that is complete, and durable unless it travels with its record.
pub struct WrittenBody {
    pub(super) shard: u16,
    pub(super) len: u64,
    pub(super) content: Content,
}

pub(super) enum Content {
    Inline { bytes: Vec<u8>, crcs: Vec<u32> },
    Striped { body: PartBody, footprint: Vec<Footprint>, leases: Leases },
}

impl WrittenBody {
    /// Bytes of the body.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl From<PartBody> for Body {
    fn from(body: PartBody) -> Body {
        match body {
            PartBody::Striped(striped) => Body::Striped(striped),
            PartBody::Spilled { map } => Body::Spilled { map },
        }
    }
}

impl Engine {
    /// Starts a body for the object `name`, of `expected` bytes if that is known.
    #[must_use]
    pub fn write(&self, bucket: u64, name: &[u8], expected: Option<u64>) -> BodyWriter {
        let slot_share = self.inner.deployment.superblock.geometry.log_slot_len / 8;
        let inline_max = INLINE_LEN_MAX.min(usize::try_from(slot_share).unwrap_or(usize::MAX));
        self.body_writer(bucket, name, expected, inline_max)
    }

    /// Starts a body that goes to data extents whatever its size: a part of an upload, which
    /// [`BodyWriter::for_part`] names.
    #[must_use]
    pub fn write_part(&self, bucket: u64, name: &[u8], expected: Option<u64>) -> BodyWriter {
        self.body_writer(bucket, name, expected, 0)
    }

    fn body_writer(&self, bucket: u64, name: &[u8], expected: Option<u64>, inline_max: usize) -> BodyWriter {
        let shard = self.shard_of(bucket, name);
        let bodies = Rc::clone(&self.inner.access[usize::from(shard)].bodies);
        let owner = bodies.owner(bucket, name);
        BodyWriter { bodies, owner, shard, len: 0, inline_max, inline: Vec::new(), striped: None, expected }
    }
}

impl BodyWriter {
    /// Says which part of which upload the body is, for the extents' directories; before its first byte.
    #[must_use]
    pub fn for_part(mut self, upload: [u8; 16], number: u16) -> BodyWriter {
        debug_assert!(self.striped.is_none(), "the owner is written with the first segment");
        self.owner.part = Some((upload, number));
        self
    }

    /// Takes the next bytes. Waiting here is the backpressure the sender feels.
    ///
    /// # Errors
    /// [`EngineError::NoSpace`], [`EngineError::Body`].
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), EngineError> {
        self.len += bytes.len() as u64;
        if self.striped.is_none() {
            let large = self.expected.is_some_and(|expected| expected > self.inline_max as u64);
            if !large && self.inline.len() + bytes.len() <= self.inline_max {
                self.inline.extend_from_slice(bytes);
                return Ok(());
            }
            let mut writer = self.bodies.writer(directory::Content::Payload, self.owner.clone());
            if let Some(expected) = self.expected {
                writer.expect(expected);
            }
            writer.write(&std::mem::take(&mut self.inline)).await?;
            self.striped = Some(writer);
        }
        let writer = self.striped.as_mut().expect("it was made just now");
        Ok(writer.write(bytes).await?)
    }

    /// Ends the body. Striped bytes are durable when this returns.
    ///
    /// # Errors
    /// As [`BodyWriter::write`].
    pub async fn finish(self) -> Result<WrittenBody, EngineError> {
        let Some(writer) = self.striped else {
            if self.inline_max > 0 {
                let crcs =
                    self.inline.chunks(usize::try_from(BLOCK_CRC_LEN).expect("64 KiB")).map(crc32c).collect();
                let content = Content::Inline { bytes: self.inline, crcs };
                return Ok(WrittenBody { shard: self.shard, len: self.len, content });
            }
            // A part without a byte: nothing lies anywhere.
            let writer = self.bodies.writer(directory::Content::Payload, self.owner);
            let written = writer.finish().await?;
            let body = PartBody::Striped(Striped::from(&written.body));
            let content = Content::Striped { body, footprint: Vec::new(), leases: written.leases };
            return Ok(WrittenBody { shard: self.shard, len: 0, content });
        };
        let written = writer.finish().await?;
        let mut footprint = FootprintSum::default();
        footprint.add(&written);
        let mut leases = written.leases;
        let striped = Striped::from(&written.body);
        let body = if striped.crcs.len() > CRC_COUNT_MAX || striped.segments.len() > SEGMENT_COUNT_MAX {
            let (map, blob_leases) = write_blob(&self.bodies, self.owner, &mut footprint, &striped).await?;
            leases.append(blob_leases);
            PartBody::Spilled { map }
        } else {
            PartBody::Striped(striped)
        };
        let footprint = footprint.finish()?;
        let content = Content::Striped { body, footprint, leases };
        Ok(WrittenBody { shard: self.shard, len: self.len, content })
    }
}

/// Writes a value that is too long for the index as a body of its own.
async fn write_blob<T: Value>(
    bodies: &Rc<Bodies>,
    owner: Owner,
    footprint: &mut FootprintSum,
    value: &T,
) -> Result<(Striped, Leases), EngineError> {
    let bytes = value::encode(value);
    let mut writer = bodies.writer(directory::Content::Blob, owner);
    writer.expect(bytes.len() as u64);
    writer.write(&bytes).await?;
    let written = writer.finish().await?;
    footprint.add(&written);
    Ok((Striped::from(&written.body), written.leases))
}

/// Live bytes per extent, summed up.
#[derive(Default)]
struct FootprintSum {
    /// Column bytes and end block by extent.
    extents: BTreeMap<u64, (u64, u32)>,
}

impl FootprintSum {
    /// A segment's directory chunk lives and dies with it.
    fn add(&mut self, written: &Written) {
        for (segment, &blocks) in written.body.segments.iter().zip(&written.segment_blocks) {
            let sum = self.extents.entry(segment.extent.0).or_insert((0, 0));
            sum.0 += u64::from(blocks) * BLOCK_LEN as u64;
            sum.1 = sum.1.max(segment.block + blocks);
        }
    }

    fn merge(&mut self, prints: &[Footprint]) {
        for print in prints {
            let sum = self.extents.entry(print.extent).or_insert((0, 0));
            sum.0 += print.bytes;
            sum.1 = sum.1.max(print.end_block);
        }
    }

    fn finish(self) -> Result<Vec<Footprint>, EngineError> {
        if self.extents.len() > FOOTPRINT_COUNT_MAX {
            return Err(EngineError::NoSpace);
        }
        Ok(self
            .extents
            .into_iter()
            .map(|(extent, (bytes, end_block))| Footprint { extent, bytes, end_block })
            .collect())
    }
}

/// The body of an object made of parts, and the blob it needed, if any.
pub(super) struct Assembled {
    pub(super) body: Body,
    pub(super) footprint: Vec<Footprint>,
    /// What the blob adds to the live bytes.
    pub(super) blobs: Vec<Footprint>,
    pub(super) leases: Option<Leases>,
}

/// Forms the body of a completed upload from its parts and their footprints.
pub(super) async fn assemble(
    bodies: &Rc<Bodies>,
    owner: Owner,
    parts: Vec<Part>,
    footprints: &[Vec<Footprint>],
) -> Result<Assembled, EngineError> {
    let mut total = FootprintSum::default();
    for prints in footprints {
        total.merge(prints);
    }
    if parts.archive().len() <= PARTS_LEN_MAX {
        let footprint = total.finish()?;
        return Ok(Assembled { body: Body::Parts(parts), footprint, blobs: Vec::new(), leases: None });
    }
    let mut blob = FootprintSum::default();
    let (map, leases) = write_blob(bodies, owner, &mut blob, &parts).await?;
    let blobs = blob.finish()?;
    total.merge(&blobs);
    Ok(Assembled {
        body: Body::SpilledParts { map },
        footprint: total.finish()?,
        blobs,
        leases: Some(leases),
    })
}

/// Gives a pin back when the last reader of it is gone.
struct Pin {
    engine: Engine,
    shard: u16,
    id: u64,
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.engine.tell(self.shard, Ask::Unpin(self.id));
    }
}

/// An object open for reading.
pub struct ObjectReader {
    object: Object,
    inline: Option<InlineBody>,
    shard: u16,
    engine: Engine,
    places: Rc<RefCell<BTreeMap<ExtentId, Rc<Placement>>>>,
    _pin: Rc<Pin>,
}

impl ObjectReader {
    pub(super) fn new(engine: &Engine, shard: u16, found: Found) -> Result<ObjectReader, EngineError> {
        // First the pin, so that it goes back whatever happens below.
        let id = found.pin.ok_or_else(|| EngineError::Damaged("a lookup came without its pin".to_owned()))?;
        let pin = Rc::new(Pin { engine: engine.clone(), shard, id });
        let object = value::decode::<Object>(&found.value)?;
        let inline = match &object.body {
            Body::Inline { crcs } => value::inline_place(&found.value).map(|place| InlineBody {
                extent: place.extent,
                offset: place.offset,
                len: place.len,
                crcs: crcs.clone(),
            }),
            _ => None,
        };
        let places = found.placements.into_iter().map(|place| (place.id, Rc::new(place))).collect();
        Ok(ObjectReader {
            object,
            inline,
            shard,
            engine: engine.clone(),
            places: Rc::new(RefCell::new(places)),
            _pin: pin,
        })
    }

    #[must_use]
    pub fn object(&self) -> &Object {
        &self.object
    }

    /// Offset and length of part `number` (1 is the first) of an object put in parts; `None` beyond the last.
    ///
    /// # Errors
    /// [`EngineError::Body`] when the list of parts cannot be read.
    pub async fn part_extent(&self, number: u16) -> Result<Option<Range<u64>>, EngineError> {
        let mut offset = 0;
        for part in self.parts().await?.iter() {
            let end = offset + part.len;
            if part.number == number {
                return Ok(Some(offset..end));
            }
            offset = end;
        }
        Ok(None)
    }

    /// The parts of an object put in parts, in order; empty for any other.
    ///
    /// # Errors
    /// [`EngineError::Body`] when the list of parts cannot be read.
    pub async fn parts(&self) -> Result<Vec<Part>, EngineError> {
        match &self.object.body {
            Body::Parts(parts) => Ok(parts.clone()),
            Body::SpilledParts { map } => self.read_blob(map).await,
            _ => Ok(Vec::new()),
        }
    }

    /// Starts reading bytes `range` of the object.
    ///
    /// # Errors
    /// [`EngineError::Body`], [`EngineError::Damaged`].
    ///
    /// # Panics
    /// If `range` reaches beyond the object; the caller resolved it against the length.
    pub async fn read(&self, range: Range<u64>) -> Result<BodyReader, EngineError> {
        assert!(range.start <= range.end && range.end <= self.object.len, "a range beyond the object");
        let mut reader = BodyReader {
            bodies: Rc::clone(&self.engine.inner.access[usize::from(self.shard)].bodies),
            engine: self.engine.clone(),
            places: Rc::clone(&self.places),
            shard: self.shard,
            pieces: VecDeque::new(),
            current: None,
            failed: Cell::new(false),
            _pin: Rc::clone(&self._pin),
        };
        if range.is_empty() {
            return Ok(reader);
        }
        match &self.object.body {
            Body::Inline { .. } => {
                let inline = self.inline.clone().ok_or_else(|| {
                    EngineError::Damaged("an inline body has no place in the log".to_owned())
                })?;
                reader.pieces.push_back(Piece::Inline(inline, range));
            }
            Body::Striped(striped) => {
                reader.pieces.push_back(Piece::Part(PartBody::Striped(striped.clone()), range));
            }
            Body::Spilled { map } => {
                reader.pieces.push_back(Piece::Part(PartBody::Spilled { map: map.clone() }, range));
            }
            Body::Parts(_) | Body::SpilledParts { .. } => {
                let mut offset = 0;
                for part in self.parts().await? {
                    let end = offset + part.len;
                    let overlap = range.start.max(offset)..range.end.min(end);
                    if overlap.start < overlap.end {
                        let inside = overlap.start - offset..overlap.end - offset;
                        reader.pieces.push_back(Piece::Part(part.body, inside));
                    }
                    offset = end;
                }
            }
        }
        Ok(reader)
    }

    /// The shard that owns the object.
    #[must_use]
    pub fn shard(&self) -> u16 {
        self.shard
    }

    /// Where `extent`, one of the object's footprint, lies, and what it says of itself.
    ///
    /// # Errors
    /// [`EngineError::Damaged`] when it has no place.
    pub async fn walk(&self, extent: ExtentId) -> Result<(Rc<Placement>, ExtentDirectory), EngineError> {
        let bodies = &self.engine.inner.access[usize::from(self.shard)].bodies;
        let place = place_of(&self.engine, self.shard, &self.places, extent).await?;
        let directory = bodies.walk(&place).await;
        Ok((place, directory))
    }

    async fn read_blob<T: Value>(&self, map: &Striped) -> Result<T, EngineError> {
        let bodies = &self.engine.inner.access[usize::from(self.shard)].bodies;
        read_blob(&self.engine, bodies, self.shard, &self.places, map).await
    }
}

enum Piece {
    Inline(InlineBody, Range<u64>),
    Part(PartBody, Range<u64>),
}

/// A range of an object on its way out, verified, in order.
pub struct BodyReader {
    engine: Engine,
    bodies: Rc<Bodies>,
    shard: u16,
    places: Rc<RefCell<BTreeMap<ExtentId, Rc<Placement>>>>,
    pieces: VecDeque<Piece>,
    current: Option<Reader>,
    failed: Cell<bool>,
    _pin: Rc<Pin>,
}

impl BodyReader {
    /// The next bytes; `None` at the end, or after an error.
    ///
    /// # Errors
    /// [`EngineError::Body`] when bytes are lost beyond what redundancy can restore.
    pub async fn next(&mut self) -> Option<Result<Slice, EngineError>> {
        if self.failed.get() {
            return None;
        }
        let result = self.advance().await.transpose();
        self.failed.set(matches!(result, Some(Err(_))));
        result
    }

    async fn advance(&mut self) -> Result<Option<Slice>, EngineError> {
        loop {
            if let Some(reader) = &mut self.current {
                if let Some(bytes) = reader.next().await {
                    return Ok(Some(bytes?));
                }
                self.current = None;
            }
            let Some(piece) = self.pieces.pop_front() else { return Ok(None) };
            match piece {
                Piece::Inline(body, range) => {
                    let place = place_of(&self.engine, self.shard, &self.places, body.extent).await?;
                    let range = narrow(&range)?;
                    let damage = self.engine.note_damage();
                    let bytes = self.bodies.read_inline(&place, &body, range, &damage).await?;
                    return Ok(Some(bytes));
                }
                Piece::Part(PartBody::Striped(striped), range) => self.start(&striped, range).await?,
                Piece::Part(PartBody::Spilled { map }, range) => {
                    let striped: Striped =
                        read_blob(&self.engine, &self.bodies, self.shard, &self.places, &map).await?;
                    self.start(&striped, range).await?;
                }
            }
        }
    }

    async fn start(&mut self, striped: &Striped, range: Range<u64>) -> Result<(), EngineError> {
        self.current =
            Some(reader(&self.engine, &self.bodies, self.shard, &self.places, striped, range).await?);
        Ok(())
    }
}

fn narrow(range: &Range<u64>) -> Result<Range<u32>, EngineError> {
    let fit = |at: u64| {
        u32::try_from(at).map_err(|_| EngineError::Damaged("an inline body beyond 4 GiB".to_owned()))
    };
    Ok(fit(range.start)?..fit(range.end)?)
}

type KnownPlaces = Rc<RefCell<BTreeMap<ExtentId, Rc<Placement>>>>;

async fn place_of(
    engine: &Engine,
    shard: u16,
    places: &KnownPlaces,
    extent: ExtentId,
) -> Result<Rc<Placement>, EngineError> {
    learn(engine, shard, places, &[extent]).await?;
    places
        .borrow()
        .get(&extent)
        .cloned()
        .ok_or_else(|| EngineError::Damaged(format!("extent {} has no place", extent.0)))
}

/// Asks the shard for the places of extents that the pin covers but the lookup did not name.
async fn learn(
    engine: &Engine,
    shard: u16,
    places: &KnownPlaces,
    extents: &[ExtentId],
) -> Result<(), EngineError> {
    let unknown = {
        let places = places.borrow();
        extents.iter().copied().filter(|id| !places.contains_key(id)).collect::<Vec<_>>()
    };
    if unknown.is_empty() {
        return Ok(());
    }
    let Reply::Places(found) = engine.ask(shard, Ask::Place { extents: unknown }).await? else {
        return Err(EngineError::Closed);
    };
    places.borrow_mut().extend(found.into_iter().map(|place| (place.id, Rc::new(place))));
    Ok(())
}

async fn reader(
    engine: &Engine,
    bodies: &Rc<Bodies>,
    shard: u16,
    places: &KnownPlaces,
    striped: &Striped,
    range: Range<u64>,
) -> Result<Reader, EngineError> {
    let body = StripedBody::from(striped);
    let extents = body.segments.iter().map(|segment| segment.extent).collect::<Vec<_>>();
    learn(engine, shard, places, &extents).await?;
    let known = Rc::clone(places);
    let find: crate::body::Places = Rc::new(move |extent| known.borrow().get(&extent).cloned());
    Ok(bodies.reader(Rc::new(body), range, find, engine.note_damage())?)
}

async fn read_blob<T: Value>(
    engine: &Engine,
    bodies: &Rc<Bodies>,
    shard: u16,
    places: &KnownPlaces,
    map: &Striped,
) -> Result<T, EngineError> {
    if map.len > BLOB_LEN_MAX {
        return Err(EngineError::Damaged(format!("a blob of {} bytes", map.len)));
    }
    let mut reader = reader(engine, bodies, shard, places, map, 0..map.len).await?;
    let mut bytes = Vec::with_capacity(usize::try_from(map.len).unwrap_or(0));
    while let Some(slice) = reader.next().await {
        bytes.extend_from_slice(&slice?);
    }
    Ok(value::decode(&bytes)?)
}
