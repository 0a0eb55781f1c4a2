//! Repair: blocks that readers or scrub found damaged are made right again from redundancy, in place.
//!
//! A slot is written only while its extent is pinned under the id that the damage was found under, by a task that nobody
//! cancels: so no write meets a slot that was given to another extent. What is written was verified against checksums
//! before, and is read back after. What cannot be restored stays as it is, is counted and logged once; what a
//! device refuses is not tried again.

mod log;
mod table;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use super::Shard;
use super::scrub::pace::Pace;
use crate::body::{BlockRow, Bodies, Damage, DeviceError, Mended};
use crate::deployment::shard_file;
use crate::extent::{DiskIndex, ExtentClass, ExtentId, Placement};
use crate::wait::{Event, KeyGuard, KeyLocks};

/// Suspects that wait for repair at most; beyond that they wait to be met again, by a reader or by scrub.
const QUEUE_LEN_MAX: usize = 1024;

/// Places of unrepairable damage that are remembered, so that each is counted and logged once.
const GIVEN_UP_MAX: usize = 4096;

/// What has been found damaged, as a core that met it tells the owning shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Suspect {
    /// A block of a stripe; its row is looked at as a whole.
    Row(BlockRow),
    /// A run of a log extent, where an inline body lies.
    Log { extent: ExtentId, offset: u64, len: u64 },
    /// A run of an index table.
    Table { extent: ExtentId, offset: u64, len: u64 },
}

impl Suspect {
    /// Suspects of one place are one.
    fn place(&self) -> (ExtentId, u64) {
        match self {
            Suspect::Row(row) => (row.extent, row.offset),
            Suspect::Log { extent, offset, .. } | Suspect::Table { extent, offset, .. } => (*extent, *offset),
        }
    }
}

/// What repair has done since the start, in blocks as they were checksummed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RepairCounts {
    pub repaired: u64,
    /// Damaged and beyond repair, or refused by its disk.
    pub unrepairable: u64,
}

/// The repairs of one shard.
#[derive(Default)]
pub(super) struct Repairs {
    queue: RefCell<VecDeque<Suspect>>,
    /// Places of what is queued.
    queued: RefCell<BTreeSet<(ExtentId, u64)>>,
    /// Places whose damage was beyond repair.
    given_up: RefCell<BTreeSet<(ExtentId, u64)>>,
    /// Each damaged block among them, as counted.
    counted: RefCell<BTreeSet<(ExtentId, DiskIndex, u64)>>,
    counts: Cell<RepairCounts>,
    /// Damaged blocks met, by the disk they lie on.
    by_disk: RefCell<BTreeMap<DiskIndex, u64>>,
    work: Event,
    /// One repair at a time: two of one place would count what they did twice.
    turn: Rc<KeyLocks>,
    /// Pins held here, and by scrub.
    pins: Cell<usize>,
}

impl Repairs {
    /// Takes note of damage; never waits.
    pub(super) fn suspect(&self, suspect: Suspect) {
        let place = suspect.place();
        if self.given_up.borrow().contains(&place) || self.queue.borrow().len() >= QUEUE_LEN_MAX {
            return;
        }
        if self.queued.borrow_mut().insert(place) {
            self.queue.borrow_mut().push_back(suspect);
            self.work.notify();
        }
    }

    pub(super) fn counts(&self) -> RepairCounts {
        self.counts.get()
    }

    fn blame(&self, disk: DiskIndex) {
        *self.by_disk.borrow_mut().entry(disk).or_default() += 1;
    }

    /// Pins that are no readers'.
    pub(super) fn pin_count(&self) -> usize {
        self.pins.get()
    }

    /// Waits until no other repair is under way.
    pub(super) async fn turn(&self) -> KeyGuard {
        self.turn.lock(b"").await
    }

    pub(super) fn wake(&self) {
        self.work.notify();
    }
}

/// Keeps extents until dropped.
pub(super) struct PinGuard {
    shard: Rc<Shard>,
    pin: u64,
}

impl Drop for PinGuard {
    fn drop(&mut self) {
        self.shard.unpin(self.pin);
        let pins = &self.shard.repairs.pins;
        pins.set(pins.get() - 1);
    }
}

impl Shard {
    /// Damaged blocks that repair has met since the start, by disk.
    pub(crate) fn damaged_by_disk(&self) -> Vec<(DiskIndex, u64)> {
        self.repairs.by_disk.borrow().iter().map(|(&disk, &count)| (disk, count)).collect()
    }

    /// Takes note of damage that some core met; never waits.
    pub(crate) fn suspect(&self, suspect: Suspect) {
        self.repairs.suspect(suspect);
    }

