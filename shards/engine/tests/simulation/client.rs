//! What clients do, and what the model makes of the answers.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use basalt_engine::{
    Engine, EngineError, Guard, ListItem, ListQuery, ListStart, ObjectDraft, Refused, WrittenBody,
};
use basalt_reactor::sim::Random;

use crate::cluster::Cluster;
use crate::model::{Content, Model};

/// Keys that all clients write.
const KEY_COUNT: u64 = 10;

/// The bucket of most scenarios.
pub(crate) const BUCKET: &str = "b";

/// Counts what happened, to show that a run tested something, and that two runs were the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) crashes: u64,
    pub(crate) acknowledged: u64,
    pub(crate) refused: u64,
    pub(crate) abandoned: u64,
    pub(crate) failed: u64,
    pub(crate) verified: u64,
    pub(crate) listed: u64,
    pub(crate) described: u64,
    pub(crate) races: u64,
    pub(crate) recovered_batches: u64,
    pub(crate) checkpoints: u64,
    pub(crate) repaired: u64,
    pub(crate) scrubbed: u64,
    pub(crate) moved: u64,
    pub(crate) outrun: u64,
    /// Objects that were found with their parts in one body.
    pub(crate) merged: u64,
    pub(crate) trace: u64,
}

impl Outcome {
    pub(crate) fn add(&mut self, other: &Outcome) {
        self.crashes += other.crashes;
        self.acknowledged += other.acknowledged;
        self.refused += other.refused;
        self.abandoned += other.abandoned;
        self.failed += other.failed;
        self.verified += other.verified;
        self.listed += other.listed;
        self.described += other.described;
        self.races += other.races;
        self.recovered_batches += other.recovered_batches;
        self.checkpoints += other.checkpoints;
        self.repaired += other.repaired;
        self.scrubbed += other.scrubbed;
        self.moved += other.moved;
        self.outrun += other.outrun;
        self.merged += other.merged;
        self.trace ^= other.trace;
    }
}

/// What clients share: the model, and what a scenario lets them see.
#[derive(Default)]
pub(crate) struct Shared {
    pub(crate) model: RefCell<Model>,
    pub(crate) outcome: RefCell<Outcome>,
    /// Devices fail in this scenario: an error is an answer.
    pub(crate) faulty: Cell<bool>,
    /// Clients reserve memory before they begin, as a server does; else they wait for it as long as it takes.
    pub(crate) admitted: Cell<bool>,
    /// Longest body, bytes.
    pub(crate) len_max: Cell<u64>,
    /// Who created a key that nobody may create twice.
    created: RefCell<BTreeSet<String>>,
    /// States that a successful compare-and-swap replaced.
    swapped: RefCell<BTreeMap<String, BTreeSet<Option<u64>>>>,
}

impl Shared {
    pub(crate) fn new() -> Rc<Shared> {
        let shared = Shared::default();
        shared.len_max.set(1 << 20);
        Rc::new(shared)
    }

    /// An error that only a failing device explains.
    pub(crate) fn note_failure(&self, what: &str, error: &EngineError) {
        assert!(self.faulty.get(), "{what}: {error}");
        self.outcome.borrow_mut().failed += 1;
    }
}

fn key_of(index: u64) -> String {
    // Some names share a folder, some nest, one is a prefix of another.
    match index % 3 {
        0 => format!("folder/k{index}"),
        1 => format!("folder/k{index}/x"),
        _ => format!("flat-{index}"),
    }
}

pub(crate) fn draw_content(random: &mut Random, len_max: u64) -> Content {
    let len = match random.below(10) {
        0 => 0,
        1..4 => random.below(6000),
        4..6 => random.below(64 << 10),
        // Around the borders of blocks and of what stays inline.
        6 => ([4096, 48 << 10, 64 << 10, 128 << 10][random.below(4) as usize] + random.below(3))
            .saturating_sub(1),
        7 => random.below(200 << 10),
        _ => random.below(len_max),
    };
    Content { len: len.min(len_max) as usize, tag: random.next_u64() }
}

/// The bucket all keys live in; created by whoever comes first.
pub(crate) async fn bucket_id(engine: &Engine, shared: &Shared) -> Option<u64> {
    loop {
        if let Some(bucket) = engine.buckets().get(BUCKET) {
            return Some(bucket.id);
        }
        match engine.create_bucket(BUCKET, Vec::new()).await {
            Ok(bucket) => return Some(bucket.id),
            Err(EngineError::BucketExists) => engine.core().sleep(Duration::from_millis(1)).await,
            Err(error) => {
                shared.note_failure("bucket", &error);
                return None;
            }
        }
    }
}

