//! Damage at rest in every kind of structure: met before a wrong byte is served, repaired in place, and nothing else changes.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use basalt_engine::format::superblock::{SUPERBLOCK_COPY_LEN, State, Superblock};
use basalt_engine::{Engine, ObjectDraft, ShardStats};
use basalt_reactor::sim::{Crash, DiskHandle, Random, World};

use crate::client::{Outcome, Shared, bucket_id};
use crate::cluster::{Cluster, Layout};
use crate::model::Content;
use crate::survey::{self, Snapshot, Structure};

const CAPACITY: u64 = 96 << 20;

/// Within which everything is to be verified.
const DEADLINE: Duration = Duration::from_secs(2);

/// Objects that nobody overwrites: all that is written of them is live.
#[derive(Clone, Default)]
struct Fixture {
    bucket: u64,
    objects: Vec<(String, Content)>,
}

impl Fixture {
    async fn fill(engine: &Engine, shared: &Shared, random: &mut Random, lens: &[u64]) -> Fixture {
        let bucket = bucket_id(engine, shared).await.expect("no device fails");
        let mut objects = Vec::new();
        for (index, &len) in lens.iter().enumerate() {
            let content = Content { len: 1 + random.below(len) as usize, tag: random.next_u64() };
            let key = format!("object-{index}");
            let mut writer = engine.write(bucket, key.as_bytes(), None);
            writer.write(&content.bytes(0..content.len)).await.expect("there is room");
            let body = writer.finish().await.expect("no device fails");
            let draft = ObjectDraft { etag: content.etag(), ..ObjectDraft::default() };
            engine.put(bucket, key.as_bytes(), draft, body, None).await.expect("no device fails");
            objects.push((key, content));
        }
        Fixture { bucket, objects }
    }

    /// Reads every object whole; every byte is right. Says how many could not be read to their ends.
    async fn read(&self, cluster: &Cluster, random: &mut Random, shared: &Shared) -> usize {
        let mut lost = 0;
        for (key, content) in &self.objects {
            let engine = cluster.any(random);
            match self.read_one(&engine, key, *content).await {
                Ok(()) => shared.outcome.borrow_mut().verified += 1,
                Err(reason) => {
                    assert!(shared.faulty.get(), "{key}: {reason}");
                    lost += 1;
                }
            }
        }
        lost
    }

    async fn read_one(&self, engine: &Engine, key: &str, content: Content) -> Result<(), String> {
        let reader = engine.open(self.bucket, key.as_bytes()).await.map_err(|error| error.to_string())?;
        let reader = reader.expect("nobody deletes");
        let mut body = reader.read(0..content.len as u64).await.map_err(|error| error.to_string())?;
        let mut at = 0;
        while let Some(bytes) = body.next().await {
            let bytes = bytes.map_err(|error| error.to_string())?;
            assert!(*bytes == *content.bytes(at..at + bytes.len()), "{key}: wrong bytes at {at}");
            at += bytes.len();
        }
        assert_eq!(at, content.len, "{key}");
        Ok(())
    }
}

/// Damages the copies `chosen` of a structure.
fn harm(disks: &[DiskHandle], structure: &Structure, chosen: &[usize], random: &mut Random) {
    for &copy in chosen {
        let (disk, offset) = structure.places[copy];
        if random.below(5) == 0 {
            disks[disk].make_unreadable(&structure.file, offset, structure.len.min(512));
        } else {
            // Different bytes, or two flips could undo each other.
            let first = random.below(structure.len);
            for byte in BTreeSet::from([first, random.below(structure.len), random.below(structure.len)]) {
                disks[disk].corrupt(&structure.file, offset + byte, 1 << random.below(8));
            }
        }
    }
}

/// Some of the copies.
fn choose(structure: &Structure, count: usize, random: &mut Random) -> Vec<usize> {
    let mut copies: Vec<usize> = (0..structure.places.len()).collect();
    while copies.len() > count {
        copies.swap_remove(random.below(copies.len() as u64) as usize);
    }
    copies
}

fn assert_repaired(disks: &[DiskHandle], before: &Snapshot, structure: &Structure) {
    for &(disk, offset) in &structure.places {
        let now = disks[disk].read(&structure.file, offset, structure.len as usize);
        let was = &before.file(disk, &structure.file)[offset as usize..][..now.len()];
        assert!(now == was, "disk {disk}: a {} of {} at {offset} differs", structure.kind, structure.file);
    }
}

