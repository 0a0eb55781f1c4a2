//! What was written comes back, however it was announced, cut and crowded; also after a power cut.

use std::sync::Arc;

use basalt_reactor::sim::{Access, Crash};

use super::*;
use crate::body::layout::{BLOCK_CRC_LEN, StripeShape};
use crate::checksum::crc32c;

const SHAPES: [(u8, u8, u32); 6] =
    [(1, 0, 65_536), (1, 0, 4096), (2, 1, 65_536), (2, 1, 12_288), (4, 2, 16_384), (4, 2, 131_072)];

#[test]
fn bodies_come_back() {
    for (seed, (k, m, strip_len)) in SHAPES.into_iter().cycle().take(24).enumerate() {
        let mut rig = Rig::new(seed as u64, geometry(k, m, strip_len), 16 << 20);
        for _ in 0..3 {
            let len = match rig.random.below(4) {
                0 => rig.random.below(3),
                1 => rig.random.below(10_000),
                2 => rig.random.below(300_000),
                _ => rig.random.below(3 << 20),
            };
            let bytes = rig.bytes(len as usize);
            let expected = match rig.random.below(4) {
                0 => None,
                1 => Some(rig.random.below(2 * len + 1)),
                _ => Some(len),
            };
            let written = rig.write(&bytes, expected).expect("writes");
            check_description(&mut rig, &written, &bytes);
            let body = written.body.clone();
            drop(written);
            for _ in 0..4 {
                let (a, b) = (rig.random.below(len + 1), rig.random.below(len + 1));
                let range = a.min(b)..a.max(b);
                let read = rig.read(&body, range.clone()).expect("reads");
                assert!(read == bytes[range.start as usize..range.end as usize], "{range:?} of {len}");
            }
            assert!(rig.read(&body, 0..len).expect("reads") == bytes);
        }
        assert!(rig.lessor.held.borrow().is_empty(), "dropped leases are released");
        assert!(rig.damages.borrow().is_empty());
        assert_eq!(rig.core.arena().usage().used, 0, "memory leaks");
    }
}

/// Every checksum, data and parity, is that of the block on the disk, in the description and in the directory; every
/// lease covers what was written under it.
fn check_description(rig: &mut Rig, written: &Written, bytes: &[u8]) {
    let shape = StripeShape::new(&rig.geometry);
    assert_eq!(written.body.check(&rig.geometry), Ok(()));
    assert_eq!(written.body.len, bytes.len() as u64);
    let mut crcs = written.body.crcs.iter();
    let mut body_offset = 0;
    let mut owner = None;
    assert_eq!(written.segment_blocks.len(), written.body.segments.len());
    for (segment, &blocks) in written.body.segments.iter().zip(&written.segment_blocks) {
        let directory = rig.walk(segment.extent);
        assert_eq!(directory.faults, []);
        let chunk = directory.chunks.iter().find(|chunk| chunk.start() == segment.block).expect("described");
        let [entry] = &chunk.entries[..] else { panic!("one segment, one entry") };
        assert_eq!(chunk.placement, *rig.lessor.placement(segment.extent));
        assert_eq!(chunk.end() - segment.block, blocks);
        assert_eq!(u64::from(chunk.block - segment.block), shape.blocks_for(segment.len));
        assert_eq!((entry.block, entry.len, entry.body_offset), (segment.block, segment.len, body_offset));
        assert!(entry.fits(&rig.geometry));
        assert!(entry.last || body_offset + segment.len < written.body.len, "the end is marked");
        assert_eq!(owner.get_or_insert(entry.owner.clone()), &entry.owner);
        let (mut data, mut parity) = (entry.data_crcs.iter(), entry.parity_crcs.iter());
        let placement = rig.lessor.placement(segment.extent);
        let mut at = 0;
        while at < segment.len {
            let stripe = shape.stripe_at(segment.len, at);
            for (index, column) in placement.columns.iter().enumerate() {
                let offset = u64::from(segment.block) * 4096 + stripe.column_offset;
                let strip = rig.disk(column.disk).read_durable(
                    "data",
                    rig.place(*column, offset),
                    stripe.strip_len as usize,
                );
                for block in strip.chunks(BLOCK_CRC_LEN as usize) {
                    let is_data = index < usize::from(rig.geometry.k);
                    let described = if is_data { &mut data } else { &mut parity };
                    assert_eq!(described.next(), Some(&crc32c(block)), "column {index} at {offset}");
                    assert!(!is_data || crcs.next() == Some(&crc32c(block)));
                }
            }
            at += stripe.len;
        }
        assert!(data.next().is_none() && parity.next().is_none());
        body_offset += segment.len;
    }
    assert!(crcs.next().is_none());
    let used: u64 = written.leases.held().iter().map(|lease| u64::from(lease.used_blocks)).sum();
    assert_eq!(used, written.segment_blocks.iter().map(|&blocks| u64::from(blocks)).sum::<u64>());
}

