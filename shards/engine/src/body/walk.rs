//! Walking an extent's columns for their directory chunks: what scrub starts from, and what rebuilds a lost index.
//!
//! Every block may begin a chunk, so a walk reads a column from its first block to its last, in long reads, and looks at
//! each. The copies of all present columns are put together: a chunk counts if one column has it, and a column that
//! lacks one that counts is reported like a damaged block.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use basalt_reactor::disk::BLOCK_LEN;

use super::Bodies;
use super::directory::{
    CHUNK_LEN_MAX, CHUNK_MAGIC, DirectoryChunk, DirectoryEntry, Owner, SEAL_LEN, SEAL_OFFSET, chunk_len,
    current,
};
use super::error::{Damage, Fault};
use super::layout::StripeShape;
use super::recover::arrived;
use crate::extent::{Column, ExtentClass, ExtentId, Placement};

/// Bytes of one read.
const READ_LEN: usize = 256 * 1024;

// A chunk that the end of a read cuts off fits the read that begins with it.
const _: () = assert!(READ_LEN > CHUNK_LEN_MAX);

/// What one column says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ColumnDirectory {
    /// In order of their blocks, stale ones included.
    pub chunks: Vec<DirectoryChunk>,
    /// Runs that could not be read.
    pub faults: Vec<Damage>,
}

/// What an extent says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExtentDirectory {
    /// In order of their blocks, without those that a younger one overlaps.
    pub chunks: Vec<DirectoryChunk>,
    /// Runs that could not be read, and the copies of `chunks` that a present column lacks. A chunk that is not live,
    /// of a body that a crash cut off, may lack copies without harm.
    pub faults: Vec<Damage>,
}

impl ExtentDirectory {
    /// The segments it describes. One whose body was never committed may be among them.
    pub fn entries(&self) -> impl Iterator<Item = &DirectoryEntry> {
        self.chunks.iter().flat_map(|chunk| &chunk.entries)
    }
}

impl Bodies {
    /// Walks all columns of a data extent.
    pub async fn walk(&self, placement: &Placement) -> ExtentDirectory {
        let mut found: BTreeMap<Identity, DirectoryChunk> = BTreeMap::new();
        let mut copies: Vec<BTreeSet<Identity>> = Vec::with_capacity(placement.columns.len());
        let mut faults = Vec::new();
        for column in 0..placement.columns.len() {
            let directory = self.walk_column(placement, column).await;
            faults.extend(directory.faults);
            copies.push(directory.chunks.iter().map(identity).collect());
            // Copies differ after a repair alone, in where columns lie; any will do.
            found.extend(directory.chunks.into_iter().map(|chunk| (identity(&chunk), chunk)));
        }
        let chunks = current(found.into_values().collect());
        for (column, copies) in copies.iter().enumerate() {
            if self.files.locate_readable(ExtentClass::Data, placement.columns[column]).is_none() {
                continue;
            }
            for chunk in chunks.iter().filter(|chunk| !copies.contains(&identity(chunk))) {
                let offset = u64::from(chunk.block) * BLOCK_LEN as u64;
                let len = chunk.encoded_len() as usize;
                faults.push(damage(placement, column, offset, len, Fault::NoChunk));
            }
        }
        ExtentDirectory { chunks, faults }
    }

    /// Walks one column of a data extent.
    ///
    /// # Panics
    /// If the extent has no such column.
    pub async fn walk_column(&self, placement: &Placement, column: usize) -> ColumnDirectory {
        let whole = 0..self.files.geometry().data_slot_len;
        let walked = self.walk_range(placement, column, whole, &async |_| true).await;
        walked.expect("nothing stops it")
    }

    /// Walks bytes `range` of a column, whole blocks. `before` is asked before every read, with its length; when it says
    /// no, there is no answer.
    pub(super) async fn walk_range(
        &self,
        placement: &Placement,
        column: usize,
        range: Range<u64>,
        before: &impl AsyncFn(usize) -> bool,
    ) -> Option<ColumnDirectory> {
        self.walk_for(Some(placement.id), placement, column, range, before).await
    }

    /// Whose a segment of `len` body bytes is that starts at `block`, and of an owner whose name has `name_len` bytes: as its
    /// chunk says, in whatever column has it.
    pub(crate) async fn owner_of(
        &self,
        placement: &Placement,
        (block, len): (u32, u64),
        name_len: usize,
    ) -> Option<Owner> {
        let geometry = self.files.geometry();
        let column_len = StripeShape::new(geometry).column_len(len);
        let start = u64::from(block) * BLOCK_LEN as u64 + column_len;
        let range = start..start + chunk_len(geometry, name_len, column_len);
        for column in 0..placement.columns.len() {
            let found = self.walk_range(placement, column, range.clone(), &async |_| true).await?;
            let mut entries = found.chunks.into_iter().flat_map(|chunk| chunk.entries);
            if let Some(entry) = entries.find(|entry| (entry.block, entry.len) == (block, len)) {
                return Some(entry.owner);
            }
        }
        None
    }

