//! More disks of a group go than it can do without: what is read is right or refused, writes are refused in time, and once the
//! disks are back nothing that was acknowledged is missing.

use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use basalt_engine::deployment::MissingDisks;
use basalt_engine::{Engine, EngineError, EngineOptions};
use basalt_reactor::sim::{Crash, DiskHandle, Random, World};

use crate::client::{BUCKET, Client, Outcome, Shared, check, drain, draw_content, run_client};
use crate::cluster::{Cluster, Layout};
use crate::members::{Leaving, parity};
use crate::startup::contents_of;

const CAPACITY: u64 = 96 << 20;

/// How long a request may take for each disk that goes: until it counts as stuck, and until the others have taken the epoch
/// without it, or have not.
const PATIENCE_PER_DISK: Duration = Duration::from_secs(20);

/// A deployment of which too many disks of one group go.
struct Scene {
    world: World,
    layout: Layout,
    shared: Rc<Shared>,
    random: Random,
    disks: Rc<[DiskHandle]>,
    /// Who goes.
    gone: Vec<usize>,
}

/// The disks of each group, and how many of them it can do without.
fn groups(layout: Layout) -> Vec<(Range<usize>, usize)> {
    let width = usize::from(layout.k + layout.m);
    let sets = usize::from(layout.sets);
    let mut groups: Vec<_> =
        (0..sets).map(|set| (set * width..(set + 1) * width, usize::from(layout.m))).collect();
    if layout.metadata > 0 {
        let spare = usize::from(layout.m).min(usize::from(layout.metadata) - 1);
        groups.push((sets * width..layout.disk_count(), spare));
    }
    groups
}

impl Scene {
    fn draw(seed: u64) -> Scene {
        let mut random = Random::new(seed ^ 0x1057);
        let layout = parity(&mut random);
        let layout = if random.coin() { layout.in_groups(&mut random) } else { layout };
        let world = layout.world(seed, CAPACITY);
        let shared = Shared::new();
        shared.len_max.set(300 << 10);
        let disks = layout.disk_names().iter().map(|name| world.disk(name)).collect();
        let groups = groups(layout);
        let (group, spare) = groups[random.below(groups.len() as u64) as usize].clone();
        let wanted = spare + 1 + random.below((group.len() - spare) as u64) as usize;
        let mut gone = Vec::new();
        while gone.len() < wanted {
            let disk = group.start + random.below(group.len() as u64) as usize;
            if !gone.contains(&disk) {
                gone.push(disk);
            }
        }
        Scene { world, layout, shared, random, disks, gone }
    }

    fn patience(&self) -> Duration {
        PATIENCE_PER_DISK * (u32::from(self.layout.m) + 2)
    }

    /// Every disk is there again, and so is everything that was acknowledged.
    fn all_is_back(mut self) -> Outcome {
        self.shared.faulty.set(false);
        self.shared.admitted.set(false);
        for round in 0..2 {
            let cores = self.world.boot(1 + self.random.below(2) as u16);
            let (state, mut own, layout) = (Rc::clone(&self.shared), self.random.fork(), self.layout);
            self.world.run(async move {
                let cluster = Cluster::start(cores, layout).await;
                check(&cluster, &state, &mut own).await;
                let engine = cluster.any(&mut own);
                run_client(engine, Rc::clone(&state), own.fork(), 30).await;
                check(&cluster, &state, &mut own).await;
                if round == 1 {
                    drain(&cluster, &state, &mut own).await;
                }
            });
            self.world.crash(Crash::PowerCut);
        }
        let mut outcome = self.shared.outcome.borrow().clone();
        outcome.crashes += 1;
        outcome.trace = self.world.trace_hash();
        outcome
    }
}

