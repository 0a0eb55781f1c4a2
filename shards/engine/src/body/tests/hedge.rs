//! Slow and stuck disks: readers do not wait for them, and nothing is lost on the way.

use basalt_reactor::sim::Faults;

use super::*;
use crate::checksum::crc32c;

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
