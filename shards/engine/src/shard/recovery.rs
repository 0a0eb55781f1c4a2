//! Opening a shard: newest valid root, its manifest, the log behind it, and a fresh epoch.
//!
//! The last batch found may be on one replica only, unacknowledged or not. It is applied like the others, but written
//! again first, under the new epoch and on every replica, before a root moves past it. Only then does the shard
//! serve. A crash anywhere in here leaves the older root in force, and recovery starts over.

mod reading;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use basalt_reactor::disk::BLOCK_LEN;
use basalt_reactor::{Core, File};

use super::Shard;
use super::commit::{Boundary, CommitQueue, apply};
use super::repair::{Repairs, Suspect};
use super::space::Space;
use crate::body::DeviceError;
use crate::buckets::Buckets;
use crate::checksum::crc32c;
use crate::error::EngineError;
use crate::extent::groups::GroupIndex;
use crate::extent::members::MemberState;
use crate::extent::table::ExtentTable;
use crate::extent::{ArenaFiles, DiskIndex, ExtentClass, ExtentId};
use crate::format::frame::FrameError;
use crate::format::manifest::{ExtentEntry, Manifest};
use crate::format::record::Record;
use crate::format::root::{ROOT_COPY_LEN, Root};
use crate::index::{Index, IndexConfig, IndexManifest};
use crate::log::replay::{Replay, ReplayError, ReplayedBatch, refuse_unreached};
use crate::log::{Appended, Batch, LogError, LogExtent, LogWriter};
use crate::mutant::Mutant;
use crate::value::{self, Bucket};

/// Bytes of a memtable that calls for a checkpoint, and of the cache of index blocks: what the memory allows, within these.
const INDEX_SHARE_MIN: usize = 1 << 20;
const INDEX_SHARE_MAX: usize = 16 << 20;

/// Longest manifest that is read, bytes.
const MANIFEST_LEN_MAX: u64 = 256 << 20;

/// What a shard is opened with.
pub(crate) struct ShardContext {
    pub(crate) core: Core,
    pub(crate) id: u16,
    pub(crate) deployment: [u8; 16],
    pub(crate) epoch: u64,
    /// By shard, the group that it is at home in.
    pub(crate) homes: Vec<GroupIndex>,
    pub(crate) files: Rc<ArenaFiles>,
    pub(crate) buckets: Rc<Buckets>,
    /// Bytes that the index may take for memtables and cache, roughly.
    pub(crate) memory: usize,
    /// Nothing may be written.
    pub(crate) read_only: bool,
}

/// What recovery found, for the log and the operator.
#[derive(Clone, Copy, Debug, Default)]
pub struct Recovered {
    pub batches: u64,
    pub records: u64,
    pub log_len: u64,
}

impl Shard {
    /// Opens the shard and starts its tasks.
    ///
    /// # Errors
    /// [`EngineError::Damaged`] with the evidence; nothing on disk that the shard needs has changed then.
    pub(crate) async fn open(context: ShardContext) -> Result<(Rc<Shard>, Recovered), EngineError> {
        settle_roots(&context).await?;
        let (shard, replayed) = Shard::recover(context).await?;
        let recovered = replayed.found;
        shard.space.catch_up_all().await?;
        let log = shard.start_epoch(replayed).await?;
        shard.commits.set_durable_to(log.position());
        shard.load_buckets().await?;
        shard.space.opened();
        let core = shard.core.clone();
        core.spawn(Rc::clone(&shard).run_log(log));
        core.spawn(Rc::clone(&shard).run_spares());
        core.spawn(Rc::clone(&shard).run_background());
        core.spawn(Rc::clone(&shard).run_janitor());
        Ok((shard, recovered))
    }