fn stats(cluster: &Cluster) -> Vec<ShardStats> {
    cluster.engines.iter().flat_map(Engine::stats).map(|(_, stats)| stats).collect()
}

fn repaired(cluster: &Cluster) -> u64 {
    stats(cluster).iter().map(|stats| stats.repair.repaired).sum()
}

fn unrepairable(cluster: &Cluster) -> u64 {
    stats(cluster).iter().map(|stats| stats.repair.unrepairable).sum()
}

/// Lets every shard scrub all it has once.
async fn scrub_round(cluster: &Cluster) {
    cluster.engines.iter().for_each(|engine| engine.start_scrub(DEADLINE));
    scrub_on(cluster).await;
}

/// Waits for the end of a round of each shard.
async fn scrub_on(cluster: &Cluster) {
    let core = cluster.engines[0].core().clone();
    let limit = core.now() + 3 * DEADLINE;
    while stats(cluster).iter().any(|stats| stats.scrub.rounds == 0) {
        assert!(core.now() < limit, "a round takes too long: {:?}", stats(cluster));
        core.sleep(DEADLINE / 10).await;
    }
}

struct Rig {
    layout: Layout,
    world: World,
    disks: Vec<DiskHandle>,
    shared: Rc<Shared>,
    random: Random,
}

impl Rig {
    fn new(seed: u64, salt: u64) -> Rig {
        Rig::of(seed, salt, &[(1, 1), (2, 1), (2, 2)])
    }

    fn of(seed: u64, salt: u64, shapes: &[(u8, u8)]) -> Rig {
        let mut random = Random::new(seed ^ salt);
        let (k, m) = shapes[random.below(shapes.len() as u64) as usize];
        let layout = Layout::of(k, m, &mut random);
        let world = layout.world(seed, CAPACITY);
        let disks = layout.disk_names().iter().map(|name| world.disk(name)).collect();
        Rig { layout, world, disks, shared: Shared::new(), random }
    }

    fn outcome(&self) -> Outcome {
        let mut outcome = self.shared.outcome.borrow().clone();
        outcome.trace = self.world.trace_hash();
        outcome
    }

    /// Runs `act` on a deployment that is opened for it.
    fn run<T: 'static>(
        &mut self,
        act: impl AsyncFnOnce(&Cluster, &[DiskHandle], &Shared, &mut Random) -> T + 'static,
    ) -> T {
        self.run_events(u64::MAX, act).expect("it has all the time it takes")
    }

    /// As [`Rig::run`], for as many events at most; `None` when they did not suffice.
    fn run_events<T: 'static>(
        &mut self,
        events: u64,
        act: impl AsyncFnOnce(&Cluster, &[DiskHandle], &Shared, &mut Random) -> T + 'static,
    ) -> Option<T> {
        let cores = self.world.boot(1 + self.random.below(2) as u16);
        let (layout, disks, shared) = (self.layout, self.disks.clone(), Rc::clone(&self.shared));
        let mut random = self.random.fork();
        let work = async move {
            let cluster = Cluster::start(cores, layout).await;
            act(&cluster, &disks, &shared, &mut random).await
        };
        if events == u64::MAX { Some(self.world.run(work)) } else { self.world.run_events(events, work) }
    }
}

const LENS: [u64; 9] = [300 << 10, 3000, 200 << 10, 50_000, 120 << 10, 4096, 400 << 10, 20_000, 90 << 10];

/// Readers meet damaged blocks; those, and the others beside them in their rows, are repaired meanwhile.
pub(crate) fn found_by_readers(seed: u64) -> Outcome {
    let mut rig = Rig::new(seed, 0x5c_2b);
    let layout = rig.layout;
    rig.run(async move |cluster, disks, shared, random| {
        let fixture = Fixture::fill(&cluster.any(random), shared, random, &LENS).await;
        let before = Snapshot::take(disks);
        let secret = cluster.engines[0].deployment().superblock.hash_seed;
        let mut rows = survey::data(layout, &before, secret);
        rows.retain(|structure| structure.kind == "row");
        let count = rows.len().min(4);
        for _ in 0..count {
            let row = rows.swap_remove(random.below(rows.len() as u64) as usize);
            let mut chosen = choose(&row, random.below(u64::from(layout.m)) as usize, random);
            chosen.retain(|&column| column != 0);
            // The first column of every row holds bytes of the body; of others a reader need not hear.
            chosen.push(0);
            harm(disks, &row, &chosen, random);
        }
        fixture.read(cluster, random, shared).await;
        cluster.engines[0].core().sleep(Duration::from_secs(1)).await;
        before.assert_same(disks, ".data");
        assert_eq!(unrepairable(cluster), 0);
        assert!(repaired(cluster) >= count as u64, "readers met damage");
        shared.outcome.borrow_mut().repaired += repaired(cluster);
        cluster.engines.iter().for_each(|engine| drop(engine.take_damage()));
        fixture.read(cluster, random, shared).await;
        for engine in &cluster.engines {
            assert_eq!(engine.take_damage(), [], "it was repaired");
        }
    });
    rig.outcome()
}

