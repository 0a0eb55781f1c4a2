//! The index of one shard: inserts, lookups and scans, in keys per second of one core.
//!
//! A million objects with records of 300 bytes lie in tables on a disk, their blocks in the cache: what is measured is the
//! CPU, and the disk only where blocks are written. LIST rests on `scan`.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use basalt_engine::extent::{
    ArenaFiles, Column, DiskFiles, DiskIndex, ExtentClass, ExtentId, Geometry, Placement,
};
use basalt_engine::index::key::{Family, VersionOrder, end_of_prefix, object, start_of_prefix};
use basalt_engine::index::{Index, IndexConfig, NoSpace, TableAllocator};
use basalt_reactor::{Core, Disk};
use criterion::{Criterion, SamplingMode, Throughput};

use crate::ring_thread::RingThread;
use crate::stopwatch::Clock;
use crate::workspace::Workspace;
use crate::{scaled, scatter};

const SLOT_LEN: u64 = 64 << 20;
const SLOT_COUNT: u32 = 32;
const RECORD: [u8; 300] = [7; 300];
const PAGE_LEN: u64 = 1000;
/// Keys drawn at a time, while the clock stands.
const DRAWN_MAX: usize = 1024;

/// Table extents of one file.
#[derive(Default)]
struct Slots {
    last_id: Cell<u64>,
    used: RefCell<BTreeSet<(u32, ExtentId)>>,
}

impl TableAllocator for Slots {
    fn allocate(&self) -> Result<Placement, NoSpace> {
        let mut used = self.used.borrow_mut();
        let slot = (0..SLOT_COUNT).find(|slot| !used.iter().any(|(used, _)| used == slot)).ok_or(NoSpace)?;
        self.last_id.set(self.last_id.get() + 1);
        let id = ExtentId(self.last_id.get());
        used.insert((slot, id));
        Ok(Placement { id, class: ExtentClass::Table, columns: vec![Column { disk: DiskIndex(0), slot }] })
    }

    fn discard(&self, id: ExtentId) {
        self.used.borrow_mut().retain(|(_, used)| *used != id);
    }
}

/// An index on a file of its own.
struct Shelf {
    index: Index,
    slots: Rc<Slots>,
}

impl Shelf {
    async fn new(core: &Core, disk: &Disk, name: &str) -> Shelf {
        let mut files = Vec::new();
        let table_len = SLOT_LEN * u64::from(SLOT_COUNT);
        for (kind, len) in [("log", 4096), ("data", 4096), ("table", table_len)] {
            let name = format!("{name}-{kind}");
            let _ = disk.remove_file(&name);
            let file = disk.create_file(&name).expect("a new file");
            file.grow(len).await.expect("the disk has room");
            files.push(file);
        }
        let [log, data, table] = <[_; 3]>::try_from(files).ok().expect("three were made");
        let geometry = Geometry {
            k: 1,
            m: 0,
            strip_len: 65_536,
            log_slot_len: 4096,
            data_slot_len: 4096,
            table_slot_len: SLOT_LEN,
        };
        let files = DiskFiles { root: log.clone(), log, data, table, disk: disk.clone() };
        let files = ArenaFiles::new(geometry, vec![Some(files)]);
        let slots: Rc<Slots> = Rc::default();
        let config = IndexConfig { cache_len: 1 << 30, ..IndexConfig::default() };
        let allocator = Rc::clone(&slots) as Rc<dyn TableAllocator>;
        Shelf { index: Index::new(core.clone(), files, allocator, config), slots }
    }

    async fn insert_all(&self, keys: &[Vec<u8>]) {
        for key in keys {
            self.index.put(key, &RECORD);
            if self.index.is_memtable_full() {
                self.settle().await;
            }
        }
        self.settle().await;
    }

    /// Writes the memtable out and compacts until nothing is due.
    async fn settle(&self) {
        self.index.rotate();
        self.index.flush().await.expect("the disk takes tables");
        while let Some(compaction) = self.index.choose_compaction() {
            self.index.compact(compaction).await.expect("the disk takes tables");
            self.index.take_obsolete().iter().for_each(|table| self.slots.discard(table.placement().id));
        }
    }
}

/// A filled index, and the keys in it in no order.
struct Filled {
    core: Core,
    disk: Disk,
    shelf: Shelf,
    keys: Vec<Vec<u8>>,
    absent: Vec<Vec<u8>>,
    /// Drawn on from measurement to measurement, so that none sees the keys of the one before.
    drawn: Cell<u64>,
    _workspace: Workspace,
}

impl Filled {
    async fn new(core: Core) -> Filled {
        let workspace = Workspace::new("index");
        let disk = Disk::open(&core, workspace.path()).expect("the directory takes O_DIRECT");
        let object_count = scaled(1_000_000, 2000);
        let keys: Vec<Vec<u8>> = (0..object_count).map(key).collect();
        let absent = (object_count..object_count + object_count / 10).map(key).collect();
        let shelf = Shelf::new(&core, &disk, "filled").await;
        shelf.insert_all(&keys).await;
        let filled = Filled { core, disk, shelf, keys, absent, drawn: Cell::new(0), _workspace: workspace };
        assert_eq!(filled.scan_all().await, object_count, "every key is found once");
        filled
    }