    /// The shard as its newest root and the log behind it have it, but for the last batch.
    async fn recover(context: ShardContext) -> Result<(Rc<Shard>, Replayed), EngineError> {
        let root = newest_root(&context).await?;
        let manifest = read_manifest(&context, &root).await?;
        let mut table = ExtentTable::new(*context.files.geometry(), root.next_extent);
        count_slots(&context, &mut table)?;
        for placement in &root.manifest {
            table.occupy(placement);
        }
        for entry in &manifest.extents {
            table.occupy(&entry.placement);
            table.insert(entry);
        }
        let index_manifest = IndexManifest::decode(&manifest.index).map_err(|error| {
            EngineError::Damaged(format!("shard {}: index manifest: {error}", context.id))
        })?;
        for placement in index_manifest.placements() {
            table.occupy(placement);
        }
        let space = Space::new(
            context.core.clone(),
            Rc::clone(&context.files),
            (context.id, context.homes.clone()),
            table,
        );
        let repairs = Rc::new(Repairs::default());
        let index = Index::open(
            context.core.clone(),
            Rc::clone(&context.files),
            space.clone(),
            index_config(&context, &repairs),
            &index_manifest,
        )
        .await?;
        let replayed = replay(&context, &root, &manifest, &index, &space).await?;
        let rebuilds = root.rebuilds.clone();
        let shard = Rc::new(Shard {
            id: context.id,
            core: context.core.clone(),
            files: context.files,
            deployment: context.deployment,
            index: Rc::new(index),
            space,
            buckets: context.buckets,
            root: RefCell::new(root),
            roots: Rc::default(),
            rebuilds: RefCell::new(rebuilds),
            rebuilding: Default::default(),
            log_epoch: Cell::new(context.epoch),
            commits: CommitQueue::default(),
            locks: Rc::default(),
            leases: Default::default(),
            pins: Default::default(),
            repairs,
            scrub: Default::default(),
            clock: Cell::new(replayed.clock),
            obsolete: RefCell::default(),
            failed: RefCell::new(None),
            fenced: RefCell::default(),
            under_way: RefCell::default(),
            drained: Default::default(),
            background: Default::default(),
            collection: Default::default(),
            checkpoint_wanted: Cell::new(false),
            checkpoint_running: Cell::new(false),
            checkpoint_result: RefCell::new(Ok(())),
            checkpoint_done: Default::default(),
            checkpoints: Cell::new(0),
        });
        Ok((shard, replayed))
    }

    /// Starts the log of the new epoch with the last batch of the old one, and puts a root behind it.
    async fn start_epoch(&self, replayed: Replayed) -> Result<LogWriter, EngineError> {
        // First of all, or the new log extent could take the id or the slot of an extent the last batch opened.
        if let Some(last) = &replayed.last {
            occupy_opened(&last.records, &mut self.space.extents.borrow_mut());
        }
        let sequence = replayed.sequence;
        let previous = replayed.previous;
        let mut batch = None;
        if Mutant::LastBatchNotRepeated.is_active() {
            replayed.last.into_iter().for_each(|last| apply_replayed(last, &self.index, &self.space));
        } else if let Some(last) = replayed.last {
            let payload = vec![last.payload().to_vec()];
            batch = Some(Batch { records: last.records, payload });
        }
        // Shards of other cores may find out that a disk must go, at any moment.
        let (log, extent, appended) = loop {
            match self.begin_log(batch.as_ref(), (sequence, previous)).await {
                Err(EngineError::MembersChanged) => {}
                begun => break begun?,
            }
        };
        self.space.extents.borrow_mut().insert(&ExtentEntry {
            placement: (*extent.placement).clone(),
            sealed: false,
            live_len: 0,
            next_block: 0,
            nonce: extent.nonce,
        });
        if let (Some(batch), Some(appended)) = (batch, appended) {
            for record in batch.records {
                let mut extents = self.space.extents.borrow_mut();
                apply(record, appended.extent, appended.payload_offset, &self.index, &mut extents);
            }
        }
        self.seal_older(extent.placement.id);
        self.index.rotate();
        self.flush_index().await?;
        let (extents, next_extent) = {
            let table = self.space.extents.borrow();
            (table.snapshot(), table.next_id())
        };
        self.install(Boundary { log: log.position(), extents, next_extent }).await?;
        self.log_epoch.set(log.epoch());
        Ok(log)
    }