/// A client that does `count` things with keys that others use too.
pub(crate) async fn run_client(engine: Engine, shared: Rc<Shared>, mut random: Random, count: u64) {
    let Some(bucket) = bucket_id(&engine, &shared).await else { return };
    let client = Client { engine, shared, bucket };
    for _ in 0..count {
        let key = key_of(random.below(KEY_COUNT));
        match random.below(21) {
            0..8 => client.put(&key, &mut random).await,
            8..11 => client.delete(&key).await,
            11..15 => client.read(&key, &mut random).await,
            15 => client.create_once(&format!("once-{}", random.below(4)), &mut random).await,
            16 => client.swap(&format!("swap-{}", random.below(2)), &mut random).await,
            17 => client.list(&mut random).await,
            18 => client.abandon_put(&key, &mut random).await,
            19 if random.coin() => client.collect().await,
            19 => client.checkpoint().await,
            _ => client.engine.core().sleep(Duration::from_micros(random.below(3000))).await,
        }
    }
}

/// A put that never was, is, or may be: what the caller knows after the answer.
enum Fate {
    Done,
    Refused,
    Open,
}

pub(crate) struct Client {
    pub(crate) engine: Engine,
    pub(crate) shared: Rc<Shared>,
    pub(crate) bucket: u64,
}

