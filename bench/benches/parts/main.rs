//! Microbenchmarks of the engine's parts, each on one core: what a request's cost is made of.
//!
//! `cargo bench -p basalt-bench --bench parts` measures all, with a filter behind `--` only those it names. Without
//! `--bench` (as `cargo test` runs it) each runs once, small. Whatever is bound by the CPU is timed by the CPU time of its
//! thread, so that other load on the machine does not count; what waits for the disk is timed by the clock.

mod engine;
mod index;
mod log;
mod ring_thread;
mod sigv4;
mod stopwatch;
mod stripe;
mod verify;
mod workspace;

use criterion::Criterion;

/// A group's name, which its benchmarks begin with, and what runs them.
type Group = (&'static str, fn(&mut Criterion));

const GROUPS: [Group; 6] = [
    ("stripe", stripe::run),
    ("verify", verify::run),
    ("sigv4", sigv4::run),
    ("log", log::run),
    ("index", index::run),
    ("engine", engine::run),
];

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let names = |group: &str| arguments.iter().any(|argument| argument.starts_with(group));
    let all = !GROUPS.iter().any(|(group, _)| names(group));
    for (group, run) in GROUPS {
        // What a group measures is made before its first benchmark, in vain if a filter then leaves all of it out.
        if all || names(group) {
            run(&mut criterion);
        }
    }
    criterion.final_summary();
}

/// `full` when something is measured, `small` when it is only to be seen to work.
fn scaled(full: u64, small: u64) -> u64 {
    let has = |wanted: &str| std::env::args().any(|argument| argument == wanted);
    if has("--bench") && !has("--test") { full } else { small }
}

/// Scatters numbers, as names and offsets are (the finalizer of SplitMix64).
fn scatter(number: u64) -> u64 {
    let mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
