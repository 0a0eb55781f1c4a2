//! What is left of a shard's log: every whole batch in any of its slots, in the order in which they were written.
//!
//! A slot says in its first block whose it is and which nonce its batches carry; freed ones do so until they are taken anew.
//! So more is found than was live, and some of it is missing. What proves the order is the hash that each batch has of the
//! one before: from the newest one backwards, as far as that goes, nothing is missing.

use std::collections::BTreeMap;
use std::rc::Rc;

use basalt_reactor::disk::BLOCK_LEN;
use basalt_reactor::{Buf, Core};

use crate::extent::{ArenaFiles, Column, DiskIndex, ExtentClass, ExtentId, Placement};
use crate::format::batch::{BATCH_LEN_MAX, BatchHeader};
use crate::format::log_header::LogHeader;
use crate::format::record::Record;
use crate::log::LOG_HEADER_LEN;

/// Slots that hold one use of a log extent.
pub(super) struct LogUse {
    pub(super) id: ExtentId,
    pub(super) nonce: [u8; 16],
    pub(super) columns: Vec<Column>,
}

/// A whole batch.
#[derive(Clone, Debug)]
pub(super) struct BatchAt {
    pub(super) sequence: u64,
    epoch: u64,
    clock: u64,
    hash: [u8; 16],
    previous: [u8; 16],
    /// Index of the use it lies in.
    pub(super) of: usize,
    offset: u32,
}

/// A batch read again.
pub(super) struct ReadBatch {
    pub(super) header: BatchHeader,
    pub(super) records: Vec<Record>,
    /// Of its payload, from the start of the extent.
    pub(super) payload_offset: u64,
}

pub(super) struct History {
    pub(super) uses: Vec<LogUse>,
    /// One per number, in order.
    pub(super) batches: Vec<BatchAt>,
    /// First number from which on none is missing; one above the last if there is none.
    pub(super) tail: u64,
    /// Numbers that are missing count once per run of them.
    pub(super) gaps: u64,
    /// Extents that came into use, and the number of the batch that says so.
    pub(super) opened: Vec<(u64, Placement)>,
}

impl History {
    pub(super) async fn read(
        core: &Core,
        files: &Rc<ArenaFiles>,
        disks: &[DiskIndex],
        deployment: [u8; 16],
        shard: u16,
    ) -> History {
        let uses = uses(core, files, disks, deployment, shard).await;
        let (mut found, mut opened) = (Vec::new(), Vec::new());
        for (of, log) in uses.iter().enumerate() {
            // The same place on any replica is the same batch.
            let mut headers = BTreeMap::new();
            for &column in &log.columns {
                scan(core, files, shard, log, column, &mut headers).await;
            }
            for (offset, header) in headers {
                if let Some(batch) = read_batch(core, files, log, offset, &header).await {
                    opened.extend(batch.records.into_iter().filter_map(|record| match record {
                        Record::ExtentOpened { placement, .. } => Some((header.sequence, placement)),
                        _ => None,
                    }));
                    found.push(BatchAt {
                        sequence: header.sequence,
                        epoch: header.epoch,
                        clock: header.clock,
                        hash: header.hash(),
                        previous: header.previous,
                        of,
                        offset,
                    });
                }
            }
        }
        let (batches, tail, gaps) = order(found);
        History { uses, batches, tail, gaps, opened }
    }

    /// Whether another log extent has taken one of the slots that `log` was given.
    pub(super) fn is_recycled(&self, log: &LogUse) -> bool {
        let given = self.opened.iter().filter(|(_, placement)| placement.id == log.id);
        let mut given = given.flat_map(|(_, placement)| &placement.columns);
        given.any(|column| self.uses.iter().any(|other| other.id > log.id && other.columns.contains(column)))
    }

    /// Number and predecessor's hash of the batch that comes next.
    pub(super) fn end(&self) -> (u64, [u8; 16]) {
        self.batches.last().map_or((1, [0; 16]), |last| (last.sequence + 1, last.hash))
    }

