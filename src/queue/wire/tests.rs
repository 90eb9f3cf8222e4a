//! What the service answers to messages that a careful producer or worker would not send.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tower_service::Service;
use uuid::Uuid;

use super::*;
use crate::call::RawRequest;
use crate::queue::{
    Answer, Credit, Engine, Identity, JobNumber, Memory, NewJob, Producer, QueueError,
    QueueOptions, Token,
};
use crate::queue_capnp::job_queue;
use crate::security::Principal;
use crate::wire::{Code, Status};

async fn asked(
    service: &QueueService,
    principal: Option<&str>,
    method: u16,
    body: Bytes,
) -> Result<Bytes, Status> {
    let mut request = RawRequest::new(&METHODS[usize::from(method)], body);
    request.principal = principal.map(Principal::new);
    let reply = service.clone().call(request).await?;
    Ok(reply.body)
}

fn served(options: QueueOptions) -> (QueueService, Memory) {
    let engine = Memory::new(options);
    let service = QueueService::new().engine("notes", Arc::new(engine.clone()));
    (service, engine)
}

fn push_of(jobs: &[NewJob]) -> Bytes {
    codec::build::<job_queue::push_params::Owned>(|mut to| {
        to.set_queue("notes");
        let mut list = to.init_jobs(jobs.len() as u32);
        for (index, job) in (0..).zip(jobs) {
            codec::write_new_job(list.reborrow().get(index), job);
        }
    })
}

fn lease_of(session: u64) -> Bytes {
    codec::build::<job_queue::lease_params::Owned>(|mut to| {
        to.set_queue("notes");
        to.set_group("workers");
        to.set_session(session);
        codec::write_credit(
            to.init_credit(),
            Credit {
                jobs: 10,
                bytes: 1 << 20,
                takes_any_first: true,
            },
        );
    })
}

fn answer_of(session: u64, number: JobNumber, token: Token) -> Bytes {
    codec::build::<job_queue::answer_params::Owned>(|mut to| {
        to.set_queue("notes");
        to.set_group("workers");
        to.set_session(session);
        let answer = (number, token, Answer::Done);
        codec::write_answer(to.init_answers(1).get(0), &answer);
    })
}

fn leased(reply: Bytes) -> Vec<(JobNumber, Token)> {
    let reply = crate::message::open(reply, &Default::default()).expect("a reply");
    let root = reply.get_root::<job_queue::lease_results::Reader<'_>>();
    let jobs = root.and_then(|root| root.get_jobs()).expect("jobs");
    jobs.iter()
        .map(|job| (JobNumber(job.get_number()), Token(job.get_token())))
        .collect()
}

fn is_held(reply: Bytes) -> bool {
    let reply = crate::message::open(reply, &Default::default()).expect("a reply");
    let root = reply.get_root::<job_queue::answer_results::Reader<'_>>();
    root.and_then(|root| root.get_held()).expect("one").get(0)
}

/// The parameters of a push that claims so many jobs of no size: a list with a tag, and nothing behind it.
fn claims(jobs: u32) -> Bytes {
    let mut body = Vec::new();
    // One segment: root pointer; a struct of one word of data and two pointers; its queue and its list.
    let words: [u64; 6] = [
        // To the struct behind it: one word of data, two pointers.
        1 << 32 | 2 << 48,
        0,
        // The queue's name: a list of six bytes, one word on.
        1 | 1 << 2 | (2 | 6 << 3) << 32,
        // The jobs: a list of structs of no words, behind the name.
        1 | 1 << 2 | 7 << 32,
        u64::from_le_bytes(*b"notes\0\0\0"),
        // The tag: so many structs without data or pointers.
        u64::from(jobs) << 2,
    ];
    // As large as a message may be, so that as much may be visited.
    let padding = (1 << 17) - 1 - words.len();
    body.extend(0u32.to_le_bytes());
    body.extend(((words.len() + padding) as u32).to_le_bytes());
    for word in words.into_iter().chain(std::iter::repeat_n(0, padding)) {
        body.extend(word.to_le_bytes());
    }
    body.into()
}

#[tokio::test]
async fn a_push_that_claims_more_jobs_than_a_message_may_have_is_refused() {
    let (service, _) = served(QueueOptions::default());
    for jobs in [1025, 500_000] {
        let refused = asked(&service, None, PUSH, claims(jobs)).await;
        let refused = refused.expect_err("more than 1,024");
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains("1024"), "{refused}");
    }
    // As many as a message may have are looked at: they name no producer.
    let refused = asked(&service, None, PUSH, claims(1024)).await;
    let refused = refused.expect_err("no producer");
    assert!(refused.message().contains("producer"), "{refused}");
}

