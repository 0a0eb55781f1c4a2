//! The space of one shard: slots taken and free in its arena files, and growing those files.
//!
//! Files grow one slot at a time. A reserve of the disk is kept back from bodies and ever less from log and index, so
//! that a full disk still takes deletes, checkpoints and one compaction step, which is what gives space back.

mod sets;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use basalt_reactor::{Core, File};

use self::sets::Room;
use crate::body::DeviceError;
use crate::error::EngineError;
use crate::extent::groups::{GroupIndex, GroupRole};
use crate::extent::members::{MemberState, is_full};
use crate::extent::table::{Extent, ExtentTable};
use crate::extent::{ArenaFiles, DiskIndex, ExtentClass, ExtentId, Placement};
use crate::index::{NoSpace, TableAllocator};
use crate::wait::KeyLocks;

const CLASSES: [ExtentClass; 3] = [ExtentClass::Log, ExtentClass::Data, ExtentClass::Table];

/// Table slots that bodies leave free.
const TABLE_SLOT_RESERVE: u64 = 10;

/// Table slots that the log leaves free: a flush, a manifest and one small compaction step fit. These give back what the
/// log took.
const TABLE_SLOT_RESERVE_OF_LOG: u64 = 6;

/// Log slots that bodies leave free.
const LOG_SLOT_RESERVE: u64 = 2;

/// One part in so many of a disk that the logs of all shards may take before collection empties them whatever it gains, and how
/// many slots a log may have in any case.
const LOG_SHARE: u64 = 8;
const LOG_SLOTS_MIN: u64 = 16;

/// A disk with less than one part in so many available is tight.
const TIGHT_SHARE: u64 = 3;

/// Data slots that everything but a collection step leaves free, or leaves room for: what a step moves goes there.
const DATA_SLOT_RESERVE: u32 = 1;

/// Who asks for a data extent, and so what must be left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// New bodies leave every reserve alone.
    Clients,
    /// What frees log extents leaves room for a collection step, since no data extent comes free for it.
    Repacking,
    /// A collection step gives back more than it takes.
    Collection,
}

pub(crate) struct Space {
    core: Core,
    files: Rc<ArenaFiles>,
    shard: u16,
    /// By shard, where its log and its tables lie.
    homes: Vec<GroupIndex>,
    pub(crate) extents: RefCell<ExtentTable>,
    /// One grower per class at a time.
    growing: Rc<KeyLocks>,
    /// Table extents given out, until they are released.
    tables: RefCell<BTreeMap<ExtentId, Placement>>,
    /// Set when something that grows the store found no room, cleared when room appears.
    full: Cell<bool>,
    log_long: Cell<bool>,
    tight: Cell<bool>,
    /// Recovery may use the reserve: what it needs comes back with its first root. It cannot wait for room, and goes on without a
    /// disk that has none.
    opening: Cell<bool>,
}

impl Space {
    pub(crate) fn new(
        core: Core,
        files: Rc<ArenaFiles>,
        (shard, homes): (u16, Vec<GroupIndex>),
        extents: ExtentTable,
    ) -> Rc<Space> {
        Rc::new(Space {
            core,
            files,
            shard,
            homes,
            extents: RefCell::new(extents),
            growing: Rc::default(),
            tables: RefCell::default(),
            full: Cell::new(false),
            log_long: Cell::new(false),
            tight: Cell::new(false),
            opening: Cell::new(true),
        })
    }

    /// Whether bodies are refused for want of room.
    pub(crate) fn is_full(&self) -> bool {
        self.full.get()
    }

    pub(crate) fn set_full(&self, full: bool) {
        self.full.set(full);
    }

