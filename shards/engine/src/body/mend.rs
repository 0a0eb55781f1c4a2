//! Mending damaged blocks where they lie: what they must hold is worked out from the other columns and written again.
//!
//! All blocks that the columns have at one place, a *row*, are mended together. Data blocks are believed by their
//! checksums alone, restored ones as well; parity blocks follow from the data, so they are compared with what they must be.
//! Nothing is written before every byte of the row is known to be right. The caller keeps the extent from being freed.

use basalt_reactor::Buf;
use basalt_reactor::disk::BLOCK_LEN;

use super::Bodies;
use super::directory::DirectoryEntry;
use super::error::{Damage, DeviceError, Fault};
use super::join::{Boxed, join_all};
use super::layout::{BLOCK_CRC_LEN, StripeShape, blocks_per_strip};
use super::recover::{CHOICES_MAX, Choices, Workspace, arrived, check};
use crate::checksum::crc32c;
use crate::extent::members::Outcome;
use crate::extent::{Column, DiskIndex, ExtentClass, ExtentId, Geometry, Placement};
use crate::mutant::Mutant;

/// The blocks that the columns of a data extent have at one place: one checksum block of each strip of a stripe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockRow {
    pub extent: ExtentId,
    /// Where the blocks lie in their columns, bytes.
    pub offset: u64,
    /// Length of each, bytes.
    pub len: u32,
    /// CRC32C of the block of each data column.
    pub data_crcs: Vec<u32>,
    /// The same for the parity columns; empty where they are not known.
    pub parity_crcs: Vec<u32>,
}

impl BlockRow {
    /// The rows of a segment that `entry` describes, in order of their places.
    ///
    /// # Panics
    /// If `entry` does not fit `geometry` ([`DirectoryEntry::fits`]).
    pub fn of_entry<'a>(
        extent: ExtentId,
        entry: &'a DirectoryEntry,
        geometry: &Geometry,
    ) -> impl Iterator<Item = BlockRow> + use<'a> {
        assert!(entry.fits(geometry), "an entry of another geometry");
        let shape = StripeShape::new(geometry);
        let (k, m) = (geometry.k.into(), geometry.m.into());
        let origin = u64::from(entry.block) * BLOCK_LEN as u64;
        let stripes = (0..entry.len).step_by(shape.stripe_len() as usize);
        stripes.flat_map(move |start| {
            let stripe = shape.stripe_at(entry.len, start);
            let per_strip = blocks_per_strip(stripe.strip_len);
            let (data_first, parity_first) = (stripe.first_crc, stripe.first_crc / k * m);
            (0..per_strip).map(move |index| {
                let in_strip = index * BLOCK_CRC_LEN;
                let crcs = |from: &[u32], first: u64, columns: u64| {
                    (0..columns).map(|column| from[(first + column * per_strip + index) as usize]).collect()
                };
                BlockRow {
                    extent,
                    offset: origin + stripe.column_offset + in_strip,
                    len: BLOCK_CRC_LEN.min(stripe.strip_len - in_strip) as u32,
                    data_crcs: crcs(&entry.data_crcs, data_first, k),
                    parity_crcs: crcs(&entry.parity_crcs, parity_first, m),
                }
            })
        })
    }
}

/// What became of a row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mended {
    /// Blocks that were damaged and are right again, durably.
    pub repaired: Vec<Damage>,
    /// Blocks that are damaged and stay so: too little of the row is left, or their disks refused the write.
    pub unrepairable: Vec<Damage>,
    /// What disks answered to the writes that they refused. Nothing is tried again.
    pub refused: Vec<(Column, DeviceError)>,
    /// A disk did not answer, and nothing was done.
    pub unanswered: bool,
}

impl Mended {
    /// Takes note of what came of a rewrite. What lay on a disk that is out is neither mended nor lost.
    pub(crate) fn note(&mut self, damage: Damage, column: Column, written: Result<Outcome, DeviceError>) {
        match written {
            Ok(Outcome::Done) => self.repaired.push(damage),
            Ok(Outcome::Out) => {}
            Err(error) => {
                self.unrepairable.push(damage);
                self.refused.push((column, error));
            }
        }
    }
}

