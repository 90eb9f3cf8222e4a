//! Running many seeds, and telling how to replay the one that failed.

use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::Faults;

/// Which history.
#[derive(Clone, Copy, Debug)]
pub struct Seed {
    /// All that it depends on.
    pub number: u64,
    /// Whether somebody will read its notes.
    pub is_traced: bool,
}

impl Seed {
    /// Without notes.
    pub fn quiet(number: u64) -> Self {
        let is_traced = false;
        Self { number, is_traced }
    }

    /// With notes.
    pub fn traced(number: u64) -> Self {
        let is_traced = true;
        Self { number, is_traced }
    }
}

/// What came of a seed.
#[derive(Debug, Default)]
pub struct History {
    /// What was injected.
    pub faults: Faults,
    /// What did not hold, in the order in which it was found.
    pub violations: Vec<String>,
    /// What happened, where it was noted.
    pub notes: Vec<String>,
}

/// Runs `history` for many seeds, on all cores, and fails with the first one that has a violation: after
/// printing its notes and the command that replays it. A panic is a violation.
///
/// `target` and `name` are the test target and the function that calls this, for that command.
/// The seeds are 0 to `seeds`; `BOWLINE_SEEDS=100000` runs so many, `BOWLINE_SEED=123` just that
/// one, with its notes.
///
/// # Panics
/// For a violation, and where a fault of `must_be_injected` never was.
pub fn prove(
    target: &str,
    name: &str,
    seeds: u64,
    must_be_injected: &[&str],
    history: impl Fn(Seed) -> History + Sync,
) {
    if let Some(number) = from_environment("BOWLINE_SEED") {
        let ended = run(Seed::traced(number), &history);
        print_notes(&ended);
        println!("{}", ended.faults);
        assert!(ended.violations.is_empty(), "{}", report(number, &ended));
        return println!("seed {number}: nothing was violated");
    }
    let seeds = from_environment("BOWLINE_SEEDS").unwrap_or(seeds);
    let begun = Instant::now();
    let (faults, violated) = search(0..seeds, &history);
    if let Some(number) = violated {
        // Once more, to be read.
        let ended = run(Seed::traced(number), &history);
        print_notes(&ended);
        // Whose test this is, which cargo says.
        let package = std::env::var("CARGO_PKG_NAME");
        let package = package.unwrap_or_else(|_| env!("CARGO_PKG_NAME").to_owned());
        let report = report(number, &ended);
        panic!(
            "{report}\nreplay it with:\n    BOWLINE_SEED={number} cargo test -p {package} \
             --test {target} {name} -- --nocapture\n"
        );
    }
    println!(
        "{name}: {seeds} seeds in {:.1?}; injected:",
        begun.elapsed()
    );
    println!("{faults}");
    for fault in must_be_injected {
        let count = faults.get(fault);
        assert!(
            count > 0,
            "no {fault:?} was ever injected: this proves too little"
        );
    }
}

/// The first of `seeds` in which a mutant is caught, and how. `None` if it gets away with it.
pub fn caught(
    seeds: Range<u64>,
    history: impl Fn(Seed) -> History + Sync,
) -> Option<(u64, String)> {
    let (_, violated) = search(seeds, &history);
    violated.map(|number| (number, report(number, &run(Seed::quiet(number), &history))))
}

/// Stops at a violation; says the smallest seed that is known to have one.
fn search(seeds: Range<u64>, history: &(impl Fn(Seed) -> History + Sync)) -> (Faults, Option<u64>) {
    let next = AtomicU64::new(seeds.start);
    let violated = Mutex::new(None::<u64>);
    let faults = Faults::default();
    let lowest = || *violated.lock().expect("no panic under the lock");
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            // Those below the lowest that failed are run to their end, so that the answer does
            // not depend on the number of cores.
            if number >= seeds.end || lowest().is_some_and(|lowest| number > lowest) {
                return;
            }
            let ended = run(Seed::quiet(number), history);
            faults.add_all(&ended.faults);
            if !ended.violations.is_empty() {
                let mut violated = violated.lock().expect("no panic under the lock");
                *violated = Some(violated.map_or(number, |lowest| lowest.min(number)));
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    (faults, lowest())
}

fn run(seed: Seed, history: &impl Fn(Seed) -> History) -> History {
    catch_unwind(AssertUnwindSafe(|| history(seed))).unwrap_or_else(|panic| History {
        violations: vec![format!("a panic: {}", message(&*panic))],
        ..History::default()
    })
}

fn message(panic: &(dyn Any + Send)) -> String {
    let literal = panic.downcast_ref::<&str>().map(ToString::to_string);
    let formatted = || panic.downcast_ref::<String>().cloned();
    literal.or_else(formatted).unwrap_or_default()
}

fn report(number: u64, ended: &History) -> String {
    format!("seed {number}: {}", ended.violations.join("\n"))
}

fn print_notes(ended: &History) {
    for note in &ended.notes {
        println!("{note}");
    }
}

fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is not a number")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violated_from(first: u64) -> impl Fn(Seed) -> History {
        move |seed| {
            let mut history = History::default();
            if seed.number >= first {
                history.violations.push("too many".to_owned());
            }
            history
        }
    }

    #[test]
    fn the_first_seed_that_fails_is_found() {
        let (number, report) = caught(0..100, violated_from(31)).expect("it fails");
        assert_eq!((number, &report[..]), (31, "seed 31: too many"));
        assert!(caught(0..31, violated_from(31)).is_none());
    }

    #[test]
    fn a_panic_is_a_violation() {
        let (number, report) = caught(0..10, |seed| {
            assert!(seed.number != 3, "no");
            History::default()
        })
        .expect("it fails");
        assert_eq!((number, &report[..]), (3, "seed 3: a panic: no"));
    }

    #[test]
    #[should_panic(expected = "BOWLINE_SEED=2 cargo test -p bowline-simulation --test seeds two")]
    fn a_seed_that_fails_prints_the_command_that_replays_it() {
        prove("seeds", "two", 3, &[], violated_from(2));
    }

    #[test]
    #[should_panic(expected = "no \"crash\" was ever injected")]
    fn a_proof_without_its_faults_fails() {
        prove("seeds", "none", 3, &["crash"], |_| History::default());
    }
}
