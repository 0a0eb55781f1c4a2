//! Large bodies that collection has moved, with the blobs that say what they consist of: they are checked, and rebuilt, where they lie
//! now, whatever their old places still say.

use std::collections::BTreeMap;

use basalt_engine::offline::rebuild::{Entry, Fate, How, Line, RebuildOptions, rebuild};
use basalt_engine::value::{Body, Object};
use basalt_engine::{Engine, ObjectDraft};
use basalt_md5::Md5;
use basalt_reactor::sim::{Crash, Random};

use super::Filled;
use crate::client::{BUCKET, Shared};
use crate::cluster::{Cluster, Layout};
use crate::model::Content;

const LAYOUT: Layout = Layout { k: 2, m: 1, sets: 1, metadata: 0, spare: 0, shards: 1, strip_len: 4096 };

const CAPACITY: u64 = 192 << 20;

/// What a large object consists of: one content, or one for each part. Its ETag is the one S3 gives it.
#[derive(Clone)]
pub(super) struct Large {
    contents: Vec<Content>,
    is_multipart: bool,
}

impl Large {
    fn bytes(&self) -> Vec<u8> {
        self.contents.iter().flat_map(|content| content.bytes(0..content.len)).collect()
    }

    fn etag(&self) -> [u8; 16] {
        let own = |content: &Content| md5(&content.bytes(0..content.len));
        if self.is_multipart {
            md5(&self.contents.iter().flat_map(own).collect::<Vec<_>>())
        } else {
            own(&self.contents[0])
        }
    }

    fn part_count(&self) -> u32 {
        if self.is_multipart { self.contents.len() as u32 } else { 0 }
    }

    fn draft(&self) -> ObjectDraft {
        let attributes = vec![("content-type".to_owned(), "text/plain".to_owned())];
        ObjectDraft { etag: self.etag(), attributes, ..ObjectDraft::default() }
    }
}

fn md5(bytes: &[u8]) -> [u8; 16] {
    let mut md5 = Md5::new();
    md5.update(bytes);
    md5.finalize()
}

async fn put_filler(engine: &Engine, bucket: u64, fillers: &mut Vec<String>, random: &mut Random) {
    let name = format!("filler-{}", fillers.len());
    let content = Content { len: 150_000 + random.below(100_000) as usize, tag: random.next_u64() };
    put_whole(engine, bucket, &name, &Large { contents: vec![content], is_multipart: false }).await;
    fillers.push(name);
}

async fn put_whole(engine: &Engine, bucket: u64, name: &str, large: &Large) {
    let mut writer = engine.write(bucket, name.as_bytes(), None);
    writer.write(&large.bytes()).await.expect("there is room");
    let body = writer.finish().await.expect("there is room");
    engine.put(bucket, name.as_bytes(), large.draft(), body, None).await.expect("there is room");
}

/// Puts objects whose descriptions are too long for a value, with others between their pieces that are deleted then.
async fn fill(engine: &Engine, bucket: u64, random: &mut Random) -> BTreeMap<String, Large> {
    let (mut truth, mut fillers) = (BTreeMap::new(), Vec::new());
    for turn in 0..2 {
        let name = format!("spilled-{turn}");
        let content = Content { len: 2_600_000 + random.below(400_000) as usize, tag: random.next_u64() };
        let large = Large { contents: vec![content], is_multipart: false };
        let mut writer = engine.write(bucket, name.as_bytes(), None);
        for piece in large.bytes().chunks(400_000) {
            writer.write(piece).await.expect("there is room");
            put_filler(engine, bucket, &mut fillers, random).await;
        }
        let body = writer.finish().await.expect("there is room");
        engine.put(bucket, name.as_bytes(), large.draft(), body, None).await.expect("there is room");
        truth.insert(name, large);

        let name = format!("listed-{turn}");
        let draw = |random: &mut Random| Content { len: 160_000, tag: random.next_u64() };
        let mut contents: Vec<Content> = (0..55).map(|_| draw(random)).collect();
        // One of them has its own blob.
        contents[20].len = 2_200_000;
        let large = Large { contents, is_multipart: true };
        let upload =
            engine.create_upload(bucket, name.as_bytes(), Vec::new(), 0, false).await.expect("it opens");
        for (index, part) in large.contents.iter().enumerate() {
            let number = index as u16 + 1;
            let mut writer = engine.write_part(bucket, name.as_bytes(), None).for_part(upload, number);
            writer.write(&part.bytes(0..part.len)).await.expect("there is room");
            let body = writer.finish().await.expect("there is room");
            let etag = md5(&part.bytes(0..part.len));
            engine
                .put_part(bucket, name.as_bytes(), upload, number, etag, None, body)
                .await
                .expect("it is open");
            if index % 2 == 0 {
                put_filler(engine, bucket, &mut fillers, random).await;
            }
        }
        let (_, parts) = engine.all_parts(bucket, name.as_bytes(), upload).await.expect("it is open");
        let completed = engine.complete_upload(bucket, name.as_bytes(), upload, large.draft(), parts, None);
        completed.await.expect("all are there");
        truth.insert(name, large);
    }
    for name in fillers {
        engine.delete(bucket, name.as_bytes(), None).await.expect("it is there");
    }
    truth
}

async fn object_of(engine: &Engine, bucket: u64, name: &str) -> Object {
    let reader = engine.open(bucket, name.as_bytes()).await.expect("it reads").expect("it is there");
    reader.object().clone()
}

