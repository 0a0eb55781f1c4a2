//! Buckets that come and go under writers, through crashes: no acknowledged object goes with its bucket, nothing enters a
//! bucket that is gone, and every core knows the same buckets.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use basalt_engine::{Engine, EngineError, ObjectDraft};
use basalt_reactor::sim::{Crash, Random};

use crate::client::Outcome;
use crate::cluster::{Cluster, Layout};

const NAMES: [&str; 2] = ["x", "yy"];

/// What is known for certain, by bucket id.
#[derive(Default)]
struct Known {
    /// Objects whose put was acknowledged and whose delete nobody asked for.
    objects: BTreeMap<u64, BTreeSet<Vec<u8>>>,
    gone: BTreeSet<u64>,
    next: u64,
    outcome: Outcome,
}

impl Known {
    /// The bucket was deleted: whoever says so says that it was empty.
    fn note_gone(&mut self, id: u64) {
        let left = self.objects.remove(&id).unwrap_or_default();
        assert!(left.is_empty(), "bucket {id} went with its objects {left:?}");
        self.gone.insert(id);
    }
}

async fn run_client(engine: Engine, known: Rc<RefCell<Known>>, mut random: Random) {
    for _ in 0..60 {
        let name = NAMES[random.below(2) as usize];
        let bucket = engine.buckets().get(name);
        match (random.below(10), bucket) {
            (0..2, _) => match engine.create_bucket(name, Vec::new()).await {
                Ok(bucket) => assert!(!known.borrow().gone.contains(&bucket.id), "an id comes back"),
                Err(error) => assert_eq!(error, EngineError::BucketExists),
            },
            (2..5, Some(bucket)) => match engine.delete_bucket(name).await {
                Ok(()) => {
                    known.borrow_mut().outcome.races += 1;
                    // Another of the same name may be there by now; that one's id is not the one seen before.
                    let current = engine.buckets().get(name).map(|bucket| bucket.id);
                    if current != Some(bucket.id) && engine.buckets().by_id(bucket.id).is_none() {
                        known.borrow_mut().note_gone(bucket.id);
                    }
                }
                Err(EngineError::BucketNotEmpty | EngineError::NoSuchBucket) => {}
                Err(error) => panic!("delete of a bucket: {error}"),
            },
            (5, Some(bucket)) => {
                // Somebody who goes away in the middle of it.
                let (own, name) = (engine.clone(), name.to_owned());
                let task = engine.core().spawn(async move { own.delete_bucket(&name).await });
                engine.core().sleep(Duration::from_micros(random.below(4000))).await;
                task.cancel();
                drop(bucket);
            }
            (6..9, Some(bucket)) => put_and_delete(&engine, &known, bucket.id, &mut random).await,
            _ => engine.core().sleep(Duration::from_micros(random.below(2000))).await,
        }
    }
}

async fn put_and_delete(engine: &Engine, known: &Rc<RefCell<Known>>, bucket: u64, random: &mut Random) {
    known.borrow_mut().next += 1;
    let key = known.borrow().next.to_string().into_bytes();
    let mut writer = engine.write(bucket, &key, None);
    let bytes = vec![7; random.below(60_000) as usize];
    writer.write(&bytes).await.expect("there is room");
    let body = writer.finish().await.expect("there is room");
    match engine.put(bucket, &key, ObjectDraft::default(), body, None).await {
        Ok(_) => {
            let mut known = known.borrow_mut();
            assert!(!known.gone.contains(&bucket), "a put into bucket {bucket}, which is gone");
            known.objects.entry(bucket).or_default().insert(key.clone());
            known.outcome.acknowledged += 1;
        }
        Err(error) => return assert_eq!(error, EngineError::NoSuchBucket),
    }
    engine.core().sleep(Duration::from_micros(random.below(3000))).await;
    assert!(engine.lookup(bucket, &key).await.expect("nothing is damaged").is_some(), "it was acknowledged");
    if random.below(8) > 0 {
        known.borrow_mut().objects.entry(bucket).or_default().remove(&key);
        assert_eq!(engine.delete(bucket, &key, None).await, Ok(true));
    }
}

/// Every core knows the same buckets, none that is gone, and all that hold something; with everything in them.
async fn check(cluster: &Cluster, known: &Rc<RefCell<Known>>) {
    cluster.engines[0].core().sleep(Duration::from_secs(1)).await;
    let of = |engine: &Engine| engine.buckets().all().iter().map(|bucket| bucket.id).collect::<BTreeSet<_>>();
    let ids = of(&cluster.engines[0]);
    for engine in &cluster.engines {
        assert_eq!(of(engine), ids, "two cores know different buckets");
    }
    assert!(ids.is_disjoint(&known.borrow().gone), "a deleted bucket is back");
    let objects = known.borrow().objects.clone();
    for (bucket, keys) in objects {
        assert!(keys.is_empty() || ids.contains(&bucket), "bucket {bucket} is gone with {keys:?}");
        for key in keys {
            let found = cluster.engines[0].lookup(bucket, &key).await.expect("nothing is damaged");
            assert!(found.is_some(), "an acknowledged object of bucket {bucket} is gone");
            known.borrow_mut().outcome.verified += 1;
        }
    }
    // A bucket that nobody is deleting takes writes again, whatever became of earlier attempts.
    for id in ids {
        let engine = &cluster.engines[0];
        let body = engine.write(id, b"probe", None).finish().await.expect("an empty body");
        engine.put(id, b"probe", ObjectDraft::default(), body, None).await.expect("it is there");
        engine.delete(id, b"probe", None).await.expect("it is there");
    }
}

pub(crate) fn run(seed: u64) -> Outcome {
    let mut random = Random::new(seed ^ 0xb0c4);
    let layout = Layout::draw(&mut random);
    let mut world = layout.world(seed, 96 << 20);
    let known = Rc::new(RefCell::new(Known::default()));
    for round in 0..3 {
        let cores = world.boot(1 + random.below(3) as u16);
        let (state, mut own) = (Rc::clone(&known), random.fork());
        let work = async move {
            let cluster = Cluster::start(cores, layout).await;
            check(&cluster, &state).await;
            let mut running = Vec::new();
            for _ in 0..4 {
                let engine = cluster.any(&mut own);
                running.push(engine.core().spawn(run_client(engine.clone(), Rc::clone(&state), own.fork())));
            }
            for client in running {
                client.await.expect("nobody cancels a client");
            }
            check(&cluster, &state).await;
        };
        if round == 2 {
            world.run(work);
        } else {
            if world.run_events(random.below(8000), work).is_none() {
                known.borrow_mut().outcome.crashes += 1;
            }
            world.crash(if random.coin() { Crash::PowerCut } else { Crash::Kill });
        }
    }
    let mut outcome = known.borrow().outcome.clone();
    outcome.trace = world.trace_hash();
    outcome
}