    /// A log in an extent of its own, that begins with `batch`. What an attempt wrote that a disk's leaving cut off is in no root's
    /// log, and is the batch that the older root's log ends with.
    async fn begin_log(
        &self,
        batch: Option<&Batch>,
        (sequence, previous): (u64, [u8; 16]),
    ) -> Result<(LogWriter, LogExtent, Option<Appended>), EngineError> {
        let (extent, epoch) = self.prepare_log_extent().await?;
        let (core, files) = (self.core.clone(), Rc::clone(&self.files));
        let mut log = LogWriter::new(core, files, self.id, epoch, extent.clone(), sequence, previous);
        let Some(batch) = batch else { return Ok((log, extent, None)) };
        match log.append(batch, self.clock.get()).await {
            Ok(appended) => Ok((log, extent, Some(appended))),
            Err(LogError::Out { .. }) => {
                self.space.extents.borrow_mut().release(&extent.placement);
                Err(EngineError::MembersChanged)
            }
            Err(error @ LogError::Device { .. }) => {
                Err(EngineError::Damaged(format!("shard {}: {error}", self.id)))
            }
        }
    }

    /// No log extent of an older epoch takes another batch, and one data extent at most stays open.
    fn seal_older(&self, log: ExtentId) {
        let mut table = self.space.extents.borrow_mut();
        let ids = table.iter().map(|extent| extent.placement.id).collect::<Vec<_>>();
        let open = table
            .iter()
            .filter(|extent| extent.placement.class == ExtentClass::Data && !extent.sealed)
            .min_by_key(|extent| extent.next_block)
            .map(|extent| extent.placement.id);
        for id in ids {
            if id != log && Some(id) != open {
                table.get_mut(id).expect("it was listed just now").sealed = true;
            }
        }
        if let Some(open) = open {
            self.leases.set_open(open);
        }
    }

    async fn load_buckets(&self) -> Result<(), EngineError> {
        use crate::index::key::{Family, end_of_prefix, start_of_prefix};
        let from = start_of_prefix(Family::Bucket, 0, b"");
        let end = end_of_prefix(Family::Bucket, 0, b"");
        let mut cursor = self.index.cursor(&from, Some(&end));
        while let Some((_, value)) = cursor.next().await? {
            self.buckets.insert(value::decode::<Bucket>(value)?);
        }
        Ok(())
    }
}

fn index_config(context: &ShardContext, repairs: &Rc<Repairs>) -> IndexConfig {
    let (shard, repairs) = (context.id, Rc::clone(repairs));
    IndexConfig {
        shard: u32::from(shard),
        epoch: context.epoch,
        // At worst four full memtables wait for their flush.
        memtable_len_max: (context.memory / 8).clamp(INDEX_SHARE_MIN, INDEX_SHARE_MAX),
        cache_len: (context.memory / 8).clamp(INDEX_SHARE_MIN, INDEX_SHARE_MAX),
        report: Rc::new(move |damage| {
            tracing::warn!(shard, ?damage, "damaged index block read around");
            let (extent, offset, len) = (damage.extent, damage.offset, damage.len);
            repairs.suspect(Suspect::Table { extent, offset, len });
        }),
        ..IndexConfig::default()
    }
}

struct Replayed {
    /// The last batch of the log, not applied yet.
    last: Option<ReplayedBatch>,
    /// Number of the batch to write next (the last one's, if there is one), and the hash before it.
    sequence: u64,
    previous: [u8; 16],
    clock: u64,
    found: Recovered,
}

