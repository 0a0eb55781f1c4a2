//! Every copy of the index is lost: what log and directories tell comes back, nothing wrong comes without being told.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;

use basalt_engine::offline::rebuild::{
    ETagSource, Entry, Fate, How, Line, NameSource, RebuildError, RebuildOptions, Summary, Why, rebuild,
};
use basalt_engine::{Engine, ListItem, ListQuery, ListStart, ObjectDraft, UploadQuery, UploadStart};
use basalt_md5::Md5;
use basalt_reactor::Core;
use basalt_reactor::sim::{Crash, Random, World};

use crate::client::{BUCKET, bucket_id, expect_empty};
use crate::cluster::{Cluster, Layout};
use crate::model::Content;
use crate::{client, must_reach, seeds};

const CAPACITY: u64 = 192 << 20;

/// Length of the parts that a content is sent in but for the last: few, or so many that their list is a blob.
fn part_len(content: &Content) -> usize {
    if content.tag.is_multiple_of(4) { content.len.div_ceil(130).max(1) } else { 40_000 }
}

/// What was done to each name, in order; `None` is a deletion.
#[derive(Default)]
struct Truth {
    states: BTreeMap<String, Vec<Option<Content>>>,
    /// Contents that parts of an upload make, which was given up or is still open.
    never: BTreeMap<String, Vec<Content>>,
}

impl Truth {
    fn current(&self, key: &str) -> Option<Content> {
        self.states.get(key).and_then(|states| *states.last()?)
    }

    /// Everything whose bytes were ever sent for the name.
    fn contents(&self, key: &str) -> Vec<Content> {
        let states = self.states.get(key).into_iter().flatten().copied().flatten();
        states.chain(self.never.get(key).into_iter().flatten().copied()).collect()
    }

    fn push(&mut self, key: &str, state: Option<Content>) {
        self.states.entry(key.to_owned()).or_default().push(state);
    }
}

async fn put(engine: &Engine, bucket: u64, key: &str, content: Content) {
    let mut writer = engine.write(bucket, key.as_bytes(), Some(content.len as u64));
    writer.write(&content.bytes(0..content.len)).await.expect("there is room");
    let body = writer.finish().await.expect("no device fails");
    let draft = ObjectDraft { etag: content.etag(), ..ObjectDraft::default() };
    engine.put(bucket, key.as_bytes(), draft, body, None).await.expect("there is room");
}

/// Uploads `content` in parts, and leaves the upload open.
async fn upload(engine: &Engine, bucket: u64, key: &str, content: Content) -> [u8; 16] {
    let id = engine.create_upload(bucket, key.as_bytes(), Vec::new(), 0, false).await.expect("there is room");
    let bytes = content.bytes(0..content.len);
    for (index, part) in bytes.chunks(part_len(&content)).enumerate() {
        let number = index as u16 + 1;
        let mut writer = engine.write_part(bucket, key.as_bytes(), None).for_part(id, number);
        writer.write(part).await.expect("there is room");
        let body = writer.finish().await.expect("no device fails");
        engine
            .put_part(bucket, key.as_bytes(), id, number, content.etag(), None, body)
            .await
            .expect("it is open");
    }
    id
}

async fn complete(engine: &Engine, bucket: u64, key: &str, id: [u8; 16], content: Content) {
    let (_, parts) = engine.all_parts(bucket, key.as_bytes(), id).await.expect("it is open");
    let draft = ObjectDraft { etag: content.etag(), ..ObjectDraft::default() };
    engine.complete_upload(bucket, key.as_bytes(), id, draft, parts, None).await.expect("all are there");
}