    /// Walks a slot of which nobody knows what extent has it, for the chunks of whatever extents it has held, in order of
    /// their blocks.
    pub(crate) async fn walk_slot(&self, place: Column) -> Vec<DirectoryChunk> {
        let unknown = Placement { id: ExtentId(0), class: ExtentClass::Data, columns: vec![place] };
        let whole = 0..self.files.geometry().data_slot_len;
        let walked = self.walk_for(None, &unknown, 0, whole, &async |_| true).await;
        walked.expect("nothing stops it").chunks
    }

    /// As [`Bodies::walk_range`], for the chunks of `extent`, or of any.
    async fn walk_for(
        &self,
        extent: Option<ExtentId>,
        placement: &Placement,
        column: usize,
        range: Range<u64>,
        before: &impl AsyncFn(usize) -> bool,
    ) -> Option<ColumnDirectory> {
        let mut directory = ColumnDirectory::default();
        let Some((file, origin)) = self.files.locate_readable(ExtentClass::Data, placement.columns[column])
        else {
            let len = (range.end - range.start) as usize;
            directory.faults.push(damage(placement, column, range.start, len, Fault::Absent));
            return Some(directory);
        };
        let _permit = self.core.budget.reserve(READ_LEN).await;
        let mut buf = self.core.core.arena().alloc(READ_LEN).await;
        let mut at = range.start;
        while at < range.end {
            let len = (range.end - at).min(READ_LEN as u64) as usize;
            if !before(len).await {
                return None;
            }
            buf.set_len(len);
            let (members, disk) = (self.files.members(), placement.columns[column].disk);
            let read = members.read(&self.core.core, disk, (&file, origin + at), buf);
            let Some((result, filled)) = read.await else {
                let left = (range.end - at) as usize;
                directory.faults.push(damage(placement, column, at, left, Fault::Absent));
                return Some(directory);
            };
            buf = filled;
            if arrived(&result, len).is_err() {
                // Some of it may be readable all the same.
                let faults = self.read_blocks(placement, column, at, &mut buf).await;
                directory.faults.extend(faults);
            }
            let is_end = at + len as u64 == range.end;
            at += self.scan(extent, at, &buf[..len], is_end, &mut directory.chunks) as u64;
        }
        Some(directory)
    }

    /// Reads a run of a column block by block; those that cannot be read are zeros, and returned.
    async fn read_blocks(
        &self,
        placement: &Placement,
        column: usize,
        at: u64,
        into: &mut [u8],
    ) -> Vec<Damage> {
        let mut faults = Vec::new();
        let mut buf = self.core.core.arena().alloc(BLOCK_LEN).await;
        for (offset, block) in (at..).step_by(BLOCK_LEN).zip(into.chunks_mut(BLOCK_LEN)) {
            block.fill(0);
            let Some((file, origin)) =
                self.files.locate_readable(ExtentClass::Data, placement.columns[column])
            else {
                break;
            };
            let (members, disk) = (self.files.members(), placement.columns[column].disk);
            let read = members.read(&self.core.core, disk, (&file, origin + offset), buf);
            let Some((result, filled)) = read.await else { break };
            buf = filled;
            match arrived(&result, BLOCK_LEN) {
                Ok(()) => block.copy_from_slice(&buf),
                Err(fault) => faults.push(damage(placement, column, offset, BLOCK_LEN, fault)),
            }
        }
        faults
    }

    /// Takes the chunks out of `bytes`, which lie at `at` in a column; says how many bytes are done with. All of
    /// them are at the column's end; otherwise a chunk that may be cut off is left.
    fn scan(
        &self,
        extent: Option<ExtentId>,
        at: u64,
        bytes: &[u8],
        is_end: bool,
        chunks: &mut Vec<DirectoryChunk>,
    ) -> usize {
        let mut offset = 0;
        while offset < bytes.len() {
            let block = u32::try_from((at + offset as u64) / BLOCK_LEN as u64)
                .expect("a column has less than 2^32 blocks");
            let rest = &bytes[offset..];
            // Without an extent to expect, the decoder asks the chunk for it, and holds it to its own seal.
            let is_sealed =
                |extent| rest[SEAL_OFFSET..SEAL_OFFSET + SEAL_LEN] == self.origin.seal(extent, block);
            let sealed = rest.starts_with(&CHUNK_MAGIC) && extent.is_none_or(is_sealed);
            if !sealed {
                offset += BLOCK_LEN;
                continue;
            }
            match DirectoryChunk::decode(rest, &self.origin) {
                Ok(chunk) if chunk.block == block => {
                    offset += chunk.encoded_len() as usize;
                    chunks.push(chunk);
                }
                Err(_) if rest.len() < CHUNK_LEN_MAX && !is_end && offset > 0 => return offset,
                // Rotten, overwritten in part, or moved: another column has it if it matters.
                Ok(_) | Err(_) => offset += BLOCK_LEN,
            }
        }
        bytes.len()
    }
}

/// Block, epoch and lease: what copies of one chunk have in common with no other.
type Identity = (u32, u64, u64);

fn identity(chunk: &DirectoryChunk) -> Identity {
    (chunk.block, chunk.epoch, chunk.lease)
}

fn damage(placement: &Placement, column: usize, offset: u64, len: usize, fault: Fault) -> Damage {
    Damage {
        extent: placement.id,
        column: u8::try_from(column).expect("a set has at most 20 disks"),
        disk: placement.columns[column].disk,
        offset,
        len: u32::try_from(len).unwrap_or(u32::MAX),
        fault,
    }
}
