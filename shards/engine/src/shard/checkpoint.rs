//! Checkpoints: the index and the extent table brought to disk, so that the log before them is needed no more.
//!
//! Order is everything. The state is taken at a boundary between two batches; tables and manifest are written and made
//! durable; then the root on every disk; and only when that root is durable everywhere do the slots of what it
//! no longer names become free. A crash in between leaves the older root, which still finds all it names.

use std::rc::Rc;
use std::time::Duration;

use basalt_reactor::WriteMode;
use basalt_reactor::arena::BUF_LEN_MAX;
use basalt_reactor::disk::BLOCK_LEN;

use super::commit::Boundary;
use super::{CHECKPOINT_LOG_SLOTS, Shard};
use crate::body::DeviceError;
use crate::checksum::crc32c;
use crate::error::EngineError;
use crate::extent::members::{MemberState, Outcome};
use crate::extent::{DiskIndex, ExtentClass, ExtentId, Placement};
use crate::format::manifest::{ExtentEntry, Manifest};
use crate::format::root::{MANIFEST_EXTENT_COUNT_MAX, REBUILD_COUNT_MAX, ROOT_COPY_LEN, Root};
use crate::index::ObsoleteTable;
use crate::mutant::Mutant;

/// Full memtables' worth of changes that may wait for their flush before mutations wait too.
const BEHIND_COUNT: usize = 4;

/// How long a full or failing shard waits before it tries again to make room.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// Key of the lock that whoever makes a root holds from its boundary on.
pub(super) const ROOT_TURN: &[u8] = b"root";

/// Index tables that the current version no longer has.
#[derive(Default)]
pub(super) struct Obsolete {
    /// The durable root may still name them.
    pending: Vec<ObsoleteTable>,
    /// No root names them; readers may still use them.
    settled: Vec<ObsoleteTable>,
}

impl Obsolete {
    /// The first `count` pending ones are named by no root any more.
    fn settle(&mut self, count: usize) {
        self.settled.extend(self.pending.drain(..count));
    }
}

impl Shard {
    pub(crate) fn want_checkpoint(&self) {
        self.checkpoint_wanted.set(true);
        self.background.notify();
    }

    fn checkpoint_due(&self) -> bool {
        let log_max = self.files.geometry().log_slot_len * CHECKPOINT_LOG_SLOTS;
        self.checkpoint_wanted.get() || self.commits.log_len.get() >= log_max || self.index.is_memtable_full()
    }

    /// Whether mutations that grow the store should wait: the index cannot keep up.
    pub(super) fn is_behind(&self) -> bool {
        self.index.stats().memtable_len >= BEHIND_COUNT * self.index.memtable_len_max()
    }

    /// Waits until the background has caught up enough for another mutation.
    pub(super) async fn wait_for_index(&self) -> Result<(), EngineError> {
        if self.is_behind() {
            self.checkpoint_done
                .wait_until(|| !self.is_behind() || self.failed.borrow().is_some() || self.space.is_full())
                .await;
            if self.is_behind() {
                self.check_healthy()?;
                return Err(EngineError::NoSpace);
            }
        }
        Ok(())
    }

    /// Checkpoints when due, and compacts the index in between.
    pub(crate) async fn run_background(self: Rc<Self>) {
        loop {
            self.background
                .wait_until(|| {
                    self.failed.borrow().is_some()
                        || self.checkpoint_due()
                        || self.index.choose_compaction().is_some()
                })
                .await;
            if self.failed.borrow().is_some() {
                self.checkpoint_done.notify();
                return;
            }
            if self.checkpoint_due() {
                self.checkpoint_wanted.set(false);
                self.checkpoint_running.set(true);
                let result = self.checkpoint().await;
                self.checkpoint_running.set(false);
                *self.checkpoint_result.borrow_mut() = result.clone();
                self.commits.checkpoint_ended();
                self.checkpoint_done.notify();
                self.collection.look();
                if let Err(error) = result {
                    tracing::warn!(shard = self.id, %error, "checkpoint failed");
                    self.space.set_full(error == EngineError::NoSpace || self.space.is_full());
                    self.core.sleep(RETRY_AFTER).await;
                    self.checkpoint_wanted.set(true);
                }
            }
            // After every checkpoint, also when the next is due already: each adds a run of tables, and on a full disk
            // they follow each other without end.
            if let Err(error) = self.compact().await {
                tracing::warn!(shard = self.id, %error, "index compaction failed");
                self.core.sleep(RETRY_AFTER).await;
            }
        }
    }

    async fn compact(&self) -> Result<(), EngineError> {
        let Some(compaction) = self.index.choose_compaction() else { return Ok(()) };
        if !compaction.moves {
            // Its output is no longer than its input, but may fill its slots less well.
            let slot_len = self.files.geometry().table_slot_len;
            let tables = (compaction.len + compaction.len / 4) / slot_len + 2;
            let most = (compaction.inputs.len() + compaction.overlapped.len() + 2) as u64;
            self.space.reserve_tables(u32::try_from(tables.min(most)).unwrap_or(u32::MAX)).await?;
        }
        self.index.compact(compaction).await?;
        // What it replaced becomes free with the next root.
        self.checkpoint_wanted.set(true);
        Ok(())
    }