/// One client at work, so that what is true of each name is known.
async fn work(engine: &Engine, truth: &Rc<RefCell<Truth>>, random: &mut Random, count: u64) {
    let shared = client::Shared::new();
    let bucket = bucket_id(engine, &shared).await.expect("no device fails");
    for _ in 0..count {
        let key = format!("folder/k{}", random.below(40));
        let tag = random.next_u64();
        match random.below(22) {
            0..11 => {
                let content = Content { len: random.below(20_000) as usize, tag };
                put(engine, bucket, &key, content).await;
                truth.borrow_mut().push(&key, Some(content));
            }
            11..14 => {
                // Beyond what stays in the log, now and then longer than an extent.
                let most = [1_200_000, 3_500_000, 200_000, 200_000][random.below(4) as usize];
                let content = Content { len: 64_000 + random.below(most) as usize, tag };
                put(engine, bucket, &key, content).await;
                truth.borrow_mut().push(&key, Some(content));
            }
            14..17 => {
                engine.delete(bucket, key.as_bytes(), None).await.expect("no device fails");
                truth.borrow_mut().push(&key, None);
            }
            17 => {
                // Several parts, as uploads have; the last one is shorter.
                let content = Content { len: 1 + random.below(300_000) as usize, tag };
                let id = upload(engine, bucket, &key, content).await;
                complete(engine, bucket, &key, id, content).await;
                truth.borrow_mut().push(&key, Some(content));
            }
            18 => {
                // Names of their own: whether such an upload was completed cannot be known.
                let key = format!("upload-{}", random.below(3));
                let content = Content { len: 1 + random.below(100_000) as usize, tag };
                let id = upload(engine, bucket, &key, content).await;
                if random.coin() {
                    engine.abort_upload(bucket, key.as_bytes(), id).await.expect("it is open");
                }
                truth.borrow_mut().never.entry(key).or_default().push(content);
            }
            19 => {
                // A client that sends everything and goes away before its put.
                let key = format!("given-up-{}", random.below(3));
                let content = Content { len: 60_000 + random.below(100_000) as usize, tag };
                let mut writer = engine.write(bucket, key.as_bytes(), Some(content.len as u64));
                writer.write(&content.bytes(0..content.len)).await.expect("there is room");
                drop(writer.finish().await.expect("no device fails"));
                truth.borrow_mut().never.entry(key).or_default().push(content);
            }
            20 => {
                let gone = engine.create_bucket("gone", Vec::new()).await.expect("it was deleted").id;
                let content = Content { len: 100_000, tag };
                put(engine, gone, "gone", content).await;
                engine.delete(gone, b"gone", None).await.expect("no device fails");
                engine.delete_bucket("gone").await.expect("it is empty");
                truth.borrow_mut().push("gone", Some(content));
                truth.borrow_mut().push("gone", None);
            }
            _ => engine.checkpoint().await.expect("there is room"),
        }
    }
}

/// Overwrites what the index consists of, on every disk.
fn wipe(world: &World, layout: Layout, random: &mut Random) {
    let (roots, tables) = [(true, true), (true, false), (false, true)][random.below(3) as usize];
    for name in layout.disk_names() {
        let disk = world.disk(&name);
        for file in disk.files() {
            let lost = roots && file.ends_with(".root") || tables && file.ends_with(".table");
            let len = disk.file_len(&file).unwrap_or(0) as usize;
            if lost && len > 0 {
                let byte = if random.coin() { 0 } else { 0xa5 };
                disk.overwrite(&file, 0, &vec![byte; len]);
            }
        }
    }
}

/// Flips bits in logs and data of one disk.
fn rot(world: &World, layout: Layout, random: &mut Random) {
    let names = layout.disk_names();
    let disk = world.disk(&names[random.below(names.len() as u64) as usize]);
    for file in disk.files() {
        let len = disk.file_len(&file).unwrap_or(0);
        if (file.ends_with(".log") || file.ends_with(".data")) && len > 0 {
            for _ in 0..100 {
                disk.corrupt(&file, random.below(len), 1 << random.below(8));
            }
        }
    }
}

async fn run(core: Core, paths: Vec<PathBuf>) -> Result<Summary, RebuildError> {
    let options = RebuildOptions { force: false, etags: true };
    rebuild(&core, &paths, &options, &mut |_| {}).await
}

fn boot(world: &mut World) -> Core {
    world.boot(1).remove(0)
}

/// What was reported: lines by shard, and where the names of buckets come from.
type Told = (BTreeMap<u16, Vec<Line>>, BTreeMap<u64, NameSource>);

