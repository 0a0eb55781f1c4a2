//! The bytes of bodies: every block of every column of those in stripes, every replica of those in the log.

use std::ops::Range;

use basalt_reactor::disk::BLOCK_LEN;
use basalt_reactor::{Core, File};

use super::stripe::{Cell, CellState, judge, restore};
use super::{CheckedShard, Checker, Cure, Owner, Structure};
use crate::body::layout::{BLOCK_CRC_LEN, Stripe, StripeShape, blocks_per_strip};
use crate::body::{InlineBody, Segment, StripedBody};
use crate::checksum::crc32c;
use crate::extent::{Column, ExtentClass, round_up_to_block};
use crate::format::manifest::ExtentEntry;
use crate::offline::media::{Defect, read};
use crate::value::InlinePlace;

/// Bytes of all columns together that are read at once, if strips are not longer.
const GROUP_LEN: u64 = 4 << 20;

/// Bytes that are tried alone when a longer read fails.
const PIECE_LEN: usize = BLOCK_CRC_LEN as usize;

/// The bytes of a body, as far as they can be had.
#[derive(Default)]
pub(super) struct Collected {
    /// As they were read where nothing restores them.
    pub(super) bytes: Vec<u8>,
    /// Runs of them that are not right.
    pub(super) lost: Vec<Range<u64>>,
}

/// What was read of one column.
struct ColumnBytes {
    bytes: Vec<u8>,
    /// What of it could not be.
    holes: Vec<(Range<usize>, Defect)>,
    is_present: bool,
}

/// A segment under check.
struct Run<'a> {
    entry: &'a ExtentEntry,
    segment: &'a Segment,
    shape: StripeShape,
    crcs: &'a [u32],
    parity_crcs: Option<Vec<u32>>,
    owner: Option<&'a Owner>,
}

impl Run<'_> {
    /// The checksum that block `block` of column `index` must have in `stripe`, as far as it is known.
    fn crc(&self, stripe: &Stripe, index: usize, block: u64) -> Option<u32> {
        let (k, per_strip) = (self.shape.k() as usize, blocks_per_strip(stripe.strip_len) as usize);
        if index < k {
            return self.crcs.get(stripe.first_crc as usize + index * per_strip + block as usize).copied();
        }
        let m = self.entry.placement.columns.len() - k;
        let first = stripe.first_crc as usize / k * m;
        self.parity_crcs.as_ref()?.get(first + (index - k) * per_strip + block as usize).copied()
    }
}

