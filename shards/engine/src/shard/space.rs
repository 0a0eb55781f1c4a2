//! The space of one shard: slots taken and free in its arena files, and growing those files.
//!
//! Files grow one slot at a time. A reserve of the disk is kept back from bodies and ever less from log and index, so
//! that a full disk still takes deletes, checkpoints and one compaction step, which is what gives space back.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use basalt_reactor::Disk;

use crate::body::DeviceError;
use crate::error::EngineError;
use crate::extent::table::ExtentTable;
use crate::extent::{ArenaFiles, DiskIndex, ExtentClass, ExtentId, Placement};
use crate::index::{NoSpace, TableAllocator};
use crate::wait::KeyLocks;

/// Table slots that bodies leave free.
const TABLE_SLOT_RESERVE: u64 = 10;

/// Table slots that the log leaves free: a flush, a manifest and one small compaction step fit. These give back what the
/// log took.
const TABLE_SLOT_RESERVE_OF_LOG: u64 = 6;

/// Log slots that bodies leave free.
const LOG_SLOT_RESERVE: u64 = 2;

pub(crate) struct Space {
    files: Rc<ArenaFiles>,
    disks: Vec<Option<Disk>>,
    shard_count: u64,
    pub(crate) extents: RefCell<ExtentTable>,
    /// One grower per class at a time.
    growing: Rc<KeyLocks>,
    /// Table extents given out, until they are released.
    tables: RefCell<BTreeMap<ExtentId, Placement>>,
    /// Set when something that grows the store found no room, cleared when room appears.
    full: Cell<bool>,
    /// Recovery may use the reserve: what it needs comes back with its first root.
    opening: Cell<bool>,
}

impl Space {
    pub(crate) fn new(
        files: Rc<ArenaFiles>,
        disks: Vec<Option<Disk>>,
        shard_count: u16,
        extents: ExtentTable,
    ) -> Rc<Space> {
        Rc::new(Space {
            files,
            disks,
            shard_count: u64::from(shard_count),
            extents: RefCell::new(extents),
            growing: Rc::default(),
            tables: RefCell::default(),
            full: Cell::new(false),
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

    /// Looks again whether bodies may come in: some disk has less than the reserve, and no log slots are free instead.
    pub(crate) fn refresh_full(&self) {
        let reserve = self.reserve_len(ExtentClass::Data);
        let low = self.disks.iter().flatten().any(|disk| {
            // A disk that cannot say how much room it has will say so when it is written to.
            disk.space().is_ok_and(|space| space.available < reserve)
        });
        let log_slots = self.extents.borrow().free_extents(ExtentClass::Log);
        self.full.set(low && u64::from(log_slots) < LOG_SLOT_RESERVE);
    }

    /// Recovery is over: from here on the reserve is kept.
    pub(crate) fn opened(&self) {
        self.opening.set(false);
        self.refresh_full();
    }

    /// A new extent of `class`, growing arena files when no slot is free.
    ///
    /// # Errors
    /// [`EngineError::NoSpace`], or the device's error.
    pub(crate) async fn allocate(&self, class: ExtentClass) -> Result<Placement, EngineError> {
        loop {
            let shortage = match self.extents.borrow_mut().place(class) {
                Ok(placement) => return Ok(placement),
                Err(shortage) => shortage,
            };
            let _one = self.growing.lock(&[class as u8]).await;
            for disk in shortage.disks {
                self.grow(class, disk).await?;
            }
        }
    }

    /// Makes room for `count` table extents, so that the index finds slots without waiting.
    pub(crate) async fn reserve_tables(&self, count: u32) -> Result<(), EngineError> {
        while self.extents.borrow().free_extents(ExtentClass::Table) < count {
            let _one = self.growing.lock(&[ExtentClass::Table as u8]).await;
            for disk in 0..self.disks.len() {
                let disk = DiskIndex(u8::try_from(disk).expect("a set has at most 20 disks"));
                self.grow(ExtentClass::Table, disk).await?;
            }
        }
        Ok(())
    }

    /// Bytes of a disk that growing `class` must leave available.
    fn reserve_len(&self, class: ExtentClass) -> u64 {
        let geometry = self.files.geometry();
        let tables = geometry.table_slot_len * TABLE_SLOT_RESERVE;
        let per_shard = match class {
            ExtentClass::Data => tables + geometry.log_slot_len * LOG_SLOT_RESERVE,
            // Deletes go on into the rest, and it comes back with the next checkpoint.
            ExtentClass::Log => geometry.table_slot_len * TABLE_SLOT_RESERVE_OF_LOG,
            ExtentClass::Table => 0,
        };
        per_shard * self.shard_count
    }

    /// Frees the slots of a table that no durable root and no reader needs any more.
    pub(crate) fn release_table(&self, placement: &Placement) {
        self.tables.borrow_mut().remove(&placement.id);
        self.extents.borrow_mut().release(placement);
    }

    async fn grow(&self, class: ExtentClass, disk: DiskIndex) -> Result<(), EngineError> {
        let slot_len = self.files.geometry().slot_len(class);
        let column = crate::extent::Column { disk, slot: 0 };
        let Some((file, _)) = self.files.locate(class, column) else {
            return Err(EngineError::NoSpace);
        };
        let available = self.disks[usize::from(disk.0)]
            .as_ref()
            .ok_or(EngineError::NoSpace)?
            .space()
            .map_err(|error| failed(class, disk, &error))?
            .available;
        let reserve = if self.opening.get() { 0 } else { self.reserve_len(class) };
        if available < reserve + slot_len {
            return Err(EngineError::NoSpace);
        }
        let grown = self.extents.borrow().grown(class, disk) + 1;
        let result = match file.grow(u64::from(grown) * slot_len).await {
            // A record may name the slot before anything in it was synced; the room must be there after a power cut.
            Ok(()) => self.files.sync(disk, file).await,
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => {
                self.extents.borrow_mut().set_grown(class, disk, grown);
                Ok(())
            }
            Err(error) => Err(failed(class, disk, &error)),
        }
    }
}

fn failed(class: ExtentClass, disk: DiskIndex, error: &io::Error) -> EngineError {
    if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
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
        let placement = self.extents.borrow_mut().place(ExtentClass::Table).map_err(|_| NoSpace)?;
        self.tables.borrow_mut().insert(placement.id, placement.clone());
        Ok(placement)
    }

    fn discard(&self, id: ExtentId) {
        if let Some(placement) = self.tables.borrow_mut().remove(&id) {
            self.extents.borrow_mut().release(&placement);
        }
    }
}
