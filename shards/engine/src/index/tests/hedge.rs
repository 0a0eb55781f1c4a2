//! Slow and stuck replicas: a lookup does not wait for them.

use std::time::Duration;

use basalt_reactor::sim::{Faults, Random};

use super::*;

const KEY_COUNT: u64 = 2000;

async fn look_up(core: &Core, index: &Index, random: &mut Random, count: u64) -> Duration {
    let mut latencies = Vec::new();
    for _ in 0..count {
        let key = random.below(KEY_COUNT).to_be_bytes();
        let before = core.now();
        let found = index.get(&key).await.expect("a replica answers");
        latencies.push(core.now().since(before));
        assert_eq!(found.as_deref(), Some(key.repeat(20).as_slice()));
    }
    latencies.sort_unstable();
    latencies[latencies.len() * 999 / 1000 - 1]
}

#[test]
fn a_slow_replica_of_a_table_is_not_waited_for() {
    for slowed_disk in [0, 1] {
        // Nothing is cached, so that each lookup meets the disk.
        let (mut world, index, _slots) = index_in(slowed_disk, IndexConfig { cache_len: 0, ..config() });
        let disk = world.disk(&format!("disk{slowed_disk}"));
        let core = index.store.core.clone();
        let own = Rc::clone(&index);
        world.run(async move {
            (0..KEY_COUNT).for_each(|key| own.put(&key.to_be_bytes(), &key.to_be_bytes().repeat(20)));
            flush_all(&own).await;
            let mut random = Random::new(slowed_disk);
            let healthy = look_up(&core, &own, &mut random, 5000).await;
            let stall = Faults { stall: 1.0, stall_for: Duration::from_millis(200), ..Faults::default() };
            disk.set_faults(stall);
            let slowed = look_up(&core, &own, &mut random, 5000).await;
            assert!(slowed * 2 <= healthy * 3, "{slowed:?} instead of {healthy:?}");
            disk.set_faults(Faults::default());
            // A scan reads long runs; it goes around a stuck disk as well.
            disk.set_stuck(true);
            let mut cursor = own.cursor(&[], None);
            let mut count = 0;
            while cursor.next().await.expect("a replica answers").is_some() {
                count += 1;
            }
            assert_eq!(count, KEY_COUNT);
            disk.set_stuck(false);
        });
        world.run_until_idle();
        assert_eq!(index.store.core.arena().usage().used, 0);
    }
}
