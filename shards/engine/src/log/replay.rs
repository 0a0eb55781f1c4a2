//! Reading the log back: each batch from any replica that has it whole.
//!
//! The log ends where no replica has the next batch. Because a batch is written only after its predecessor is durable
//! everywhere, a valid batch beyond a missing one proves that acknowledged data is damaged; that is refused with the
//! evidence and never cut off.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use basalt_reactor::disk::BLOCK_LEN;
use basalt_reactor::{Buf, Core};

use super::{LOG_HEADER_LEN, LogError, LogExtent};
use crate::extent::members::STUCK_AFTER;
use crate::extent::replicas::ReplicaRead;
use crate::extent::{ArenaFiles, Column, ExtentClass, ExtentId, Placement};
use crate::format::batch::{BATCH_HEADER_LEN, BATCH_LEN_MAX, BatchError, BatchHeader};
use crate::format::log_header::LogHeader;
use crate::format::manifest::ExtentEntry;
use crate::format::record::Record;
use crate::format::root::LogPosition;
use crate::mutant::Mutant;

/// A batch read back.
pub(crate) struct ReplayedBatch {
    pub(crate) header: BatchHeader,
    pub(crate) records: Vec<Record>,
    /// Its bytes, header included.
    pub(crate) bytes: Vec<u8>,
    /// From the start of its extent.
    pub(crate) offset: u32,
}

impl ReplayedBatch {
    pub(crate) fn payload(&self) -> &[u8] {
        let start = self.header.payload_offset();
        &self.bytes[start..start + self.header.payload_len as usize]
    }
}

/// Why a log cannot be replayed to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ReplayError {
    /// Batch `missing` is on no replica, but the later batch `found` is: acknowledged data is damaged.
    Damaged {
        extent: ExtentId,
        offset: u32,
        missing: u64,
        found: u64,
        found_offset: u32,
        reasons: Vec<String>,
    },
    /// The log seems to end in an extent whose place holds another one: what named it is older than what is on the disks.
    Recycled { extent: ExtentId, reasons: Vec<String> },
    /// An extent the log did not lead to holds batch `found`, which is later than the log's end before `missing`.
    Unreached { extent: ExtentId, missing: u64, found: u64 },
    /// The log begins in an extent that the manifest does not have.
    NoStart { extent: ExtentId },
}

impl std::fmt::Display for ReplayError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ReplayError::Damaged { extent, offset, missing, found, found_offset, reasons } => write!(
                f,
                "acknowledged data is damaged: batch {missing} at {offset} of log extent {} is on no replica, but \
                 batch {found} is there at {found_offset} ({})",
                extent.0,
                reasons.join("; ")
            ),
            ReplayError::Recycled { extent, reasons } => write!(
                f,
                "the log ends in extent {}, whose header is on no replica ({})",
                extent.0,
                reasons.join("; ")
            ),
            ReplayError::Unreached { extent, missing, found } => write!(
                f,
                "acknowledged data is damaged: the log ends before batch {missing}, but batch {found} is in log extent \
                 {}, which it did not lead to",
                extent.0
            ),
            ReplayError::NoStart { extent } => write!(f, "log extent {} is not in the manifest", extent.0),
        }
    }
}

impl std::error::Error for ReplayError {}

/// Walks a log from a position to its end.
pub(crate) struct Replay {
    core: Core,
    files: Rc<ArenaFiles>,
    shard: u16,
    position: LogPosition,
    extent: LogExtent,
    /// The extent that the log goes on in behind `extent`, if one is named yet. There is never a second one.
    successor: Option<LogExtent>,
}

impl Replay {
    pub(crate) fn new(
        core: Core,
        files: Rc<ArenaFiles>,
        shard: u16,
        position: LogPosition,
        extent: LogExtent,
    ) -> Replay {
        Replay { core, files, shard, position, extent, successor: None }
    }