impl Checker<'_> {
    /// Checks a body in stripes, of `owner` if it is of one alone. With `collect` returns its bytes, unless its description
    /// contradicts itself.
    pub(super) async fn striped(
        &mut self,
        shard: &CheckedShard,
        body: &StripedBody,
        owner: Option<&Owner>,
        collect: bool,
    ) -> Option<Collected> {
        let geometry = shard.files.geometry;
        let id = shard.files.shard;
        if let Err(error) = body.check(&geometry) {
            self.contradiction(Structure::Entry, id, owner, error.to_string());
            return None;
        }
        let shape = StripeShape::new(&geometry);
        let mut collected = collect.then(Collected::default);
        let mut first_crc = 0;
        for segment in &body.segments {
            let count = shape.crc_count(segment.len) as usize;
            let crcs = &body.crcs[first_crc..first_crc + count];
            first_crc += count;
            let entry = shard.state.extents.get(&segment.extent);
            let entry = entry.filter(|entry| entry.placement.class == ExtentClass::Data);
            let Some(entry) = entry.filter(|entry| entry.placement.columns.len() == geometry.columns())
            else {
                let reason = format!("it lies in data extent {}, which does not exist", segment.extent.0);
                self.contradiction(Structure::Entry, id, owner, reason);
                if let Some(collected) = &mut collected {
                    let start = collected.bytes.len() as u64;
                    collected.lost.push(start..start + segment.len);
                    collected.bytes.resize(usize::try_from(start + segment.len).expect("it is short"), 0);
                }
                continue;
            };
            let parity_crcs = self.chunk(shard, entry, segment, crcs, owner).await;
            let run = Run { entry, segment, shape, crcs, parity_crcs, owner };
            self.segment(shard, &run, &mut collected).await;
        }
        collected
    }

    async fn segment(&mut self, shard: &CheckedShard, run: &Run<'_>, collected: &mut Option<Collected>) {
        let columns = &run.entry.placement.columns;
        let strip_len = run.shape.strip_len();
        let group = (GROUP_LEN / columns.len() as u64 / strip_len).max(1) * run.shape.stripe_len();
        let start = u64::from(run.segment.block) * BLOCK_LEN as u64;
        let mut at = 0;
        while at < run.segment.len {
            let end = (at + group).min(run.segment.len);
            let offset = run.shape.stripe_at(run.segment.len, at).column_offset;
            let len = usize::try_from(run.shape.column_len(end - at)).expect("a group is small");
            let mut read = read_columns(self.core, shard, columns, start + offset, len).await;
            let present = read.iter().filter(|column| column.is_present).count();
            self.report.read_len += (len * present) as u64;
            while at < end {
                let stripe = run.shape.stripe_at(run.segment.len, at);
                let from = usize::try_from(stripe.column_offset - offset).expect("inside the group");
                self.stripe(shard, run, &stripe, from, &mut read, collected).await;
                at += stripe.len;
            }
        }
    }

    /// Checks the stripe whose strips begin at `from` of what was read.
    async fn stripe(
        &mut self,
        shard: &CheckedShard,
        run: &Run<'_>,
        stripe: &Stripe,
        from: usize,
        read: &mut [ColumnBytes],
        collected: &mut Option<Collected>,
    ) {
        let mut lost = Vec::new();
        for block in 0..blocks_per_strip(stripe.strip_len) {
            let in_strip = block * BLOCK_CRC_LEN;
            let len = BLOCK_CRC_LEN.min(stripe.strip_len - in_strip) as usize;
            let start = from + in_strip as usize;
            let offset = u64::from(run.segment.block) * BLOCK_LEN as u64 + stripe.column_offset + in_strip;
            let wanted = collected.is_some();
            let columns =
                self.row(shard, run, (stripe, block), offset, start..start + len, (read, wanted)).await;
            let place = |column: usize| column as u64 * stripe.strip_len + in_strip;
            lost.extend(columns.into_iter().map(|column| place(column)..place(column) + len as u64));
        }
        if let Some(collected) = collected {
            let start = collected.bytes.len() as u64;
            for column in read.iter().take(run.shape.k() as usize) {
                collected.bytes.extend_from_slice(&column.bytes[from..from + stripe.strip_len as usize]);
            }
            collected.bytes.truncate((start + stripe.len) as usize);
            // Padding is nobody's.
            let lost = lost.into_iter().filter(|run| run.start < stripe.len);
            collected.lost.extend(lost.map(|run| start + run.start..start + run.end.min(stripe.len)));
        }
    }

    /// Checks one block of every column, at `offset` of the columns and `range` of what was read; puts right bytes there, those of
    /// missing disks too if they are wanted. Returns the data columns whose block cannot be had.
    async fn row(
        &mut self,
        shard: &CheckedShard,
        run: &Run<'_>,
        (stripe, block): (&Stripe, u64),
        offset: u64,
        range: Range<usize>,
        (read, wanted): (&mut [ColumnBytes], bool),
    ) -> Vec<usize> {
        let k = run.shape.k() as usize;
        let expected: Vec<Option<u32>> = (0..read.len()).map(|index| run.crc(stripe, index, block)).collect();
        let states = read.iter().zip(&expected).map(|(column, &expected)| {
            if !column.is_present {
                return CellState::Absent;
            }
            let hole = column.holes.iter().find(|(hole, _)| hole.start < range.end && hole.end > range.start);
            judge(&column.bytes[range.clone()], hole.map(|(_, defect)| defect.clone()), expected)
        });
        let states: Vec<CellState> = states.collect();
        let enough = states.iter().filter(|state| **state == CellState::Good).count() >= k;
        let is_fine = |(index, state): (usize, &CellState)| match state {
            CellState::Good => true,
            CellState::Absent => index >= k || enough && !wanted,
            CellState::Unverified | CellState::Bad(_) => false,
        };
        if states.iter().enumerate().all(is_fine) {
            return Vec::new();
        }
        let row: Vec<Cell<'_>> = read
            .iter()
            .zip(&states)
            .map(|(column, state)| Cell { bytes: &column.bytes[range.clone()], state: state.clone() })
            .collect();
        let restored = restore(&mut self.codec, k, &row, &expected);
        for (index, state) in states.iter().enumerate() {
            let right = restored.as_ref().and_then(|all| all.iter().find(|(other, _)| *other == index));
            let defect = match (state, right) {
                (CellState::Bad(defect), _) => defect.clone(),
                (CellState::Unverified, Some((_, right))) if read[index].bytes[range.clone()] != **right => {
                    let (expected, got) = (crc32c(right), crc32c(&read[index].bytes[range.clone()]));
                    Defect::Checksum { expected, got }
                }
                _ => continue,
            };
            let cure = match right {
                Some((_, right)) => Cure::Bytes(right.clone()),
                None => Cure::None("too few blocks of its stripe are whole"),
            };
            let structure = if index < k { Structure::Data } else { Structure::Parity };
            let place =
                self.place_in(&shard.files, ExtentClass::Data, run.entry.placement.columns[index], offset);
            self.damaged(structure, Some(shard.files.shard), place, &defect, run.owner, cure).await;
        }
        let Some(restored) = restored else {
            let is_absent = states.iter().take(k).any(|state| *state == CellState::Absent);
            if is_absent && !states.iter().any(|state| matches!(state, CellState::Bad(_))) {
                let reason =
                    format!("data of extent {} lie on missing disks alone", run.entry.placement.id.0);
                self.lost(
                    Structure::Data,
                    shard.files.shard,
                    run.owner,
                    reason,
                    "too many disks are missing",
                );
            }
            return (0..k).filter(|&index| states[index] != CellState::Good).collect();
        };
        for (index, bytes) in restored {
            read[index].bytes[range.clone()].copy_from_slice(&bytes);
        }
        Vec::new()
    }

    /// Checks every replica of a body in the log.
    pub(super) async fn inline(
        &mut self,
        shard: &CheckedShard,
        place: InlinePlace,
        len: u64,
        crcs: &[u32],
        owner: &Owner,
    ) {
        let id = shard.files.shard;
        let body =
            InlineBody { extent: place.extent, offset: place.offset, len: place.len, crcs: crcs.to_vec() };
        let checked = body.check(shard.files.geometry.log_slot_len).map_err(|error| error.to_string());
        let checked = checked.and_then(|()| match u64::from(place.len) == len {
            true => Ok(()),
            false => Err(format!("its body has {} bytes in the log, and {len} by its value", place.len)),
        });
        if let Err(reason) = checked {
            return self.contradiction(Structure::Entry, id, Some(owner), reason);
        }
        let entry = shard.state.extents.get(&place.extent);
        let Some(entry) = entry.filter(|entry| entry.placement.class == ExtentClass::Log) else {
            let reason = format!("it lies in log extent {}, which does not exist", place.extent.0);
            return self.contradiction(Structure::Entry, id, Some(owner), reason);
        };
        let from = place.offset / BLOCK_LEN as u64 * BLOCK_LEN as u64;
        let blocks = from..round_up_to_block(place.offset + len);
        let skipped = (place.offset - from) as usize;
        let within = skipped..skipped + len as usize;
        let mut right = None;
        let mut wrong = Vec::new();
        for &column in &entry.placement.columns {
            let len = (blocks.end - blocks.start) as usize;
            let Some(found) = shard.files.read(self.core, ExtentClass::Log, column, from, len).await else {
                continue;
            };
            self.report.read_len += len as u64;
            let checked =
                found.as_ref().map_err(Defect::clone).and_then(|bytes| verify(&bytes[within.clone()], crcs));
            match (checked, found) {
                (Ok(()), Ok(bytes)) => right = Some(bytes),
                (Ok(()), Err(defect)) | (Err(defect), Err(_)) => wrong.push((column, None, defect)),
                (Err(defect), Ok(bytes)) => wrong.push((column, Some(bytes), defect)),
            }
        }
        if right.is_some() && is_unfinished(shard, place) {
            return;
        }
        for (column, bytes, defect) in wrong {
            let cure = match (&right, bytes) {
                (None, _) => Cure::None("no replica has it"),
                // What lies around it is kept as it is, whatever it is.
                (Some(right), Some(mut bytes)) => {
                    bytes[within.clone()].copy_from_slice(&right[within.clone()]);
                    Cure::Bytes(bytes)
                }
                (Some(right), None) => Cure::Bytes(right.clone()),
            };
            let place = self.place_in(&shard.files, ExtentClass::Log, column, from);
            self.damaged(Structure::Inline, Some(id), place, &defect, Some(owner), cure).await;
        }
    }
}

