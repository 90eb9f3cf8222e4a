//! A queue's process, two producers and three workers, any of them killed with kill -9 now and then and started again:
//! what was acknowledged is delivered, and nothing is left over.
//!
//! `BOWLINE_JOBS=20000 BOWLINE_KILL_EVERY=2000 cargo test --release -p bowline-test-queues --test killed` is the long form.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use bowline::queue::Queue;
use bowline_test_queues::jobs::Note;
use tokio::process::{Child, Command};
use tokio::time::sleep;

const PATIENCE: Duration = Duration::from_secs(300);

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

    /// Whether it has ended by itself.
    fn is_over(&mut self) -> bool {
        self.process
            .try_wait()
            .expect("its state")
            .is_some_and(|status| status.success())
    }

    async fn kill_and_start(&mut self) {
        if self.is_over() {
            return;
        }
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_is_delivered_whoever_is_killed() {
    let jobs = environment("BOWLINE_JOBS", 600);
    let every = Duration::from_millis(environment("BOWLINE_KILL_EVERY", 700));
    let folder = tempfile::tempdir().expect("a folder");
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.local_addr().expect("its address").port()
    };
    let endpoint = format!("tcp://127.0.0.1:{port}");
    let role = |arguments: &[&str]| {
        let mut all = vec![arguments[0].to_owned()];
        all.push(folder.path().display().to_string());
        all.push(endpoint.clone());
        all.extend(arguments[1..].iter().map(|argument| (*argument).to_owned()));
        Role::start(all)
    };
    let each = (jobs / 2).to_string();
    let mut roles = [
        role(&["serve"]),
        role(&["produce", "a", &each]),
        role(&["produce", "b", &each]),
        role(&["work", "x"]),
        role(&["work", "y"]),
        role(&["work", "z"]),
    ];
    let mut random = fastrand::Rng::with_seed(314);
    let (began, mut kills) = (Instant::now(), 0);
    while !(roles[1].is_over() && roles[2].is_over()) {
        assert!(began.elapsed() < PATIENCE, "the producers do not get on");
        sleep(every).await;
        let victim = random.usize(0..roles.len());
        roles[victim].kill_and_start().await;
        kills += 1;
    }
    let queue = Queue::<Note>::connect(endpoint.clone())
        .await
        .expect("the queue");
    loop {
        let counters = queue.counters().await;
        if counters.as_ref().is_ok_and(|counters| counters.jobs == 0) {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "never done: {counters:?}");
        sleep(Duration::from_millis(50)).await;
    }
    let pushed: BTreeSet<String> = lines(folder.path(), "pushed-").into_iter().collect();
    let done = lines(folder.path(), "done-");
    let delivered: BTreeSet<String> = done.iter().cloned().collect();
    assert_eq!(pushed.len() as u64, jobs / 2 * 2);
    assert_eq!(pushed, delivered, "acknowledged and delivered are the same");
    println!(
        "{kills} kills in {:.1?}: {} acknowledged, {} delivered, {} of them again",
        began.elapsed(),
        pushed.len(),
        done.len(),
        done.len() - delivered.len()
    );
}