/// Puts, deletes, reads and lists, none of which takes longer than `patience`.
async fn insist(engine: Engine, shared: Rc<Shared>, mut random: Random, patience: Duration) {
    let Some(bucket) = engine.buckets().get(BUCKET) else { return };
    let client = Client { engine: engine.clone(), shared, bucket: bucket.id };
    let core = engine.core().clone();
    for index in 0..12 {
        let began = core.now();
        let key = format!("flat-{}", 3 * random.below(4) + 2);
        let what = match index % 4 {
            0 | 1 => {
                let content = draw_content(&mut random, client.shared.len_max.get());
                client.put_content(&key, content, &mut random).await;
                "put"
            }
            2 => {
                client.read(&key, &mut random).await;
                "read"
            }
            _ if random.coin() => {
                client.delete(&key).await;
                "delete"
            }
            _ => {
                client.list(&mut random).await;
                "list"
            }
        };
        let took = core.now().since(began);
        assert!(took < patience, "{what} of {key} took {took:?}");
        core.sleep(Duration::from_millis(random.below(3000))).await;
    }
}

/// Three clients that insist.
fn set_to_work(
    cluster: &Cluster,
    shared: &Rc<Shared>,
    random: &mut Random,
    patience: Duration,
) -> Vec<impl Future<Output = Option<()>> + use<>> {
    let mut begin = || {
        let engine = cluster.any(random);
        engine.core().spawn(insist(engine.clone(), Rc::clone(shared), random.fork(), patience))
    };
    (0..3).map(|_| begin()).collect()
}

/// Reads every key and lists them, where errors are answers, and finds that nothing can be written.
pub(crate) async fn read_all(cluster: &Cluster, shared: &Rc<Shared>, random: &mut Random) {
    for engine in &cluster.engines {
        let refused = engine.create_bucket("refused", Vec::new()).await.err();
        assert_eq!(refused, Some(EngineError::ReadOnly));
        assert_eq!(engine.failures_tolerated(), None);
    }
    let engine = cluster.any(random);
    let bucket = match engine.bucket(BUCKET) {
        Ok(bucket) => bucket.id,
        Err(EngineError::NoSuchBucket) => {
            assert_eq!(shared.outcome.borrow().acknowledged, 0, "the bucket is gone with its objects");
            return;
        }
        Err(error) => return shared.note_failure("bucket", &error),
    };
    let client = Client { engine: engine.clone(), shared: Rc::clone(shared), bucket };
    let keys = shared.model.borrow().keys();
    for key in &keys {
        client.read(key, random).await;
        let refused = engine.delete(bucket, key.as_bytes(), None).await.err();
        let is_refused = matches!(refused, Some(EngineError::ReadOnly | EngineError::Unreadable { .. }));
        assert!(is_refused, "{refused:?}");
        shared.outcome.borrow_mut().refused += 1;
    }
    client.list(random).await;
    client.put("refused", random).await;
    // Whatever would work in the background has had its time.
    engine.core().sleep(Duration::from_secs(90)).await;
    client.list(random).await;
}

/// Some are pulled, refuse writes or flushes, or do not answer, under load, and perhaps the process crashes.
pub(crate) fn too_many_leave(seed: u64) -> Outcome {
    let mut scene = Scene::draw(seed);
    let patience = scene.patience();
    let leaving: Vec<_> =
        scene.gone.clone().into_iter().map(|disk| (disk, Leaving::draw(&mut scene.random))).collect();
    let cores = scene.world.boot(1 + scene.random.below(3) as u16);
    let (state, disks, leavers) = (Rc::clone(&scene.shared), Rc::clone(&scene.disks), leaving.clone());
    let (mut own, layout) = (scene.random.fork(), scene.layout);
    let shows = leaving.iter().any(|(_, leaving)| matches!(leaving, Leaving::Pulled | Leaving::Stuck));
    let apart = [0, 300, 30_000][scene.random.below(3) as usize];
    let work = async move {
        let cluster = Cluster::start(cores, layout).await;
        let engine = cluster.any(&mut own);
        run_client(engine, Rc::clone(&state), own.fork(), 40).await;
        let core = cluster.engines[0].core().clone();
        state.faulty.set(true);
        state.admitted.set(true);
        let running = set_to_work(&cluster, &state, &mut own, patience);
        for (disk, leaving) in leavers {
            core.sleep(Duration::from_millis(own.below(apart + 1))).await;
            leaving.happen(&disks[disk]);
        }
        for client in running {
            client.await.expect("nobody cancels a client");
        }
        check(&cluster, &state, &mut own).await;
        // It shows, unless nobody has written to those that only refuse that.
        let engine = cluster.any(&mut own);
        insist(engine, Rc::clone(&state), own.fork(), patience).await;
        core.sleep(Duration::from_secs(5)).await;
        let is_seen = |engine: &Engine| engine.failures_tolerated() != Some(layout.m);
        assert!(!shows || cluster.engines.iter().all(is_seen), "{:?}", cluster.engines[0].members());
    };
    if scene.random.below(3) == 0 {
        let events = scene.random.below(150_000);
        scene.world.run_events(events, work);
    } else {
        scene.world.run(work);
    }
    for (disk, leaving) in &leaving {
        leaving.be_over(&scene.disks[*disk]);
    }
    scene.world.crash(if scene.random.coin() { Crash::PowerCut } else { Crash::Kill });
    scene.all_is_back()
}