    /// Looks again whether bodies may come in: some disk of the log has less than the reserve, and no log slots are free
    /// instead.
    pub(crate) fn refresh_full(&self) {
        let home = self.files.home_disks();
        let reserve = self.reserve_len(ExtentClass::Data, self.files.home());
        let low = self.has_less(&home, reserve);
        let log_slots = self.extents.borrow().free_extents(ExtentClass::Log, &home);
        self.full.set(low && u64::from(log_slots) < LOG_SLOT_RESERVE);
        self.log_long.set(self.measure_log());
        self.tight.set(self.measure_tightness());
    }

    /// Whether what is allocated now may use the reserve, and does without disks that have no room.
    pub(crate) fn use_reserve(&self, may: bool) {
        self.opening.set(may);
    }

    /// Recovery is over: from here on the reserve is kept.
    pub(crate) fn opened(&self) {
        self.opening.set(false);
        self.refresh_full();
    }

    /// Whether the next data extent of a client would take what is kept for a collection step.
    pub(crate) fn is_data_low(&self) -> bool {
        !self.leaves_reserve(Claim::Clients)
    }

    /// Whether log extents come from free slots alone, and those are nearly spent.
    pub(crate) fn is_log_low(&self) -> bool {
        let home = self.files.home_disks();
        let slots = u64::from(self.extents.borrow().free_extents(ExtentClass::Log, &home));
        let slot_len = self.files.geometry().log_slot_len;
        let reserve = self.reserve_len(ExtentClass::Log, self.files.home()) + slot_len * LOG_SLOT_RESERVE;
        slots <= LOG_SLOT_RESERVE && self.has_less(&home, reserve)
    }

    /// Whether log extents took more of some disk, when last looked at, than is good for a class that never gives a slot back.
    pub(crate) fn is_log_long(&self) -> bool {
        self.log_long.get()
    }

    /// Whether little enough was available on some disk, when last looked at, that garbage must not pile up.
    pub(crate) fn is_tight(&self) -> bool {
        self.tight.get()
    }

    fn measure_tightness(&self) -> bool {
        // With several sets, tight is what the roomiest of them says: that is where bodies go.
        self.rooms().iter().all(|room| room.available < room.total / TIGHT_SHARE)
    }

    fn measure_log(&self) -> bool {
        let extents = self.extents.borrow();
        let slot_len = self.files.geometry().log_slot_len;
        let shards_at_home = self.homes.iter().filter(|&&home| home == self.files.home()).count() as u64;
        self.files.home_disks().iter().any(|&disk| {
            let lies_there = |extent: &&Extent| {
                let placement = &extent.placement;
                placement.class == ExtentClass::Log
                    && placement.columns.iter().any(|column| column.disk == disk)
            };
            let count = extents.iter().filter(lies_there).count() as u64;
            let space = self.files.disk(disk).and_then(|files| files.disk.space().ok());
            let share =
                space.map_or(u64::MAX, |space| space.total / LOG_SHARE / shards_at_home.max(1) / slot_len);
            count > share.max(LOG_SLOTS_MIN)
        })
    }

    /// Whether the log can take another extent beside the one that is kept ready.
    pub(crate) fn has_log_slot(&self) -> bool {
        let slot_len = self.files.geometry().log_slot_len;
        let home = self.files.home_disks();
        let reserve = self.reserve_len(ExtentClass::Log, self.files.home());
        self.extents.borrow().free_extents(ExtentClass::Log, &home) > 0
            || !self.has_less(&home, reserve + slot_len)
    }

    /// Whether one of `disks` has less than `len` bytes available. One that cannot say will say so when it is written to.
    fn has_less(&self, disks: &[DiskIndex], len: u64) -> bool {
        let mut files = disks.iter().filter_map(|&disk| self.files.disk(disk));
        files.any(|files| files.disk.space().is_ok_and(|space| space.available < len))
    }

    /// Whether a data extent can be taken from some set so that one more can be, by a collection step.
    pub(crate) fn leaves_reserve(&self, claim: Claim) -> bool {
        self.files.members().groups().sets().any(|set| self.leaves_reserve_on(set, claim))
    }