/// Rebuilds, cut off a few times before it gets through. Says also which lines all runs had: shards that a run
/// has finished are not in the next one's.
fn rebuild_at_last(
    world: &mut World,
    paths: &[PathBuf],
    force: bool,
    random: &mut Random,
) -> (Summary, Told) {
    let (mut by_shard, mut named) = Told::default();
    let mut attempts = random.below(4);
    loop {
        let core = boot(world);
        let own = paths.to_vec();
        let lines = Rc::new(RefCell::new(Vec::new()));
        let seen = Rc::clone(&lines);
        let task = async move {
            let options = RebuildOptions { force, etags: true };
            let mut report = |line: &Line| seen.borrow_mut().push(line.clone());
            rebuild(&core, &own, &options, &mut report).await
        };
        let events = if attempts > 0 { 1 + random.below(4000) } else { u64::MAX };
        let done = world.run_events(events, task);
        let mut newer: BTreeMap<u16, Vec<Line>> = BTreeMap::new();
        for line in lines.take() {
            match &line {
                Line::Log { shard, .. } => newer.entry(*shard).or_default().push(line),
                Line::Entry(entry) => newer.entry(entry.shard).or_default().push(line),
                // A later run takes an index that this one made for one that was never lost.
                Line::Bucket { id, source, .. } => {
                    named.entry(*id).or_insert(*source);
                }
            }
        }
        by_shard.extend(newer);
        match done {
            Some(Ok(summary)) => return (summary, (by_shard, named)),
            // Cut off behind its last root.
            Some(Err(RebuildError::Valid)) => return (Summary::default(), (by_shard, named)),
            Some(Err(error)) => panic!("no rebuild: {error}"),
            None => {}
        }
        attempts -= 1;
        world.crash(if random.coin() { Crash::PowerCut } else { Crash::Kill });
        world.run_until_idle();
        if force {
            // What was there still is, or its successor.
            expect_valid(world, paths);
        }
    }
}

/// Every index opens, so that nothing is left to do.
fn expect_valid(world: &mut World, paths: &[PathBuf]) {
    let (core, paths) = (boot(world), paths.to_vec());
    let needless = world.run(run(core, paths));
    assert!(matches!(needless, Err(RebuildError::Valid)), "{needless:?}");
    world.crash(Crash::Kill);
    world.run_until_idle();
}

async fn read(engine: &Engine, bucket: u64, key: &[u8]) -> Option<(Vec<u8>, [u8; 16])> {
    let reader = engine.open(bucket, key).await.expect("the index is whole")?;
    let mut body = reader.read(0..reader.object().len).await.expect("it can be read");
    let mut bytes = Vec::new();
    while let Some(piece) = body.next().await {
        bytes.extend_from_slice(&piece.expect("no byte is lost"));
    }
    Some((bytes, reader.object().etag))
}

async fn names(engine: &Engine, bucket: u64) -> Vec<Vec<u8>> {
    let query = ListQuery {
        bucket,
        prefix: Vec::new(),
        delimiter: Vec::new(),
        start: ListStart::First,
        limit: 10_000,
    };
    let page = engine.list(&query).await.expect("the index is whole");
    page.items.iter().map(|item: &ListItem| item.name().to_vec()).collect()
}