impl Client {
    fn outcome(&self) -> std::cell::RefMut<'_, Outcome> {
        self.shared.outcome.borrow_mut()
    }

    /// Sends a body; `None` when it was given up on the way.
    async fn write(&self, key: &str, content: Content, random: &mut Random) -> Option<WrittenBody> {
        let expected = random.coin().then_some(content.len as u64);
        let mut writer = self.engine.write(self.bucket, key.as_bytes(), expected);
        if self.shared.admitted.get() {
            writer = match writer.admit().await {
                Ok(writer) => writer,
                Err(error) => {
                    self.shared.note_failure("admit", &error);
                    return None;
                }
            };
        }
        let mut at = 0;
        while at < content.len {
            let end = (at + 1 + random.below(100_000) as usize).min(content.len);
            match writer.write(&content.bytes(at..end)).await {
                Ok(()) => at = end,
                Err(EngineError::NoSpace) => {
                    self.outcome().refused += 1;
                    return None;
                }
                Err(error) => {
                    self.shared.note_failure("write", &error);
                    return None;
                }
            }
            // Now and then the client goes away instead.
            if random.below(40) == 0 {
                self.outcome().abandoned += 1;
                return None;
            }
        }
        match writer.finish().await {
            Ok(body) => Some(body),
            Err(EngineError::NoSpace) => {
                self.outcome().refused += 1;
                None
            }
            Err(error) => {
                self.shared.note_failure("finish", &error);
                None
            }
        }
    }

    /// What an answer to a mutation means. Every error but these two says that nothing has changed.
    fn fate<T>(&self, what: &str, result: &Result<T, EngineError>) -> Fate {
        match result {
            Ok(_) => {
                self.outcome().acknowledged += 1;
                Fate::Done
            }
            Err(EngineError::NoSpace | EngineError::Refused(_) | EngineError::NoSuchBucket) => {
                self.outcome().refused += 1;
                Fate::Refused
            }
            Err(
                error @ (EngineError::ShardFailed { .. }
                | EngineError::DisksFail { .. }
                | EngineError::Closed),
            ) => {
                self.shared.note_failure(what, error);
                Fate::Open
            }
            Err(error) => {
                self.shared.note_failure(what, error);
                Fate::Refused
            }
        }
    }

    async fn store(
        &self,
        key: &str,
        content: Content,
        body: WrittenBody,
        guard: Option<Guard>,
    ) -> Result<(), EngineError> {
        let draft = ObjectDraft { etag: content.etag(), ..ObjectDraft::default() };
        let write = self.shared.model.borrow_mut().begin(key, Some(content));
        let result = self.engine.put(self.bucket, key.as_bytes(), draft, body, guard).await;
        match self.fate("put", &result) {
            Fate::Done => self.shared.model.borrow_mut().acknowledge(key, write),
            Fate::Refused => self.shared.model.borrow_mut().refuse(key, write),
            Fate::Open => {}
        }
        result.map(|_| ())
    }

    pub(crate) async fn put(&self, key: &str, random: &mut Random) {
        let content = draw_content(random, self.shared.len_max.get());
        self.put_content(key, content, random).await;
    }

    pub(crate) async fn put_content(&self, key: &str, content: Content, random: &mut Random) {
        let Some(body) = self.write(key, content, random).await else { return };
        let _ = self.store(key, content, body, None).await;
    }

    /// A client that goes away at any moment of its put: it happens or not, and nothing leaks.
    async fn abandon_put(&self, key: &str, random: &mut Random) {
        let content = draw_content(random, self.shared.len_max.get());
        let expected = random.coin().then_some(content.len as u64);
        let (engine, name, bucket) = (self.engine.clone(), key.as_bytes().to_vec(), self.bucket);
        let shared = Rc::clone(&self.shared);
        let key = key.to_owned();
        let task = self.engine.core().spawn(async move {
            let mut writer = engine.write(bucket, &name, expected);
            for at in (0..content.len).step_by(100_000) {
                if writer.write(&content.bytes(at..(at + 100_000).min(content.len))).await.is_err() {
                    return;
                }
            }
            let Ok(body) = writer.finish().await else { return };
            shared.model.borrow_mut().begin(&key, Some(content));
            let draft = ObjectDraft { etag: content.etag(), ..ObjectDraft::default() };
            let _ = engine.put(bucket, &name, draft, body, None).await;
        });
        self.engine.core().sleep(Duration::from_micros(random.below(8000))).await;
        task.cancel();
        task.await;
        self.outcome().abandoned += 1;
    }

    /// Puts if nobody has: of all who try, at most one gets it.
    async fn create_once(&self, key: &str, random: &mut Random) {
        let content = draw_content(random, 100_000);
        let Some(body) = self.write(key, content, random).await else { return };
        let asked = self.shared.model.borrow().now();
        let absent: Guard = Box::new(|object| if object.is_none() { Ok(()) } else { Err(Refused(1)) });
        let result = self.store(key, content, body, Some(absent)).await;
        self.outcome().races += 1;
        match result {
            Ok(()) => {
                let first = self.shared.created.borrow_mut().insert(key.to_owned());
                assert!(first, "key {key} was created twice");
            }
            Err(EngineError::Refused(_)) => {
                let exists = self.shared.model.borrow_mut().may_exist(key, true, asked, None);
                assert!(exists, "key {key} was not there, and could not be created");
            }
            Err(_) => {}
        }
    }

    /// Replaces exactly the state it saw: no two who saw the same both succeed.
    async fn swap(&self, key: &str, random: &mut Random) {
        let seen = match self.engine.lookup(self.bucket, key.as_bytes()).await {
            Ok(object) => object.map(|object| Content::of(object.etag, object.len)),
            Err(error) => return self.shared.note_failure("lookup", &error),
        };
        let content = draw_content(random, 100_000);
        let Some(body) = self.write(key, content, random).await else { return };
        let guard: Guard = Box::new(move |object| {
            let now = object.map(|object| object.etag);
            if now == seen.map(Content::etag) { Ok(()) } else { Err(Refused(2)) }
        });
        if self.store(key, content, body, Some(guard)).await.is_ok() {
            let mut swapped = self.shared.swapped.borrow_mut();
            let first = swapped.entry(key.to_owned()).or_default().insert(seen.map(|seen| seen.tag));
            assert!(first, "key {key}: two swaps replaced {seen:?}");
        }
        self.outcome().races += 1;
    }

    /// More often than the engine would, so that extents are freed and reused all the time.
    async fn checkpoint(&self) {
        match self.engine.checkpoint().await {
            Ok(()) | Err(EngineError::NoSpace) => {}
            Err(error) => self.shared.note_failure("checkpoint", &error),
        }
    }

    /// As if space were short: whatever gains a little is moved, while others write and read.
    pub(crate) async fn collect(&self) {
        match self.engine.collect().await {
            Ok(_) | Err(EngineError::NoSpace) => {}
            Err(error) => self.shared.note_failure("collect", &error),
        }
    }

    pub(crate) async fn delete(&self, key: &str) {
        let asked = self.shared.model.borrow().now();
        let write = self.shared.model.borrow_mut().begin(key, None);
        let result = self.engine.delete(self.bucket, key.as_bytes(), None).await;
        match self.fate("delete", &result) {
            Fate::Done => {
                let existed = matches!(result, Ok(true));
                let mut model = self.shared.model.borrow_mut();
                let fits = model.may_exist(key, existed, asked, Some(write));
                assert!(fits, "delete of {key} found {existed}: {model:?}");
                model.acknowledge(key, write);
            }
            Fate::Refused => {
                let full = matches!(result, Err(EngineError::NoSpace));
                assert!(!full, "a full disk takes deletes: {:?}", self.engine.stats());
                self.shared.model.borrow_mut().refuse(key, write);
            }
            Fate::Open => {}
        }
    }

    pub(crate) async fn read(&self, key: &str, random: &mut Random) {
        let asked = self.shared.model.borrow().now();
        let reader = match self.engine.open(self.bucket, key.as_bytes()).await {
            Ok(Some(reader)) => reader,
            Ok(None) => return self.shared.model.borrow_mut().observe(key, None, asked),
            Err(error) => return self.shared.note_failure("open", &error),
        };
        let content = Content::of(reader.object().etag, reader.object().len);
        self.shared.model.borrow_mut().observe(key, Some(content), asked);
        if random.below(4) == 0 {
            // A reader that holds its pin for long: whatever is freed meanwhile, its bytes stay.
            self.engine.core().sleep(Duration::from_millis(random.below(80))).await;
        }
        let (from, to) = if random.coin() {
            (0, content.len)
        } else {
            let from = random.below(content.len as u64 + 1) as usize;
            (from, from + random.below((content.len - from) as u64 + 1) as usize)
        };
        let range = from as u64..to as u64;
        let opened = if self.shared.admitted.get() {
            match reader.admit(&range).await {
                Ok(memory) => reader.read_in(range, &memory).await,
                Err(error) => Err(error),
            }
        } else {
            reader.read(range).await
        };
        let mut body = match opened {
            Ok(body) => body,
            Err(error) => return self.shared.note_failure("read", &error),
        };
        drop(reader);
        let mut at = from;
        while let Some(bytes) = body.next().await {
            match bytes {
                Ok(bytes) => {
                    let expected = content.bytes(at..at + bytes.len());
                    assert!(*bytes == *expected, "key {key}: wrong bytes at {at} of {content:?}");
                    at += bytes.len();
                }
                Err(error) => return self.shared.note_failure("body", &error),
            }
            match random.below(30) {
                0..5 => self.engine.core().sleep(Duration::from_micros(random.below(5000))).await,
                // The client hangs up.
                5 => return,
                _ => {}
            }
        }
        assert_eq!(at, to, "key {key}: bytes {from}..{to} of {content:?}");
        self.outcome().verified += 1;
    }

    /// One page after the other; every key that was there all along is on one of them.
    pub(crate) async fn list(&self, random: &mut Random) {
        let prefix = [&b""[..], b"f", b"folder/", b"once"][random.below(4) as usize].to_vec();
        let mut start = ListStart::First;
        loop {
            let asked = self.shared.model.borrow().now();
            let query = ListQuery {
                bucket: self.bucket,
                prefix: prefix.clone(),
                delimiter: Vec::new(),
                start: start.clone(),
                limit: 1 + random.below(7) as usize,
            };
            let page = match self.engine.list(&query).await {
                Ok(page) => page,
                Err(error) => return self.shared.note_failure("list", &error),
            };
            let after = match &start {
                ListStart::After(name) => name.clone(),
                _ => Vec::new(),
            };
            let last = page.items.last().filter(|_| page.truncated).map(|item| item.name().to_vec());
            let keys = self.shared.model.borrow().keys();
            let covered = keys.iter().filter(|key| {
                let name = key.as_bytes();
                name.starts_with(&prefix)
                    && (after.is_empty() || name > after.as_slice())
                    && last.as_ref().is_none_or(|last| name <= last.as_slice())
            });
            let mut model = self.shared.model.borrow_mut();
            let mut found = 0;
            for key in covered {
                let seen =
                    page.items.iter().find(|item| item.name() == key.as_bytes()).map(|item| match item {
                        ListItem::Object { summary, .. } => Content::of(summary.etag, summary.len),
                        ListItem::Prefix(_) => panic!("no delimiter was given"),
                    });
                found += usize::from(seen.is_some());
                model.observe(key, seen, asked);
            }
            assert_eq!(found, page.items.len(), "a page shows keys that nobody wrote: {:?}", page.items);
            drop(model);
            self.outcome().listed += found as u64;
            match last {
                Some(last) => start = ListStart::After(last),
                None => return,
            }
        }
    }
}