    /// Mends what readers have met, one place after the other, until the shard fails.
    pub(crate) async fn run_repairs(self: Rc<Self>, bodies: Rc<Bodies>) {
        loop {
            let failed = || self.failed.borrow().is_some();
            self.repairs.work.wait_until(|| failed() || !self.repairs.queue.borrow().is_empty()).await;
            if failed() {
                return;
            }
            let Some(suspect) = self.repairs.queue.borrow_mut().pop_front() else { continue };
            let place = suspect.place();
            self.repairs.queued.borrow_mut().remove(&place);
            let hopeless = match suspect {
                Suspect::Row(row) => self.mend_row(&bodies, row).await,
                Suspect::Log { extent, offset, len } => {
                    self.mend_log(extent, Some(offset..offset + len), &Pace::Free).await
                }
                Suspect::Table { extent, offset, len } => {
                    self.mend_table(extent, Some(offset..offset + len), &Pace::Free).await
                }
            };
            if hopeless {
                remember(&mut self.repairs.given_up.borrow_mut(), place);
            }
        }
    }

    /// Keeps `extent` under this id until the guard is dropped; `None` when it is gone or going.
    pub(super) fn pin_guard(self: &Rc<Self>, extent: ExtentId) -> Option<PinGuard> {
        let pin = self.pin(vec![extent])?;
        self.repairs.pins.set(self.repairs.pins.get() + 1);
        Some(PinGuard { shard: Rc::clone(self), pin })
    }

    /// Mends a row of a data extent; says whether something of it stays damaged.
    pub(super) async fn mend_row(self: &Rc<Self>, bodies: &Rc<Bodies>, row: BlockRow) -> bool {
        let turn = self.repairs.turn().await;
        // Also a proof that the extent still is what it was when the damage was found: ids are never used twice.
        let Some(pin) = self.pin_guard(row.extent) else { return false };
        let placements = self.placements(&[row.extent]);
        let [placement] = placements.as_slice() else { return false };
        if placement.class != ExtentClass::Data {
            return false;
        }
        let (placement, bodies) = (placement.clone(), Rc::clone(bodies));
        // A task of its own, which ends whatever becomes of whoever waits for it, and the pin with it.
        let place = placement.clone();
        let task = self.core.spawn(async move {
            let mended = bodies.mend(&place, &row).await;
            drop((pin, turn));
            mended
        });
        let mended = task.await.unwrap_or_default();
        self.note_mended(&mended, &placement);
        !mended.unrepairable.is_empty()
    }

    /// Counts and logs what a repair did to the extent at `placement`.
    pub(super) fn note_mended(&self, mended: &Mended, placement: &Placement) {
        let class = placement.class;
        let kind = match class {
            ExtentClass::Log => "log",
            ExtentClass::Data => "data",
            ExtentClass::Table => "table",
        };
        let file = shard_file(self.id, kind);
        let slot_len = self.files.geometry().slot_len(class);
        let offset = |damage: &Damage| {
            u64::from(placement.columns[usize::from(damage.column)].slot) * slot_len + damage.offset
        };
        let mut counts = self.repairs.counts.get();
        for damage in &mended.repaired {
            counts.repaired += 1;
            self.repairs.blame(damage.disk);
            tracing::warn!(shard = self.id, disk = damage.disk.0, %file, offset = offset(damage), len = damage.len,
                extent = damage.extent.0, fault = %damage.fault, "damaged block repaired");
        }
        for damage in &mended.unrepairable {
            let known = (damage.extent, damage.disk, damage.offset);
            if remember(&mut self.repairs.counted.borrow_mut(), known) {
                counts.unrepairable += 1;
                self.repairs.blame(damage.disk);
                tracing::error!(shard = self.id, disk = damage.disk.0, %file, offset = offset(damage), len = damage.len,
                    extent = damage.extent.0, fault = %damage.fault, "damaged block cannot be repaired");
            }
        }
        self.repairs.counts.set(counts);
        for (column, error) in &mended.refused {
            self.disk_refused(column.disk, error);
        }
    }

    /// Counts and logs what came of writing a piece of `file` again that was not what it should be.
    pub(crate) fn note_file(
        &self,
        disk: DiskIndex,
        file: &str,
        offset: u64,
        written: Result<(), DeviceError>,
    ) {
        match written {
            Ok(()) => {
                let counts = self.repairs.counts.get();
                self.repairs.counts.set(RepairCounts { repaired: counts.repaired + 1, ..counts });
                tracing::warn!(shard = self.id, disk = disk.0, %file, offset, "damaged copy written anew");
            }
            Err(error) => {
                self.note_lost();
                self.disk_refused(disk, &error);
            }
        }
    }

    /// Counts something that could not be repaired.
    pub(super) fn note_lost(&self) {
        let counts = self.repairs.counts.get();
        self.repairs.counts.set(RepairCounts { unrepairable: counts.unrepairable + 1, ..counts });
    }

    /// A disk did not take, or did not keep, what repair wrote, and the set cannot do without it (or it is full): nothing is tried
    /// again.
    fn disk_refused(&self, disk: DiskIndex, error: &DeviceError) {
        tracing::error!(shard = self.id, disk = disk.0, %error, "a disk refuses repair");
    }
}

/// Adds to a bounded memory, which starts over when it is full; `false` if it was known.
fn remember<T: Ord>(known: &mut BTreeSet<T>, new: T) -> bool {
    if known.len() >= GIVEN_UP_MAX && !known.contains(&new) {
        known.clear();
    }
    known.insert(new)
}
