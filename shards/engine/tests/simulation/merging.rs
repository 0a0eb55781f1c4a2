//! Multipart objects of short parts: at rest they lie in one piece, take no more than if they had been put so, and are for clients
//! what they were. Cut off, outrun, without room or beside damage, merging changes nothing.

use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use basalt_engine::format::part_list::PartSpan;
use basalt_engine::offline::rebuild::{Entry, Fate, How, Line, RebuildOptions, rebuild};
use basalt_engine::value::{Body, Checksum, Object};
use basalt_engine::{Engine, EngineError, ObjectDraft, ObjectReader};
use basalt_reactor::sim::{Crash, Random, World};

use crate::client::{Client, Outcome, Shared, bucket_id, expect_empty};
use crate::cluster::{Cluster, Layout};
use crate::collection::{note_moves, outcome_of};
use crate::model::Content;
use crate::uploads::open_uploads;

const NAME: &str = "folder/of parts";

/// Time in which whatever is proposed has been merged, and what that leaves is freed.
const A_WHILE: Duration = Duration::from_secs(30);

/// A multipart object as it was put.
#[derive(Clone)]
struct Parts {
    parts: Vec<(u16, Content)>,
    tag: u64,
}

impl Parts {
    /// `count` parts of at most `len_max` bytes, some of them empty, numbered with holes.
    fn draw(random: &mut Random, count: usize, len_max: u64) -> Parts {
        let mut number = 0;
        let parts = (0..count).map(|_| {
            number += 1 + random.below(2) as u16;
            let len = if random.below(20) == 0 { 0 } else { 1 + random.below(len_max) };
            (number, Content { len: len as usize, tag: random.next_u64() })
        });
        Parts { parts: parts.collect(), tag: random.next_u64() }
    }

    fn len(&self) -> usize {
        self.parts.iter().map(|(_, part)| part.len).sum()
    }

    fn content(&self) -> Content {
        Content { len: self.len(), tag: self.tag }
    }

    fn bytes(&self) -> Vec<u8> {
        self.parts.iter().flat_map(|(_, part)| part.bytes(0..part.len)).collect()
    }

    fn spans(&self) -> Vec<PartSpan> {
        let parts = self.parts.iter();
        parts.map(|&(number, part)| span(number, part)).collect()
    }

    /// Uploads them out of order, and completes.
    async fn put(&self, engine: &Engine, bucket: u64, random: &mut Random) -> Result<(), EngineError> {
        self.put_as(NAME, engine, bucket, random).await
    }

    async fn put_as(
        &self,
        name: &str,
        engine: &Engine,
        bucket: u64,
        random: &mut Random,
    ) -> Result<(), EngineError> {
        let name = name.as_bytes();
        let id = engine.create_upload(bucket, name, Vec::new(), 0, false).await?;
        let mut left = self.parts.clone();
        while !left.is_empty() {
            let (number, part) = left.swap_remove(random.below(left.len() as u64) as usize);
            let mut writer = engine.write_part(bucket, name, Some(part.len as u64)).for_part(id, number);
            writer.write(&part.bytes(0..part.len)).await?;
            let body = writer.finish().await?;
            let checksum = span(number, part).checksum;
            engine.put_part(bucket, name, id, number, part.etag(), checksum, body).await?;
        }
        let (_, parts) = engine.all_parts(bucket, name, id).await?;
        let attributes = vec![("content-type".to_owned(), "text/plain".to_owned())];
        let draft = ObjectDraft { etag: self.content().etag(), attributes, ..ObjectDraft::default() };
        engine.complete_upload(bucket, name, id, draft, parts, None).await.map(drop)
    }

    /// Compares all that a client can see of the object.
    async fn check(&self, reader: &ObjectReader, random: &mut Random) {
        let object = reader.object();
        assert_eq!((object.len, object.etag), (self.len() as u64, self.content().etag()));
        assert_eq!(object.part_count as usize, self.parts.len());
        assert_eq!(object.attributes.len(), 1);
        assert_eq!(reader.parts().await.expect("it reads"), self.spans());
        let expected = self.bytes();
        let mut at = 0;
        for (index, span) in self.spans().iter().enumerate() {
            let range = at..at + span.len;
            assert_eq!(reader.part_extent(span.number).await.expect("it reads"), Some(range.clone()));
            if index % 16 == 0 {
                self.check_range(reader, range, &expected).await;
            }
            at += span.len;
        }
        assert_eq!(reader.part_extent(9999).await.expect("it reads"), None);
        for _ in 0..8 {
            let (a, b) = (random.below(at + 1), random.below(at + 1));
            self.check_range(reader, a.min(b)..a.max(b), &expected).await;
        }
        self.check_range(reader, 0..at, &expected).await;
    }

