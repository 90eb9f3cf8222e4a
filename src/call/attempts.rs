//! What is known of the work of one logical call, over all of its attempts: a state machine without
//! clock, task or socket.
//!
//! Each layer that sends a call again asks it: retry, hedge and `wait_for_ready`. *Not done* needs a proof
//! for each attempt: it never left this process, or whoever it was sent to says that nothing was done. An
//! attempt without an answer, one that is still on its way or was dropped, may have been done.

use super::RawRequest;
use crate::wire::{Reason, Status, Work};

/// The attempts of one logical call, and what is known of its work.
#[derive(Clone, Copy, Debug)]
pub struct Attempts {
    begun: u16,
    in_flight: u16,
    /// Over those that have ended.
    ended: Work,
    /// The call asks how another one ended, and does nothing itself.
    is_question: bool,
}

impl Default for Attempts {
    fn default() -> Self {
        Self {
            begun: 0,
            in_flight: 0,
            ended: Work::NotDone,
            is_question: false,
        }
    }
}

impl Attempts {
    /// Returns the state before the first attempt.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the state before the first attempt of `request`, which may ask for an outcome only.
    pub fn of(request: &RawRequest) -> Self {
        Self {
            is_question: request.outcome_only,
            ..Self::default()
        }
    }

    /// Records that an attempt begins. Until it [ends](Self::ended) it may have been done.
    pub fn begin(&mut self) {
        self.begun = self.begun.saturating_add(1);
        self.in_flight = self.in_flight.saturating_add(1);
    }

    /// Records that one of the attempts has ended with `status`.
    pub fn ended(&mut self, status: &Status) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.ended = more(self.ended, status.work());
    }

    /// Returns how many attempts have begun.
    pub fn begun(&self) -> u16 {
        self.begun
    }

    /// Returns how many attempts have begun and not ended.
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// Returns whether the call asks for the outcome of another, and does nothing itself.
    pub fn is_question(&self) -> bool {
        self.is_question
    }

    /// Returns what is known of the work now. An attempt in flight may have been done.
    pub fn work(&self) -> Work {
        match self.in_flight {
            0 => self.ended,
            _ => more(self.ended, Work::OutcomeUnknown),
        }
    }

    /// Returns the status that the call ends with, where `status` is that of one of its attempts: with what
    /// is known of the work over all of them, and with a text that agrees with it.
    ///
    /// A question for an outcome that is not answered says nothing of the work, whatever became of the question.
    pub fn conclude(&self, status: Status) -> Status {
        if self.is_question {
            let is_answer =
                status.reason() == Some(Reason::KeyUnknown) || status.work() == Work::Done;
            return match status.work() {
                Work::NotDone if !is_answer => explained(
                    status,
                    Work::OutcomeUnknown,
                    "this does not tell whether it was done",
                ),
                _ => status,
            };
        }
        let work = more(self.work(), status.work());
        match work {
            _ if work == status.work() => status,
            Work::Done => explained(
                status,
                work,
                "another attempt was done, and its reply is not available; this one",
            ),
            _ => explained(status, work, "another attempt may have been done; this one"),
        }
    }
}

fn explained(status: Status, work: Work, why: &'static str) -> Status {
    let text = format!("{why}: {}", status.message());
    status.with_message(text).with_work(work)
}

/// Returns what two attempts say together.
fn more(a: Work, b: Work) -> Work {
    match (a, b) {
        (Work::Done, _) | (_, Work::Done) => Work::Done,
        (Work::NotDone, Work::NotDone) => Work::NotDone,
        _ => Work::OutcomeUnknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Code;
    use proptest::prelude::*;

    /// One attempt of the reference model.
    #[derive(Clone, Copy, Debug)]
    struct Attempt {
        /// Whether its work is, was, or will be done.
        has_effect: bool,
        /// What its status said, once it has ended.
        said: Option<Work>,
    }

    fn said(has_effect: bool) -> impl Strategy<Value = Option<Work>> {
        let proof = match has_effect {
            true => Work::Done,
            false => Work::NotDone,
        };
        prop_oneof![
            Just(None),
            Just(Some(proof)),
            Just(Some(Work::OutcomeUnknown))
        ]
    }

    fn attempts() -> impl Strategy<Value = Vec<Attempt>> {
        let attempt = any::<bool>().prop_flat_map(|has_effect| {
            said(has_effect).prop_map(move |said| Attempt { has_effect, said })
        });
        prop::collection::vec(attempt, 1..8)
    }

    fn status(work: Work) -> Status {
        Status::new(Code::Unavailable, work, "text")
    }

    proptest! {
        #[test]
        fn the_verdict_is_that_of_the_list_of_all_attempts(model in attempts(), last in 0..8usize) {
            let mut attempts = Attempts::new();
            for attempt in &model {
                attempts.begin();
                if let Some(work) = attempt.said {
                    attempts.ended(&status(work));
                }
            }
            let is = |work| model.iter().any(|attempt| attempt.said == work);
            let expected = match () {
                () if is(Some(Work::Done)) => Work::Done,
                () if is(None) || is(Some(Work::OutcomeUnknown)) => Work::OutcomeUnknown,
                () => Work::NotDone,
            };
            prop_assert_eq!(attempts.work(), expected);
            // What it says is true of what happened.
            let has_effect = model.iter().any(|attempt| attempt.has_effect);
            prop_assert!(attempts.work() != Work::NotDone || !has_effect);
            prop_assert!(attempts.work() != Work::Done || has_effect);
            // The status of any of them ends the call with the same verdict.
            if let Some(work) = model[last % model.len()].said {
                let concluded = attempts.conclude(status(work));
                prop_assert_eq!(concluded.work(), expected);
                prop_assert_eq!(concluded.message() == "text", work == expected);
            }
        }
    }

    #[test]
    fn the_text_of_a_merged_status_agrees_with_its_work() {
        let mut attempts = Attempts::new();
        attempts.begin();
        attempts.ended(&status(Work::OutcomeUnknown));
        attempts.begin();
        let last = Status::unavailable("the store does not answer, so nothing was begun")
            .with_reason(Reason::StoreUnavailable);
        attempts.ended(&last);
        let concluded = attempts.conclude(last);
        assert_eq!(
            concluded.to_string(),
            "Unavailable (outcome unknown): another attempt may have been done; this one: \
             the store does not answer, so nothing was begun"
        );
        assert_eq!(concluded.reason(), Some(Reason::StoreUnavailable));
    }

    #[test]
    fn an_unanswered_question_for_an_outcome_is_unknown() {
        let mut attempts = Attempts {
            is_question: true,
            ..Attempts::new()
        };
        attempts.begin();
        let refused = Status::resource_exhausted("too many");
        assert_eq!(attempts.conclude(refused).work(), Work::OutcomeUnknown);
        let answered = Status::not_found("no record").with_reason(Reason::KeyUnknown);
        assert_eq!(attempts.conclude(answered.clone()), answered);
        let done = status(Work::Done);
        assert_eq!(attempts.conclude(done.clone()), done);
    }
}
