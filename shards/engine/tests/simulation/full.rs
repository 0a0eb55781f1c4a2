//! File systems that something else fills: a start goes on without up to m of them, and takes them back.

use std::rc::Rc;
use std::time::Duration;

use basalt_engine::deployment::MissingDisks;
use basalt_engine::extent::members::MemberState::{Behind, InSync, Out};
use basalt_reactor::sim::{Crash, DiskHandle, Random};

use crate::client::{Client, Outcome, Shared, bucket_id, check, drain};
use crate::cluster::{Cluster, Layout};
use crate::lost::read_all;

const CAPACITY: u64 = 96 << 20;

/// Puts until it is known that there is no room, and deletes of half of it.
async fn use_up(cluster: &Cluster, state: &Rc<Shared>, random: &mut Random, count: u64) {
    let engine = cluster.any(random);
    let bucket = bucket_id(&engine, state).await.expect("no device fails");
    let client = Client { engine, shared: Rc::clone(state), bucket };
    let before = state.outcome.borrow().refused;
    for index in 0..count {
        client.put(&format!("{index}"), random).await;
        if state.outcome.borrow().refused > before + 5 {
            break;
        }
    }
    let keys = state.model.borrow().keys();
    for key in keys.iter().filter(|_| random.coin()) {
        client.delete(key).await;
    }
}

/// Some disks are filled while the deployment serves, or while it does not; it is killed and started, again and again.
pub(crate) fn start_with_full_disks(seed: u64) -> Outcome {
    let mut random = Random::new(seed ^ 0xf117);
    let (k, m) = [(2, 1), (3, 2), (1, 2), (1, 0)][random.below(4) as usize];
    let layout = Layout::of(k, m, &mut random);
    let mut world = layout.world(seed, CAPACITY);
    let disks: Vec<DiskHandle> = layout.disk_names().iter().map(|name| world.disk(name)).collect();
    let shared = Shared::new();
    shared.len_max.set([3000, 200_000][random.below(2) as usize]);
    let mut full: Vec<usize> = (0..disks.len()).collect();
    full.rotate_left(random.below(disks.len() as u64) as usize);
    let too_many = random.below(3) == 0 || m == 0;
    full.truncate(if too_many { usize::from(m) + 1 } else { 1 + random.below(u64::from(m)) as usize });
    let fill =
        |filled: bool| full.iter().for_each(|&disk| disks[disk].occupy(if filled { CAPACITY } else { 0 }));
    for round in 0..3 {
        let cores = world.boot(1 + random.below(2) as u16);
        let (state, mut own) = (Rc::clone(&shared), random.fork());
        let filling: Vec<_> = full.iter().map(|&disk| disks[disk].clone()).collect();
        let is_full = full.clone();
        let served = world.run(async move {
            let cluster = Cluster::try_start(cores, layout).await?;
            let states = cluster.engines[0].members();
            for (disk, member) in states.iter().enumerate() {
                assert!(
                    *member == InSync || (is_full.contains(&disk) && round > 0),
                    "round {round}: {states:?}"
                );
            }
            check(&cluster, &state, &mut own).await;
            let before = state.outcome.borrow().acknowledged;
            use_up(&cluster, &state, &mut own, 30).await;
            assert!(round > 0 || state.outcome.borrow().acknowledged > before, "there is room");
            filling.iter().for_each(|disk| disk.occupy(CAPACITY));
            use_up(&cluster, &state, &mut own, 300).await;
            // A disk that is out is looked at meanwhile, and has no room yet. One that is not goes only at a start, or when a new epoch
            // begins: where another was rebuilt.
            cluster.engines[0].core().sleep(Duration::from_secs(5)).await;
            for (before, after) in states.iter().zip(cluster.engines[0].members()) {
                assert!(*before != Out || after == Out, "a full disk was let in: {states:?}");
                assert!(*before == Out || after != Out || states.contains(&Behind), "one went: {states:?}");
            }
            state.outcome.borrow_mut().races += u64::from(states.contains(&Out));
            Ok::<(), String>(())
        });
        world.crash(if random.coin() { Crash::PowerCut } else { Crash::Kill });
        let Err(reason) = served else { continue };
        assert!(too_many, "{reason}");
        assert!(
            reason.contains("no room for what a start writes") && reason.contains("--start-read-only"),
            "{reason}"
        );
        shared.outcome.borrow_mut().failed += 1;
        let cores = world.boot(1);
        let (state, mut own, names) = (Rc::clone(&shared), random.fork(), layout.disk_names());
        // What is refused there is refused rightly.
        shared.faulty.set(true);
        world.run(async move {
            let cluster = Cluster::start_reading(cores, &names, MissingDisks::MayHaveGoneOn).await;
            let cluster = cluster.unwrap_or_else(|reason| panic!("it cannot be read: {reason}"));
            read_all(&cluster, &state, &mut own).await;
        });
        shared.faulty.set(false);
        world.crash(Crash::Kill);
    }
    let cores = world.boot(1 + random.below(2) as u16);
    let (state, mut own) = (Rc::clone(&shared), random.fork());
    // In the middle of it, or before.
    if too_many || random.coin() {
        fill(false);
    }
    let filled: Vec<_> = full.iter().map(|&disk| disks[disk].clone()).collect();
    world.run(async move {
        let cluster = Cluster::start(cores, layout).await;
        check(&cluster, &state, &mut own).await;
        filled.iter().for_each(|disk| disk.occupy(0));
        let engine = &cluster.engines[0];
        let mut waited = 0;
        while engine.members().iter().any(|state| *state != InSync) {
            assert!(waited < 600, "a disk that has room again stays out: {:?}", engine.members());
            waited += 1;
            engine.core().sleep(Duration::from_secs(1)).await;
        }
        let before = state.outcome.borrow().refused;
        use_up(&cluster, &state, &mut own, 20).await;
        assert_eq!(state.outcome.borrow().refused, before, "there is room again");
        check(&cluster, &state, &mut own).await;
        drain(&cluster, &state, &mut own).await;
    });
    let mut outcome = shared.outcome.borrow().clone();
    outcome.trace = world.trace_hash();
    outcome
}
