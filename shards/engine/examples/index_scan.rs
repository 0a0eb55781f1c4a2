//! How fast the index of one shard is on this machine: writes, scans and lookups, on one core and one disk.
//!
//! `index_scan DIRECTORY [OBJECTS]` makes a table arena in the directory, fills an index with objects whose records have
//! 300 bytes, and prints what each kind of access costs. The directory's file system must have O_DIRECT.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use basalt_engine::extent::{
    ArenaFiles, Column, DiskFiles, DiskIndex, ExtentClass, ExtentId, Geometry, Placement,
};
use basalt_engine::index::key::{Family, VersionOrder, end_of_prefix, object, start_of_prefix};
use basalt_engine::index::{Cursor, Index, IndexConfig, NoSpace, TableAllocator};
use basalt_reactor::{Core, CoreId, Disk, ring};

const SLOT_LEN: u64 = 64 << 20;
const SLOT_COUNT: u32 = 64;
const RECORD_LEN: usize = 300;
const LOOKUP_COUNT: u64 = 100_000;

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

fn name(number: u64) -> Vec<u8> {
    // Scattered over the key space, as names are.
    let scattered = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let key = format!("photos/{:03}/image-{scattered:016x}.jpeg", scattered % 1000);
    object(1, key.as_bytes(), VersionOrder::NULL)
}

async fn open(core: &Core, directory: &Path) -> io::Result<Rc<ArenaFiles>> {
    let disk = Disk::open(core, directory)?;
    let mut files = Vec::new();
    for (file, len) in
        [("bench-log", 4096), ("bench-data", 4096), ("bench-table", SLOT_LEN * u64::from(SLOT_COUNT))]
    {
        let _ = disk.remove_file(file);
        files.push(disk.create_file(file)?);
        files.last().expect("just pushed").grow(len).await?;
    }
    let [log, data, table] = <[_; 3]>::try_from(files).map_err(|_| io::ErrorKind::Other)?;
    let geometry = Geometry {
        k: 1,
        m: 0,
        strip_len: 65_536,
        log_slot_len: 4096,
        data_slot_len: 4096,
        table_slot_len: SLOT_LEN,
    };
    Ok(ArenaFiles::new(geometry, vec![Some(DiskFiles { log, data, table })]))
}

/// A point in time, and how much of it this process has spent on a CPU: other load on the machine costs only the former.
struct Start {
    at: Instant,
    cpu_ns: u64,
}

impl Start {
    fn now() -> Start {
        Start { at: Instant::now(), cpu_ns: cpu_ns() }
    }

    fn report(&self, what: &str, count: u64) {
        let (elapsed, cpu_ns) = (self.at.elapsed(), (cpu_ns() - self.cpu_ns) as f64);
        println!(
            "{what:<24} {count:>9} in {:>7.1} ms; CPU {:>7.0} ns each, {:>6.2} million per core and second",
            elapsed.as_secs_f64() * 1e3,
            cpu_ns / count as f64,
            count as f64 / cpu_ns * 1e3
        );
    }
}

/// Nanoseconds that the main thread has run, as the scheduler counts them; 0 where it does not tell.
fn cpu_ns() -> u64 {
    let schedstat = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    schedstat.split(' ').next().and_then(|field| field.parse().ok()).unwrap_or_default()
}

async fn scan(mut cursor: Cursor) -> Result<u64, Box<dyn Error>> {
    let (mut count, mut value_len) = (0, 0);
    while let Some((_, value)) = cursor.next().await? {
        count += 1;
        value_len += value.len();
    }
    assert_eq!(value_len as u64, count * RECORD_LEN as u64);
    Ok(count)
}

async fn measure(core: Core, directory: PathBuf, object_count: u64) -> Result<(), Box<dyn Error>> {
    let files = open(&core, &directory).await?;
    let slots: Rc<Slots> = Rc::default();
    let config = IndexConfig { cache_len: 1 << 30, ..IndexConfig::default() };
    let index = Index::new(core, files, Rc::clone(&slots) as Rc<dyn TableAllocator>, config);
    let record = [7; RECORD_LEN];

    let began = Start::now();
    let mut maintenance_ns = 0;
    for number in 0..object_count {
        index.put(&name(number), &record);
        if index.is_memtable_full() {
            let began_ns = cpu_ns();
            index.rotate();
            index.flush().await?;
            while let Some(compaction) = index.choose_compaction() {
                index.compact(compaction).await?;
                index.take_obsolete().iter().for_each(|table| slots.discard(table.placement().id));
            }
            maintenance_ns += cpu_ns() - began_ns;
        }
    }
    began.report("put, flush and compact", object_count);
    println!("  of which CPU of flush and compaction {:.1} ms", maintenance_ns as f64 / 1e6);
    let stats = index.stats();
    println!(
        "  tables per level {:?}, {} MiB, {:.2} bytes of memory per entry in tables",
        stats.table_counts,
        stats.table_len >> 20,
        stats.table_memory_len as f64 / stats.entry_count as f64
    );

    let (start, end) = (start_of_prefix(Family::Object, 1, b""), end_of_prefix(Family::Object, 1, b""));
    for what in ["scan, cold", "scan, cached", "scan, cached again"] {
        let began = Start::now();
        let count = scan(index.cursor(&start, Some(&end))).await?;
        assert_eq!(count, object_count);
        began.report(what, count);
    }

    let began = Start::now();
    let mut cursor = index.cursor(&start, Some(&end));
    let mut prefix_count = 0;
    while let Some((key, _)) = cursor.next().await? {
        let past = end_of_prefix(Family::Object, 1, &key[start.len()..start.len() + "photos/000/".len()]);
        cursor.seek(&past);
        prefix_count += 1;
    }
    began.report("CommonPrefixes", prefix_count);

    let began = Start::now();
    for number in 0..LOOKUP_COUNT {
        let found = index.get(&name(number.wrapping_mul(0x9e37_79b1) % object_count)).await?;
        assert!(found.is_some());
    }
    began.report("get, cached", LOOKUP_COUNT);
    let began = Start::now();
    for number in 0..LOOKUP_COUNT {
        assert!(index.get(&name(object_count + number)).await?.is_none());
    }
    began.report("get, absent", LOOKUP_COUNT);
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(arguments.next().ok_or("usage: index_scan DIRECTORY [OBJECTS]")?);
    let object_count = arguments.next().map_or(Ok(1_000_000), |count| count.parse())?;
    let config = ring::Config { id: CoreId(0), cpu: None, arena_len: 64 << 20, entries: 256 };
    ring::run(&config, move |core| measure(core, directory, object_count))
        .map_err(|error| format!("{error:?}"))?
}
