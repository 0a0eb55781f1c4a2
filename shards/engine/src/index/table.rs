//! Sorted tables: immutable runs of index entries, each in one table extent, replicated whole.
//!
//! Header, data blocks, filter, directory. Filter and directory stay in memory, so that a lookup costs no read when the key
//! is absent and one when it is there. Every structure is a frame that knows its place, and every read is verified.

pub(crate) mod block;
pub(crate) mod directory;
pub(crate) mod filter;
pub(crate) mod frame;
pub(crate) mod header;
pub(crate) mod mend;
pub(crate) mod store;
pub(crate) mod writer;

use std::rc::Rc;

use basalt_reactor::disk::BLOCK_LEN;

use self::block::{BLOCK_FRAME_LEN_MAX, BlockCursor};
use self::directory::Directory;
use self::filter::Filter;
use self::frame::{FRAME_HEAD_LEN, Fault, FrameKind, FramePlace};
use self::header::{HEADER_FRAME_LEN, Header, SECTION_FRAME_LEN, SECTION_PAYLOAD_LEN};
use self::store::TableStore;
use super::error::IndexError;
use super::memtable::Value;
use crate::extent::Placement;

/// A table as the manifest names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableDescriptor {
    pub placement: Placement,
    pub min_key: Box<[u8]>,
    pub max_key: Box<[u8]>,
    /// Bytes of the extent in use.
    pub len: u64,
    pub entry_count: u64,
    /// Of those, how many are tombstones.
    pub tombstone_count: u64,
    /// Order of the flushes that its entries came from; greater is newer. Tables of one flush share theirs.
    pub sequence: u64,
}

impl TableDescriptor {
    /// The header, if it is that of this table.
    ///
    /// # Errors
    /// [`Fault::Malformed`].
    pub(crate) fn check(&self, header: Header) -> Result<Header, Fault> {
        let agrees = header.sequence == self.sequence
            && header.table_len == self.len
            && header.entry_count == self.entry_count
            && header.min_key == self.min_key
            && header.max_key == self.max_key;
        if agrees { Ok(header) } else { Err(Fault::Malformed("the header contradicts the manifest")) }
    }
}

/// An open table: what is kept of it in memory.
pub(crate) struct Table {
    pub(crate) descriptor: TableDescriptor,
    pub(crate) filter: Filter,
    pub(crate) directory: Directory,
}

impl Table {
    /// Reads a table's header, filter and directory.
    pub(crate) async fn open(store: &TableStore, descriptor: TableDescriptor) -> Result<Table, IndexError> {
        let placement = &descriptor.placement;
        let slot_len = store.files.geometry().table_slot_len;
        let place = |kind, block| FramePlace { kind, extent: placement.id, block };
        let header = store
            .read_frame(placement, place(FrameKind::Header, 0), HEADER_FRAME_LEN, 0, |payload| {
                Header::decode(payload, slot_len).and_then(|header| descriptor.check(header))
            })
            .await?;
        let data_end = header.data_end().expect("a decoded header is consistent");
        let (filter, filter_end) =
            read_section(store, placement, FrameKind::Filter, data_end, header.filter_len as usize).await?;
        let (directory, _) =
            read_section(store, placement, FrameKind::Directory, filter_end, header.directory_len as usize)
                .await?;
        let corrupt = |block: u32, fault| IndexError::Corrupt {
            extent: placement.id,
            offset: u64::from(block) * BLOCK_LEN as u64,
            fault,
        };
        let filter = Filter::decode(&filter).map_err(|fault| corrupt(data_end, fault))?;
        let data_start = (HEADER_FRAME_LEN / BLOCK_LEN) as u32;
        let directory =
            Directory::decode(&directory, header.block_count, data_start, data_end, BLOCK_FRAME_LEN_MAX)
                .map_err(|fault| corrupt(filter_end, fault))?;
        Ok(Table { descriptor, filter, directory })
    }

    /// What `key` maps to here; the outer `None` when this table does not know it.
    pub(crate) async fn get(&self, store: &TableStore, key: &[u8]) -> Result<Option<Value>, IndexError> {
        let Some(index) = self.directory.find(key) else { return Ok(None) };
        let block = match store.cached(self, index) {
            Some(block) => block,
            None => {
                let blocks = store.read_blocks(self, index..index + 1).await?;
                let block = blocks.into_iter().next().expect("one block was asked for");
                store.keep(self, index, &block);
                block
            }
        };
        let mut cursor = BlockCursor::default();
        cursor.enter(block);
        let found = cursor.seek(key).map_err(|fault| self.corrupt(index, fault))?;
        Ok((found && cursor.key() == key).then(|| cursor.value().map(Rc::from)))
    }

    pub(crate) fn corrupt(&self, index: usize, fault: Fault) -> IndexError {
        let (block, _) = self.directory.place(index);
        let offset = u64::from(block) * BLOCK_LEN as u64;
        IndexError::Corrupt { extent: self.descriptor.placement.id, offset, fault }
    }

    /// Bytes of memory it keeps.
    pub(crate) fn memory_len(&self) -> usize {
        self.filter.len() + self.directory.len()
    }
}

/// Reads a section of `len` bytes that begins at `start`, in 4 KiB blocks; also returns where it ends.
async fn read_section(
    store: &TableStore,
    placement: &Placement,
    kind: FrameKind,
    start: u32,
    len: usize,
) -> Result<(Vec<u8>, u32), IndexError> {
    let mut section = Vec::with_capacity(len);
    let mut block = start;
    while section.len() < len {
        let payload_len = (len - section.len()).min(SECTION_PAYLOAD_LEN);
        let frame_len = (FRAME_HEAD_LEN + payload_len).next_multiple_of(BLOCK_LEN).min(SECTION_FRAME_LEN);
        let place = FramePlace { kind, extent: placement.id, block };
        let piece = store
            .read_frame(placement, place, frame_len, 0, |payload| {
                if payload.len() == payload_len {
                    Ok(payload.to_vec())
                } else {
                    Err(Fault::Malformed("length of a section"))
                }
            })
            .await?;
        section.extend_from_slice(&piece);
        block += (frame_len / BLOCK_LEN) as u32;
    }
    Ok((section, block))
}
