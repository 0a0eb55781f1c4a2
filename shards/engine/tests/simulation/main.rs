//! The whole engine in the simulated world, against a model: promises 1 to 4 under crashes, faults and full disks.
//!
//! A seed draws a layout, a workload, and the points where power fails, the process is killed or a device breaks; after
//! each crash the deployment is opened again, possibly with another number of cores, and every key is compared.
//! `BASALT_SIM_SEEDS` sets how many seeds each test runs, `BASALT_SIM_FIRST` the first of them (0), and `BASALT_SIM_SEED`
//! replays one.

mod buckets;
mod client;
mod cluster;
mod collection;
mod crashes;
mod damage;
mod directories;
mod disks;
mod faults;
mod full;
mod growth;
mod lost;
mod members;
mod merging;
mod model;
mod mutants;
mod offline;
mod rebuild;
mod scrub;
mod slow;
mod startup;
mod survey;
mod tightness;
mod together;
mod uploads;

use client::Outcome;

fn seeds(default: u64) -> Vec<u64> {
    if let Ok(seed) = std::env::var("BASALT_SIM_SEED") {
        return vec![seed.parse().expect("BASALT_SIM_SEED is a number")];
    }
    let number = |name| std::env::var(name).ok().map(|text| text.parse().expect("a number of seeds"));
    let first = number("BASALT_SIM_FIRST").unwrap_or(0);
    (first..first + number("BASALT_SIM_SEEDS").unwrap_or(default)).collect()
}

/// Says that the workload reached what it is meant to test; a single seed need not.
fn must_reach(reached: bool, total: &Outcome) {
    assert!(reached || std::env::var_os("BASALT_SIM_SEED").is_some(), "{total:?}");
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
    must_reach(total.crashes > 0 && total.acknowledged > 0, &total);
    must_reach(total.verified > 0 && total.described > 0, &total);
}

#[test]
fn a_rotten_disk_among_sound_ones_costs_nothing() {
    let total = run_all(12, damage::one_rotten_disk);
    must_reach(total.verified > 0, &total);
}

#[test]
fn a_damaged_disk_never_gives_wrong_bytes() {
    let total = run_all(20, damage::one_rotten_copy);
    must_reach(total.verified > 0 && total.failed > 0, &total);
}

#[test]
fn a_core_that_cannot_start_keeps_no_other_waiting() {
    let total = run_all(20, damage::second_shard_of_a_core);
    must_reach(total.refused > 0, &total);
}

#[test]
fn what_readers_find_damaged_is_repaired_in_place() {
    let total = run_all(12, scrub::found_by_readers);
    must_reach(total.repaired > 0 && total.verified > 0, &total);
}

#[test]
fn scrub_mends_every_kind_of_structure() {
    let total = run_all(15, scrub::found_by_scrub);
    must_reach(total.repaired > 0 && total.verified > 0, &total);
}

#[test]
fn a_repair_that_is_cut_off_makes_nothing_worse() {
    let total = run_all(15, scrub::cut_off);
    must_reach(total.repaired > 0 && total.verified > 0, &total);
}

#[test]
fn damage_beyond_redundancy_is_counted_and_left_alone() {
    let total = run_all(15, scrub::beyond_redundancy);
    must_reach(total.refused > 0 && total.failed > 0 && total.verified > 0, &total);
}

#[test]
fn a_disk_that_does_not_answer_holds_no_repair_back() {
    let total = run_all(12, scrub::stuck);
    must_reach(total.repaired > 0 && total.verified > 0, &total);
}

#[test]
fn scrub_takes_nothing_that_crashes_leave_behind_for_damage() {
    let total = run_all(8, |seed| crashes::Scenario::with_scrub(seed).run());
    must_reach(total.crashes > 0 && total.scrubbed > 0 && total.verified > 0, &total);
}

#[test]
fn a_damaged_acknowledged_batch_is_refused_with_evidence() {
    run_all(10, damage::damaged_batch);
}

