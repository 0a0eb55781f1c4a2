//! Packs: found by their directory entries, read from whichever columns are whole, and shown by their lists.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{Item, Look, Seen};
use crate::body::BlockRow;
use crate::body::directory::{Content, DirectoryChunk, DirectoryEntry, current};
use crate::body::layout::{BLOCK_CRC_LEN, StripeShape, blocks_per_strip};
use crate::body::stripe::Codec;
use crate::extent::{ExtentClass, Placement};
use crate::format::pack::{self, PACK_LEN_MAX};
use crate::offline::check::stripe::{Cell, CellState, judge, restore};
use crate::offline::media::Defect;
use crate::offline::shard::ShardState;

impl Look<'_> {
    /// Every pack of the extents that are asked for. It may hold nothing that lives any more: the index says that.
    pub(super) async fn packs(&mut self, state: &ShardState) {
        let geometry = self.files.geometry;
        let mut codec = Codec::new(geometry.k, geometry.m);
        for extent in state.extents_of(ExtentClass::Data) {
            if !self.wants_extent(extent.placement.id) {
                continue;
            }
            let mut found: BTreeMap<(u32, u64, u64), DirectoryChunk> = BTreeMap::new();
            for &column in &extent.placement.columns {
                for (_, seen) in self.chunks(extent, column).await {
                    let Seen::Chunk(Ok(chunk)) = seen else { continue };
                    found.insert((chunk.block, chunk.epoch, chunk.lease), chunk);
                }
            }
            let entries = current(found.into_values().collect()).into_iter().flat_map(|chunk| chunk.entries);
            let is_pack = |entry: &DirectoryEntry| {
                entry.content == Content::Pack && entry.len <= PACK_LEN_MAX as u64 && entry.fits(&geometry)
            };
            for entry in entries.filter(is_pack) {
                let (bytes, lost) = self.restored(&mut codec, &extent.placement, &entry).await;
                let mut objects = pack::decode_list(&bytes).map_err(Defect::Decode);
                if let Ok(objects) = &mut objects
                    && !self.query.entries
                {
                    objects.iter_mut().for_each(|object| object.value.clear());
                }
                let (placement, entry) = (extent.placement.clone(), Box::new(entry));
                (self.emit)(Item::Pack { shard: self.files.shard, placement, entry, lost, objects });
            }
        }
    }

    /// The bytes of a segment, and runs of them that cannot be had; those are as they were read.
    async fn restored(
        &self,
        codec: &mut Codec,
        placement: &Placement,
        entry: &DirectoryEntry,
    ) -> (Vec<u8>, Vec<Range<u64>>) {
        let geometry = &self.files.geometry;
        let shape = StripeShape::new(geometry);
        let k = usize::from(geometry.k);
        let (mut bytes, mut lost) = (vec![0; entry.len as usize], Vec::new());
        let mut rows = BlockRow::of_entry(placement.id, entry, geometry);
        for start in (0..entry.len).step_by(shape.stripe_len() as usize) {
            let stripe = shape.stripe_at(entry.len, start);
            for (index, row) in rows.by_ref().take(blocks_per_strip(stripe.strip_len) as usize).enumerate() {
                let (columns, is_whole) = self.row(codec, placement, &row, k).await;
                for (column, is_right) in is_whole.into_iter().enumerate().take(k) {
                    let at = start + column as u64 * stripe.strip_len + index as u64 * BLOCK_CRC_LEN;
                    let end = (at + u64::from(row.len)).min(entry.len);
                    if at >= end {
                        continue;
                    }
                    let own = &columns[column][..(end - at) as usize];
                    bytes[at as usize..end as usize].copy_from_slice(own);
                    if !is_right {
                        lost.push(at..end);
                    }
                }
            }
        }
        (bytes, lost)
    }

    /// The blocks of a row, restored as far as they can be, and which of them are right.
    async fn row(
        &self,
        codec: &mut Codec,
        placement: &Placement,
        row: &BlockRow,
        k: usize,
    ) -> (Vec<Vec<u8>>, Vec<bool>) {
        let len = row.len as usize;
        let expected: Vec<Option<u32>> =
            row.data_crcs.iter().chain(&row.parity_crcs).map(|&crc| Some(crc)).collect();
        let (mut columns, mut states) = (Vec::new(), Vec::new());
        for (&column, &expected) in placement.columns.iter().zip(&expected) {
            let read = self.files.read(self.core, ExtentClass::Data, column, row.offset, len).await;
            let (bytes, state) = match read {
                None => (vec![0; len], CellState::Absent),
                Some(Err(defect)) => (vec![0; len], CellState::Bad(defect)),
                Some(Ok(bytes)) => {
                    let state = judge(&bytes, None, expected);
                    (bytes, state)
                }
            };
            columns.push(bytes);
            states.push(state);
        }
        let mut is_right: Vec<bool> = states.iter().map(|state| *state == CellState::Good).collect();
        if is_right[..k].iter().all(|&is_right| is_right) {
            return (columns, is_right);
        }
        let cells: Vec<Cell<'_>> =
            columns.iter().zip(states).map(|(bytes, state)| Cell { bytes, state }).collect();
        for (column, bytes) in restore(codec, k, &cells, &expected).into_iter().flatten() {
            columns[column] = bytes;
            is_right[column] = true;
        }
        (columns, is_right)
    }
}