/// Everything on the disks that matters.
fn structures(cluster: &Cluster, layout: Layout, snapshot: &Snapshot) -> Vec<Structure> {
    let secret = cluster.engines[0].deployment().superblock.hash_seed;
    let mut all = survey::data(layout, snapshot, secret);
    all.extend(survey::index(layout, snapshot));
    all.extend(survey::log(layout, snapshot));
    all
}

/// Those that still are where they were: a manifest is written anew elsewhere, and so may tables be.
fn remaining(layout: Layout, disks: &[DiskHandle], harmed: Vec<Structure>) -> Vec<Structure> {
    let now = Snapshot::take(disks);
    let tables: BTreeSet<u64> = (0..layout.shards)
        .flat_map(|shard| survey::root_of(layout, &now, shard).2)
        .map(|table| table.placement.id.0)
        .collect();
    let stays = |structure: &Structure| {
        !["manifest", "root"].contains(&structure.kind)
            && structure.table.is_none_or(|table| tables.contains(&table))
    };
    harmed.into_iter().filter(stays).collect()
}

/// Both copies of every superblock are whole, and of the disk they lie on.
fn assert_superblocks_whole(cluster: &Cluster, disks: &[DiskHandle]) {
    let members = &cluster.engines[0].deployment().superblock.members;
    for (disk, member) in disks.iter().zip(members) {
        let mut sequences = Vec::new();
        for copy in 0..2 {
            let bytes = disk.read("superblock", copy * SUPERBLOCK_COPY_LEN as u64, SUPERBLOCK_COPY_LEN);
            let superblock = Superblock::decode(&bytes).expect("it was mended");
            assert!(superblock.disk == member.disk && superblock.state == State::Ready);
            sequences.push(superblock.sequence);
        }
        assert_eq!(sequences[0].abs_diff(sequences[1]), 1);
    }
}

/// Every copy of roots and manifests is what it should be.
fn assert_roots_whole(layout: Layout, disks: &[DiskHandle]) {
    let now = Snapshot::take(disks);
    for structure in survey::index(layout, &now) {
        let copy = |&(disk, offset): &(usize, u64)| {
            now.file(disk, &structure.file)[offset as usize..][..structure.len as usize].to_vec()
        };
        let copies: Vec<Vec<u8>> = structure.places.iter().map(copy).collect();
        assert!(copies.windows(2).all(|pair| pair[0] == pair[1]), "copies of a {} differ", structure.kind);
    }
}