#[test]
fn a_failing_device_never_makes_an_acknowledgement_untrue() {
    let total = run_all(25, faults::failing_device);
    must_reach(total.failed > 0 && total.verified > 0, &total);
}

#[test]
fn up_to_m_disks_leave_and_no_client_notices() {
    let total = run_all(20, members::disks_leave);
    must_reach(total.acknowledged > 0 && total.verified > 0, &total);
}

/// A log extent was being prepared while the log entered a younger one for its new epoch, and then followed it: recovery, which looked
/// for what is younger, ended the log before it.
#[test]
fn the_log_goes_on_in_younger_extents_alone() {
    members::disks_leave(168);
    members::disks_leave(710);
}

#[test]
fn more_than_m_disks_leave_and_nothing_is_made_worse() {
    let total = run_all(24, lost::too_many_leave);
    must_reach(total.acknowledged > 0 && total.failed > 0 && total.verified > 0, &total);
}

#[test]
fn what_never_came_about_is_not_written_on_the_last_disk() {
    let total = run_all(12, lost::last_one_left);
    must_reach(total.acknowledged > 0 && total.verified > 0, &total);
}

#[test]
fn writes_go_on_when_too_many_stuck_disks_answer_again() {
    let total = run_all(6, lost::too_many_stuck);
    must_reach(total.acknowledged > 0 && total.failed > 0 && total.verified > 0, &total);
}

#[test]
fn what_is_left_is_read_and_not_a_byte_written() {
    let total = run_all(30, lost::read_only);
    must_reach(total.refused > 0 && total.failed > 0 && total.verified > 0, &total);
}

#[test]
fn disks_that_return_or_are_replaced_are_rebuilt_under_load() {
    let total = run_all(40, members::disks_return);
    must_reach(total.acknowledged > 0 && total.verified > 0, &total);
}

#[test]
fn a_set_is_added_under_load_or_not_at_all() {
    let total = run_all(12, growth::set_is_added);
    must_reach(total.acknowledged > 0 && total.verified > 0, &total);
}

#[test]
fn an_operators_word_about_a_disk_holds_over_crashes() {
    let total = run_all(20, disks::orders);
    must_reach(total.acknowledged > 0 && total.verified > 0, &total);
}

#[test]
fn a_spare_disk_takes_the_place_of_one_that_is_gone() {
    let total = run_all(10, disks::spare);
    must_reach(total.acknowledged > 0 && total.verified > 0, &total);
}

#[test]
fn two_disks_that_are_behind_are_rebuilt_together() {
    let total = run_all(12, disks::two_behind);
    must_reach(total.acknowledged > 0 && total.verified > 0, &total);
}

#[test]
fn disks_go_by_their_record_and_not_for_a_common_cause() {
    let total = run_all(4, disks::records);
    must_reach(total.verified > 0, &total);
}

#[test]
fn every_start_with_disks_that_were_changed_has_its_outcome() {
    let total = run_all(2, startup::every_case);
    must_reach(total.refused > 0 && total.verified > 0, &total);
}

#[test]
fn every_earlier_format_opens_and_is_written_anew() {
    let total = run_all(3, startup::earlier_formats);
    must_reach(total.verified > 0, &total);
}

#[test]
fn what_a_newer_basalt_wrote_is_refused_by_name() {
    let total = run_all(2, startup::newer_format);
    must_reach(total.refused > 0, &total);
}

#[test]
fn a_disk_that_was_replaced_is_refused_beside_its_successor() {
    let total = run_all(3, startup::replaced);
    must_reach(total.verified > 0, &total);
}

#[test]
fn below_the_write_quorum_writes_are_refused_and_reads_go_on() {
    let total = run_all(4, disks::write_quorum);
    must_reach(total.acknowledged > 0 && total.verified > 0, &total);
}

/// Small bodies that were let in before the disk was full lay in the log where deletes were to go on.
#[test]
fn what_was_let_in_earlier_takes_no_room_from_deletes() {
    faults::full_disk(21);
}

