//! Writes a table as its entries arrive, in order, to all replicas at once.
//!
//! Blocks collect in a transfer buffer; while one buffer is on its way to the disks the next one fills. Filter, directory and
//! header follow at the end, then one sync per replica: only a table that is durable everywhere is ever named by a version.

use std::io;
use std::rc::Rc;

use basalt_reactor::disk::BLOCK_LEN;
use basalt_reactor::{Buf, JoinHandle, WriteMode};

use super::block::{BLOCK_FRAME_LEN_MAX, BlockBuilder};
use super::directory::{Directory, separator};
use super::filter::{Filter, filter_hash, filter_len};
use super::frame::{FRAME_HEAD_LEN, FrameKind, FramePlace, seal};
use super::header::{HEADER_FRAME_LEN, Header, SECTION_FRAME_LEN, SECTION_PAYLOAD_LEN, section_len};
use super::store::TableStore;
use super::{Table, TableDescriptor};
use crate::extent::flushes::FlushMark;
use crate::extent::members::Outcome;
use crate::extent::{DiskIndex, ExtentClass, Placement};
use crate::index::error::IndexError;
use crate::index::key::KEY_LEN_MAX;

/// Shortest transfer buffer, in bytes: any one frame fits.
pub(crate) const TRANSFER_LEN_MIN: usize = 128 * 1024;

const _: () = assert!(BLOCK_FRAME_LEN_MAX <= TRANSFER_LEN_MIN && SECTION_FRAME_LEN <= TRANSFER_LEN_MIN);

/// Shortest table slot, in bytes, so that any one entry fits a table.
pub(crate) const SLOT_LEN_MIN: u64 = 256 * 1024;

/// Who writes a table, and how.
#[derive(Clone, Copy)]
pub(crate) struct Authorship {
    pub(crate) shard: u32,
    pub(crate) epoch: u64,
    pub(crate) sequence: u64,
    /// Length that data blocks aim at, in bytes.
    pub(crate) block_len: usize,
}

pub(crate) struct TableWriter {
    store: Rc<TableStore>,
    placement: Placement,
    /// By column, from before the first write.
    marks: Vec<FlushMark>,
    authorship: Authorship,
    block: BlockBuilder,
    /// Length in 4 KiB blocks and last key of the block before, whose separator waits for the next key.
    ended: Option<(u32, Vec<u8>)>,
    directory: Directory,
    hashes: Vec<u64>,
    min_key: Option<Box<[u8]>>,
    max_key: Vec<u8>,
    entry_count: u64,
    tombstone_count: u64,
    out: Option<Buf>,
    out_len: usize,
    /// Offset in the extent where `out` begins.
    out_offset: u64,
    in_flight: Vec<(DiskIndex, JoinHandle<io::Result<Outcome>>)>,
    /// The members' epoch when the extent was placed.
    members_epoch: u64,
}

impl TableWriter {
    pub(crate) fn new(store: Rc<TableStore>, placement: Placement, authorship: Authorship) -> TableWriter {
        assert!(placement.class == ExtentClass::Table, "a table in an extent of another class");
        let flushes = store.files.flushes();
        let marks = placement.columns.iter().map(|column| flushes.mark(column.disk)).collect();
        let members_epoch = store.files.members().epoch();
        TableWriter {
            store,
            placement,
            marks,
            authorship,
            block: BlockBuilder::new(),
            ended: None,
            directory: Directory::new((HEADER_FRAME_LEN / BLOCK_LEN) as u32),
            hashes: Vec::new(),
            min_key: None,
            max_key: Vec::new(),
            entry_count: 0,
            tombstone_count: 0,
            out: None,
            out_len: 0,
            out_offset: HEADER_FRAME_LEN as u64,
            in_flight: Vec::new(),
            members_epoch,
        }
    }

    /// Whether the slot surely has room for another entry of these lengths.
    pub(crate) fn has_room(&self, key_len: usize, value_len: usize) -> bool {
        let ended = self.ended.as_ref().map_or(0, |(len, _)| *len);
        let data = (self.directory.end() + ended) as usize * BLOCK_LEN
            + self.block.len().next_multiple_of(BLOCK_LEN)
            + (BlockBuilder::new().len_with(key_len, value_len)).next_multiple_of(BLOCK_LEN);
        let filter = section_len(filter_len(self.hashes.len() + 1));
        let directory = section_len(self.directory.encoded_len() + 3 * (4 + KEY_LEN_MAX));
        data as u64 + filter + directory <= self.store.files.geometry().table_slot_len
    }

