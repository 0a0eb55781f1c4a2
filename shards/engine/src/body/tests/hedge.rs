//! Slow and stuck disks: readers do not wait for them, and nothing is lost on the way.

use basalt_reactor::sim::Faults;

use super::*;
use crate::checksum::crc32c;
use crate::extent::members::STUCK_AFTER;

/// What a slow disk adds to each of its answers.
const SLOWED_BY: Duration = Duration::from_millis(200);

fn slow_down(disk: &DiskHandle) {
    disk.set_faults(Faults { stall: 1.0, stall_for: SLOWED_BY, ..Faults::default() });
}

/// The time that all but one in a thousand stayed within.
fn per_mille_999(mut latencies: Vec<Duration>) -> Duration {
    latencies.sort_unstable();
    latencies[(latencies.len() * 999).div_ceil(1000) - 1]
}

/// Inline bodies in all replicas of a log extent.
struct Inline {
    placement: Rc<Placement>,
    bodies: Vec<(InlineBody, Vec<u8>)>,
}

fn inline(rig: &mut Rig, count: usize) -> Inline {
    let replicas = rig.geometry.replicas() as u8;
    let columns = (0..replicas).map(|disk| Column { disk: DiskIndex(disk), slot: 3 }).collect();
    let placement = Rc::new(Placement { id: ExtentId(1), class: ExtentClass::Log, columns });
    let bodies = (0..count as u64)
        .map(|index| {
            let (len, offset) = (1 + rig.random.below(9000) as u32, index * 20_480 + rig.random.below(4096));
            let bytes = rig.bytes(len as usize);
            for disk in 0..replicas {
                rig.disk(DiskIndex(disk)).overwrite("log", 3 * rig.geometry.log_slot_len + offset, &bytes);
            }
            (InlineBody { extent: ExtentId(1), offset, len, crcs: vec![crc32c(&bytes)] }, bytes)
        })
        .collect();
    Inline { placement, bodies }
}

impl Inline {
    /// Reads bodies one after the other, and says how long each took.
    fn read(&self, rig: &mut Rig, count: usize) -> Vec<Duration> {
        let (core, bodies, on_damage) = (rig.core.clone(), Rc::clone(&rig.bodies), rig.on_damage());
        let (placement, all, mut random) =
            (Rc::clone(&self.placement), self.bodies.clone(), rig.random.fork());
        rig.world.run(async move {
            let mut latencies = Vec::with_capacity(count);
            for _ in 0..count {
                let (body, bytes) = &all[random.below(all.len() as u64) as usize];
                let before = core.now();
                let read = bodies.read_inline(&placement, body, 0..body.len, &on_damage).await;
                latencies.push(core.now().since(before));
                assert!(read.expect("reads")[..] == bytes[..]);
            }
            latencies
        })
    }
}

#[test]
fn a_slow_replica_of_an_inline_body_is_not_waited_for() {
    for (seed, (k, m)) in [(2, 1), (1, 1), (4, 2)].into_iter().enumerate() {
        let mut rig = Rig::new(seed as u64, geometry(k, m, 65_536), 16 << 20);
        let inline = inline(&mut rig, 60);
        let healthy = per_mille_999(inline.read(&mut rig, 5000));
        assert_eq!(rig.bodies.files.reads().counts().hedged, 0, "no healthy disk is late");
        slow_down(&rig.disk(DiskIndex(0)));
        let slowed = per_mille_999(inline.read(&mut rig, 5000));
        assert!(slowed * 2 <= healthy * 3, "{k}+{m}: {slowed:?} instead of {healthy:?}");
        let counts = rig.bodies.files.reads().counts();
        assert!((1..20).contains(&counts.hedged) && counts.hedges_won == counts.hedged, "{counts:?}");
        // It recovers its standing once it answers in time again.
        rig.disk(DiskIndex(0)).set_faults(Faults::default());
        assert!(rig.bodies.files.reads().is_avoided(DiskIndex(0)));
        for _ in 0..12 {
            inline.read(&mut rig, 10);
            rig.world.run_for(Duration::from_millis(300));
        }
        assert!(!rig.bodies.files.reads().is_avoided(DiskIndex(0)));
        assert!(rig.damages.borrow().is_empty());
        assert_eq!((rig.core.arena().usage().used, rig.bodies.core.budget.used()), (0, 0));
    }
}