    async fn check_range(&self, reader: &ObjectReader, range: std::ops::Range<u64>, expected: &[u8]) {
        let got = read(reader, range.clone()).await.expect("it reads");
        assert!(got == expected[range.start as usize..range.end as usize], "bytes {range:?}");
    }
}

fn span(number: u16, part: Content) -> PartSpan {
    // Some have none, and not all are of one kind.
    let checksum = (!number.is_multiple_of(5)).then(|| Checksum {
        algorithm: 2,
        composite: number.is_multiple_of(7),
        value: part.tag.to_le_bytes()[..4].to_vec(),
    });
    PartSpan { number, len: part.len as u64, checksum }
}

async fn read(reader: &ObjectReader, range: std::ops::Range<u64>) -> Result<Vec<u8>, EngineError> {
    let mut body = reader.read(range).await?;
    let mut got = Vec::new();
    while let Some(bytes) = body.next().await {
        got.extend_from_slice(&bytes?);
    }
    Ok(got)
}

async fn open(engine: &Engine, bucket: u64) -> ObjectReader {
    open_as(NAME, engine, bucket).await
}

async fn open_as(name: &str, engine: &Engine, bucket: u64) -> ObjectReader {
    engine.open(bucket, name.as_bytes()).await.expect("nothing is damaged").expect("it is there")
}

/// Column bytes of an object, on each disk.
fn taken(object: &Object) -> u64 {
    object.footprint.iter().map(|print| print.bytes).sum()
}

fn is_merged(object: &Object) -> bool {
    object.merged_parts().expect("it is whole").is_some()
}

/// Segments of a body that is described in its value.
fn segment_count(object: &Object) -> usize {
    match &object.body {
        Body::Striped(striped) => striped.segments.len(),
        Body::Spilled { map } => map.segments.len(),
        other => panic!("not one body: {other:?}"),
    }
}

async fn moved_count(cluster: &Cluster) -> u64 {
    cluster.engines.iter().flat_map(Engine::stats).map(|(_, stats)| stats.moved_count).sum()
}

