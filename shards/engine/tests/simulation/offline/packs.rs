//! Small objects that were moved into packs: what checks, shows and rebuilds them finds them there, whole, damaged, or without
//! anything but the packs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use basalt_engine::offline::check::{Remedy, Report, Structure};
use basalt_engine::offline::inspect::{Item, Query, What};
use basalt_engine::offline::rebuild::{Entry, Fate, How, Line, RebuildOptions, Summary, Why, rebuild};
use basalt_engine::value::{self, Body, Object};
use basalt_engine::{Engine, ObjectDraft};
use basalt_reactor::sim::{Crash, Random};

use super::{Filled, only};
use crate::client::{BUCKET, Shared};
use crate::cluster::{Cluster, Layout};
use crate::damage::CAPACITY;
use crate::model::Content;

const LAYOUT: Layout = Layout { k: 2, m: 2, sets: 1, metadata: 0, spare: 0, shards: 2, strip_len: 8192 };

const BLOCK_LEN: u64 = 4096;

/// What every name has.
pub(super) type Truth = BTreeMap<String, Content>;

/// What lies in packs by the index: name, offset and length, by extent and block.
type Living = BTreeMap<(u64, u32), Vec<(String, u64, u64)>>;

/// A pack as `inspect` shows it.
#[derive(Clone, Debug)]
struct Pack {
    shard: u16,
    extent: u64,
    block: u32,
    len: u64,
    /// Disk and slot of each column.
    columns: Vec<(u8, u32)>,
    /// Name, offset and length of what its list names.
    objects: Vec<(String, u64, u64)>,
}

impl Pack {
    /// Where byte `at` of its columns lies on the disk of column `index`.
    fn offset(&self, index: usize, at: u64) -> u64 {
        let slot = u64::from(self.columns[index].1) * LAYOUT.geometry().data_slot_len;
        slot + u64::from(self.block) * BLOCK_LEN + at
    }

    /// Bytes that its stripes take in every column.
    fn column_len(&self) -> u64 {
        let stripe_len = u64::from(LAYOUT.k) * u64::from(LAYOUT.strip_len);
        let rest = (self.len % stripe_len).div_ceil(u64::from(LAYOUT.k)).next_multiple_of(BLOCK_LEN);
        self.len / stripe_len * u64::from(LAYOUT.strip_len) + rest
    }

    fn harm(&self, filled: &Filled, columns: &[usize], at: u64, len: usize) {
        for &index in columns {
            let disk = filled.world.disk(&format!("disk{}", self.columns[index].0));
            let file = format!("shard-{:04}.data", self.shard);
            disk.overwrite(&file, self.offset(index, at), &vec![0x5a; len]);
        }
    }
}

async fn put(engine: &Engine, bucket: u64, key: &str, content: Content) {
    let mut writer = engine.write(bucket, key.as_bytes(), Some(content.len as u64));
    writer.write(&content.bytes(0..content.len)).await.expect("there is room");
    let body = writer.finish().await.expect("no device fails");
    let attributes = vec![("note".to_owned(), key.to_owned())];
    let draft = ObjectDraft { etag: content.etag(), attributes, ..ObjectDraft::default() };
    engine.put(bucket, key.as_bytes(), draft, body, None).await.expect("there is room");
}

/// A deployment all of whose objects lie in packs: some were overwritten before, some after they were packed.
pub(super) fn packed(seed: u64) -> (Filled, Truth) {
    let mut world = LAYOUT.world(seed, CAPACITY);
    let cores = world.boot(1);
    let truth = world.run(async move {
        let mut random = Random::new(seed);
        let cluster = Cluster::start(cores, LAYOUT).await;
        let engine = cluster.any(&mut random);
        let bucket = engine.create_bucket(BUCKET, Vec::new()).await.expect("it is new").id;
        let mut truth = Truth::new();
        for round in 0..2 {
            for _ in 0..250 {
                let name = format!("small-{}", random.below(300));
                let content = Content { len: 1 + random.below(9000) as usize, tag: random.next_u64() };
                put(&engine, bucket, &name, content).await;
                truth.insert(name, content);
            }
            for index in (0..300).filter(|index| index % 7 == round) {
                let name = format!("small-{index}");
                engine.delete(bucket, name.as_bytes(), None).await.expect("no device fails");
                truth.remove(&name);
            }
            // The log goes on, so that nothing of them stays in its open extent.
            for turn in 0..400 {
                let content = Content { len: 4096, tag: random.next_u64() };
                put(&engine, bucket, &format!("filler-{}", turn % 10), content).await;
            }
            for index in 0..10 {
                let name = format!("filler-{index}");
                engine.delete(bucket, name.as_bytes(), None).await.expect("it is there");
            }
            engine.checkpoint().await.expect("there is room");
            while engine.collect().await.expect("no device fails") {}
        }
        engine.checkpoint().await.expect("there is room");
        for name in truth.keys() {
            let reader = engine.open(bucket, name.as_bytes()).await.expect("it reads").expect("it is there");
            assert!(matches!(reader.object().body, Body::Packed(_)), "{name}: {:?}", reader.object().body);
        }
        truth
    });
    world.crash(Crash::Kill);
    world.run_until_idle();
    (Filled { world, shared: Shared::new(), layout: LAYOUT }, truth)
}

