//! Moving small objects: many of them into one pack, a striped body with its list, in one long write.
//!
//! An object of 4 KiB in a stripe of its own would take a block in every column and a directory chunk; in a pack it takes what
//! redundancy costs and little more. Where no data extent can be had, a small object is logged anew instead: that also
//! empties a log extent, and needs nothing but the log.

use basalt_reactor::disk::BLOCK_LEN;

use super::Collector;
use crate::body::directory::{self, Content};
use crate::body::{BodyError, Written};
use crate::checksum::crc32c;
use crate::error::EngineError;
use crate::format::pack::{self, EMPTY_LIST_LEN, PACK_COUNT_MAX, PACK_LEN_MAX, PackItem};
use crate::format::record::{InlineSpan, Record};
use crate::mutant::Mutant;
use crate::shard::commit::Change;
use crate::shard::mutate::{LeaseGuard, LeaseUse, deltas_of_death};
use crate::value::{self, Body, Footprint, Object, Packed, Striped};

/// Records of moves in one batch, and keys locked at one time.
const GROUP_COUNT_MAX: usize = 32;

/// Bytes of records and payload of such a group; far below any batch limit.
const GROUP_LEN_MAX: usize = 96 << 10;

/// A small object on its way to another place.
pub(super) struct SmallObject {
    key: Vec<u8>,
    /// Its value as it was found.
    value: Vec<u8>,
    object: Object,
    crcs: Vec<u32>,
    bytes: Vec<u8>,
}

impl SmallObject {
    /// # Errors
    /// [`EngineError::Damaged`] when the bytes are not those of the value.
    pub(super) fn new(key: &[u8], value: &[u8], bytes: &[u8]) -> Result<SmallObject, EngineError> {
        let object = value::decode::<Object>(value)?;
        let crcs = match &object.body {
            Body::Inline { crcs } => crcs.clone(),
            Body::Packed(packed) => packed.crcs.clone(),
            _ => return Err(EngineError::Damaged("a small object has a large body".to_owned())),
        };
        let block_len = usize::try_from(crate::body::layout::BLOCK_CRC_LEN).expect("64 KiB");
        if object.len != bytes.len() as u64 || !bytes.chunks(block_len).map(crc32c).eq(crcs.iter().copied()) {
            return Err(EngineError::Damaged("a small object does not have its checksum".to_owned()));
        }
        Ok(SmallObject { key: key.to_vec(), value: value.to_vec(), object, crcs, bytes: bytes.to_vec() })
    }

    /// Its value with the body in the log, at a place that is not known yet.
    fn inline(&self) -> Object {
        let body = Body::Inline { crcs: self.crcs.clone() };
        Object { body, footprint: Vec::new(), ..self.object.clone() }
    }
}

/// Collects small objects until they fill a pack.
pub(super) struct Packer<'a> {
    collector: &'a Collector,
    objects: Vec<(SmallObject, PackItem)>,
    bytes_len: usize,
    listed_len: usize,
    len_max: usize,
}