    /// Brings everything up to now under a new root.
    ///
    /// # Errors
    /// [`EngineError`]; the old root stays in force.
    pub(crate) async fn checkpoint(&self) -> Result<(), EngineError> {
        let _turn = self.roots.lock(ROOT_TURN).await;
        // Memtables that an earlier attempt left frozen go first: when too many wait, there is no boundary to be had.
        if self.index.stats().frozen_count > 0 {
            self.flush_index().await?;
        }
        let boundary = self.boundary().await?;
        self.flush_index().await?;
        self.install(boundary).await?;
        self.checkpoints.set(self.checkpoints.get() + 1);
        self.space.refresh_full();
        self.commits.retry_spare();
        Ok(())
    }

    /// Writes the frozen memtables out, again and again while disks go out under it.
    pub(super) async fn flush_index(&self) -> Result<(), EngineError> {
        loop {
            self.reserve_for_flush().await?;
            match self.index.flush().await.map_err(EngineError::from) {
                Err(EngineError::MembersChanged) => {}
                flushed => return flushed,
            }
        }
    }

    /// Makes room for the tables that the memtables become, and for a manifest.
    pub(super) async fn reserve_for_flush(&self) -> Result<(), EngineError> {
        let len = self.index.stats().memtable_len as u64;
        // Tables repeat keys in their directory and round up; twice the bytes and a few more slots is ample.
        let tables = 2 * len / self.files.geometry().table_slot_len + 3;
        self.space.reserve_tables(u32::try_from(tables).unwrap_or(u32::MAX)).await
    }

    /// Writes manifest and root for `boundary`, then frees what the root no longer names.
    pub(super) async fn install(&self, boundary: Boundary) -> Result<(), EngineError> {
        let (dead, extents): (Vec<_>, Vec<_>) =
            boundary.extents.into_iter().partition(|entry| self.is_dead(entry, boundary.log.extent));
        self.condemn(&dead, true);
        if Mutant::ExtentsFreedEarly.is_active() {
            self.free(&dead);
        }
        let obsolete = self.index.take_obsolete();
        self.obsolete.borrow_mut().pending.extend(obsolete);
        let count = self.obsolete.borrow().pending.len();
        let manifest = Manifest { extents, index: self.index.manifest().encode() };
        let written = loop {
            match self.write_manifest(&manifest).await {
                Err(EngineError::MembersChanged) => {}
                written => break written,
            }
        };
        let installed = match written {
            Ok((placements, len, crc)) => {
                let old = self.root.borrow().clone();
                let root = Root {
                    deployment: self.deployment,
                    shard: self.id,
                    sequence: old.sequence + 1,
                    epoch: self.files.members().epoch(),
                    manifest: placements,
                    manifest_len: len,
                    manifest_crc: crc,
                    log: boundary.log,
                    next_extent: boundary.next_extent,
                    clock_floor: self.clock.get(),
                    rebuilds: self.rebuilds_under_way().into_iter().take(REBUILD_COUNT_MAX).collect(),
                };
                self.write_root(root).await.map(|root| (old, root))
            }
            Err(error) => Err(error),
        };
        let (old, root) = match installed {
            Ok(installed) => installed,
            Err(error) => {
                self.condemn(&dead, false);
                return Err(error);
            }
        };
        *self.root.borrow_mut() = root;
        self.obsolete.borrow_mut().settle(count);
        self.release_obsolete();
        let mut table = self.space.extents.borrow_mut();
        for placement in &old.manifest {
            table.release(placement);
        }
        drop(table);
        if !Mutant::ExtentsFreedEarly.is_active() {
            self.free(&dead);
        }
        Ok(())
    }

    /// Forgets extents and gives their slots back.
    fn free(&self, dead: &[ExtentEntry]) {
        let mut table = self.space.extents.borrow_mut();
        for entry in dead {
            table.remove(entry.placement.id);
            table.release(&entry.placement);
        }
    }

    /// Frees the slots of dropped index tables that no root names and no reader uses any more.
    fn release_obsolete(&self) {
        self.obsolete.borrow_mut().settled.retain(|table| {
            if table.is_unreferenced() {
                self.space.release_table(table.placement());
            }
            !table.is_unreferenced()
        });
    }

    /// Nothing lives in it, nothing will be written to it, nobody reads it, and the log before `log` is checkpointed.
    fn is_dead(&self, entry: &ExtentEntry, log: ExtentId) -> bool {
        if !entry.sealed || entry.live_len > 0 {
            return false;
        }
        if entry.placement.class == ExtentClass::Log && entry.placement.id >= log {
            return false;
        }
        let extents = self.space.extents.borrow();
        extents.get(entry.placement.id).is_some_and(|extent| {
            let pinned = extent.pin_count > 0 && !Mutant::PinsIgnored.is_active();
            !pinned && extent.lease_count == 0
        })
    }

