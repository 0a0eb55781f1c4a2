//! What a start may rely on before it writes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use basalt_reactor::sim::{Config, Crash, World};
use basalt_reactor::{CoreId, Disk, WriteMode};

use super::*;
use crate::deployment::{Deployment, FormatOptions, shard_file};
use crate::extent::flushes::CoreFlushes;
use crate::extent::groups::{GroupIndex, Groups};
use crate::extent::reads::DiskReads;
use crate::extent::{Column, DiskFiles, Geometry, Placement};
use crate::format::log_header::LogHeader;
use crate::format::root::LogPosition;
use crate::format::superblock::{DiskClass, SUPERBLOCK_COPY_LEN};
use crate::log::{LOG_HEADER_LEN, prepare_extent};

const GEOMETRY: Geometry = Geometry {
    k: 1,
    m: 0,
    strip_len: 4096,
    log_slot_len: 384 << 10,
    data_slot_len: 512 << 10,
    table_slot_len: 256 << 10,
};

async fn prepare(core: &Core) -> Arc<Deployment> {
    let options = FormatOptions { shard_count: 2, geometry: Some(GEOMETRY), ..FormatOptions::default() };
    Deployment::prepare(core, &[PathBuf::from("disk0")], DiskClass::Flash, &options).await.expect("opens")
}

/// What the first shard would be opened with.
fn context(core: &Core) -> ShardContext {
    let disk = Disk::open(core, Path::new("disk0")).expect("opens");
    let file = |kind| disk.open_file(&shard_file(0, kind)).expect("opens");
    let files = DiskFiles {
        root: file("root"),
        log: file("log"),
        data: file("data"),
        table: file("table"),
        disk: disk.clone(),
    };
    let flushes = CoreFlushes::new(crate::extent::flushes::Flushes::new(1, 1), CoreId(0));
    ShardContext {
        core: core.clone(),
        id: 0,
        deployment: [0; 16],
        epoch: 1,
        homes: vec![GroupIndex(0); 2],
        files: ArenaFiles::sharing(
            GEOMETRY,
            vec![Some(files)],
            flushes,
            DiskReads::new(&GEOMETRY, Rc::new(Groups::one(GEOMETRY.m, 1))),
        ),
        buckets: Rc::default(),
        memory: 1 << 20,
        read_only: false,
    }
}

async fn newest_sequence(core: &Core, deployment: &Deployment) -> u64 {
    let context = ShardContext { deployment: deployment.superblock.deployment, ..context(core) };
    newest_root(&context).await.expect("there is one").sequence
}