impl<'a> Packer<'a> {
    pub(super) fn new(collector: &'a Collector) -> Packer<'a> {
        let len_max = collector.pack_len_max();
        Packer { collector, objects: Vec::new(), bytes_len: 0, listed_len: EMPTY_LIST_LEN, len_max }
    }

    /// Takes one more; writes what there is first if it does not fit.
    pub(super) async fn add(&mut self, object: SmallObject) -> Result<(), EngineError> {
        let value = value::encode(&object.inline());
        let listed_len = pack::listed_len(object.key.len(), value.len());
        let own_len = object.bytes.len() + listed_len;
        if self.bytes_len + self.listed_len + own_len > self.len_max || self.objects.len() == PACK_COUNT_MAX {
            self.flush().await?;
        }
        if self.objects.is_empty() {
            // What is left of the open extent holds a shorter one, if this object fits.
            let room = self.collector.pack_room().filter(|&room| room >= EMPTY_LIST_LEN + own_len);
            let len_max = self.collector.pack_len_max();
            self.len_max = room.map_or(len_max, |room| room.min(len_max));
        }
        let offset = u32::try_from(self.bytes_len).expect("a pack is at most 1 MiB");
        let item_len = u32::try_from(object.bytes.len()).expect("a small object is at most 64 KiB");
        let item = PackItem { key: object.key.clone(), value, offset, len: item_len };
        self.bytes_len += object.bytes.len();
        self.listed_len += listed_len;
        self.objects.push((object, item));
        Ok(())
    }

    /// Writes a pack of what there is, and moves the objects there.
    pub(super) async fn flush(&mut self) -> Result<(), EngineError> {
        let objects = std::mem::take(&mut self.objects);
        let len = self.bytes_len + self.listed_len;
        (self.bytes_len, self.listed_len) = (0, EMPTY_LIST_LEN);
        if objects.is_empty() {
            return Ok(());
        }
        let collector = self.collector;
        let (objects, items): (Vec<_>, Vec<_>) = objects.into_iter().unzip();
        match collector.write_pack(&objects, &items, len).await {
            Ok(written) => collector.move_to_pack(objects, &items, written, len).await?,
            Err(EngineError::NoSpace) => collector.log_again(objects).await?,
            Err(error) => return Err(error),
        }
        collector.rest().await;
        Ok(())
    }
}

impl Collector {
    /// Bytes of the longest pack, list included.
    fn pack_len_max(&self) -> usize {
        let geometry = self.shard.files.geometry();
        // On tiny extents several packs share one, so that little is left at its end.
        let share = usize::try_from(geometry.data_slot_len * u64::from(geometry.k) / 8).unwrap_or(usize::MAX);
        PACK_LEN_MAX.min(share)
    }

    /// Bytes of the longest pack that what is left of the open extent holds, unless that is hardly worth a chunk.
    pub(super) fn pack_room(&self) -> Option<usize> {
        let geometry = self.shard.files.geometry();
        let room = u64::from(self.shard.collection_room()) * BLOCK_LEN as u64;
        let room = directory::stripes_room(geometry, 0, room) * u64::from(geometry.k);
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        (room >= self.pack_len_max() / 16).then_some(room)
    }

    async fn write_pack(
        &self,
        objects: &[SmallObject],
        items: &[PackItem],
        len: usize,
    ) -> Result<Written, EngineError> {
        let bodies = &self.bodies;
        let owner = bodies.owner(0, b"");
        let memory = bodies.admit(bodies.writer_len(Some(len as u64), 0)).await.ok_or(EngineError::Busy)?;
        let mut writer = bodies.writer(Content::Pack, owner).in_memory(Some(memory)).contiguous();
        writer.expect(len as u64);
        for object in objects {
            writer.write(&object.bytes).await?;
        }
        writer.write(&pack::encode_list(items)).await?;
        Ok(writer.finish().await?)
    }

    async fn move_to_pack(
        &self,
        objects: Vec<SmallObject>,
        items: &[PackItem],
        written: Written,
        len: usize,
    ) -> Result<(), EngineError> {
        let (&[segment], &[blocks]) = (written.body.segments.as_slice(), written.segment_blocks.as_slice())
        else {
            return Err(BodyError::Malformed { what: "a pack of several segments" }.into());
        };
        let uses = written.leases.keep().into_iter();
        let uses = uses.map(|lease| LeaseUse { id: lease.id, blocks: lease.used_blocks }).collect();
        let leases = LeaseGuard::new(&self.shard, uses);
        let pack = Striped::from(&written.body);
        let moves = objects.into_iter().zip(items).map(|(object, item)| {
            let bytes = item.share(u64::from(blocks) * BLOCK_LEN as u64, len as u64);
            let end_block = segment.block + blocks;
            let footprint = Footprint { extent: segment.extent.0, bytes, end_block };
            let packed = Packed { pack: pack.clone(), offset: item.offset.into(), crcs: object.crcs.clone() };
            let body = Body::Packed(Box::new(packed));
            let moved = Object { body, footprint: vec![footprint], ..object.object.clone() };
            (object, moved)
        });
        let (moved_count, result) = self.commit_moves(moves.collect()).await;
        // The pack is some object's as soon as one group is in, whatever became of those behind it.
        if moved_count > 0 {
            leases.committed();
        }
        result
    }

