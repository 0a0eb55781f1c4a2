//! What an operator does with disks, and disks that go by themselves without failing a write: spares, orders, records.

use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use basalt_engine::extent::members::MemberState;
use basalt_engine::{DiskOrder, DiskReport, EngineError, EngineOptions, OrderError};
use basalt_reactor::sim::{Config, Crash, DiskConfig, Faults, Random, World};

use crate::client::{BUCKET, Client, Outcome, Shared, bucket_id, check, drain, run_client};
use crate::cluster::{Cluster, Layout};

const CAPACITY: u64 = 96 << 20;

/// The disks of a layout, and one more.
fn world_with_spare(layout: Layout, seed: u64) -> (World, Vec<String>) {
    let mut names = layout.disk_names();
    names.push("spare".to_owned());
    let disks = names.iter().map(|name| DiskConfig::new(name, CAPACITY)).collect();
    (World::new(seed, Config { disks, arena_len: 16 << 20, ..Config::default() }), names)
}

fn options(spare_after: u64) -> EngineOptions {
    EngineOptions { spare_after: Duration::from_secs(spare_after), write_quorum: None }
}

async fn report(cluster: &Cluster, random: &mut Random) -> DiskReport {
    cluster.any(random).disks().await.expect("every core answers")
}

/// Waits until `is_so`, a minute at most.
async fn wait(cluster: &Cluster, random: &mut Random, what: &str, is_so: impl Fn(&DiskReport) -> bool) {
    for _ in 0..600 {
        if is_so(&report(cluster, random).await) {
            return;
        }
        cluster.engines[0].core().sleep(Duration::from_millis(100)).await;
    }
    panic!("after a minute still not {what}: {:?}", report(cluster, random).await);
}

fn is_whole(report: &DiskReport) -> bool {
    report.disks.iter().all(|disk| disk.state == MemberState::InSync)
}

async fn work(cluster: &Cluster, state: &Rc<Shared>, random: &mut Random, count: u64) {
    let engine = cluster.any(random);
    run_client(engine, Rc::clone(state), random.fork(), count).await;
}

