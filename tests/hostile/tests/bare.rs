//! The same attacks against a bare socket of the `zeromq` crate: what kills nobody proves nothing.
//!
//! ```sh
//! cargo test --release -p bowline-test-hostile --test bare -- --nocapture --test-threads 1
//! ```

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bowline_test_hostile::attacks::ALL;
use bowline_test_hostile::process::Victim;
use bowline_test_hostile::zmtp::{Wire, message};

const LIMITS: [&str; 2] = ["memory=2147483648", "files=512"];
/// What a service may have, and a bare socket goes past.
const RESIDENT_MAX: u64 = 256 << 20;
/// It is struck for so long, then looked at; and again, for a machine may be slow.
const STRIKE: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(60);
/// One that does not answer at once is asked again.
const QUESTIONS: usize = 3;

/// One siege at a time: they share the processor.
static ALONE: Mutex<()> = Mutex::new(());

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// The process ends by itself.
    Dies,
    /// It answers nobody any more.
    Deaf,
    /// It answers, and has more memory than a service may have.
    Swells,
    /// Nothing of these: the attack is on what only Bowline has, or on another kind of socket.
    Lives,
}

/// Strikes until something becomes of it, or for so long.
fn strike(which: &str, patience: Duration) -> Fate {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let program = Path::new(env!("CARGO_BIN_EXE_bare"));
    // It dies with a long story.
    let mut victim = Victim::start(program, &LIMITS, 1, Stdio::null()).unwrap();
    assert!(answers(&victim), "not even before");
    let end = Instant::now() + patience;
    loop {
        let hostile = Command::new(env!("CARGO_BIN_EXE_hostile"))
            .args([&STRIKE.as_secs_f64().to_string(), which])
            .args(victim.arguments())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(hostile.status.success(), "{hostile:?}");
        let memory = victim.resident_max();
        let answers = answers(&victim);
        let fate = match victim.ended() {
            Some(status) => {
                assert!(!status.success(), "{which}: it was asked to end");
                Fate::Dies
            }
            None if !answers => Fate::Deaf,
            None if memory > RESIDENT_MAX => Fate::Swells,
            None => Fate::Lives,
        };
        if fate != Fate::Lives || Instant::now() >= end {
            println!("| {which} | {fate:?} | {} MiB |", memory >> 20);
            return fate;
        }
    }
}

/// Whether a client that comes now is answered.
fn answers(victim: &Victim) -> bool {
    let ask = || {
        let wire = Wire::connect([127, 0, 0, 1].into(), victim.address("calls"))?;
        let mut wire = wire.handshake("REQ", b"")?;
        wire.send(&message(&[b"", b"alive"]))?;
        wire.receive_message()
    };
    (0..QUESTIONS).any(|_| ask().is_ok())
}

#[test]
#[ignore = "another project's socket: cargo test -p bowline-test-hostile --test bare -- --ignored"]
fn all_attacks_together_kill_it() {
    assert_eq!(strike("all", PATIENCE), Fate::Dies);
}

#[test]
#[ignore = "another project's socket: cargo test -p bowline-test-hostile --test bare -- --ignored"]
fn nine_bytes_that_declare_a_huge_frame_kill_it() {
    assert_eq!(strike("huge-lengths", PATIENCE), Fate::Dies);
}

#[test]
#[ignore = "another project's socket: cargo test -p bowline-test-hostile --test bare -- --ignored"]
fn a_peer_that_goes_in_the_middle_of_a_frame_leaves_it_deaf() {
    assert_eq!(strike("cut-frames", PATIENCE), Fate::Deaf);
}

#[test]
#[ignore = "another project's socket: cargo test -p bowline-test-hostile --test bare -- --ignored"]
fn a_message_of_endless_parts_bloats_it() {
    let fate = strike("endless-parts", PATIENCE);
    // With all the memory that there may be, it ends.
    assert!(matches!(fate, Fate::Swells | Fate::Dies), "{fate:?}");
}

#[test]
#[ignore = "a table to read, no check: cargo test --release -p bowline-test-hostile --test bare what_each -- --ignored --nocapture"]
fn what_each_does_to_it() {
    for attack in ALL {
        strike(attack.name, STRIKE);
    }
}
