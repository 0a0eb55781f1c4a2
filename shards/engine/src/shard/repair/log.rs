//! Repair of log extents: batches that one replica has whole are copied to those that have not.
//!
//! Batches lie one behind the other, and each says how long it is and has checksums over all of it; so an extent needs no
//! index to be verified, only its nonce. Which damage matters is another question: batches that recovery may still replay, and
//! those that hold the body of an object. What a crash left behind of a batch that was written again elsewhere does not.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;

use basalt_reactor::arena::BUF_LEN_MAX;
use basalt_reactor::disk::BLOCK_LEN;
use basalt_reactor::{Buf, Slice};

use crate::body::{Damage, Fault, Mended};
use crate::checksum::crc32c;
use crate::extent::{Column, ExtentClass, ExtentId, Placement};
use crate::format::batch::{BATCH_HEADER_LEN, BATCH_LEN_MAX, BatchHeader};
use crate::format::log_header::LogHeader;
use crate::format::record::Record;
use crate::log::LOG_HEADER_LEN;
use crate::shard::Shard;
use crate::shard::scrub::pace::Pace;
use crate::value;

// A batch fits one read.
const _: () = assert!(BATCH_LEN_MAX <= BUF_LEN_MAX);

/// A log extent under repair.
struct Extent {
    placement: Rc<Placement>,
    nonce: [u8; 16],
    /// Where the batches end that are durable on every replica; the slot's end where nobody knows.
    end: u64,
    /// From here on recovery replays; the slot's end if it replays none of it.
    needed_from: u64,
}

/// What one replica holds.
#[derive(Default)]
struct Replica {
    header: Option<LogHeader>,
    /// Whole batches by where they begin.
    batches: BTreeMap<u64, BatchHeader>,
}

/// How a scan of a replica ended.
enum Scan {
    Ended(Replica),
    /// Its disk is out, or does not answer.
    NoAnswer,
    /// The shard has failed.
    Stopped,
}

/// A run of an extent that some replicas lack, with what it must hold.
struct Cure {
    offset: u64,
    bytes: Slice,
    lacking: Vec<usize>,
}

impl Shard {
    /// Verifies every replica of a log extent and mends what matters. `met` is where a reader met damage: it is counted as
    /// lost if no replica has it. The extent may be freed meanwhile, or be of no use any more; then nothing is done.
    pub(in crate::shard) async fn mend_log(
        self: &Rc<Self>,
        extent: ExtentId,
        met: Option<Range<u64>>,
        pace: &Pace,
    ) -> bool {
        let Some(extent) = self.log_extent(extent) else { return false };
        let mut replicas = Vec::with_capacity(extent.placement.columns.len());
        for &column in &extent.placement.columns {
            if self.files.locate_readable(ExtentClass::Log, column).is_none() {
                replicas.push(None);
                continue;
            }
            match self.scan_log(&extent, column, pace).await {
                Scan::Ended(replica) => replicas.push(Some(replica)),
                Scan::NoAnswer => replicas.push(None),
                Scan::Stopped => return false,
            }
        }
        let turn = self.repairs.turn().await;
        // That it can be pinned now shows that it was there all the while: ids are never used twice.
        let Some(pin) = self.pin_guard(extent.placement.id) else { return false };
        let mut mended = Mended::default();
        let cures = self.examine(&extent, &replicas, met, &mut mended).await;
        let (shard, placement) = (Rc::clone(self), Rc::clone(&extent.placement));
        // A task of its own: see `mend_row`.
        let task = self.core.spawn(async move {
            for cure in cures {
                for &index in &cure.lacking {
                    let column = placement.columns[index];
                    let damage = damage(&placement, index, cure.offset, cure.bytes.len());
                    let spare = shard.core.arena().alloc(cure.bytes.len()).await;
                    let place = (ExtentClass::Log, column, cure.offset);
                    let rewrite = shard.files.rewrite(&shard.core, place, cure.bytes.clone(), spare);
                    let (written, _) = rewrite.await;
                    mended.note(damage, column, written);
                }
            }
            drop((pin, turn));
            mended
        });
        let mended = task.await.unwrap_or_default();
        self.note_mended(&mended, &extent.placement);
        !mended.unrepairable.is_empty()
    }