/// A disk is removed, stays out over crashes although it is there, comes back when it is told to; then another one's place is
/// given away, and what was removed at last is of no use any more.
pub(crate) fn orders(seed: u64) -> Outcome {
    let mut random = Random::new(seed ^ 0x000b_0551);
    let (k, m) = [(2, 1), (2, 2), (3, 2)][random.below(3) as usize];
    let layout = Layout::of(k, m, &mut random);
    let (mut world, all) = world_with_spare(layout, seed);
    let names = layout.disk_names();
    let shared = Shared::new();
    shared.len_max.set(300 << 10);
    let place = random.below(names.len() as u64) as usize;
    let cores = world.boot(1 + random.below(3) as u16);
    let (state, mut own) = (Rc::clone(&shared), random.fork());
    let first = names.clone();
    world.run(async move {
        let cluster = Cluster::start_with(cores, &first, layout, options(60)).await;
        work(&cluster, &state, &mut own, 40).await;
        let remove = |place| cluster.engines[0].order_disk(DiskOrder::Remove { place });
        assert_eq!(remove(99).await, Err(OrderError::NoSuchDisk { place: 99 }));
        remove(place).await.expect("the others are enough");
        remove(place).await.expect("it is out already");
        work(&cluster, &state, &mut own, 40).await;
        let seen = report(&cluster, &mut own).await;
        assert!(seen.disks[place].removed && seen.disks[place].state == MemberState::Out, "{seen:?}");
        for other in (0..).filter(|&other| other != place).take(usize::from(m)) {
            let removed = remove(other).await;
            let refused = matches!(removed, Err(OrderError::TooFew { .. }));
            assert_eq!(refused, m == 1, "{other} of {layout:?}: {removed:?}");
            if removed.is_ok() {
                let back = DiskOrder::Return { place: other };
                cluster.engines[0].order_disk(back).await.expect("it is there");
                wait(&cluster, &mut own, "back", |seen| seen.disks[other].state == MemberState::InSync).await;
            }
        }
        cluster.engines[0].core().sleep(Duration::from_secs(100)).await;
        let seen = report(&cluster, &mut own).await;
        assert_eq!(seen.disks[place].state, MemberState::Out, "nobody asked for it");
        check(&cluster, &state, &mut own).await;
    });
    world.crash(if random.coin() { Crash::PowerCut } else { Crash::Kill });
    let cores = world.boot(1 + random.below(2) as u16);
    let (state, mut own) = (Rc::clone(&shared), random.fork());
    let second = names.clone();
    let replaced = (place + 1) % names.len();
    world.run(async move {
        let cluster = Cluster::start_with(cores, &second, layout, options(60)).await;
        check(&cluster, &state, &mut own).await;
        cluster.engines[0].core().sleep(Duration::from_secs(100)).await;
        let seen = report(&cluster, &mut own).await;
        assert!(seen.disks[place].removed && seen.disks[place].state == MemberState::Out, "{seen:?}");
        let order = |order| cluster.engines[0].order_disk(order);
        order(DiskOrder::Return { place }).await.expect("it is there");
        work(&cluster, &state, &mut own, 30).await;
        wait(&cluster, &mut own, "whole", is_whole).await;
        let taken = DiskOrder::Replace { place: replaced, path: PathBuf::from(&second[place]) };
        assert!(matches!(order(taken).await, Err(OrderError::NotEmpty { .. })));
        order(DiskOrder::Replace { place: replaced, path: "spare".into() }).await.expect("it is empty");
        let seen = report(&cluster, &mut own).await;
        assert_eq!(seen.disks[replaced].path, Some("spare".into()));
        assert!(
            seen.disks[replaced].rebuild.is_some() || seen.disks[replaced].state == MemberState::InSync,
            "{seen:?}"
        );
        work(&cluster, &state, &mut own, 30).await;
        wait(&cluster, &mut own, "whole", is_whole).await;
        check(&cluster, &state, &mut own).await;
    });
    world.crash(Crash::PowerCut);
    // The old disk is refused by name; without it, everything is there.
    let cores = world.boot(1);
    let old = all.clone();
    let gone = names[replaced].clone();
    world.run(async move {
        let refused = Cluster::refused(cores, &old, layout).await;
        assert!(refused.contains(&gone) && refused.contains("was replaced"), "{refused}");
    });
    world.crash(Crash::Kill);
    let cores = world.boot(1);
    let left: Vec<String> = all.into_iter().filter(|name| *name != names[replaced]).collect();
    let (state, mut own) = (Rc::clone(&shared), random.fork());
    world.run(async move {
        let cluster = Cluster::start_with(cores, &left, layout, options(60)).await;
        wait(&cluster, &mut own, "whole", is_whole).await;
        check(&cluster, &state, &mut own).await;
        drain(&cluster, &state, &mut own).await;
    });
    finish(&world, &shared)
}

/// A spare disk waits; when a member is gone for long enough it takes its place, and what returns is not taken back.
pub(crate) fn spare(seed: u64) -> Outcome {
    let mut random = Random::new(seed ^ 0x5ba7e);
    let (k, m) = [(1, 1), (2, 1), (2, 2)][random.below(3) as usize];
    let layout = Layout::of(k, m, &mut random);
    let (mut world, all) = world_with_spare(layout, seed);
    let shared = Shared::new();
    shared.len_max.set(300 << 10);
    let names = layout.disk_names();
    let cores = world.boot(1);
    let (state, mut own) = (Rc::clone(&shared), random.fork());
    world.run(async move {
        let cluster = Cluster::start_with(cores, &names, layout, options(60)).await;
        work(&cluster, &state, &mut own, 30).await;
    });
    world.crash(Crash::Kill);
    let place = random.below(u64::from(k) + u64::from(m)) as usize;
    let disk = world.disk(&format!("disk{place}"));
    let patience = [0, 20][random.below(2) as usize];
    let missing_at_start = random.below(3) == 0;
    if missing_at_start {
        disk.unplug();
    }
    let cores = world.boot(1 + random.below(2) as u16);
    let (state, mut own) = (Rc::clone(&shared), random.fork());
    world.run(async move {
        let cluster = if missing_at_start {
            Cluster::start_lost(cores, &all, layout, options(patience)).await
        } else {
            Cluster::start_with(cores, &all, layout, options(patience)).await
        };
        let seen = report(&cluster, &mut own).await;
        assert_eq!(seen.spares, [PathBuf::from("spare")], "{seen:?}");
        let core = cluster.engines[0].core().clone();
        if !missing_at_start {
            assert!(is_whole(&seen), "{seen:?}");
            disk.unplug();
        }
        let gone = core.now();
        work(&cluster, &state, &mut own, 40).await;
        let is_there = |seen: &DiskReport| seen.disks[place].path == Some(PathBuf::from("spare"));
        wait(&cluster, &mut own, "replaced", is_there).await;
        let waited = core.now().since(gone);
        assert!(waited >= Duration::from_secs(patience.saturating_sub(3)), "{waited:?}");
        disk.plug();
        work(&cluster, &state, &mut own, 30).await;
        wait(&cluster, &mut own, "whole", is_whole).await;
        let seen = report(&cluster, &mut own).await;
        assert!(seen.spares.is_empty() && is_there(&seen), "{seen:?}");
        check(&cluster, &state, &mut own).await;
    });
    finish(&world, &shared)
}