fn present(filled: &Filled, missing: &[&str]) -> Vec<PathBuf> {
    filled.paths().into_iter().filter(|path| missing.iter().all(|name| !path.ends_with(name))).collect()
}

/// All packs as they are shown without these disks, the one with the longest list first.
fn packs(filled: &mut Filled, missing: &[&str]) -> Vec<Pack> {
    let paths = present(filled, missing);
    let mut packs = Vec::new();
    for item in filled.inspect(paths, only(What::Pack, None)) {
        let Item::Pack { shard, placement, entry, lost, objects } = item else { continue };
        assert_eq!(lost, []);
        let objects = objects.expect("it is whole").into_iter().map(|item| {
            assert!(item.value.is_empty(), "nobody asked for it");
            (name_of(&item.key), u64::from(item.offset), u64::from(item.len))
        });
        packs.push(Pack {
            shard,
            extent: placement.id.0,
            block: entry.block,
            len: entry.len,
            columns: placement.columns.iter().map(|column| (column.disk.0, column.slot)).collect(),
            objects: objects.collect(),
        });
    }
    packs.sort_by_key(|pack| std::cmp::Reverse(pack.objects.len()));
    packs
}

fn name_of(key: &[u8]) -> String {
    match basalt_engine::index::key::Key::decode(key) {
        Ok(basalt_engine::index::key::Key::Object { name, .. }) => {
            String::from_utf8(name.into_owned()).expect("names are text")
        }
        other => panic!("{other:?}"),
    }
}

fn living(filled: &mut Filled, truth: &Truth) -> Living {
    let mut living = Living::new();
    let query = Query { what: [What::Table].into(), entries: true, ..Query::default() };
    for item in filled.inspect(filled.paths(), query) {
        let Item::Entry { key, value: Some(bytes), .. } = item else { continue };
        let Ok(object) = value::decode::<Object>(&bytes) else { continue };
        let Body::Packed(packed) = object.body else { continue };
        let (name, first) = (name_of(&key), packed.pack.segments[0]);
        assert_eq!(object.len, truth[&name].len as u64);
        living.entry((first.extent, first.block)).or_default().push((name, packed.offset, object.len));
    }
    assert_eq!(living.values().map(Vec::len).sum::<usize>(), truth.len());
    living
}

fn kinds(report: &Report) -> Vec<Structure> {
    report.faults.iter().map(|fault| fault.structure).collect()
}

/// Reads every object, and says which cannot be had; the others are as they were put.
fn unreadable(filled: &mut Filled, truth: &Truth, bucket: &str) -> BTreeSet<String> {
    let cores = filled.world.boot(1);
    let (truth, layout, bucket) = (truth.clone(), filled.layout, bucket.to_owned());
    let lost = filled.world.run(async move {
        let cluster = Cluster::start(cores, layout).await;
        let engine = &cluster.engines[0];
        let bucket = engine.buckets().get(&bucket).expect("it is there").id;
        let mut lost = BTreeSet::new();
        for (name, content) in &truth {
            let reader = engine.open(bucket, name.as_bytes()).await.expect("the index is whole");
            let reader = reader.unwrap_or_else(|| panic!("{name} is not there"));
            let object = reader.object();
            assert_eq!((object.len, object.etag), (content.len as u64, content.etag()), "{name}");
            assert_eq!(object.attributes, [("note".to_owned(), name.clone())]);
            let mut body = reader.read(0..object.len).await.expect("it begins");
            let mut bytes = Vec::new();
            let whole = loop {
                match body.next().await {
                    None => break true,
                    Some(Ok(piece)) => bytes.extend_from_slice(&piece),
                    Some(Err(_)) => break false,
                }
            };
            assert!(content.bytes(0..content.len).starts_with(&bytes), "{name}: wrong bytes");
            assert!(!whole || bytes.len() == content.len, "{name} is cut");
            if !whole {
                lost.insert(name.clone());
            }
        }
        lost
    });
    filled.world.crash(Crash::Kill);
    filled.world.run_until_idle();
    lost
}

