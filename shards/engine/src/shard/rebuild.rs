//! Rebuilding a disk that came back or took another's place: into each of its slots goes what belongs there.
//!
//! From `until` on every core wrote the disk's columns with all others; below it, extents are rebuilt one after the other in the order
//! of their ids, each on all disks that lack it together. Everything that is written was verified first: stripes against the
//! checksums of their directory chunks, log batches and index tables by their own. An extent is flushed once, when it is
//! whole, for nobody reads the disk before all of it is there. The position is kept in the root, so a restart goes on where
//! this one was.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use basalt_reactor::arena::BUF_LEN_MAX;
use basalt_reactor::disk::BLOCK_LEN;
use basalt_reactor::{Monotonic, Slice};

use super::Shard;
use super::checkpoint::ROOT_TURN;
use crate::body::{BlockRow, Bodies};
use crate::error::EngineError;
use crate::extent::flushes::FlushMark;
use crate::extent::members::{MemberState, Outcome};
use crate::extent::table::Extent;
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
    /// Those of its columns are durable that lie on these disks; the others of its disks are out again.
    Done(Vec<DiskIndex>),
    /// Somebody still writes to it.
    Wait,
}

/// What a shard knows of the rebuilding that is under way, beyond its positions.
#[derive(Default)]
struct UnderWay {
    /// Joinings whose disks have the room that they need.
    prepared: BTreeSet<(DiskIndex, u64)>,
    /// When the first core was told last that this shard's part is done.
    told: BTreeMap<(DiskIndex, u64), Monotonic>,
}

/// Columns of one extent on disks that are behind, which are made together.
struct Target<'a> {
    placement: &'a Placement,
    /// With what was flushed before anything was written.
    columns: Vec<(Column, FlushMark)>,
}

