//! Every decoder on mutated samples: the fuzz targets, short enough for each test run.
//!
//! A run is repeatable: BASALT_FUZZ_SEED (1) chooses the mutations, BASALT_FUZZ_ITERATIONS (4000) how many each decoder
//! gets. A failure prints the target and the input; keep the input as a named test beside the decoder.

#[path = "../fuzz/decoders.rs"]
mod decoders;
#[path = "../fuzz/mutate.rs"]
mod mutate;

use std::panic::catch_unwind;
use std::time::{Duration, Instant};

use decoders::Target;
use mutate::{Draw, mutated};

/// A slow decoder stops here with fewer iterations, but never with fewer than [`ITERATIONS_MIN`].
const TARGET_TIME_MAX: Duration = Duration::from_secs(3);
const ITERATIONS_MIN: u64 = 200;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

fn smoke(target: &Target) {
    let seed = setting("BASALT_FUZZ_SEED", 1);
    let iterations = setting("BASALT_FUZZ_ITERATIONS", 4000);
    let seeds = (target.seeds)();
    let began = Instant::now();
    for iteration in 0..iterations {
        // Every input depends on its own number alone, so one can be replayed without the others.
        let input = match seeds.get(iteration as usize) {
            Some(sample) => sample.clone(),
            None => mutated(&mut Draw::new(seed ^ (iteration << 20)), &seeds),
        };
        if catch_unwind(|| (target.run)(&input)).is_err() {
            panic!("{} panics (seed {seed}, iteration {iteration}) on {}", target.name, input.escape_ascii());
        }
        if iteration >= ITERATIONS_MIN && began.elapsed() > TARGET_TIME_MAX && iterations <= 4000 {
            break;
        }
    }
}

#[test]
fn no_decoder_panics() {
    let mut count = 0;
    for target in decoders::targets() {
        smoke(target);
        count += 1;
    }
    assert!(count >= 10, "only {count} decoders");
}

#[test]
#[should_panic(expected = "panics (seed 1")]
fn a_panic_is_found() {
    let brittle = Target {
        name: "brittle",
        run: |data| assert!(data.len() < 20 || data[10] != 0xff, "planted"),
        seeds: || vec![vec![0; 40]],
    };
    smoke(&brittle);
}

#[test]
fn samples_decode() {
    // A sample that no longer decodes fuzzes nothing: a new format version needs new samples.
    let superblock = decoders::targets().find(|target| target.name == "superblock").expect("listed");
    let samples = (superblock.seeds)();
    assert!(basalt_engine::format::superblock::Superblock::decode(&samples[1]).is_ok());
}
