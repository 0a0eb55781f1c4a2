//! Deployments of several sets, and those that grow by one while clients are at work.

use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use basalt_engine::EngineError;
use basalt_reactor::sim::{Crash, Random};

use crate::client::{Outcome, Shared, check, drain, run_client};
use crate::cluster::{Cluster, Layout};

const CAPACITY: u64 = 48 << 20;

/// A set is added under load, and the process or the power fails at any moment of it: what opens then is the old deployment or
/// the grown one, with everything in it. An addition that failed can be made again.
pub(crate) fn set_is_added(seed: u64) -> Outcome {
    let mut random = Random::new(seed ^ 0x0067_7277);
    let (k, m) = [(1, 0), (1, 1), (2, 1), (2, 2)][random.below(4) as usize];
    let mut layout = Layout::of(k, m, &mut random);
    if random.coin() {
        layout.metadata = m + 1;
    }
    let grown = Layout { spare: k + m, ..layout };
    let mut world = grown.world(seed, CAPACITY);
    let shared = Shared::new();
    shared.len_max.set(300 << 10);
    let added: Vec<PathBuf> = grown.spare_names().iter().map(PathBuf::from).collect();
    let mut is_grown = false;
    for round in 0..3 {
        let cores = world.boot(1 + random.below(3) as u16);
        let (state, mut own, paths) = (Rc::clone(&shared), random.fork(), added.clone());
        let work = async move {
            // Disks that are not members yet lie beside the others, empty or not.
            let cluster = Cluster::start(cores, grown).await;
            check(&cluster, &state, &mut own).await;
            let core = cluster.engines[0].core().clone();
            let mut running = Vec::new();
            for _ in 0..2 {
                let engine = cluster.any(&mut own);
                let task = run_client(engine.clone(), Rc::clone(&state), own.fork(), 40);
                running.push(engine.core().spawn(task));
            }
            core.sleep(Duration::from_micros(own.below(100_000))).await;
            if cluster.engines[0].members().len() < grown.disk_count() + paths.len() {
                let few = cluster.any(&mut own).add_set(paths[1..].to_vec()).await;
                assert!(matches!(few, Err(EngineError::DisksRefused(_))), "{few:?}");
                let members = vec![PathBuf::from("disk0"); paths.len()];
                let taken = cluster.any(&mut own).add_set(members).await;
                assert!(matches!(taken, Err(EngineError::DisksRefused(_))), "{taken:?}");
                cluster.any(&mut own).add_set(paths.clone()).await.expect("the disks are empty and sound");
            }
            for client in running {
                client.await.expect("nobody cancels a client");
            }
            check(&cluster, &state, &mut own).await;
        };
        if round == 2 {
            world.run(work);
            is_grown = true;
        } else {
            world.run_events(random.below(30_000), work);
        }
        world.crash(if random.coin() { Crash::PowerCut } else { Crash::Kill });
    }
    assert!(is_grown);
    // New data has gone to the new disks, and any m of each set may be lost.
    let cores = world.boot(1);
    let (state, mut own) = (Rc::clone(&shared), random.fork());
    world.run(async move {
        let cluster = Cluster::start(cores, grown).await;
        assert_eq!(cluster.engines[0].failures_tolerated(), Some(layout.m));
        let engine = cluster.any(&mut own);
        run_client(engine, Rc::clone(&state), own.fork(), 60).await;
        check(&cluster, &state, &mut own).await;
    });
    world.crash(Crash::PowerCut);
    let names = [grown.disk_names(), grown.spare_names()].concat();
    let set = usize::from(k + m);
    let first_added = grown.disk_count();
    for lost in 0..usize::from(m) {
        world.disk(&names[lost]).unplug();
        world.disk(&names[first_added + set - 1 - lost]).unplug();
    }
    let cores = world.boot(1);
    let (state, mut own) = (Rc::clone(&shared), random.fork());
    world.run(async move {
        let cluster = Cluster::start_degraded(cores, grown).await;
        check(&cluster, &state, &mut own).await;
        drain(&cluster, &state, &mut own).await;
    });
    let mut outcome = shared.outcome.borrow().clone();
    outcome.crashes += 3;
    outcome.trace = world.trace_hash();
    outcome
}
