//! What a seed does: clients that put, overwrite, read, list and delete, and crashes in the middle of it.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use basalt_engine::{Engine, EngineError, ListItem, ListQuery, ListStart, ObjectDraft};
use basalt_reactor::sim::{Config, Crash, DiskConfig, Random, World};

use crate::cluster::{Cluster, Layout};
use crate::model::{Content, Model};

/// Keys each client owns; it alone writes them, so the model needs no interleavings.
const KEYS_PER_CLIENT: u64 = 6;

/// Capacity of a simulated disk, bytes.
const CAPACITY: u64 = 96 << 20;

/// Counts what happened, to show that a run tested something, and that two runs were the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) crashes: u64,
    pub(crate) acknowledged: u64,
    pub(crate) refused: u64,
    pub(crate) verified: u64,
    pub(crate) listed: u64,
    pub(crate) recovered_batches: u64,
    pub(crate) checkpoints: u64,
    pub(crate) trace: u64,
}

impl Outcome {
    pub(crate) fn add(&mut self, other: &Outcome) {
        self.crashes += other.crashes;
        self.acknowledged += other.acknowledged;
        self.refused += other.refused;
        self.verified += other.verified;
        self.listed += other.listed;
        self.recovered_batches += other.recovered_batches;
        self.checkpoints += other.checkpoints;
        self.trace ^= other.trace;
    }
}

/// Everything a seed decides before the world runs.
pub(crate) struct Scenario {
    seed: u64,
    layout: Layout,
    rounds: u64,
    clients: u64,
    random: Random,
}

struct Shared {
    model: RefCell<Model>,
    outcome: RefCell<Outcome>,
}

impl Scenario {
    pub(crate) fn draw(seed: u64) -> Scenario {
        let mut random = Random::new(seed ^ 0x00ba_5a17);
        let (k, m) = [(1, 0), (1, 0), (1, 1), (2, 1), (2, 2)][random.below(5) as usize];
        let layout = Layout { k, m, shards: 1 + random.below(3) as u16 };
        Scenario { seed, layout, rounds: 2 + random.below(3), clients: 1 + random.below(4), random }
    }

    pub(crate) fn run(mut self) -> Outcome {
        let disks = (0..self.layout.disk_count())
            .map(|disk| DiskConfig::new(&format!("disk{disk}"), CAPACITY))
            .collect();
        let config = Config { disks, arena_len: 16 << 20, ..Config::default() };
        let mut world = World::new(self.seed, config);
        let shared = Rc::new(Shared { model: RefCell::default(), outcome: RefCell::default() });
        for round in 0..self.rounds {
            let cores = world.boot(1 + self.random.below(3) as u16);
            let (layout, clients, state) = (self.layout, self.clients, Rc::clone(&shared));
            let mut random = self.random.fork();
            // The last round runs to its end, so that every seed verifies at least once.
            let last = round + 1 == self.rounds;
            let work = async move {
                let cluster = Cluster::start(cores, layout).await;
                check(&cluster.engines, &state, &mut random).await;
                let count = if last { 20 } else { 400 };
                let mut running = Vec::new();
                for client in 0..clients {
                    let engine = cluster.engines[random.below(cluster.engines.len() as u64) as usize].clone();
                    let (state, random) = (Rc::clone(&state), random.fork());
                    let task = run_client(engine.clone(), state, random, client, count);
                    running.push(engine.core().spawn(task));
                }
                for client in running {
                    client.await.expect("nobody cancels a client");
                }
                check(&cluster.engines, &state, &mut random).await;
                for engine in &cluster.engines {
                    let checkpoints = engine.stats().iter().map(|(_, stats)| stats.checkpoints).sum::<u64>();
                    state.outcome.borrow_mut().checkpoints += checkpoints;
                }
            };
            if last {
                world.run(work);
            } else {
                let events = self.random.below(30_000);
                if world.run_events(events, work).is_none() {
                    shared.outcome.borrow_mut().crashes += 1;
                }
                world.crash(if self.random.coin() { Crash::PowerCut } else { Crash::Kill });
            }
        }
        let mut outcome = shared.outcome.borrow().clone();
        outcome.trace = world.trace_hash();
        outcome
    }
}

fn key_of(client: u64, index: u64) -> String {
    // Some names share a folder, some nest, one is a prefix of another.
    match index % 3 {
        0 => format!("c{client}/k{index}"),
        1 => format!("c{client}/k{index}/x"),
        _ => format!("flat-{client}-{index}"),
    }
}

async fn bucket_id(engine: &Engine) -> u64 {
    if let Some(bucket) = engine.buckets().get("b") {
        return bucket.id;
    }
    match engine.create_bucket("b", Vec::new()).await {
        Ok(bucket) => bucket.id,
        Err(EngineError::BucketExists) => {
            engine.core().sleep(Duration::from_millis(5)).await;
            engine.buckets().get("b").expect("it exists").id
        }
        Err(error) => panic!("bucket: {error}"),
    }
}

async fn run_client(engine: Engine, state: Rc<Shared>, mut random: Random, client: u64, count: u64) {
    let bucket = bucket_id(&engine).await;
    for _ in 0..count {
        let key = key_of(client, random.below(KEYS_PER_CLIENT));
        match random.below(10) {
            0..5 => put(&engine, &state, bucket, &key, &mut random).await,
            5..7 => delete(&engine, &state, bucket, &key).await,
            7..9 => read(&engine, &state, bucket, &key, &mut random).await,
            _ => engine.core().sleep(Duration::from_micros(random.below(3000))).await,
        }
    }
}