    /// The extent as it is now, if anything in it matters.
    fn log_extent(&self, id: ExtentId) -> Option<Extent> {
        let slot_len = self.files.geometry().log_slot_len;
        let extents = self.space.extents.borrow();
        let extent = extents.get(id).filter(|extent| extent.placement.class == ExtentClass::Log)?;
        let needed_from = match self.root.borrow().log {
            log if log.extent == id => u64::from(log.offset),
            log if log.extent < id => 0,
            _ => slot_len,
        };
        if extent.live_len == 0 && needed_from == slot_len {
            return None;
        }
        let durable = self.commits.durable_to()?;
        let end = match durable.extent {
            current if current == id => u64::from(durable.offset),
            current if current < id => u64::from(LOG_HEADER_LEN),
            _ => slot_len,
        };
        Some(Extent { placement: Rc::clone(&extent.placement), nonce: extent.nonce, end, needed_from })
    }

    /// Finds the whole batches of one replica.
    async fn scan_log(&self, extent: &Extent, column: Column, pace: &Pace) -> Scan {
        let mut replica = Replica::default();
        let mut at = 0;
        while at < extent.end {
            let len = (extent.end - at).min(BATCH_LEN_MAX as u64) as usize;
            if !pace.unit(self, len).await {
                return Scan::Stopped;
            }
            let Some(bytes) = self.read_log(column, at, len).await else { return Scan::NoAnswer };
            let mut done = 0;
            while done < bytes.len() {
                let rest = &bytes[done..];
                let offset = at + done as u64;
                if offset == 0 {
                    replica.header =
                        LogHeader::decode(&rest[..BLOCK_LEN]).ok().filter(|header| self.owns(extent, header));
                }
                done += match self.batch_at(extent, rest) {
                    // Cut off: the next read begins with it.
                    Some(header) if header.disk_len() > rest.len() && done > 0 => break,
                    Some(header) if is_whole(&header, rest) => {
                        let len = header.disk_len();
                        replica.batches.insert(offset, header);
                        len
                    }
                    _ => BLOCK_LEN,
                };
            }
            at += done as u64;
        }
        Scan::Ended(replica)
    }

    fn owns(&self, extent: &Extent, header: &LogHeader) -> bool {
        header.deployment == self.deployment
            && header.shard == self.id
            && header.extent == extent.placement.id
            && header.nonce == extent.nonce
    }

    fn batch_at(&self, extent: &Extent, bytes: &[u8]) -> Option<BatchHeader> {
        let header = BatchHeader::decode(bytes).ok()?;
        let ours =
            header.nonce == extent.nonce && header.extent == extent.placement.id && header.shard == self.id;
        ours.then_some(header)
    }

    /// Reads a run of a replica; blocks that cannot be read are zeros. `None` when the disk is out, or does not answer.
    async fn read_log(&self, column: Column, at: u64, len: usize) -> Option<Buf> {
        let (file, start) = self.files.locate_readable(ExtentClass::Log, column)?;
        let members = self.files.members();
        let buf = self.core.arena().alloc(len).await;
        let read = members.read(&self.core, column.disk, (&file, start + at), buf);
        let (result, mut buf) = read.await?;
        if matches!(result, Ok(got) if got == len) {
            return Some(buf);
        }
        let mut block = self.core.arena().alloc(BLOCK_LEN).await;
        for offset in (0..len).step_by(BLOCK_LEN) {
            let place = (&file, start + at + offset as u64);
            let (result, bytes) = members.read(&self.core, column.disk, place, block).await?;
            block = bytes;
            match result {
                Ok(BLOCK_LEN) => buf[offset..offset + BLOCK_LEN].copy_from_slice(&block),
                _ => buf[offset..offset + BLOCK_LEN].fill(0),
            }
        }
        Some(buf)
    }

