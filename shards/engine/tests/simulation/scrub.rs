//! Damage at rest in every kind of structure: met before a wrong byte is served, repaired in place, and nothing else changes.

use std::rc::Rc;

use basalt_engine::body::BlockRow;
use basalt_engine::body::directory::{DirectoryChunk, Origin};
use basalt_engine::extent::{Column, Placement};
use basalt_engine::{Engine, ObjectDraft};
use basalt_reactor::sim::{DiskHandle, Random};

use crate::client::{Outcome, Shared, bucket_id};
use crate::cluster::{Cluster, Layout};
use crate::model::Content;

const BLOCK_LEN: usize = 4096;
const CAPACITY: u64 = 96 << 20;

/// Objects that nobody overwrites: all that is written of them is live.
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

    /// Reads every object whole; every byte is right.
    async fn read(&self, cluster: &Cluster, random: &mut Random, shared: &Shared) {
        for (key, content) in &self.objects {
            let engine = cluster.any(random);
            let reader = engine.open(self.bucket, key.as_bytes()).await.expect("the index can be read");
            let reader = reader.expect("nobody deletes");
            let mut body = reader.read(0..content.len as u64).await.expect("its map can be read");
            let mut at = 0;
            while let Some(bytes) = body.next().await {
                let bytes = bytes.unwrap_or_else(|error| panic!("{key}: {error}"));
                assert!(*bytes == *content.bytes(at..at + bytes.len()), "{key}: wrong bytes at {at}");
                at += bytes.len();
            }
            assert_eq!(at, content.len, "{key}");
            shared.outcome.borrow_mut().verified += 1;
        }
    }
}

/// All files of all disks, as reads see them.
struct Snapshot(Vec<Vec<(String, Vec<u8>)>>);

impl Snapshot {
    fn take(disks: &[DiskHandle]) -> Snapshot {
        let of = |disk: &DiskHandle| {
            let bytes = |file: &String| disk.read(file, 0, disk.file_len(file).unwrap_or(0) as usize);
            disk.files().into_iter().map(|file| (file.clone(), bytes(&file))).collect()
        };
        Snapshot(disks.iter().map(of).collect())
    }

    fn file(&self, disk: usize, name: &str) -> &[u8] {
        let found = self.0[disk].iter().find(|(file, _)| file == name);
        found.map(|(_, bytes)| bytes.as_slice()).unwrap_or_default()
    }

    /// Files of this kind are what they were.
    fn assert_same(&self, disks: &[DiskHandle], kind: &str) {
        for (disk, files) in disks.iter().zip(&self.0) {
            for (file, before) in files.iter().filter(|(file, _)| file.ends_with(kind)) {
                let now = disk.read(file, 0, before.len());
                let changed = before.chunks(BLOCK_LEN).zip(now.chunks(BLOCK_LEN)).position(|(a, b)| a != b);
                assert_eq!(changed, None, "{} {file}: a block differs", disk.name());
            }
        }
    }
}

/// What lies in data extents, found as a stranger would: by looking at every block.
fn chunks_on(snapshot: &Snapshot, layout: Layout, secret: [u8; 16]) -> Vec<(u16, DirectoryChunk)> {
    let mut found: Vec<(u16, DirectoryChunk)> = Vec::new();
    for shard in 0..layout.shards {
        let origin = Origin { shard, epoch: 0, secret };
        for disk in 0..layout.disk_count() {
            let bytes = snapshot.file(disk, &data_file(shard));
            for at in (0..bytes.len()).step_by(BLOCK_LEN) {
                let Ok(chunk) = DirectoryChunk::decode(&bytes[at..], &origin) else { continue };
                if found.iter().all(|(_, known)| *known != chunk) {
                    found.push((shard, chunk));
                }
            }
        }
    }
    found
}

fn data_file(shard: u16) -> String {
    format!("shard-{shard:04}.data")
}

fn place_of(layout: Layout, column: Column, offset: u64) -> u64 {
    u64::from(column.slot) * layout.geometry().data_slot_len + offset
}

