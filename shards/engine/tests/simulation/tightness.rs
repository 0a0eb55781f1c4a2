//! How much space a store takes beside what it holds: under steady overwriting, and once small objects are repacked.

use std::cell::Cell;
use std::rc::Rc;

use basalt_engine::{Engine, ObjectDraft};
use basalt_reactor::sim::Random;

use crate::client::{Outcome, Shared, bucket_id};
use crate::cluster::{Cluster, Layout};
use crate::collection::note_moves;
use crate::model::Content;

const CAPACITY: u64 = 64 << 20;

/// Slots per disk that are taken or kept beside what the promise is about, however large the store is: tables, the log up to
/// the next checkpoint, what is open or about to be freed. The index grows with the number of objects, and so with k.
const TABLE_SLOTS_APART: u64 = 40;
const LOG_SLOTS_APART: u64 = 12;
const DATA_SLOTS_APART: u64 = 4;

/// Of each writer of large bodies, what it is writing, what it has just replaced and the next checkpoint frees, and what
/// collection has copied meanwhile of extents that this checkpoint frees too.
const DATA_SLOTS_PER_WRITER: u64 = 3;

/// Of the rest, in hundredths, what live bytes take.
const FULL: u64 = 80;

/// The promise: space taken per space needed, in hundredths.
const AMPLIFICATION_MAX: u64 = 120;

/// Clients that overwrite at the same time.
const WRITER_COUNT: u64 = 8;

/// What clients overwrite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Small,
    Large,
    Mixed,
}

impl Kind {
    /// Bytes of each disk that are taken beside what the promise is about.
    fn apart(self, layout: Layout) -> u64 {
        let geometry = layout.geometry();
        let of_writers = if self == Kind::Small { 0 } else { WRITER_COUNT * DATA_SLOTS_PER_WRITER };
        LOG_SLOTS_APART * geometry.log_slot_len + (DATA_SLOTS_APART + of_writers) * geometry.data_slot_len
    }

    fn len_of(self, index: u64) -> usize {
        let is_small = self == Kind::Small || (self == Kind::Mixed && !index.is_multiple_of(16));
        if is_small { 4096 } else { usize::try_from(100_000 + index * 7919 % 300_000).expect("small") }
    }
}

/// One core's way to a bucket.
struct Store {
    engine: Engine,
    bucket: u64,
}

impl Store {
    async fn put(&self, name: String, content: Content) {
        let (engine, name) = (&self.engine, name.as_bytes());
        let mut writer = engine.write(self.bucket, name, Some(content.len as u64));
        writer.write(&content.bytes(0..content.len)).await.expect("there is room");
        let body = writer.finish().await.expect("there is room");
        let draft = ObjectDraft { etag: content.etag(), ..ObjectDraft::default() };
        let done = engine.put(self.bucket, name, draft, body, None).await;
        assert!(done.is_ok(), "there is room: {:?}", engine.stats());
    }

    /// Runs writers beside each other; writer i has its own `random`, and does what `work` says.
    async fn write<W: Future<Output = ()> + 'static>(&self, random: &mut Random, work: impl Fn(Random) -> W) {
        let writers = (0..WRITER_COUNT).map(|_| self.engine.core().spawn(work(random.fork())));
        for writer in writers.collect::<Vec<_>>() {
            writer.await.expect("nobody cancels a writer");
        }
    }

    /// Bytes of all disks that log and data extents take, and what of them is needed.
    fn taken(&self) -> (u64, u64) {
        let stats = self.engine.stats();
        let used = stats.iter().map(|(_, stats)| stats.used_len).sum();
        (used, stats.iter().map(|(_, stats)| stats.needed_len).sum())
    }
}

fn name_of(index: u64) -> String {
    format!("o-{index}")
}

