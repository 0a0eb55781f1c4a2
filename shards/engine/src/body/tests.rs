//! Bodies in the simulated world: written, read, damaged, cut off, against a plain vector of bytes.

mod damage;
mod directories;
mod hedge;
mod packed;
mod round_trip;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use basalt_reactor::sim::{Config, DiskHandle, Random, World};
use basalt_reactor::{Core, CoreId, Disk};

use super::lease::LeaseFuture;
use super::walk::ExtentDirectory;
use super::*;
use crate::extent::flushes::{CoreFlushes, Flushes};
use crate::extent::groups::Groups;
use crate::extent::reads::DiskReads;
use crate::extent::{Column, DiskFiles, DiskIndex, ExtentClass};

/// Extents that the lessor has, each with a slot on every disk.
const EXTENT_COUNT: u64 = 24;

pub(super) fn geometry(k: u8, m: u8, strip_len: u32) -> Geometry {
    Geometry { k, m, strip_len, log_slot_len: 2 << 20, data_slot_len: 1 << 20, table_slot_len: 1 << 20 }
}

pub(super) const ORIGIN: Origin = Origin { shard: 3, epoch: 5, secret: [7; 16] };

/// A body of payload for some name, begun now.
pub(super) fn writer(bodies: &Rc<Bodies>) -> Writer {
    bodies.writer(Content::Payload, bodies.owner(1, b"name"))
}

/// A set of disks with the files of one shard.
pub(super) struct Rig {
    pub(super) world: World,
    pub(super) geometry: Geometry,
    pub(super) core: Core,
    pub(super) bodies: Rc<Bodies>,
    pub(super) lessor: Rc<TestLessor>,
    pub(super) random: Random,
    pub(super) damages: Rc<RefCell<Vec<Damage>>>,
}

impl Rig {
    pub(super) fn new(seed: u64, geometry: Geometry, arena_len: usize) -> Rig {
        let disk_count = geometry.columns();
        let config = Config { arena_len, ..Config::with_disks(disk_count, 1 << 30) };
        let mut world = World::new(seed, config);
        let core = world.boot(1).remove(0);
        let format_core = core.clone();
        world.run(async move {
            for index in 0..disk_count {
                let disk = Disk::open(&format_core, &disk_path(index)).expect("opens");
                for name in ["log", "data", "table"] {
                    let file = disk.create_file(name).expect("creates");
                    file.grow(EXTENT_COUNT * (2 << 20)).await.expect("has room");
                    file.sync().await.expect("syncs");
                }
                disk.sync().await.expect("syncs");
            }
        });
        let mut random = Random::new(seed);
        let lessor = TestLessor::new(core.clone(), geometry, random.fork());
        let bodies = open(&core, geometry, &lessor, &[]);
        Rig { world, geometry, core, bodies, lessor, random, damages: Rc::default() }
    }

    /// Opens the shard's files anew, without the disks `absent`.
    pub(super) fn reopen(&mut self, absent: &[usize]) {
        self.bodies = open(&self.core, self.geometry, &self.lessor, absent);
    }

    /// Starts a new process after a crash.
    pub(super) fn reboot(&mut self) {
        self.core = self.world.boot(1).remove(0);
        self.lessor = TestLessor::new(self.core.clone(), self.geometry, self.random.fork());
        self.reopen(&[]);
    }

    pub(super) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.random.fill(&mut bytes);
        bytes
    }

    pub(super) fn write(&mut self, bytes: &[u8], expected: Option<u64>) -> Result<Written, BodyError> {
        let (bodies, bytes, random) = (Rc::clone(&self.bodies), bytes.to_vec(), self.random.fork());
        self.world.run(async move { write(&bodies, &bytes, expected, random).await })
    }

    pub(super) fn read(&mut self, body: &StripedBody, range: Range<u64>) -> Result<Vec<u8>, BodyError> {
        let (bodies, body) = (Rc::clone(&self.bodies), Rc::new(body.clone()));
        let (places, on_damage) = (self.lessor.places(), self.on_damage());
        self.world.run(async move { read(&bodies, body, range, places, on_damage).await })
    }

    pub(super) fn walk(&mut self, extent: ExtentId) -> ExtentDirectory {
        let (bodies, placement) = (Rc::clone(&self.bodies), self.lessor.placement(extent));
        self.world.run(async move { bodies.walk(&placement).await })
    }

    pub(super) fn on_damage(&self) -> OnDamage {
        let damages = Rc::clone(&self.damages);
        Rc::new(move |damage, _| damages.borrow_mut().push(damage))
    }

    pub(super) fn disk(&self, disk: DiskIndex) -> DiskHandle {
        self.world.disk(&format!("disk{}", disk.0))
    }

    /// Where byte `offset` of a column lies in its disk's data file.
    pub(super) fn place(&self, column: Column, offset: u64) -> u64 {
        u64::from(column.slot) * self.geometry.data_slot_len + offset
    }
}

fn disk_path(index: usize) -> std::path::PathBuf {
    Path::new(&format!("disk{index}")).to_path_buf()
}

fn open(core: &Core, geometry: Geometry, lessor: &Rc<TestLessor>, absent: &[usize]) -> Rc<Bodies> {
    let flushes = Flushes::new(geometry.columns(), 1);
    open_sharing(core, geometry, lessor, absent, CoreFlushes::new(flushes, CoreId(0)))
}