fn draw_content(random: &mut Random) -> Content {
    let len = match random.below(8) {
        0 => 0,
        1..4 => random.below(6000),
        4..6 => random.below(64 << 10),
        6 => random.below(200 << 10),
        _ => random.below(1 << 20),
    };
    Content { len: len as usize, tag: random.next_u64() }
}

async fn put(engine: &Engine, state: &Shared, bucket: u64, key: &str, random: &mut Random) {
    let content = draw_content(random);
    let before = state.model.borrow_mut().possible(key);
    let expected = random.coin().then_some(content.len as u64);
    let mut writer = engine.write(bucket, key.as_bytes(), expected);
    let mut at = 0;
    while at < content.len {
        let end = (at + 1 + random.below(100_000) as usize).min(content.len);
        match writer.write(&content.bytes(at..end)).await {
            Ok(()) => at = end,
            Err(EngineError::NoSpace) => return state.outcome.borrow_mut().refused += 1,
            Err(error) => panic!("write: {error}"),
        }
    }
    // Now and then the client goes away instead.
    if random.below(12) == 0 {
        return;
    }
    let body = match writer.finish().await {
        Ok(body) => body,
        Err(EngineError::NoSpace) => return state.outcome.borrow_mut().refused += 1,
        Err(error) => panic!("finish: {error}"),
    };
    let draft = ObjectDraft { etag: content.etag(), ..ObjectDraft::default() };
    state.model.borrow_mut().begin(key, Some(content));
    match engine.put(bucket, key.as_bytes(), draft, body, None).await {
        Ok(_) => {
            state.model.borrow_mut().acknowledge(key, Some(content));
            state.outcome.borrow_mut().acknowledged += 1;
        }
        Err(EngineError::NoSpace) => {
            state.model.borrow_mut().refuse(key, before);
            state.outcome.borrow_mut().refused += 1;
        }
        Err(error) => panic!("put: {error}"),
    }
}

async fn delete(engine: &Engine, state: &Shared, bucket: u64, key: &str) {
    let had = state.model.borrow_mut().possible(key);
    state.model.borrow_mut().begin(key, None);
    match engine.delete(bucket, key.as_bytes(), None).await {
        Ok(existed) => {
            assert!(
                had.iter().any(|state| state.is_some() == existed),
                "delete of {key} found {existed}: {had:?}"
            );
            state.model.borrow_mut().acknowledge(key, None);
            state.outcome.borrow_mut().acknowledged += 1;
        }
        Err(error) => panic!("delete: {error}"),
    }
}

async fn read(engine: &Engine, state: &Shared, bucket: u64, key: &str, random: &mut Random) {
    let reader = match engine.open(bucket, key.as_bytes()).await {
        Ok(Some(reader)) => reader,
        Ok(None) => return state.model.borrow_mut().observe(key, None),
        Err(error) => panic!("open of {key}: {error}"),
    };
    let object = reader.object();
    let tag = u64::from_le_bytes(object.etag[..8].try_into().expect("8 bytes"));
    let content = Content { len: object.len as usize, tag };
    assert_eq!(object.etag, content.etag(), "key {key}: length and tag of different writes");
    state.model.borrow_mut().observe(key, Some(content));
    let (from, to) = if random.coin() {
        (0, content.len)
    } else {
        let from = random.below(content.len as u64 + 1) as usize;
        (from, from + random.below((content.len - from) as u64 + 1) as usize)
    };
    let mut body = reader.read(from as u64..to as u64).await.unwrap_or_else(|error| panic!("read: {error}"));
    let mut got = Vec::new();
    while let Some(bytes) = body.next().await {
        got.extend_from_slice(&bytes.unwrap_or_else(|error| panic!("key {key}: {error}")));
        if random.below(6) == 0 {
            engine.core().sleep(Duration::from_micros(random.below(5000))).await;
        }
    }
    assert_eq!(got, content.bytes(from..to), "key {key}, bytes {from}..{to}");
    state.outcome.borrow_mut().verified += 1;
}

/// Every key holds a possible state, from any core, and LIST agrees.
async fn check(engines: &[Engine], state: &Shared, random: &mut Random) {
    let engine = &engines[random.below(engines.len() as u64) as usize];
    let Some(bucket) = engine.buckets().get("b") else {
        assert!(state.outcome.borrow().acknowledged == 0, "the bucket is gone with its objects");
        return;
    };
    let keys = state.model.borrow().keys();
    for key in &keys {
        read(engine, state, bucket.id, key, random).await;
    }
    let expected = keys
        .iter()
        .filter(|key| state.model.borrow_mut().possible(key).iter().all(Option::is_some))
        .cloned()
        .collect::<Vec<_>>();
    let mut listed = Vec::new();
    let mut start = ListStart::First;
    loop {
        let query = ListQuery {
            bucket: bucket.id,
            prefix: Vec::new(),
            delimiter: Vec::new(),
            start: start.clone(),
            limit: 1 + random.below(7) as usize,
        };
        let page = engine.list(&query).await.unwrap_or_else(|error| panic!("list: {error}"));
        for item in &page.items {
            let ListItem::Object { name, .. } = item else { panic!("no delimiter was given") };
            listed.push(String::from_utf8(name.clone()).expect("names are ASCII here"));
        }
        match page.items.last() {
            Some(last) if page.truncated => start = last.resume(),
            _ => break,
        }
    }
    assert_eq!(listed, expected, "LIST and the model");
    state.outcome.borrow_mut().listed += listed.len() as u64;
    let batches = engines.iter().flat_map(|engine| engine.recovered().iter().map(|(_, found)| found.batches));
    state.outcome.borrow_mut().recovered_batches += batches.sum::<u64>();
}