    /// Condemned extents take no new pins: a lookup that finds one has read a value that is superseded, and looks again.
    fn condemn(&self, dead: &[ExtentEntry], condemned: bool) {
        let mut table = self.space.extents.borrow_mut();
        for entry in dead {
            if let Some(extent) = table.get_mut(entry.placement.id) {
                extent.condemned = condemned;
            }
        }
    }

    async fn write_manifest(&self, manifest: &Manifest) -> Result<(Vec<Placement>, u64, u32), EngineError> {
        let bytes = manifest.encode();
        let slot_len = usize::try_from(self.files.geometry().table_slot_len).expect("slots fit in memory");
        let count = bytes.len().div_ceil(slot_len);
        if count > MANIFEST_EXTENT_COUNT_MAX {
            return Err(EngineError::Damaged(format!("a manifest of {} bytes has no place", bytes.len())));
        }
        let mut placements = Vec::with_capacity(count);
        for part in bytes.chunks(slot_len) {
            let placement = match self.space.allocate(ExtentClass::Table).await {
                Ok(placement) => placement,
                Err(error) => {
                    self.release_all(&placements);
                    return Err(error);
                }
            };
            let result = self.write_table_bytes(&placement, part).await;
            placements.push(placement);
            if let Err(error) = result {
                self.release_all(&placements);
                return Err(error);
            }
        }
        Ok((placements, bytes.len() as u64, crc32c(&bytes)))
    }

    fn release_all(&self, placements: &[Placement]) {
        let mut table = self.space.extents.borrow_mut();
        for placement in placements {
            table.release(placement);
        }
    }

    async fn write_table_bytes(&self, placement: &Placement, bytes: &[u8]) -> Result<(), EngineError> {
        let epoch = self.files.members().epoch();
        for &column in &placement.columns {
            let Some((file, start)) = self.files.locate(ExtentClass::Table, column) else { continue };
            let mark = self.files.flushes().mark(column.disk);
            for (index, part) in bytes.chunks(BUF_LEN_MAX).enumerate() {
                let mut buf = self.core.arena().alloc(part.len().next_multiple_of(BLOCK_LEN)).await;
                buf.set_len(part.len().next_multiple_of(BLOCK_LEN));
                buf[..part.len()].copy_from_slice(part);
                buf[part.len()..].fill(0);
                let offset = start + (index * BUF_LEN_MAX) as u64;
                let file = file.clone();
                let write = async move { file.write_at(buf.freeze(), offset, WriteMode::Volatile).await };
                self.carry_out_table(column.disk, write).await?;
            }
            if !Mutant::ManifestNotSynced.is_active() {
                let sync = self.files.sync_since(&self.core, column.disk, &file, mark);
                self.carry_out_table(column.disk, sync).await?;
            }
        }
        // A disk that went out between two steps was skipped in silence.
        if self.files.members().epoch() == epoch { Ok(()) } else { Err(EngineError::MembersChanged) }
    }

    async fn carry_out_table(
        &self,
        disk: DiskIndex,
        operation: impl Future<Output = std::io::Result<()>> + 'static,
    ) -> Result<(), EngineError> {
        match self.files.carry_out(&self.core, disk, operation).await {
            Ok(Outcome::Done) => Ok(()),
            Ok(Outcome::Out) => Err(EngineError::MembersChanged),
            Err(error) => Err(EngineError::Damaged(format!(
                "manifest on disk {}: {}",
                disk.0,
                DeviceError::from(&error)
            ))),
        }
    }

    /// Makes `root` durable on every disk, in both copies one after the other, so that at rest no damage to one copy
    /// brings an older root back, whose extents were given to others since. Returns it with the number of the second
    /// copy. A disk that refuses leaves the set divided; writes end there.
    async fn write_root(&self, mut root: Root) -> Result<Root, EngineError> {
        self.write_root_copy(&root).await?;
        root.sequence += 1;
        self.write_root_copy(&root).await?;
        Ok(root)
    }

    async fn write_root_copy(&self, root: &Root) -> Result<(), EngineError> {
        let bytes = root.encode();
        let offset = (root.sequence & 1) * ROOT_COPY_LEN as u64;
        for disk in self.files.home_disks() {
            if self.files.members().state(disk) == MemberState::Out {
                continue;
            }
            let Some(files) = self.files.disk(disk) else { continue };
            let mut buf = self.core.arena().alloc(bytes.len()).await;
            buf.copy_from_slice(&bytes);
            let flushes = Rc::clone(self.files.flushes());
            let write = async move { flushes.write_stable(disk, &files.root, buf.freeze(), offset).await };
            // A disk that goes out has no say any more.
            if let Err(error) = self.files.carry_out(&self.core, disk, write).await {
                let reason = format!("root: {}", DeviceError::from(&error));
                self.fail(reason.clone());
                return Err(EngineError::ShardFailed { shard: self.id, reason });
            }
        }
        Ok(())
    }
}