/// Two disks are behind at a time, one of them later or emptied, and are rebuilt together under load and over a crash; then the
/// other two are lost.
pub(crate) fn two_behind(seed: u64) -> Outcome {
    let mut random = Random::new(seed ^ 0x0000_2be4);
    let layout = Layout::of(2, 2, &mut random);
    let mut world = layout.world(seed, CAPACITY);
    let shared = Shared::new();
    shared.len_max.set(300 << 10);
    let disks: Vec<_> = layout.disk_names().iter().map(|name| world.disk(name)).collect();
    let blank = disks[0].image();
    let (first, second) = [(0, 1), (3, 1), (2, 0)][random.below(3) as usize];
    let cores = world.boot(1 + random.below(2) as u16);
    let (state, all, mut own) = (Rc::clone(&shared), disks.clone(), random.fork());
    let (apart, emptied, empty) = (random.below(8000), random.coin(), blank.clone());
    let run = async move {
        let cluster = Cluster::start(cores, layout).await;
        work(&cluster, &state, &mut own, 60).await;
        all[first].unplug();
        all[second].unplug();
        work(&cluster, &state, &mut own, 60).await;
        if emptied {
            all[second].put_image(empty);
        }
        all[first].plug();
        cluster.engines[0].core().sleep(Duration::from_millis(apart)).await;
        all[second].plug();
        work(&cluster, &state, &mut own, 60).await;
        wait(&cluster, &mut own, "whole", is_whole).await;
        check(&cluster, &state, &mut own).await;
    };
    if random.coin() {
        world.run(run);
    } else {
        world.run_events(30_000 + random.below(60_000), run);
    }
    disks.iter().for_each(|disk| disk.plug());
    world.crash(if random.coin() { Crash::PowerCut } else { Crash::Kill });
    let cores = world.boot(1);
    let (state, mut own) = (Rc::clone(&shared), random.fork());
    world.run(async move {
        let cluster = Cluster::start(cores, layout).await;
        work(&cluster, &state, &mut own, 20).await;
        wait(&cluster, &mut own, "whole", is_whole).await;
        check(&cluster, &state, &mut own).await;
    });
    world.crash(Crash::PowerCut);
    for lost in (0..4).filter(|disk| *disk != first && *disk != second) {
        disks[lost].put_image(blank.clone());
        disks[lost].unplug();
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

/// How a disk misbehaves that still takes every write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    ManyErrors,
    FewErrors,
    Slow,
    AllSlow,
}

/// A disk that fails a share of its reads, or is slow for minutes, goes; one with a few errors stays, and so do disks that are
/// slow together.
pub(crate) fn records(seed: u64) -> Outcome {
    let fault = [Fault::ManyErrors, Fault::FewErrors, Fault::Slow, Fault::AllSlow][(seed % 4) as usize];
    let mut random = Random::new(seed ^ 0x4ec0);
    let layout = Layout { shards: 2, strip_len: 4096, ..Layout::of(3, 2, &mut random) };
    let mut world = layout.world(seed, CAPACITY);
    let shared = Shared::new();
    let all: Vec<_> = layout.disk_names().iter().map(|name| world.disk(name)).collect();
    let place = random.below(5) as usize;
    let cores = world.boot(1 + random.below(2) as u16);
    let (state, mut own) = (Rc::clone(&shared), random.fork());
    world.run(async move {
        let cluster = Cluster::start(cores, layout).await;
        let engine = cluster.any(&mut own);
        let bucket = bucket_id(&engine, &state).await.expect("nothing is wrong yet");
        let client = Client { engine: engine.clone(), shared: Rc::clone(&state), bucket };
        state.len_max.set(200 << 10);
        for index in 0..40 {
            client.put(&format!("{index}"), &mut own).await;
        }
        let stall =
            |millis| Faults { stall: 1.0, stall_for: Duration::from_millis(millis), ..Faults::default() };
        match fault {
            Fault::ManyErrors => {
                all[place].set_faults(Faults { read_error: 0.1, ..Faults::default() });
            }
            Fault::FewErrors => {
                all[place].set_faults(Faults { read_error: 0.0001, ..Faults::default() });
            }
            Fault::Slow => all[place].set_faults(stall(200)),
            Fault::AllSlow => all.iter().for_each(|disk| disk.set_faults(stall(200))),
        }
        let core = engine.core().clone();
        let start = core.now();
        let is_out = || engine.members()[place] != MemberState::InSync;
        while core.now().since(start) < Duration::from_secs(300) && !is_out() {
            for index in 0..40 {
                client.read(&format!("{index}"), &mut own).await;
            }
            core.sleep(Duration::from_millis(500)).await;
        }
        let took = core.now().since(start);
        match fault {
            Fault::ManyErrors => assert!(is_out(), "after {took:?}: {:?}", report(&cluster, &mut own).await),
            Fault::Slow => assert!(is_out() && took > Duration::from_secs(150), "after {took:?}"),
            Fault::FewErrors | Fault::AllSlow => {
                assert!(engine.members().iter().all(|&state| state == MemberState::InSync), "{fault:?}");
            }
        }
        all.iter().for_each(|disk| disk.set_faults(Faults::default()));
        if is_out() {
            // One that did not give back what repair wrote is tried again after a while. One that went by its record does not come
            // back by itself: nothing about it has changed.
            let reason = report(&cluster, &mut own).await.disks[place].out.clone().map(|out| out.reason);
            let by_record = reason.is_some_and(|reason| !reason.contains("give back"));
            core.sleep(Duration::from_secs(120)).await;
            assert!(is_out() || !by_record);
            engine.order_disk(DiskOrder::Return { place }).await.expect("it is there");
            wait(&cluster, &mut own, "whole", is_whole).await;
        }
        check(&cluster, &state, &mut own).await;
    });
    finish(&world, &shared)
}

/// Writes are refused, and reads go on, while fewer disks are in sync than an operator wants.
pub(crate) fn write_quorum(seed: u64) -> Outcome {
    let mut random = Random::new(seed ^ 0x0000_9000);
    let layout = Layout::of(2, 2, &mut random);
    let mut world = layout.world(seed, CAPACITY);
    let shared = Shared::new();
    let disks: Vec<_> = layout.disk_names().iter().map(|name| world.disk(name)).collect();
    let cores = world.boot(1 + random.below(2) as u16);
    let (state, mut own) = (Rc::clone(&shared), random.fork());
    world.run(async move {
        let options = EngineOptions { write_quorum: Some(3), ..EngineOptions::default() };
        let cluster = Cluster::start_with(cores, &layout.disk_names(), layout, options).await;
        work(&cluster, &state, &mut own, 30).await;
        disks[0].unplug();
        wait(&cluster, &mut own, "without it", |seen| seen.failures_tolerated == Some(1)).await;
        work(&cluster, &state, &mut own, 30).await;
        let refused = cluster.engines[0].order_disk(DiskOrder::Remove { place: 1 }).await;
        assert_eq!(refused, Err(OrderError::TooFew { in_sync: 2, needed: 3 }));
        disks[1].unplug();
        wait(&cluster, &mut own, "without both", |seen| seen.failures_tolerated == Some(0)).await;
        for engine in &cluster.engines {
            let refused = engine.create_bucket("refused", Vec::new()).await.err();
            assert_eq!(refused, Some(EngineError::Degraded { in_sync: 2, needed: 3 }));
            let bucket = engine.buckets().get(BUCKET).expect("it was made above").id;
            let deleted = engine.delete(bucket, b"0", None).await.err();
            assert_eq!(deleted, Some(EngineError::Degraded { in_sync: 2, needed: 3 }));
        }
        check(&cluster, &state, &mut own).await;
        disks.iter().for_each(|disk| disk.plug());
        wait(&cluster, &mut own, "whole", is_whole).await;
        work(&cluster, &state, &mut own, 30).await;
        check(&cluster, &state, &mut own).await;
    });
    finish(&world, &shared)
}

fn finish(world: &World, shared: &Rc<Shared>) -> Outcome {
    let mut outcome = shared.outcome.borrow().clone();
    outcome.crashes += 1;
    outcome.trace = world.trace_hash();
    outcome
}
