//! What `once` promises, under a seeded network, disk and clocks, with crashes at every step.

use bowline_simulation::once::{MUST_HAPPEN, Mutant, history};
use bowline_simulation::{caught, prove};

/// Seeds in which each mutant must be found.
const MUTANT_SEEDS: u64 = 300;

#[test]
fn every_promise_holds() {
    prove("once", "every_promise_holds", 1_000, MUST_HAPPEN, |seed| {
        history(seed, None)
    });
}

fn is_caught(mutant: Mutant) {
    let found = caught(0..MUTANT_SEEDS, |seed| history(seed, Some(mutant)));
    let (_, report) = found.unwrap_or_else(|| panic!("{mutant:?} was not found out"));
    println!("{mutant:?} is caught by {report}");
}

#[test]
fn a_server_that_does_not_deduplicate_is_caught() {
    is_caught(Mutant::NoDeduplication);
}

#[test]
fn a_server_that_replies_before_it_records_is_caught() {
    is_caught(Mutant::ReplyBeforeRecord);
}

#[test]
fn a_store_that_does_not_fence_is_caught() {
    is_caught(Mutant::NoFencing);
}

#[test]
fn a_full_store_that_runs_again_what_it_forgot_is_caught() {
    is_caught(Mutant::NoTraceOfForgotten);
}

#[test]
fn a_server_that_calls_a_begun_request_not_done_is_caught() {
    is_caught(Mutant::RerunIsNotDone);
}

#[test]
fn a_server_that_believes_a_clock_that_jumped_is_caught() {
    is_caught(Mutant::ClockEndsLeases);
}

#[test]
fn a_seed_is_one_history() {
    use bowline_simulation::Seed;
    for number in 0..20 {
        let once = history(Seed::traced(number), None);
        let again = history(Seed::traced(number), None);
        for (first, second) in once.notes.iter().zip(&again.notes) {
            assert_eq!(first, second, "seed {number}");
        }
        assert_eq!(once.notes.len(), again.notes.len(), "seed {number}");
    }
}