/// Objects of 50 to 1000 short parts, in geometries of real deployments and in tiny ones.
pub(crate) fn at_rest(seed: u64) -> Outcome {
    let shared = Shared::new();
    for (k, m, strip_len, count, len_max) in [
        (1, 0, 4096, 50, 9000),
        (2, 1, 8192, 1000, 5000),
        (4, 2, 65_536, 120, 90_000),
        (2, 2, 4096, 400, 20_000),
    ] {
        let layout = Layout { k, m, sets: 1, metadata: 0, spare: 0, shards: 1, strip_len };
        let mut world = layout.world(seed, 256 << 20);
        let cores = world.boot(1);
        let state = Rc::clone(&shared);
        world.run(async move {
            let mut random = Random::new(seed);
            let cluster = Cluster::start(cores, layout).await;
            let engine = cluster.any(&mut random);
            let bucket = bucket_id(&engine, &state).await.expect("no device fails");
            let parts = Parts::draw(&mut random, count, len_max);
            parts.put(&engine, bucket, &mut random).await.expect("there is room");
            let before = open(&engine, bucket).await;
            assert!(!is_merged(before.object()), "it was completed just now");
            parts.check(&before, &mut random).await;
            engine.core().sleep(A_WHILE).await;
            // Whoever began before goes on with what was there.
            parts.check(&before, &mut random).await;
            let (uuid, modified) = (before.object().uuid, before.object().modified);
            let apart = taken(before.object());
            drop(before);
            while engine.collect().await.expect("no device fails") {}
            let after = open(&engine, bucket).await;
            assert!(is_merged(after.object()));
            assert_eq!((after.object().uuid, after.object().modified), (uuid, modified));
            parts.check(&after, &mut random).await;

            let mut writer = engine.write(bucket, b"whole", Some(parts.len() as u64));
            writer.write(&parts.bytes()).await.expect("there is room");
            let body = writer.finish().await.expect("there is room");
            let draft = ObjectDraft { etag: parts.content().etag(), ..ObjectDraft::default() };
            engine.put(bucket, b"whole", draft, body, None).await.expect("there is room");
            let whole = engine.open(bucket, b"whole").await.expect("no device fails").expect("it was put");
            let merged = after.object();
            println!(
                "{layout:?}: {count} parts, {} segments (put whole: {}), {} blocks (apart {}, whole {})",
                segment_count(merged),
                segment_count(whole.object()),
                taken(merged) / 4096,
                apart / 4096,
                taken(whole.object()) / 4096,
            );
            let extents = merged.len.div_ceil(layout.geometry().data_slot_len * u64::from(k)) as usize;
            assert!(segment_count(merged) <= extents + 2, "{} segments", segment_count(merged));
            let record = merged.record_place().expect("it is whole").expect("it has one");
            let beside = record.len / u64::from(k) + 3 * 4096;
            let most = taken(whole.object()) * 102 / 100 + beside;
            assert!(taken(merged) <= most, "it takes more than in one piece, with its record");
            assert!(taken(merged) < apart);
            drop((after, whole));

            // It is not merged again, whoever comes by.
            let count = moved_count(&cluster).await;
            engine.start_scrub(Duration::from_secs(2));
            engine.core().sleep(A_WHILE).await;
            assert_eq!(moved_count(&cluster).await, count, "it was moved again");
            state.outcome.borrow_mut().merged += 1;
            state.outcome.borrow_mut().verified += 1;
            for name in [NAME, "whole"] {
                engine.delete(bucket, name.as_bytes(), None).await.expect("it is there");
            }
            engine.core().sleep(A_WHILE).await;
            expect_empty(&cluster, &engine).await;
        });
        shared.outcome.borrow_mut().trace ^= world.trace_hash();
    }
    shared.outcome.borrow().clone()
}

/// Crashes until the object is merged: in between it is there as a whole, and in the end everything comes back.
pub(crate) fn cut_off(seed: u64) -> Outcome {
    let mut random = Random::new(seed ^ 0x3e6e);
    let layout = Layout::draw(&mut random);
    let mut world = layout.world(seed, 96 << 20);
    let shared = Shared::new();
    let parts = Parts::draw(&mut random, 80, 12_000);
    let rounds = 4 + random.below(5);
    for round in 0..=rounds {
        let cores = world.boot(1 + random.below(2) as u16);
        let (state, parts, mut own) = (Rc::clone(&shared), parts.clone(), random.fork());
        let last = round == rounds;
        let work = async move {
            let cluster = Cluster::start(cores, layout).await;
            let engine = cluster.any(&mut own);
            let bucket = bucket_id(&engine, &state).await.expect("no device fails");
            if engine.lookup(bucket, NAME.as_bytes()).await.expect("nothing is damaged").is_none() {
                parts.put(&engine, bucket, &mut own).await.expect("there is room");
            }
            let reader = open(&engine, bucket).await;
            parts.check(&reader, &mut own).await;
            state.outcome.borrow_mut().verified += 1;
            drop(reader);
            if !last {
                engine.core().sleep(A_WHILE).await;
                return;
            }
            engine.core().sleep(A_WHILE).await;
            let reader = open(&engine, bucket).await;
            // In all rounds before it was proposed again.
            assert!(is_merged(reader.object()), "{:?}", reader.object());
            parts.check(&reader, &mut own).await;
            state.outcome.borrow_mut().merged += 1;
            drop(reader);
            // Of a round that crashed while it uploaded.
            for (name, id) in open_uploads(&engine, bucket).await {
                engine.abort_upload(bucket, &name, id).await.expect("it is open");
            }
            engine.delete(bucket, NAME.as_bytes(), None).await.expect("it is there");
            engine.core().sleep(A_WHILE).await;
            expect_empty(&cluster, &engine).await;
        };
        if last {
            world.run(work);
        } else {
            // The first round often ends while the object is put, later ones while it is merged.
            let events = if round == 0 { 3000 + random.below(4000) } else { 300 + random.below(3000) };
            let done = world.run_events(events, work).is_some();
            shared.outcome.borrow_mut().crashes += u64::from(!done);
            world.crash(if random.coin() { Crash::PowerCut } else { Crash::Kill });
        }
    }
    outcome_of(&world, &shared)
}