    /// Adds an entry (`None`: a tombstone). Keys ascend.
    pub(crate) async fn add(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), IndexError> {
        let value_len = value.map_or(0, <[u8]>::len);
        if !self.block.is_empty() && self.block.len_with(key.len(), value_len) > self.authorship.block_len {
            self.end_block().await?;
        }
        if let Some((len, last_key)) = self.ended.take() {
            self.directory.push(len, &separator(&last_key, key));
        }
        self.block.add(key, value);
        let hash = filter_hash(key);
        if self.hashes.last() != Some(&hash) {
            self.hashes.push(hash);
        }
        if self.min_key.is_none() {
            self.min_key = Some(key.into());
        }
        self.entry_count += 1;
        self.tombstone_count += u64::from(value.is_none());
        Ok(())
    }

    async fn end_block(&mut self) -> Result<(), IndexError> {
        let start = self.directory.end();
        self.max_key.clear();
        self.max_key.extend_from_slice(self.block.last_key());
        let len = self.block.len().next_multiple_of(BLOCK_LEN);
        self.make_room(len).await?;
        let (out, out_len) = (&mut self.out, &mut self.out_len);
        self.block.finish(self.placement.id, start, |frame| {
            let out = out.as_mut().expect("room was made");
            out[*out_len..*out_len + frame.len()].copy_from_slice(frame);
            *out_len += frame.len();
        });
        self.ended = Some(((len / BLOCK_LEN) as u32, self.max_key.clone()));
        Ok(())
    }

    /// Writes a filter or directory, cut into frames.
    async fn write_section(&mut self, kind: FrameKind, payload: &[u8]) -> Result<(), IndexError> {
        for piece in payload.chunks(SECTION_PAYLOAD_LEN) {
            let frame_len = FRAME_HEAD_LEN + piece.len();
            self.make_room(frame_len.next_multiple_of(BLOCK_LEN)).await?;
            let block = ((self.out_offset + self.out_len as u64) / BLOCK_LEN as u64) as u32;
            let out = self.out.as_mut().expect("room was made");
            let frame = &mut out[self.out_len..self.out_len + frame_len.next_multiple_of(BLOCK_LEN)];
            frame[FRAME_HEAD_LEN..frame_len].copy_from_slice(piece);
            frame[frame_len..].fill(0);
            seal(&mut frame[..frame_len], FramePlace { kind, extent: self.placement.id, block });
            self.out_len += frame.len();
        }
        Ok(())
    }

    /// Makes sure that the transfer buffer takes `len` more bytes.
    async fn make_room(&mut self, len: usize) -> Result<(), IndexError> {
        if self.out.as_ref().is_some_and(|out| self.out_len + len > out.len()) {
            self.submit().await?;
        }
        if self.out.is_none() {
            self.out = Some(self.store.core.arena().alloc(self.store.transfer_len).await);
        }
        Ok(())
    }

    /// Starts writing the transfer buffer, once the one before is written.
    async fn submit(&mut self) -> Result<(), IndexError> {
        self.settle().await?;
        let Some(mut out) = self.out.take() else { return Ok(()) };
        out.set_len(self.out_len);
        self.write(out, self.out_offset);
        self.out_offset += self.out_len as u64;
        self.out_len = 0;
        Ok(())
    }

    fn write(&mut self, buf: Buf, offset: u64) {
        let slice = buf.freeze();
        for column in self.placement.columns.clone() {
            let Some((file, base)) = self.store.files.locate(ExtentClass::Table, column) else { continue };
            let slice = slice.clone();
            let write = async move { file.write_at(slice, base + offset, WriteMode::Volatile).await };
            self.carry_out(column.disk, write);
        }
    }

    fn carry_out(&mut self, disk: DiskIndex, operation: impl Future<Output = io::Result<()>> + 'static) {
        let (core, files) = (self.store.core.clone(), Rc::clone(&self.store.files));
        let task = async move { files.carry_out(&core, disk, operation).await };
        self.in_flight.push((disk, self.store.core.spawn(task)));
    }