    fn leaves_reserve_on(&self, set: GroupIndex, claim: Claim) -> bool {
        let disks = self.files.members().groups().disks(set);
        let free = self.extents.borrow().free_extents(ExtentClass::Data, &disks);
        if claim == Claim::Collection || free > DATA_SLOT_RESERVE {
            return true;
        }
        let grown = if free == 0 { self.files.geometry().data_slot_len } else { 0 };
        !self.has_less(&disks, self.reserve_for(claim, set) + grown)
    }

    /// Bytes of a disk of `set` that growing the data arena leaves available.
    fn reserve_for(&self, claim: Claim, set: GroupIndex) -> u64 {
        match claim {
            Claim::Clients => self.reserve_len(ExtentClass::Data, set),
            Claim::Repacking => self.reserve_len(ExtentClass::Log, set),
            // What is kept for the steps of other shards is not this one's.
            Claim::Collection => {
                self.reserve_len(ExtentClass::Log, set) - self.files.geometry().data_slot_len
            }
        }
    }

    /// What there is of each set, for the choice of where a data extent goes.
    fn rooms(&self) -> Vec<Room> {
        let groups = self.files.members().groups();
        let slot_len = self.files.geometry().data_slot_len;
        let room = |set| {
            let disks = groups.disks(set);
            let slots = u64::from(self.extents.borrow().free_extents(ExtentClass::Data, &disks));
            let spaces = disks.iter().filter_map(|&disk| self.files.disk(disk)?.disk.space().ok());
            let least = spaces.map(|space| (space.available, space.total)).min().unwrap_or((0, 0));
            Room { set, available: least.0 + slots * slot_len, total: least.1.max(1) }
        };
        groups.sets().map(room).collect()
    }

    /// A new data extent.
    ///
    /// # Errors
    /// As [`Space::allocate`].
    pub(crate) async fn allocate_data(&self, claim: Claim) -> Result<Placement, EngineError> {
        let groups = self.files.members().groups();
        let shard_count = self.homes.len();
        let order = match groups.sets().count() {
            1 => groups.sets().collect(),
            _ => {
                let next = self.extents.borrow().next_id();
                sets::order(&self.rooms(), usize::from(self.shard), shard_count, next)
            }
        };
        for set in order {
            if !self.leaves_reserve_on(set, claim) {
                continue;
            }
            let placed = self.allocate_leaving(ExtentClass::Data, set, self.reserve_for(claim, set)).await;
            if !matches!(placed, Err(EngineError::NoSpace)) {
                return placed;
            }
        }
        Err(EngineError::NoSpace)
    }

    /// A new extent of class log or table, growing arena files when no slot is free.
    ///
    /// # Errors
    /// [`EngineError::NoSpace`], or the device's error.
    pub(crate) async fn allocate(&self, class: ExtentClass) -> Result<Placement, EngineError> {
        let home = self.files.home();
        self.allocate_leaving(class, home, self.reserve_len(class, home)).await
    }

    async fn allocate_leaving(
        &self,
        class: ExtentClass,
        group: GroupIndex,
        reserve: u64,
    ) -> Result<Placement, EngineError> {
        let disks = self.files.members().groups().disks(group);
        loop {
            let states = self.files.members().states();
            let shortage = match self.extents.borrow_mut().place(class, &disks, &states) {
                Ok(placement) => return Ok(placement),
                Err(shortage) => shortage,
            };
            let _one = self.growing.lock(&[class as u8]).await;
            for disk in shortage.disks {
                self.grow_to(1, class, disk, reserve).await?;
            }
        }
    }

    /// Makes room for `count` table extents, so that the index finds slots without waiting.
    pub(crate) async fn reserve_tables(&self, count: u32) -> Result<(), EngineError> {
        let home = self.files.home_disks();
        while self.extents.borrow().free_extents(ExtentClass::Table, &home) < count {
            let _one = self.growing.lock(&[ExtentClass::Table as u8]).await;
            for &disk in &home {
                self.grow_to(count, ExtentClass::Table, disk, 0).await?;
            }
        }
        Ok(())
    }

