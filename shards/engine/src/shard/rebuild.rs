//! Rebuilding a disk that came back or took another's place: into each of its slots goes what belongs there.
//!
//! From `until` on every core wrote the disk's columns with all others; below it, extents are rebuilt one after the other in the order
//! of their ids. Everything that is written was verified first: stripes against the checksums of their directory chunks, log
//! batches and index tables by their own. The position is kept in the root, so a restart goes on where this one was.

use std::rc::Rc;
use std::time::Duration;

use basalt_reactor::arena::BUF_LEN_MAX;
use basalt_reactor::disk::BLOCK_LEN;
use basalt_reactor::{File, Slice, WriteMode};

use super::Shard;
use super::checkpoint::ROOT_TURN;
use crate::body::{BlockRow, Bodies};
use crate::error::EngineError;
use crate::extent::members::{MemberState, Outcome};
use crate::extent::{Column, DiskIndex, ExtentClass, ExtentId, Placement};
use crate::format::log_header::LogHeader;
use crate::format::root::Rebuild;
use crate::index::frames::Frames;
use crate::log::scan::BatchScan;
use crate::log::{LOG_HEADER_LEN, LogExtent};

/// How long to wait for writers that still use an extent, and for an epoch that is not entered yet.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// How often the first core is told again that a disk is rebuilt, until its epoch says so.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// Tells the first core that this shard's part of a disk, which joined in that epoch, is rebuilt.
pub(crate) type TellRebuilt = Rc<dyn Fn(DiskIndex, u64)>;

/// Bytes of a disk's columns, whole slots of log and tables, and of data what was given out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RebuildLens {
    pub done_len: u64,
    pub left_len: u64,
}

impl RebuildLens {
    pub fn add(&mut self, other: RebuildLens) {
        self.done_len += other.done_len;
        self.left_len += other.left_len;
    }
}

/// What became of one extent.
enum Step {
    Done,
    /// Somebody still writes to it.
    Wait,
    /// The disk is out again.
    Out,
}

impl Shard {
    /// The members are others than before.
    pub(crate) fn members_changed(&self) {
        self.commits.wake();
        self.wake_background();
        self.rebuilding.notify();
    }

    /// How far each disk that is behind has been rebuilt.
    pub(super) fn rebuilds_under_way(&self) -> Vec<Rebuild> {
        let is_behind = |rebuild: &&Rebuild| self.files.members().state(rebuild.disk) == MemberState::Behind;
        self.rebuilds.borrow().iter().filter(is_behind).copied().collect()
    }

    /// How many bytes of each disk that is behind are there again, and how many are to come.
    pub(crate) fn rebuild_lens(&self) -> Vec<(DiskIndex, RebuildLens)> {
        let rebuilds = self.rebuilds_under_way();
        let mut lens: Vec<_> =
            rebuilds.iter().map(|rebuild| (rebuild.disk, RebuildLens::default())).collect();
        if rebuilds.is_empty() {
            return lens;
        }
        let mut count = |placement: &Placement, len: u64| {
            for (rebuild, (_, lens)) in rebuilds.iter().zip(&mut lens) {
                if placement.id >= rebuild.until || !has_column_on(placement, rebuild.disk) {
                    continue;
                }
                let sum = if placement.id < rebuild.next { &mut lens.done_len } else { &mut lens.left_len };
                *sum += len;
            }
        };
        let geometry = self.files.geometry();
        for extent in self.space.extents.borrow().iter() {
            let len = match extent.placement.class {
                ExtentClass::Data => u64::from(extent.next_block) * BLOCK_LEN as u64,
                class => geometry.slot_len(class),
            };
            count(&extent.placement, len);
        }
        for placement in self.index.manifest().placements() {
            count(placement, geometry.slot_len(ExtentClass::Table));
        }
        lens
    }

