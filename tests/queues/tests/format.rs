//! The log on the disk is what docs/queue-log.md says, to the byte: a segment that is put together here, from the page
//! and without the code that writes one, opens with exactly these jobs; and what a queue writes is read here, from the
//! page.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bowline::RequestKey;
use bowline::queue::{
    Answer, Credit, Durable, Engine, FailureKind, Identity, JobNumber, JobState, LeasedJob, NewJob,
    Priority, QueueOptions,
};
use bytes::Bytes;
use tokio::time::Instant;
use twox_hash::XxHash3_64;
use uuid::Uuid;

const NEVER: u64 = u64::MAX;
const SALT: u64 = 0x0123_4567_89ab_cdef;
const PRODUCER: Uuid = Uuid::from_u128(0xf00d);

const ALL: Credit = Credit {
    jobs: usize::MAX,
    bytes: usize::MAX,
    takes_any_first: true,
};

/// Fields one after the other, little endian.
#[derive(Default)]
struct Fields(Vec<u8>);

impl Fields {
    fn u8(mut self, number: u8) -> Self {
        self.0.push(number);
        self
    }

    fn u16(mut self, number: u16) -> Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    fn u32(mut self, number: u32) -> Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    fn u64(mut self, number: u64) -> Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }
}

fn fields() -> Fields {
    Fields::default()
}

fn checksum(salt: u64, offset: u64, kind: u32, content: &[u8]) -> u64 {
    let framing = content.len() as u64 | u64::from(kind) << 32;
    let seed = salt ^ offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ framing;
    XxHash3_64::oneshot_with_seed(seed, content)
}

/// What stands above the kind of a record of version 1.
fn framing_check(salt: u64, offset: u64, length: u32, kind: u32) -> u32 {
    let framing = u64::from(length) | u64::from(kind) << 32;
    let seed = salt ^ offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ framing;
    (XxHash3_64::oneshot_with_seed(seed, &[]) >> 40) as u32
}

/// A segment, as the page puts it together, of a version.
struct Page(Vec<u8>, u32);

impl Page {
    fn segment(number: u32, version: u32) -> Self {
        let half = fields().bytes(b"BOWLINEQ").u32(number);
        let half = half.u32(version).u64(SALT).0;
        let checksum = XxHash3_64::oneshot(&half);
        let half = Fields(half).u64(checksum).0;
        Self([half.clone(), half].concat(), version)
    }

    fn record(mut self, kind: u32, content: Fields) -> Self {
        let (offset, content) = (self.0.len() as u64, content.0);
        assert_eq!(offset % 8, 0);
        self.0.extend((content.len() as u32).to_le_bytes());
        let check = match self.1 {
            0 => 0,
            _ => framing_check(SALT, offset, content.len() as u32, kind),
        };
        self.0.extend((kind | check << 8).to_le_bytes());
        self.0
            .extend(checksum(SALT, offset, kind, &content).to_le_bytes());
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        self
    }

    fn push(self, number: u64, due: u64, expires: u64, job: &Job) -> Self {
        let content = fields()
            .u64(1000)
            .u64(number)
            .bytes(PRODUCER.as_bytes())
            .u64(7)
            .u64(100 + number)
            .u64(due)
            .u64(expires)
            .u16(1)
            .u8(job.priority)
            .u8(job.id.len() as u8)
            .u32(job.key.map_or(u32::MAX, |key| key.len() as u32))
            .bytes(job.id.as_bytes())
            .bytes(job.key.unwrap_or("").as_bytes())
            .bytes(job.body.as_bytes());
        self.record(2, content)
    }
}

struct Job {
    priority: u8,
    id: &'static str,
    key: Option<&'static str>,
    body: &'static str,
}

fn plain(body: &'static str) -> Job {
    Job {
        priority: 1,
        id: "",
        key: None,
        body,
    }
}

fn wall() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("it is later").as_millis() as u64
}

fn by_body(jobs: &[LeasedJob]) -> BTreeMap<&str, &LeasedJob> {
    let text = |job| std::str::from_utf8(job).expect("text");
    jobs.iter().map(|job| (text(&job.body[..]), job)).collect()
}

