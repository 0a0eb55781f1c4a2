//! Making a directory chunk anew that no column has any more, from what the index says of its segment.
//!
//! The index has the checksums of the data alone. Those of parity follow from the data: once every row is as it must be, they are
//! taken from what the columns hold.

use basalt_reactor::disk::BLOCK_LEN;

use super::Bodies;
use super::directory::{DirectoryChunk, DirectoryEntry, chunk_len};
use super::error::{Damage, Fault};
use super::layout::{BLOCK_CRC_LEN, StripeShape, blocks_per_strip};
use super::mend::{BlockRow, Mended};
use crate::checksum::crc32c;
use crate::extent::Placement;

/// The lease of a chunk that was made anew: it is younger than whatever was given up in its blocks before.
const LEASE: u64 = u64::MAX;

impl Bodies {
    /// Whether every column of an extent can be read: otherwise none can be said to be nowhere.
    pub(crate) fn are_all_readable(&self, placement: &Placement) -> bool {
        let is_readable = |column| self.files.locate_readable(placement.class, column).is_some();
        placement.columns.iter().copied().all(is_readable)
    }

    /// Mends the segment that `entry` describes but for its parity's checksums, and writes its chunk to every column. As with
    /// [`Bodies::mend`], the extent must be pinned, and this must run to its end.
    pub(crate) async fn describe_anew(&self, placement: &Placement, mut entry: DirectoryEntry) -> Mended {
        let geometry = *self.files.geometry();
        let shape = StripeShape::new(&geometry);
        let (k, m) = (shape.k(), usize::from(geometry.m));
        entry.parity_crcs = vec![0; (shape.crc_count(entry.len) / k) as usize * m];
        if !entry.fits(&geometry) {
            return Mended::default();
        }
        let rows: Vec<BlockRow> = BlockRow::of_entry(placement.id, &entry, &geometry).collect();
        let mut mended = Mended::default();
        for row in &rows {
            let own = self.mend(placement, &BlockRow { parity_crcs: Vec::new(), ..row.clone() }).await;
            let is_right = own.unrepairable.is_empty() && !own.unanswered;
            mended.repaired.extend(own.repaired);
            mended.unrepairable.extend(own.unrepairable);
            mended.refused.extend(own.refused);
            mended.unanswered |= own.unanswered;
            if !is_right {
                return mended;
            }
        }
        let mut rows = rows.into_iter();
        for start in (0..entry.len).step_by(shape.stripe_len() as usize) {
            let stripe = shape.stripe_at(entry.len, start);
            let per_strip = blocks_per_strip(stripe.strip_len) as usize;
            let first = (stripe.first_crc / k) as usize * m;
            for index in 0..per_strip {
                let row = rows.next().expect("a row for each block of a strip");
                debug_assert_eq!(
                    u64::from(row.len),
                    BLOCK_CRC_LEN.min(stripe.strip_len - index as u64 * BLOCK_CRC_LEN)
                );
                for parity in 0..m {
                    let column = placement.columns[k as usize + parity];
                    let Ok((bytes, _)) = self.read_column_at(column, row.offset, row.len as usize).await
                    else {
                        mended.unanswered = true;
                        return mended;
                    };
                    entry.parity_crcs[first + parity * per_strip + index] = crc32c(&bytes);
                }
            }
        }
        let column_len = shape.column_len(entry.len);
        let block = entry.block + (column_len / BLOCK_LEN as u64) as u32;
        let name_len = entry.owner.name.len();
        let (epoch, placement_now) = (self.origin.epoch, placement.clone());
        let chunk =
            DirectoryChunk { block, epoch, lease: LEASE, placement: placement_now, entries: vec![entry] };
        assert_eq!(chunk.encoded_len(), chunk_len(&geometry, name_len, column_len), "the room that it had");
        for (index, &column) in placement.columns.iter().enumerate() {
            let damage = Damage {
                extent: placement.id,
                column: u8::try_from(index).expect("a set has at most 20 disks"),
                disk: column.disk,
                offset: u64::from(block) * BLOCK_LEN as u64,
                len: u32::try_from(chunk.encoded_len()).unwrap_or(u32::MAX),
                fault: Fault::NoChunk,
            };
            let written = self.rewrite_chunk(column, &chunk).await;
            mended.note(damage, column, written);
        }
        mended
    }
}