/// A world whose disk has the newest copy of `file` in its cache alone, as a process leaves it that was killed before its
/// write was flushed. `bytes` makes the copy and says where it lies.
fn killed_with_a_newer<F>(seed: u64, file: &'static str, bytes: F) -> World
where
    F: FnOnce(&Deployment) -> (Vec<u8>, u64) + 'static,
{
    let mut world = World::new(seed, Config::with_disks(1, 64 << 20));
    let core = world.boot(1).remove(0);
    world.run(async move {
        let deployment = prepare(&core).await;
        let (bytes, offset) = bytes(&deployment);
        let mut buf = core.arena().alloc(bytes.len()).await;
        buf.set_len(bytes.len());
        buf.copy_from_slice(&bytes);
        let disk = Disk::open(&core, Path::new("disk0")).expect("opens");
        let file = disk.open_file(file).expect("opens");
        file.write_at(buf.freeze(), offset, WriteMode::Volatile).await.expect("writes");
    });
    world.crash(Crash::Kill);
    world.run_until_idle();
    world
}

/// A start reads a root that only the drive's cache has; is it still there after a power cut?
fn root_survives(seed: u64, settled: bool) -> bool {
    let mut world = killed_with_a_newer(seed, "shard-0000.root", |deployment| {
        let root = Root {
            deployment: deployment.superblock.deployment,
            shard: 0,
            sequence: 1,
            epoch: 1,
            manifest: Vec::new(),
            manifest_len: 0,
            manifest_crc: 0,
            log: LogPosition { extent: ExtentId(0), offset: 0, sequence: 1, previous: [0; 16] },
            next_extent: 1,
            clock_floor: 0,
            rebuilds: Vec::new(),
        };
        (root.encode(), ROOT_COPY_LEN as u64)
    });
    let core = world.boot(1).remove(0);
    world.run(async move {
        let deployment = prepare(&core).await;
        if settled {
            settle_roots(&context(&core)).await.expect("the device is sound");
        }
        assert_eq!(newest_sequence(&core, &deployment).await, 1, "the cache has it");
    });
    world.crash(Crash::PowerCut);
    let core = world.boot(1).remove(0);
    world.run(async move {
        let deployment = prepare(&core).await;
        newest_sequence(&core, &deployment).await == 1
    })
}

#[test]
fn a_root_read_from_a_cache_is_durable_once_settled() {
    assert!((0..30).all(|seed| root_survives(seed, true)));
    assert!(!(0..30).all(|seed| root_survives(seed, false)), "the world must be able to lose it");
}

/// The start after a kill overwrites the older copy while the newer one is in the drive's cache alone. Whenever the power
/// is cut then, one of them must be whole.
#[test]
fn a_superblock_read_from_a_cache_is_durable_before_the_other_copy_is_overwritten() {
    for seed in 0..400 {
        let mut world = killed_with_a_newer(seed, "superblock", |deployment| {
            let mut superblock = deployment.superblock.clone();
            superblock.sequence += 1;
            superblock.epoch += 1;
            // Far behind the head, so that a part of the copy alone is of no use.
            superblock.slot_map.reverse();
            let offset = (superblock.sequence & 1) * SUPERBLOCK_COPY_LEN as u64;
            (superblock.encode(), offset)
        });
        let core = world.boot(1).remove(0);
        core.clone().spawn(async move { drop(prepare(&core).await) });
        for _ in 0..seed % 20 {
            world.step();
        }
        world.crash(Crash::PowerCut);
        let core = world.boot(1).remove(0);
        world.run(async move { drop(prepare(&core).await) });
    }
}

/// The log ends in extent 5, as the root says. Extent 3, older and unsealed, has what could be its next batch.
#[test]
fn a_batch_in_an_extent_that_the_log_does_not_lead_to_is_refused() {
    for (sequence, refused) in [(6, false), (7, true), (8, true)] {
        let mut world = World::new(sequence, Config::with_disks(1, 64 << 20));
        let core = world.boot(1).remove(0);
        let result = world.run(async move {
            let deployment = prepare(&core).await.superblock.deployment;
            let context = ShardContext { deployment, ..context(&core) };
            let entries = [(3, 1), (5, 0)].map(|(id, slot)| ExtentEntry {
                placement: Placement {
                    id: ExtentId(id),
                    class: ExtentClass::Log,
                    columns: vec![Column { disk: DiskIndex(0), slot }],
                },
                sealed: false,
                live_len: 0,
                next_block: 0,
                nonce: [id as u8; 16],
            });
            let file = &context.files.disk(DiskIndex(0)).expect("it is there").log;
            file.grow(2 * GEOMETRY.log_slot_len).await.expect("has room");
            for entry in &entries {
                let header = LogHeader {
                    deployment: context.deployment,
                    shard: 0,
                    extent: entry.placement.id,
                    epoch: 1,
                    nonce: entry.nonce,
                };
                prepare_extent(&core, &context.files, &entry.placement, &header, false).await.expect("sound");
            }
            let astray =
                LogExtent { placement: Rc::new(entries[0].placement.clone()), nonce: entries[0].nonce };
            let files = Rc::clone(&context.files);
            let mut log = LogWriter::new(core.clone(), files, 0, 1, astray, sequence, [0; 16]);
            log.append(&Batch::default(), 9).await.expect("the device is sound");

            let mut table = ExtentTable::new(GEOMETRY, 6);
            count_slots(&context, &mut table).expect("the file is there");
            for entry in &entries {
                table.occupy(&entry.placement);
                table.insert(entry);
            }
            let homes = (0, context.homes.clone());
            let space = Space::new(core.clone(), Rc::clone(&context.files), homes, table);
            let (files, config) = (Rc::clone(&context.files), index_config(&context, &Rc::default()));
            let (core, tables) = (core.clone(), IndexManifest::default());
            let index = Index::open(core, files, space.clone(), config, &tables).await.expect("it is empty");
            let log =
                LogPosition { extent: ExtentId(5), offset: LOG_HEADER_LEN, sequence: 7, previous: [0; 16] };
            let manifest = Manifest { extents: entries.to_vec(), index: tables.encode() };
            let root = Root { log, ..newest_root(&context).await.expect("there is one") };
            replay(&context, &root, &manifest, &index, &space).await.map(|replayed| replayed.found.batches)
        });
        match result {
            Ok(batches) => assert!(!refused && batches == 0, "batch {sequence}: {batches} replayed"),
            Err(error) => {
                let error = error.to_string();
                assert!(refused && error.contains("in log extent 3"), "batch {sequence}: {error}");
            }
        }
    }
}