/// Nobody else is at work: every key holds one possible state, from any core, and LIST agrees, with a delimiter too.
pub(crate) async fn check(cluster: &Cluster, shared: &Rc<Shared>, random: &mut Random) {
    let engine = cluster.any(random);
    // What a client abandoned on its way may still happen until here.
    engine.core().sleep(Duration::from_secs(1)).await;
    let batches = cluster.engines.iter().flat_map(|engine| engine.recovered().iter());
    shared.outcome.borrow_mut().recovered_batches += batches.map(|(_, found)| found.batches).sum::<u64>();
    let Some(bucket) = engine.buckets().get(BUCKET) else {
        assert!(shared.outcome.borrow().acknowledged == 0, "the bucket is gone with its objects");
        return;
    };
    let client = Client { engine: engine.clone(), shared: Rc::clone(shared), bucket: bucket.id };
    let keys = shared.model.borrow().keys();
    let mut present = BTreeSet::new();
    for key in &keys {
        let asked = shared.model.borrow().now();
        let seen = match engine.lookup(bucket.id, key.as_bytes()).await {
            Ok(object) => object.map(|object| Content::of(object.etag, object.len)),
            Err(error) => {
                shared.note_failure("lookup", &error);
                continue;
            }
        };
        if shared.faulty.get() {
            // A write that failed may be on some disk, and come to light at the next start.
            shared.model.borrow_mut().observe(key, seen, asked);
        } else {
            shared.model.borrow_mut().settle(key, seen);
        }
        if seen.is_some() {
            present.insert(key.clone());
        }
        client.read(key, random).await;
    }
    if shared.faulty.get() {
        return;
    }
    let mut listed = Vec::new();
    let mut start = ListStart::First;
    loop {
        let query = ListQuery {
            bucket: bucket.id,
            prefix: Vec::new(),
            delimiter: b"/".to_vec(),
            start,
            limit: 1 + random.below(5) as usize,
        };
        let page = engine.list(&query).await.unwrap_or_else(|error| panic!("list: {error}"));
        for item in &page.items {
            listed.push(String::from_utf8(item.name().to_vec()).expect("names are ASCII here"));
        }
        match page.items.last() {
            Some(last) if page.truncated => start = last.resume(),
            _ => break,
        }
    }
    let collapsed = |key: &String| match key.find('/') {
        Some(at) => key[..=at].to_owned(),
        None => key.clone(),
    };
    let expected = present.iter().map(collapsed).collect::<BTreeSet<_>>();
    assert_eq!(listed, expected.into_iter().collect::<Vec<_>>(), "LIST and the model");
}