    /// Begins to rebuild `disk`, which joined in epoch `joined` and which every core writes to by now; goes on where the root
    /// says if it knows of this.
    pub(crate) fn begin_rebuild(&self, disk: DiskIndex, joined: u64) {
        let mut rebuilds = self.rebuilds.borrow_mut();
        if !rebuilds.iter().any(|rebuild| rebuild.disk == disk && rebuild.joined == joined) {
            rebuilds.retain(|rebuild| rebuild.disk != disk);
            let until = ExtentId(self.space.extents.borrow().next_id());
            rebuilds.push(Rebuild { disk, joined, next: ExtentId(0), until });
        }
        drop(rebuilds);
        self.rebuilding.notify();
    }

    /// Rebuilds whatever is behind, one extent at a time, until the shard fails.
    pub(crate) async fn run_rebuilds(self: Rc<Self>, bodies: Rc<Bodies>, tell: TellRebuilt) {
        loop {
            let failed = || self.failed.borrow().is_some();
            self.rebuilding.wait_until(|| failed() || !self.rebuilds_under_way().is_empty()).await;
            if failed() {
                return;
            }
            let Some(rebuild) = self.rebuilds_under_way().first().copied() else { continue };
            if let Err(error) = self.rebuild(&bodies, rebuild, &tell).await {
                tracing::warn!(shard = self.id, disk = rebuild.disk.0, %error, "rebuilding stopped; it is tried again");
                self.core.sleep(TELL_EVERY).await;
            }
        }
    }

    async fn rebuild(
        self: &Rc<Self>,
        bodies: &Rc<Bodies>,
        rebuild: Rebuild,
        tell: &TellRebuilt,
    ) -> Result<(), EngineError> {
        let Rebuild { disk, joined, until, .. } = rebuild;
        let goes_on = || {
            let known = |rebuild: &Rebuild| rebuild.disk == disk && rebuild.joined == joined;
            self.failed.borrow().is_none() && self.rebuilds_under_way().iter().any(known)
        };
        self.space.catch_up(disk).await?;
        // Only then is the current log extent one that the disk has from its beginning.
        while self.log_epoch.get() < joined && goes_on() {
            self.core.sleep(RETRY_AFTER).await;
        }
        let total = self.to_rebuild(&rebuild).len();
        tracing::info!(shard = self.id, disk = disk.0, extents = total, "rebuilding");
        while goes_on() {
            let position = self.rebuilds.borrow().iter().find(|other| other.disk == disk).copied();
            let Some(placement) = position.and_then(|position| self.to_rebuild(&position).into_iter().next())
            else {
                break;
            };
            let began = self.core.now();
            match self.rebuild_extent(bodies, &placement, disk).await? {
                Step::Done => self.advance_rebuild(disk, joined, ExtentId(placement.id.0 + 1)),
                Step::Wait => self.core.sleep(RETRY_AFTER).await,
                Step::Out => return Ok(()),
            }
            // Users first: as long a pause as the work took.
            if self.commits.len() > 0 {
                self.core.sleep(self.core.now().since(began)).await;
            }
        }
        self.advance_rebuild(disk, joined, until);
        // The manifest is not copied: the next one has the disk among its places.
        while goes_on() && self.root.borrow().manifest.iter().any(|placement| placement.id < until) {
            self.checkpoint_now().await?;
        }
        while goes_on() {
            tell(disk, joined);
            self.core.sleep(TELL_EVERY).await;
        }
        Ok(())
    }

    fn advance_rebuild(&self, disk: DiskIndex, joined: u64, next: ExtentId) {
        for rebuild in self.rebuilds.borrow_mut().iter_mut() {
            if rebuild.disk == disk && rebuild.joined == joined {
                rebuild.next = rebuild.next.max(next);
            }
        }
    }