#[tokio::test]
async fn a_segment_from_the_page_opens_with_exactly_these_jobs() {
    opens_with_exactly_these_jobs(1).await;
}

#[tokio::test]
async fn a_segment_of_version_0_opens_with_exactly_these_jobs() {
    opens_with_exactly_these_jobs(0).await;
}

async fn opens_with_exactly_these_jobs(version: u32) {
    let hour = 3_600_000;
    let full = Job {
        priority: 0,
        id: "order-7",
        key: Some("customer-3"),
        body: "with everything",
    };
    let of = |number: u64| fields().u64(1000).u64(number).u8(0);
    let page = Page::segment(1, version)
        .record(
            1,
            fields()
                .u64(1000)
                .u64(wall())
                .u64(0)
                .u32(3)
                .u8(1)
                .u8(7)
                .bytes(b"workers"),
        )
        .record(
            10,
            fields()
                .bytes(PRODUCER.as_bytes())
                .u64(6)
                .u64(1000)
                .u64(0)
                .u64(50),
        )
        .push(0, 1000, NEVER, &full)
        .push(1, 1000 + hour, NEVER, &plain("delayed"))
        .push(2, 1000, NEVER, &plain("done"))
        .push(3, 1000, NEVER, &plain("dead"))
        .push(4, 1000, 1000 + hour, &plain("expires"))
        .push(5, 1000, NEVER, &plain("refused once"))
        .push(6, 1000, NEVER, &plain("sent back"))
        .push(7, 1000, NEVER, &plain("was moved"))
        .record(3, of(2).u64(3 << 40 | 1).u64(99))
        .record(4, of(2).u8(0))
        .record(6, of(3).u8(0).bytes(b"no such picture"))
        .record(5, of(5).u64(1000).u8(0).bytes(b"not now"))
        .record(6, of(6).u8(2).bytes(b"again"))
        .record(7, of(6))
        .record(
            8,
            of(7)
                .u8(0)
                .u8(0)
                .u64(0)
                .u64(0)
                .u32(0)
                .u32(2)
                .u32(0)
                .u32(0)
                .u64(900)
                .u8(1)
                .u32(4)
                .bytes(b"slow"),
        )
        .record(11, fields().u64(1000).u64(wall()))
        .record(13, fields().u64(64));
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("0000000001.log"), &page.0).expect("written");

    let queue = Durable::open(directory.path(), QueueOptions::default()).expect("it opens");
    assert_eq!(queue.recovery().torn_bytes, 0);
    assert!(queue.recovery().damage.is_empty());
    assert_eq!(queue.recovery().records, 19);
    let counters = queue.counters("workers").await.expect("counters");
    assert_eq!(
        (
            counters.ready,
            counters.delayed,
            counters.dead,
            counters.jobs
        ),
        (5, 1, 1, 7)
    );
    let found = queue
        .find(&RequestKey::new("order-7").expect("an ID"))
        .await;
    assert_eq!(
        found.expect("looked for"),
        Some((JobNumber(0), JobState::Ready))
    );

    let worker = queue.worker("workers").await.expect("the group");
    let until = Instant::now() + Duration::from_secs(1);
    let leased = worker.lease(ALL, until).await.expect("jobs");
    let jobs = by_body(&leased);
    assert_eq!(
        jobs.keys().copied().collect::<Vec<_>>(),
        [
            "expires",
            "refused once",
            "sent back",
            "was moved",
            "with everything"
        ]
    );
    let all = jobs["with everything"];
    assert_eq!(leased[0].number, all.number, "its class is the high one");
    assert_eq!(all.priority, Priority::High);
    assert_eq!(
        all.id.as_ref().map(|id| id.as_bytes()),
        Some(&b"order-7"[..])
    );
    assert_eq!(all.key.as_deref(), Some(&b"customer-3"[..]));
    let identity = Identity {
        producer: PRODUCER,
        epoch: 7,
        sequence: 100,
    };
    assert_eq!(all.identity, identity);
    assert_eq!(jobs["refused once"].earlier.refused, 1);
    assert_eq!(jobs["was moved"].earlier.expired, 2);
    let tokens: std::collections::BTreeSet<u64> = leased.iter().map(|job| job.token.0).collect();
    assert_eq!(tokens.len(), leased.len());

    let dead = queue
        .dead_letters("workers", None, 10)
        .await
        .expect("letters");
    assert_eq!(dead.len(), 1);
    assert_eq!(
        (dead[0].number, &dead[0].body[..]),
        (JobNumber(3), &b"dead"[..])
    );
    assert_eq!(dead[0].failures[0].kind, FailureKind::Refused);
    assert_eq!(dead[0].failures[0].cause, "no such picture");

    // What its producer pushed before is known, from the records of pushes and from that of the producer.
    for (epoch, sequence) in [(7, 102), (6, 49)] {
        let identity = Identity {
            producer: PRODUCER,
            epoch,
            sequence,
        };
        let job = NewJob::new(identity, Bytes::from_static(b"again"));
        let pushed = queue.push(vec![job], Instant::now()).await.expect("told");
        assert!(pushed[0].as_ref().is_ok_and(|pushed| pushed.is_duplicate()));
    }
}