    /// Bytes of a disk of `group` that growing `class` must leave available.
    fn reserve_len(&self, class: ExtentClass, group: GroupIndex) -> u64 {
        let geometry = self.files.geometry();
        let at_home = match class {
            ExtentClass::Data => {
                geometry.table_slot_len * TABLE_SLOT_RESERVE + geometry.log_slot_len * LOG_SLOT_RESERVE
            }
            // Deletes go on into the rest, and it comes back with the next checkpoint.
            ExtentClass::Log => geometry.table_slot_len * TABLE_SLOT_RESERVE_OF_LOG,
            ExtentClass::Table => return 0,
        };
        let step = match self.files.members().groups().role(group) {
            GroupRole::Set => geometry.data_slot_len * u64::from(DATA_SLOT_RESERVE),
            GroupRole::Metadata => 0,
        };
        let shards_at_home = self.homes.iter().filter(|&&home| home == group).count() as u64;
        at_home * shards_at_home + step * self.homes.len() as u64
    }

    /// Frees the slots of a table that no durable root and no reader needs any more.
    pub(crate) fn release_table(&self, placement: &Placement) {
        self.tables.borrow_mut().remove(&placement.id);
        self.extents.borrow_mut().release(placement);
    }

    /// Gives `class` one slot more on `disk`, unless `count` are free there.
    async fn grow_to(
        &self,
        count: u32,
        class: ExtentClass,
        disk: DiskIndex,
        reserve: u64,
    ) -> Result<(), EngineError> {
        if self.extents.borrow().free_slots(class, disk) >= count {
            return Ok(());
        }
        match self.grow(class, disk, reserve).await {
            Err(EngineError::NoSpace) if self.opening.get() && class != ExtentClass::Data => {
                self.do_without(disk, class, count).await?;
                self.grow(class, disk, reserve).await
            }
            grown => grown,
        }
    }

    /// Has `disk` taken out, which has no room for `count` slots of `class`. Others of its group that have none either would be
    /// next, so nothing is done unless the group can do without all of them.
    async fn do_without(&self, disk: DiskIndex, class: ExtentClass, count: u32) -> Result<(), EngineError> {
        let members = self.files.members();
        let groups = members.groups();
        let group = groups.of(disk);
        let mut states = members.states();
        let full: Vec<DiskIndex> = groups
            .disks(group)
            .into_iter()
            .filter(|&other| {
                let is_out = states[usize::from(other.0)] == MemberState::Out;
                !is_out && (other == disk || self.lacks_room(other, class, count))
            })
            .collect();
        for disk in &full {
            states[usize::from(disk.0)] = MemberState::Out;
        }
        let can_go = groups.in_sync(group, &states) >= groups.needed(group);
        if can_go && members.exclude_full(disk).await {
            Ok(())
        } else {
            Err(EngineError::DisksFull { disks: full })
        }
    }

    fn lacks_room(&self, disk: DiskIndex, class: ExtentClass, count: u32) -> bool {
        let missing = count.saturating_sub(self.extents.borrow().free_slots(class, disk));
        let len = u64::from(missing) * self.files.geometry().slot_len(class);
        self.has_less(&[disk], len)
    }

    /// What a disk of `group` must have available for clients' writes to be taken that need another data extent.
    pub(crate) fn wanted_len(&self, group: GroupIndex) -> u64 {
        self.reserve_len(ExtentClass::Data, group) + self.files.geometry().data_slot_len
    }