/// Every copy of the index is lost, and the log with it: an object whose parts were merged comes back with its parts, its ETag and
/// its metadata, from directories alone; where it was merged to, or where collection has moved it since.
pub(crate) fn rebuilt(seed: u64) -> Outcome {
    let mut random = Random::new(seed ^ 0x3e6e_1dea);
    let (k, m) = [(1, 0), (1, 1), (2, 1), (2, 2)][random.below(4) as usize];
    let layout = Layout { shards: 1, ..Layout::of(k, m, &mut random) };
    let mut world = layout.world(seed, 96 << 20);
    let shared = Shared::new();
    let names = ["a", "b", "c", "d"];
    let all: Vec<Parts> = names.iter().map(|_| Parts::draw(&mut random, 60, 12_000)).collect();
    let is_moved = random.coin();
    let (cores, state, own, mut draws) = (world.boot(1), Rc::clone(&shared), all.clone(), random.fork());
    world.run(async move {
        let cluster = Cluster::start(cores, layout).await;
        let engine = cluster.any(&mut draws);
        let bucket = bucket_id(&engine, &state).await.expect("no device fails");
        for (name, parts) in names.iter().zip(&own) {
            parts.put_as(name, &engine, bucket, &mut draws).await.expect("there is room");
        }
        engine.core().sleep(A_WHILE).await;
        let place = async || open_as("b", &engine, bucket).await.object().body.clone();
        let before = place().await;
        if is_moved {
            for name in ["a", "c", "d"] {
                engine.delete(bucket, name.as_bytes(), None).await.expect("it is there");
            }
            engine.checkpoint().await.expect("there is room");
            while engine.collect().await.expect("no device fails") {}
            engine.core().sleep(A_WHILE).await;
            state.outcome.borrow_mut().moved += u64::from(place().await != before);
        }
        let reader = open_as("b", &engine, bucket).await;
        assert!(is_merged(reader.object()), "{:?}", reader.object().body);
        own[1].check(&reader, &mut draws).await;
        drop(reader);
        engine.checkpoint().await.expect("there is room");
    });
    world.crash(Crash::PowerCut);
    for name in layout.disk_names() {
        let disk = world.disk(&name);
        for file in disk
            .files()
            .into_iter()
            .filter(|file| file.ends_with("root") || file.ends_with("table") || file.ends_with("log"))
        {
            let len = disk.file_len(&file).unwrap_or(0) as usize;
            disk.overwrite(&file, 0, &vec![0; len]);
        }
    }
    let paths: Vec<PathBuf> = layout.disk_names().into_iter().map(PathBuf::from).collect();
    let core = world.boot(1).remove(0);
    let told = world.run(async move {
        let (options, mut told) = (RebuildOptions { force: false, etags: true }, Vec::new());
        let mut report = |line: &Line| told.push(line.clone());
        rebuild(&core, &paths, &options, &mut report).await.expect("it rebuilds");
        told
    });
    let how = told.iter().find_map(|line| match line {
        Line::Entry(Entry { name, fate: Fate::Recovered(how), .. }) if name == b"b" => Some(how.clone()),
        _ => None,
    });
    assert_eq!(how, Some(How::LastKnown), "{told:?}");
    world.crash(Crash::PowerCut);
    let (cores, state, mut own) = (world.boot(1), Rc::clone(&shared), random.fork());
    world.run(async move {
        let cluster = Cluster::start(cores, layout).await;
        let engine = cluster.any(&mut own);
        let bucket = engine.buckets().all()[0].id;
        let reader = open_as("b", &engine, bucket).await;
        assert!(is_merged(reader.object()));
        all[1].check(&reader, &mut own).await;
        drop(reader);
        state.outcome.borrow_mut().verified += 1;
        state.outcome.borrow_mut().merged += 1;
        // Parts whose blocks were not taken by others yet.
        for (name, id) in open_uploads(&engine, bucket).await {
            engine.abort_upload(bucket, &name, id).await.expect("it is open");
        }
        for name in names {
            engine.delete(bucket, name.as_bytes(), None).await.expect("nothing is damaged");
        }
        engine.core().sleep(A_WHILE).await;
        expect_empty(&cluster, &engine).await;
    });
    outcome_of(&world, &shared)
}