#[test]
fn a_stuck_replica_costs_the_memory_of_its_reads_and_nothing_else() {
    let mut rig = Rig::new(7, geometry(2, 1, 65_536), 16 << 20);
    let inline = inline(&mut rig, 20);
    rig.disk(DiskIndex(1)).set_stuck(true);
    let latencies = inline.read(&mut rig, 200);
    let late = latencies.iter().filter(|latency| **latency > Duration::from_millis(10)).count();
    assert!((1..=4).contains(&late), "{late} reads found out");
    let (used, charged) = (rig.core.arena().usage().used, rig.bodies.core.budget.used());
    assert!(used > 0 && used == charged, "{used} bytes are taken, {charged} counted");
    rig.disk(DiskIndex(1)).set_stuck(false);
    rig.world.run_until_idle();
    assert_eq!((rig.core.arena().usage().used, rig.bodies.core.budget.used()), (0, 0));
    assert!(rig.damages.borrow().is_empty(), "late is not damaged");
}

#[test]
fn wrong_bytes_of_the_replica_asked_second_are_refused() {
    let mut rig = Rig::new(8, geometry(2, 1, 65_536), 16 << 20);
    let inline = inline(&mut rig, 12);
    for (body, _) in &inline.bodies {
        let place = 3 * rig.geometry.log_slot_len + body.offset + u64::from(body.len) / 2;
        rig.disk(DiskIndex(1)).corrupt("log", place, 8);
    }
    slow_down(&rig.disk(DiskIndex(0)));
    inline.read(&mut rig, 40);
    let damages = rig.damages.take();
    assert!(!damages.is_empty() && damages.iter().all(|damage| damage.disk == DiskIndex(1)));
}

/// A body in stripes, and its bytes.
type Stored = (Rc<StripedBody>, Vec<u8>);

/// Bodies of different lengths.
fn stored(rig: &mut Rig, count: usize, len_max: u64) -> Vec<Stored> {
    rig.lessor.generous.set(true);
    (0..count)
        .map(|_| {
            let len = 1 + rig.random.below(len_max);
            let bytes = rig.bytes(len as usize);
            (Rc::new(rig.write(&bytes, Some(len)).expect("writes").body), bytes)
        })
        .collect()
}

/// Reads whole bodies and ranges of them one after the other, and says how long each read took.
fn read_stored(rig: &mut Rig, stored: &[Stored], count: usize) -> Vec<Duration> {
    let (core, bodies, on_damage) = (rig.core.clone(), Rc::clone(&rig.bodies), rig.on_damage());
    let (places, all, mut random) = (rig.lessor.places(), stored.to_vec(), rig.random.fork());
    rig.world.run(async move {
        let mut latencies = Vec::with_capacity(count);
        for _ in 0..count {
            let (body, bytes) = &all[random.below(all.len() as u64) as usize];
            let range = match random.below(3) {
                0 => 0..body.len,
                _ => {
                    let start = random.below(body.len);
                    start..start + 1 + random.below((body.len - start).min(20_000))
                }
            };
            let before = core.now();
            let (places, on_damage) = (Rc::clone(&places), Rc::clone(&on_damage));
            let found = read(&bodies, Rc::clone(body), range.clone(), places, on_damage).await;
            latencies.push(core.now().since(before));
            assert!(found.expect("reads") == bytes[range.start as usize..range.end as usize]);
        }
        latencies
    })
}

fn assert_nothing_is_held(rig: &mut Rig) {
    rig.world.run_until_idle();
    let core = &rig.bodies.core;
    let held = (rig.core.arena().usage().used, core.budget.used(), core.recoveries.used());
    assert_eq!(held, (0, 0, 0), "arena, budget, recoveries");
}

/// The promise: with a disk, or as many as there is parity, slowed by 200 ms, all but one read in a thousand take at most half
/// as long again as with sound disks; what it takes to find out is in it.
#[test]
fn slow_disks_are_read_around() {
    for (seed, (k, m, slow)) in
        [(4, 2, &[1][..]), (4, 2, &[0, 3]), (2, 1, &[1]), (1, 1, &[0])].into_iter().enumerate()
    {
        let mut rig = Rig::new(seed as u64, geometry(k, m, 16_384), 16 << 20);
        let stored = stored(&mut rig, 20, 150_000);
        let healthy = per_mille_999(read_stored(&mut rig, &stored, 3000));
        assert_eq!(rig.bodies.files.reads().counts().hedged, 0, "no healthy disk is late");
        for &disk in slow {
            slow_down(&rig.disk(DiskIndex(disk)));
        }
        let slowed = per_mille_999(read_stored(&mut rig, &stored, 9000));
        assert!(slowed * 2 <= healthy * 3, "{k}+{m}: {slowed:?} instead of {healthy:?}");
        let counts = rig.bodies.files.reads().counts();
        assert!((1..60).contains(&counts.hedged) && counts.hedges_won > 0, "{counts:?}");
        assert!(rig.bodies.core.restored() > 100);
        assert!(rig.damages.borrow().is_empty(), "slow is not damaged");
        assert_nothing_is_held(&mut rig);
    }
}

