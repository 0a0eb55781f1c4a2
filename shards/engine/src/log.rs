//! The write-ahead log of one shard: batches appended to log extents, the same bytes to every replica.
//!
//! One batch is in flight at a time, written with RWF_DSYNC to all replicas at once and durable when the last of them
//! says so. That is group commit: whatever arrives meanwhile shares the next batch, and its flush. The payload of a
//! batch is also the first home of small objects.

pub(crate) mod replay;
pub(crate) mod scan;

use std::io;
use std::rc::Rc;

use basalt_reactor::disk::BLOCK_LEN;
use basalt_reactor::{Buf, Core, File, Slice, WriteMode};

use crate::body::DeviceError;
use crate::checksum::crc32c;
use crate::extent::flushes::{CoreFlushes, FlushMark};
use crate::extent::members::Outcome;
use crate::extent::{ArenaFiles, DiskIndex, ExtentClass, ExtentId, Placement};
use crate::format::batch::{BATCH_HEADER_LEN, BATCH_LEN_MAX, BatchHeader};
use crate::format::codec::Encoder;
use crate::format::log_header::LogHeader;
use crate::format::record::Record;
use crate::format::root::LogPosition;
use crate::mutant::Mutant;

/// Bytes at the start of a log extent that hold its header.
pub(crate) const LOG_HEADER_LEN: u32 = BLOCK_LEN as u32;

/// Bytes kept free at the end of the current extent until its successor is known to the log, so that the record naming
/// it always has a place.
const SUCCESSOR_RESERVE: u32 = BLOCK_LEN as u32;

/// A device failed under the log. What it holds beyond the last acknowledged batch is unknown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LogError {
    /// The set cannot do without the disk.
    Device { extent: ExtentId, disk: DiskIndex, error: DeviceError },
    /// The disk was taken out of the set: the log goes on in another extent.
    Out { extent: ExtentId, disk: DiskIndex },
}

impl std::fmt::Display for LogError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            LogError::Device { extent, disk, error } => {
                write!(f, "log extent {} on disk {}: {error}", extent.0, disk.0)
            }
            LogError::Out { extent, disk } => {
                write!(f, "log extent {} on disk {}: the disk was taken out", extent.0, disk.0)
            }
        }
    }
}

/// A log extent ready to take batches.
#[derive(Clone, Debug)]
pub(crate) struct LogExtent {
    pub(crate) placement: Rc<Placement>,
    pub(crate) nonce: [u8; 16],
}

/// What goes into one batch.
#[derive(Default)]
pub(crate) struct Batch {
    pub(crate) records: Vec<Record>,
    pub(crate) payload: Vec<Vec<u8>>,
}

/// Where an appended batch came to lie.
#[derive(Clone, Debug)]
pub(crate) struct Appended {
    pub(crate) extent: ExtentId,
    /// Of the payload, from the start of the extent, bytes.
    pub(crate) payload_offset: u64,
    /// Bytes the batch takes on each replica.
    pub(crate) disk_len: u64,
}

pub(crate) struct LogWriter {
    core: Core,
    files: Rc<ArenaFiles>,
    shard: u16,
    epoch: u64,
    current: LogExtent,
    offset: u32,
    sequence: u64,
    previous: [u8; 16],
}

impl LogWriter {
    /// A writer that starts `extent` with batch number `sequence`, whose predecessor hashes to `previous`.
    pub(crate) fn new(
        core: Core,
        files: Rc<ArenaFiles>,
        shard: u16,
        epoch: u64,
        extent: LogExtent,
        sequence: u64,
        previous: [u8; 16],
    ) -> LogWriter {
        LogWriter { core, files, shard, epoch, current: extent, offset: LOG_HEADER_LEN, sequence, previous }
    }

    /// Where the next batch goes, unless it does not fit.
    pub(crate) fn position(&self) -> LogPosition {
        LogPosition {
            extent: self.current.placement.id,
            offset: self.offset,
            sequence: self.sequence,
            previous: self.previous,
        }
    }