/// While the parts are copied, the object is overwritten, deleted, uploaded anew; readers go on with what they began with.
pub(crate) fn beside_clients(seed: u64) -> Outcome {
    let mut random = Random::new(seed ^ 0x3e6e_c11e);
    let layout = Layout::draw(&mut random);
    let mut world = layout.world(seed, 96 << 20);
    let shared = Shared::new();
    let cores = world.boot(1 + random.below(2) as u16);
    let (state, mut own) = (Rc::clone(&shared), random.fork());
    world.run(async move {
        let cluster = Cluster::start(cores, layout).await;
        let engine = cluster.any(&mut own);
        let bucket = bucket_id(&engine, &state).await.expect("no device fails");
        let client = Client { engine: engine.clone(), shared: Rc::clone(&state), bucket };
        for _ in 0..24 {
            let count = 40 + own.below(60) as usize;
            let parts = Parts::draw(&mut own, count, 12_000);
            parts.put(&engine, bucket, &mut own).await.expect("there is room");
            let reader = open(&engine, bucket).await;
            engine.core().sleep(Duration::from_micros(own.below(60_000))).await;
            match own.below(4) {
                0 => {
                    engine.delete(bucket, NAME.as_bytes(), None).await.expect("it is there");
                }
                1 => {
                    let content = Content { len: own.below(90_000) as usize, tag: own.next_u64() };
                    client.put_content(NAME, content, &mut own).await;
                }
                2 => client.collect().await,
                _ => engine.core().sleep(A_WHILE).await,
            }
            // Pinned, whatever became of it.
            parts.check(&reader, &mut own).await;
            drop(reader);
            let now = engine.open(bucket, NAME.as_bytes()).await.expect("nothing is damaged");
            if let Some(now) = now.filter(|now| now.object().etag == parts.content().etag()) {
                parts.check(&now, &mut own).await;
                state.outcome.borrow_mut().merged += u64::from(is_merged(now.object()));
            }
            state.outcome.borrow_mut().verified += 1;
        }
        note_moves(&cluster, &state);
        engine.delete(bucket, NAME.as_bytes(), None).await.expect("nothing is damaged");
        engine.core().sleep(A_WHILE).await;
        expect_empty(&cluster, &engine).await;
    });
    outcome_of(&world, &shared)
}

/// The disk is full when the upload is completed: the parts stay apart, and are merged once there is room.
pub(crate) fn on_a_full_disk(seed: u64) -> Outcome {
    let mut random = Random::new(seed ^ 0x3e6e_f011);
    let layout = Layout { shards: 1, ..Layout::draw(&mut random) };
    let mut world = layout.world(seed, 40 << 20);
    let shared = Shared::new();
    let cores = world.boot(1);
    let (state, mut own) = (Rc::clone(&shared), random.fork());
    world.run(async move {
        let cluster = Cluster::start(cores, layout).await;
        let engine = cluster.any(&mut own);
        let bucket = bucket_id(&engine, &state).await.expect("no device fails");
        let client = Client { engine: engine.clone(), shared: Rc::clone(&state), bucket };
        let name = NAME.as_bytes();
        let parts = Parts::draw(&mut own, 150, 9000);
        let id = engine.create_upload(bucket, name, Vec::new(), 0, false).await.expect("there is room");
        for &(number, part) in &parts.parts {
            let mut writer = engine.write_part(bucket, name, Some(part.len as u64)).for_part(id, number);
            writer.write(&part.bytes(0..part.len)).await.expect("there is room");
            let body = writer.finish().await.expect("there is room");
            let checksum = span(number, part).checksum;
            let put = engine.put_part(bucket, name, id, number, part.etag(), checksum, body).await;
            put.expect("there is room");
        }
        let mut count = 0;
        while state.outcome.borrow().refused == 0 {
            let content = Content { len: 100_000 + own.below(200_000) as usize, tag: own.next_u64() };
            client.put_content(&format!("filler-{count}"), content, &mut own).await;
            count += 1;
        }
        let (_, listed) = engine.all_parts(bucket, name, id).await.expect("it is open");
        let attributes = vec![("content-type".to_owned(), "text/plain".to_owned())];
        let draft = ObjectDraft { etag: parts.content().etag(), attributes, ..ObjectDraft::default() };
        // Its list of parts is long, and may find no room.
        let mut deleted = 0;
        while let Err(error) =
            engine.complete_upload(bucket, name, id, draft.clone(), listed.clone(), None).await
        {
            assert!(error == EngineError::NoSpace && deleted < count, "{error}: {:?}", engine.stats());
            for _ in 0..10 {
                client.delete(&format!("filler-{deleted}")).await;
                deleted += 1;
            }
            engine.core().sleep(Duration::from_secs(1)).await;
        }
        engine.core().sleep(A_WHILE).await;
        parts.check(&open(&engine, bucket).await, &mut own).await;
        for index in 0..count {
            client.delete(&format!("filler-{index}")).await;
        }
        engine.checkpoint().await.expect("no device fails");
        // What gave up meanwhile is proposed again by scrub.
        engine.start_scrub(Duration::from_secs(2));
        engine.core().sleep(A_WHILE).await;
        let reader = open(&engine, bucket).await;
        parts.check(&reader, &mut own).await;
        assert!(is_merged(reader.object()), "there is room by now: {:?}", engine.stats());
        state.outcome.borrow_mut().merged += 1;
        drop(reader);
        engine.delete(bucket, name, None).await.expect("it is there");
        engine.core().sleep(A_WHILE).await;
        expect_empty(&cluster, &engine).await;
    });
    outcome_of(&world, &shared)
}