    /// Extents of which the disk has a column that is still to be made, in the order of their ids.
    fn to_rebuild(&self, rebuild: &Rebuild) -> Vec<Placement> {
        let is_due = |placement: &Placement| {
            (rebuild.next..rebuild.until).contains(&placement.id) && has_column_on(placement, rebuild.disk)
        };
        let extents = self.space.extents.borrow();
        // What the log writes to now, it writes on every disk.
        let is_current = |class, sealed: bool| class == ExtentClass::Log && !sealed;
        let mut due: Vec<Placement> = extents
            .iter()
            .filter(|extent| !is_current(extent.placement.class, extent.sealed))
            .map(|extent| (*extent.placement).clone())
            .filter(is_due)
            .collect();
        due.extend(self.index.manifest().placements().filter(|placement| is_due(placement)).cloned());
        due.sort_by_key(|placement| placement.id);
        due
    }

    async fn rebuild_extent(
        self: &Rc<Self>,
        bodies: &Rc<Bodies>,
        placement: &Placement,
        disk: DiskIndex,
    ) -> Result<Step, EngineError> {
        match placement.class {
            ExtentClass::Data => self.rebuild_data(bodies, placement, disk).await,
            ExtentClass::Log => {
                let Some(_pin) = self.pin_guard(placement.id) else { return Ok(Step::Done) };
                self.rebuild_log(placement, disk).await
            }
            ExtentClass::Table => {
                // No table's slot is given back while nobody makes a root.
                let _turn = self.roots.lock(ROOT_TURN).await;
                if self.index.manifest().placements().any(|current| current.id == placement.id) {
                    self.rebuild_table(placement, disk).await
                } else {
                    Ok(Step::Done)
                }
            }
        }
    }

    async fn rebuild_data(
        self: &Rc<Self>,
        bodies: &Rc<Bodies>,
        placement: &Placement,
        disk: DiskIndex,
    ) -> Result<Step, EngineError> {
        if self.is_written_to(placement.id) {
            return Ok(Step::Wait);
        }
        let Some(pin) = self.pin_guard(placement.id) else { return Ok(Step::Done) };
        let geometry = *self.files.geometry();
        let directory = bodies.walk(placement).await;
        let column = column_on(placement, disk);
        for chunk in &directory.chunks {
            for entry in chunk.entries.iter().filter(|entry| entry.fits(&geometry)) {
                for row in BlockRow::of_entry(placement.id, entry, &geometry) {
                    if self.files.members().state(disk) != MemberState::Behind {
                        return Ok(Step::Out);
                    }
                    let mended = bodies.mend(placement, &row).await;
                    if let Some((_, error)) = mended.refused.iter().find(|(column, _)| column.disk == disk) {
                        let out = self.files.members().exclude(disk, error.to_string()).await;
                        return if out { Ok(Step::Out) } else { Ok(Step::Wait) };
                    }
                    self.yield_to_users().await;
                }
            }
            let bytes = chunk.encode(bodies.origin());
            let offset = u64::from(chunk.block) * BLOCK_LEN as u64;
            if self.write_column(ExtentClass::Data, column, offset, &bytes).await? == Outcome::Out {
                return Ok(Step::Out);
            }
        }
        let step = self.sync_column(ExtentClass::Data, column).await;
        drop(pin);
        step
    }

    /// Whether writers may still write to a data extent; sees to it that no new ones begin.
    fn is_written_to(self: &Rc<Self>, id: ExtentId) -> bool {
        if self.leases.is_open(id) {
            self.leases.close(id);
            self.seal_if_done(id);
        }
        self.space.extents.borrow().get(id).is_some_and(|extent| extent.lease_count > 0)
    }

