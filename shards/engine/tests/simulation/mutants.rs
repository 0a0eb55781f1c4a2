//! Broken variants of the engine are caught: each is run in a process of its own by the test that should notice.

use std::process::Command;

use basalt_engine::mutant::Mutant;

/// Seeds a variant may take to be caught.
const SEED_COUNT_MAX: u64 = 400;

/// The test that is to notice.
fn judge_of(mutant: Mutant) -> &'static str {
    match mutant {
        Mutant::DataSyncSkipped
        | Mutant::LogWriteVolatile
        | Mutant::ManifestNotSynced
        | Mutant::ExtentsFreedEarly
        | Mutant::PinsIgnored
        | Mutant::KeysUnlocked
        | Mutant::LastBatchNotRepeated => "acknowledged_writes_survive_crashes_of_both_kinds",
        Mutant::InlineUnverified => "a_damaged_disk_never_gives_wrong_bytes",
        Mutant::DamagedLogCutOff => "a_damaged_acknowledged_batch_is_refused_with_evidence",
        Mutant::RepairUnverified => "what_readers_find_damaged_is_repaired_in_place",
        Mutant::MovesUnchecked => "overwriting_a_full_store_keeps_it_tight_and_moves_lose_to_writes",
    }
}

#[test]
fn every_broken_variant_is_caught_and_the_seed_named() {
    let binary = std::env::current_exe().expect("a test knows its binary");
    let mut missed = Vec::new();
    for mutant in Mutant::ALL {
        let output = Command::new(&binary)
            .args([judge_of(mutant), "--exact", "--nocapture"])
            .env("BASALT_MUTANT", format!("{mutant:?}"))
            .env("BASALT_SIM_SEEDS", SEED_COUNT_MAX.to_string())
            .env("RUST_BACKTRACE", "0")
            .output()
            .expect("the test binary runs");
        let said = String::from_utf8_lossy(&output.stderr);
        let seed = said.lines().find_map(|line| line.strip_prefix("the simulation that panicked: "));
        println!("{mutant:?}: {}", seed.unwrap_or("not caught"));
        if output.status.success() || seed.is_none() {
            missed.push(mutant);
        }
    }
    assert!(missed.is_empty(), "not caught within {SEED_COUNT_MAX} seeds: {missed:?}");
}