/// A deployment in which collection has moved such objects, and others lie where they were.
pub(super) fn moved(seed: u64) -> (Filled, BTreeMap<String, Large>) {
    let mut world = LAYOUT.world(seed, CAPACITY);
    let cores = world.boot(1);
    let truth = world.run(async move {
        let mut random = Random::new(seed);
        let cluster = Cluster::start(cores, LAYOUT).await;
        let engine = cluster.any(&mut random);
        let bucket = engine.create_bucket(BUCKET, Vec::new()).await.expect("it is new").id;
        let mut truth = fill(&engine, bucket, &mut random).await;
        let mut before = BTreeMap::new();
        for name in truth.keys() {
            before.insert(name.clone(), object_of(&engine, bucket, name).await.body);
        }
        for round in 0..3 {
            engine.checkpoint().await.expect("there is room");
            // As if space were short it would go on and on: what is left at the ends of extents.
            for _ in 0..40 {
                if !engine.collect().await.expect("no device fails") {
                    break;
                }
            }
            // What was moved is moved again, among others.
            let mut fillers = Vec::new();
            for index in 0..25 {
                let content = Content { len: 500_000, tag: random.next_u64() };
                let large = Large { contents: vec![content], is_multipart: false };
                let name = format!("new-{round}-{index}");
                put_whole(&engine, bucket, &name, &large).await;
                if round == 2 {
                    truth.insert(name, large);
                } else {
                    fillers.push(name)
                }
            }
            for name in fillers {
                engine.delete(bucket, name.as_bytes(), None).await.expect("it is there");
            }
        }
        engine.checkpoint().await.expect("there is room");
        for (name, before) in before {
            let now = object_of(&engine, bucket, &name).await.body;
            assert_ne!(now, before, "{name} was not moved");
            let is_in_blobs = match now {
                Body::Spilled { .. } => name.starts_with("spilled"),
                Body::SpilledParts { .. } => name.starts_with("listed"),
                _ => false,
            };
            assert!(is_in_blobs, "{name}");
        }
        truth
    });
    world.crash(Crash::Kill);
    world.run_until_idle();
    (Filled { world, shared: Shared::new(), layout: LAYOUT }, truth)
}

/// Overwrites files of these kinds on every disk.
fn wipe(filled: &Filled, kinds: &[&str]) {
    for name in LAYOUT.disk_names() {
        let disk = filled.world.disk(&name);
        for file in disk.files() {
            let len = disk.file_len(&file).unwrap_or(0) as usize;
            if kinds.iter().any(|kind| file.ends_with(kind)) && len > 0 {
                disk.overwrite(&file, 0, &vec![0; len]);
            }
        }
    }
}

#[test]
fn what_was_moved_with_its_blobs_is_checked_and_rebuilt() {
    for (seed, lost) in [
        (1, &[".root", ".table"][..]),
        (2, &[".root", ".table", ".log"]),
        (3, &[".root"]),
        (4, &[".root", ".table", ".log"]),
    ] {
        let (mut filled, truth) = moved(seed);
        let report = filled.check(filled.paths(), false);
        assert!(report.is_clean(), "{:?}", report.faults);
        assert_eq!(report.object_count, truth.len() as u64);
        wipe(&filled, lost);
        let (core, paths) = (filled.world.boot(1).remove(0), filled.paths());
        let told = filled.world.run(async move {
            let options = RebuildOptions { force: false, etags: true };
            let (mut recovered, mut rest) = (BTreeMap::new(), Vec::new());
            let mut report = |line: &Line| match line {
                Line::Entry(Entry { fate: Fate::Recovered(How::Upload { .. }), .. }) => {}
                Line::Entry(Entry { name, fate: Fate::Recovered(how), .. }) => {
                    recovered.insert(String::from_utf8_lossy(name).into_owned(), how.clone());
                }
                Line::Entry(entry) => rest.push(entry.clone()),
                Line::Log { .. } | Line::Bucket { .. } => {}
            };
            let summary = rebuild(&core, &paths, &options, &mut report).await.expect("it rebuilds");
            // What was deleted is told in pieces.
            assert_eq!(summary.damaged, 0, "{rest:?}");
            recovered
        });
        filled.world.crash(Crash::PowerCut);
        let cores = filled.world.boot(1);
        filled.world.run(async move {
            let cluster = Cluster::start(cores, LAYOUT).await;
            let engine = &cluster.engines[0];
            let buckets = engine.buckets().all();
            let bucket = buckets.first().expect("there is one").id;
            for (name, large) in &truth {
                let how = told.get(name).unwrap_or_else(|| panic!("seed {seed}: {name} is not told"));
                let reader = engine.open(bucket, name.as_bytes()).await.expect("it reads");
                let reader =
                    reader.unwrap_or_else(|| panic!("seed {seed}: {name} is not there, told as {how:?}"));
                let object = reader.object();
                assert_eq!(
                    (object.etag, object.part_count),
                    (large.etag(), large.part_count()),
                    "{name}: {how:?}"
                );
                assert_eq!(
                    object.attributes.is_empty(),
                    !matches!(how, How::Current | How::LastKnown),
                    "{name}: {how:?}"
                );
                let mut body = reader.read(0..object.len).await.expect("it begins");
                let mut bytes = Vec::new();
                while let Some(piece) = body.next().await {
                    bytes.extend_from_slice(&piece.expect("no byte is lost"));
                }
                assert!(bytes == large.bytes(), "{name}: {how:?}");
            }
        });
        filled.world.crash(Crash::Kill);
        filled.world.run_until_idle();
        let report = filled.check(filled.paths(), false);
        assert!(report.is_clean(), "seed {seed}: {:?}", report.faults);
    }
}