    async fn rebuild_log(&self, placement: &Placement, disk: DiskIndex) -> Result<Step, EngineError> {
        let column = column_on(placement, disk);
        let Some(nonce) = self.space.extents.borrow().get(placement.id).map(|extent| extent.nonce) else {
            return Ok(Step::Done);
        };
        // The header is the same on every replica, whichever is left.
        for &other in placement.columns.iter().filter(|other| other.disk != disk) {
            let header = self.read_column(ExtentClass::Log, other, 0, LOG_HEADER_LEN as usize).await;
            let Some(bytes) = header else { continue };
            let is_right = LogHeader::decode(&bytes)
                .is_ok_and(|header| header.extent == placement.id && header.nonce == nonce);
            if is_right {
                if self.write_column(ExtentClass::Log, column, 0, &bytes).await? == Outcome::Out {
                    return Ok(Step::Out);
                }
                break;
            }
        }
        let extent = LogExtent { placement: Rc::new(placement.clone()), nonce };
        let mut batches = BatchScan::new(&self.core, &self.files, self.id, &extent, disk);
        while let Some((offset, bytes)) = batches.next().await {
            if self.write_column(ExtentClass::Log, column, offset, &bytes).await? == Outcome::Out {
                return Ok(Step::Out);
            }
            self.yield_to_users().await;
        }
        self.sync_column(ExtentClass::Log, column).await
    }

    async fn rebuild_table(&self, placement: &Placement, disk: DiskIndex) -> Result<Step, EngineError> {
        let column = column_on(placement, disk);
        let mut frames = Frames::new(&self.core, &self.files, placement, disk);
        while let Some((offset, bytes)) = frames.next().await {
            if self.write_column(ExtentClass::Table, column, offset, &bytes).await? == Outcome::Out {
                return Ok(Step::Out);
            }
        }
        self.sync_column(ExtentClass::Table, column).await
    }

    async fn yield_to_users(&self) {
        if self.commits.len() > 0 {
            self.core.sleep(Duration::from_millis(1)).await;
        } else {
            self.core.yield_now().await;
        }
    }

    async fn read_column(
        &self,
        class: ExtentClass,
        column: Column,
        offset: u64,
        len: usize,
    ) -> Option<Slice> {
        let (file, start) = self.files.locate_readable(class, column)?;
        let buf = self.core.arena().alloc(len).await;
        let place = (&file, start + offset);
        match self.files.members().read(&self.core, column.disk, place, buf).await? {
            (Ok(got), buf) if got == len => Some(buf.freeze()),
            _ => None,
        }
    }

    /// Writes `bytes`, whole blocks, to a column of the disk that is rebuilt.
    async fn write_column(
        &self,
        class: ExtentClass,
        column: Column,
        offset: u64,
        bytes: &[u8],
    ) -> Result<Outcome, EngineError> {
        for (part, at) in bytes.chunks(BUF_LEN_MAX).zip((0..).step_by(BUF_LEN_MAX)) {
            let Some((file, start)) = self.files.locate(class, column) else { return Ok(Outcome::Out) };
            let mut buf = self.core.arena().alloc(part.len()).await;
            buf.set_len(part.len());
            buf.copy_from_slice(part);
            let at = start + offset + at as u64;
            let write = async move { file.write_at(buf.freeze(), at, WriteMode::Volatile).await };
            let ended = self.files.carry_out(&self.core, column.disk, write).await;
            if ended.map_err(|error| failed(column.disk, &error))? == Outcome::Out {
                return Ok(Outcome::Out);
            }
        }
        Ok(Outcome::Done)
    }

    async fn sync_column(&self, class: ExtentClass, column: Column) -> Result<Step, EngineError> {
        let Some((file, _)): Option<(File, u64)> = self.files.locate(class, column) else {
            return Ok(Step::Out);
        };
        let sync = self.files.sync(column.disk, &file);
        match self.files.carry_out(&self.core, column.disk, sync).await {
            Ok(Outcome::Done) => Ok(Step::Done),
            Ok(Outcome::Out) => Ok(Step::Out),
            Err(error) => Err(failed(column.disk, &error)),
        }
    }
}

fn has_column_on(placement: &Placement, disk: DiskIndex) -> bool {
    placement.columns.iter().any(|column| column.disk == disk)
}

fn column_on(placement: &Placement, disk: DiskIndex) -> Column {
    let found = placement.columns.iter().find(|column| column.disk == disk);
    *found.expect("it was chosen for its column on this disk")
}

fn failed(disk: DiskIndex, error: &std::io::Error) -> EngineError {
    EngineError::Damaged(format!("disk {}: {error}", disk.0))
}