#[test]
fn a_known_length_takes_no_more_than_it_needs() {
    let mut rig = Rig::new(7, geometry(4, 2, 65_536), 16 << 20);
    let bytes = rig.bytes(5000);
    let written = rig.write(&bytes, Some(5000)).expect("writes");
    assert_eq!(written.leases.held(), [LeaseUse { id: 1, used_blocks: 2 }]);
    assert_eq!(written.leases.keep(), [LeaseUse { id: 1, used_blocks: 2 }]);
    assert_eq!(rig.lessor.held.borrow().len(), 1, "kept leases stay");
    assert_eq!(rig.lessor.next.get(), (0, 2));
}

/// A body of unknown length may end where its segment is full: then too its last entry says so.
#[test]
fn a_body_that_fills_its_segment_has_an_end() {
    // The test's shard gives shorter leases than were asked for, so some of these end with theirs.
    for count in 1..=60 {
        let mut rig = Rig::new(count, geometry(2, 1, 4096), 16 << 20);
        let stripe_len = StripeShape::new(&rig.geometry).stripe_len();
        let bytes = rig.bytes((count * stripe_len) as usize);
        let written = rig.write(&bytes, None).expect("writes");
        check_description(&mut rig, &written, &bytes);
        let last = written.body.segments.last().expect("it has bytes");
        let directory = rig.walk(last.extent);
        let chunk = directory.chunks.iter().find(|chunk| chunk.start() == last.block).expect("described");
        assert!(chunk.entries[0].last, "{count} stripes");
    }
}

#[test]
fn what_is_finished_survives_a_power_cut() {
    for seed in 0..12 {
        let (k, m, strip_len) = SHAPES[seed as usize % SHAPES.len()];
        let mut rig = Rig::new(seed, geometry(k, m, strip_len), 16 << 20);
        let len = rig.random.below(2 << 20);
        let bytes = rig.bytes(len as usize);
        let body = rig.write(&bytes, None).expect("writes").body;
        rig.world.crash(Crash::PowerCut);
        rig.reboot();
        assert!(rig.read(&body, 0..len).expect("reads") == bytes, "seed {seed}");
        assert!(rig.damages.borrow().is_empty());
    }
}

