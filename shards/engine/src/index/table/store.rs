//! Verified reads of table extents: any replica will do, as long as what it returns is what was written.

use std::cell::{Cell, RefCell};
use std::io;
use std::ops::Range;
use std::rc::Rc;

use basalt_reactor::disk::BLOCK_LEN;
use basalt_reactor::{Buf, Core};

use super::Table;
use super::block::Block;
use super::frame::{Fault, FrameKind, FramePlace, open};
use crate::extent::replicas::ReplicaRead;
use crate::extent::{ArenaFiles, ExtentClass, Placement};
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
        let disks = || placement.columns.iter().map(|column| column.disk).collect();
        let mut error = IndexError::Absent { extent, disks: disks() };
        let open = |_, result: io::Result<usize>, buf: Buf| {
            let read_len = result.map_err(Refusal::Io)?;
            open(&buf[..read_len], place).and_then(&decode).map_err(Refusal::Fault)
        };
        let decoded = self
            .replicas(placement, first, offset, len)
            .first_good(open, |index, refusal| {
                let cause = match refusal {
                    Refusal::Fault(fault) => {
                        error = IndexError::Corrupt { extent, offset, fault };
                        DamageCause::Fault(fault)
                    }
                    Refusal::Io(failure) => {
                        let kind = failure.kind();
                        error = IndexError::Read { extent, offset, disks: disks(), error: failure };
                        DamageCause::Io(kind)
                    }
                };
                let column = placement.columns[index];
                (self.report)(Damage { extent, column, offset, len: len as u64, cause });
            })
            .await;
        decoded.ok_or(error)
    }

    fn replicas<'a>(
        &'a self,
        placement: &'a Placement,
        first: usize,
        offset: u64,
        len: usize,
    ) -> ReplicaRead<'a> {
        ReplicaRead {
            core: &self.core,
            files: &self.files,
            class: ExtentClass::Table,
            columns: &placement.columns,
            first,
            offset,
            len,
        }
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
        let keep = |index, result: io::Result<usize>, buf: Buf| result.map(|read_len| (buf, read_len, index));
        let read = self
            .replicas(placement, preferred, offset, len)
            .first_good(keep, |index, error| {
                let (column, cause) = (placement.columns[index], DamageCause::Io(error.kind()));
                (self.report)(Damage { extent: placement.id, column, offset, len: len as u64, cause });
            })
            .await;
        let answered = read.as_ref().map_or(preferred, |(_, _, index)| *index);
        let mut blocks = Vec::with_capacity(indices.len());
        for index in indices {
            let (block, block_len) = table.directory.place(index);
            let place = FramePlace { kind: FrameKind::Data, extent: placement.id, block };
            if let Some((buf, read_len, index)) = &read {
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
                        column: placement.columns[*index],
                        offset: u64::from(block) * BLOCK_LEN as u64,
                        len: frame_len as u64,
                        cause: DamageCause::Fault(fault),
                    }),
                }
            }
            // The others first: the one that answered has just failed.
            blocks.push(self.read_block(table, index, answered + 1).await?);
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

/// Why a replica's answer was not taken.
enum Refusal {
    Fault(Fault),
    Io(io::Error),
}
