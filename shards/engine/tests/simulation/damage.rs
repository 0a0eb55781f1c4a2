//! Media that rot while nobody runs: with redundancy everything is served right; without it, right or refused.

use std::rc::Rc;

use basalt_engine::format::batch::BatchHeader;
use basalt_reactor::sim::{Crash, DiskHandle, Random, World};

use crate::client::{Client, Outcome, Shared, bucket_id, check, drain, run_client};
use crate::cluster::{Cluster, Layout};

pub(crate) const CAPACITY: u64 = 96 << 20;

/// Clients at work until they are done or `events` have passed; then the process is killed.
pub(crate) fn work(
    world: &mut World,
    layout: Layout,
    shared: &Rc<Shared>,
    mut random: Random,
    checkpoint: bool,
) {
    let cores = world.boot(1 + random.below(2) as u16);
    let state = Rc::clone(shared);
    world.run(async move {
        let cluster = Cluster::start(cores, layout).await;
        let mut running = Vec::new();
        for _ in 0..2 {
            let engine = cluster.any(&mut random);
            let task = run_client(engine.clone(), Rc::clone(&state), random.fork(), 40);
            running.push(engine.core().spawn(task));
        }
        for client in running {
            client.await.expect("nobody cancels a client");
        }
        check(&cluster, &state, &mut random).await;
        if checkpoint {
            cluster.any(&mut random).checkpoint().await.expect("nothing is wrong yet");
        }
    });
    world.crash(Crash::Kill);
}

/// Opens the deployment and compares everything; a refusal is an answer if `refusable`.
pub(crate) fn reopen(
    world: &mut World,
    layout: Layout,
    shared: &Rc<Shared>,
    mut random: Random,
    refusable: bool,
) {
    let cores = world.boot(1 + random.below(2) as u16);
    let state = Rc::clone(shared);
    let opened = world.run(async move {
        let cluster = Cluster::try_start(cores, layout).await?;
        check(&cluster, &state, &mut random).await;
        if !state.faulty.get() {
            drain(&cluster, &state, &mut random).await;
        }
        Ok::<(), String>(())
    });
    if let Err(reason) = opened {
        assert!(refusable, "the deployment does not open: {reason}");
        shared.outcome.borrow_mut().failed += 1;
    }
    world.crash(Crash::Kill);
}

/// Flips bits all over a disk, but leaves one copy of superblock and roots alone.
pub(crate) fn rot(
    disk: &DiskHandle,
    copy_len: &dyn Fn(&str) -> Option<u64>,
    random: &mut Random,
    count: u64,
) {
    for file in disk.files() {
        let len = disk.file_len(&file).unwrap_or(0);
        if len == 0 {
            continue;
        }
        for _ in 0..count {
            let offset = match copy_len(&file) {
                // Always the same copy of one file, or both would be gone.
                Some(copy) => random.below(copy),
                None => random.below(len),
            };
            disk.corrupt(&file, offset.min(len - 1), 1 << random.below(8));
        }
    }
}

pub(crate) fn copy_len(file: &str) -> Option<u64> {
    match file {
        "superblock" => Some(basalt_engine::format::superblock::SUPERBLOCK_COPY_LEN as u64),
        _ if file.ends_with(".root") => Some(4096),
        _ => None,
    }
}

/// One disk of several rots all over, every file of it: nothing is lost, nothing is wrong.
pub(crate) fn one_rotten_disk(seed: u64) -> Outcome {
    let mut random = Random::new(seed ^ 0xd15c);
    let (k, m) = [(1, 1), (2, 1), (2, 2)][random.below(3) as usize];
    let layout = Layout::of(k, m, &mut random);
    let mut world = layout.world(seed, CAPACITY);
    let shared = Shared::new();
    shared.len_max.set(300 << 10);
    work(&mut world, layout, &shared, random.fork(), random.coin());
    let names = layout.disk_names();
    let disk = world.disk(&names[random.below(names.len() as u64) as usize]);
    let count = 1 + random.below(200);
    rot(&disk, &copy_len, &mut random, count);
    reopen(&mut world, layout, &shared, random.fork(), false);
    finish(&world, &shared)
}

