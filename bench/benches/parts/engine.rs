//! The engine as one core uses it: durable PUTs through group commit, lookups, pages of a listing. No HTTP, no signature.

use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use basalt_engine::format::superblock::DiskClass;
use basalt_engine::request::{Reply, Request};
use basalt_engine::{Deployment, Engine, FormatOptions, ListQuery, ListStart, ObjectDraft};
use basalt_reactor::{Core, mesh};
use criterion::{Criterion, SamplingMode, Throughput};

use crate::ring_thread::RingThread;
use crate::stopwatch::Clock;
use crate::workspace::Workspace;
use crate::{scaled, scatter};

const OBJECT_LEN: usize = 4 << 10;
const PAGE_LEN: usize = 1000;
/// Few enough that a shard's cache holds their index: lookups then say nothing of the disk.
const OBJECT_COUNT: u64 = 25_000;

/// A deployment of one disk and one shard, with objects in it.
struct Served {
    engine: Engine,
    bucket: u64,
    object_count: u64,
    /// Drawn on from measurement to measurement.
    drawn: Cell<u64>,
    _workspace: Workspace,
}

impl Served {
    async fn new(core: Core) -> Served {
        let workspace = Workspace::new("engine");
        let paths: Vec<PathBuf> = vec![workspace.path().to_owned()];
        let options = FormatOptions { shard_count: 1, ..FormatOptions::default() };
        let deployment = Deployment::prepare(&core, &paths, DiskClass::Flash, &options)
            .await
            .unwrap_or_else(|error| panic!("the deployment opens: {error}"));
        let seed = mesh::seeds::<Request, Reply>(1).pop().expect("one core");
        let port = seed.attach(&core);
        let engine = Engine::start(&core, deployment, 1, port)
            .await
            .unwrap_or_else(|error| panic!("the engine starts: {error}"));
        let bucket = engine.create_bucket("bench", Vec::new()).await.expect("a new bucket").id;
        let object_count = scaled(OBJECT_COUNT, 500);
        let served =
            Rc::new(Served { engine, bucket, object_count, drawn: Cell::new(0), _workspace: workspace });
        put_all(&served, object_count, 64).await;
        served.engine.checkpoint().await.expect("a checkpoint");
        // Every block of the index comes into the cache.
        lookups(Rc::clone(&served), object_count).await;
        Rc::into_inner(served).expect("every writer has ended")
    }

    /// The names in turn, without end.
    fn next_name(&self) -> Vec<u8> {
        let number = self.drawn.replace(self.drawn.get() + 1) % self.object_count;
        format!("photos/{:03}/image-{:016x}.jpeg", scatter(number) % 1000, scatter(number)).into_bytes()
    }

    async fn put(&self, body: &[u8]) {
        let name = self.next_name();
        let mut writer = self.engine.write(self.bucket, &name, Some(body.len() as u64));
        writer.write(body).await.expect("the disk has room");
        let body = writer.finish().await.expect("the disk has room");
        let put = self.engine.put(self.bucket, &name, ObjectDraft::default(), body, None).await;
        put.unwrap_or_else(|error| panic!("an unconditional PUT: {error}"));
    }
}

/// `count` PUTs, `outstanding` of them at any time.
async fn put_all(served: &Rc<Served>, count: u64, outstanding: u64) {
    let left = Rc::new(Cell::new(count));
    let writers: Vec<_> = (0..outstanding.min(count))
        .map(|_| {
            let (served, left) = (Rc::clone(served), Rc::clone(&left));
            served.engine.core().clone().spawn(async move {
                let body = vec![7; OBJECT_LEN];
                while left.get() > 0 {
                    left.set(left.get() - 1);
                    served.put(&body).await;
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.expect("nobody cancels a writer");
    }
}

async fn puts(served: Rc<Served>, count: u64, outstanding: u64, clock: Clock) -> Duration {
    let watch = clock.start();
    put_all(&served, count, outstanding).await;
    watch.elapsed()
}

async fn lookups(served: Rc<Served>, count: u64) -> Duration {
    let watch = Clock::Cpu.start();
    for _ in 0..count {
        let found = served.engine.lookup(served.bucket, &served.next_name()).await;
        assert!(found.expect("the index is whole").is_some());
    }
    watch.elapsed()
}

/// Pages of one walk after the other; the time of as many items as `count` full pages have.
async fn pages(served: Rc<Served>, count: u64) -> Duration {
    let mut query = ListQuery {
        bucket: served.bucket,
        prefix: Vec::new(),
        delimiter: Vec::new(),
        start: ListStart::First,
        limit: PAGE_LEN,
    };
    let mut items = 0;
    let watch = Clock::Cpu.start();
    while items < count * PAGE_LEN as u64 {
        let page = served.engine.list(&query).await.expect("the index is whole");
        items += page.items.len() as u64;
        let resume = page.items.last().filter(|_| page.truncated);
        query.start = resume.map_or(ListStart::First, basalt_engine::ListItem::resume);
    }
    watch.elapsed()
}

pub(crate) fn run(criterion: &mut Criterion) {
    let served = RingThread::start(Served::new);
    let mut group = criterion.benchmark_group("engine");
    group.throughput(Throughput::Elements(1));
    group.bench_function("lookup", |bencher| {
        bencher.iter_custom(|count| served.measure(move |served| lookups(served, count)));
    });
    group.throughput(Throughput::Elements(PAGE_LEN as u64));
    group.bench_function("list, page of 1000", |bencher| {
        bencher.iter_custom(|count| served.measure(move |served| pages(served, count)));
    });
    group.sampling_mode(SamplingMode::Flat).sample_size(20);
    group.throughput(Throughput::Elements(1));
    for outstanding in [1, 64] {
        for (what, clock) in [("elapsed", Clock::Elapsed), ("CPU", Clock::Cpu)] {
            group.bench_function(
                format!("durable put of 4 KiB, {outstanding} outstanding, {what}"),
                |bencher| {
                    bencher.iter_custom(|count| {
                        served.measure(move |served| puts(served, count, outstanding, clock))
                    });
                },
            );
        }
    }
    group.finish();
}
