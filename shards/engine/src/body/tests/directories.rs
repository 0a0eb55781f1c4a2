//! Directory chunks on the disks: written with their stripes, found whatever payload imitates them, told from stale ones.

use basalt_reactor::sim::Crash;

use super::*;
use crate::body::directory::{CHUNK_MAGIC, DirectoryChunk};
use crate::format::frame;

/// A body of known length is one write and one sync per column, chunk included.
#[test]
fn a_chunk_costs_no_write_of_its_own() {
    for (k, m, len) in [(1, 0, 100), (1, 0, 1 << 20), (2, 1, 300_000), (4, 2, 500_000)] {
        let geometry = Geometry { data_slot_len: 2 << 20, ..geometry(k, m, 65_536) };
        let mut rig = Rig::new(1, geometry, 32 << 20);
        rig.lessor.generous.set(true);
        let bytes = rig.bytes(len);
        let written = rig.write(&bytes, Some(len as u64)).expect("writes");
        let columns = u64::from(k) + u64::from(m);
        let operations = (rig.bodies.column_writes(), rig.bodies.syncs.started());
        assert_eq!(operations, (columns, columns), "{k}+{m}, {len} bytes");
        assert_eq!(rig.walk(written.body.segments[0].extent).entries().count(), 1);
    }
}

/// Payload in the form of a chunk, with everything right but the secret, is payload.
#[test]
fn payload_is_never_taken_for_a_chunk() {
    let mut rig = Rig::new(2, geometry(1, 1, 65_536), 16 << 20);
    rig.lessor.generous.set(true);
    let placement = rig.lessor.placement(ExtentId(100));
    let mut bytes = Vec::new();
    for block in 0..8 {
        let forged = DirectoryChunk {
            block,
            epoch: u64::MAX,
            lease: u64::MAX,
            placement: (*placement).clone(),
            entries: vec![],
        };
        bytes.extend(forged.encode(&Origin { secret: [0; 16], ..ORIGIN }));
    }
    bytes.extend(frame::seal(CHUNK_MAGIC, 1, &[0xff; 60_000]));
    let written = rig.write(&bytes, Some(bytes.len() as u64)).expect("writes");
    let directory = rig.walk(ExtentId(100));
    assert_eq!(directory.faults, []);
    assert_eq!(directory.entries().map(|entry| entry.len).collect::<Vec<_>>(), [bytes.len() as u64]);
    assert_eq!(directory.chunks[0].end(), written.segment_blocks[0]);
}

/// Chunks at every distance from the end of a read, one body longer than a read, are found in all columns.
#[test]
fn chunks_are_found_wherever_they_lie() {
    let mut rig = Rig::new(3, geometry(2, 1, 4096), 16 << 20);
    let mut segments = Vec::new();
    for _ in 0..60 {
        let len = 1 + rig.random.below(60_000);
        let bytes = rig.bytes(len as usize);
        let written = rig.write(&bytes, Some(len)).expect("writes");
        segments.extend(written.body.segments.iter().map(|s| (s.extent, s.block, s.len)));
        let _ = written.leases.keep();
    }
    segments.sort_unstable();
    let extents: BTreeSet<ExtentId> = segments.iter().map(|&(extent, ..)| extent).collect();
    let mut described = Vec::new();
    for extent in extents {
        let directory = rig.walk(extent);
        assert_eq!(directory.faults, []);
        described.extend(directory.entries().map(|entry| (extent, entry.block, entry.len)));
    }
    assert!(described.len() >= 60);
    assert_eq!(described, segments);
}

/// A chunk that rotted away in some columns is read from another, and the loss is reported.
#[test]
fn one_column_is_enough() {
    for lost in 0..3 {
        let mut rig = Rig::new(4, geometry(2, 1, 65_536), 16 << 20);
        let written = rig.write(&[5; 200_000], Some(200_000)).expect("writes");
        let (segment, blocks) = (written.body.segments[0], written.segment_blocks[0]);
        let placement = rig.lessor.placement(segment.extent);
        let chunk_at = u64::from(segment.block + blocks - 1) * 4096;
        for column in &placement.columns[..lost] {
            rig.disk(column.disk).corrupt("data", rig.place(*column, chunk_at) + 100, 1);
        }
        let unreadable = placement.columns[2];
        rig.disk(unreadable.disk).make_unreadable("data", rig.place(unreadable, 900_000), 512);
        let directory = rig.walk(segment.extent);
        assert!(directory.entries().any(|entry| entry.len == segment.len));
        let missing = directory.faults.iter().filter(|damage| damage.fault == Fault::NoChunk);
        assert!(
            missing.map(|damage| (damage.column, damage.offset)).eq((0..lost as u8).map(|c| (c, chunk_at)))
        );
        assert!(directory.faults.iter().any(|damage| matches!(damage.fault, Fault::Device(_))));
        rig.reopen(&[usize::from(placement.columns[0].disk.0)]);
        let directory = rig.walk(segment.extent);
        assert!(directory.entries().any(|entry| entry.len == segment.len));
        assert_eq!(directory.faults.iter().filter(|damage| damage.fault == Fault::Absent).count(), 1);
    }
}

/// A body that was given up leaves its chunk; once its blocks are lent again, the chunk is not believed any more.
#[test]
fn a_chunk_given_up_loses_to_the_next_owner() {
    let mut rig = Rig::new(5, geometry(2, 1, 4096), 16 << 20);
    rig.lessor.generous.set(true);
    drop(rig.write(&[1; 100_000], Some(100_000)).expect("writes"));
    let stale = rig.walk(ExtentId(100));
    assert_eq!(stale.entries().map(|entry| entry.len).collect::<Vec<_>>(), [100_000]);
    rig.lessor.next.set((0, 0));
    drop(rig.write(&[2; 20_000], Some(20_000)).expect("writes"));
    let directory = rig.walk(ExtentId(100));
    assert_eq!(directory.entries().map(|entry| entry.len).collect::<Vec<_>>(), [20_000]);
    let placement = rig.lessor.placement(ExtentId(100));
    let bodies = Rc::clone(&rig.bodies);
    let column = rig.world.run(async move { bodies.walk_column(&placement, 0).await });
    assert_eq!(column.chunks.len(), 2, "the stale one is still there, behind the younger body");
}

#[test]
fn chunks_of_finished_bodies_survive_a_power_cut() {
    for seed in 0..8 {
        let (k, m) = [(1, 0), (2, 1), (4, 2)][seed as usize % 3];
        let mut rig = Rig::new(seed, geometry(k, m, 16_384), 16 << 20);
        let len = 1 + rig.random.below(2 << 20);
        let bytes = rig.bytes(len as usize);
        let body = rig.write(&bytes, None).expect("writes").body;
        rig.world.crash(Crash::PowerCut);
        rig.reboot();
        for segment in &body.segments {
            let directory = rig.walk(segment.extent);
            assert_eq!(directory.faults, []);
            assert!(directory.entries().any(|e| (e.block, e.len) == (segment.block, segment.len)));
        }
    }
}