impl Target<'_> {
    fn disks(&self) -> Vec<DiskIndex> {
        self.columns.iter().map(|(column, _)| column.disk).collect()
    }

    /// A disk is out again.
    fn drop_disk(&mut self, disk: DiskIndex) {
        self.columns.retain(|(column, _)| column.disk != disk);
    }
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
        let mut under_way = UnderWay::default();
        loop {
            let failed = || self.failed.borrow().is_some();
            self.rebuilding.wait_until(|| failed() || !self.rebuilds_under_way().is_empty()).await;
            if failed() {
                return;
            }
            if let Err(error) = self.rebuild_next(&bodies, &mut under_way, &tell).await {
                tracing::warn!(shard = self.id, %error, "rebuilding stopped; it is tried again");
                self.core.sleep(TELL_EVERY).await;
            }
            if self.rebuilds_under_way().is_empty() {
                under_way = UnderWay::default();
                self.files.reads().throttle().end();
            }
        }
    }

    /// Rebuilds the next extent on all disks that lack it; where none is left, sees to what comes after.
    async fn rebuild_next(
        self: &Rc<Self>,
        bodies: &Rc<Bodies>,
        under_way: &mut UnderWay,
        tell: &TellRebuilt,
    ) -> Result<(), EngineError> {
        let rebuilds = self.rebuilds_under_way();
        for rebuild in &rebuilds {
            if under_way.prepared.contains(&(rebuild.disk, rebuild.joined)) {
                continue;
            }
            self.space.catch_up(rebuild.disk).await?;
            under_way.prepared.insert((rebuild.disk, rebuild.joined));
            tracing::info!(
                shard = self.id,
                disk = rebuild.disk.0,
                from = rebuild.next.0,
                until = rebuild.until.0,
                "rebuilding"
            );
        }
        // Only in its epoch is the current log extent one that a disk has from its beginning.
        let entered = |rebuild: &&Rebuild| self.log_epoch.get() >= rebuild.joined;
        let ready: Vec<Rebuild> = rebuilds.iter().filter(entered).copied().collect();
        if let Some(placement) = self.next_to_rebuild(&ready) {
            let lacks = |rebuild: &&Rebuild| is_due(&placement, rebuild);
            let due: Vec<Rebuild> = ready.iter().filter(lacks).copied().collect();
            match self.rebuild_extent(bodies, &placement, &due).await? {
                Step::Done(disks) => {
                    for rebuild in due.iter().filter(|rebuild| disks.contains(&rebuild.disk)) {
                        self.advance_rebuild(rebuild.disk, rebuild.joined, ExtentId(placement.id.0 + 1));
                    }
                }
                Step::Wait => self.core.sleep(RETRY_AFTER).await,
            }
        }
        let mut checkpointed = false;
        for rebuild in &ready {
            let position = self.rebuilds.borrow().iter().find(|other| other.disk == rebuild.disk).copied();
            let Some(position) = position.filter(|position| position.joined == rebuild.joined) else {
                continue;
            };
            if self.next_to_rebuild(&[position]).is_some() {
                continue;
            }
            self.advance_rebuild(rebuild.disk, rebuild.joined, rebuild.until);
            // The manifest is not copied: the next one has the disk among its places.
            let is_old = |placement: &Placement| placement.id < rebuild.until;
            if self.root.borrow().manifest.iter().any(is_old) {
                if !checkpointed {
                    self.checkpoint_now().await?;
                    checkpointed = true;
                }
                continue;
            }
            let now = self.core.now();
            let told = under_way.told.entry((rebuild.disk, rebuild.joined));
            let is_first = matches!(told, std::collections::btree_map::Entry::Vacant(_));
            let last = told.or_insert(now);
            if is_first || now.since(*last) >= TELL_EVERY {
                *last = now;
                tell(rebuild.disk, rebuild.joined);
            }
        }
        if self.next_to_rebuild(&self.rebuilds_under_way()).is_none() || ready.len() < rebuilds.len() {
            self.core.sleep(RETRY_AFTER).await;
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

    /// The first extent, in the order of ids, of which one of these disks has a column that is still to be made.
    fn next_to_rebuild(&self, rebuilds: &[Rebuild]) -> Option<Placement> {
        let lacks = |placement: &Placement| rebuilds.iter().any(|rebuild| is_due(placement, rebuild));
        let extents = self.space.extents.borrow();
        // What the log writes to now, it writes on every disk.
        let is_current = |extent: &Extent| extent.placement.class == ExtentClass::Log && !extent.sealed;
        let extent = extents.iter().find(|extent| !is_current(extent) && lacks(&extent.placement));
        let manifest = self.index.manifest();
        let table = manifest.placements().filter(|placement| lacks(placement)).min_by_key(|table| table.id);
        let extent = extent.map(|extent| &*extent.placement);
        extent.into_iter().chain(table).min_by_key(|placement| placement.id).cloned()
    }

    async fn rebuild_extent(
        self: &Rc<Self>,
        bodies: &Rc<Bodies>,
        placement: &Placement,
        due: &[Rebuild],
    ) -> Result<Step, EngineError> {
        let flushes = self.files.flushes();
        let column = |rebuild: &Rebuild| (column_on(placement, rebuild.disk), flushes.mark(rebuild.disk));
        let target = Target { placement, columns: due.iter().map(column).collect() };
        let gone = Ok(Step::Done(target.disks()));
        match placement.class {
            ExtentClass::Data => self.rebuild_data(bodies, target).await,
            ExtentClass::Log => {
                let Some(_pin) = self.pin_guard(placement.id) else { return gone };
                self.rebuild_log(target).await
            }
            ExtentClass::Table => {
                // No table's slot is given back while nobody makes a root.
                let _turn = self.roots.lock(ROOT_TURN).await;
                if self.index.manifest().placements().any(|current| current.id == placement.id) {
                    self.rebuild_table(target).await
                } else {
                    gone
                }
            }
        }
    }

    async fn rebuild_data(
        self: &Rc<Self>,
        bodies: &Rc<Bodies>,
        mut target: Target<'_>,
    ) -> Result<Step, EngineError> {
        let placement = target.placement;
        if self.is_written_to(placement.id) {
            return Ok(Step::Wait);
        }
        let Some(_pin) = self.pin_guard(placement.id) else { return Ok(Step::Done(target.disks())) };
        let geometry = *self.files.geometry();
        let directory = bodies.walk(placement).await;
        for chunk in &directory.chunks {
            for entry in chunk.entries.iter().filter(|entry| entry.fits(&geometry)) {
                for row in BlockRow::of_entry(placement.id, entry, &geometry) {
                    let begun = self.core.now();
                    self.drop_absent(&mut target);
                    if target.columns.is_empty() {
                        return Ok(Step::Done(Vec::new()));
                    }
                    let disks = target.disks();
                    let mended = bodies.mend_with(placement, &row, &disks).await;
                    if mended.unanswered {
                        return Ok(Step::Wait);
                    }
                    for (column, error) in
                        mended.refused.iter().filter(|(column, _)| disks.contains(&column.disk))
                    {
                        if !self.files.members().exclude(column.disk, error.to_string()).await {
                            return Ok(Step::Wait);
                        }
                    }
                    self.rest_after(begun).await;
                }
            }
            let bytes = chunk.encode(bodies.origin());
            let offset = u64::from(chunk.block) * BLOCK_LEN as u64;
            self.write_columns(ExtentClass::Data, &mut target, offset, &bytes).await?;
        }
        self.sync_columns(ExtentClass::Data, target).await
    }

    /// Disks that are not behind any more are none of this rebuilding's concern.
    fn drop_absent(&self, target: &mut Target<'_>) {
        target.columns.retain(|(column, _)| self.files.members().state(column.disk) == MemberState::Behind);
    }

    /// Whether writers may still write to a data extent; sees to it that no new ones begin.
    fn is_written_to(self: &Rc<Self>, id: ExtentId) -> bool {
        if self.leases.is_open(id) {
            self.leases.close(id);
            self.seal_if_done(id);
        }
        self.space.extents.borrow().get(id).is_some_and(|extent| extent.lease_count > 0)
    }

    async fn rebuild_log(&self, mut target: Target<'_>) -> Result<Step, EngineError> {
        let placement = target.placement;
        let Some(nonce) = self.space.extents.borrow().get(placement.id).map(|extent| extent.nonce) else {
            return Ok(Step::Done(target.disks()));
        };
        // The header is the same on every replica, whichever is left.
        for &other in &placement.columns {
            let header = self.read_column(ExtentClass::Log, other, 0, LOG_HEADER_LEN as usize).await;
            let Some(bytes) = header else { continue };
            let is_right = LogHeader::decode(&bytes)
                .is_ok_and(|header| header.extent == placement.id && header.nonce == nonce);
            if is_right {
                self.write_columns(ExtentClass::Log, &mut target, 0, &bytes).await?;
                break;
            }
        }
        // Disks that are behind are not read, so leaving out one leaves out none that is.
        let Some(&without) = target.disks().first() else { return Ok(Step::Done(Vec::new())) };
        let extent = LogExtent { placement: Rc::new(placement.clone()), nonce };
        let mut batches = BatchScan::new(&self.core, &self.files, self.id, &extent, without);
        let mut begun = self.core.now();
        while let Some((offset, bytes)) = batches.next().await {
            self.write_columns(ExtentClass::Log, &mut target, offset, &bytes).await?;
            self.rest_after(begun).await;
            begun = self.core.now();
        }
        self.sync_columns(ExtentClass::Log, target).await
    }

    async fn rebuild_table(&self, mut target: Target<'_>) -> Result<Step, EngineError> {
        let Some(&without) = target.disks().first() else { return Ok(Step::Done(Vec::new())) };
        let mut frames = Frames::new(&self.core, &self.files, target.placement, without);
        // Whoever makes a root waits: no rests here.
        while let Some((offset, bytes)) = frames.next().await {
            self.write_columns(ExtentClass::Table, &mut target, offset, &bytes).await?;
        }
        self.sync_columns(ExtentClass::Table, target).await
    }

    /// Rests after work that began at `begun`, as users need it.
    async fn rest_after(&self, begun: Monotonic) {
        let rest = self.files.reads().throttle().rest_after(begun, self.core.now());
        if rest.is_zero() {
            self.core.yield_now().await;
        } else {
            self.core.sleep(rest).await;
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

    /// Writes `bytes`, whole blocks, to all columns that are rebuilt. Disks that go out meanwhile are left out.
    async fn write_columns(
        &self,
        class: ExtentClass,
        target: &mut Target<'_>,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), EngineError> {
        for (part, at) in bytes.chunks(BUF_LEN_MAX).zip((0..).step_by(BUF_LEN_MAX)) {
            let mut buf = self.core.arena().alloc(part.len()).await;
            buf.set_len(part.len());
            buf.copy_from_slice(part);
            let bytes = buf.freeze();
            for (column, _) in target.columns.clone() {
                let place = (class, column, offset + at as u64);
                let written = self.files.write_unsynced(&self.core, place, bytes.clone()).await;
                if written.map_err(|error| failed(column.disk, &error))? == Outcome::Out {
                    target.drop_disk(column.disk);
                }
            }
        }
        Ok(())
    }

    /// Makes durable what was written.
    async fn sync_columns(&self, class: ExtentClass, mut target: Target<'_>) -> Result<Step, EngineError> {
        for (column, mark) in target.columns.clone() {
            let Some((file, _)) = self.files.locate(class, column) else {
                target.drop_disk(column.disk);
                continue;
            };
            let (files, core) = (Rc::clone(&self.files), self.core.clone());
            let sync = async move { files.sync_since(&core, column.disk, &file, mark).await };
            let synced = self.files.carry_out(&self.core, column.disk, sync).await;
            if synced.map_err(|error| failed(column.disk, &error))? == Outcome::Out {
                target.drop_disk(column.disk);
            }
        }
        Ok(Step::Done(target.disks()))
    }
}

/// Whether the disk's column of an extent is still to be made.
fn is_due(placement: &Placement, rebuild: &Rebuild) -> bool {
    (rebuild.next..rebuild.until).contains(&placement.id) && has_column_on(placement, rebuild.disk)
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
