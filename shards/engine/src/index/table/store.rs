//! Verified reads of table extents: any replica will do, as long as what it returns is what was written.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;

use basalt_reactor::Core;
use basalt_reactor::disk::BLOCK_LEN;

use super::Table;
use super::block::Block;
use super::frame::{Fault, FrameKind, FramePlace, open};
use crate::extent::{ArenaFiles, Column, ExtentClass, Placement};
use crate::index::cache::BlockCache;
use crate::index::error::{Damage, DamageCause, IndexError};

/// What the reads and scans of one index have cost so far.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) block_reads: Cell<u64>,
    pub(crate) cache_hits: Cell<u64>,
    pub(crate) filter_passes: Cell<u64>,
    pub(crate) filter_denials: Cell<u64>,
    pub(crate) steps: Cell<u64>,
}

pub(crate) fn count(counter: &Cell<u64>, by: u64) {
    counter.set(counter.get() + by);
}

/// The table extents of one shard as a place to read from.
pub(crate) struct TableStore {
    pub(crate) core: Core,
    pub(crate) files: Rc<ArenaFiles>,
    pub(crate) cache: RefCell<BlockCache>,
    pub(crate) counters: Counters,
    pub(crate) report: Rc<dyn Fn(Damage)>,
    /// Longest single read or write, in bytes.
    pub(crate) transfer_len: usize,
}

impl TableStore {
    /// Reads the frame of `len` bytes at `place` from the first replica, counted from `first`, where it is intact and
    /// `decode` takes its payload.
    pub(crate) async fn read_frame<T>(
        &self,
        placement: &Placement,
        place: FramePlace,
        len: usize,
        first: usize,
        decode: impl Fn(&[u8]) -> Result<T, Fault>,
    ) -> Result<T, IndexError> {
        let extent = placement.id;
        let offset = u64::from(place.block) * BLOCK_LEN as u64;
        let mut error = IndexError::Absent { extent };
        for column in rotated(&placement.columns, first) {
            let Some((file, base)) = self.files.locate(ExtentClass::Table, column) else { continue };
            let buf = self.core.arena().alloc(len).await;
            let (result, buf) = file.read_at(buf, base + offset).await;
            let cause = match result {
                Ok(read_len) => match open(&buf[..read_len], place).and_then(&decode) {
                    Ok(decoded) => return Ok(decoded),
                    Err(fault) => {
                        error = IndexError::Corrupt { extent, offset, fault };
                        DamageCause::Fault(fault)
                    }
                },
                Err(failure) => {
                    let kind = failure.kind();
                    error = IndexError::Read { extent, offset, error: failure };
                    DamageCause::Io(kind)
                }
            };
            (self.report)(Damage { extent, column, offset, len: len as u64, cause });
        }
        Err(error)
    }

    /// Reads the data blocks `indices` of `table`, neighbours in one transfer.
    pub(crate) async fn read_blocks(
        &self,
        table: &Table,
        indices: Range<usize>,
    ) -> Result<Vec<Rc<Block>>, IndexError> {
        let placement = &table.descriptor.placement;
        let preferred = (placement.id.0 % placement.columns.len().max(1) as u64) as usize;
        count(&self.counters.block_reads, 1);
        if indices.len() == 1 {
            return Ok(vec![self.read_block(table, indices.start, preferred).await?]);
        }
        let (start, _) = table.directory.place(indices.start);
        let (last, last_len) = table.directory.place(indices.end - 1);
        let offset = u64::from(start) * BLOCK_LEN as u64;
        let len = (last + last_len - start) as usize * BLOCK_LEN;
        let column = rotated(&placement.columns, preferred).next();
        let located = column.and_then(|column| {
            self.files.locate(ExtentClass::Table, column).map(|(file, base)| (file, base, column))
        });
        let mut read = None;
        if let Some((file, base, column)) = located {
            let buf = self.core.arena().alloc(len).await;
            let (result, buf) = file.read_at(buf, base + offset).await;
            match result {
                Ok(read_len) => read = Some((buf, read_len, column)),
                Err(error) => {
                    let cause = DamageCause::Io(error.kind());
                    (self.report)(Damage { extent: placement.id, column, offset, len: len as u64, cause });
                }
            }
        }
        let mut blocks = Vec::with_capacity(indices.len());
        for index in indices {
            let (block, block_len) = table.directory.place(index);
            let place = FramePlace { kind: FrameKind::Data, extent: placement.id, block };
            if let Some((buf, read_len, column)) = &read {
                let frame_start = (block - start) as usize * BLOCK_LEN;
                let frame_len = block_len as usize * BLOCK_LEN;
                let frame = buf[..*read_len].get(frame_start..).unwrap_or_default();
                match open(&frame[..frame.len().min(frame_len)], place).and_then(Block::new) {
                    Ok(block) => {
                        blocks.push(Rc::new(block));
                        continue;
                    }
                    Err(fault) => (self.report)(Damage {
                        extent: placement.id,
                        column: *column,
                        offset: u64::from(block) * BLOCK_LEN as u64,
                        len: frame_len as u64,
                        cause: DamageCause::Fault(fault),
                    }),
                }
            }
            // The others first: the preferred one has just failed.
            blocks.push(self.read_block(table, index, preferred + 1).await?);
        }
        Ok(blocks)
    }

    async fn read_block(&self, table: &Table, index: usize, first: usize) -> Result<Rc<Block>, IndexError> {
        let (block, len) = table.directory.place(index);
        let placement = &table.descriptor.placement;
        let place = FramePlace { kind: FrameKind::Data, extent: placement.id, block };
        let block = self.read_frame(placement, place, len as usize * BLOCK_LEN, first, Block::new).await?;
        Ok(Rc::new(block))
    }

    /// A block from the cache.
    pub(crate) fn cached(&self, table: &Table, index: usize) -> Option<Rc<Block>> {
        let (block, _) = table.directory.place(index);
        let cached = self.cache.borrow().get(table.descriptor.placement.id, block)?;
        count(&self.counters.cache_hits, 1);
        Some(cached)
    }

    pub(crate) fn keep(&self, table: &Table, index: usize, block: &Rc<Block>) {
        let (offset, _) = table.directory.place(index);
        self.cache.borrow_mut().insert(table.descriptor.placement.id, offset, block);
    }
}

/// The columns in order, beginning with number `first`.
fn rotated(columns: &[Column], first: usize) -> impl Iterator<Item = Column> {
    (0..columns.len()).map(move |index| columns[(first + index) % columns.len()])
}
