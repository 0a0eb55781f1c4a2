//! Rotten, unreadable and absent replicas: another one answers, or nobody does, but never with a wrong byte.

use basalt_reactor::disk::BLOCK_LEN;
use basalt_reactor::sim::{DiskHandle, Random};

use super::*;

const KEY_COUNT: u32 = 600;

fn value_of(number: u32) -> Vec<u8> {
    format!("value {number} ").repeat(20).into_bytes()
}

struct Fixture {
    world: World,
    core: Core,
    slots: Rc<Slots>,
    manifest: IndexManifest,
    reports: Rc<RefCell<Vec<Damage>>>,
    /// Disks that are there when the table is read.
    present: Vec<u8>,
}

/// One table on two disks.
fn fixture(seed: u64) -> Fixture {
    let (mut world, index, slots) = index_in(seed, config());
    let core = index.store.core.clone();
    let manifest = world.run(async move {
        (0..KEY_COUNT).for_each(|number| index.put(&number.to_be_bytes(), &value_of(number)));
        flush_all(&index).await;
        index.manifest()
    });
    Fixture { world, core, slots, manifest, reports: Rc::default(), present: vec![0, 1] }
}

impl Fixture {
    fn table(&self) -> &TableDescriptor {
        assert_eq!(self.manifest.levels[0].len(), 1);
        &self.manifest.levels[0][0]
    }

    fn disk(&self, index: u8) -> DiskHandle {
        self.world.disk(&format!("disk{index}"))
    }

    /// Offset in the disk's file of an offset in the table.
    fn offset(&self, offset: u64) -> u64 {
        u64::from(self.table().placement.columns[0].slot) * SLOT_LEN + offset
    }

    /// Opens the table, reads all of it by scan and by key, and says what came of it.
    fn read(&mut self) -> Result<u32, IndexError> {
        let reports = Rc::clone(&self.reports);
        let report = Rc::new(move |damage| reports.borrow_mut().push(damage));
        // Nothing is cached, so that each read meets the disk.
        let config = IndexConfig { report, cache_len: 0, ..config() };
        let (core, slots, manifest) = (self.core.clone(), Rc::clone(&self.slots), self.manifest.clone());
        let present = self.present.clone();
        self.world.run(async move {
            let index =
                Index::open(core.clone(), files_on(&core, &present), slots, config, &manifest).await?;
            let mut cursor = index.cursor(&[], None);
            let mut count = 0_u32;
            while let Some((key, value)) = cursor.next().await? {
                assert_eq!((key, value), (count.to_be_bytes().as_slice(), value_of(count).as_slice()));
                count += 1;
            }
            for number in (0..KEY_COUNT).step_by(7) {
                assert_eq!(
                    index.get(&number.to_be_bytes()).await?.as_deref(),
                    Some(value_of(number).as_slice())
                );
            }
            Ok(count)
        })
    }
}

#[test]
fn one_good_replica_of_each_block_is_enough() {
    let mut fixture = fixture(1);
    let mut random = Random::new(5);
    let blocks = fixture.table().len / BLOCK_LEN as u64;
    // Each block is bad on one disk.
    for block in 0..blocks {
        let disk = fixture.disk((block % 2) as u8);
        let offset = fixture.offset(block * BLOCK_LEN as u64);
        let byte = offset + random.below(100);
        if random.coin() {
            disk.corrupt(TABLE_FILE, byte, 1)
        } else {
            disk.make_unreadable(TABLE_FILE, byte, 1)
        }
    }
    assert_eq!(fixture.read().expect("one replica of each is good"), KEY_COUNT);
    let reports = fixture.reports.borrow();
    assert!(reports.iter().any(|damage| matches!(damage.cause, DamageCause::Fault(Fault::Checksum { .. }))));
    assert!(reports.iter().any(|damage| matches!(damage.cause, DamageCause::Io(_))));
    for damage in reports.iter().filter(|damage| damage.len == BLOCK_LEN as u64) {
        assert_eq!(damage.extent, fixture.table().placement.id);
        assert_eq!(u64::from(damage.column.disk.0), damage.offset / BLOCK_LEN as u64 % 2, "{damage:?}");
    }
}