#[tokio::test]
async fn a_push_without_a_producer_is_refused() {
    let (service, engine) = served(QueueOptions::default());
    let identity = Identity {
        producer: Uuid::nil(),
        epoch: 0,
        sequence: 0,
    };
    let push = push_of(&[NewJob::new(identity, Bytes::new())]);
    let refused = asked(&service, None, PUSH, push).await;
    assert_eq!(refused.expect_err("refused").code(), Code::InvalidArgument);
    assert_eq!(engine.counters("workers").await.expect("counters").jobs, 0);
}

#[tokio::test]
async fn a_lease_is_answered_by_its_session_and_principal_and_by_no_other() {
    let (service, engine) = served(QueueOptions::default());
    let producer = Producer::ephemeral();
    let job = NewJob::new(producer.identity(), Bytes::new());
    let pushed = engine.push(vec![job], Instant::now()).await;
    pushed.expect("an answer")[0]
        .as_ref()
        .expect("there is room");
    let jobs = asked(&service, Some("shop"), LEASE, lease_of(7)).await;
    let (number, token) = leased(jobs.expect("an answer"))[0];
    for (principal, session) in [(Some("bank"), 7), (Some("shop"), 8), (None, 7)] {
        let answer = answer_of(session, number, token);
        let told = asked(&service, principal, ANSWER, answer).await;
        assert!(
            !is_held(told.expect("an answer")),
            "{principal:?} {session}"
        );
    }
    // Nor by one who counts.
    for guess in 0..64 {
        let answer = answer_of(8, number, Token(token.0.wrapping_add(guess)));
        let told = asked(&service, Some("shop"), ANSWER, answer).await;
        assert!(!is_held(told.expect("an answer")));
    }
    let answer = answer_of(7, number, token);
    let told = asked(&service, Some("shop"), ANSWER, answer).await;
    assert!(is_held(told.expect("an answer")));
}

#[tokio::test]
async fn a_job_that_no_message_has_room_for_is_refused_or_a_dead_letter() {
    let options = QueueOptions::default()
        .with_job_bytes_max(2 << 20)
        .with_lease(Duration::from_secs(30));
    let engine = Memory::new(options);
    let producer = Producer::ephemeral();
    let push = async |bytes: usize| {
        let job = NewJob::new(producer.identity(), Bytes::from(vec![7; bytes]));
        let pushed = engine.push(vec![job], Instant::now()).await;
        pushed.expect("an answer").pop().expect("one result")
    };
    push(1_048_500).await.expect("it is not served yet");
    let service = QueueService::new().engine("notes", Arc::new(engine.clone()));
    let refused = push(1_048_500).await;
    assert!(
        matches!(refused, Err(QueueError::TooLarge { .. })),
        "{refused:?}"
    );
    push(JOB_BYTES_MAX).await.expect("it fits");
    // The one from before can never be sent, and is seen; the other one is sent.
    let mut sent = Vec::new();
    while sent.is_empty() {
        let jobs = asked(&service, None, LEASE, lease_of(7)).await;
        sent = leased(jobs.expect("an answer"));
    }
    assert_eq!(sent[0].0, JobNumber(1));
    let letters = engine
        .dead_letters("workers", None, 1)
        .await
        .expect("letters");
    assert!(
        letters[0].failures[0].cause.contains("1048500"),
        "{letters:?}"
    );
}

#[tokio::test]
async fn a_page_that_one_answer_cannot_hold_says_that_there_are_more() {
    let (service, engine) = served(QueueOptions::default());
    let producer = Producer::ephemeral();
    let worker = engine.worker("workers").await.expect("the group");
    let credit = Credit {
        jobs: 1,
        bytes: 1 << 20,
        takes_any_first: true,
    };
    for _ in 0..3 {
        let job = NewJob::new(producer.identity(), Bytes::from(vec![7; 300 << 10]));
        engine
            .push(vec![job], Instant::now())
            .await
            .expect("an answer");
        let job = worker
            .lease(credit, Instant::now())
            .await
            .expect("a job")
            .remove(0);
        let answers = vec![(job.number, job.token, Answer::Bury("no".into()))];
        worker.answer(answers).await.expect("an answer");
    }
    let (mut after, mut seen) = (None, Vec::new());
    loop {
        let params = codec::build::<job_queue::dead_letters_params::Owned>(|mut to| {
            to.set_queue("notes");
            to.set_group("workers");
            to.set_has_after(after.is_some());
            to.set_after(after.unwrap_or(0));
            to.set_max(100);
        });
        let reply = asked(&service, None, DEAD_LETTERS, params)
            .await
            .expect("a page");
        assert!(reply.len() <= 1 << 20);
        let reply = crate::message::open(reply, &Default::default()).expect("a reply");
        let root = reply.get_root::<job_queue::dead_letters_results::Reader<'_>>();
        let root = root.expect("a page");
        let letters = root.get_letters().expect("letters");
        seen.extend(letters.iter().map(|letter| letter.get_number()));
        if root.get_more() != Ok(crate::queue_capnp::More::Some) {
            break;
        }
        after = Some(root.get_next());
    }
    assert_eq!(seen, [0, 1, 2]);
}
