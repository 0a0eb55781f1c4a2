//! The batches of a log extent one after the other, each from a replica that has it whole: for a replica that is to be made.

use basalt_reactor::disk::BLOCK_LEN;
use basalt_reactor::{Buf, Core};

use super::{LOG_HEADER_LEN, LogExtent};
use crate::extent::{ArenaFiles, Column, DiskIndex, ExtentClass};
use crate::format::batch::{BATCH_LEN_MAX, BatchHeader};

/// Bytes read at one time: any batch fits.
const WINDOW_LEN: usize = BATCH_LEN_MAX.next_multiple_of(BLOCK_LEN);

/// A walk over a log extent, from its first batch to its end.
pub(crate) struct BatchScan<'a> {
    core: &'a Core,
    files: &'a ArenaFiles,
    shard: u16,
    extent: &'a LogExtent,
    replicas: Vec<Replica>,
    offset: u64,
}

struct Replica {
    column: Column,
    /// What was read of it last, and where that begins; empty where it cannot be read.
    window: Option<(u64, Buf)>,
}

impl<'a> BatchScan<'a> {
    /// Reads the replicas on disks other than `except`.
    pub(crate) fn new(
        core: &'a Core,
        files: &'a ArenaFiles,
        shard: u16,
        extent: &'a LogExtent,
        except: DiskIndex,
    ) -> BatchScan<'a> {
        let others = extent.placement.columns.iter().filter(|column| column.disk != except);
        let replicas = others.map(|&column| Replica { column, window: None }).collect();
        BatchScan { core, files, shard, extent, replicas, offset: u64::from(LOG_HEADER_LEN) }
    }

    /// Offset and bytes of the next batch, padding included.
    pub(crate) async fn next(&mut self) -> Option<(u64, Vec<u8>)> {
        let end = self.files.geometry().log_slot_len;
        while self.offset < end {
            let at = self.offset;
            for index in 0..self.replicas.len() {
                if let Some(batch) = self.batch_at(index, at).await {
                    self.offset = at + batch.len() as u64;
                    return Some((at, batch));
                }
            }
            self.offset += BLOCK_LEN as u64;
        }
        None
    }

    async fn batch_at(&mut self, index: usize, at: u64) -> Option<Vec<u8>> {
        let head = self.get(index, at, BLOCK_LEN).await?;
        let header = BatchHeader::decode(head).ok()?;
        let is_ours = header.nonce == self.extent.nonce
            && header.extent == self.extent.placement.id
            && header.shard == self.shard;
        if !is_ours {
            return None;
        }
        let bytes = self.get(index, at, header.disk_len()).await?;
        header.decode_records(bytes).ok()?;
        Some(bytes.to_vec())
    }

    /// `len` bytes at `at` of a replica, if it gives them.
    async fn get(&mut self, index: usize, at: u64, len: usize) -> Option<&[u8]> {
        let replica = &mut self.replicas[index];
        let covers = |(start, buf): &(u64, Buf)| *start <= at && at + len as u64 <= start + buf.len() as u64;
        if !replica.window.as_ref().is_some_and(covers) {
            let end = self.files.geometry().log_slot_len;
            let want = (end - at).min(WINDOW_LEN as u64) as usize;
            let (file, start) = self.files.locate_readable(ExtentClass::Log, replica.column)?;
            let kept = replica.window.take().map(|(_, buf)| buf).filter(|buf| buf.capacity() >= want);
            let mut buf = match kept {
                Some(buf) => buf,
                None => self.core.arena().alloc(want).await,
            };
            buf.set_len(want);
            let members = self.files.members();
            let read = members.read(self.core, replica.column.disk, (&file, start + at), buf);
            let (result, mut buf) = read.await?;
            // What could not be read holds no batch, and is not asked for again.
            if !matches!(result, Ok(got) if got == want) {
                buf.fill(0);
            }
            replica.window = Some((at, buf));
        }
        let (start, buf) = replica.window.as_ref()?;
        let from = (at - start) as usize;
        buf.get(from..from + len)
    }
}