    /// A walk from a root on: its position, and the manifest that it names.
    ///
    /// # Errors
    /// [`ReplayError::NoStart`] when the manifest lacks the extent of the position.
    pub(crate) fn behind<'a>(
        core: Core,
        files: Rc<ArenaFiles>,
        shard: u16,
        position: LogPosition,
        extents: impl Iterator<Item = &'a ExtentEntry>,
    ) -> Result<Replay, ReplayError> {
        let (mut first, mut successor) = (None, None);
        for entry in extents.filter(|entry| entry.placement.class == ExtentClass::Log) {
            let extent = || LogExtent { placement: Rc::new(entry.placement.clone()), nonce: entry.nonce };
            if entry.placement.id == position.extent {
                first = Some(extent());
            } else if entry.placement.id > position.extent && !entry.sealed {
                successor = Some(extent());
            }
        }
        let extent = first.ok_or(ReplayError::NoStart { extent: position.extent })?;
        Ok(Replay { core, files, shard, position, extent, successor })
    }

    /// The next batch, or `None` at the end of the log.
    pub(crate) async fn next(&mut self) -> Result<Option<ReplayedBatch>, ReplayError> {
        let mut reasons = Vec::new();
        let mut found = self.read(&self.extent, self.position.offset, &mut reasons).await;
        if found.is_none()
            && let Some(next) = &self.successor
        {
            found = self.read(next, LOG_HEADER_LEN, &mut reasons).await;
            if found.is_some() {
                self.extent = self.successor.take().expect("it was there just now");
            }
        }
        if let Some(batch) = found {
            for record in &batch.records {
                if let Record::ExtentOpened { placement, nonce } = record
                    && placement.class == ExtentClass::Log
                {
                    let placement = Rc::new(placement.clone());
                    self.successor = Some(LogExtent { placement, nonce: *nonce });
                }
            }
            return Ok(Some(self.advance(batch)));
        }
        if Mutant::DamagedLogCutOff.is_active() {
            return Ok(None);
        }
        self.refuse_later_batches(reasons).await?;
        for extent in self.ahead() {
            self.check_header(extent).await?;
        }
        Ok(None)
    }

    /// The extents where a next batch may be.
    fn ahead(&self) -> impl Iterator<Item = &LogExtent> {
        std::iter::once(&self.extent).chain(&self.successor)
    }

    /// The next batch of a sealed extent, whatever its number; `None` behind the last one, or where no replica has it, or none
    /// says so in time.
    pub(crate) async fn next_in_extent(&mut self) -> Option<ReplayedBatch> {
        let has_others = self.extent.placement.columns.len() > 1;
        let core = self.core.clone();
        let batch = {
            let mut read = pin!(self.read_in_extent());
            let mut late = pin!(core.sleep(STUCK_AFTER));
            poll_fn(|cx| match read.as_mut().poll(cx) {
                // That nobody has one is known only when all have answered.
                Poll::Pending if has_others => late.as_mut().poll(cx).map(|()| None),
                polled => polled,
            })
            .await
        };
        batch.map(|batch| self.advance(batch))
    }

    async fn read_in_extent(&self) -> Option<ReplayedBatch> {
        let offset = self.position.offset;
        if u64::from(offset) + BLOCK_LEN as u64 > self.files.geometry().log_slot_len {
            return None;
        }
        let extent = self.extent.clone();
        // Unlike at recovery somebody may be waiting, and a disk that is late is not waited for.
        let replicas = |len| ReplicaRead {
            core: &self.core,
            files: &self.files,
            class: ExtentClass::Log,
            columns: &extent.placement.columns,
            first: 0,
            offset: offset.into(),
            len,
        };
        let whole = |result: io::Result<usize>, buf: Buf| {
            if matches!(result, Ok(len) if len == buf.len()) { Ok(buf) } else { Err(()) }
        };
        let header_of = |result, buf| {
            let header = self.header_of(&extent, &whole(result, buf)?).map_err(drop)?;
            let end = u64::from(offset) + header.disk_len() as u64;
            if end <= self.files.geometry().log_slot_len { Ok(header) } else { Err(()) }
        };
        let header =
            replicas(BLOCK_LEN).first_good(|_, result, buf| header_of(result, buf), |_, ()| {}).await?;
        let open = |result, buf| {
            let bytes = whole(result, buf)?;
            let found = self.header_of(&extent, &bytes).map_err(drop)?;
            let records = found.decode_records(&bytes).map_err(drop)?;
            Ok(ReplayedBatch { header: found, records, bytes: bytes.to_vec(), offset })
        };
        replicas(header.disk_len()).first_good(|_, result, buf| open(result, buf), |_, ()| {}).await
    }

    /// Number of the batch that [`Replay::next`] looks for.
    pub(crate) fn next_sequence(&self) -> u64 {
        self.position.sequence
    }

    /// Makes the last batch durable where it was found. It may have been read from a drive's cache, which the next power
    /// cut empties: then its copy under the next epoch would be all there is of it, in an extent that nothing names yet.
    pub(crate) async fn settle(&self) -> Result<(), LogError> {
        super::sync_extent(&self.core, &self.files, &self.extent.placement).await
    }

    fn advance(&mut self, batch: ReplayedBatch) -> ReplayedBatch {
        self.position = LogPosition {
            extent: batch.header.extent,
            offset: batch.offset + u32::try_from(batch.header.disk_len()).expect("at most 1 MiB"),
            sequence: batch.header.sequence + 1,
            previous: batch.header.hash(),
        };
        batch
    }

    /// Batch number `position.sequence` at `offset` of `extent`, from the first replica that has it whole.
    async fn read(
        &self,
        extent: &LogExtent,
        offset: u32,
        reasons: &mut Vec<String>,
    ) -> Option<ReplayedBatch> {
        if u64::from(offset) + BLOCK_LEN as u64 > self.files.geometry().log_slot_len {
            return None;
        }
        for &column in &extent.placement.columns {
            match self.read_replica(extent, column, offset).await {
                Ok(batch) if batch.header.sequence == self.position.sequence => {
                    if batch.header.previous == self.position.previous {
                        return Some(batch);
                    }
                    reasons.push(format!("disk {}: batch names another predecessor", column.disk.0));
                }
                Ok(batch) => {
                    reasons.push(format!("disk {}: holds batch {}", column.disk.0, batch.header.sequence));
                }
                Err(reason) => reasons.push(format!("disk {}: {reason}", column.disk.0)),
            }
        }
        None
    }

    async fn read_replica(
        &self,
        extent: &LogExtent,
        column: Column,
        offset: u32,
    ) -> Result<ReplayedBatch, String> {
        let first = self.read_bytes(extent, column, offset, BLOCK_LEN).await?;
        let header = self.header_of(extent, &first).map_err(|error| error.to_string())?;
        let len = header.disk_len();
        if u64::from(offset) + len as u64 > self.files.geometry().log_slot_len {
            return Err("batch reaches beyond its extent".to_owned());
        }
        let bytes = if len > first.len() {
            self.read_bytes(extent, column, offset, len).await?.to_vec()
        } else {
            first.to_vec()
        };
        let records = header.decode_records(&bytes).map_err(|error| error.to_string())?;
        Ok(ReplayedBatch { header, records, bytes, offset })
    }

    /// The header that starts `bytes`, if it belongs to this use of the extent.
    fn header_of(&self, extent: &LogExtent, bytes: &[u8]) -> Result<BatchHeader, BatchError> {
        let header = BatchHeader::decode(bytes)?;
        let ours = header.nonce == extent.nonce
            && header.extent == extent.placement.id
            && header.shard == self.shard;
        if ours { Ok(header) } else { Err(BatchError::NoHeader) }
    }

    async fn read_bytes(
        &self,
        extent: &LogExtent,
        column: Column,
        offset: u32,
        len: usize,
    ) -> Result<Buf, String> {
        let (file, start) = self
            .files
            .locate_readable(extent.placement.class, column)
            .ok_or_else(|| "the disk is absent".to_owned())?;
        let buf = self.core.arena().alloc(len).await;
        match file.read_at(buf, start + u64::from(offset)).await {
            (Ok(got), buf) if got == len => Ok(buf),
            (Ok(got), _) => Err(format!("read {got} of {len} bytes")),
            (Err(error), _) => Err(error.to_string()),
        }
    }

    /// Looks through the rest of this extent and its successor for any valid batch with a later number.
    async fn refuse_later_batches(&self, reasons: Vec<String>) -> Result<(), ReplayError> {
        let slot_len = self.files.geometry().log_slot_len;
        for (extent, from) in self.ahead().zip([self.position.offset, LOG_HEADER_LEN]) {
            for &column in &extent.placement.columns {
                let mut offset = u64::from(from);
                while offset < slot_len {
                    let len = (slot_len - offset).min(BATCH_LEN_MAX as u64);
                    let len = usize::try_from(len).expect("at most 1 MiB");
                    let at = u32::try_from(offset).expect("log slots stay below 4 GiB");
                    // A replica that cannot be read has no say here; the others do.
                    if let Ok(bytes) = self.read_bytes(extent, column, at, len).await
                        && let Some((found, block)) = self.later_header(extent, &bytes)
                    {
                        let whole = self.read_replica(extent, column, at + block).await.is_ok();
                        if whole {
                            return Err(ReplayError::Damaged {
                                extent: self.extent.placement.id,
                                offset: self.position.offset,
                                missing: self.position.sequence,
                                found,
                                found_offset: at + block,
                                reasons,
                            });
                        }
                    }
                    offset += len as u64;
                }
            }
        }
        Ok(())
    }

    /// Makes sure that the place of `extent` still holds it: a root that is older than it seems names places that were
    /// given to other extents since, and their batches would not be missed.
    async fn check_header(&self, extent: &LogExtent) -> Result<(), ReplayError> {
        let mut reasons = Vec::new();
        for &column in &extent.placement.columns {
            match self.read_bytes(extent, column, 0, LOG_HEADER_LEN as usize).await {
                Ok(bytes) => match LogHeader::decode(&bytes) {
                    Ok(header) if header.extent == extent.placement.id && header.nonce == extent.nonce => {
                        return Ok(());
                    }
                    Ok(header) => {
                        reasons.push(format!("disk {}: extent {}", column.disk.0, header.extent.0));
                    }
                    Err(error) => reasons.push(format!("disk {}: {error}", column.disk.0)),
                },
                Err(reason) => reasons.push(format!("disk {}: {reason}", column.disk.0)),
            }
        }
        Err(ReplayError::Recycled { extent: extent.placement.id, reasons })
    }

    fn later_header(&self, extent: &LogExtent, bytes: &[u8]) -> Option<(u64, u32)> {
        bytes.chunks_exact(BLOCK_LEN).enumerate().find_map(|(index, block)| {
            debug_assert!(block.len() >= BATCH_HEADER_LEN);
            let header = self.header_of(extent, block).ok()?;
            (header.sequence > self.position.sequence)
                .then(|| (header.sequence, u32::try_from(index * BLOCK_LEN).expect("below 1 MiB")))
        })
    }
}