    async fn grow(&self, class: ExtentClass, disk: DiskIndex, reserve: u64) -> Result<(), EngineError> {
        let slot_len = self.files.geometry().slot_len(class);
        let grown = self.extents.borrow().grown(class, disk) + 1;
        // The slots of a disk that is not there are counted as if it were; it gets them when it is back.
        let is_out = self.files.members().state(disk) == MemberState::Out;
        if let Some(files) = self.files.disk(disk).filter(|_| !is_out) {
            let available =
                files.disk.space().map_err(|error| failed(class, disk, &error)).map(|space| space.available);
            let reserve = if self.opening.get() { 0 } else { reserve };
            match available {
                Ok(available) if available < reserve + slot_len => return Err(EngineError::NoSpace),
                // What is wrong with it shows in the next step.
                Ok(_) | Err(_) => {}
            }
            let file = files.of_class(class).clone();
            self.grow_file(file, disk, u64::from(grown) * slot_len)
                .await
                .map_err(|error| failed(class, disk, &error))?;
        }
        self.extents.borrow_mut().set_grown(class, disk, grown);
        Ok(())
    }

    async fn grow_file(&self, file: File, disk: DiskIndex, len: u64) -> io::Result<()> {
        let mark = self.files.flushes().mark(disk);
        let files = Rc::clone(&self.files);
        let core = self.core.clone();
        let grow = async move {
            file.grow(len).await?;
            // A record may name the slot before anything in it was synced; the room must be there after a power cut.
            files.sync_since(&core, disk, &file, mark).await
        };
        self.files.carry_out(&self.core, disk, grow).await.map(drop)
    }

    /// Gives a disk that was away or is new the room that was given out on it meanwhile.
    ///
    /// # Errors
    /// [`EngineError::NoSpace`] when it has not as much.
    pub(crate) async fn catch_up(&self, disk: DiskIndex) -> Result<(), EngineError> {
        for class in CLASSES {
            self.catch_up_class(class, disk).await.map_err(|error| failed(class, disk, &error))?;
        }
        Ok(())
    }

    async fn catch_up_class(&self, class: ExtentClass, disk: DiskIndex) -> io::Result<()> {
        let Some(files) = self.files.disk(disk) else { return Ok(()) };
        let len = u64::from(self.extents.borrow().grown(class, disk)) * self.files.geometry().slot_len(class);
        let file = files.of_class(class);
        if file.len()? < len {
            file.grow(len).await?;
            self.files.sync(disk, file).await?;
        }
        Ok(())
    }

    /// As [`Space::catch_up`], for all disks that are there when a shard is opened, before anything is written to the slots that
    /// some of them have yet to get. One without room for that is taken out.
    ///
    /// # Errors
    /// [`EngineError::DisksFull`]; that of a device without which the set cannot go on.
    pub(crate) async fn catch_up_all(self: &Rc<Self>) -> Result<(), EngineError> {
        for disk in (0..self.files.disk_count()).map(DiskIndex) {
            for class in CLASSES {
                let space = Rc::clone(self);
                let caught_up = async move { space.catch_up_class(class, disk).await };
                match self.files.carry_out(&self.core, disk, caught_up).await {
                    Ok(_) => {}
                    Err(error) if is_full(&error) => self.do_without(disk, class, 0).await?,
                    Err(error) => return Err(failed(class, disk, &error)),
                }
            }
        }
        Ok(())
    }
}

fn failed(class: ExtentClass, disk: DiskIndex, error: &io::Error) -> EngineError {
    if is_full(error) {
        return EngineError::NoSpace;
    }
    EngineError::Damaged(format!(
        "growing the {class:?} arena of disk {}: {}",
        disk.0,
        DeviceError::from(error)
    ))
}

impl TableAllocator for Space {
    fn allocate(&self) -> Result<Placement, NoSpace> {
        let (home, states) = (self.files.home_disks(), self.files.members().states());
        let placed = self.extents.borrow_mut().place(ExtentClass::Table, &home, &states);
        let placement = placed.map_err(|_| NoSpace)?;
        self.tables.borrow_mut().insert(placement.id, placement.clone());
        Ok(placement)
    }

    fn discard(&self, id: ExtentId) {
        if let Some(placement) = self.tables.borrow_mut().remove(&id) {
            self.extents.borrow_mut().release(&placement);
        }
    }
}
