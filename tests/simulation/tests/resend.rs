//! What callers are told of the work of calls that are sent again, against what was done.

use bowline_simulation::resend::{MUST_HAPPEN, Mutant, history};
use bowline_simulation::{caught, prove};

/// Seeds in which each mutant must be found.
const MUTANT_SEEDS: u64 = 300;

#[test]
fn what_callers_are_told_is_what_was_done() {
    let name = "what_callers_are_told_is_what_was_done";
    prove("resend", name, 1_000, MUST_HAPPEN, |seed| {
        history(seed, None)
    });
}

#[test]
fn every_mutant_of_resending_is_caught() {
    for mutant in [
        Mutant::LastAttemptDecides,
        Mutant::InFlightForgotten,
        Mutant::LostIsNotDone,
        Mutant::UnsafeSentAgain,
        Mutant::HandlersAnswerRepeated,
        Mutant::NoBudget,
    ] {
        let found = caught(0..MUTANT_SEEDS, |seed| history(seed, Some(mutant)));
        let (_, report) = found.unwrap_or_else(|| panic!("{mutant:?} was not caught"));
        println!("{mutant:?} is caught by {report}");
    }
}