/// Refuses a log that ends before batch `missing` although one of `columns`, places where it did not come by, holds that
/// batch or a later one: the records that would name the extent, or the root before them, are damaged.
pub(crate) async fn refuse_unreached(
    core: &Core,
    files: &Rc<ArenaFiles>,
    shard: u16,
    deployment: [u8; 16],
    columns: &[Column],
    missing: u64,
) -> Result<(), ReplayError> {
    for &column in columns {
        let Some((file, start)) = files.locate_readable(ExtentClass::Log, column) else { continue };
        let buf = core.arena().alloc(LOG_HEADER_LEN as usize).await;
        let (Ok(_), bytes) = file.read_at(buf, start).await else { continue };
        let Ok(header) = LogHeader::decode(&bytes) else { continue };
        if header.deployment != deployment || header.shard != shard {
            continue;
        }
        let placement = Placement { id: header.extent, class: ExtentClass::Log, columns: vec![column] };
        let extent = LogExtent { placement: Rc::new(placement), nonce: header.nonce };
        let position = LogPosition {
            extent: header.extent,
            offset: LOG_HEADER_LEN,
            sequence: missing,
            previous: [0; 16],
        };
        let replay = Replay::new(core.clone(), Rc::clone(files), shard, position, extent.clone());
        if let Ok(batch) = replay.read_replica(&extent, column, LOG_HEADER_LEN).await
            && batch.header.sequence >= missing
        {
            let found = batch.header.sequence;
            return Err(ReplayError::Unreached { extent: header.extent, missing, found });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use basalt_reactor::sim::{Config, Crash, World};
    use basalt_reactor::{Disk, WriteMode};

    use super::*;
    use crate::extent::{DiskFiles, DiskIndex, Geometry};
    use crate::log::{Batch, LogWriter};

    const GEOMETRY: Geometry = Geometry {
        k: 1,
        m: 0,
        strip_len: 4096,
        log_slot_len: 1 << 20,
        data_slot_len: 1 << 20,
        table_slot_len: 1 << 20,
    };

    fn extent() -> LogExtent {
        let column = Column { disk: DiskIndex(0), slot: 0 };
        let placement = Placement { id: ExtentId(1), class: ExtentClass::Log, columns: vec![column] };
        LogExtent { placement: Rc::new(placement), nonce: [3; 16] }
    }

    fn position() -> LogPosition {
        LogPosition { extent: ExtentId(1), offset: LOG_HEADER_LEN, sequence: 7, previous: [0; 16] }
    }

    fn open(core: &Core) -> Rc<ArenaFiles> {
        let disk = Disk::open(core, Path::new("disk0")).expect("opens");
        let file = || disk.open_file("log").expect("opens");
        let files = DiskFiles { root: file(), log: file(), data: file(), table: file(), disk: disk.clone() };
        ArenaFiles::new(GEOMETRY, vec![Some(files)])
    }

    /// Replays a log whose only batch is in the drive's cache, cuts the power, and replays again.
    fn is_there_after_a_power_cut(seed: u64, settled: bool) -> bool {
        let mut world = World::new(seed, Config::with_disks(1, 64 << 20));
        let core = world.boot(1).remove(0);
        world.run(async move {
            let disk = Disk::open(&core, Path::new("disk0")).expect("opens");
            let file = disk.create_file("log").expect("creates");
            file.grow(GEOMETRY.log_slot_len).await.expect("has room");
            file.sync().await.expect("syncs");
            disk.sync().await.expect("syncs");
            let log = LogWriter::new(core.clone(), open(&core), 0, 2, extent(), 7, [0; 16]);
            let (buf, _) = log.assemble(&Batch::default(), 9).await;
            // As a process leaves it that was killed before its write was flushed.
            file.write_at(buf.freeze(), u64::from(LOG_HEADER_LEN), WriteMode::Volatile)
                .await
                .expect("writes");
            drop(log);
        });
        world.crash(Crash::Kill);
        world.run_until_idle();
        let core = world.boot(1).remove(0);
        world.run(async move {
            let mut replay = Replay::new(core.clone(), open(&core), 0, position(), extent());
            assert!(replay.next().await.expect("nothing is damaged").is_some(), "the cache has it");
            if settled {
                replay.settle().await.expect("the device is sound");
            }
        });
        world.crash(Crash::PowerCut);
        let core = world.boot(1).remove(0);
        world.run(async move {
            let replay = Replay::new(core.clone(), open(&core), 0, position(), extent());
            replay.read(&extent(), LOG_HEADER_LEN, &mut Vec::new()).await.is_some()
        })
    }

    #[test]
    fn what_was_replayed_from_a_cache_is_durable_once_settled() {
        assert!((0..30).all(|seed| is_there_after_a_power_cut(seed, true)));
        assert!(
            !(0..30).all(|seed| is_there_after_a_power_cut(seed, false)),
            "the world must be able to lose it"
        );
    }
}