/// How the read of a block ended, and its memory; `None` when the disk did not answer.
type Answer = Option<(Result<(), Fault>, Buf)>;

/// One column's block.
struct Block {
    column: usize,
    buf: Buf,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Good,
    /// Read, but nothing says what it should be: parity without a checksum.
    Unknown,
    Bad(Fault),
}

impl State {
    fn fault(self) -> Option<Fault> {
        match self {
            State::Bad(Fault::Absent) | State::Good | State::Unknown => None,
            State::Bad(fault) => Some(fault),
        }
    }
}

impl Bodies {
    /// Restores what is damaged of `row`, which belongs to the extent at `placement`. The extent must be pinned for as long
    /// as this runs, and it must run to its end: a write that is under way is not to meet another owner of the slot.
    ///
    /// # Panics
    /// If `row` has not one checksum per data column or does not lie in its extent: it was made from a valid description.
    pub async fn mend(&self, placement: &Placement, row: &BlockRow) -> Mended {
        self.mend_with(placement, row, &[]).await
    }

    /// As [`Bodies::mend`]; what is written to `unsynced` disks, which nobody reads yet, is neither flushed nor read back.
    ///
    /// # Panics
    /// As [`Bodies::mend`].
    pub(crate) async fn mend_with(
        &self,
        placement: &Placement,
        row: &BlockRow,
        unsynced: &[DiskIndex],
    ) -> Mended {
        let geometry = *self.files.geometry();
        let (k, columns) = (usize::from(geometry.k), geometry.columns());
        assert!(row.data_crcs.len() == k && placement.columns.len() == columns, "a row of {geometry:?}");
        assert!(row.offset + u64::from(row.len) <= geometry.data_slot_len, "a row beyond its extent");
        let Workspace { bufs, _permit } = Workspace::new(self, row.len as usize).await;
        let Some(mut blocks) = self.read_row(placement, row, bufs).await else {
            return Mended { unanswered: true, ..Mended::default() };
        };
        let faults: Vec<Damage> = blocks.iter().filter_map(|block| block.damage(placement, row)).collect();
        if !self.restore_data(&mut blocks, row, k) {
            return Mended { unrepairable: faults, ..Mended::default() };
        }
        self.restore_parity(&mut blocks, k);

        // Those that are right serve no more, but one of them to read back what was written.
        let (bad, good): (Vec<Block>, Vec<Block>) =
            blocks.into_iter().partition(|block| matches!(block.state, State::Bad(_)));
        let mut mended = Mended::default();
        let mut spares = good.into_iter().map(|block| block.buf);
        let mut spare = spares.next();
        for block in bad {
            let Some(damage) = block.damage(placement, row) else { continue };
            let column = placement.columns[block.column];
            let place = (ExtentClass::Data, column, row.offset);
            if unsynced.contains(&column.disk) {
                let written = self.files.write_unsynced(&self.core.core, place, block.buf.freeze()).await;
                mended.note(damage, column, written.map_err(|error| DeviceError::from(&error)));
                continue;
            }
            // Disks that do not answer have taken all of them.
            let Some(buf) = spare.take() else { continue };
            let (written, buf) = self.files.rewrite(&self.core.core, place, block.buf.freeze(), buf).await;
            spare = buf.or_else(|| spares.next());
            mended.note(damage, column, written);
        }
        mended
    }

