//! Devices that fail while the engine runs, and disks without room.

use std::rc::Rc;
use std::time::Duration;

use basalt_reactor::sim::{Access, Crash, Faults, Random, World};

use crate::client::{Client, Outcome, Shared, bucket_id, check, drain, run_client};
use crate::cluster::{Cluster, Layout};

/// One device refuses now and then, or from some moment on; then it is sound again and everything is compared.
pub(crate) fn failing_device(seed: u64) -> Outcome {
    let mut random = Random::new(seed ^ 0xe10);
    let layout = Layout::draw(&mut random);
    let mut world = layout.world(seed, 96 << 20);
    let shared = Shared::new();
    shared.len_max.set(300 << 10);
    for _ in 0..1 + random.below(2) {
        let names = layout.disk_names();
        let disk = world.disk(&names[random.below(names.len() as u64) as usize]);
        let kind = random.below(6);
        let chance = random.unit() * 0.05;
        let delay = Duration::from_micros(random.below(300_000));
        let breaks = {
            let disk = disk.clone();
            move || match kind {
                0 => disk.set_failing(Access::Write, true),
                1 => disk.set_failing(Access::Sync, true),
                2 => disk.set_faults(Faults { write_error: chance, ..Faults::default() }),
                3 => disk.set_faults(Faults { sync_error: chance, ..Faults::default() }),
                4 => disk.set_faults(Faults { read_error: chance, ..Faults::default() }),
                _ => disk.set_faults(Faults {
                    stall: chance,
                    stall_for: Duration::from_millis(400),
                    ..Faults::default()
                }),
            }
        };
        let cores = world.boot(1 + random.below(3) as u16);
        let (state, mut own) = (Rc::clone(&shared), random.fork());
        shared.faulty.set(false);
        world.run(async move {
            let cluster = Cluster::start(cores, layout).await;
            check(&cluster, &state, &mut own).await;
            state.faulty.set(true);
            let mut running = Vec::new();
            for _ in 0..3 {
                let engine = cluster.any(&mut own);
                let task = run_client(engine.clone(), Rc::clone(&state), own.fork(), 50);
                running.push(engine.core().spawn(task));
            }
            let core = cluster.engines[0].core().clone();
            core.sleep(delay).await;
            breaks();
            for client in running {
                client.await.expect("nobody cancels a client");
            }
            // Reads go on, whatever became of the writes; and a shard that takes none says so at once.
            check(&cluster, &state, &mut own).await;
        });
        disk.set_failing(Access::Write, false);
        disk.set_failing(Access::Sync, false);
        disk.set_faults(Faults::default());
        world.crash(if random.coin() { Crash::PowerCut } else { Crash::Kill });
    }
    shared.faulty.set(false);
    let cores = world.boot(1);
    let (state, mut own) = (Rc::clone(&shared), random.fork());
    world.run(async move {
        let cluster = Cluster::start(cores, layout).await;
        check(&cluster, &state, &mut own).await;
        drain(&cluster, &state, &mut own).await;
    });
    finish(&world, &shared)
}

/// A disk filled to the brim, emptied, and filled again: puts are refused for want of room and nothing else,
/// deletes and reads always work, and room comes back every time, also after a crash at the brim.
pub(crate) fn full_disk(seed: u64) -> Outcome {
    let mut random = Random::new(seed ^ 0xf011);
    let layout = Layout { shards: 1 + random.below(2) as u16, ..Layout::draw(&mut random) };
    let mut world = layout.world(seed, ((20 + random.below(8)) * u64::from(layout.shards)) << 20);
    let shared = Shared::new();
    // Bodies of one seed are alike: arena files grow for good, so a disk full of one kind has no room for another.
    shared.len_max.set([3000, 40_000, 200_000][random.below(3) as usize]);
    let rounds = 3;
    for round in 0..rounds {
        let cores = world.boot(1 + random.below(2) as u16);
        let (state, mut own) = (Rc::clone(&shared), random.fork());
        let last = round + 1 == rounds;
        let work = async move {
            let cluster = Cluster::start(cores, layout).await;
            check(&cluster, &state, &mut own).await;
            let engine = cluster.any(&mut own);
            let bucket = bucket_id(&engine, &state).await.expect("no device fails");
            let client = Client { engine: engine.clone(), shared: Rc::clone(&state), bucket };
            for cycle in 0..3 {
                let mut refused = 0;
                let mut accepted = 0;
                for index in 0..4000 {
                    let before = state.outcome.borrow().refused;
                    client.put(&format!("{index}"), &mut own).await;
                    if state.outcome.borrow().refused > before {
                        refused += 1;
                    } else {
                        accepted += 1;
                    }
                    if refused > 20 {
                        break;
                    }
                }
                // The first cycle may begin at the brim, where a crash left the disk.
                assert!(
                    cycle == 0 || accepted > 10,
                    "cycle {cycle}: no room came back: {:?}",
                    engine.stats()
                );
                let keys = state.model.borrow().keys();
                for key in keys {
                    client.delete(&key).await;
                }
                // What the deletes freed is there at the latest when the next attempts have asked for it.
                engine.core().sleep(Duration::from_secs(1)).await;
            }
            if last {
                check(&cluster, &state, &mut own).await;
                drain(&cluster, &state, &mut own).await;
            }
        };
        if last {
            world.run(work);
        } else {
            world.run_events(random.below(60_000), work);
            world.crash(if random.coin() { Crash::PowerCut } else { Crash::Kill });
        }
    }
    finish(&world, &shared)
}

fn finish(world: &World, shared: &Rc<Shared>) -> Outcome {
    let mut outcome = shared.outcome.borrow().clone();
    outcome.crashes += 1;
    outcome.trace = world.trace_hash();
    outcome
}
