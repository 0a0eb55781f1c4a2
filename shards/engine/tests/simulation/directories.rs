//! Extents describe themselves: whatever an object has in stripes is in their directories, with checksums that are those
//! of the bytes on the disks, parity included.

use std::collections::{BTreeMap, BTreeSet};

use basalt_engine::body::directory::{Content, DirectoryEntry, Owner};
use basalt_engine::body::walk::ExtentDirectory;
use basalt_engine::checksum::crc32c;
use basalt_engine::extent::{ExtentId, Placement};
use basalt_engine::value::{Body, Object, SegmentValue};
use basalt_engine::{Engine, ObjectDraft};
use basalt_reactor::sim::DiskHandle;

use crate::client::{BUCKET, Shared};
use crate::cluster::{Cluster, Layout};

const BLOCK_LEN: u64 = 4096;

/// Directories by shard and extent; while nobody writes, what they say of live bytes does not change.
type Walked = BTreeMap<(u16, u64), (Placement, ExtentDirectory)>;

/// Nobody else is at work: every object in stripes is described.
pub(crate) async fn check_directories(
    engine: &Engine,
    shared: &Shared,
    layout: Layout,
    disks: &[DiskHandle],
) {
    let Some(bucket) = engine.buckets().get(BUCKET) else { return };
    let mut walked = Walked::new();
    let keys = shared.model.borrow().keys();
    for key in keys {
        let reader = engine.open(bucket.id, key.as_bytes()).await.expect("no device fails here");
        let Some(reader) = reader else { continue };
        let (object, shard) = (reader.object(), reader.shard());
        for print in &object.footprint {
            if let std::collections::btree_map::Entry::Vacant(entry) = walked.entry((shard, print.extent)) {
                let (placement, directory) = reader.walk(ExtentId(print.extent)).await.expect("it is pinned");
                entry.insert(((*placement).clone(), directory));
            }
        }
        // A pack describes itself; what it says is read whenever it is collected.
        if object.footprint.is_empty() || matches!(object.body, Body::Packed(_)) {
            continue;
        }
        let described = check_object(object, &key, shard, &walked);
        for (extent, entry) in &described {
            assert_eq!(entry.owner.bucket, bucket.id);
            let (placement, _) = &walked[&(shard, *extent)];
            check_columns(layout, shard, placement, entry, disks);
        }
        shared.outcome.borrow_mut().described += described.len() as u64;
    }
}

/// The parts of an upload are told by upload and number, and stay described when they have become an object.
#[test]
fn parts_say_which_they_are() {
    let layout = Layout { k: 2, m: 1, sets: 1, metadata: 0, spare: 0, shards: 2, strip_len: 4096 };
    let mut world = layout.world(1, 96 << 20);
    let disks: Vec<DiskHandle> = layout.disk_names().iter().map(|name| world.disk(name)).collect();
    let cores = world.boot(2);
    world.run(async move {
        let cluster = Cluster::start(cores, layout).await;
        let engine = &cluster.engines[0];
        let bucket = engine.create_bucket(BUCKET, Vec::new()).await.expect("it is new").id;
        let upload = engine.create_upload(bucket, b"key", Vec::new(), 0, false).await.expect("it opens");
        for number in [1, 2, 7] {
            let bytes = vec![number as u8; 30_000 * usize::from(number)];
            let mut writer = engine.write_part(bucket, b"key", None).for_part(upload, number);
            writer.write(&bytes).await.expect("there is room");
            let body = writer.finish().await.expect("no device fails");
            engine.put_part(bucket, b"key", upload, number, [0; 16], None, body).await.expect("it is open");
        }
        let (_, parts) = engine.all_parts(bucket, b"key", upload).await.expect("it is open");
        let draft = ObjectDraft::default();
        engine.complete_upload(bucket, b"key", upload, draft, parts, None).await.expect("all are there");
        let reader = engine.open(bucket, b"key").await.expect("no device fails").expect("it was put");
        let mut described = BTreeMap::new();
        for print in &reader.object().footprint {
            let (placement, directory) = reader.walk(ExtentId(print.extent)).await.expect("it is pinned");
            for entry in directory.entries().filter(|entry| entry.owner.name == b"key") {
                check_columns(layout, reader.shard(), &placement, entry, &disks);
                let (of, number) = entry.owner.part.expect("all are parts");
                assert_eq!(of, upload);
                *described.entry(number).or_insert(0) += entry.len;
            }
        }
        assert_eq!(described, BTreeMap::from([(1, 30_000), (2, 60_000), (7, 210_000)]));
    });
}