/// Bits flip in every kind of structure, on one disk or on up to m of each; one round of scrub mends all of it.
pub(crate) fn found_by_scrub(seed: u64) -> Outcome {
    let mut rig = Rig::new(seed, 0x5c_2c);
    let layout = rig.layout;
    let fixture = rig.run(async move |cluster, disks, shared, random| {
        let fixture = Fixture::fill(&cluster.any(random), shared, random, &LENS).await;
        cluster.any(random).checkpoint().await.expect("no device fails");
        let before = Snapshot::take(disks);
        let all = structures(cluster, layout, &before);
        let mut harmed = Vec::new();
        let one_disk = random.coin().then(|| random.below(disks.len() as u64) as usize);
        for structure in all {
            // Everything of some kinds would take long to mend, and show nothing new.
            if structure.kind == "row" && random.below(4) > 0 {
                continue;
            }
            let chosen = match one_disk {
                Some(disk) => {
                    (0..structure.places.len()).filter(|&copy| structure.places[copy].0 == disk).collect()
                }
                None => choose(&structure, random.below(u64::from(layout.m) + 1) as usize, random),
            };
            harm(disks, &structure, &chosen, random);
            if !chosen.is_empty() {
                harmed.push((structure, chosen.len() as u64));
            }
        }
        // Either copy of every superblock, or both; the frame and what it covers are longer than this.
        let mut superblocks = 0;
        for disk in disks {
            for copy in 0..2 {
                if random.coin() {
                    let offset = copy * SUPERBLOCK_COPY_LEN as u64 + random.below(8000);
                    match random.below(3) {
                        0 => disk.make_unreadable("superblock", offset, 1),
                        _ => disk.corrupt("superblock", offset, 1 << random.below(8)),
                    }
                    superblocks += 1;
                }
            }
        }
        let read_first = random.coin();
        if read_first {
            fixture.read(cluster, random, shared).await;
        }
        scrub_round(cluster).await;
        assert_eq!(unrepairable(cluster), 0);
        before.assert_same(disks, ".data");
        assert_roots_whole(layout, disks);
        assert_superblocks_whole(cluster, disks);
        let count: u64 =
            harmed.iter().filter(|(structure, _)| structure.table.is_none()).map(|(_, count)| count).sum();
        let count = count + superblocks;
        assert!(repaired(cluster) >= count, "{} of {count} repaired", repaired(cluster));
        shared.outcome.borrow_mut().repaired += repaired(cluster);
        let harmed = harmed.into_iter().map(|(structure, _)| structure).collect();
        for structure in remaining(layout, disks, harmed) {
            assert_repaired(disks, &before, &structure);
        }
        cluster.engines.iter().for_each(|engine| drop(engine.take_damage()));
        fixture.read(cluster, random, shared).await;
        for engine in &cluster.engines {
            assert_eq!(engine.take_damage(), [], "it was repaired");
        }
        fixture
    });
    rig.world.crash(Crash::PowerCut);
    rig.run(async move |cluster, _, shared, random| {
        fixture.read(cluster, random, shared).await;
    });
    rig.outcome()
}

/// Power fails, or the process is killed, in the middle of repairs: nothing is worse than before, and the next round mends the rest.
pub(crate) fn cut_off(seed: u64) -> Outcome {
    let mut rig = Rig::new(seed, 0x5c_2d);
    let layout = rig.layout;
    let (fixture, before, harmed) = rig.run(async move |cluster, disks, shared, random| {
        let fixture = Fixture::fill(&cluster.any(random), shared, random, &LENS).await;
        cluster.any(random).checkpoint().await.expect("no device fails");
        let before = Snapshot::take(disks);
        let mut harmed = Vec::new();
        for structure in structures(cluster, layout, &before) {
            let chosen = choose(&structure, random.below(u64::from(layout.m) + 1) as usize, random);
            // At a start a manifest and roots are made anew, and a log that was replayed may be of no use any more.
            if random.below(2) == 0 && ["row", "chunk"].contains(&structure.kind) && !chosen.is_empty() {
                harm(disks, &structure, &chosen, random);
                harmed.push(structure);
            }
        }
        (fixture, before, harmed)
    });
    for _ in 0..2 {
        let crash = if rig.random.coin() { Crash::PowerCut } else { Crash::Kill };
        rig.world.crash(crash);
        rig.shared.outcome.borrow_mut().crashes += 1;
        let events = 300 + rig.random.below(3000);
        let read = rig.random.coin().then(|| fixture.clone());
        rig.run_events(events, async move |cluster, _, shared, random| {
            cluster.engines.iter().for_each(|engine| engine.start_scrub(DEADLINE));
            if let Some(fixture) = read {
                fixture.read(cluster, random, shared).await;
            }
            scrub_on(cluster).await;
        });
    }
    rig.world.crash(Crash::PowerCut);
    rig.run(async move |cluster, disks, shared, random| {
        scrub_round(cluster).await;
        assert_eq!(unrepairable(cluster), 0);
        for structure in &harmed {
            assert_repaired(disks, &before, structure);
        }
        cluster.engines.iter().for_each(|engine| drop(engine.take_damage()));
        fixture.read(cluster, random, shared).await;
        for engine in &cluster.engines {
            assert_eq!(engine.take_damage(), [], "it was repaired");
        }
        shared.outcome.borrow_mut().repaired += repaired(cluster);
    });
    rig.outcome()
}