/// Every row of every body.
fn rows_of(layout: Layout, chunks: &[(u16, DirectoryChunk)]) -> Vec<(u16, Placement, BlockRow)> {
    let geometry = layout.geometry();
    let mut rows = Vec::new();
    for (shard, chunk) in chunks {
        for entry in &chunk.entries {
            let of_entry = BlockRow::of_entry(chunk.placement.id, entry, &geometry);
            rows.extend(of_entry.map(|row| (*shard, chunk.placement.clone(), row)));
        }
    }
    rows
}

fn harm(disk: &DiskHandle, file: &str, offset: u64, len: u64, random: &mut Random) {
    if random.below(5) == 0 {
        disk.make_unreadable(file, offset, len.min(512));
    } else {
        for _ in 0..1 + random.below(3) {
            disk.corrupt(file, offset + random.below(len), 1 << random.below(8));
        }
    }
}

fn repaired(cluster: &Cluster) -> u64 {
    cluster.engines.iter().flat_map(Engine::stats).map(|(_, stats)| stats.repair.repaired).sum()
}

fn unrepairable(cluster: &Cluster) -> u64 {
    cluster.engines.iter().flat_map(Engine::stats).map(|(_, stats)| stats.repair.unrepairable).sum()
}

/// Readers meet damaged blocks; those, and the others beside them in their rows, are repaired meanwhile.
pub(crate) fn found_by_readers(seed: u64) -> Outcome {
    let mut random = Random::new(seed ^ 0x5c_2b);
    let (k, m) = [(1, 1), (2, 1), (2, 2)][random.below(3) as usize];
    let layout = Layout::of(k, m, &mut random);
    let mut world = layout.world(seed, CAPACITY);
    let disks: Vec<DiskHandle> = layout.disk_names().iter().map(|name| world.disk(name)).collect();
    let cores = world.boot(1 + random.below(2) as u16);
    let shared = Shared::new();
    let state = Rc::clone(&shared);
    world.run(async move {
        let cluster = Cluster::start(cores, layout).await;
        let lens = [300 << 10, 200 << 10, 120 << 10, 400 << 10, 90 << 10];
        let fixture = Fixture::fill(&cluster.any(&mut random), &state, &mut random, &lens).await;
        let before = Snapshot::take(&disks);
        let secret = cluster.engines[0].deployment().superblock.hash_seed;
        let mut rows = rows_of(layout, &chunks_on(&before, layout, secret));
        if rows.is_empty() {
            // All bodies happened to be short.
            return;
        }
        for _ in 0..rows.len().min(4) {
            let (shard, placement, row) = rows.swap_remove(random.below(rows.len() as u64) as usize);
            // The first column of every row holds bytes of the body; which others are harmed with it, nobody is told.
            let mut columns: Vec<usize> = (1..layout.disk_count()).collect();
            let more = random.below(u64::from(m)) as usize;
            while columns.len() > more {
                columns.swap_remove(random.below(columns.len() as u64) as usize);
            }
            for index in columns.into_iter().chain([0]) {
                let column = placement.columns[index];
                let offset = place_of(layout, column, row.offset);
                let disk = &disks[usize::from(column.disk.0)];
                harm(disk, &data_file(shard), offset, row.len.into(), &mut random);
            }
        }
        fixture.read(&cluster, &mut random, &state).await;
        cluster.engines[0].core().sleep(std::time::Duration::from_secs(1)).await;
        before.assert_same(&disks, ".data");
        assert_eq!(unrepairable(&cluster), 0);
        assert!(repaired(&cluster) > 0, "readers met damage");
        state.outcome.borrow_mut().repaired += repaired(&cluster);
        cluster.engines.iter().for_each(|engine| drop(engine.take_damage()));
        fixture.read(&cluster, &mut random, &state).await;
        for engine in &cluster.engines {
            assert_eq!(engine.take_damage(), [], "it was repaired");
        }
    });
    let mut outcome = shared.outcome.borrow().clone();
    outcome.trace = world.trace_hash();
    outcome
}