/// A disk without redundancy rots: what is served is right, the rest is an error or a refusal to open.
pub(crate) fn one_rotten_copy(seed: u64) -> Outcome {
    let mut random = Random::new(seed ^ 0xd15d);
    let layout = Layout::of(1, 0, &mut random);
    let mut world = layout.world(seed, CAPACITY);
    let shared = Shared::new();
    shared.len_max.set(300 << 10);
    // Under a root, because a damaged last batch cannot be told from one that power failed in.
    work(&mut world, layout, &shared, random.fork(), true);
    let disk = world.disk("disk0");
    let count = 1 + random.below(60);
    match random.below(4) {
        // Either copy of the small ones, hit for sure.
        0 => {
            let files = disk.files().into_iter().filter(|file| copy_len(file).is_some()).collect::<Vec<_>>();
            for file in files {
                let copy = copy_len(&file).expect("filtered just now");
                disk.corrupt(&file, random.below(2) * copy + random.below(100), 1);
            }
        }
        _ => rot(&disk, &copy_len, &mut random, count),
    }
    shared.faulty.set(true);
    reopen(&mut world, layout, &shared, random.fork(), true);
    finish(&world, &shared)
}

/// One core cannot open its second shard, while the other may have opened its own and asks how far the first is.
pub(crate) fn second_shard_of_a_core(seed: u64) -> Outcome {
    let mut random = Random::new(seed ^ 0xd15f);
    let layout = Layout { shards: 3, ..Layout::of(1, 0, &mut random) };
    let mut world = layout.world(seed, CAPACITY);
    let shared = Shared::new();
    shared.len_max.set(300 << 10);
    work(&mut world, layout, &shared, random.fork(), true);
    let root = "shard-0002.root";
    for copy in 0..2 {
        world.disk("disk0").corrupt(root, copy * copy_len(root).expect("a root has copies"), 1);
    }
    let cores = world.boot(2);
    let names = layout.disk_names();
    let refusal = world.run(async move { Cluster::refused(cores, &names, layout).await });
    assert!(refusal.contains("shard 2"), "{refusal}");
    shared.outcome.borrow_mut().refused += 1;
    finish(&world, &shared)
}

/// A batch in the middle of the log is damaged on every replica.
pub(crate) fn damaged_batch(seed: u64) -> Outcome {
    let mut random = Random::new(seed ^ 0xd15e);
    let layout = Layout { shards: 1, ..Layout::draw(&mut random) };
    let mut world = layout.world(seed, CAPACITY);
    let shared = Shared::new();
    // Bodies in the log alone: a dead data extent would call for a checkpoint, and what lies before one may be damaged.
    shared.len_max.set(4096);
    let cores = world.boot(1);
    let state = Rc::clone(&shared);
    let mut own = random.fork();
    world.run(async move {
        let cluster = Cluster::start(cores, layout).await;
        let engine = cluster.any(&mut own);
        let bucket = bucket_id(&engine, &state).await.expect("nothing is wrong yet");
        let client = Client { engine, shared: state, bucket };
        for index in 0..12 {
            client.put(&format!("key-{index}"), &mut own).await;
        }
    });
    world.crash(if random.coin() { Crash::Kill } else { Crash::PowerCut });
    // Let late writes land.
    world.run_until_idle();
    let mut places = Vec::new();
    for name in layout.disk_names() {
        let disk = world.disk(&name);
        let file = "shard-0000.log";
        let len = disk.file_len(file).expect("it was formatted");
        let bytes = disk.read(file, 0, usize::try_from(len).expect("small"));
        for (block, chunk) in bytes.chunks_exact(4096).enumerate() {
            if let Ok(header) = BatchHeader::decode(chunk) {
                let whole = bytes.get(block * 4096..block * 4096 + header.disk_len());
                if whole.is_some_and(|whole| header.decode_records(whole).is_ok()) {
                    places.push((header.sequence, name.clone(), block as u64 * 4096, header.disk_len()));
                }
            }
        }
    }
    let last = places.iter().map(|place| place.0).max().expect("there were writes");
    assert!(last >= 6, "{places:?}");
    // Not the last one, and none that may lie before the first root.
    let missing = last - 1 - random.below(3);
    for (_, name, offset, len) in places.iter().filter(|place| place.0 == missing) {
        let disk = world.disk(name);
        disk.corrupt("shard-0000.log", offset + random.below(100.min(*len as u64)), 1);
    }
    let cores = world.boot(1);
    let opened = world.run(async move { Cluster::try_start(cores, layout).await.map(drop) });
    match opened {
        Ok(()) => panic!("seed {seed}: batch {missing} of {last} is gone, and nobody minds"),
        Err(reason) => assert!(reason.contains("acknowledged data is damaged"), "{reason}"),
    }
    shared.outcome.borrow_mut().failed += 1;
    finish(&world, &shared)
}

fn finish(world: &World, shared: &Rc<Shared>) -> Outcome {
    let mut outcome = shared.outcome.borrow().clone();
    outcome.crashes += 1;
    outcome.trace = world.trace_hash();
    outcome
}
