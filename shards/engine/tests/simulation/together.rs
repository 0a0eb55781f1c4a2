//! All that goes on in the background at once: collection beside scrub, disks that leave, return or are replaced, clients and
//! uploads, and crashes in the middle of it.

use std::rc::Rc;
use std::time::Duration;

use basalt_engine::{Engine, EngineError, RepairCounts};
use basalt_reactor::sim::{Crash, DiskHandle, Random};

use crate::client::{Client, Outcome, Shared, check, drain, run_client};
use crate::cluster::{Cluster, Layout};
use crate::members::wait_until_whole;
use crate::uploads::{Made, Uploader, open_uploads};

const CAPACITY: u64 = 96 << 20;

/// Objects of parts, apart from those whose bytes follow from their tag.
const UPLOADS: &str = "uploads";

const UPLOADER_COUNT: usize = 2;

/// What clients of objects and those of uploads know, across crashes.
#[derive(Clone)]
struct Known {
    objects: Rc<Shared>,
    uploads: Rc<Shared>,
    made: Made,
}

impl Known {
    /// Those who upload, each with its name.
    async fn uploaders(&self, cluster: &Cluster, random: &mut Random) -> Vec<Uploader> {
        let engine = cluster.any(random);
        let bucket = match engine.create_bucket(UPLOADS, Vec::new()).await {
            Ok(bucket) => bucket.id,
            Err(EngineError::BucketExists) => engine.buckets().get(UPLOADS).expect("it exists").id,
            Err(error) => panic!("bucket: {error}"),
        };
        let uploader = |index| {
            let client = Client { engine: cluster.any(random), shared: Rc::clone(&self.uploads), bucket };
            Uploader { client, name: format!("object-{index}"), made: Rc::clone(&self.made) }
        };
        (0..UPLOADER_COUNT).map(uploader).collect()
    }

    async fn check(&self, cluster: &Cluster, random: &mut Random) {
        check(cluster, &self.objects, random).await;
        for uploader in self.uploaders(cluster, random).await {
            uploader.verify(&self.objects).await;
        }
    }

    /// Deletes everything.
    async fn drain(&self, cluster: &Cluster, random: &mut Random) {
        for uploader in self.uploaders(cluster, random).await {
            let Client { engine, bucket, .. } = &uploader.client;
            for (name, id) in open_uploads(engine, *bucket).await {
                engine.abort_upload(*bucket, &name, id).await.expect("it is open");
            }
            engine.delete(*bucket, uploader.name.as_bytes(), None).await.expect("nothing is damaged");
        }
        // What a crash left of closed uploads is swept when they are old enough.
        cluster.any(random).core().sleep(Duration::from_secs(2 * 3600)).await;
        drain(cluster, &self.objects, random).await;
    }

    fn note(&self, cluster: &Cluster) {
        for (_, stats) in cluster.engines.iter().flat_map(Engine::stats) {
            let mut outcome = self.objects.outcome.borrow_mut();
            outcome.scrubbed += stats.scrub.scrubbed_len;
            outcome.moved += stats.moved_count;
            outcome.outrun += stats.outrun_count;
        }
    }
}

/// What becomes of a disk in one round.
struct Absence {
    disk: DiskHandle,
    /// An empty one comes back instead.
    replaced_by: Option<basalt_reactor::sim::DiskImage>,
}

async fn live(
    cores: Vec<basalt_reactor::Core>,
    layout: Layout,
    known: Known,
    absence: Absence,
    mut random: Random,
) {
    let cluster = Cluster::start(cores, layout).await;
    let deadline = Duration::from_millis(100 + random.below(2000));
    cluster.engines.iter().for_each(|engine| engine.start_scrub(deadline));
    known.check(&cluster, &mut random).await;
    wait_until_whole(&cluster, layout).await;
    let core = cluster.engines[0].core().clone();
    let mut running = Vec::new();
    for _ in 0..3 {
        let engine = cluster.any(&mut random);
        let task = run_client(engine.clone(), Rc::clone(&known.objects), random.fork(), 80);
        running.push(engine.core().spawn(task));
    }
    for uploader in known.uploaders(&cluster, &mut random).await {
        let core = uploader.client.engine.core().clone();
        running.push(core.spawn(uploader.run(Rc::clone(&known.uploads), random.fork(), 4)));
    }
    core.sleep(Duration::from_micros(random.below(200_000))).await;
    absence.disk.unplug();
    core.sleep(Duration::from_millis(random.below(6000))).await;
    if let Some(empty) = absence.replaced_by {
        absence.disk.put_image(empty);
    }
    absence.disk.plug();
    // Extents are emptied while the disk is behind.
    let engine = cluster.any(&mut random);
    while engine.collect().await == Ok(true) {}
    for client in running {
        client.await.expect("nobody cancels a client");
    }
    known.check(&cluster, &mut random).await;
    wait_until_whole(&cluster, layout).await;
    known.check(&cluster, &mut random).await;
    known.note(&cluster);
}

pub(crate) fn run(seed: u64) -> Outcome {
    let mut random = Random::new(seed ^ 0x0070_6e7e);
    let (k, m) = [(1, 1), (2, 1), (2, 2), (3, 2)][random.below(4) as usize];
    let layout = Layout::of(k, m, &mut random);
    let mut world = layout.world(seed, CAPACITY);
    let known = Known { objects: Shared::new(), uploads: Shared::new(), made: Made::default() };
    known.objects.len_max.set(300 << 10);
    let disks: Vec<DiskHandle> = layout.disk_names().iter().map(|name| world.disk(name)).collect();
    let blank = disks[0].image();
    for round in 0..4 {
        let cores = world.boot(1 + random.below(3) as u16);
        let disk = disks[random.below(disks.len() as u64) as usize].clone();
        let replaced_by = (random.below(3) == 0).then(|| blank.clone());
        let work = live(cores, layout, known.clone(), Absence { disk, replaced_by }, random.fork());
        if round == 3 {
            world.run(work);
        } else if world.run_events(random.below(50_000), work).is_none() {
            known.objects.outcome.borrow_mut().crashes += 1;
        }
        disks.iter().for_each(DiskHandle::plug);
        world.crash(if random.coin() { Crash::PowerCut } else { Crash::Kill });
    }
    // Whole again: any m disks may be lost, and what is left is given back to the last byte.
    let cores = world.boot(1);
    let (own, mut forked) = (known.clone(), random.fork());
    world.run(async move {
        let cluster = Cluster::start(cores, layout).await;
        wait_until_whole(&cluster, layout).await;
        cluster.engines.iter().for_each(|engine| engine.start_scrub(Duration::from_millis(500)));
        own.check(&cluster, &mut forked).await;
        // Nobody finds anything damaged, for nothing is.
        for (shard, stats) in cluster.engines.iter().flat_map(Engine::stats) {
            assert_eq!(stats.repair, RepairCounts::default(), "shard {shard}");
        }
    });
    world.crash(Crash::PowerCut);
    let mut lost = 0;
    while lost < layout.m {
        let disk = &disks[random.below(disks.len() as u64) as usize];
        if !disk.files().is_empty() {
            disk.put_image(blank.clone());
            disk.unplug();
            lost += 1;
        }
    }
    let cores = world.boot(1);
    let (own, mut forked) = (known.clone(), random.fork());
    world.run(async move {
        let cluster = Cluster::start_degraded(cores, layout).await;
        own.check(&cluster, &mut forked).await;
        own.drain(&cluster, &mut forked).await;
    });
    let mut outcome = known.objects.outcome.borrow().clone();
    outcome.trace = world.trace_hash();
    outcome
}