    pub(crate) fn extent(&self) -> ExtentId {
        self.current.placement.id
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Goes on in `next` under another epoch.
    pub(crate) fn enter(&mut self, epoch: u64, next: LogExtent) {
        self.epoch = epoch;
        self.switch(next);
    }

    /// Longest batch any extent of this log can hold while its successor is still unknown.
    pub(crate) fn batch_len_max(files: &ArenaFiles) -> usize {
        let slot = files.geometry().log_slot_len - u64::from(LOG_HEADER_LEN) - u64::from(SUCCESSOR_RESERVE);
        BATCH_LEN_MAX.min(usize::try_from(slot).unwrap_or(BATCH_LEN_MAX))
    }

    /// Whether a batch of at most `len` bytes fits the current extent; without a known successor some room stays free.
    pub(crate) fn fits(&self, len: usize, successor_known: bool) -> bool {
        let reserve = if successor_known { 0 } else { SUCCESSOR_RESERVE };
        let len = len.next_multiple_of(BLOCK_LEN) as u64;
        u64::from(self.offset) + len + u64::from(reserve) <= self.files.geometry().log_slot_len
    }

    /// Goes on in `next`.
    pub(crate) fn switch(&mut self, next: LogExtent) {
        self.current = next;
        self.offset = LOG_HEADER_LEN;
    }

    /// Appends `batch` to every replica and returns once it is durable on all of them.
    ///
    /// # Errors
    /// [`LogError`]: the batch may be durable on some replicas; nothing may be appended after it in this epoch.
    ///
    /// # Panics
    /// If the batch does not fit; the caller asked [`LogWriter::fits`].
    pub(crate) async fn append(&mut self, batch: &Batch, clock: u64) -> Result<Appended, LogError> {
        let (buf, header) = self.assemble(batch, clock).await;
        let offset = self.offset;
        let disk_len = buf.len() as u64;
        assert!(
            u64::from(offset) + disk_len <= self.files.geometry().log_slot_len,
            "a batch must fit its extent"
        );
        let data = buf.freeze();
        write_replicas(&self.core, &self.files, &self.current.placement, &data, u64::from(offset)).await?;
        self.offset += u32::try_from(disk_len).expect("a batch is at most 1 MiB");
        self.sequence += 1;
        self.previous = header.hash();
        Ok(Appended {
            extent: self.current.placement.id,
            payload_offset: u64::from(offset) + header.payload_offset() as u64,
            disk_len,
        })
    }

    async fn assemble(&self, batch: &Batch, clock: u64) -> (Buf, BatchHeader) {
        let mut out = Encoder::new();
        for record in &batch.records {
            record.encode(&mut out);
        }
        let records = out.finish();
        let payload_len: usize = batch.payload.iter().map(Vec::len).sum();
        let len = BATCH_HEADER_LEN + records.len() + payload_len;
        let mut buf = self.core.arena().alloc(len.next_multiple_of(BLOCK_LEN)).await;
        buf.set_len(len.next_multiple_of(BLOCK_LEN));
        let payload_start = BATCH_HEADER_LEN + records.len();
        buf[BATCH_HEADER_LEN..payload_start].copy_from_slice(&records);
        let mut at = payload_start;
        for piece in &batch.payload {
            buf[at..at + piece.len()].copy_from_slice(piece);
            at += piece.len();
        }
        buf[len..].fill(0);
        let header = BatchHeader {
            shard: self.shard,
            extent: self.current.placement.id,
            nonce: self.current.nonce,
            epoch: self.epoch,
            sequence: self.sequence,
            previous: self.previous,
            clock,
            record_count: u32::try_from(batch.records.len()).expect("bounded by the batch length"),
            records_len: u32::try_from(records.len()).expect("bounded by the batch length"),
            payload_len: u32::try_from(payload_len).expect("bounded by the batch length"),
            records_crc: crc32c(&records),
            payload_crc: crc32c(&buf[payload_start..len]),
        };
        buf[..BATCH_HEADER_LEN].copy_from_slice(&header.encode());
        (buf, header)
    }
}

/// Prewrites a log extent (so that later commits change no file metadata) and writes its header, durably.
pub(crate) async fn prepare_extent(
    core: &Core,
    files: &Rc<ArenaFiles>,
    placement: &Placement,
    header: &LogHeader,
    prewritten: bool,
) -> Result<(), LogError> {
    let marks = marks(files, placement);
    if !prewritten {
        let slot_len = files.geometry().log_slot_len;
        let chunk = slot_len.min(basalt_reactor::arena::BUF_LEN_MAX as u64);
        let mut zeros = core.arena().alloc(usize::try_from(chunk).expect("at most 1 MiB")).await;
        zeros.fill(0);
        let zeros = zeros.freeze();
        let mut offset = 0;
        while offset < slot_len {
            let len = chunk.min(slot_len - offset);
            let data = zeros.slice(0..usize::try_from(len).expect("at most 1 MiB"));
            write_columns(core, files, placement, &data, offset, WriteMode::Volatile).await?;
            offset += len;
        }
    }
    let bytes = header.encode();
    let mut block = core.arena().alloc(bytes.len()).await;
    block.copy_from_slice(&bytes);
    let block = block.freeze();
    write_columns(core, files, placement, &block, 0, WriteMode::Volatile).await?;
    sync_replicas(core, files, placement, marks).await
}

/// Makes durable whatever the present replicas of a log extent hold.
pub(crate) async fn sync_extent(
    core: &Core,
    files: &Rc<ArenaFiles>,
    placement: &Placement,
) -> Result<(), LogError> {
    match sync_replicas(core, files, placement, marks(files, placement)).await {
        // What is left is what counts.
        Ok(()) | Err(LogError::Out { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

fn marks(files: &ArenaFiles, placement: &Placement) -> Vec<FlushMark> {
    placement.columns.iter().map(|column| files.flushes().mark(column.disk)).collect()
}

async fn sync_replicas(
    core: &Core,
    files: &Rc<ArenaFiles>,
    placement: &Placement,
    marks: Vec<FlushMark>,
) -> Result<(), LogError> {
    let mut first = Ok(());
    for (&column, mark) in placement.columns.iter().zip(marks) {
        if let Some((file, _)) = files.locate(ExtentClass::Log, column) {
            let sync = files.sync_since(core, column.disk, &file, mark);
            match settled(placement.id, column.disk, files.carry_out(core, column.disk, sync).await) {
                Err(LogError::Out { extent, disk }) => first = Err(LogError::Out { extent, disk }),
                ended => ended?,
            }
        }
    }
    first
}

fn settled(extent: ExtentId, disk: DiskIndex, ended: io::Result<Outcome>) -> Result<(), LogError> {
    match ended {
        Ok(Outcome::Done) => Ok(()),
        Ok(Outcome::Out) => Err(LogError::Out { extent, disk }),
        Err(error) => Err(LogError::Device { extent, disk, error: (&error).into() }),
    }
}

async fn write_replicas(
    core: &Core,
    files: &Rc<ArenaFiles>,
    placement: &Placement,
    data: &Slice,
    offset: u64,
) -> Result<(), LogError> {
    let mode = if Mutant::LogWriteVolatile.is_active() { WriteMode::Volatile } else { WriteMode::Stable };
    write_columns(core, files, placement, data, offset, mode).await
}

/// Writes `data` at `offset` of every column whose disk is not out, all at once.
async fn write_columns(
    core: &Core,
    files: &Rc<ArenaFiles>,
    placement: &Placement,
    data: &Slice,
    offset: u64,
    mode: WriteMode,
) -> Result<(), LogError> {
    let extent = placement.id;
    if let [column] = placement.columns.as_slice()
        && let Some((file, start)) = files.locate(placement.class, *column)
    {
        let written =
            write_column(files.flushes(), column.disk, &file, data.clone(), start + offset, mode).await;
        return settled(extent, column.disk, written.map(|()| Outcome::Done));
    }
    let mut writes = Vec::with_capacity(placement.columns.len());
    for &column in &placement.columns {
        let Some((file, start)) = files.locate(placement.class, column) else { continue };
        let (flushes, files, data) = (Rc::clone(files.flushes()), Rc::clone(files), data.clone());
        let disk = column.disk;
        let other = core.clone();
        let write = async move {
            let write = async move { write_column(&flushes, disk, &file, data, start + offset, mode).await };
            files.carry_out(&other, disk, write).await
        };
        writes.push((disk, core.spawn(write)));
    }
    // With every replica out there is nothing that could be acknowledged.
    let mut first = match placement.columns.first() {
        Some(column) if writes.is_empty() => Err(LogError::Out { extent, disk: column.disk }),
        _ => Ok(()),
    };
    for (disk, write) in writes {
        let ended = write.await.expect("nobody cancels a log write");
        match (&first, settled(extent, disk, ended)) {
            // A device that the set cannot do without says more than one that it can.
            (Ok(()), Err(error)) | (Err(LogError::Out { .. }), Err(error @ LogError::Device { .. })) => {
                first = Err(error);
            }
            _ => {}
        }
    }
    first
}

async fn write_column(
    flushes: &Rc<CoreFlushes>,
    disk: DiskIndex,
    file: &File,
    data: Slice,
    offset: u64,
    mode: WriteMode,
) -> io::Result<()> {
    match mode {
        WriteMode::Volatile => file.write_at(data, offset, mode).await,
        WriteMode::Stable => flushes.write_stable(disk, file, data, offset).await,
    }
}