#[test]
fn damage_in_a_pack_is_found_and_mended() {
    let (mut filled, truth) = packed(1);
    assert!(filled.check(filled.paths(), false).is_clean());
    let living = living(&mut filled, &truth);
    let mut all = packs(&mut filled, &[]);
    all.retain(|pack| living.contains_key(&(pack.extent, pack.block)));
    let pack = all.remove(0);
    assert!(pack.objects.len() > 8 && pack.len > 3 * 16_384, "{pack:?}");
    let end = pack.column_len();
    // Places in a column: the first strip of objects, the last one with the list, the chunk behind it.
    for (columns, at, len, structures) in [
        (&[0][..], 100, 1, vec![Structure::Data]),
        (&[1], end - BLOCK_LEN, 4096, vec![Structure::Data]),
        (&[3], 0, 5000, vec![Structure::Parity]),
        (&[0, 1], 9000, 2, vec![Structure::Data; 2]),
        (&[0, 2], 50, 1, vec![Structure::Data, Structure::Parity]),
        (&[2], end, 4096, vec![Structure::DirectoryChunk]),
        (&[0, 1, 3], end, 64, vec![Structure::DirectoryChunk; 3]),
    ] {
        pack.harm(&filled, columns, at, len);
        for (repair, remedy) in [(false, Remedy::Mendable), (true, Remedy::Mended)] {
            let report = filled.check(filled.paths(), repair);
            assert_eq!(kinds(&report), structures, "{columns:?} at {at}: {:?}", report.faults);
            for (fault, &column) in report.faults.iter().zip(columns) {
                let place = fault.place.as_ref().expect("it is one disk's");
                assert_eq!(place.disk.0, pack.columns[column].0);
                let harmed = pack.offset(column, at);
                assert!((place.offset..place.offset + fault.len).contains(&harmed), "{fault}");
                assert_eq!((&fault.remedy, &fault.owner), (&remedy, &None), "{fault}");
            }
        }
        assert!(filled.check(filled.paths(), false).is_clean());
    }
    assert_eq!(unreadable(&mut filled, &truth, BUCKET), BTreeSet::new());
}