/// The entries of an object, of which there are just those that its value demands.
fn check_object<'a>(
    object: &Object,
    key: &str,
    shard: u16,
    walked: &'a Walked,
) -> Vec<(u64, &'a DirectoryEntry)> {
    let (known, payload) = match &object.body {
        Body::Striped(striped) => (striped, Some(striped)),
        Body::Spilled { map } => (map, None),
        other => panic!("key {key} is put whole: {other:?}"),
    };
    let first = known.segments[0];
    let (_, directory) = &walked[&(shard, first.extent)];
    let first = directory.entries().find(|entry| entry.block == first.block).expect("it is described");
    // A move that a crash cut off leaves a copy that says the same, in an extent where the body may lie too.
    let is_live = |extent: u64, entry: &DirectoryEntry| {
        payload.is_none_or(|striped| {
            striped.segments.iter().any(|segment| segment.extent == extent && segment.block == entry.block)
        })
    };
    if payload.is_none() && has_copies(object, shard, walked, &first.owner) {
        return Vec::new();
    }
    let mut described = Vec::new();
    for print in &object.footprint {
        let (_, directory) = &walked[&(shard, print.extent)];
        let own = directory.chunks.iter().filter(|chunk| {
            chunk.entries[0].owner == first.owner && is_live(print.extent, &chunk.entries[0])
        });
        let mut blocks = 0;
        for chunk in own {
            // A body that a crash cut off may lack a copy; this one may not.
            let place = u64::from(chunk.block) * BLOCK_LEN;
            assert!(directory.faults.iter().all(|fault| fault.offset != place), "{:?}", directory.faults);
            blocks += u64::from(chunk.end() - chunk.start());
            described.extend(chunk.entries.iter().map(|entry| (print.extent, entry)));
            assert!(chunk.end() <= print.end_block, "key {key}: a chunk beyond its footprint");
        }
        assert_eq!(blocks * BLOCK_LEN, print.bytes, "key {key}: footprint and directory");
    }
    described.sort_by_key(|(_, entry)| (entry.content as u8, entry.body_offset));
    let mut end = 0;
    let mut bytes = described.iter().filter(|(_, entry)| entry.content == Content::Payload).peekable();
    let (mut segments, mut crcs) = (Vec::new(), Vec::new());
    while let Some((extent, entry)) = bytes.next() {
        assert_eq!(entry.owner.name, key.as_bytes());
        assert_eq!(entry.body_offset, end, "key {key}: a hole in what is described");
        end += entry.len;
        assert!(entry.last || bytes.peek().is_some(), "key {key}: no end");
        segments.push(SegmentValue { extent: *extent, block: entry.block, len: entry.len });
        crcs.extend_from_slice(&entry.data_crcs);
    }
    assert_eq!(end, object.len, "key {key}");
    if let Some(striped) = payload {
        assert_eq!((segments, crcs), (striped.segments.clone(), striped.crcs.clone()), "key {key}");
    }
    described
}

/// Whether some segment of a body is described twice in the object's extents.
fn has_copies(object: &Object, shard: u16, walked: &Walked, owner: &Owner) -> bool {
    let mut seen = BTreeSet::new();
    let mut entries = object.footprint.iter().flat_map(|print| walked[&(shard, print.extent)].1.entries());
    entries.any(|entry| entry.owner == *owner && !seen.insert((entry.content as u8, entry.body_offset)))
}

/// Every checksum of the entry is that of the bytes in its column, as a power cut would leave them.
fn check_columns(
    layout: Layout,
    shard: u16,
    placement: &Placement,
    entry: &DirectoryEntry,
    disks: &[DiskHandle],
) {
    let (k, strip_len) = (u64::from(layout.k), u64::from(layout.strip_len));
    let (mut data, mut parity) = (entry.data_crcs.iter(), entry.parity_crcs.iter());
    let mut offset = u64::from(entry.block) * BLOCK_LEN;
    let mut rest = entry.len;
    while rest > 0 {
        let len = rest.div_ceil(k).next_multiple_of(BLOCK_LEN).min(strip_len);
        for (index, column) in placement.columns.iter().enumerate() {
            let start = u64::from(column.slot) * layout.geometry().data_slot_len + offset;
            let file = format!("shard-{shard:04}.data");
            let strip = disks[usize::from(column.disk.0)].read_durable(&file, start, len as usize);
            // Strips are shorter than a checksum block here.
            let crcs = if index < usize::from(layout.k) { &mut data } else { &mut parity };
            assert_eq!(crcs.next(), Some(&crc32c(&strip)), "column {index} of {placement:?} at {offset}");
        }
        offset += len;
        rest -= rest.min(len * k);
    }
    assert!(data.next().is_none() && parity.next().is_none());
}
