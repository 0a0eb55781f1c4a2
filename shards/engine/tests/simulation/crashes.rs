//! Clients on shared keys, and crashes of both kinds in the middle of it: promises 1 to 4.

use std::rc::Rc;
use std::time::Duration;

use basalt_engine::{Engine, RepairCounts};
use basalt_reactor::sim::{Crash, Random};

use crate::client::{Outcome, Shared, check, drain, run_client};
use crate::cluster::{Cluster, Layout};
use crate::directories::check_directories;

/// Capacity of a simulated disk, bytes.
const CAPACITY: u64 = 96 << 20;

/// Everything a seed decides before the world runs.
pub(crate) struct Scenario {
    seed: u64,
    layout: Layout,
    rounds: u64,
    clients: u64,
    len_max: u64,
    /// Scrub runs beside the clients, each round of it in so long a time.
    scrub: Option<Duration>,
    random: Random,
}

impl Scenario {
    pub(crate) fn draw(seed: u64) -> Scenario {
        let mut random = Random::new(seed ^ 0x00ba_5a17);
        let layout = Layout::draw(&mut random);
        // Now and then bodies so long that their checksums spill.
        let len_max = if random.below(6) == 0 { 3 << 20 } else { 400 << 10 };
        let (rounds, clients) = (2 + random.below(4), 1 + random.below(5));
        Scenario { seed, layout, rounds, clients, len_max, scrub: None, random }
    }

    /// Nothing rots in these scenarios: scrub finds nothing, whatever crashes leave behind.
    pub(crate) fn with_scrub(seed: u64) -> Scenario {
        let mut scenario = Scenario::draw(seed);
        scenario.scrub = Some(Duration::from_millis(50 + scenario.random.below(1000)));
        scenario
    }

    pub(crate) fn run(mut self) -> Outcome {
        let mut world = self.layout.world(self.seed, CAPACITY);
        let shared = Shared::new();
        shared.len_max.set(self.len_max);
        let disks: Rc<[_]> = self.layout.disk_names().iter().map(|name| world.disk(name)).collect();
        for round in 0..self.rounds {
            let cores = world.boot(1 + self.random.below(3) as u16);
            let (layout, clients, state) = (self.layout, self.clients, Rc::clone(&shared));
            let (disks, scrub) = (Rc::clone(&disks), self.scrub);
            let mut random = self.random.fork();
            // The last round runs to its end, so that every seed verifies at least once.
            let last = round + 1 == self.rounds;
            let work = async move {
                let cluster = Cluster::start(cores, layout).await;
                if let Some(deadline) = scrub {
                    cluster.engines.iter().for_each(|engine| engine.start_scrub(deadline));
                }
                check(&cluster, &state, &mut random).await;
                check_directories(&cluster.any(&mut random), &state, layout, &disks).await;
                expect_sound(&cluster, &state);
                let count = if last { 15 } else { 400 };
                let mut running = Vec::new();
                for _ in 0..clients {
                    let engine = cluster.any(&mut random);
                    let task = run_client(engine.clone(), Rc::clone(&state), random.fork(), count);
                    running.push(engine.core().spawn(task));
                }
                for client in running {
                    client.await.expect("nobody cancels a client");
                }
                check(&cluster, &state, &mut random).await;
                check_directories(&cluster.any(&mut random), &state, layout, &disks).await;
                drain(&cluster, &state, &mut random).await;
                expect_sound(&cluster, &state);
                for engine in &cluster.engines {
                    let checkpoints = engine.stats().iter().map(|(_, stats)| stats.checkpoints).sum::<u64>();
                    state.outcome.borrow_mut().checkpoints += checkpoints;
                }
            };
            if last {
                world.run(work);
            } else {
                // Some end while they format or recover, again and again.
                let most = if self.random.below(3) == 0 { 1200 } else { 25_000 };
                let events = self.random.below(most);
                if world.run_events(events, work).is_none() {
                    shared.outcome.borrow_mut().crashes += 1;
                }
                world.crash(if self.random.coin() { Crash::PowerCut } else { Crash::Kill });
            }
        }
        let mut outcome = shared.outcome.borrow().clone();
        outcome.trace = world.trace_hash();
        outcome
    }
}

/// Nobody found anything damaged.
fn expect_sound(cluster: &Cluster, shared: &Shared) {
    for (shard, stats) in cluster.engines.iter().flat_map(Engine::stats) {
        assert_eq!(stats.repair, RepairCounts::default(), "shard {shard}");
        shared.outcome.borrow_mut().scrubbed += stats.scrub.scrubbed_len;
    }
}