/// Applies the log behind `root` but for its last batch.
async fn replay(
    context: &ShardContext,
    root: &Root,
    manifest: &Manifest,
    index: &Index,
    space: &Space,
) -> Result<Replayed, EngineError> {
    let mut replayed = Replayed {
        last: None,
        sequence: root.log.sequence,
        previous: root.log.previous,
        clock: root.clock_floor,
        found: Recovered::default(),
    };
    // A shard that was only formatted has no log yet.
    if root.log.extent.0 == 0 {
        refuse_unreached_batches(context, space, root.log.sequence).await?;
        return Ok(replayed);
    }
    let damaged = |error: ReplayError| EngineError::Damaged(format!("shard {}: {error}", context.id));
    let (core, files) = (context.core.clone(), Rc::clone(&context.files));
    let mut reader =
        Replay::behind(core, files, context.id, root.log, manifest.extents.iter()).map_err(damaged)?;
    loop {
        let next = reader.next().await.map_err(damaged)?;
        let Some(batch) = next else {
            if let Some(last) = &replayed.last {
                occupy_opened(&last.records, &mut space.extents.borrow_mut());
            }
            refuse_unreached_batches(context, space, reader.next_sequence()).await?;
            if context.read_only {
                return Ok(replayed);
            }
            reader
                .settle()
                .await
                .map_err(|error| EngineError::ShardFailed { shard: context.id, reason: error.to_string() })?;
            return Ok(replayed);
        };
        replayed.found.batches += 1;
        replayed.found.records += batch.records.len() as u64;
        replayed.found.log_len += batch.header.disk_len() as u64;
        replayed.clock = replayed.clock.max(batch.header.clock);
        replayed.sequence = batch.header.sequence;
        replayed.previous = batch.header.previous;
        if let Some(batch) = replayed.last.replace(batch) {
            apply_replayed(batch, index, space);
        }
    }
}

/// The log ends before batch `missing`; nothing of it may lie where no log extent is, or in one that could still take batches.
async fn refuse_unreached_batches(
    context: &ShardContext,
    space: &Space,
    missing: u64,
) -> Result<(), EngineError> {
    let columns = {
        let extents = space.extents.borrow();
        let mut columns = extents.free_columns(ExtentClass::Log);
        let unsealed =
            extents.iter().filter(|extent| extent.placement.class == ExtentClass::Log && !extent.sealed);
        columns.extend(unsealed.flat_map(|extent| extent.placement.columns.iter()));
        columns
    };
    refuse_unreached(&context.core, &context.files, context.id, context.deployment, &columns, missing)
        .await
        .map_err(|error| EngineError::Damaged(format!("shard {}: {error}", context.id)))
}

/// Marks the slots of extents that a batch opened as taken.
fn occupy_opened(records: &[Record], extents: &mut ExtentTable) {
    for record in records {
        if let Record::ExtentOpened { placement, .. } = record {
            extents.occupy(placement);
        }
    }
}

fn apply_replayed(batch: ReplayedBatch, index: &Index, space: &Space) {
    let payload_offset = u64::from(batch.offset) + batch.header.payload_offset() as u64;
    let extent = batch.header.extent;
    let mut extents = space.extents.borrow_mut();
    occupy_opened(&batch.records, &mut extents);
    for record in batch.records {
        apply(record, extent, payload_offset, index, &mut extents);
    }
}

/// Makes the roots durable before they are read. A killed process may have left the newest one in a drive's cache alone: were
/// it lost to a power cut after this start took the slots that it calls free, an older root would name what is overwritten.
async fn settle_roots(context: &ShardContext) -> Result<(), EngineError> {
    for (disk, file) in root_files(context) {
        let mark = context.files.flushes().mark(disk);
        context.files.sync_since(&context.core, disk, &file, mark).await.map_err(|error| {
            EngineError::ShardFailed {
                shard: context.id,
                reason: format!("root: {}", DeviceError::from(&error)),
            }
        })?;
    }
    Ok(())
}

/// The root files of the disks that are believed.
fn root_files(context: &ShardContext) -> Vec<(DiskIndex, File)> {
    let disks = context.files.home_disks().into_iter();
    disks
        .filter(|&disk| context.files.members().state(disk) == MemberState::InSync)
        .filter_map(|disk| context.files.disk(disk).map(|files| (disk, files.root.clone())))
        .collect()
}