/// Whether it lies in the last batch of the log, which need not be on every replica.
fn is_unfinished(shard: &CheckedShard, place: InlinePlace) -> bool {
    let last = shard.state.replayed.last.as_ref();
    last.is_some_and(|(extent, range)| *extent == place.extent && range.contains(&place.offset))
}

fn verify(bytes: &[u8], crcs: &[u32]) -> Result<(), Defect> {
    for (block, &expected) in bytes.chunks(BLOCK_CRC_LEN as usize).zip(crcs) {
        let got = crc32c(block);
        if got != expected {
            return Err(Defect::Checksum { expected, got });
        }
    }
    Ok(())
}

/// The same part of every column, all at once.
async fn read_columns(
    core: &Core,
    shard: &CheckedShard,
    columns: &[Column],
    offset: u64,
    len: usize,
) -> Vec<ColumnBytes> {
    let mut reading = Vec::with_capacity(columns.len());
    for &column in columns {
        reading.push(match shard.files.locate(ExtentClass::Data, column) {
            None => Err(ColumnBytes { bytes: vec![0; len], holes: Vec::new(), is_present: false }),
            Some((Err(defect), _)) => {
                let holes = vec![(0..len, defect.clone())];
                Err(ColumnBytes { bytes: vec![0; len], holes, is_present: true })
            }
            Some((Ok(file), start)) => {
                let (file, core) = (file.clone(), core.clone());
                Ok(core.clone().spawn(async move { read_column(&core, &file, start + offset, len).await }))
            }
        });
    }
    let mut read = Vec::with_capacity(columns.len());
    for column in reading {
        read.push(match column {
            Ok(task) => task.await.expect("nobody cancels it"),
            Err(known) => known,
        });
    }
    read
}

/// In one piece; piece by piece where that fails, so that one bad sector costs one block.
async fn read_column(core: &Core, file: &File, offset: u64, len: usize) -> ColumnBytes {
    if let Ok(bytes) = read(core, file, offset, len).await {
        return ColumnBytes { bytes, holes: Vec::new(), is_present: true };
    }
    let mut column = ColumnBytes { bytes: vec![0; len], holes: Vec::new(), is_present: true };
    for at in (0..len).step_by(PIECE_LEN) {
        let piece = at..(at + PIECE_LEN).min(len);
        match read(core, file, offset + at as u64, piece.len()).await {
            Ok(bytes) => column.bytes[piece].copy_from_slice(&bytes),
            Err(defect) => column.holes.push((piece, defect)),
        }
    }
    column
}