/// A disk that is slow now and then is hedged against; the budget holds.
#[test]
fn a_disk_that_stalls_now_and_then_delays_nobody_for_long() {
    let mut rig = Rig::new(21, geometry(4, 2, 16_384), 16 << 20);
    let stored = stored(&mut rig, 20, 150_000);
    read_stored(&mut rig, &stored, 500);
    let stalls = Faults { stall: 0.02, stall_for: SLOWED_BY, ..Faults::default() };
    rig.disk(DiskIndex(2)).set_faults(stalls);
    let latencies = read_stored(&mut rig, &stored, 4000);
    let worst = per_mille_999(latencies);
    assert!(worst < Duration::from_millis(8), "{worst:?}");
    assert!(rig.bodies.files.reads().counts().hedges_won > 10);
    assert_nothing_is_held(&mut rig);
}

#[test]
fn stuck_disks_stop_no_read() {
    for (seed, stuck) in [vec![3], vec![0, 4]].into_iter().enumerate() {
        let mut rig = Rig::new(30 + seed as u64, geometry(4, 2, 16_384), 16 << 20);
        let stored = stored(&mut rig, 10, 400_000);
        for &disk in &stuck {
            rig.disk(DiskIndex(disk)).set_stuck(true);
        }
        read_stored(&mut rig, &stored, 300);
        // The memory of reads that do not end stays taken, and is counted.
        let (used, counted) = (rig.core.arena().usage().used, rig.bodies.core.budget.used());
        assert!(used > 0 && used == counted, "{used} bytes are taken, {counted} counted");
        for &disk in &stuck {
            rig.disk(DiskIndex(disk)).set_stuck(false);
        }
        assert!(rig.damages.borrow().is_empty());
        assert_nothing_is_held(&mut rig);
    }
}

/// The others cannot stand in for a whole read of the stuck disk, because each has a bad block, but for every block of it. It is
/// waited for once, not for every block again, and longer each time.
#[test]
fn a_stuck_disk_is_waited_for_once_where_others_are_damaged() {
    let mut rig = Rig::new(35, geometry(3, 2, 4096), 16 << 20);
    rig.lessor.generous.set(true);
    let bytes = rig.bytes(200_000);
    let body = Rc::new(rig.write(&bytes, Some(200_000)).expect("writes").body);
    let placement = rig.lessor.placement(body.segments[0].extent);
    let start = u64::from(body.segments[0].block) * 4096;
    for (column, row) in [(1, 3), (2, 12), (3, 9)] {
        let bad = placement.columns[column];
        rig.disk(bad.disk).make_unreadable("data", rig.place(bad, start + row * 4096), 512);
    }
    rig.disk(placement.columns[0].disk).set_stuck(true);
    let (core, bodies, on_damage) = (rig.core.clone(), Rc::clone(&rig.bodies), rig.on_damage());
    let places = rig.lessor.places();
    let took = rig.world.run(async move {
        let before = core.now();
        assert!(read(&bodies, body, 0..200_000, places, on_damage).await.expect("reads") == bytes);
        core.now().since(before)
    });
    assert!(took < 3 * STUCK_AFTER, "{took:?}");
    rig.disk(placement.columns[0].disk).set_stuck(false);
    assert_nothing_is_held(&mut rig);
}

/// Many readers at once find out together, in an arena that has no room to spare.
#[test]
fn readers_side_by_side_get_around_a_stuck_disk() {
    for (seed, arena_len) in [(40, 1 << 20), (41, 3 << 20), (42, 16 << 20)] {
        let mut rig = Rig::new(seed, geometry(4, 2, 65_536), arena_len);
        let stored = stored(&mut rig, 3, 900_000);
        rig.disk(DiskIndex(1)).set_stuck(true);
        let (core, bodies, on_damage) = (rig.core.clone(), Rc::clone(&rig.bodies), rig.on_damage());
        let places = rig.lessor.places();
        rig.world.run(async move {
            let tasks: Vec<_> = (0..12)
                .map(|index| {
                    let (body, bytes) = stored[index % stored.len()].clone();
                    let (bodies, places) = (Rc::clone(&bodies), Rc::clone(&places));
                    let on_damage = Rc::clone(&on_damage);
                    core.spawn(async move {
                        let len = body.len;
                        read(&bodies, body, 0..len, places, on_damage).await.expect("reads") == bytes
                    })
                })
                .collect();
            for task in tasks {
                assert!(task.await.expect("not cancelled"));
            }
        });
        rig.disk(DiskIndex(1)).set_stuck(false);
        assert_nothing_is_held(&mut rig);
    }
}