    /// Compares the replicas. What can be had of what is lacking is returned; the rest is noted in `mended`.
    async fn examine(
        &self,
        extent: &Extent,
        replicas: &[Option<Replica>],
        met: Option<Range<u64>>,
        mended: &mut Mended,
    ) -> Vec<Cure> {
        let mut cures = Vec::new();
        let present: Vec<(usize, &Replica)> = (0..)
            .zip(replicas)
            .filter_map(|(index, replica)| replica.as_ref().map(|replica| (index, replica)))
            .collect();
        self.examine_header(extent, &present, &mut cures).await;
        let offsets: BTreeSet<u64> =
            present.iter().flat_map(|(_, replica)| replica.batches.keys().copied()).collect();
        let mut covered = u64::from(LOG_HEADER_LEN);
        let mut holes = Vec::new();
        for offset in offsets {
            let whole =
                present.iter().find_map(|(index, replica)| Some((*index, replica.batches.get(&offset)?)));
            let Some((source, header)) = whole else { continue };
            if offset > covered {
                holes.push(covered..offset);
            }
            covered = offset + header.disk_len() as u64;
            let lacking: Vec<usize> = present
                .iter()
                .filter(|(_, replica)| !replica.batches.contains_key(&offset))
                .map(|(index, _)| *index)
                .collect();
            if lacking.is_empty() {
                continue;
            }
            let column = extent.placement.columns[source];
            let Some(mut bytes) = self.read_log(column, offset, header.disk_len()).await else { continue };
            // No checksum covers the padding.
            bytes[header.payload_offset() + header.payload_len as usize..].fill(0);
            if is_whole(header, &bytes) && self.matters(extent, offset, header, &bytes).await {
                cures.push(Cure { offset, bytes: bytes.freeze(), lacking });
            }
        }
        let indices: Vec<usize> = present.iter().map(|(index, _)| *index).collect();
        for hole in holes {
            self.fill_hole(extent, hole.clone(), hole.end, &indices, &mut cures, mended).await;
        }
        // Behind the last batch that is whole somewhere there may be none, unless somebody knows better.
        let is_end_known = extent.end < self.files.geometry().log_slot_len;
        let known_to = if is_end_known { Some(extent.end) } else { met.map(|met| met.end.min(extent.end)) };
        if let Some(to) = known_to.filter(|&to| to > covered) {
            self.fill_hole(extent, covered..extent.end, to, &indices, &mut cures, mended).await;
        }
        cures
    }

    async fn examine_header(&self, extent: &Extent, present: &[(usize, &Replica)], cures: &mut Vec<Cure>) {
        let lacking: Vec<usize> =
            present.iter().filter(|(_, replica)| replica.header.is_none()).map(|(index, _)| *index).collect();
        if lacking.is_empty() {
            return;
        }
        // All of it is known but the epoch, which any batch tells as well.
        let told = present.iter().find_map(|(_, replica)| Some(replica.batches.values().next()?.epoch));
        let header = present.iter().find_map(|(_, replica)| replica.header.clone()).or_else(|| {
            Some(LogHeader {
                deployment: self.deployment,
                shard: self.id,
                extent: extent.placement.id,
                epoch: told.or((extent.needed_from == 0).then_some(self.log_epoch.get()))?,
                nonce: extent.nonce,
            })
        });
        let Some(header) = header else { return };
        let bytes = header.encode();
        let mut buf = self.core.arena().alloc(bytes.len()).await;
        buf.copy_from_slice(&bytes);
        cures.push(Cure { offset: 0, bytes: buf.freeze(), lacking });
    }

