//! The whole engine in the simulated world, against a naive model: promises 1 to 4 under crashes of both kinds.
//!
//! A seed draws a layout, a workload, and the points where power fails or the process is killed; after each crash the
//! deployment is opened again, possibly with another number of cores, and every key is compared. `BASALT_SIM_SEEDS`
//! sets how many seeds run and `BASALT_SIM_SEED` replays one.

mod cluster;
mod model;
mod workload;

use workload::{Outcome, Scenario};

fn seeds(default: u64) -> Vec<u64> {
    if let Ok(seed) = std::env::var("BASALT_SIM_SEED") {
        return vec![seed.parse().expect("BASALT_SIM_SEED is a number")];
    }
    let count = std::env::var("BASALT_SIM_SEEDS").map_or(default, |count| count.parse().expect("a number"));
    (0..count).collect()
}

#[test]
fn acknowledged_writes_survive_crashes_of_both_kinds() {
    let mut total = Outcome::default();
    for seed in seeds(60) {
        total.add(&Scenario::draw(seed).run());
    }
    println!("{total:?}");
    // The workload must reach what it is meant to test.
    assert!(total.crashes > 0 && total.acknowledged > 0 && total.verified > 0, "{total:?}");
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..3 {
        assert_eq!(Scenario::draw(seed).run(), Scenario::draw(seed).run(), "seed {seed}");
    }
}