/// Readers dropped at any moment, also while others are asked for what is late.
#[test]
fn readers_that_go_away_leave_nothing_behind() {
    let mut rig = Rig::new(50, geometry(4, 2, 16_384), 16 << 20);
    let stored = stored(&mut rig, 6, 700_000);
    read_stored(&mut rig, &stored, 100);
    slow_down(&rig.disk(DiskIndex(2)));
    for round in 0..60 {
        let (core, bodies, on_damage) = (rig.core.clone(), Rc::clone(&rig.bodies), rig.on_damage());
        let (places, (body, bytes)) = (rig.lessor.places(), stored[round % stored.len()].clone());
        let (patience, taken) = (rig.random.below(8000), rig.random.below(6));
        rig.world.run(async move {
            let len = body.len;
            let mut reader = bodies.reader(body, 0..len, places, on_damage, None).expect("valid");
            let reading = core.spawn(async move {
                let mut read = Vec::new();
                for _ in 0..taken {
                    match reader.next().await {
                        Some(slice) => read.extend_from_slice(&slice.expect("reads")),
                        None => break,
                    }
                }
                let _ = reader.next().await;
                assert!(bytes.starts_with(&read));
            });
            core.sleep(Duration::from_micros(patience)).await;
            reading.cancel();
            reading.await;
        });
    }
    assert!(rig.bodies.files.reads().counts().hedged > 0);
    assert_nothing_is_held(&mut rig);
}

/// What stands in for a slow disk may be damaged itself: that is noticed, reported where it is, and no wrong byte leaves.
#[test]
fn wrong_bytes_in_place_of_a_slow_disk_are_caught() {
    let mut rig = Rig::new(60, geometry(4, 2, 65_536), 16 << 20);
    rig.lessor.generous.set(true);
    let bytes = rig.bytes(1_000_000);
    let body = Rc::new(rig.write(&bytes, Some(1_000_000)).expect("writes").body);
    let stored = [(Rc::clone(&body), bytes)];
    let placement = rig.lessor.placement(body.segments[0].extent);
    let (slow, bad) = (placement.columns[1], placement.columns[4]);
    for block in 0..3 {
        rig.disk(bad.disk).corrupt("data", rig.place(bad, block * 65_536 + 77), 1);
    }
    slow_down(&rig.disk(slow.disk));
    read_stored(&mut rig, &stored, 60);
    let damages = rig.damages.take();
    assert!(!damages.is_empty());
    assert!(damages.iter().all(|damage| damage.disk == bad.disk), "{damages:?}");
    assert_nothing_is_held(&mut rig);
}

/// Without a disk a large body comes nearly as fast as with it: what is lost is restored many blocks at a time, from reads
/// that run side by side.
#[test]
fn a_large_body_without_a_disk_comes_as_fast_as_with_it() {
    let mut rig = Rig::new(70, geometry(4, 2, 65_536), 32 << 20);
    rig.lessor.generous.set(true);
    let bytes = rig.bytes(6 << 20);
    let body = Rc::new(rig.write(&bytes, Some(6 << 20)).expect("writes").body);
    let mut took = Vec::new();
    for absent in [&[][..], &[1], &[0, 3]] {
        rig.reopen(absent);
        let (core, bodies, on_damage) = (rig.core.clone(), Rc::clone(&rig.bodies), rig.on_damage());
        let (places, body, bytes) = (rig.lessor.places(), Rc::clone(&body), bytes.clone());
        took.push(rig.world.run(async move {
            let before = core.now();
            for _ in 0..20 {
                let (places, on_damage) = (Rc::clone(&places), Rc::clone(&on_damage));
                let found = read(&bodies, Rc::clone(&body), 0..6 << 20, places, on_damage).await;
                assert!(found.expect("reads") == bytes);
            }
            core.now().since(before)
        }));
        let lost = rig.bodies.core.restored();
        assert_eq!(lost > 0, !absent.is_empty(), "{lost} blocks restored");
    }
    assert!(rig.damages.borrow().is_empty(), "an absent disk is no damage");
    assert!(took[1] * 4 <= took[0] * 5 && took[2] * 4 <= took[0] * 5, "{took:?}");
    assert_nothing_is_held(&mut rig);
}