    /// The latest instant that the batches before the tail can speak of.
    pub(super) fn tail_clock(&self) -> u64 {
        let first = self.batches.iter().find(|batch| batch.sequence >= self.tail);
        first.map_or(u64::MAX, |batch| batch.clock)
    }

    pub(super) fn clock_max(&self) -> u64 {
        self.batches.iter().map(|batch| batch.clock).max().unwrap_or(0)
    }

    /// Reads a batch again. `None` when its medium failed since.
    pub(super) async fn batch(
        &self,
        core: &Core,
        files: &Rc<ArenaFiles>,
        batch: &BatchAt,
    ) -> Option<ReadBatch> {
        let log = &self.uses[batch.of];
        for &column in &log.columns {
            let Some(first) = read(core, files, column, batch.offset, BLOCK_LEN).await else { continue };
            let Ok(header) = BatchHeader::decode(&first) else { continue };
            if header.hash() != batch.hash {
                continue;
            }
            return read_batch(core, files, log, batch.offset, &header).await;
        }
        None
    }
}

/// One batch per number, the first number of the unbroken end, and how many gaps there are.
fn order(found: Vec<BatchAt>) -> (Vec<BatchAt>, u64, u64) {
    let mut by_number: BTreeMap<u64, Vec<BatchAt>> = BTreeMap::new();
    for batch in found {
        by_number.entry(batch.sequence).or_default().push(batch);
    }
    let mut chosen: Vec<BatchAt> = Vec::with_capacity(by_number.len());
    let (mut gaps, mut tail) = (0, None);
    for (number, candidates) in by_number.into_iter().rev() {
        let linked = |next: &BatchAt| {
            let adjacent = next.sequence == number + 1;
            candidates.iter().find(|batch| adjacent && batch.hash == next.previous).cloned()
        };
        let batch = match chosen.last() {
            None => None,
            Some(next) => {
                let linked = linked(next);
                if linked.is_none() {
                    gaps += 1;
                    tail.get_or_insert(next.sequence);
                }
                linked
            }
        };
        // A start writes the last batch again in its own epoch: the newest is the one that was gone on from.
        chosen.extend(batch.or_else(|| candidates.into_iter().max_by_key(|batch| batch.epoch)));
    }
    let oldest = chosen.last().map_or(1, |batch| batch.sequence);
    gaps += u64::from(oldest > 1);
    chosen.reverse();
    (chosen, tail.unwrap_or(oldest), gaps)
}

/// Which slots hold a log extent of this shard.
async fn uses(
    core: &Core,
    files: &Rc<ArenaFiles>,
    disks: &[DiskIndex],
    deployment: [u8; 16],
    shard: u16,
) -> Vec<LogUse> {
    let mut uses: BTreeMap<(ExtentId, [u8; 16]), LogUse> = BTreeMap::new();
    for &disk in disks {
        for slot in 0..slots(files, ExtentClass::Log, disk) {
            let column = Column { disk, slot };
            let Some(first) = read(core, files, column, 0, LOG_HEADER_LEN as usize).await else { continue };
            let Ok(header) = LogHeader::decode(&first) else { continue };
            if header.deployment != deployment || header.shard != shard {
                continue;
            }
            let (id, nonce) = (header.extent, header.nonce);
            let log = uses.entry((id, nonce)).or_insert_with(|| LogUse { id, nonce, columns: Vec::new() });
            log.columns.push(column);
        }
    }
    uses.into_values().collect()
}

/// Whole slots of an arena file; 0 where there is no disk.
pub(super) fn slots(files: &ArenaFiles, class: ExtentClass, disk: DiskIndex) -> u32 {
    files.slot_count(class, disk).and_then(Result::ok).unwrap_or(0)
}

