//! Verifying what lies in a data extent, by its own account: every strip on every column, and every copy of its directory.
//!
//! Chunks are looked for in one column, and in the others only where that one describes nothing. What they describe is
//! read once per column, in long reads, and compared with their checksums. What does not hold is only told here: whether it
//! matters is for the shard to say.

use std::collections::BTreeSet;
use std::ops::Range;

use basalt_reactor::Buf;
use basalt_reactor::disk::BLOCK_LEN;

use super::Bodies;
use super::budget::Permit;
use super::directory::{DirectoryChunk, current};
use super::error::{DeviceError, Fault};
use super::mend::BlockRow;
use super::recover::arrived;
use crate::checksum::crc32c;
use crate::extent::members::Outcome;
use crate::extent::{Column, ExtentClass, Placement};

/// Bytes of one read.
const READ_LEN: usize = 256 * 1024;

/// What of a chunk, and of what it describes, does not hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flaws {
    /// Rows of entries (by index) in which some column's block is not what it should be, or cannot be read.
    pub rows: Vec<(usize, BlockRow)>,
    /// Columns without a whole copy of the chunk.
    pub copies: Vec<usize>,
}

impl Flaws {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.copies.is_empty()
    }
}

impl Bodies {
    /// The chunks of an extent whose first `end` blocks are in use. `before` is asked before every read, with its length;
    /// when it says no, there is no answer.
    pub async fn directory(
        &self,
        placement: &Placement,
        end: u32,
        before: &impl AsyncFn(usize) -> bool,
    ) -> Option<Vec<DirectoryChunk>> {
        let mut chunks: Vec<DirectoryChunk> = Vec::new();
        for column in 0..placement.columns.len() {
            for gap in gaps(&chunks, end) {
                let range = u64::from(gap.start) * BLOCK_LEN as u64..u64::from(gap.end) * BLOCK_LEN as u64;
                let found = self.walk_range(placement, column, range, before).await?;
                chunks.extend(found.chunks);
            }
            chunks = current(chunks);
        }
        Some(chunks)
    }

    /// Compares what `chunk` describes, and its own copies, on all columns. As [`Bodies::directory`].
    pub async fn verify(
        &self,
        placement: &Placement,
        chunk: &DirectoryChunk,
        before: &impl AsyncFn(usize) -> bool,
    ) -> Option<Flaws> {
        let geometry = *self.files.geometry();
        let mut flaws = Flaws::default();
        for (index, entry) in chunk.entries.iter().enumerate().filter(|(_, entry)| entry.fits(&geometry)) {
            let rows: Vec<BlockRow> = BlockRow::of_entry(placement.id, entry, &geometry).collect();
            let mut bad = BTreeSet::new();
            for column in 0..placement.columns.len() {
                self.verify_rows(placement.columns[column], column, &rows, before, &mut bad).await?;
            }
            flaws.rows.extend(bad.into_iter().map(|row: usize| (index, rows[row].clone())));
        }
        let (offset, len) = (u64::from(chunk.block) * BLOCK_LEN as u64, chunk.encoded_len() as usize);
        for (index, &column) in placement.columns.iter().enumerate() {
            if self.files.locate_readable(ExtentClass::Data, column).is_none() {
                continue;
            }
            if !before(len).await {
                return None;
            }
            let read = match self.read_column_at(column, offset, len).await {
                Err(fault) if !fault.is_damage() => continue,
                read => read.ok(),
            };
            let copy = read.and_then(|(bytes, _)| DirectoryChunk::decode(&bytes, &self.origin).ok());
            let is_same = |copy: &DirectoryChunk| {
                (copy.block, copy.epoch, copy.lease) == (chunk.block, chunk.epoch, chunk.lease)
                    && copy.entries == chunk.entries
            };
            if !copy.is_some_and(|copy| is_same(&copy)) {
                flaws.copies.push(index);
            }
        }
        Some(flaws)
    }

    /// Adds the indices of rows whose block in `column` does not hold to `bad`.
    async fn verify_rows(
        &self,
        place: Column,
        column: usize,
        rows: &[BlockRow],
        before: &impl AsyncFn(usize) -> bool,
        bad: &mut BTreeSet<usize>,
    ) -> Option<()> {
        if self.files.locate_readable(ExtentClass::Data, place).is_none() {
            return Some(());
        }
        let mut first = 0;
        while first < rows.len() {
            let (mut last, mut len) = (first, 0);
            while last < rows.len() && (last == first || len + rows[last].len as usize <= READ_LEN) {
                len += rows[last].len as usize;
                last += 1;
            }
            if !before(len).await {
                return None;
            }
            let bytes = match self.read_column_at(place, rows[first].offset, len).await {
                Err(fault) if !fault.is_damage() => return Some(()),
                read => read.ok(),
            };
            for (index, row) in rows.iter().enumerate().take(last).skip(first) {
                let at = (row.offset - rows[first].offset) as usize;
                let expected = match column.checked_sub(row.data_crcs.len()) {
                    None => row.data_crcs[column],
                    Some(parity) => row.parity_crcs[parity],
                };
                let holds = bytes
                    .as_ref()
                    .is_some_and(|(bytes, _)| crc32c(&bytes[at..at + row.len as usize]) == expected);
                if !holds {
                    bad.insert(index);
                }
            }
            first = last;
        }
        Some(())
    }

    /// Bytes of a column.
    ///
    /// # Errors
    /// Why they cannot be read: [`Fault::Absent`] also of a disk that does not answer.
    pub(super) async fn read_column_at(
        &self,
        column: Column,
        offset: u64,
        len: usize,
    ) -> Result<(Buf, Permit), Fault> {
        let (file, origin) = self.files.locate_readable(ExtentClass::Data, column).ok_or(Fault::Absent)?;
        let permit = self.core.budget.reserve(len).await;
        let buf = self.core.core.arena().alloc(len).await;
        let members = self.files.members();
        let answer = members.read(&self.core.core, column.disk, (&file, origin + offset), buf).await;
        let (result, buf) = answer.ok_or(Fault::Absent)?;
        arrived(&result, len).map(|()| (buf, permit))
    }

    /// Writes a chunk again where it lies in a column. As with [`Bodies::mend`], the extent must be pinned, and this must
    /// run to its end.
    ///
    /// # Errors
    /// What the device said.
    pub async fn rewrite_chunk(
        &self,
        column: Column,
        chunk: &DirectoryChunk,
    ) -> Result<Outcome, DeviceError> {
        let bytes = chunk.encode(&self.origin);
        let arena = self.core.core.arena();
        let (mut buf, spare) = (arena.alloc(bytes.len()).await, arena.alloc(bytes.len()).await);
        buf.copy_from_slice(&bytes);
        let offset = u64::from(chunk.block) * BLOCK_LEN as u64;
        let place = (ExtentClass::Data, column, offset);
        self.files.rewrite(&self.core.core, place, buf.freeze(), spare).await.0
    }
}

/// The blocks below `end` that no chunk covers; these are in order of their blocks.
pub(crate) fn gaps<'a>(chunks: impl IntoIterator<Item = &'a DirectoryChunk>, end: u32) -> Vec<Range<u32>> {
    let mut gaps = Vec::new();
    let mut at = 0;
    for chunk in chunks {
        if chunk.start() > at {
            gaps.push(at..chunk.start().min(end));
        }
        at = at.max(chunk.end());
    }
    gaps.push(at..end);
    gaps.retain(|gap| gap.start < gap.end);
    gaps
}