/// Of a stripe of a pack too few columns are whole: every object with bytes in it is named, and no other is.
#[test]
fn what_is_lost_of_a_pack_is_named_by_object() {
    let (mut filled, truth) = packed(2);
    let living = living(&mut filled, &truth);
    let all = packs(&mut filled, &[]);
    let pack =
        all.iter().find(|pack| living.contains_key(&(pack.extent, pack.block))).expect("there are").clone();
    let listed: BTreeSet<_> = pack.objects.iter().cloned().collect();
    let own = &living[&(pack.extent, pack.block)];
    assert!(own.iter().all(|object| listed.contains(object)), "{own:?}");
    // All of the first stripe, but for one parity strip.
    pack.harm(&filled, &[0, 1, 2], 0, 8192);
    let report = filled.check(filled.paths(), true);
    let lost: BTreeSet<String> =
        own.iter().filter(|(_, offset, _)| *offset < 16_384).map(|(name, ..)| name.clone()).collect();
    assert!(lost.len() > 2 && lost.len() < own.len());
    let named = report.faults.iter().filter(|fault| fault.structure == Structure::Packed).map(|fault| {
        assert!(matches!(fault.remedy, Remedy::None(_)));
        let owner = fault.owner.as_ref().expect("it is known whose it is");
        assert_eq!(owner.bucket.as_deref(), Some(BUCKET));
        String::from_utf8(owner.key.clone()).expect("names are text")
    });
    assert_eq!(named.collect::<BTreeSet<_>>(), lost);
    let rest = kinds(&report).into_iter().filter(|&kind| kind != Structure::Packed).collect::<Vec<_>>();
    assert_eq!(rest, [Structure::Data, Structure::Data, Structure::Parity]);
    assert_eq!(report.unmended_count, 3 + lost.len() as u64);
    let items = filled.inspect(filled.paths(), only(What::Pack, None));
    let runs = items.iter().filter_map(|item| match item {
        Item::Pack { lost, objects, .. } if !lost.is_empty() => Some((lost.clone(), objects.is_ok())),
        _ => None,
    });
    assert_eq!(runs.collect::<Vec<_>>(), [(vec![0..8192, 8192..16_384], true)]);
    // Nothing was made worse: what is named is lost, the rest is served.
    assert_eq!(unreadable(&mut filled, &truth, BUCKET), lost);

    // The list is lost as well. It is needed for nothing but a lost index, so no further object is named.
    let end = pack.column_len();
    pack.harm(&filled, &[0, 1, 2], end - 4096, 4096);
    let report = filled.check(filled.paths(), true);
    assert!(kinds(&report).contains(&Structure::PackList), "{:?}", report.faults);
    let items = filled.inspect(filled.paths(), only(What::Pack, None));
    let broken = items.iter().filter(|item| matches!(item, Item::Pack { objects: Err(_), .. })).count();
    assert_eq!(broken, 1);
}

#[test]
fn inspect_shows_packs_with_what_they_hold() {
    let (mut filled, truth) = packed(3);
    let living = living(&mut filled, &truth);
    let shown = packs(&mut filled, &[]);
    for (place, objects) in living {
        let pack = shown.iter().find(|pack| (pack.extent, pack.block) == place).expect("it is shown");
        for object in objects {
            assert!(pack.objects.contains(&object), "{object:?}");
        }
    }
    // As much with two disks missing, or rotten where packs lie.
    let summary = |packs: Vec<Pack>| {
        packs.into_iter().map(|pack| (pack.extent, pack.block, pack.objects)).collect::<Vec<_>>()
    };
    let without = summary(packs(&mut filled, &["disk1", "disk2"]));
    assert_eq!(without, summary(shown.clone()));
    for pack in &shown {
        pack.harm(&filled, &[1], 0, pack.column_len() as usize);
    }
    assert_eq!(summary(packs(&mut filled, &[])), summary(shown));
    let query = Query { what: [What::Pack].into(), entries: true, ..Query::default() };
    let mut values = 0;
    for item in filled.inspect(filled.paths(), query) {
        let Item::Pack { objects, .. } = item else { continue };
        for listed in objects.expect("it is whole") {
            let object = value::decode::<Object>(&listed.value).expect("it is a value");
            assert_eq!(object.attributes[0].1, name_of(&listed.key));
            values += 1;
        }
    }
    assert!(values >= truth.len());
}

/// Overwrites roots, tables and all of the log on every disk.
fn wipe(filled: &Filled) {
    for name in LAYOUT.disk_names() {
        let disk = filled.world.disk(&name);
        for file in disk.files() {
            let len = disk.file_len(&file).unwrap_or(0) as usize;
            if [".root", ".table", ".log"].iter().any(|kind| file.ends_with(kind)) && len > 0 {
                disk.overwrite(&file, 0, &vec![0; len]);
            }
        }
    }
}

/// Rebuilds the index; says what became of each object, and what else was told.
fn rebuilt(filled: &mut Filled, missing: &[&str]) -> (Summary, BTreeMap<String, How>, Vec<Entry>) {
    let paths = present(filled, missing);
    let core = filled.world.boot(1).remove(0);
    let told = filled.world.run(async move {
        let options = RebuildOptions { force: false, etags: true };
        let (mut recovered, mut rest) = (BTreeMap::new(), Vec::new());
        let mut report = |line: &Line| match line {
            Line::Entry(Entry { name, fate: Fate::Recovered(how), .. }) => {
                let name = String::from_utf8(name.clone()).expect("names are text");
                assert!(recovered.insert(name, how.clone()).is_none(), "told twice");
            }
            Line::Entry(entry) => rest.push(entry.clone()),
            Line::Log { batches, .. } => assert_eq!(*batches, 0, "the log is gone"),
            Line::Bucket { .. } => {}
        };
        let summary = rebuild(&core, &paths, &options, &mut report).await.expect("it rebuilds");
        (summary, recovered, rest)
    });
    filled.world.crash(Crash::PowerCut);
    filled.world.run_until_idle();
    told
}

