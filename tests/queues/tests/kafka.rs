//! Queues on Kafka, under the suite of all engines, against the brokers that librdkafka brings for tests.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use bowline::Work;
use bowline::message::Plain;
use bowline::queue::engines::{Kafka, KafkaBuilder};
use bowline::queue::{
    Answer, Credit, Durable, Engine, Job, NewJob, Producer, Queue, QueueError, QueueOptions,
};
use bowline_test_queues::jobs::{Note, Step};
use bowline_test_queues::moving::there_and_back;
use bowline_test_queues::suite::{Setup, refusals};
use bowline_test_queues::{conformance, silent};
use rdkafka::ClientConfig;
use rdkafka::bindings::{
    rd_kafka_handle_mock_cluster, rd_kafka_mock_group_initial_rebalance_delay_ms,
};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use tokio::time::{Instant, sleep, timeout};

/// Brokers in this process.
struct Brokers {
    producer: BaseProducer,
}

static BROKERS: LazyLock<Brokers> = LazyLock::new(|| Brokers::start(3));

impl Brokers {
    fn start(brokers: usize) -> Self {
        let mut config = ClientConfig::new();
        config.set("test.mock.num.brokers", brokers.to_string());
        let producer: BaseProducer = config.create().expect("librdkafka starts");
        // SAFETY: the cluster lives as long as its producer, and the function takes its lock. Nothing safe sets this: a group
        // that was empty waits 3 s for more members, which is all that most tests here would do.
        unsafe {
            let cluster = rd_kafka_handle_mock_cluster(producer.client().native_ptr());
            rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, 0);
        }
        Self { producer }
    }

    fn make_topics(&self, queue: &str, options: &QueueOptions, partitions: i32) {
        let cluster = self.producer.client().mock_cluster().expect("it is one");
        let make = |topic: &str, partitions| {
            let made = cluster.create_topic(topic, partitions, 3);
            made.expect("a topic is made");
        };
        make(queue, partitions);
        for group in options.groups.names() {
            make(&format!("{queue}.{group}.again"), partitions);
            make(&format!("{queue}.{group}.dead"), 1);
        }
    }

    fn addresses(&self) -> String {
        let cluster = self.producer.client().mock_cluster().expect("it is one");
        cluster.bootstrap_servers()
    }
}

fn name() -> String {
    format!("test-{}", Producer::ephemeral().identity().producer)
}

/// A mock broker does not answer a fetch when something comes, but when its time is over.
fn queue(name: &str) -> KafkaBuilder {
    Kafka::queue(name)
        .set("fetch.wait.max.ms", "10")
        .min_insync_replicas(2)
}

struct OnKafka;

impl Setup for OnKafka {
    async fn engine(&self, options: QueueOptions) -> Arc<dyn Engine> {
        let name = name();
        // One partition: the suite asks for the order of all jobs.
        BROKERS.make_topics(&name, &options, 1);
        let queue = queue(&name)
            .options(options)
            .open(BROKERS.addresses())
            .await;
        Arc::new(queue.expect("Kafka takes a queue"))
    }
}

conformance!(OnKafka);

/// The table of docs/queue-engines.md says the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_kafka_cannot_keep_is_refused_and_all_else_is_not() {
    let engine = OnKafka.engine(QueueOptions::default()).await;
    let refused = ["job IDs", "priorities", "finding a job by its ID"];
    assert_eq!(refusals(engine).await, refused);
}

/// Longer than anything that happens here takes, on a machine that does other things too.
const LONG: Duration = Duration::from_secs(60);
const MILLISECOND: Duration = Duration::from_millis(1);

fn options() -> QueueOptions {
    QueueOptions::default()
        .with_backoff_min(20 * MILLISECOND)
        .with_backoff_max(40 * MILLISECOND)
}

/// A queue whose workers are missed after a second: mock brokers grant what real ones do not.
async fn open(addresses: &str, name: &str) -> Queue<Note> {
    let builder = queue(name)
        .options(options())
        .set("session.timeout.ms", "1000")
        .set("heartbeat.interval.ms", "100");
    let queue = builder.open(addresses).await;
    Queue::on(queue.expect("Kafka takes a queue"))
}