#[test]
fn no_good_replica_is_an_error_and_never_wrong_data() {
    let blocks = fixture(2).table().len / BLOCK_LEN as u64;
    for block in 0..blocks {
        let mut fixture = fixture(2);
        for disk in 0..DISK_COUNT {
            fixture.disk(disk).corrupt(TABLE_FILE, fixture.offset(block * BLOCK_LEN as u64 + 33), 0x40);
        }
        match fixture.read() {
            Err(IndexError::Corrupt { extent, offset, .. }) => {
                assert_eq!((extent, offset), (fixture.table().placement.id, block * BLOCK_LEN as u64));
            }
            // The padding of the header's second block.
            Ok(count) => assert_eq!((count, block), (KEY_COUNT, 1)),
            Err(error) => panic!("block {block}: {error}"),
        }
    }
}

/// Whatever a table's bytes are, they are read right or refused.
#[test]
fn hostile_bytes_never_panic() {
    let mut fixture = fixture(3);
    let mut random = Random::new(8);
    let len = fixture.table().len as usize;
    let good = fixture.disk(0).read(TABLE_FILE, fixture.offset(0), len);
    for _ in 0..120 {
        let mut hostile = good.clone();
        for _ in 0..1 + random.below(6) {
            let at = random.below(len as u64) as usize;
            match random.below(3) {
                0 => hostile[at] ^= 1 << random.below(8),
                1 => hostile[at..len.min(at + 5_000)].fill(0xff),
                _ => {
                    // Blocks in each other's places.
                    let (from, to) = (random.below(len as u64 / 4096), random.below(len as u64 / 4096));
                    hostile
                        .copy_within(from as usize * 4096..from as usize * 4096 + 4096, to as usize * 4096);
                }
            }
        }
        for disk in 0..DISK_COUNT {
            fixture.disk(disk).overwrite(TABLE_FILE, fixture.offset(0), &hostile);
        }
        match fixture.read() {
            Ok(count) => assert_eq!(count, KEY_COUNT),
            Err(IndexError::Corrupt { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn an_absent_disk_is_no_damage_but_its_replica_is_missing() {
    let mut fixture = fixture(4);
    fixture.present = vec![1];
    assert_eq!(fixture.read().expect("the other disk"), KEY_COUNT);
    assert!(fixture.reports.borrow().is_empty());
    fixture.present = Vec::new();
    let extent = fixture.table().placement.id;
    assert!(matches!(fixture.read(), Err(IndexError::Absent { extent: absent, .. }) if absent == extent));
}

#[test]
fn a_failing_disk_leaves_the_other() {
    let mut fixture = fixture(4);
    fixture.disk(0).set_failing(basalt_reactor::sim::Access::Read, true);
    assert_eq!(fixture.read().expect("the other disk"), KEY_COUNT);
    assert!(!fixture.reports.borrow().is_empty());
    fixture.disk(1).set_failing(basalt_reactor::sim::Access::Read, true);
    assert!(matches!(fixture.read(), Err(IndexError::Read { .. })));
}

#[test]
fn a_failed_write_installs_nothing_and_can_be_repeated() {
    use basalt_reactor::sim::Access;
    for access in [Access::Write, Access::Sync] {
        let (mut world, index, slots) = index_in(6, config());
        let disk = world.disk("disk1");
        world.run(async move {
            index.put(b"key", b"value");
            assert!(index.rotate());
            disk.set_failing(access, true);
            let failed = index.flush().await;
            assert!(matches!(failed, Err(IndexError::Write { disk: DiskIndex(1), .. })));
            assert!(slots.used.borrow().is_empty());
            assert_eq!(index.get(b"key").await.expect("in memory").as_deref(), Some(b"value".as_slice()));
            disk.set_failing(access, false);
            index.flush().await.expect("repaired");
            assert_eq!(index.stats().frozen_count, 0);
        });
    }
}

/// What a flush has finished survives the power cut that follows at once.
#[test]
fn a_flushed_table_is_durable() {
    use basalt_reactor::sim::Crash;
    for seed in 0..8 {
        let mut fixture = fixture(seed);
        fixture.world.crash(Crash::PowerCut);
        fixture.core = fixture.world.boot(1).remove(0);
        assert_eq!(fixture.read().expect("durable"), KEY_COUNT);
        assert!(fixture.reports.borrow().is_empty());
    }
}