/// More copies are damaged than redundancy covers: that is said, nothing is written over, and what can be read is right.
pub(crate) fn beyond_redundancy(seed: u64) -> Outcome {
    let mut rig = Rig::of(seed, 0x5c_2e, &[(1, 0), (1, 1), (2, 1), (2, 2)]);
    let layout = rig.layout;
    rig.shared.faulty.set(true);
    rig.run(async move |cluster, disks, shared, random| {
        let fixture = Fixture::fill(&cluster.any(random), shared, random, &LENS).await;
        cluster.any(random).checkpoint().await.expect("no device fails");
        let before = Snapshot::take(disks);
        let mut all = structures(cluster, layout, &before);
        all.retain(|structure| ["row", "batch"].contains(&structure.kind));
        let mut harmed = Vec::new();
        for _ in 0..all.len().min(3) {
            let structure = all.swap_remove(random.below(all.len() as u64) as usize);
            let chosen = choose(&structure, usize::from(layout.m) + 1, random);
            harm(disks, &structure, &chosen, random);
            harmed.push(structure);
        }
        let damaged = Snapshot::take(disks);
        for _ in 0..1 + random.below(2) {
            shared.outcome.borrow_mut().failed += fixture.read(cluster, random, shared).await as u64;
        }
        scrub_round(cluster).await;
        for structure in &harmed {
            for &(disk, offset) in &structure.places {
                let now = disks[disk].read(&structure.file, offset, structure.len as usize);
                let was = |snapshot: &Snapshot| {
                    snapshot.file(disk, &structure.file)[offset as usize..][..now.len()] == now[..]
                };
                assert!(was(&damaged) || was(&before), "a {} was made worse", structure.kind);
            }
        }
        shared.outcome.borrow_mut().refused += unrepairable(cluster);
        fixture.read(cluster, random, shared).await;
    });
    rig.outcome()
}

/// A disk stops answering in the middle of scrub and of repairs. Where the set can do without it, it is taken out, and all that is damaged
/// elsewhere is mended; where not, scrub goes on once it answers again. Nothing is held back for good, and nothing that does not
/// answer is taken for damage.
pub(crate) fn stuck(seed: u64) -> Outcome {
    let mut rig = Rig::of(seed, 0x5c_2f, &[(2, 2), (3, 2), (1, 0)]);
    let layout = rig.layout;
    rig.run(async move |cluster, disks, shared, random| {
        let fixture = Fixture::fill(&cluster.any(random), shared, random, &LENS).await;
        cluster.any(random).checkpoint().await.expect("no device fails");
        let core = cluster.engines[0].core().clone();
        let before = Snapshot::take(disks);
        let stuck = random.below(disks.len() as u64) as usize;
        if layout.m > 0 {
            for structure in structures(cluster, layout, &before) {
                if !["row", "chunk", "batch"].contains(&structure.kind) || random.coin() {
                    continue;
                }
                let others = |&copy: &usize| structure.places[copy].0 != stuck;
                let copies: Vec<usize> = (0..structure.places.len()).filter(others).collect();
                let chosen = copies[random.below(copies.len() as u64) as usize];
                harm(disks, &structure, &[chosen], random);
            }
        }
        cluster.engines.iter().for_each(|engine| engine.start_scrub(DEADLINE));
        core.sleep(Duration::from_micros(random.below(200_000))).await;
        disks[stuck].set_stuck(true);
        if layout.m > 0 {
            fixture.read(cluster, random, shared).await;
        }
        core.sleep(Duration::from_secs(25)).await;
        if layout.m > 0 {
            assert_eq!(cluster.engines[0].failures_tolerated(), Some(layout.m - 1), "it is out");
            scrub_on(cluster).await;
            assert!(repaired(cluster) > 0, "what is damaged elsewhere is mended");
        }
        disks[stuck].set_stuck(false);
        while stats(cluster).iter().any(|stats| stats.scrub.rounds == 0)
            || cluster.engines[0].failures_tolerated() != Some(layout.m)
        {
            core.sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(unrepairable(cluster), 0);
        shared.outcome.borrow_mut().repaired += repaired(cluster);
        cluster.engines.iter().for_each(|engine| drop(engine.take_damage()));
        fixture.read(cluster, random, shared).await;
        for engine in &cluster.engines {
            assert_eq!(engine.take_damage(), [], "it was repaired");
        }
        // No pin is left that would keep an extent.
        let engine = cluster.any(random);
        for (key, _) in &fixture.objects {
            engine.delete(fixture.bucket, key.as_bytes(), None).await.expect("no device fails");
        }
        engine.checkpoint().await.expect("no device fails");
        engine.checkpoint().await.expect("no device fails");
        let left: usize = stats(cluster).iter().map(|stats| stats.data_extents).sum();
        assert!(left <= usize::from(layout.shards), "{left} data extents are left");
    });
    rig.outcome()
}