/// Deletes everything; then nothing is live any more, and no lease, pin or slot is left behind.
pub(crate) async fn drain(cluster: &Cluster, shared: &Rc<Shared>, random: &mut Random) {
    // What is deleted may be created once more.
    shared.created.borrow_mut().clear();
    shared.swapped.borrow_mut().clear();
    let engine = cluster.any(random);
    if let Some(bucket) = engine.buckets().get(BUCKET) {
        let client = Client { engine: engine.clone(), shared: Rc::clone(shared), bucket: bucket.id };
        let keys = shared.model.borrow().keys();
        for key in keys {
            client.delete(&key).await;
        }
    }
    expect_empty(cluster, &engine).await;
}

/// No byte is live, and every extent but those in use is given back.
pub(crate) async fn expect_empty(cluster: &Cluster, engine: &Engine) {
    // What was dropped last finds its way back.
    engine.core().sleep(Duration::from_secs(1)).await;
    for _ in 0..2 {
        engine.checkpoint().await.unwrap_or_else(|error| panic!("checkpoint: {error}"));
    }
    for (shard, stats) in cluster.engines.iter().flat_map(Engine::stats) {
        assert_eq!(stats.live_len, 0, "shard {shard}: {stats:?}");
        assert!(stats.data_extents <= 1 && stats.log_extents <= 3, "shard {shard}: {stats:?}");
    }
}
