//! A queue's process, two producers, three workers and what they work on, any of them killed with kill -9 now and then
//! and started again: what was acknowledged is delivered, what is done through `$once` is done once, and what nobody
//! can do is a dead letter.
//!
//! `BOWLINE_JOBS=20000 BOWLINE_KILL_EVERY=2000 cargo test --release -p bowline-test-queues --test killed` is the long form.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use bowline::queue::{DeadLetters, Queue};
use bowline_test_queues::jobs::Note;
use bowline_test_queues::{ENTRIES, is_poison};
use redb::{Database, ReadableDatabase, ReadableTable};
use tokio::process::{Child, Command};
use tokio::time::sleep;

const PATIENCE: Duration = Duration::from_secs(600);
const LEASE_MS: &str = "1000";

fn environment(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}

struct Role {
    arguments: Vec<String>,
    process: Child,
}

impl Role {
    fn start(arguments: Vec<String>) -> Self {
        let process = Command::new(env!("CARGO_BIN_EXE_role"))
            .args(&arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("it starts");
        Self { arguments, process }
    }

    fn name(&self) -> &str {
        &self.arguments[0]
    }

    /// Whether it has ended by itself.
    fn is_over(&mut self) -> bool {
        self.process
            .try_wait()
            .expect("its state")
            .is_some_and(|status| status.success())
    }

    async fn kill_and_start(&mut self) {
        // kill -9; it may have ended in this moment.
        let _ = self.process.kill().await;
        *self = Self::start(self.arguments.clone());
    }
}

fn lines(folder: &Path, prefix: &str) -> Vec<String> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("a file").path();
        let name = path.file_name().and_then(|name| name.to_str());
        if name.is_some_and(|name| name.starts_with(prefix)) {
            let text = std::fs::read_to_string(&path).expect("text");
            all.extend(text.lines().map(str::to_owned));
        }
    }
    all
}

fn free_endpoint() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    format!("tcp://{}", listener.local_addr().expect("its address"))
}

/// How often each job was entered in the ledger.
fn entries(folder: &Path) -> BTreeMap<String, u64> {
    let database = Database::create(folder.join("ledger.redb")).expect("it opens");
    let reads = database.begin_read().expect("a transaction");
    let entries = reads.open_table(ENTRIES).expect("a table");
    let entries = entries.iter().expect("entries").map(|entry| {
        let (text, times) = entry.expect("an entry");
        (text.value().to_owned(), times.value())
    });
    entries.collect()
}

async fn texts(dead: DeadLetters<'_, Note>) -> BTreeSet<String> {
    let (mut texts, mut last) = (BTreeSet::new(), None);
    loop {
        let letters = dead.list(last, 100).await.expect("a list");
        let Some(letter) = letters.last() else {
            return texts;
        };
        last = Some(letter.number);
        for letter in &letters {
            assert_eq!(letter.failures.last().expect("a cause").cause, "poison");
            let note = dead.open(letter).expect("a message").plain();
            assert!(texts.insert(note.expect("a note").text), "a letter twice");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_is_delivered_and_done_once_whoever_is_killed() {
    let jobs = environment("BOWLINE_JOBS", 1000);
    let every = Duration::from_millis(environment("BOWLINE_KILL_EVERY", 300));
    let folder = tempfile::tempdir().expect("a folder");
    let (endpoint, ledger) = (free_endpoint(), free_endpoint());
    let role = |name: &str, endpoint: &str, more: &[&str]| {
        let folder = folder.path().display().to_string();
        let mut all = vec![name.to_owned(), folder, endpoint.to_owned()];
        all.extend(more.iter().map(|argument| (*argument).to_owned()));
        Role::start(all)
    };
    let each = (jobs / 2).to_string();
    // In the order in which they are killed the first time.
    let mut roles = [
        role("produce", &endpoint, &["a", &each]),
        role("work", &endpoint, &["x", &ledger]),
        role("serve", &endpoint, &[LEASE_MS]),
        role("ledger", &ledger, &[]),
        role("produce", &endpoint, &["b", &each]),
        role("work", &endpoint, &["y", &ledger]),
        role("work", &endpoint, &["z", &ledger]),
    ];
    let queue = Queue::<Note>::connect(&endpoint).await.expect("the queue");
    let mut random = fastrand::Rng::with_seed(314);
    let mut order: Vec<usize> = (0..roles.len()).collect();
    let (began, mut kills) = (Instant::now(), BTreeMap::<String, u64>::new());
    'done: loop {
        for victim in &order {
            sleep(every).await;
            let counters = queue.counters().await;
            let is_done = counters.as_ref().is_ok_and(|now| now.jobs == now.dead);
            if is_done && roles[0].is_over() && roles[4].is_over() {
                break 'done;
            }
            assert!(began.elapsed() < PATIENCE, "never done: {counters:?}");
            let victim = &mut roles[*victim];
            if !victim.is_over() {
                victim.kill_and_start().await;
                *kills.entry(victim.name().to_owned()).or_default() += 1;
            }
        }
        random.shuffle(&mut order);
    }
    let pushed: BTreeSet<String> = lines(folder.path(), "pushed-").into_iter().collect();
    let sent = lines(folder.path(), "sent-");
    let delivered: BTreeSet<String> = sent.iter().cloned().collect();
    let again = sent.len() - delivered.len();
    let dead = texts(queue.dead_letters()).await;
    // The ledger's file is only one process's at a time.
    for role in &mut roles {
        let _ = role.process.kill().await;
    }
    let entries = entries(folder.path());
    println!(
        "killed in {:.1?}: {kills:?}; {} acknowledged, {} delivered, {again} more times again; {} done, {} dead",
        began.elapsed(),
        pushed.len(),
        delivered.len(),
        entries.len(),
        dead.len(),
    );

    assert_eq!(pushed.len() as u64, jobs / 2 * 2);
    assert!(
        pushed.is_subset(&delivered),
        "acknowledged, and not delivered"
    );
    let twice: Vec<_> = entries.iter().filter(|(_, times)| **times != 1).collect();
    assert!(twice.is_empty(), "done more than once: {twice:?}");
    let number = |text: &String| -> u64 {
        let number = text
            .split_once('-')
            .and_then(|(_, number)| number.parse().ok());
        number.expect("a number")
    };
    let (poison, sound): (BTreeSet<String>, BTreeSet<String>) =
        pushed.into_iter().partition(|text| is_poison(number(text)));
    assert_eq!(dead, poison, "exactly the poisoned are dead letters");
    assert!(entries.into_keys().eq(sound), "pushed are done and dead");
    // Otherwise it shows nothing.
    assert_eq!(kills.len(), 4, "not all were killed: {kills:?}");
    assert!(
        again > 0,
        "nothing was sent twice, so nothing could be done twice"
    );
}
