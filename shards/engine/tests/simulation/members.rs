//! Disks that leave and come back while clients are at work, and starts without some of them.

use std::rc::Rc;
use std::time::Duration;

use basalt_reactor::sim::{Access, Crash, DiskHandle, Random};

use crate::client::{Outcome, Shared, check, drain, run_client};
use crate::cluster::{Cluster, Layout};

const CAPACITY: u64 = 96 << 20;

/// How a disk leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leaving {
    Pulled,
    WritesFail,
    SyncsFail,
    Stuck,
}

impl Leaving {
    pub(crate) fn draw(random: &mut Random) -> Leaving {
        [Leaving::Pulled, Leaving::WritesFail, Leaving::SyncsFail, Leaving::Stuck][random.below(4) as usize]
    }

    pub(crate) fn happen(self, disk: &DiskHandle) {
        match self {
            Leaving::Pulled => disk.unplug(),
            Leaving::WritesFail => disk.set_failing(Access::Write, true),
            Leaving::SyncsFail => disk.set_failing(Access::Sync, true),
            Leaving::Stuck => disk.set_stuck(true),
        }
    }

    pub(crate) fn be_over(self, disk: &DiskHandle) {
        match self {
            Leaving::Pulled => disk.plug(),
            Leaving::WritesFail => disk.set_failing(Access::Write, false),
            Leaving::SyncsFail => disk.set_failing(Access::Sync, false),
            Leaving::Stuck => disk.set_stuck(false),
        }
    }
}

pub(crate) fn parity(random: &mut Random) -> Layout {
    let (k, m) = [(1, 1), (2, 1), (2, 2), (3, 2)][random.below(4) as usize];
    Layout::of(k, m, random)
}

/// Up to m disks leave under load. No client meets an error; crashes and starts without those disks find everything.
pub(crate) fn disks_leave(seed: u64) -> Outcome {
    let mut random = Random::new(seed ^ 0x00d1_5c0f);
    let layout = parity(&mut random);
    let mut world = layout.world(seed, CAPACITY);
    let shared = Shared::new();
    shared.len_max.set(300 << 10);
    let all: Rc<[DiskHandle]> = layout.disk_names().iter().map(|name| world.disk(name)).collect();
    let leaving = 1 + random.below(u64::from(layout.m));
    let mut left: Vec<(usize, Leaving)> = Vec::new();
    while (left.len() as u64) < leaving {
        let disk = random.below(all.len() as u64) as usize;
        if !left.iter().any(|(other, _)| *other == disk) {
            left.push((disk, Leaving::draw(&mut random)));
        }
    }
    let cores = world.boot(1 + random.below(3) as u16);
    let (state, disks, leavers) = (Rc::clone(&shared), Rc::clone(&all), left.clone());
    let mut own = random.fork();
    world.run(async move {
        let cluster = Cluster::start(cores, layout).await;
        let core = cluster.engines[0].core().clone();
        let mut running = Vec::new();
        for _ in 0..3 {
            let engine = cluster.any(&mut own);
            let task = run_client(engine.clone(), Rc::clone(&state), own.fork(), 60);
            running.push(engine.core().spawn(task));
        }
        for (disk, leaving) in leavers {
            core.sleep(Duration::from_micros(own.below(300_000))).await;
            leaving.happen(&disks[disk]);
        }
        for client in running {
            client.await.expect("nobody cancels a client");
        }
        check(&cluster, &state, &mut own).await;
    });
    // Crashes without the disks, and starts without them: the word of the operator is needed where the missing could have
    // gone on alone.
    for round in 0..2 {
        for (disk, leaving) in &left {
            leaving.be_over(&all[*disk]);
            all[*disk].unplug();
        }
        world.crash(if random.coin() { Crash::PowerCut } else { Crash::Kill });
        let cores = world.boot(1 + random.below(2) as u16);
        let (state, mut own) = (Rc::clone(&shared), random.fork());
        let work = async move {
            let cluster = Cluster::start_degraded(cores, layout).await;
            check(&cluster, &state, &mut own).await;
            let engine = cluster.any(&mut own);
            run_client(engine, Rc::clone(&state), own.fork(), 30).await;
            check(&cluster, &state, &mut own).await;
        };
        if round == 0 {
            world.run_events(random.below(20_000), work);
        } else {
            world.run(work);
        }
    }
    finish(&world, &shared)
}

