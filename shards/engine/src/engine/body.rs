//! Bodies as the connection's core reads them: while a pin keeps them, in memory that was reserved before.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::rc::Rc;

use basalt_reactor::Slice;

use super::{BodyWriter, Engine};
use crate::body::walk::ExtentDirectory;
use crate::body::{Bodies, InlineBody, PackedBody, ReadMemory, Reader, StripedBody};
use crate::error::EngineError;
use crate::extent::{ExtentId, Placement};
use crate::format::part_list::PartSpan;
use crate::request::{Ask, Reply};
use crate::shard::mutate::Found;
use crate::value::{self, Body, Object, Part, PartBody, Striped, Value};

/// Longest blob that is read into memory, bytes: the parts of an object of 5 TiB.
const BLOB_LEN_MAX: u64 = 64 << 20;

/// Gives a pin back when the last reader of it is gone.
struct Pin {
    engine: Engine,
    shard: u16,
    id: u64,
}

impl Drop for Pin {
    fn drop(&mut self) {
        match self.engine.own_shard(self.shard) {
            Some(shard) => shard.unpin(self.id),
            None => self.engine.tell(self.shard, Ask::Unpin(self.id)),
        }
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
        let object = found.object;
        let inline = match &object.body {
            Body::Inline { crcs } => found.inline.map(|place| InlineBody {
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
    /// [`EngineError::Body`] when the list of parts cannot be read, [`EngineError::Busy`] when memory for it is spent and stays
    /// so for a while.
    pub async fn part_extent(&self, number: u16) -> Result<Option<Range<u64>>, EngineError> {
        // A list that lies on the disks may be long: as long as it is held, it counts.
        let memory = match &self.object.body {
            Body::SpilledParts { .. } => Some(self.admit(&(0..0)).await?),
            _ => None,
        };
        let mut offset = 0;
        for part in self.spans_in(memory.clone()).await? {
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
    pub async fn parts(&self) -> Result<Vec<PartSpan>, EngineError> {
        self.spans_in(None).await
    }

    async fn spans_in(&self, memory: Option<Rc<ReadMemory>>) -> Result<Vec<PartSpan>, EngineError> {
        if let Some(merged) = self.object.merged_parts()? {
            return Ok(merged);
        }
        Ok(self.parts_in(memory).await?.into_iter().map(PartSpan::from).collect())
    }

    async fn parts_in(&self, memory: Option<Rc<ReadMemory>>) -> Result<Vec<Part>, EngineError> {
        match &self.object.body {
            Body::Parts(parts) => Ok(parts.clone()),
            Body::SpilledParts { map } => {
                read_blob(&self.engine, self.bodies(), self.shard, &self.places, map, memory).await
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Reserves the memory that reading bytes `range` takes: with it the read can be finished, whatever others do. It is to be
    /// kept until the last byte has been sent.
    ///
    /// # Errors
    /// [`EngineError::Busy`] when memory is spent and stays so for a while.
    pub async fn admit(&self, range: &Range<u64>) -> Result<Rc<ReadMemory>, EngineError> {
        let len = range.end - range.start;
        self.bodies().admit_reader(len, self.body_len(), self.maps_len()).await.ok_or(EngineError::Busy)
    }

    /// As [`ObjectReader::admit`] and [`BodyWriter::admit`] at once, for a copy: two steps could wait for each other.
    ///
    /// # Errors
    /// As [`ObjectReader::admit`].
    pub async fn admit_copy(
        &self,
        range: &Range<u64>,
        mut into: BodyWriter,
    ) -> Result<(Rc<ReadMemory>, BodyWriter), EngineError> {
        let len = range.end - range.start;
        let (read, write) = self
            .bodies()
            .admit_copy(len, self.body_len(), self.maps_len(), into.memory_len())
            .await
            .ok_or(EngineError::Busy)?;
        into.admitted(write);
        Ok((read, into))
    }

    /// Bytes of what is read at most: where a packed object is damaged, that is its pack.
    fn body_len(&self) -> u64 {
        match &self.object.body {
            Body::Packed(packed) => packed.pack.len,
            _ => self.object.len,
        }
    }

    /// Bytes of the lists of places and checksums that are held while the object is read: as read, and decoded.
    fn maps_len(&self) -> usize {
        let part_len = |part: &PartBody| match part {
            PartBody::Striped(_) => 0,
            PartBody::Spilled { map } => map.len,
        };
        let len = match &self.object.body {
            Body::Inline { .. } | Body::Striped(_) | Body::Packed(_) => 0,
            Body::Spilled { map } | Body::SpilledParts { map } => map.len,
            Body::Parts(parts) => parts.iter().map(|part| part_len(&part.body)).max().unwrap_or(0),
        };
        usize::try_from(len.saturating_mul(2)).unwrap_or(usize::MAX)
    }

    fn bodies(&self) -> &Rc<Bodies> {
        &self.engine.access(self.shard).bodies
    }

    /// Starts reading bytes `range` of the object, in memory that the reader waits for itself.
    ///
    /// # Errors
    /// As [`ObjectReader::read_in`].
    ///
    /// # Panics
    /// As [`ObjectReader::read_in`].
    pub async fn read(&self, range: Range<u64>) -> Result<BodyReader, EngineError> {
        self.start(range, None).await
    }

    /// Starts reading bytes `range` of the object in `memory`, which was reserved for it.
    ///
    /// # Errors
    /// [`EngineError::Body`], [`EngineError::Damaged`].
    ///
    /// # Panics
    /// If `range` reaches beyond the object; the caller resolved it against the length.
    pub async fn read_in(
        &self,
        range: Range<u64>,
        memory: &Rc<ReadMemory>,
    ) -> Result<BodyReader, EngineError> {
        self.start(range, Some(Rc::clone(memory))).await
    }

    async fn start(
        &self,
        range: Range<u64>,
        memory: Option<Rc<ReadMemory>>,
    ) -> Result<BodyReader, EngineError> {
        assert!(range.start <= range.end && range.end <= self.object.len, "a range beyond the object");
        let mut reader = BodyReader {
            bodies: Rc::clone(self.bodies()),
            memory,
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
            Body::Packed(packed) => {
                let len = narrow(self.object.len)?;
                reader.pieces.push_back(Piece::Packed(packed.body(len), range));
            }
            Body::Striped(striped) => {
                reader.pieces.push_back(Piece::Part(PartBody::Striped(striped.clone()), range));
            }
            Body::Spilled { map } => {
                reader.pieces.push_back(Piece::Part(PartBody::Spilled { map: map.clone() }, range));
            }
            Body::Parts(_) | Body::SpilledParts { .. } => {
                let mut offset = 0;
                for part in self.parts_in(reader.memory.clone()).await? {
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
        let place = place_of(&self.engine, self.shard, &self.places, extent).await?;
        let directory = self.bodies().walk(&place).await;
        Ok((place, directory))
    }
}

enum Piece {
    Inline(InlineBody, Range<u64>),
    Packed(PackedBody, Range<u64>),
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
    memory: Option<Rc<ReadMemory>>,
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
                    let range = narrow(range.start)?..narrow(range.end)?;
                    let on_damage = &self.engine.access(self.shard).on_damage;
                    let bytes = self.bodies.read_inline(&place, &body, range, on_damage).await?;
                    return Ok(Some(bytes));
                }
                Piece::Packed(body, range) => {
                    let Some(segment) = body.pack.segments.first() else {
                        return Err(EngineError::Damaged("a pack has no place".to_owned()));
                    };
                    let place = place_of(&self.engine, self.shard, &self.places, segment.extent).await?;
                    let range = narrow(range.start)?..narrow(range.end)?;
                    if let Some(bytes) = self.bodies.read_packed(&place, &body, range.clone()).await? {
                        return Ok(Some(bytes));
                    }
                    let known = Rc::clone(&self.places);
                    let find: crate::body::Places =
                        Rc::new(move |extent| known.borrow().get(&extent).cloned());
                    let on_damage = Rc::clone(&self.engine.access(self.shard).on_damage);
                    let memory = self.memory.clone();
                    self.current = Some(self.bodies.packed_reader(&body, range, find, on_damage, memory)?);
                }
                Piece::Part(PartBody::Striped(striped), range) => self.start(&striped, range).await?,
                Piece::Part(PartBody::Spilled { map }, range) => {
                    let memory = self.memory.clone();
                    let striped: Striped =
                        read_blob(&self.engine, &self.bodies, self.shard, &self.places, &map, memory).await?;
                    self.start(&striped, range).await?;
                }
            }
        }
    }

    async fn start(&mut self, striped: &Striped, range: Range<u64>) -> Result<(), EngineError> {
        let memory = self.memory.clone();
        self.current =
            Some(reader(&self.engine, &self.bodies, self.shard, &self.places, striped, range, memory).await?);
        Ok(())
    }
}

fn narrow(at: u64) -> Result<u32, EngineError> {
    u32::try_from(at).map_err(|_| EngineError::Damaged("a small body beyond 4 GiB".to_owned()))
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
    memory: Option<Rc<ReadMemory>>,
) -> Result<Reader, EngineError> {
    let body = StripedBody::from(striped);
    let extents = body.segments.iter().map(|segment| segment.extent).collect::<Vec<_>>();
    learn(engine, shard, places, &extents).await?;
    let known = Rc::clone(places);
    let find: crate::body::Places = Rc::new(move |extent| known.borrow().get(&extent).cloned());
    let on_damage = Rc::clone(&engine.access(shard).on_damage);
    Ok(bodies.reader(Rc::new(body), range, find, on_damage, memory)?)
}

async fn read_blob<T: Value>(
    engine: &Engine,
    bodies: &Rc<Bodies>,
    shard: u16,
    places: &KnownPlaces,
    map: &Striped,
    memory: Option<Rc<ReadMemory>>,
) -> Result<T, EngineError> {
    if map.len > BLOB_LEN_MAX {
        return Err(EngineError::Damaged(format!("a blob of {} bytes", map.len)));
    }
    let mut reader = reader(engine, bodies, shard, places, map, 0..map.len, memory).await?;
    let mut bytes = Vec::with_capacity(usize::try_from(map.len).unwrap_or(0));
    while let Some(slice) = reader.next().await {
        bytes.extend_from_slice(&slice?);
    }
    Ok(value::decode(&bytes)?)
}