/// Many writers and readers in an arena that holds hardly one stripe of each: slow, but all of them end.
#[test]
fn a_small_arena_slows_but_never_stops() {
    for (seed, arena_len) in [(1, 7 * 65_536), (2, 8 * 65_536 + 4096), (3, 13 * 65_536), (4, 1 << 20)] {
        let mut rig = Rig::new(seed, geometry(4, 2, 65_536), arena_len);
        let bodies = Rc::clone(&rig.bodies);
        let contents: Vec<Vec<u8>> = (0..5).map(|index| rig.bytes(200_000 * index + 7)).collect();
        let mut randoms: Vec<Random> = (0..5).map(|_| rig.random.fork()).collect();
        let core = rig.core.clone();
        let (places, on_damage) = (rig.lessor.places(), rig.on_damage());
        rig.world.run(async move {
            let tasks: Vec<_> = contents
                .into_iter()
                .map(|bytes| {
                    let (bodies, random) = (Rc::clone(&bodies), randoms.pop().expect("one each"));
                    let (places, on_damage) = (Rc::clone(&places), Rc::clone(&on_damage));
                    core.spawn(async move {
                        let written = write(&bodies, &bytes, None, random).await.expect("writes");
                        let len = written.body.len;
                        let read = read(&bodies, Rc::new(written.body), 0..len, places, on_damage).await;
                        assert!(read.expect("reads") == bytes);
                    })
                })
                .collect();
            for task in tasks {
                assert!(task.await.is_some());
            }
        });
        assert_eq!(rig.core.arena().usage().used, 0);
        assert_eq!(rig.bodies.core.budget.used(), 0);
    }
}

#[test]
fn a_dropped_writer_releases_after_its_last_write() {
    for seed in 0..8 {
        let mut rig = Rig::new(seed, geometry(2, 1, 65_536), 16 << 20);
        let bytes = rig.bytes(2 * 65_536);
        let bodies = Rc::clone(&rig.bodies);
        for disk in 0..3 {
            rig.disk(DiskIndex(disk)).set_stuck(true);
        }
        rig.world.run(async move {
            let mut writer = writer(&bodies);
            writer.expect(2 * 65_536);
            writer.write(&bytes).await.expect("two runs may be under way");
        });
        rig.world.run_for(Duration::from_secs(1));
        assert!(!rig.lessor.held.borrow().is_empty(), "writes are under way");
        for disk in 0..3 {
            rig.disk(DiskIndex(disk)).set_stuck(false);
        }
        rig.world.run_until_idle();
        assert!(rig.lessor.held.borrow().is_empty());
        assert_eq!(rig.core.arena().usage().used, 0);
    }
}

#[test]
fn writers_of_the_moment_share_syncs() {
    let mut rig = Rig::new(3, geometry(2, 1, 4096), 32 << 20);
    let (core, bodies) = (rig.core.clone(), Rc::clone(&rig.bodies));
    let randoms: Vec<Random> = (0..40).map(|_| rig.random.fork()).collect();
    rig.world.run(async move {
        let tasks: Vec<_> = randoms
            .into_iter()
            .map(|random| {
                let bodies = Rc::clone(&bodies);
                core.spawn(async move { write(&bodies, &[7; 10_000], Some(10_000), random).await.is_ok() })
            })
            .collect();
        for task in tasks {
            assert_eq!(task.await, Some(true));
        }
    });
    let started = rig.bodies.syncs.started();
    assert!((3..=30).contains(&started), "{started} syncs of 3 disks for 40 bodies");
}

#[test]
fn failing_devices_are_named() {
    for (access, operation) in
        [(Access::Write, error::Operation::Write), (Access::Sync, error::Operation::Sync)]
    {
        let mut rig = Rig::new(5, geometry(2, 1, 4096), 16 << 20);
        rig.disk(DiskIndex(1)).set_failing(access, true);
        let Err(BodyError::Device { operation: got, disk, extent, error }) = rig.write(&[1; 100_000], None)
        else {
            panic!("the write must fail")
        };
        assert_eq!((got, disk, extent, error.os), (operation, DiskIndex(1), ExtentId(100), Some(5)));
        rig.world.run_until_idle();
        assert!(rig.lessor.held.borrow().is_empty());
    }
}