/// They do not answer for a while, and then do: no restart is needed.
pub(crate) fn too_many_stuck(seed: u64) -> Outcome {
    let mut scene = Scene::draw(seed);
    let patience = scene.patience();
    let cores = scene.world.boot(1 + scene.random.below(3) as u16);
    let (state, disks, gone) = (Rc::clone(&scene.shared), Rc::clone(&scene.disks), scene.gone.clone());
    let (mut own, layout) = (scene.random.fork(), scene.layout);
    scene.world.run(async move {
        let cluster = Cluster::start(cores, layout).await;
        let engine = cluster.any(&mut own);
        run_client(engine.clone(), Rc::clone(&state), own.fork(), 40).await;
        let core = engine.core().clone();
        state.faulty.set(true);
        state.admitted.set(true);
        gone.iter().for_each(|&disk| disks[disk].set_stuck(true));
        let running = set_to_work(&cluster, &state, &mut own, patience);
        for client in running {
            client.await.expect("nobody cancels a client");
        }
        core.sleep(Duration::from_secs(30)).await;
        for engine in &cluster.engines {
            let began = core.now();
            let refused = engine.create_bucket("refused", Vec::new()).await.err();
            assert!(matches!(refused, Some(EngineError::DisksFail { .. })), "{refused:?}");
            assert!(core.now().since(began) < Duration::from_millis(100), "it is known by now");
            assert_eq!(engine.failures_tolerated(), None);
        }
        gone.iter().for_each(|&disk| disks[disk].set_stuck(false));
        core.sleep(Duration::from_secs(20)).await;
        state.faulty.set(false);
        let bucket = engine.buckets().get(BUCKET).expect("it was made above").id;
        let client = Client { engine: engine.clone(), shared: Rc::clone(&state), bucket };
        for index in 0..20 {
            client.put(&format!("after-{index}"), &mut own).await;
        }
        check(&cluster, &state, &mut own).await;
        assert!(engine.failures_tolerated().is_some(), "{:?}", engine.members());
    });
    scene.world.crash(Crash::PowerCut);
    scene.all_is_back()
}