/// A disk rots. With redundancy the merged body is right; without it the parts are left as they are, and what is sound of them
/// reads on.
pub(crate) fn beside_damage(seed: u64) -> Outcome {
    let mut random = Random::new(seed ^ 0x3e6e_da3a);
    let shared = Shared::new();
    for (k, m) in [(1, 0), (2, 1)] {
        let layout = Layout { shards: 1, ..Layout::of(k, m, &mut random) };
        let mut world: World = layout.world(seed, 96 << 20);
        let disk = world.disk("disk0");
        let cores = world.boot(1);
        let (state, mut own) = (Rc::clone(&shared), random.fork());
        world.run(async move {
            let cluster = Cluster::start(cores, layout).await;
            let engine = cluster.any(&mut own);
            let bucket = bucket_id(&engine, &state).await.expect("no device fails");
            let parts = Parts::draw(&mut own, 60, 9000);
            parts.put(&engine, bucket, &mut own).await.expect("there is room");
            let before = open(&engine, bucket).await;
            assert!(!is_merged(before.object()), "it was completed just now");
            let places = before.object().footprint.iter();
            let end = places.map(|print| u64::from(print.end_block)).max().expect("it lies somewhere");
            drop(before);
            // In the extent it begins in, whichever parts that hits.
            for block in (0..end).step_by(3) {
                disk.corrupt("shard-0000.data", block * 4096 + own.below(4096), 1);
            }
            engine.core().sleep(A_WHILE).await;
            let reader = open(&engine, bucket).await;
            if m > 0 {
                parts.check(&reader, &mut own).await;
                assert!(is_merged(reader.object()));
                state.outcome.borrow_mut().merged += 1;
                return;
            }
            assert!(!is_merged(reader.object()), "what cannot be read is left alone");
            let spans = parts.spans();
            let (expected, mut at) = (parts.bytes(), 0);
            for span in &spans {
                let range = at..at + span.len;
                match read(&reader, range.clone()).await {
                    Ok(got) => {
                        assert!(got == expected[range.start as usize..range.end as usize]);
                        state.outcome.borrow_mut().verified += 1;
                    }
                    Err(EngineError::Body(_)) => state.outcome.borrow_mut().failed += 1,
                    Err(error) => panic!("bytes {range:?}: {error}"),
                }
                at += span.len;
            }
            drop(reader);
            engine.delete(bucket, NAME.as_bytes(), None).await.expect("it is there");
            engine.core().sleep(A_WHILE).await;
            expect_empty(&cluster, &engine).await;
        });
        shared.outcome.borrow_mut().trace ^= world.trace_hash();
    }
    shared.outcome.borrow().clone()
}