    /// All blocks of a row; `None` when a disk does not answer. It is out by then, or the set cannot do without it.
    async fn read_row(&self, placement: &Placement, row: &BlockRow, bufs: Vec<Buf>) -> Option<Vec<Block>> {
        let reads: Vec<Boxed<'_, Answer>> = placement
            .columns
            .iter()
            .zip(bufs)
            .map(|(&column, buf)| Box::pin(self.read_block(column, row.offset, buf)) as Boxed<'_, _>)
            .collect();
        let k = row.data_crcs.len();
        let expected = |column: usize| match column.checked_sub(k) {
            None => Some(row.data_crcs[column]),
            Some(_) if Mutant::RepairUnverified.is_active() => None,
            Some(parity) => row.parity_crcs.get(parity).copied(),
        };
        let read = join_all(reads).await.into_iter().enumerate();
        let judged = read.map(|(column, answer)| {
            let (result, buf) = answer?;
            let state = match result.and_then(|()| expected(column).map(|crc| check(&buf, crc)).transpose()) {
                Ok(Some(())) => State::Good,
                Ok(None) => State::Unknown,
                Err(fault) => State::Bad(fault),
            };
            Some(Block { column, buf, state })
        });
        judged.collect()
    }

    async fn read_block(&self, column: Column, offset: u64, buf: Buf) -> Answer {
        let Some((file, origin)) = self.files.locate(ExtentClass::Data, column) else {
            return Some((Err(Fault::Absent), buf));
        };
        let read = self.files.members().read(&self.core.core, column.disk, (&file, origin + offset), buf);
        let (result, buf) = read.await?;
        Some((arrived(&result, buf.len()), buf))
    }

    /// Fills the bad data blocks with what they must hold; `false` if that cannot be had. Parity blocks without checksums
    /// are believed only together with a result that has its own.
    fn restore_data(&self, blocks: &mut Vec<Block>, row: &BlockRow, k: usize) -> bool {
        let is_missing = |block: &Block| block.column < k && block.state != State::Good;
        let (mut missing, rest): (Vec<Block>, Vec<Block>) =
            std::mem::take(blocks).into_iter().partition(is_missing);
        let parity: Vec<&Block> = rest
            .iter()
            .filter(|block| block.column >= k && matches!(block.state, State::Good | State::Unknown))
            .collect();
        let choices = Choices::new(parity.len(), missing.len()).take(CHOICES_MAX);
        let restored = missing.is_empty()
            || choices.into_iter().any(|choice| {
                let chosen = parity.iter().enumerate().filter(|(index, _)| choice >> index & 1 == 1);
                let data = rest.iter().filter(|block| block.column < k);
                let present: Vec<(usize, &[u8])> = data
                    .chain(chosen.map(|(_, block)| *block))
                    .map(|block| (block.column, &block.buf[..]))
                    .collect();
                let mut wanted: Vec<(usize, &mut [u8])> =
                    missing.iter_mut().map(|block| (block.column, &mut block.buf[..])).collect();
                self.core.codec.borrow_mut().reconstruct(&present, &mut wanted);
                let is_right = |block: &Block| crc32c(&block.buf) == row.data_crcs[block.column];
                missing.iter().all(is_right) || Mutant::RepairUnverified.is_active()
            });
        blocks.extend(missing);
        blocks.extend(rest);
        blocks.sort_by_key(|block| block.column);
        restored
    }

    /// Fills the bad parity blocks from the data blocks, which are all right, and tells which others are bad too.
    fn restore_parity(&self, blocks: &mut [Block], k: usize) {
        let (data, parity) = blocks.split_at_mut(k);
        let present: Vec<(usize, &[u8])> = data.iter().map(|block| (block.column, &block.buf[..])).collect();
        let mut right = vec![0; present[0].1.len()];
        for block in parity.iter_mut().filter(|block| block.state != State::Good) {
            self.core.codec.borrow_mut().reconstruct(&present, &mut [(block.column, &mut right)]);
            if block.state == State::Unknown {
                block.state = match check(&block.buf, crc32c(&right)) {
                    Ok(()) => State::Good,
                    Err(fault) => State::Bad(fault),
                };
            }
            block.buf.copy_from_slice(&right);
        }
    }
}

impl Block {
    fn damage(&self, placement: &Placement, row: &BlockRow) -> Option<Damage> {
        self.state.fault().map(|fault| Damage {
            extent: row.extent,
            column: u8::try_from(self.column).expect("a set has at most 20 disks"),
            disk: placement.columns[self.column].disk,
            offset: row.offset,
            len: row.len,
            fault,
        })
    }
}
