//! A store that is full for the most part and overwritten all the time, through crashes: collection keeps it tight, nobody
//! is refused for want of space that garbage takes, and a move never gets the better of a client's write.

use std::rc::Rc;
use std::time::Duration;

use basalt_engine::{Engine, EngineError, ObjectDraft};
use basalt_reactor::sim::{Crash, Random, World};

use crate::client::{Client, Outcome, Shared, bucket_id, check, drain};
use crate::cluster::{Cluster, Layout};
use crate::model::Content;

const CAPACITY: u64 = 64 << 20;

/// What is kept back of a disk per shard: table, log and data slots, and what the index itself takes.
const KEPT_LEN: u64 = (40 * 256 + 6 * 384 + 4 * 512) << 10;

/// Of the rest, in hundredths, what live bytes take.
const FULL: u64 = 80;

/// The promise: space taken per space needed, in hundredths.
const AMPLIFICATION_MAX: u64 = 120;

/// Bytes of the object under key `index`: the same at each overwrite, so that the store stays as full as it is.
fn len_of(index: u64, seed: u64) -> usize {
    let mut random = Random::new(seed ^ (index << 20));
    let len = match random.below(10) {
        0..4 => 1 + random.below(8 << 10),
        4..7 => 1 + random.below(48 << 10),
        _ => 1 + random.below(300 << 10),
    };
    usize::try_from(len).expect("small")
}

fn name_of(index: u64) -> String {
    format!("o-{index}")
}

/// Keys that fill the store of `layout` as far as it should be.
fn key_count(layout: Layout, seed: u64) -> u64 {
    let usable = (CAPACITY - KEPT_LEN * u64::from(layout.shards)) * FULL / 100 * u64::from(layout.k);
    let mut len = 0;
    (0..)
        .find(|&index| {
            // Stripes are rounded up to blocks in every column, and have a chunk behind them.
            len += len_of(index, seed) as u64 + 8192 * u64::from(layout.k);
            len > usable
        })
        .expect("some number fills it")
}

async fn overwrite(client: Client, mut random: Random, keys: u64, seed: u64, count: u64) {
    for _ in 0..count {
        let index = random.below(keys);
        let name = name_of(index);
        match random.below(12) {
            0 => client.read(&name, &mut random).await,
            1 if random.coin() => client.delete(&name).await,
            _ => {
                let content = Content { len: len_of(index, seed), tag: random.next_u64() };
                client.put_content(&name, content, &mut random).await;
            }
        }
    }
}

/// Hundredths of what is needed that the shards take on their disks.
fn amplification(engines: &[Engine]) -> u64 {
    let stats = engines.iter().flat_map(Engine::stats).collect::<Vec<_>>();
    let used: u64 = stats.iter().map(|(_, stats)| stats.used_len).sum();
    let needed: u64 = stats.iter().map(|(_, stats)| stats.needed_len).sum();
    used * 100 / needed.max(1)
}

pub(crate) fn steady_overwrite(seed: u64) -> Outcome {
    let mut random = Random::new(seed ^ 0xc011);
    // What one shard's files have taken of a disk is no other shard's: with two of them, one may be full alone.
    let layout = Layout { shards: 1, ..Layout::draw(&mut random) };
    let mut world = layout.world(seed, CAPACITY);
    let shared = Shared::new();
    let keys = key_count(layout, seed);
    let rounds = 1 + random.below(3);
    for round in 0..=rounds {
        let cores = world.boot(1 + random.below(2) as u16);
        let (state, mut own) = (Rc::clone(&shared), random.fork());
        let last = round == rounds;
        let work = async move {
            let cluster = Cluster::start(cores, layout).await;
            check(&cluster, &state, &mut own).await;
            let engine = cluster.any(&mut own);
            let bucket = bucket_id(&engine, &state).await.expect("no device fails");
            let client = |engine: Engine| Client { engine, shared: Rc::clone(&state), bucket };
            for index in 0..keys {
                let content = Content { len: len_of(index, seed), tag: own.next_u64() };
                client(engine.clone()).put_content(&name_of(index), content, &mut own).await;
            }
            let mut running = Vec::new();
            for _ in 0..3 {
                let engine = cluster.any(&mut own);
                let task = overwrite(client(engine.clone()), own.fork(), keys, seed, keys);
                running.push(engine.core().spawn(task));
            }
            for task in running {
                task.await.expect("nobody cancels a client");
            }
            assert_eq!(state.outcome.borrow().refused, 0, "there was room: {:?}", engine.stats());
            if !last {
                return;
            }
            // Readers are gone and collection has had its time.
            engine.core().sleep(Duration::from_secs(30)).await;
            engine.checkpoint().await.expect("no device fails");
            engine.core().sleep(Duration::from_secs(30)).await;
            let reached = amplification(&cluster.engines);
            let stats = || cluster.engines.iter().flat_map(Engine::stats).collect::<Vec<_>>();
            assert!(reached <= AMPLIFICATION_MAX, "{reached} hundredths in {layout:?}: {:?}", stats());
            for (_, stats) in stats() {
                state.outcome.borrow_mut().moved += stats.moved_count;
                state.outcome.borrow_mut().outrun += stats.outrun_count;
            }
            check(&cluster, &state, &mut own).await;
            drain(&cluster, &state, &mut own).await;
        };
        if last {
            world.run(work);
        } else {
            let done = world.run_events(20_000 + random.below(200_000), work).is_some();
            shared.outcome.borrow_mut().crashes += u64::from(!done);
            world.crash(if random.coin() { Crash::PowerCut } else { Crash::Kill });
        }
    }
    let mut outcome = shared.outcome.borrow().clone();
    outcome.trace = world.trace_hash();
    outcome
}