/// The files as one of several cores sees them.
pub(super) fn open_sharing(
    core: &Core,
    geometry: Geometry,
    lessor: &Rc<TestLessor>,
    absent: &[usize],
    flushes: Rc<CoreFlushes>,
) -> Rc<Bodies> {
    let disks = (0..geometry.columns())
        .map(|index| {
            let disk = Disk::open(core, &disk_path(index)).expect("opens");
            let file = |name| disk.open_file(name).expect("opens");
            let files = DiskFiles {
                root: file("log"),
                log: file("log"),
                data: file("data"),
                table: file("table"),
                disk: disk.clone(),
            };
            (!absent.contains(&index)).then_some(files)
        })
        .collect();
    let reads = DiskReads::new(&geometry, Rc::new(Groups::one(geometry.m, geometry.columns())));
    let files = ArenaFiles::sharing(geometry, disks, flushes, reads);
    let lessor: Rc<dyn Lessor> = Rc::clone(lessor) as Rc<dyn Lessor>;
    Bodies::new(BodyCore::new(core.clone(), &geometry), files, lessor, ORIGIN)
}

pub(super) async fn write(
    bodies: &Rc<Bodies>,
    bytes: &[u8],
    expected: Option<u64>,
    mut random: Random,
) -> Result<Written, BodyError> {
    let mut writer = writer(bodies);
    if let Some(len) = expected {
        writer.expect(len);
    }
    let mut rest = bytes;
    while !rest.is_empty() {
        let len = (1 + random.below(300_000) as usize).min(rest.len());
        writer.write(&rest[..len]).await?;
        rest = &rest[len..];
    }
    writer.finish().await
}

pub(super) async fn read(
    bodies: &Rc<Bodies>,
    body: Rc<StripedBody>,
    range: Range<u64>,
    places: Places,
    on_damage: OnDamage,
) -> Result<Vec<u8>, BodyError> {
    let mut reader = bodies.reader(body, range, places, on_damage, None)?;
    let mut bytes = Vec::new();
    while let Some(slice) = reader.next().await {
        bytes.extend_from_slice(&slice?);
    }
    assert!(reader.next().await.is_none(), "the end is the end");
    Ok(bytes)
}

/// Lends the extents one after the other, in pieces of random length, after a while.
pub(super) struct TestLessor {
    core: Core,
    geometry: Geometry,
    random: RefCell<Random>,
    placements: Vec<Rc<Placement>>,
    /// Next extent, next block in it.
    next: Cell<(usize, u32)>,
    ids: Cell<u64>,
    /// Lend as much as is asked for.
    pub(super) generous: Cell<bool>,
    /// Leases that were neither released nor kept.
    pub(super) held: RefCell<BTreeSet<u64>>,
}

impl TestLessor {
    fn new(core: Core, geometry: Geometry, random: Random) -> Rc<TestLessor> {
        let columns = geometry.columns();
        let placements = (0..EXTENT_COUNT)
            .map(|index| {
                // Every extent starts on another disk, and slots differ from disk to disk.
                let column = |turn: usize| {
                    let disk = (turn + index as usize) % columns;
                    let slot = (index + disk as u64 * 5) % EXTENT_COUNT;
                    Column { disk: DiskIndex(disk as u8), slot: slot as u32 }
                };
                Rc::new(Placement {
                    id: ExtentId(100 + index),
                    class: ExtentClass::Data,
                    columns: (0..columns).map(column).collect(),
                })
            })
            .collect();
        Rc::new(TestLessor {
            core,
            geometry,
            random: RefCell::new(random),
            placements,
            next: Cell::default(),
            ids: Cell::new(1),
            generous: Cell::new(false),
            held: RefCell::default(),
        })
    }

    pub(super) fn places(self: &Rc<TestLessor>) -> Places {
        let lessor = Rc::clone(self);
        Rc::new(move |id| Some(Rc::clone(lessor.placements.get(id.0.checked_sub(100)? as usize)?)))
    }

    pub(super) fn placement(&self, id: ExtentId) -> Rc<Placement> {
        Rc::clone(&self.placements[id.0 as usize - 100])
    }

    fn allot(&self, blocks_min: u32, blocks_max: u32) -> Result<Lease, BodyError> {
        assert!(blocks_min > 0 && blocks_min <= blocks_max);
        let capacity = (self.geometry.data_slot_len / 4096) as u32;
        let (mut extent, mut block) = self.next.get();
        if capacity - block < blocks_min {
            (extent, block) = (extent + 1, 0);
        }
        let placement = self.placements.get(extent).ok_or(BodyError::NoSpace)?;
        let most = blocks_max.min(capacity - block);
        let mut random = self.random.borrow_mut();
        let blocks = match random.below(3) {
            _ if self.generous.get() => most,
            0 => blocks_min,
            1 => most,
            _ => blocks_min + random.below(u64::from(most - blocks_min + 1)) as u32,
        };
        self.next.set((extent, block + blocks));
        let id = self.ids.replace(self.ids.get() + 1);
        self.held.borrow_mut().insert(id);
        Ok(Lease { id, placement: Rc::clone(placement), block, blocks })
    }
}

impl Lessor for TestLessor {
    fn lease(&self, blocks_min: u32, blocks_max: u32) -> LeaseFuture {
        let lease = self.allot(blocks_min, blocks_max);
        let (core, delay) = (self.core.clone(), self.random.borrow_mut().below(300));
        Box::pin(async move {
            core.sleep(Duration::from_micros(delay)).await;
            lease
        })
    }

    fn release(&self, lease: u64) {
        assert!(self.held.borrow_mut().remove(&lease), "lease {lease} released twice");
    }
}