/// A sync that fails for one body condemns another whose bytes it covered, though that one's own sync succeeds.
#[test]
fn a_failed_sync_condemns_what_was_written_before_it() {
    let mut rig = Rig::new(6, geometry(1, 0, 4096), 16 << 20);
    let (bodies, disk) = (Rc::clone(&rig.bodies), rig.disk(DiskIndex(0)));
    let random = rig.random.fork();
    let (first, second) = rig.world.run(async move {
        let mut early = writer(&bodies);
        early.write(&[1; 8192]).await.expect("writes");
        disk.set_failing(Access::Sync, true);
        let second = write(&bodies, &[2; 8192], None, random).await.map(|_| ());
        disk.set_failing(Access::Sync, false);
        (early.finish().await.map(|_| ()), second)
    });
    assert!(matches!(second, Err(BodyError::Device { .. })), "{second:?}");
    assert!(matches!(first, Err(BodyError::Device { .. })), "{first:?}");
    assert!(rig.write(&[3; 8192], None).is_ok(), "later bodies are not concerned");
}

/// The device reports a failed flush to one core, and to the other's later flush that all is well.
#[test]
fn a_failed_sync_condemns_what_another_core_wrote_before_it() {
    for seed in 0..8 {
        let mut rig = Rig::new(seed, geometry(1, 0, 4096), 16 << 20);
        let cores = rig.world.boot(2);
        let flushes = Flushes::new(1, 2);
        rig.lessor = TestLessor::new(cores[0].clone(), rig.geometry, rig.random.fork());
        let bodies: Vec<_> = cores
            .iter()
            .map(|core| {
                let flushes = CoreFlushes::new(Arc::clone(&flushes), core.id());
                open_sharing(core, rig.geometry, &rig.lessor, &[], flushes)
            })
            .collect();
        let disk = rig.disk(DiskIndex(0));
        let random = rig.random.fork();
        let (ours, theirs, after) = rig.world.run(async move {
            let mut early = writer(&bodies[0]);
            early.expect(8192);
            early.write(&[1; 8192]).await.expect("writes");
            // The write itself is over before the flush that fails.
            cores[0].sleep(Duration::from_millis(50)).await;
            disk.set_failing(Access::Sync, true);
            let other = Rc::clone(&bodies[1]);
            let task =
                cores[1].spawn(async move { write(&other, &[2; 8192], None, random).await.map(|_| ()) });
            let theirs = task.await.expect("not cancelled");
            disk.set_failing(Access::Sync, false);
            let ours = early.finish().await.map(|_| ());
            let mut late = writer(&bodies[0]);
            late.write(&[3; 8192]).await.expect("writes");
            (ours, theirs, late.finish().await.map(|_| ()))
        });
        assert!(matches!(theirs, Err(BodyError::Device { .. })), "{theirs:?}");
        assert!(matches!(ours, Err(BodyError::Device { .. })), "{ours:?}");
        assert_eq!(after, Ok(()), "later bodies are not concerned");
    }
}

#[test]
fn no_space_and_too_few_disks_are_errors() {
    let mut rig = Rig::new(8, geometry(2, 1, 65_536), 16 << 20);
    let bytes = rig.bytes(50 << 20);
    assert!(matches!(rig.write(&bytes, None), Err(BodyError::NoSpace)));
    rig.world.run_until_idle();
    assert!(rig.lessor.held.borrow().is_empty());
    let mut rig = Rig::new(9, geometry(2, 1, 65_536), 16 << 20);
    rig.reopen(&[1, 2]);
    let Err(error) = rig.write(&[1; 10], None) else { panic!("one column is not enough") };
    assert!(matches!(error, BodyError::Absent { disk: DiskIndex(1 | 2), .. }), "{error:?}");
}

#[test]
fn a_failed_writer_stays_failed() {
    let mut rig = Rig::new(10, geometry(1, 0, 4096), 16 << 20);
    rig.lessor.next.set((EXTENT_COUNT as usize, 0));
    let bodies = Rc::clone(&rig.bodies);
    rig.world.run(async move {
        let mut writer = writer(&bodies);
        assert_eq!(writer.write(&[1]).await, Err(BodyError::NoSpace));
        let failed = BodyError::Failed(Box::new(BodyError::NoSpace));
        assert_eq!(writer.write(&[1]).await, Err(failed.clone()));
        assert_eq!(writer.finish().await.map(|_| ()), Err(failed));
    });
}