/// Puts an object whose record is far longer than its body; `false` when it was refused for want of room.
async fn put_described(client: &Client, name: &str, content: Content) -> bool {
    let engine = &client.engine;
    let mut writer = engine.write(client.bucket, name.as_bytes(), Some(content.len as u64));
    writer.write(&content.bytes(0..content.len)).await.expect("it stays in memory");
    let body = writer.finish().await.expect("it stays in memory");
    let attributes = vec![("note".to_owned(), "x".repeat(500))];
    let draft = ObjectDraft { etag: content.etag(), attributes, ..ObjectDraft::default() };
    let write = client.shared.model.borrow_mut().begin(name, Some(content));
    match engine.put(client.bucket, name.as_bytes(), draft, body, None).await {
        Ok(_) => {
            client.shared.model.borrow_mut().acknowledge(name, write);
            client.shared.outcome.borrow_mut().acknowledged += 1;
            true
        }
        Err(EngineError::NoSpace) => {
            client.shared.model.borrow_mut().refuse(name, write);
            client.shared.outcome.borrow_mut().refused += 1;
            false
        }
        Err(error) => panic!("put: {error}"),
    }
}

/// A full disk of tiny objects with long records: moving what a log extent holds writes as much log anew, so moves end for
/// want of room in the middle of a pack. What was moved until then stays where it is.
pub(crate) fn cut_short(seed: u64) -> Outcome {
    let mut random = Random::new(seed ^ 0xc5_1107);
    let layout = Layout { shards: 1, ..Layout::draw(&mut random) };
    let mut world = layout.world(seed, (12 << 20) + (random.below(16) << 18));
    let shared = Shared::new();
    let cores = world.boot(1);
    let (state, mut own) = (Rc::clone(&shared), random.fork());
    world.run(async move {
        let cluster = Cluster::start(cores, layout).await;
        let engine = cluster.any(&mut own);
        let bucket = bucket_id(&engine, &state).await.expect("no device fails");
        let client = Client { engine: engine.clone(), shared: Rc::clone(&state), bucket };
        let mut refused = 0;
        for index in 0..8000 {
            let content = Content { len: 1 + own.below(200) as usize, tag: own.next_u64() };
            refused += u32::from(!put_described(&client, &format!("o-{index}"), content).await);
            if refused > 3 {
                break;
            }
        }
        for _ in 0..6 {
            for _ in 0..40 {
                let name = format!("o-{}", own.below(2000));
                let content = Content { len: 1 + own.below(200) as usize, tag: own.next_u64() };
                put_described(&client, &name, content).await;
            }
            client.collect().await;
        }
        note_moves(&cluster, &state);
        check(&cluster, &state, &mut own).await;
    });
    outcome_of(&world, &shared)
}

/// A disk that takes no request and answers none: extents are emptied all the same, by what the others hold.
pub(crate) fn beside_a_stuck_disk(seed: u64) -> Outcome {
    let mut random = Random::new(seed ^ 0x57_0c4d);
    let (k, m) = [(1, 1), (2, 1), (2, 2)][random.below(3) as usize];
    let layout = Layout { shards: 1, ..Layout::of(k, m, &mut random) };
    let mut world = layout.world(seed, CAPACITY);
    let shared = Shared::new();
    let stuck = world.disk(&format!("disk{}", random.below(layout.disk_count() as u64)));
    let cores = world.boot(1);
    let (state, mut own) = (Rc::clone(&shared), random.fork());
    world.run(async move {
        let cluster = Cluster::start(cores, layout).await;
        let engine = cluster.any(&mut own);
        let bucket = bucket_id(&engine, &state).await.expect("no device fails");
        let client = Client { engine: engine.clone(), shared: Rc::clone(&state), bucket };
        for index in 0..150 {
            let content = Content { len: len_of(index, seed), tag: own.next_u64() };
            client.put_content(&name_of(index), content, &mut own).await;
        }
        for index in (0..150).filter(|index| index % 4 > 0) {
            client.delete(&name_of(index)).await;
        }
        engine.checkpoint().await.expect("no device fails");
        let emptied = || engine.stats().iter().map(|(_, stats)| stats.emptied_count).sum::<u64>();
        let (before, began) = (emptied(), engine.core().now());
        stuck.set_stuck(true);
        for _ in 0..3 {
            client.collect().await;
        }
        assert!(emptied() > before, "nothing was emptied: {:?}", engine.stats());
        let took = engine.core().now().since(began);
        assert!(took < Duration::from_secs(60), "it took {took:?}");
        note_moves(&cluster, &state);
        check(&cluster, &state, &mut own).await;
        drain(&cluster, &state, &mut own).await;
    });
    outcome_of(&world, &shared)
}

pub(crate) fn note_moves(cluster: &Cluster, shared: &Shared) {
    for (_, stats) in cluster.engines.iter().flat_map(Engine::stats) {
        shared.outcome.borrow_mut().moved += stats.moved_count;
        shared.outcome.borrow_mut().outrun += stats.outrun_count;
    }
}

pub(crate) fn outcome_of(world: &World, shared: &Shared) -> Outcome {
    let mut outcome = shared.outcome.borrow().clone();
    outcome.trace = world.trace_hash();
    outcome
}