#[test]
fn a_full_disk_refuses_puts_alone_and_recovers_again_and_again() {
    let total = run_all(4, faults::full_disk);
    must_reach(total.refused > 0 && total.verified > 0, &total);
}

#[test]
fn a_start_does_without_disks_that_others_fill() {
    let total = run_all(12, full::start_with_full_disks);
    must_reach(total.refused > 0 && total.races > 0 && total.failed > 0 && total.verified > 0, &total);
}

#[test]
fn a_slow_disk_delays_no_read() {
    let total = run_all(2, slow::slow_disk);
    must_reach(total.verified > 0, &total);
}

#[test]
fn overwriting_a_full_store_keeps_it_tight_and_moves_lose_to_writes() {
    let total = run_all(3, collection::steady_overwrite);
    must_reach(total.crashes > 0 && total.verified > 0 && total.moved > 0 && total.outrun > 0, &total);
}

#[test]
fn moves_that_end_for_want_of_room_lose_nothing() {
    let total = run_all(6, collection::cut_short);
    must_reach(total.verified > 0 && total.moved > 0 && total.refused > 0, &total);
}

#[test]
fn collection_goes_on_when_a_disk_never_answers() {
    let total = run_all(6, collection::beside_a_stuck_disk);
    must_reach(total.verified > 0 && total.moved > 0, &total);
}

#[test]
fn a_store_that_is_overwritten_all_the_time_stays_tight() {
    let total = run_all(1, tightness::at_all_times);
    must_reach(total.moved > 0, &total);
}

#[test]
fn small_objects_take_little_more_than_redundancy_after_repacking() {
    let total = run_all(1, tightness::repacked);
    must_reach(total.moved > 0, &total);
}

#[test]
fn collection_scrub_and_rebuilding_go_together_through_crashes() {
    let total = run_all(6, together::run);
    must_reach(total.crashes > 0 && total.verified > 0 && total.moved > 0 && total.scrubbed > 0, &total);
    must_reach(total.merged > 0, &total);
}

#[test]
fn uploads_complete_as_a_whole_and_give_their_space_back() {
    let total = run_all(12, uploads::run);
    must_reach(total.crashes > 0 && total.verified > 0 && total.moved > 0 && total.merged > 0, &total);
}

#[test]
fn short_parts_become_one_body_and_stay_parts() {
    let total = run_all(2, merging::at_rest);
    must_reach(total.merged > 0 && total.verified > 0, &total);
}

#[test]
fn merging_that_is_cut_off_leaves_the_parts_or_the_whole() {
    let total = run_all(12, merging::cut_off);
    must_reach(total.crashes > 0 && total.merged > 0 && total.verified > 0, &total);
}

#[test]
fn merged_parts_come_back_from_directories_alone() {
    let total = run_all(10, merging::rebuilt);
    must_reach(total.merged > 0 && total.moved > 0 && total.verified > 0, &total);
}

#[test]
fn merging_loses_to_clients_and_takes_nothing_from_them() {
    let total = run_all(8, merging::beside_clients);
    must_reach(total.merged > 0 && total.outrun > 0 && total.verified > 0, &total);
}

#[test]
fn merging_waits_for_room_and_leaves_damage_alone() {
    let total = run_all(4, |seed| {
        let mut outcome = merging::on_a_full_disk(seed);
        outcome.add(&merging::beside_damage(seed));
        outcome
    });
    must_reach(total.merged > 0 && total.refused > 0 && total.failed > 0, &total);
}

#[test]
fn buckets_come_and_go_without_taking_an_object_along() {
    let total = run_all(15, buckets::run);
    must_reach(total.crashes > 0 && total.races > 0 && total.verified > 0, &total);
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..3 {
        let run = || crashes::Scenario::draw(seed).run();
        assert_eq!(run(), run(), "seed {seed}");
    }
}