/// A record as the page has it.
#[derive(Debug)]
struct Read {
    kind: u32,
    content: Vec<u8>,
}

impl Read {
    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.content[at..at + 8].try_into().expect("eight bytes"))
    }
}

/// The records of a segment, up to the first that is none.
fn records(file: &Path, number: u32) -> Vec<Read> {
    let bytes = std::fs::read(file).expect("it is there");
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    assert_eq!(&bytes[..8], b"BOWLINEQ");
    assert_eq!((u32_at(8), u32_at(12)), (number, 1));
    assert_eq!(u64_at(24), XxHash3_64::oneshot(&bytes[..24]));
    assert_eq!(bytes[..32], bytes[32..64]);
    let (salt, mut offset, mut records) = (u64_at(16), 64, Vec::new());
    while offset + 16 <= bytes.len() && u32_at(offset) > 0 {
        let (length, word) = (u32_at(offset) as usize, u32_at(offset + 4));
        let kind = word & 0xff;
        let check = framing_check(salt, offset as u64, length as u32, kind);
        assert_eq!(word >> 8, check, "at {offset}");
        let content = bytes[offset + 16..][..length].to_vec();
        let expected = checksum(salt, offset as u64, kind, &content);
        assert_eq!(u64_at(offset + 8), expected, "at {offset}");
        records.push(Read { kind, content });
        offset = (offset + 16 + length).next_multiple_of(8);
    }
    records
}