fn note(number: u64) -> Note {
    Note {
        number,
        text: String::new(),
    }
}

async fn eventually(mut is: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + LONG;
    while !is().await {
        assert!(Instant::now() < until, "it never came about");
        sleep(10 * MILLISECOND).await;
    }
}

async fn all_done<T: bowline::queue::Queueable>(queue: &Queue<T>) {
    eventually(async || queue.counters().await.expect("counters").jobs == 0).await;
}

/// Another process, which is this test's program with one test to run: the one that is ignored otherwise.
struct Process {
    child: Child,
    folder: PathBuf,
}

impl Process {
    fn start(role: &str, queue: &str, folder: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("it runs"));
        let command = command
            .args(["--exact", "a_worker_in_a_process_of_its_own", "--ignored"])
            .env("BOWLINE_KAFKA_ROLE", role)
            .env("BOWLINE_KAFKA", BROKERS.addresses())
            .env("BOWLINE_KAFKA_QUEUE", queue)
            .env("BOWLINE_KAFKA_FOLDER", folder)
            .stdout(Stdio::null());
        let child = command.spawn().expect("it starts");
        let folder = folder.to_owned();
        Self { child, folder }
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args([signal, &pid]).status();
        assert!(sent.expect("kill is there").success());
    }

    fn wrote(&self) -> Vec<String> {
        let written = std::fs::read_to_string(self.folder.join("lines"));
        let written = written.unwrap_or_default();
        written.lines().map(str::to_owned).collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a process that other tests start and end: cargo test -p bowline-test-queues --features kafka --test kafka"]
async fn a_worker_in_a_process_of_its_own() {
    let variable = |name: &str| std::env::var(name).expect("another test starts this");
    let folder = PathBuf::from(variable("BOWLINE_KAFKA_FOLDER"));
    let write = {
        let file = folder.join("lines");
        move |line: String| {
            let file = OpenOptions::new().create(true).append(true).open(&file);
            let mut file = file.expect("a file");
            file.write_all(format!("{line}\n").as_bytes())
                .expect("a line");
        }
    };
    let name = variable("BOWLINE_KAFKA_QUEUE");
    let queue = open(&variable("BOWLINE_KAFKA"), &name).await;
    if variable("BOWLINE_KAFKA_ROLE") == "work" {
        let handler = move |job: Arc<Job<Note>>| {
            let write = write.clone();
            async move {
                sleep(5 * MILLISECOND).await;
                write(job.plain()?.number.to_string());
                Ok(())
            }
        };
        let worker = queue.worker(4, handler).start().await.expect("the group");
        sleep(LONG).await;
        return worker.drain(LONG).await;
    }
    // Has one job, and answers late.
    let mut jobs = queue.jobs().start().await.expect("the group");
    let job = jobs.next().await.expect("it is open").expect("a job");
    write("has it".into());
    while !folder.join("go on").exists() {
        sleep(10 * MILLISECOND).await;
    }
    write(match job.ack().await {
        Ok(()) => "taken".into(),
        Err(QueueError::Stale(_)) => "stale".into(),
        Err(other) => other.to_string(),
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_worker_has_not_done_comes_again() {
    let name = name();
    BROKERS.make_topics(&name, &options(), 3);
    let queue = open(&BROKERS.addresses(), &name).await;
    let all: Vec<Note> = (0..300).map(note).collect();
    for result in queue.push_all(&all).await.expect("the queue answers") {
        result.expect("there is room");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let mut process = Process::start("work", &name, folder.path());
    eventually(async || process.wrote().len() > 40).await;
    process.signal("-9");
    process.child.wait().expect("it has ended");
    let mut done: BTreeSet<u64> = process
        .wrote()
        .iter()
        .flat_map(|line| line.parse())
        .collect();
    let before = done.len();
    let left = queue.counters().await.expect("counters").jobs;
    assert!(
        left >= 300 - before,
        "{left} are left, and {before} were done"
    );

    let (send, mut numbers) = tokio::sync::mpsc::unbounded_channel();
    let handler = move |job: Arc<Job<Note>>| {
        let send = send.clone();
        async move {
            send.send(job.plain()?.number)?;
            Ok(())
        }
    };
    let worker = queue.worker(4, handler).start().await.expect("the group");
    all_done(&queue).await;
    worker.drain(LONG).await;
    while let Ok(number) = numbers.try_recv() {
        done.insert(number);
    }
    assert_eq!(done, (0..300).collect());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_late_answer_of_a_stopped_worker_is_refused() {
    let name = name();
    BROKERS.make_topics(&name, &options(), 1);
    let queue = open(&BROKERS.addresses(), &name).await;
    queue.push(&note(1)).await.expect("there is room");
    let folder = tempfile::tempdir().expect("a folder");
    let process = Process::start("late", &name, folder.path());
    eventually(async || process.wrote() == ["has it"]).await;
    process.signal("-STOP");
    let mut jobs = queue.jobs().start().await.expect("the group");
    let job = timeout(LONG, jobs.next()).await.expect("it comes again");
    let job = job.expect("it is open").expect("a job");
    job.ack().await.expect("its partition is here now");
    std::fs::write(folder.path().join("go on"), "").expect("a file");
    process.signal("-CONT");
    eventually(async || process.wrote().len() == 2).await;
    assert_eq!(process.wrote()[1], "stale");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_divide_the_partitions_and_keep_the_order_of_each_key() {
    let name = name();
    BROKERS.make_topics(&name, &options(), 4);
    let open = async || {
        let builder = queue(&name).options(options());
        let builder = builder.set("session.timeout.ms", "2000");
        let queue = builder.open(BROKERS.addresses()).await;
        Queue::<Step>::on(queue.expect("Kafka takes a queue"))
    };
    let first = open().await;
    let keys: Vec<String> = (0..12).map(|key| format!("key {key}")).collect();
    let steps: Vec<Step> = (0..40)
        .flat_map(|number| {
            keys.iter().map(move |work| Step {
                work: work.clone(),
                number,
            })
        })
        .collect();
    for result in first.push_all(&steps).await.expect("the queue answers") {
        result.expect("there is room");
    }
    let seen: Arc<Mutex<BTreeMap<String, Vec<u64>>>> = Arc::default();
    let by: Arc<Mutex<BTreeSet<usize>>> = Arc::default();
    let work = async |queue: &Queue<Step>, worker: usize| {
        let (seen, by) = (Arc::clone(&seen), Arc::clone(&by));
        let handler = move |job: Arc<Job<Step>>| {
            let (seen, by) = (Arc::clone(&seen), Arc::clone(&by));
            async move {
                sleep(10 * MILLISECOND).await;
                let step = job.plain()?;
                by.lock().expect("no test panics with it").insert(worker);
                let mut seen = seen.lock().expect("no test panics with it");
                seen.entry(step.work).or_default().push(step.number);
                Ok(())
            }
        };
        queue.worker(2, handler).start().await.expect("the group")
    };
    let one = work(&first, 1).await;
    let second = open().await;
    eventually(async || !by.lock().expect("no test panics with it").is_empty()).await;
    let other = work(&second, 2).await;
    eventually(async || by.lock().expect("no test panics with it").contains(&2)).await;
    one.drain(LONG).await;
    all_done(&second).await;
    other.drain(LONG).await;
    let seen = seen.lock().expect("no test panics with it");
    for key in keys {
        // What was being done when its partition went to another is done there again.
        let mut firsts: Vec<u64> = Vec::new();
        for number in &seen[&key] {
            if !firsts.contains(number) {
                firsts.push(*number);
            }
        }
        assert!(firsts.iter().copied().eq(0..40), "{key}: {firsts:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_that_no_broker_confirms_is_not_accepted_and_everything_ends_in_time() {
    let brokers = Brokers::start(1);
    let name = name();
    let options = options().with_jobs_max(usize::MAX);
    let cluster = brokers.producer.client().mock_cluster().expect("it is one");
    for topic in [&name, &format!("{name}.workers.again")] {
        cluster.create_topic(topic, 1, 1).expect("a topic is made");
    }
    let dead = format!("{name}.workers.dead");
    cluster.create_topic(&dead, 1, 1).expect("a topic is made");
    let builder = queue(&name).options(options);
    // One record at a time may be on its way.
    let builder = builder.set("queue.buffering.max.messages", "1");
    let queue = builder.open(brokers.addresses()).await;
    let queue = Queue::<Note>::on(queue.expect("Kafka takes a queue"));
    assert!(!queue.capabilities().is_durable, "there is one replica");
    queue.push(&note(1)).await.expect("it is confirmed");
    let mut jobs = queue.jobs().start().await.expect("the group");
    let job = jobs.next().await.expect("it is open").expect("a job");

    cluster.broker_down(-1).expect("it is down");
    let began = Instant::now();
    let stuck = {
        let queue = queue.clone();
        tokio::spawn(async move { queue.push(&note(2)).wait_max(3000 * MILLISECOND).await })
    };
    sleep(200 * MILLISECOND).await;
    let full = queue.push(&note(3)).wait_max(300 * MILLISECOND).await;
    assert!(matches!(full, Err(QueueError::Full)), "{full:?}");
    let stuck = stuck.await.expect("no panic");
    assert!(
        matches!(
            stuck,
            Err(QueueError::Unavailable {
                work: Work::OutcomeUnknown,
                ..
            })
        ),
        "{stuck:?}"
    );
    let answered = job.ack().await;
    assert!(
        matches!(
            answered,
            Err(QueueError::Unavailable { .. } | QueueError::Stale(_))
        ),
        "{answered:?}"
    );
    drop(jobs);
    drop(queue);
    assert!(began.elapsed() < LONG, "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_disk_to_kafka_and_back() {
    let folder = tempfile::tempdir().expect("a directory");
    let on_disk = Durable::open(folder.path(), options()).expect("it opens");
    let engine = OnKafka.engine(options()).await;
    there_and_back(Arc::new(on_disk), engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_says_nothing_is_unavailable_after_as_long_as_it_may_take() {
    let (_silent, address) = silent();
    let time = 500 * MILLISECOND;
    let builder = Kafka::queue("any").answer_max(time);
    let began = Instant::now();
    let opened = builder.open(address.to_string()).await;
    let is_told = matches!(
        opened,
        Err(QueueError::Unavailable {
            work: Work::NotDone,
            ..
        })
    );
    assert!(is_told, "{:?}", opened.err());
    assert!(began.elapsed() >= time && began.elapsed() < LONG);
}

/// What a record has room for is what the options say: a job as large as it may be, and every cause of every failure.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_job_with_all_of_its_causes_is_a_dead_letter() {
    const BYTES: usize = 10_000;
    let name = name();
    let options = options()
        .with_job_bytes_max(BYTES)
        .with_attempts_max(20)
        .with_failures_max(20)
        .with_cause_bytes_max(5000);
    BROKERS.make_topics(&name, &options, 1);
    let engine = queue(&name)
        .options(options)
        .open(BROKERS.addresses())
        .await;
    let engine = engine.expect("Kafka takes a queue");
    let job = |key: usize| {
        let body = bytes::Bytes::from(vec![7; BYTES - key]);
        let mut job = NewJob::new(Producer::ephemeral().identity(), body);
        job.key = (key > 0).then(|| bytes::Bytes::from(vec![7; key]));
        job
    };
    let pushed = engine
        .push(vec![job(0), job(BYTES)], Instant::now() + LONG)
        .await;
    let pushed = pushed.expect("an answer");
    assert!(pushed.iter().all(Result::is_ok), "{pushed:?}");
    let worker = engine.worker("workers").await.expect("the group");
    let credit = Credit {
        jobs: 8,
        bytes: 1 << 20,
        takes_any_first: true,
    };
    let until = Instant::now() + LONG;
    let mut answered = 0;
    while answered < 2 * 20 {
        assert!(Instant::now() < until, "{answered} came");
        let leased = worker.lease(credit, until).await.expect("an answer");
        answered += leased.len();
        // Each of its letters takes six bytes in a header.
        let answers = leased.iter().map(|job| {
            let answer = Answer::Refuse("é".repeat(2500));
            (job.number, job.token, answer)
        });
        let told = worker.answer(answers.collect()).await.expect("an answer");
        assert!(told.iter().all(Result::is_ok), "{told:?}");
    }
    let letters = engine.dead_letters("workers", None, 10).await;
    let letters = letters.expect("a list");
    let whole = letters.iter().find(|letter| letter.key.is_none());
    let whole = whole.expect("the one without a key");
    assert_eq!((whole.body.len(), whole.attempts.refused), (BYTES, 20));
    let causes = whole.failures.iter().map(|failure| failure.cause.len());
    assert!(causes.eq([5000; 20]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_of_another_program_is_a_job() {
    let name = name();
    BROKERS.make_topics(&name, &options(), 2);
    let queue = open(&BROKERS.addresses(), &name).await;
    assert!(queue.capabilities().is_durable, "two of three replicas");
    let body = note(7).to_bytes().expect("an encoding");
    let record = BaseRecord::to(&name).payload(&*body).key("a key");
    BROKERS.producer.send(record).expect("it is sent");
    BROKERS.producer.flush(LONG).expect("it is confirmed");
    let mut jobs = queue.jobs().start().await.expect("the group");
    let job = timeout(LONG, jobs.next()).await.expect("it comes");
    let job = job.expect("it is open").expect("a job");
    assert_eq!(job.plain().expect("a note").number, 7);
    // It has a key: it is tried again where it is, and not elsewhere.
    job.reject("not now").await.expect("it is here");
    let job = timeout(LONG, jobs.next()).await.expect("it comes again");
    let job = job.expect("it is open").expect("a job");
    assert_eq!(job.earlier().refused, 1);
    job.ack().await.expect("it is here");
    all_done(&queue).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_waits_long_is_published_anew_and_holds_nothing_back() {
    let name = name();
    BROKERS.make_topics(&name, &options(), 1);
    let builder = queue(&name).options(options()).hold_max(100 * MILLISECOND);
    let queue = builder.open(BROKERS.addresses()).await;
    let queue = Queue::<Step>::on(queue.expect("Kafka takes a queue"));
    let step = |work: &str| Step {
        work: work.into(),
        number: 0,
    };
    // With a key it waits where its key is, before the other one.
    let later = queue.push(&step("later")).delay(60 * LONG).await;
    later.expect("there is room");
    queue.push(&step("now")).await.expect("there is room");
    let mut jobs = queue.jobs().start().await.expect("the group");
    let job = timeout(LONG, jobs.next()).await.expect("it comes");
    let job = job.expect("it is open").expect("a job");
    assert_eq!(job.plain().expect("a step").work, "now");
    job.ack().await.expect("it is here");
    // It is told to be done only when what waited before it is behind it.
    eventually(async || queue.counters().await.expect("counters").jobs == 1).await;
}

/// Nothing of a partition is fetched beyond the window, and all of it is done in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_knows_no_more_jobs_of_a_partition_than_its_window_has() {
    const WINDOW: usize = 4;
    let name = name();
    BROKERS.make_topics(&name, &options(), 1);
    let builder = queue(&name).options(options()).window_jobs_max(WINDOW);
    let builder = builder.set("queued.min.messages", "1");
    let queue = builder.open(BROKERS.addresses()).await;
    let queue = Queue::<Note>::on(queue.expect("Kafka takes a queue"));
    let all: Vec<Note> = (0..600).map(note).collect();
    for result in queue.push_all(&all).await.expect("the queue answers") {
        result.expect("there is room");
    }
    let mut jobs = queue.jobs().jobs_max(16).start().await.expect("the group");
    let mut done = BTreeSet::new();
    while done.len() < all.len() {
        let job = timeout(LONG, jobs.next()).await.expect("it comes");
        let job = job.expect("it is open").expect("a job");
        done.insert(job.plain().expect("a note").number);
        job.ack().await.expect("it is here");
    }
    assert_eq!(done, (0..600).collect());
    all_done(&queue).await;
}