    /// Moves objects to the head of the log.
    async fn log_again(&self, objects: Vec<SmallObject>) -> Result<(), EngineError> {
        // What is already striped gains nothing there.
        let logged = objects.into_iter().filter(|object| matches!(object.object.body, Body::Inline { .. }));
        let moves = logged.map(|object| {
            let moved = object.inline();
            (object, moved)
        });
        let moves: Vec<(SmallObject, Object)> = moves.collect();
        let own_len = |(object, moved): &(SmallObject, Object)| {
            object.key.len() + value::encode(moved).len() + object.bytes.len()
        };
        let len: usize = moves.iter().map(own_len).sum();
        self.logged_len.set(self.logged_len.get() + len as u64);
        if moves.is_empty() {
            return Err(EngineError::NoSpace);
        }
        self.commit_moves(moves).await.1
    }

    /// Commits moves in groups, until one fails; says how many came in time before that.
    async fn commit_moves(&self, moves: Vec<(SmallObject, Object)>) -> (usize, Result<(), EngineError>) {
        let mut moved_count = 0;
        let mut group = Vec::new();
        let mut group_len = 0;
        for (object, moved) in moves {
            let value = value::encode(&moved);
            let len = object.key.len() + value.len() + object.bytes.len();
            if group.len() == GROUP_COUNT_MAX || (group_len + len > GROUP_LEN_MAX && !group.is_empty()) {
                match self.commit_group(std::mem::take(&mut group)).await {
                    Ok(count) => moved_count += count,
                    Err(error) => return (moved_count, Err(error)),
                }
                group_len = 0;
            }
            group_len += len;
            group.push((object, moved, value));
        }
        match self.commit_group(group).await {
            Ok(count) => (moved_count + count, Ok(())),
            Err(error) => (moved_count, Err(error)),
        }
    }

    async fn commit_group(
        &self,
        mut group: Vec<(SmallObject, Object, Vec<u8>)>,
    ) -> Result<usize, EngineError> {
        if group.is_empty() {
            return Ok(0);
        }
        self.await_index().await;
        self.await_log().await?;
        // Nobody else holds the lock of one object while waiting for that of another, so any order would do.
        group.sort_by(|(a, ..), (b, ..)| a.key.cmp(&b.key));
        let mut locks = Vec::with_capacity(group.len());
        for (object, ..) in &group {
            locks.push(self.shard.locks.lock(&object.key).await);
        }
        let mut change = Change::default();
        let mut bytes_len = 0;
        let mut outrun_count = 0;
        for (object, moved, value) in group {
            let current = self.shard.index.get(&object.key).await?;
            if current.as_deref() != Some(&*object.value) && !Mutant::MovesUnchecked.is_active() {
                outrun_count += 1;
                continue;
            }
            let mut deltas = value::deltas_of(&moved.footprint, true).collect::<Vec<_>>();
            deltas.extend(deltas_of_death(&object.object.footprint, &object.value));
            bytes_len += object.bytes.len();
            let inline = matches!(moved.body, Body::Inline { .. }).then(|| {
                let offset = u32::try_from(change.payload.len()).expect("a group is short");
                InlineSpan { offset, len: u32::try_from(object.bytes.len()).expect("at most 64 KiB") }
            });
            if inline.is_some() {
                change.payload.extend_from_slice(&object.bytes);
            }
            change.records.push(Record::Put { key: object.key, value, inline, deltas });
        }
        let moved_count = change.records.len();
        if moved_count > 0 {
            self.shard.commit(change).await?;
        }
        drop(locks);
        self.shard.collection.count(|counters| {
            counters.moved_len += bytes_len as u64;
            counters.moved_count += moved_count as u64;
            counters.outrun_count += outrun_count;
        });
        Ok(moved_count)
    }
}