    /// Waits for every write in flight, whether or not one fails.
    async fn settle(&mut self) -> Result<(), IndexError> {
        let mut settled = Ok(());
        for (disk, write) in self.in_flight.drain(..) {
            match write.await.expect("nobody cancels a write") {
                Ok(Outcome::Done) => {}
                Ok(Outcome::Out) => settled = Err(IndexError::Out { extent: self.placement.id }),
                Err(error) => settled = Err(IndexError::Write { extent: self.placement.id, disk, error }),
            }
        }
        settled
    }

    /// Completes the table and makes it durable on every present replica.
    ///
    /// # Panics
    /// If it has no entry.
    pub(crate) async fn finish(mut self) -> Result<Table, (Placement, IndexError)> {
        match self.complete().await {
            Ok(table) => Ok(table),
            Err(error) => Err((self.abandon().await, error)),
        }
    }

    /// Waits until nothing writes to the extent any more; it is then free for another.
    pub(crate) async fn abandon(mut self) -> Placement {
        // A failure changes nothing: what was written will never be named.
        let _ = self.settle().await;
        self.placement
    }

    async fn complete(&mut self) -> Result<Table, IndexError> {
        self.end_block().await?;
        if let Some((len, last_key)) = self.ended.take() {
            self.directory.push(len, &last_key);
        }
        let filter = Filter::build(&std::mem::take(&mut self.hashes));
        self.write_section(FrameKind::Filter, &filter.encode()).await?;
        let directory_bytes = self.directory.encode();
        self.write_section(FrameKind::Directory, &directory_bytes).await?;
        self.submit().await?;
        let table_len = self.out_offset;
        assert!(table_len <= self.store.files.geometry().table_slot_len, "a table outgrew its slot");
        let header = Header {
            shard: self.authorship.shard,
            block_count: self.directory.block_count() as u32,
            epoch: self.authorship.epoch,
            sequence: self.authorship.sequence,
            entry_count: self.entry_count,
            tombstone_count: self.tombstone_count,
            table_len,
            filter_len: filter.len() as u64,
            directory_len: directory_bytes.len() as u64,
            min_key: self.min_key.take().expect("a table has entries"),
            max_key: self.max_key.as_slice().into(),
        };
        let mut frame = vec![0; FRAME_HEAD_LEN];
        header.encode(&mut frame);
        seal(&mut frame, FramePlace { kind: FrameKind::Header, extent: self.placement.id, block: 0 });
        let mut buf = self.store.core.arena().alloc(HEADER_FRAME_LEN).await;
        buf[..frame.len()].copy_from_slice(&frame);
        buf[frame.len()..].fill(0);
        self.write(buf, 0);
        self.settle().await?;
        self.sync().await?;
        let mut directory = std::mem::replace(&mut self.directory, Directory::new(0));
        directory.shrink();
        let descriptor = TableDescriptor {
            placement: self.placement.clone(),
            min_key: header.min_key,
            max_key: header.max_key,
            len: table_len,
            entry_count: self.entry_count,
            tombstone_count: self.tombstone_count,
            sequence: self.authorship.sequence,
        };
        Ok(Table { descriptor, filter, directory })
    }

    async fn sync(&mut self) -> Result<(), IndexError> {
        let columns = self.placement.columns.iter().copied().zip(self.marks.iter().copied());
        for (column, mark) in columns.collect::<Vec<_>>() {
            let Some((file, _)) = self.store.files.locate(ExtentClass::Table, column) else { continue };
            let sync = self.store.files.sync_since(&self.store.core, column.disk, &file, mark);
            self.carry_out(column.disk, sync);
        }
        if self.in_flight.is_empty() {
            let disks = self.placement.columns.iter().map(|column| column.disk).collect();
            return Err(IndexError::Absent { extent: self.placement.id, disks });
        }
        self.settle().await?;
        // A disk that went out between two writes was skipped in silence; another table may find a better place.
        if self.store.files.members().epoch() == self.members_epoch {
            Ok(())
        } else {
            Err(IndexError::Out { extent: self.placement.id })
        }
    }
}