/// Disks leave and come back again and again, some of them as empty ones, while clients are at work and while the process is
/// killed; in the end all of them are in sync, and any m others may go.
pub(crate) fn disks_return(seed: u64) -> Outcome {
    let mut random = Random::new(seed ^ 0x00de_0007);
    let layout = parity(&mut random);
    let mut world = layout.world(seed, CAPACITY);
    let shared = Shared::new();
    shared.len_max.set(300 << 10);
    let all: Rc<[DiskHandle]> = layout.disk_names().iter().map(|name| world.disk(name)).collect();
    let blank: Vec<_> = all.iter().map(DiskHandle::image).collect();
    for round in 0..3 {
        let gone = random.below(all.len() as u64) as usize;
        let replaced = random.below(3) == 0;
        let crashes = random.below(3) == 0;
        let cores = world.boot(1 + random.below(3) as u16);
        let (state, disks, mut own) = (Rc::clone(&shared), Rc::clone(&all), random.fork());
        let empty = blank[gone].clone();
        let work = async move {
            let cluster = Cluster::start(cores, layout).await;
            check(&cluster, &state, &mut own).await;
            wait_until_whole(&cluster, layout).await;
            let core = cluster.engines[0].core().clone();
            let mut running = Vec::new();
            for _ in 0..2 {
                let engine = cluster.any(&mut own);
                let task = run_client(engine.clone(), Rc::clone(&state), own.fork(), 60);
                running.push(engine.core().spawn(task));
            }
            core.sleep(Duration::from_micros(own.below(200_000))).await;
            disks[gone].unplug();
            core.sleep(Duration::from_millis(own.below(6000))).await;
            if replaced {
                disks[gone].put_image(empty);
            }
            disks[gone].plug();
            for client in running {
                client.await.expect("nobody cancels a client");
            }
            check(&cluster, &state, &mut own).await;
            wait_until_whole(&cluster, layout).await;
            check(&cluster, &state, &mut own).await;
        };
        if crashes && round < 2 {
            world.run_events(random.below(40_000), work);
        } else {
            world.run(work);
        }
        for disk in all.iter() {
            disk.plug();
        }
        world.crash(if random.coin() { Crash::PowerCut } else { Crash::Kill });
    }
    // Whole again: any m disks may be lost, of which some were rebuilt.
    let cores = world.boot(1);
    let (state, mut own) = (Rc::clone(&shared), random.fork());
    world.run(async move {
        let cluster = Cluster::start(cores, layout).await;
        wait_until_whole(&cluster, layout).await;
        check(&cluster, &state, &mut own).await;
    });
    world.crash(Crash::PowerCut);
    let mut lost = 0;
    while lost < layout.m {
        let disk = &all[random.below(all.len() as u64) as usize];
        if !disk.files().is_empty() {
            disk.put_image(blank[0].clone());
            disk.unplug();
            lost += 1;
        }
    }
    let cores = world.boot(1);
    let (state, mut own) = (Rc::clone(&shared), random.fork());
    world.run(async move {
        let cluster = Cluster::start_degraded(cores, layout).await;
        check(&cluster, &state, &mut own).await;
        drain(&cluster, &state, &mut own).await;
    });
    finish(&world, &shared)
}

/// Every disk is in sync; rebuilding takes a while.
pub(crate) async fn wait_until_whole(cluster: &Cluster, layout: Layout) {
    let core = cluster.engines[0].core();
    for _ in 0..600 {
        if cluster.engines[0].failures_tolerated() == Some(layout.m) {
            return;
        }
        core.sleep(Duration::from_millis(100)).await;
    }
    panic!("not whole after a minute: {:?}", cluster.engines[0].members());
}

fn finish(world: &basalt_reactor::sim::World, shared: &Rc<Shared>) -> Outcome {
    let mut outcome = shared.outcome.borrow().clone();
    outcome.crashes += 1;
    outcome.trace = world.trace_hash();
    outcome
}