    /// Keys by chance, copied so that they lie in the CPU's cache as the key of a request does.
    fn draw(&self, keys: &[Vec<u8>], count: u64) -> Vec<Vec<u8>> {
        let first = self.drawn.replace(self.drawn.get() + count);
        let index = |draw| (scatter(draw) % keys.len() as u64) as usize;
        (first..first + count).map(|draw| keys[index(draw)].clone()).collect()
    }

    /// Walks at most `limit` entries from `start` on, and gives their number.
    async fn scan(&self, start: &[u8], limit: u64) -> u64 {
        let mut cursor = self.shelf.index.cursor(start, Some(&end_of_prefix(Family::Object, 1, b"")));
        let (mut count, mut value_len) = (0, 0);
        while count < limit {
            let Some((_, value)) = cursor.next().await.expect("tables are whole") else { break };
            count += 1;
            value_len += value.len();
        }
        assert_eq!(value_len as u64, count * RECORD.len() as u64);
        count
    }

    async fn scan_all(&self) -> u64 {
        self.scan(&start_of_prefix(Family::Object, 1, b""), u64::MAX).await
    }
}

fn key(number: u64) -> Vec<u8> {
    let name = format!("photos/{:03}/image-{:016x}.jpeg", scatter(number) % 1000, scatter(number));
    object(1, name.as_bytes(), VersionOrder::NULL)
}

async fn look_up(filled: Rc<Filled>, count: u64, present: bool) -> Duration {
    let keys = if present { &filled.keys } else { &filled.absent };
    let mut time = Duration::ZERO;
    for done in (0..count).step_by(DRAWN_MAX) {
        let drawn = filled.draw(keys, (count - done).min(DRAWN_MAX as u64));
        let watch = Clock::Cpu.start();
        for key in &drawn {
            let found = filled.shelf.index.get(key).await.expect("tables are whole");
            assert_eq!(found.is_some(), present);
        }
        time += watch.elapsed();
    }
    time
}

/// Pages of a listing, each from a place of its own; the time of as many entries as `count` full pages have.
async fn scan_pages(filled: Rc<Filled>, count: u64) -> Duration {
    let watch = Clock::Cpu.start();
    let mut entries = 0;
    while entries < count * PAGE_LEN {
        for start in filled.draw(&filled.keys, 1) {
            entries += filled.scan(&start, PAGE_LEN).await;
        }
    }
    watch.elapsed()
}

async fn scan_all(filled: Rc<Filled>, count: u64) -> Duration {
    let watch = Clock::Cpu.start();
    for _ in 0..count {
        assert_eq!(filled.scan_all().await, filled.keys.len() as u64);
    }
    watch.elapsed()
}

/// Into memory alone; a full memtable is replaced while the clock stands.
async fn insert(filled: Rc<Filled>, count: u64) -> Duration {
    let mut shelf = Shelf::new(&filled.core, &filled.disk, "scratch").await;
    let mut time = Duration::ZERO;
    for done in (0..count).step_by(DRAWN_MAX) {
        let drawn = filled.draw(&filled.keys, (count - done).min(DRAWN_MAX as u64));
        let watch = Clock::Cpu.start();
        drawn.iter().for_each(|key| shelf.index.put(key, &RECORD));
        time += watch.elapsed();
        if shelf.index.is_memtable_full() {
            shelf = Shelf::new(&filled.core, &filled.disk, "scratch").await;
        }
    }
    time
}

/// With the share of flush and compaction that many inserts cause.
async fn insert_and_settle(filled: Rc<Filled>, key_count: u64, count: u64) -> Duration {
    let mut time = Duration::ZERO;
    for _ in 0..count {
        let shelf = Shelf::new(&filled.core, &filled.disk, "scratch").await;
        let watch = Clock::Cpu.start();
        shelf.insert_all(&filled.keys[..key_count as usize]).await;
        time += watch.elapsed();
    }
    time
}

pub(crate) fn run(criterion: &mut Criterion) {
    let filled = RingThread::start(Filled::new);
    let object_count = scaled(1_000_000, 2000);
    let mut group = criterion.benchmark_group("index");
    for (what, present) in [("get", true), ("get, absent", false)] {
        group.throughput(Throughput::Elements(1));
        group.bench_function(what, |bencher| {
            bencher.iter_custom(|count| filled.measure(move |filled| look_up(filled, count, present)));
        });
    }
    group.throughput(Throughput::Elements(1));
    group.bench_function("insert", |bencher| {
        bencher.iter_custom(|count| filled.measure(move |filled| insert(filled, count)));
    });
    group.throughput(Throughput::Elements(PAGE_LEN));
    group.bench_function("scan, page of 1000", |bencher| {
        bencher.iter_custom(|count| filled.measure(move |filled| scan_pages(filled, count)));
    });
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    group.throughput(Throughput::Elements(object_count));
    group.bench_function("scan, all", |bencher| {
        bencher.iter_custom(|count| filled.measure(move |filled| scan_all(filled, count)));
    });
    let key_count = object_count / 2;
    group.throughput(Throughput::Elements(key_count));
    group.bench_function("insert, flush and compact", |bencher| {
        bencher
            .iter_custom(|count| filled.measure(move |filled| insert_and_settle(filled, key_count, count)));
    });
    group.finish();
}