/// One of a mirror does not answer for a while, and the other dies before it has the epoch without the first. The first holds all that
/// was acknowledged, and a start with it alone finds that: scrub of superblocks has not written on it what never came about.
pub(crate) fn last_one_left(seed: u64) -> Outcome {
    let mut scene = Scene::draw(seed ^ 0x1a57);
    scene.layout = Layout::of(1, 1, &mut scene.random);
    scene.world = scene.layout.world(seed, CAPACITY);
    let names = scene.layout.disk_names();
    scene.disks = names.iter().map(|name| scene.world.disk(name)).collect();
    let patience = scene.patience();
    let cores = scene.world.boot(1 + scene.random.below(2) as u16);
    let (state, disks, layout) = (Rc::clone(&scene.shared), Rc::clone(&scene.disks), scene.layout);
    let mut own = scene.random.fork();
    scene.world.run(async move {
        let cluster = Cluster::start(cores, layout).await;
        let engine = cluster.any(&mut own);
        let core = engine.core().clone();
        run_client(engine.clone(), Rc::clone(&state), own.fork(), 40).await;
        cluster.engines.iter().for_each(|engine| engine.start_scrub(Duration::from_secs(2)));
        state.faulty.set(true);
        state.admitted.set(true);
        disks[0].set_stuck(true);
        let client = core.spawn(insist(engine.clone(), Rc::clone(&state), own.fork(), patience));
        // A write waits for the first by now. What fails next is the superblock without it.
        core.sleep(Duration::from_millis(1000 + own.below(8500))).await;
        Leaving::WritesFail.happen(&disks[1]);
        client.await.expect("nobody cancels it");
        core.sleep(Duration::from_secs(30)).await;
        disks[0].set_stuck(false);
        Leaving::Pulled.happen(&disks[1]);
        core.sleep(Duration::from_secs(30)).await;
    });
    scene.world.crash(Crash::Kill);
    scene.world.run_until_idle();
    scene.shared.faulty.set(false);
    scene.shared.admitted.set(false);
    let cores = scene.world.boot(1 + scene.random.below(2) as u16);
    let (state, mut own) = (Rc::clone(&scene.shared), scene.random.fork());
    scene.world.run(async move {
        let cluster = Cluster::start_lost(cores, &names[..1], layout, EngineOptions::default()).await;
        check(&cluster, &state, &mut own).await;
    });
    scene.shared.outcome.borrow().clone()
}

/// The process ends at any moment, too many disks are missing at the next start, and it is for reading alone; then all are back.
pub(crate) fn read_only(seed: u64) -> Outcome {
    let mut scene = Scene::draw(seed);
    let cores = scene.world.boot(1 + scene.random.below(3) as u16);
    let (state, layout, mut own) = (Rc::clone(&scene.shared), scene.layout, scene.random.fork());
    let work = async move {
        let cluster = Cluster::start(cores, layout).await;
        let mut running = Vec::new();
        for _ in 0..3 {
            let engine = cluster.any(&mut own);
            running.push(engine.core().spawn(run_client(engine.clone(), Rc::clone(&state), own.fork(), 60)));
        }
        for client in running {
            client.await.expect("nobody cancels a client");
        }
    };
    // Formatting is over by then, in nearly every run.
    let events = 2_000 + scene.random.below(60_000);
    let ended = scene.world.run_events(events, work).is_some();
    scene.world.crash(if scene.random.coin() { Crash::PowerCut } else { Crash::Kill });
    scene.world.run_until_idle();
    // Fewer may be missing too.
    let missing = scene.random.below(scene.gone.len() as u64 + 1) as usize;
    let gone: Vec<usize> =
        if scene.random.below(3) == 0 { scene.gone[..missing].into() } else { scene.gone.clone() };
    gone.iter().for_each(|&disk| scene.disks[disk].unplug());
    let before: Vec<_> = scene.disks.iter().map(contents_of).collect();
    scene.shared.faulty.set(true);
    scene.shared.admitted.set(true);
    let cores = scene.world.boot(1 + scene.random.below(3) as u16);
    let (state, names, mut own) = (Rc::clone(&scene.shared), layout.disk_names(), scene.random.fork());
    let is_any_left = gone.len() < names.len();
    scene.world.run(async move {
        match Cluster::start_reading(cores, &names, MissingDisks::AreLost).await {
            Ok(cluster) => read_all(&cluster, &state, &mut own).await,
            Err(reason) => assert!(!ended || !is_any_left, "{reason}"),
        }
    });
    // A power cut would take what the first process left in the drives' caches.
    scene.world.crash(Crash::Kill);
    scene.world.run_until_idle();
    let after: Vec<_> = scene.disks.iter().map(contents_of).collect();
    assert!(before == after, "a start for reading alone has written");
    gone.iter().for_each(|&disk| scene.disks[disk].plug());
    scene.all_is_back()
}
