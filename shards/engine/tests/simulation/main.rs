//! The whole engine in the simulated world, against a model: promises 1 to 4 under crashes, faults and full disks.
//!
//! A seed draws a layout, a workload, and the points where power fails, the process is killed or a device breaks; after
//! each crash the deployment is opened again, possibly with another number of cores, and every key is compared.
//! `BASALT_SIM_SEEDS` sets how many seeds each test runs and `BASALT_SIM_SEED` replays one.

mod client;
mod cluster;
mod crashes;
mod directories;
mod model;

use client::Outcome;

fn seeds(default: u64) -> Vec<u64> {
    if let Ok(seed) = std::env::var("BASALT_SIM_SEED") {
        return vec![seed.parse().expect("BASALT_SIM_SEED is a number")];
    }
    let count = std::env::var("BASALT_SIM_SEEDS").map_or(default, |count| count.parse().expect("a number"));
    (0..count).collect()
}

/// Runs a scenario with each seed, and sums up what happened.
fn run_all(default: u64, run: impl Fn(u64) -> Outcome) -> Outcome {
    let mut total = Outcome::default();
    for seed in seeds(default) {
        total.add(&run(seed));
    }
    println!("{total:?}");
    total
}

#[test]
fn acknowledged_writes_survive_crashes_of_both_kinds() {
    let total = run_all(40, |seed| crashes::Scenario::draw(seed).run());
    // The workload must reach what it is meant to test.
    assert!(total.crashes > 0 && total.acknowledged > 0, "{total:?}");
    assert!(total.verified > 0 && total.described > 0, "{total:?}");
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..3 {
        let run = || crashes::Scenario::draw(seed).run();
        assert_eq!(run(), run(), "seed {seed}");
    }
}
