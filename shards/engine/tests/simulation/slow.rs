//! Disks that answer slowly, or not at all, while the others are sound: reads do not wait for them.

use std::rc::Rc;
use std::time::Duration;

use basalt_engine::ObjectDraft;
use basalt_reactor::sim::{Crash, Faults, Random};

use crate::client::{Client, Outcome, Shared, bucket_id};
use crate::cluster::{Cluster, Layout};
use crate::model::Content;

const KEY_COUNT: u64 = 80;

/// Small objects, which lie in the log, and large ones.
fn content(index: u64, random: &mut Random) -> Content {
    let len = if index.is_multiple_of(2) { 1 + random.below(6000) } else { 60_000 + random.below(250_000) };
    Content { len: len as usize, tag: random.next_u64() }
}

async fn put(client: &Client, key: &str, content: Content) {
    let mut writer = client.engine.write(client.bucket, key.as_bytes(), Some(content.len as u64));
    writer.write(&content.bytes(0..content.len)).await.expect("there is room");
    let body = writer.finish().await.expect("nothing is wrong yet");
    let draft = ObjectDraft { etag: content.etag(), ..ObjectDraft::default() };
    let stored = client.engine.put(client.bucket, key.as_bytes(), draft, body, None).await;
    assert!(stored.is_ok(), "nothing is wrong yet");
}

/// Gets objects and ranges of them one after the other; the time that all but one in a thousand stayed within.
async fn get(client: &Client, contents: &[Content], random: &mut Random, count: usize) -> Duration {
    let core = client.engine.core().clone();
    let mut latencies = Vec::with_capacity(count);
    for _ in 0..count {
        let index = random.below(contents.len() as u64) as usize;
        let content = contents[index];
        let range = match random.below(3) {
            0 => 0..content.len,
            _ => {
                let start = random.below(content.len as u64) as usize;
                start..content.len.min(start + 1 + random.below(20_000) as usize)
            }
        };
        let before = core.now();
        let reader = client.engine.open(client.bucket, format!("key-{index}").as_bytes()).await;
        let reader = reader.expect("a lookup succeeds").expect("it was put");
        let mut body = reader.read(range.start as u64..range.end as u64).await.expect("a read begins");
        let mut at = range.start;
        while let Some(bytes) = body.next().await {
            let bytes = bytes.expect("a read succeeds");
            assert!(*bytes == *content.bytes(at..at + bytes.len()), "wrong bytes of key {index} at {at}");
            at += bytes.len();
        }
        assert_eq!(at, range.end);
        latencies.push(core.now().since(before));
    }
    latencies.sort_unstable();
    latencies[(count * 999).div_ceil(1000) - 1]
}

/// One disk slowed by 200 ms, then one that is stuck, under an index that must be read from disk too.
pub(crate) fn slow_disk(seed: u64) -> Outcome {
    let mut random = Random::new(seed ^ 0x510);
    let layout = Layout { k: 4, m: 2, sets: 1, metadata: 0, spare: 0, shards: 2, strip_len: 8192 };
    let mut world = layout.world(seed, 96 << 20);
    let shared = Shared::new();
    let contents: Vec<Content> = (0..KEY_COUNT).map(|index| content(index, &mut random)).collect();
    let cores = world.boot(1);
    let (state, all, mut own) = (Rc::clone(&shared), contents.clone(), random.fork());
    world.run(async move {
        let cluster = Cluster::start(cores, layout).await;
        let engine = cluster.any(&mut own);
        let bucket = bucket_id(&engine, &state).await.expect("nothing is wrong yet");
        let client = Client { engine, shared: state, bucket };
        for (index, content) in all.into_iter().enumerate() {
            put(&client, &format!("key-{index}"), content).await;
        }
        // The log goes on, and what is left of its extents moves into packs.
        let fillers = || (0..300).map(|index| format!("filler-{index}"));
        for name in fillers() {
            put(&client, &name, Content { len: 6000, tag: own.next_u64() }).await;
        }
        for name in fillers() {
            client.engine.delete(client.bucket, name.as_bytes(), None).await.expect("nothing is wrong yet");
        }
        client.engine.checkpoint().await.expect("nothing is wrong yet");
        while client.engine.collect().await.expect("nothing is wrong yet") {}
        let moved: u64 = client.engine.stats().iter().map(|(_, stats)| stats.moved_count).sum();
        assert!(moved >= KEY_COUNT / 4, "{moved} small objects lie in packs");
        cluster.any(&mut own).checkpoint().await.expect("nothing is wrong yet");
    });
    world.crash(Crash::Kill);
    world.run_until_idle();
    let slowed = world.disk(&format!("disk{}", random.below(6)));
    let stuck = world.disk(&format!("disk{}", random.below(6)));
    let cores = world.boot(1);
    let state = Rc::clone(&shared);
    world.run(async move {
        let cluster = Cluster::start(cores, layout).await;
        let engine = cluster.any(&mut random);
        let bucket = bucket_id(&engine, &state).await.expect("it is there");
        let client = Client { engine, shared: Rc::clone(&state), bucket };
        let healthy = get(&client, &contents, &mut random, 2000).await;
        let stall = Faults { stall: 1.0, stall_for: Duration::from_millis(200), ..Faults::default() };
        slowed.set_faults(stall);
        let slow = get(&client, &contents, &mut random, 7000).await;
        assert!(slow * 2 <= healthy * 3, "seed {seed}: {slow:?} instead of {healthy:?}");
        slowed.set_faults(Faults::default());
        stuck.set_stuck(true);
        get(&client, &contents, &mut random, 300).await;
        stuck.set_stuck(false);
        assert!(client.engine.take_damage().is_empty(), "slow is not damaged");
        let counts = client.engine.read_counts();
        assert!(counts.hedged > 0 && counts.hedges_won > 0, "{counts:?}");
        state.outcome.borrow_mut().verified += contents.len() as u64;
    });
    let mut outcome = shared.outcome.borrow().clone();
    outcome.trace = world.trace_hash();
    outcome
}