/// The headers of batches in one column, by their offset.
async fn scan(
    core: &Core,
    files: &Rc<ArenaFiles>,
    shard: u16,
    log: &LogUse,
    column: Column,
    headers: &mut BTreeMap<u32, BatchHeader>,
) {
    let slot_len = files.geometry().log_slot_len;
    let mut at = u64::from(LOG_HEADER_LEN);
    while at < slot_len {
        let len = (slot_len - at).min(BATCH_LEN_MAX as u64) as usize;
        let offset = u32::try_from(at).expect("log slots stay below 4 GiB");
        if let Some(bytes) = read(core, files, column, offset, len).await {
            for (index, block) in bytes.chunks_exact(BLOCK_LEN).enumerate() {
                let Ok(header) = BatchHeader::decode(block) else { continue };
                if header.nonce == log.nonce && header.extent == log.id && header.shard == shard {
                    headers.insert(offset + (index * BLOCK_LEN) as u32, header);
                }
            }
        }
        at += len as u64;
    }
}

/// The batch at `offset`, from the first replica that has it whole.
async fn read_batch(
    core: &Core,
    files: &Rc<ArenaFiles>,
    log: &LogUse,
    offset: u32,
    header: &BatchHeader,
) -> Option<ReadBatch> {
    let len = header.disk_len();
    if u64::from(offset) + len as u64 > files.geometry().log_slot_len {
        return None;
    }
    for &column in &log.columns {
        let Some(bytes) = read(core, files, column, offset, len).await else { continue };
        if BatchHeader::decode(&bytes).as_ref() == Ok(header)
            && let Ok(records) = header.decode_records(&bytes)
        {
            let payload_offset = u64::from(offset) + header.payload_offset() as u64;
            return Some(ReadBatch { header: header.clone(), records, payload_offset });
        }
    }
    None
}

async fn read(core: &Core, files: &ArenaFiles, column: Column, offset: u32, len: usize) -> Option<Buf> {
    let (file, start) = files.locate(ExtentClass::Log, column)?;
    let buf = core.arena().alloc(len).await;
    let (result, buf) = file.read_at(buf, start + u64::from(offset)).await;
    (result.ok()? == len).then_some(buf)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(sequence: u64, epoch: u64, hash: u8, previous: u8) -> BatchAt {
        BatchAt { sequence, epoch, clock: 0, hash: [hash; 16], previous: [previous; 16], of: 0, offset: 0 }
    }

    fn order_of(found: Vec<BatchAt>) -> (Vec<(u64, u64)>, u64, u64) {
        let (chosen, tail, gaps) = order(found);
        (chosen.iter().map(|batch| (batch.sequence, batch.epoch)).collect(), tail, gaps)
    }

    #[test]
    fn the_tail_goes_back_to_the_first_missing_link() {
        assert_eq!(order_of(vec![]), (vec![], 1, 0));
        let whole = vec![batch(2, 1, 2, 1), batch(1, 1, 1, 0), batch(3, 1, 3, 2)];
        assert_eq!(order_of(whole), (vec![(1, 1), (2, 1), (3, 1)], 1, 0));
        let hole = vec![batch(1, 1, 1, 0), batch(3, 1, 3, 2), batch(4, 1, 4, 3)];
        assert_eq!(order_of(hole), (vec![(1, 1), (3, 1), (4, 1)], 3, 1));
        let recycled = vec![batch(8, 1, 8, 7), batch(9, 1, 9, 8)];
        assert_eq!(order_of(recycled), (vec![(8, 1), (9, 1)], 8, 1));
    }

    #[test]
    fn of_two_batches_with_one_number_the_linked_one_counts_else_the_newest() {
        // 5 was written again in epoch 3 and gone on from; before, another 5 was cut off in epoch 1.
        let found = vec![batch(4, 1, 4, 3), batch(5, 1, 51, 4), batch(5, 3, 53, 4), batch(6, 3, 6, 53)];
        assert_eq!(order_of(found).0, [(4, 1), (5, 3), (6, 3)]);
        let end = vec![batch(5, 1, 51, 4), batch(5, 2, 52, 4)];
        assert_eq!(order_of(end), (vec![(5, 2)], 5, 1));
        let unlinked = vec![batch(5, 1, 51, 4), batch(5, 2, 52, 4), batch(6, 4, 6, 99)];
        assert_eq!(order_of(unlinked), (vec![(5, 2), (6, 4)], 6, 2));
    }
}