/// Compares what the rebuilt deployment serves with what is true and with what was reported.
async fn judge(engine: &Engine, truth: &Truth, (lines, named): &Told) {
    let entries: Vec<&Entry> = lines
        .values()
        .flatten()
        .filter_map(|line| match line {
            Line::Entry(entry) => Some(entry),
            _ => None,
        })
        .collect();
    let mut recovered: BTreeMap<(u64, Vec<u8>), (&How, u64)> = BTreeMap::new();
    for entry in &entries {
        match &entry.fate {
            Fate::Recovered(How::Upload { .. }) => {}
            Fate::Recovered(how) => {
                let twice = recovered.insert((entry.bucket, entry.name.clone()), (how, entry.len));
                assert!(twice.is_none(), "{entry:?}: reported twice");
            }
            Fate::NotRecovered(Why::Lost(what) | Why::Incomplete(what)) => {
                let current = truth.current(&String::from_utf8_lossy(&entry.name));
                let same = current.is_some_and(|current| current.len as u64 == entry.len);
                assert!(!same, "{entry:?} was live: {what}");
            }
            Fate::NotRecovered(_) => {}
        }
    }
    let mut served: BTreeSet<(u64, Vec<u8>)> = BTreeSet::new();
    for bucket in engine.buckets().all() {
        match (bucket.name.as_str(), named[&bucket.id]) {
            (BUCKET, _) | ("gone", NameSource::LastKnown) => {}
            (name, source) => assert!(name.starts_with("recovered-"), "{name} is told to be {source:?}"),
        }
        let names = names(engine, bucket.id).await;
        served.extend(names.into_iter().map(|name| (bucket.id, name)));
    }
    assert_eq!(
        served.iter().collect::<Vec<_>>(),
        recovered.keys().collect::<Vec<_>>(),
        "served and reported"
    );
    for (bucket, name) in served.iter().filter(|(_, name)| *name == b"gone") {
        let (bytes, _) = read(engine, *bucket, name).await.expect("it is listed");
        let is = |content: &Content| bytes == content.bytes(0..content.len);
        assert!(truth.contents("gone").iter().any(is), "bytes that nobody sent");
        assert_ne!(recovered[&(*bucket, name.clone())].0, &How::Current);
    }
    // All other names are in one bucket.
    let bucket = served.iter().find(|(_, name)| *name != b"gone").map_or(0, |(bucket, _)| *bucket);
    let keys: BTreeSet<&String> = truth.states.keys().chain(truth.never.keys()).collect();
    for key in keys.into_iter().filter(|key| *key != "gone") {
        let found = read(engine, bucket, key.as_bytes()).await;
        let contents = truth.contents(key);
        let is = |content: &&Content| {
            found.as_ref().is_some_and(|(bytes, _)| *bytes == content.bytes(0..content.len))
        };
        let content = contents.iter().rev().find(is).copied();
        let told = recovered.get(&(bucket, key.as_bytes().to_vec())).map(|(how, _)| (*how).clone());
        let cut = matches!(told, Some(How::Parts { end_seen: false, .. }));
        let cut_is = |content: &Content| {
            found.as_ref().is_some_and(|(bytes, _)| {
                bytes.len().is_multiple_of(part_len(content))
                    && content.bytes(0..content.len).starts_with(bytes)
            })
        };
        let explained = content.is_some() || cut && contents.iter().any(cut_is);
        assert_eq!(found.is_some(), explained, "{key}: bytes that nobody sent, told {told:?}");
        let current = truth.current(key);
        if told == Some(How::Current) || current.is_some() {
            assert_eq!(content, current, "{key} is told to be {told:?}");
        }
        if let (Some((bytes, etag)), Some(How::Directory { etag: ETagSource::Bytes })) = (found, told) {
            let mut md5 = Md5::new();
            md5.update(&bytes);
            assert_eq!(etag, md5.finalize(), "{key}");
        }
    }
    let mut names = served.iter().map(|(_, name)| String::from_utf8_lossy(name));
    assert!(names.all(|name| !truth.contents(&name).is_empty()), "a name that nobody used");
}

/// The deployment takes writes, and gives everything back that it counted as live.
async fn use_it(cluster: &Cluster, truth: &Truth, random: &mut Random) {
    let engine = cluster.any(random);
    if engine.buckets().get(BUCKET).is_none() {
        engine.create_bucket(BUCKET, Vec::new()).await.expect("the name is free");
    }
    for bucket in engine.buckets().all() {
        for len in [5_000, 150_000] {
            put(&engine, bucket.id, "folder/k1", Content { len, tag: 7 }).await;
            let (bytes, _) = read(&engine, bucket.id, b"folder/k1").await.expect("just put");
            assert!(bytes == Content { len, tag: 7 }.bytes(0..len));
        }
        let query = UploadQuery {
            bucket: bucket.id,
            prefix: Vec::new(),
            delimiter: Vec::new(),
            start: UploadStart::First,
            limit: 1000,
        };
        for item in engine.list_uploads(&query).await.expect("the index is whole").items {
            if let basalt_engine::UploadItem::Upload { name, id, .. } = item {
                let (_, parts) = engine.all_parts(bucket.id, &name, id).await.expect("it is listed");
                let draft = ObjectDraft::default();
                let numbers: Vec<usize> = parts.iter().map(|part| usize::from(part.number)).collect();
                engine
                    .complete_upload(bucket.id, &name, id, draft, parts, None)
                    .await
                    .expect("all are there");
                let (bytes, _) = read(&engine, bucket.id, &name).await.expect("just completed");
                let is = |content: &Content| {
                    let whole = content.bytes(0..content.len);
                    let parts =
                        numbers.iter().filter_map(|number| whole.chunks(part_len(content)).nth(number - 1));
                    bytes == parts.collect::<Vec<_>>().concat()
                };
                let contents = truth.contents(&String::from_utf8_lossy(&name));
                assert!(contents.iter().any(is), "{id:02x?}: parts {numbers:?} that nobody sent so");
            }
        }
        for name in names(&engine, bucket.id).await {
            read(&engine, bucket.id, &name).await.expect("it is listed");
            engine.delete(bucket.id, &name, None).await.expect("no device fails");
        }
    }
    expect_empty(cluster, &engine).await;
}

