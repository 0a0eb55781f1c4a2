//! The index as a whole, in the simulated world.

mod damage;
mod figures;
mod hedge;
mod model;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use basalt_reactor::sim::{Config, World};
use basalt_reactor::{Core, Disk};

use super::*;
use crate::extent::{Column, DiskFiles, DiskIndex, ExtentClass, Geometry};

const DISK_COUNT: u8 = 2;
const SLOT_LEN: u64 = 256 * 1024;
const SLOT_COUNT: u32 = 96;
const TABLE_FILE: &str = "table";

/// Gives out the slots of two disks, the same on both.
#[derive(Default)]
pub(super) struct Slots {
    last_id: Cell<u64>,
    used: RefCell<BTreeMap<ExtentId, u32>>,
    limit: Cell<Option<usize>>,
}

impl TableAllocator for Slots {
    fn allocate(&self) -> Result<Placement, NoSpace> {
        let mut used = self.used.borrow_mut();
        if self.limit.get().is_some_and(|limit| used.len() >= limit) {
            return Err(NoSpace);
        }
        let slot = (0..SLOT_COUNT).find(|slot| !used.values().any(|used| used == slot)).ok_or(NoSpace)?;
        self.last_id.set(self.last_id.get() + 1);
        let id = ExtentId(self.last_id.get());
        used.insert(id, slot);
        let columns = (0..DISK_COUNT).map(|disk| Column { disk: DiskIndex(disk), slot }).collect();
        Ok(Placement { id, class: ExtentClass::Table, columns })
    }

    fn discard(&self, id: ExtentId) {
        assert!(self.used.borrow_mut().remove(&id).is_some(), "{id:?} was not in use");
    }
}

pub(super) async fn make_disks(core: &Core) {
    for index in 0..DISK_COUNT {
        let disk = Disk::open(core, Path::new(&format!("disk{index}"))).expect("configured");
        for name in ["log", "data", TABLE_FILE] {
            let file = disk.create_file(name).expect("a fresh disk");
            let len = if name == TABLE_FILE { SLOT_LEN * u64::from(SLOT_COUNT) } else { 4096 };
            file.grow(len).await.expect("room");
            file.sync().await.expect("no faults");
        }
        disk.sync().await.expect("no faults");
    }
}

pub(super) fn files(core: &Core) -> Rc<ArenaFiles> {
    files_on(core, &[0, 1])
}

/// As [`files`], with the other disks absent.
pub(super) fn files_on(core: &Core, present: &[u8]) -> Rc<ArenaFiles> {
    let geometry = Geometry {
        k: 1,
        m: 1,
        strip_len: 4096,
        log_slot_len: 4096,
        data_slot_len: 4096,
        table_slot_len: SLOT_LEN,
    };
    let disks = (0..DISK_COUNT).map(|index| {
        if !present.contains(&index) {
            return None;
        }
        let disk = Disk::open(core, Path::new(&format!("disk{index}"))).expect("configured");
        let open = |name| disk.open_file(name).expect("made before");
        Some(DiskFiles {
            root: open("log"),
            log: open("log"),
            data: open("data"),
            table: open(TABLE_FILE),
            disk: disk.clone(),
        })
    });
    ArenaFiles::new(geometry, disks.collect())
}

pub(super) fn config() -> IndexConfig {
    IndexConfig {
        memtable_len_max: 64 << 10,
        block_len: 4096,
        transfer_len: 128 << 10,
        cache_len: 64 << 10,
        level_base_len: 512 << 10,
        ..IndexConfig::default()
    }
}

pub(super) fn world(seed: u64) -> (World, Core) {
    let mut world = World::new(seed, Config::with_disks(DISK_COUNT.into(), 1 << 30));
    let core = world.boot(1).remove(0);
    (world, core)
}

/// A world with an empty index in it.
pub(super) fn index_in(seed: u64, config: IndexConfig) -> (World, Rc<Index>, Rc<Slots>) {
    let (mut world, core) = world(seed);
    let slots: Rc<Slots> = Rc::default();
    let made = Rc::clone(&slots);
    let index = world.run(async move {
        make_disks(&core).await;
        Index::new(core.clone(), files(&core), made, config)
    });
    (world, Rc::new(index), slots)
}

/// Moves what is in memory to tables.
pub(super) async fn flush_all(index: &Index) {
    assert!(index.rotate());
    index.flush().await.expect("no faults");
}

pub(super) async fn compact_all(index: &Index) {
    while let Some(compaction) = index.choose_compaction() {
        index.compact(compaction).await.expect("no faults");
    }
}

pub(super) async fn read_all(mut cursor: Cursor) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut all = Vec::new();
    while let Some((key, value)) = cursor.next().await.expect("readable") {
        all.push((key.to_vec(), value.to_vec()));
    }
    all
}