/// The name that a bucket got whose record is lost.
fn bucket_name(filled: &mut Filled) -> String {
    let cores = filled.world.boot(1);
    let layout = filled.layout;
    let name = filled.world.run(async move {
        let cluster = Cluster::start(cores, layout).await;
        let all = cluster.engines[0].buckets().all();
        assert_eq!(all.len(), 1);
        all[0].name.clone()
    });
    filled.world.crash(Crash::Kill);
    filled.world.run_until_idle();
    name
}

/// Nothing is left of index and log: packs and directories alone have every object, with its ETag and its metadata.
#[test]
fn packs_alone_bring_every_object_back() {
    for seed in 4..7 {
        let (mut filled, truth) = packed(seed);
        wipe(&filled);
        let missing = if seed == 5 { &["disk1"][..] } else { &[] };
        match seed {
            4 | 5 => {}
            _ => {
                let disk = filled.world.disk("disk2");
                for shard in 0..LAYOUT.shards {
                    let file = format!("shard-{shard:04}.data");
                    let len = disk.file_len(&file).expect("it was formatted");
                    disk.overwrite(&file, 0, &vec![0xa5; len as usize]);
                }
            }
        }
        let (summary, recovered, rest) = rebuilt(&mut filled, missing);
        assert_eq!((summary.lost, summary.damaged), (0, 0), "{rest:?}");
        for name in truth.keys() {
            assert_eq!(recovered.get(name), Some(&How::LastKnown), "{name}");
        }
        let bucket = bucket_name(&mut filled);
        assert!(bucket.starts_with("recovered-"));
        assert_eq!(unreadable(&mut filled, &truth, &bucket), BTreeSet::new());
        let report = filled.check(filled.paths(), false);
        let is_rotten = |kind: &Structure| {
            seed == 6 && [Structure::Data, Structure::Parity, Structure::DirectoryChunk].contains(kind)
        };
        assert!(kinds(&report).iter().all(is_rotten), "{:?}", report.faults);
    }
}

/// A pack that redundancy cannot restore gives back what of it is whole; without its list it is told as missing.
#[test]
fn a_pack_that_is_damaged_beyond_redundancy_comes_back_in_part() {
    let (mut filled, mut truth) = packed(8);
    let living = living(&mut filled, &truth);
    let mut all = packs(&mut filled, &[]);
    all.retain(|pack| living.contains_key(&(pack.extent, pack.block)) && pack.objects.len() > 4);
    let (hurt, headless) = (all[0].clone(), all[1].clone());
    hurt.harm(&filled, &[0, 1, 2], 0, 8192);
    headless.harm(&filled, &[0, 1, 2], headless.column_len() - 4096, 4096);
    wipe(&filled);
    let (summary, recovered, rest) = rebuilt(&mut filled, &[]);
    let hit = living[&(hurt.extent, hurt.block)].iter().filter(|(_, offset, _)| *offset < 16_384);
    let hit: BTreeSet<String> = hit.map(|(name, ..)| name.clone()).collect();
    let is_told = |entry: &&Entry| matches!(&entry.fate, Fate::NotRecovered(Why::Incomplete(what)) if what.contains("a pack at block"));
    assert_eq!(rest.iter().filter(is_told).count(), 1, "{rest:?}");
    assert!(summary.lost > 0 && summary.damaged >= hit.len() as u64);
    let gone: BTreeSet<&String> =
        living[&(headless.extent, headless.block)].iter().map(|(name, ..)| name).collect();
    for name in truth.keys() {
        let expected = match (gone.contains(name), hit.contains(name)) {
            // An older state of it may lie in another pack.
            (true, _) => continue,
            (false, true) => How::LastKnownInPart,
            (false, false) => How::LastKnown,
        };
        assert_eq!(recovered.get(name), Some(&expected), "{name}");
    }
    truth.retain(|name, _| !gone.contains(name));
    let bucket = bucket_name(&mut filled);
    assert_eq!(unreadable(&mut filled, &truth, &bucket), hit);
}