fn scenario(seed: u64) -> (Summary, u64) {
    let mut random = Random::new(seed ^ 0x1dea);
    let layout = Layout::draw(&mut random);
    let mut world = layout.world(seed, CAPACITY);
    let truth: Rc<RefCell<Truth>> = Rc::default();
    for _ in 0..1 + random.below(3) {
        let cores = world.boot(1 + random.below(2) as u16);
        let (truth, mut own) = (Rc::clone(&truth), random.fork());
        let count = 30 + random.below(200);
        world.run(async move {
            let cluster = Cluster::start(cores, layout).await;
            let engine = cluster.any(&mut own);
            work(&engine, &truth, &mut own, count).await;
        });
        world.crash(if random.coin() { Crash::PowerCut } else { Crash::Kill });
        world.run_until_idle();
    }
    let force = random.below(5) == 0;
    if !force {
        wipe(&world, layout, &mut random);
    }
    let mut paths: Vec<PathBuf> = layout.disk_names().into_iter().map(PathBuf::from).collect();
    match random.below(3) {
        0 if layout.m > 0 && !force => rot(&world, layout, &mut random),
        1 if layout.m > 0 && !force => {
            paths.remove(random.below(paths.len() as u64) as usize);
        }
        _ => {}
    }
    let (summary, told) = rebuild_at_last(&mut world, &paths, force, &mut random);
    world.crash(Crash::PowerCut);
    expect_valid(&mut world, &paths);
    let lists = told.0.values().flatten().filter(|line| is_listed(line)).count() as u64;
    let cores = world.boot(1 + random.below(2) as u16);
    let (mut own, truth) = (random.fork(), truth.take());
    world.run(async move {
        let cluster = Cluster::start(cores, layout).await;
        judge(&cluster.any(&mut own), &truth, &told).await;
        use_it(&cluster, &truth, &mut own).await;
    });
    world.crash(Crash::PowerCut);
    let cores = world.boot(1);
    world.run(async move { drop(Cluster::start(cores, layout).await) });
    (summary, lists)
}

/// Whether the line is of an object whose parts a blob lists.
fn is_listed(line: &Line) -> bool {
    matches!(
        line,
        Line::Entry(Entry { fate: Fate::Recovered(How::Parts { count: 100.., end_seen: true, .. }), .. })
    )
}

#[test]
fn a_lost_index_comes_back_from_log_and_directories() {
    let (mut total, mut lists) = (Summary::default(), 0);
    for seed in seeds(15) {
        let (summary, listed) = scenario(seed);
        lists += listed;
        total.shards += summary.shards;
        total.current += summary.current;
        total.last_known += summary.last_known;
        total.from_directories += summary.from_directories;
        total.uploads += summary.uploads;
        total.left_behind += summary.left_behind;
        total.buckets_invented += summary.buckets_invented;
    }
    println!("{total:?}, {lists} from lists of parts");
    let outcome = client::Outcome::default();
    must_reach(total.current > 0 && total.last_known > 0 && total.from_directories > 0, &outcome);
    must_reach(total.uploads > 0 && total.left_behind > 0, &outcome);
}

/// In one a part's first segment was copied alone, in the other a part's blocks were taken over.
#[test]
fn parts_of_which_some_is_lost_are_not_taken_for_whole() {
    scenario(78);
    scenario(399);
}