/// A store four fifths full, overwritten one and a half times in no order: at no time do extents take more than
/// 1.2 times what they hold, and deleting everything gives it back.
pub(crate) fn at_all_times(seed: u64) -> Outcome {
    let shared = Shared::new();
    for (layout, kind) in
        [((1, 0), Kind::Small), ((2, 1), Kind::Small), ((1, 0), Kind::Large), ((2, 1), Kind::Mixed)]
    {
        let layout =
            Layout { k: layout.0, m: layout.1, sets: 1, metadata: 0, spare: 0, shards: 1, strip_len: 4096 };
        let mut world = layout.world(seed, CAPACITY);
        let cores = world.boot(1);
        let state = Rc::clone(&shared);
        world.run(async move {
            let mut random = Random::new(seed);
            let cluster = Cluster::start(cores, layout).await;
            let engine = cluster.any(&mut random);
            let bucket = bucket_id(&engine, &state).await.expect("no device fails");
            let store = Rc::new(Store { engine, bucket });
            let (apart, disks) = (kind.apart(layout), layout.disk_count() as u64);
            let kept = TABLE_SLOTS_APART * layout.geometry().table_slot_len * u64::from(layout.k) + apart;
            let full = (CAPACITY - kept) * FULL / 100 * disks;
            let keys = Rc::new(Cell::new(0));
            let fill = |mut random: Random| {
                let (store, keys) = (Rc::clone(&store), Rc::clone(&keys));
                async move {
                    while store.taken().1 < full {
                        let index = keys.replace(keys.get() + 1);
                        let content = Content { len: kind.len_of(index), tag: random.next_u64() };
                        store.put(name_of(index), content).await;
                    }
                }
            };
            store.write(&mut random, fill).await;
            let (keys, worst) = (keys.get(), Rc::new(Cell::new(0)));
            let overwrite = |mut random: Random| {
                let (store, worst) = (Rc::clone(&store), Rc::clone(&worst));
                async move {
                    for turn in 0..keys * 3 / 2 / WRITER_COUNT {
                        let index = random.below(keys);
                        let content = Content { len: kind.len_of(index), tag: random.next_u64() };
                        store.put(name_of(index), content).await;
                        if turn > keys / 2 / WRITER_COUNT {
                            let (used, needed) = store.taken();
                            worst.set(worst.get().max(used.saturating_sub(apart * disks) * 100 / needed));
                        }
                    }
                }
            };
            store.write(&mut random, overwrite).await;
            note_moves(&cluster, &state);
            let worst = worst.get();
            println!("{kind:?} in {layout:?}: {keys} keys, at worst {worst} hundredths");
            assert!(worst <= AMPLIFICATION_MAX, "{worst} hundredths with {kind:?} in {layout:?}");
            for index in 0..keys {
                let deleted = store.engine.delete(bucket, name_of(index).as_bytes(), None).await;
                deleted.expect("deletes go through");
            }
            for _ in 0..2 {
                store.engine.checkpoint().await.expect("no device fails");
            }
            let (used, needed) = store.taken();
            assert!(needed == 0 && used <= apart * disks, "{used} bytes are still taken, {needed} needed");
        });
        shared.outcome.borrow_mut().trace ^= world.trace_hash();
    }
    shared.outcome.borrow().clone()
}

/// Objects of 4 KiB in the geometry of a real deployment: once they are repacked, what they take on all disks is at most 1.1
/// times what redundancy makes of their bytes.
pub(crate) fn repacked(seed: u64) -> Outcome {
    let shared = Shared::new();
    for (k, m) in [(1, 0), (2, 1), (4, 2)] {
        let layout = Layout { k, m, sets: 1, metadata: 0, spare: 0, shards: 1, strip_len: 65_536 };
        let mut world = layout.world(seed, 512 << 20);
        let cores = world.boot(1);
        let state = Rc::clone(&shared);
        world.run(async move {
            let mut random = Random::new(seed);
            let cluster = Cluster::start(cores, layout).await;
            let engine = cluster.any(&mut random);
            let bucket = bucket_id(&engine, &state).await.expect("no device fails");
            let store = Store { engine: engine.clone(), bucket };
            let count = 4000;
            for index in 0..count {
                let content = Content { len: 4096, tag: random.next_u64() };
                store.put(format!("folder/of/objects/number-{index:08}"), content).await;
            }
            // The log goes on, so that nothing of them stays in its open extent.
            for turn in 0..1000 {
                let content = Content { len: 4096, tag: random.next_u64() };
                store.put(format!("filler-{}", turn % 10), content).await;
            }
            for index in 0..10 {
                let name = format!("filler-{index}");
                engine.delete(bucket, name.as_bytes(), None).await.expect("it is there");
            }
            engine.checkpoint().await.expect("no device fails");
            while engine.collect().await.expect("no device fails") {}
            note_moves(&cluster, &state);
            let needed: u64 = engine.stats().iter().map(|(_, stats)| stats.needed_len).sum();
            let ideal = count * 4096 * (u64::from(k) + u64::from(m)) / u64::from(k);
            let thousandths = needed * 1000 / ideal;
            println!("{k}+{m}: {thousandths} thousandths of n/k");
            assert!(thousandths <= 1100, "{thousandths} thousandths of n/k in {k}+{m}");
        });
        shared.outcome.borrow_mut().trace ^= world.trace_hash();
    }
    shared.outcome.borrow().clone()
}