/// The newest root any disk has whole. A shard without one is never taken for empty.
pub(crate) async fn newest_root(context: &ShardContext) -> Result<Root, EngineError> {
    let mut newest: Option<Root> = None;
    let mut reasons = Vec::new();
    for (disk, file) in root_files(context) {
        let disk = disk.0;
        for copy in 0..2u64 {
            let buf = context.core.arena().alloc(ROOT_COPY_LEN).await;
            let (result, buf) = file.read_at(buf, copy * ROOT_COPY_LEN as u64).await;
            let decoded = match result {
                Ok(len) => Root::decode(&buf[..len]).map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            match decoded {
                Ok(root) if root.deployment == context.deployment && root.shard == context.id => {
                    if newest.as_ref().is_none_or(|newest| newest.sequence < root.sequence) {
                        newest = Some(root);
                    }
                }
                Ok(_) => {
                    reasons.push(format!("disk {disk} copy {copy}: belongs to another shard or deployment"))
                }
                Err(error) if error == FrameError::Empty.to_string() => {}
                Err(error) => reasons.push(format!("disk {disk} copy {copy}: {error}")),
            }
        }
    }
    newest.ok_or_else(|| {
        EngineError::Damaged(format!("shard {} has no valid root ({})", context.id, reasons.join("; ")))
    })
}

pub(crate) async fn read_manifest(context: &ShardContext, root: &Root) -> Result<Manifest, EngineError> {
    if root.manifest.is_empty() {
        return Ok(Manifest { extents: Vec::new(), index: IndexManifest::default().encode() });
    }
    let damaged = |what: String| EngineError::Damaged(format!("shard {}: manifest: {what}", context.id));
    if root.manifest_len > MANIFEST_LEN_MAX {
        return Err(damaged(format!("{} bytes", root.manifest_len)));
    }
    let slot_len = context.files.geometry().table_slot_len;
    let mut reasons = Vec::new();
    let replicas = root.manifest.iter().map(|placement| placement.columns.len()).max().unwrap_or(0);
    for replica in 0..replicas {
        match read_manifest_replica(context, root, replica, slot_len).await {
            Ok(bytes) => {
                let got = crc32c(&bytes);
                if got == root.manifest_crc {
                    return Manifest::decode(&bytes).map_err(|error| damaged(error.to_string()));
                }
                reasons.push(format!(
                    "replica {replica}: checksum {got:08x}, expected {:08x}",
                    root.manifest_crc
                ));
            }
            Err(reason) => reasons.push(format!("replica {replica}: {reason}")),
        }
    }
    Err(damaged(reasons.join("; ")))
}

async fn read_manifest_replica(
    context: &ShardContext,
    root: &Root,
    replica: usize,
    slot_len: u64,
) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    for placement in &root.manifest {
        let column = *placement.columns.get(replica).ok_or("no such replica")?;
        let (file, start) =
            context.files.locate_readable(ExtentClass::Table, column).ok_or("the disk is absent")?;
        let mut offset = 0;
        while offset < slot_len && (bytes.len() as u64) < root.manifest_len {
            let left = root.manifest_len - bytes.len() as u64;
            let want = left.min(slot_len - offset).min(basalt_reactor::arena::BUF_LEN_MAX as u64);
            let want = usize::try_from(want).expect("at most 1 MiB");
            let buf = context.core.arena().alloc(want.next_multiple_of(BLOCK_LEN)).await;
            match file.read_at(buf, start + offset).await {
                (Ok(len), buf) if len >= want => bytes.extend_from_slice(&buf[..want]),
                (Ok(len), _) => return Err(format!("read {len} of {want} bytes")),
                (Err(error), _) => return Err(error.to_string()),
            }
            offset += want as u64;
        }
    }
    if bytes.len() as u64 == root.manifest_len { Ok(bytes) } else { Err("too short".to_owned()) }
}

/// Tells the table how many slots each arena file has.
fn count_slots(context: &ShardContext, table: &mut ExtentTable) -> Result<(), EngineError> {
    for disk in (0..context.files.disk_count()).map(DiskIndex) {
        for class in [ExtentClass::Log, ExtentClass::Data, ExtentClass::Table] {
            let Some(slots) = context.files.slot_count(class, disk) else { continue };
            let slots = slots.map_err(|error| {
                EngineError::Damaged(format!("{class:?} arena of disk {}: {error}", disk.0))
            })?;
            table.set_grown(class, disk, slots);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