    /// Where no replica has a batch whole, it is put together from what each has of it. There are batches up to `known_to`.
    async fn fill_hole(
        &self,
        extent: &Extent,
        mut hole: Range<u64>,
        known_to: u64,
        present: &[usize],
        cures: &mut Vec<Cure>,
        mended: &mut Mended,
    ) {
        while hole.start < known_to {
            let len = (hole.end - hole.start).min(BATCH_LEN_MAX as u64) as usize;
            let mut copies = Vec::with_capacity(present.len());
            for &index in present {
                copies.extend(self.read_log(extent.placement.columns[index], hole.start, len).await);
            }
            // What a disk holds that does not answer is not known to be lost.
            if copies.len() < present.len() {
                return;
            }
            let Some(header) = copies.iter().find_map(|copy| self.batch_at(extent, copy)) else { break };
            if header.disk_len() > len {
                break;
            }
            let (payload_at, end) =
                (header.payload_offset(), header.payload_offset() + header.payload_len as usize);
            let part = |range: Range<usize>, crc: u32| {
                copies.iter().map(|copy| &copy[range.clone()]).find(|part| crc32c(part) == crc)
            };
            let records = part(BATCH_HEADER_LEN..payload_at, header.records_crc);
            let payload = part(payload_at..end, header.payload_crc);
            let mut whole = self.core.arena().alloc(header.disk_len()).await;
            whole.fill(0);
            whole[..BATCH_HEADER_LEN].copy_from_slice(&header.encode());
            if let Some(records) = records {
                whole[BATCH_HEADER_LEN..payload_at].copy_from_slice(records);
            }
            let offset = hole.start;
            hole.start += header.disk_len() as u64;
            match payload {
                Some(payload) if records.is_some() => {
                    whole[payload_at..end].copy_from_slice(payload);
                    if self.matters(extent, offset, &header, &whole).await {
                        cures.push(Cure { offset, bytes: whole.freeze(), lacking: present.to_vec() });
                    }
                }
                _ if records.is_some() && !self.matters(extent, offset, &header, &whole).await => {}
                _ => {
                    let lost = |&index: &usize| damage(&extent.placement, index, offset, header.disk_len());
                    mended.unrepairable.extend(present.iter().map(lost));
                }
            }
        }
        if hole.start < known_to {
            let len = (known_to - hole.start) as usize;
            let lost = |&index: &usize| damage(&extent.placement, index, hole.start, len);
            mended.unrepairable.extend(present.iter().map(lost));
        }
    }

    /// Whether anybody may ever want the batch at `offset`, which begins `bytes` and whose records are right.
    async fn matters(&self, extent: &Extent, offset: u64, header: &BatchHeader, bytes: &[u8]) -> bool {
        if offset >= extent.needed_from {
            return true;
        }
        let unchecked = BatchHeader { payload_crc: crc32c(payload_of(header, bytes)), ..header.clone() };
        let Ok(records) = unchecked.decode_records(bytes) else { return true };
        let payload_at = offset + header.payload_offset() as u64;
        for record in records {
            let Record::Put { key, inline: Some(span), .. } = record else { continue };
            // An index that cannot be read proves nothing.
            let Ok(found) = self.index.get(&key).await else { return true };
            let place = found.as_deref().and_then(value::inline_place);
            let is_live = place.is_some_and(|place| {
                place.extent == extent.placement.id && place.offset == payload_at + u64::from(span.offset)
            });
            if is_live {
                return true;
            }
        }
        false
    }
}

fn payload_of<'a>(header: &BatchHeader, bytes: &'a [u8]) -> &'a [u8] {
    &bytes[header.payload_offset()..][..header.payload_len as usize]
}

fn is_whole(header: &BatchHeader, bytes: &[u8]) -> bool {
    bytes.len() >= header.disk_len()
        && crc32c(&bytes[BATCH_HEADER_LEN..header.payload_offset()]) == header.records_crc
        && crc32c(payload_of(header, bytes)) == header.payload_crc
}

fn damage(placement: &Placement, index: usize, offset: u64, len: usize) -> Damage {
    Damage {
        extent: placement.id,
        column: u8::try_from(index).expect("a set has at most 20 disks"),
        disk: placement.columns[index].disk,
        offset,
        len: u32::try_from(len).unwrap_or(u32::MAX),
        fault: Fault::NotWhole,
    }
}