#[tokio::test]
async fn what_a_queue_writes_is_what_the_page_says() {
    let directory = tempfile::tempdir().expect("a directory");
    let queue = Durable::open(directory.path(), QueueOptions::default()).expect("it opens");
    let identity = |sequence| Identity {
        producer: PRODUCER,
        epoch: 7,
        sequence,
    };
    let mut full = NewJob::new(identity(0), Bytes::from_static(b"with everything"));
    full.id = RequestKey::new("order-7").ok();
    full.key = Some(Bytes::from_static(b"customer-3"));
    full.priority = Priority::High;
    full.delay = Duration::from_secs(3600);
    full.expires_after = Some(Duration::from_secs(7200));
    let others = ["done", "refused", "buried"].into_iter().zip(1..);
    let others = others.map(|(body, sequence)| NewJob::new(identity(sequence), Bytes::from(body)));
    let jobs = std::iter::once(full).chain(others).collect();
    queue.push(jobs, Instant::now()).await.expect("pushed");
    let worker = queue.worker("workers").await.expect("the group");
    let until = Instant::now() + Duration::from_secs(1);
    let leased = worker.lease(ALL, until).await.expect("jobs");
    let answers = leased.iter().map(|job| {
        let answer = match &job.body[..] {
            b"done" => Answer::Done,
            b"refused" => Answer::Refuse("not now".into()),
            _ => Answer::Bury("never".into()),
        };
        (job.number, job.token, answer)
    });
    worker.answer(answers.collect()).await.expect("answered");
    queue
        .send_back("workers", vec![JobNumber(3)])
        .await
        .expect("sent back");
    queue.close().await.expect("it closes");

    let read = records(&directory.path().join("0000000001.log"), 1);
    // Marks and what is known to be safe are written when the time has come.
    let read: Vec<&Read> = read
        .iter()
        .filter(|record| ![11, 13].contains(&record.kind))
        .collect();
    let kinds: Vec<u32> = read.iter().map(|record| record.kind).collect();
    assert_eq!(kinds, [1, 2, 2, 2, 2, 3, 3, 3, 4, 5, 6, 7]);

    let begun = &read[0].content;
    assert_eq!(begun[24..], fields().u32(1).u8(1).u8(7).bytes(b"workers").0);
    assert_eq!(read[0].u64(16), 0, "the first job's number");
    assert!(wall().abs_diff(read[0].u64(8)) < 3_600_000);

    let (pushed, now) = (read[1], read[1].u64(0));
    let expected = fields()
        .u64(now)
        .u64(0)
        .bytes(PRODUCER.as_bytes())
        .u64(7)
        .u64(0)
        // A moment is rounded down, and nothing is to be early.
        .u64(now + 3_600_001)
        .u64(now + 7_200_000)
        .u16(1)
        .u8(0)
        .u8(7)
        .u32(10)
        .bytes(b"order-7customer-3with everything");
    assert_eq!(pushed.content, expected.0);
    assert_eq!(read[2].u64(56), NEVER, "no expiry");
    assert_eq!(
        read[2].content[64..],
        fields().u16(1).u8(1).u8(0).u32(u32::MAX).bytes(b"done").0
    );

    for (lease, job) in read[5..8].iter().zip(&leased) {
        let session = lease.u64(25);
        let expected = fields()
            .u64(lease.u64(0))
            .u64(job.number.0)
            .u8(0)
            .u64(job.token.0)
            .u64(session);
        assert_eq!(lease.content, expected.0);
    }
    let of = |record: &Read, number| fields().u64(record.u64(0)).u64(number).u8(0);
    assert_eq!(read[8].content, of(read[8], 1).u8(0).0);
    let due = read[9].u64(17);
    assert_eq!(
        read[9].content,
        of(read[9], 2).u64(due).u8(0).bytes(b"not now").0
    );
    assert!(
        due >= read[9].u64(0) + 1000,
        "the shortest wait is a second"
    );
    assert_eq!(read[10].content, of(read[10], 3).u8(0).bytes(b"never").0);
    assert_eq!(read[11].content, of(read[11], 3).0);
}

#[tokio::test]
async fn which_queue_it_is_and_changes_by_id_are_written_as_the_page_says() {
    let directory = tempfile::tempdir().expect("a directory");
    let engine = Durable::open(directory.path(), QueueOptions::default()).expect("it opens");
    let queue = bowline::queue::Queue::<bowline_test_queues::jobs::Note>::on(engine);
    let id = RequestKey::new("order-7").expect("an ID");
    let note = bowline_test_queues::jobs::Note::default();
    queue.push(&note).id(id.clone()).await.expect("pushed");
    let hour = Duration::from_secs(3600);
    queue.reschedule(&id, hour).await.expect("changed");
    queue.cancel(&id).await.expect("changed");
    queue.close().await.expect("it closes");

    let read = records(&directory.path().join("0000000001.log"), 1);
    let read: Vec<&Read> = read.iter().filter(|record| record.kind != 11).collect();
    let kinds: Vec<u32> = read.iter().map(|record| record.kind).collect();
    let of = |kind: u32| {
        let found = read.iter().find(|record| record.kind == kind);
        found.expect("it is written").content.clone()
    };
    let info = <bowline_test_queues::jobs::Note as bowline::schema::Described>::INFO;
    let holds = fields().u64(info.id).u16(5).bytes(b"notes");
    let holds = holds
        .u16(info.name.len() as u16)
        .bytes(info.name.as_bytes());
    assert_eq!(of(15), holds.0);
    let put_off = of(14);
    let now = u64::from_le_bytes(put_off[..8].try_into().expect("eight bytes"));
    assert_eq!(
        put_off,
        fields().u64(now).u64(0).u8(0).u64(now + 3_600_001).0
    );
    assert_eq!(of(4)[16..], [0, 4], "cancelled");
    // The last says that all before it is safe.
    assert_eq!(kinds.last(), Some(&13), "{kinds:?}");
}
