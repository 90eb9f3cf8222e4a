//! Queues on NATS JetStream.
//!
//! Each group of workers has three streams: `jobs`, from which its workers pull; `waiting`, in which delayed jobs
//! and those between two attempts wait, and from which every open queue moves them on when they are due; and `dead`.
//! A job moves by being published where it goes, and acknowledged where it was only then: a crash in between
//! makes two of one, never none.

mod dead;
mod streams;
mod waiting;
mod worker;

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::context::PublishAckFuture;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{RawMessageErrorKind, Stream};
use async_nats::jetstream::{self, Context};
use async_nats::{ConnectOptions, HeaderMap};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::queue::{
    Capabilities, DeadLetter, JobNumber, NewJob, Pushed, QueueCounters, QueueError, QueueOptions,
};
use crate::wire::Work;

use super::envelope::{DUE, Envelope, escape, now_ms};
use super::server::{FULL_RETRY, OnServer, Server};
use super::terms::{Limits, Terms, limit_setters};
use super::thread::EngineThread;
use super::unavailable;
use streams::{Group, Place};
use worker::NatsWorker;

/// What is in a message beside our headers and its body: the other headers that it may have.
const MESSAGE_BYTES: usize = 128;

/// A queue on NATS JetStream, made by [`Nats::queue`].
///
/// It has no order per key and no priority classes, and it cannot refuse a late acknowledgement: see
/// `docs/queue-engines.md`.
pub type Nats = OnServer<NatsServer>;

/// The connection to a NATS server, and the streams of a queue there.
#[derive(Debug)]
pub struct NatsServer {
    context: Context,
    groups: Vec<Group>,
    terms: Terms,
    runtime: Handle,
}

/// Settings of a queue on NATS.
#[derive(Debug)]
#[must_use = "nothing is opened before `open`"]
pub struct NatsBuilder {
    name: String,
    connect: ConnectOptions,
    options: QueueOptions,
    replicas: usize,
    is_synced: bool,
    carries_unkept: bool,
    limits: Limits,
}

impl Nats {
    /// A queue of this name: letters, digits, `-` and `_`.
    pub fn queue(name: impl Into<String>) -> NatsBuilder {
        NatsBuilder {
            name: name.into(),
            connect: ConnectOptions::new(),
            options: QueueOptions::default(),
            replicas: 1,
            is_synced: false,
            carries_unkept: false,
            limits: Limits::default(),
        }
    }
}

impl NatsBuilder {
    /// How to connect: credentials, TLS and so on.
    pub fn connect_options(mut self, connect: ConnectOptions) -> Self {
        self.connect = connect;
        self
    }

    /// Sets limits, leases and groups. The first opening makes the streams and consumers with its own, and NATS's tools
    /// change them later. A lease other than that of the consumer gives way to the consumer's, with a warning.
    pub fn options(mut self, options: QueueOptions) -> Self {
        self.options = options;
        self
    }

    /// Servers of a cluster that keep each stream. Default: 1.
    pub fn replicas(mut self, replicas: usize) -> Self {
        self.replicas = replicas;
        self
    }

    /// Says that the server has `sync_interval: always` (2.10 and later), so that what it confirms survives
    /// its machine. It cannot be asked. Default: no, and [`Capabilities::is_durable`] does not claim it.
    pub fn server_syncs_always(mut self) -> Self {
        self.is_synced = true;
        self
    }

    /// Takes jobs that ask for what this engine does not keep (order per key, priorities), and brings
    /// their keys and classes along without keeping them. Default: such a job is refused.
    pub fn carry_unkept(mut self) -> Self {
        self.carries_unkept = true;
        self
    }

    limit_setters!();

    /// Connects to these servers (`"127.0.0.1:4222"`, or several with commas between), and makes the streams that are
    /// not there.
    ///
    /// # Errors
    /// [`QueueError::Unavailable`], where no server can be reached, or one refuses to make a stream, or one has a stream or a
    /// consumer under which jobs would be lost (other retention, old messages discarded, deliveries limited).
    pub async fn open(self, servers: impl Into<String>) -> Result<Nats, QueueError> {
        let (servers, name) = (servers.into(), self.name);
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let names = self.options.groups.names().iter().chain([&name]);
        if let Some(wrong) = names
            .into_iter()
            .find(|name| name.is_empty() || !name.chars().all(is_name))
        {
            let reason = format!("{wrong:?} is no name that NATS takes");
            return Err(unavailable(reason, Work::NotDone));
        }
        let thread = EngineThread::start("bowline-nats")?;
        let (connect, options, replicas) = (self.connect, self.options.clone(), self.replicas);
        let answer_max = self.limits.answer_max;
        let connected = thread.run(async move {
            let servers: Vec<&str> = servers.split(',').map(str::trim).collect();
            let late = |_| unavailable("no server answers", Work::NotDone);
            let client = timeout(answer_max, connect.connect(servers)).await;
            let client = client.map_err(late)?;
            let client = client.map_err(|error| unavailable(error, Work::NotDone))?;
            let mut context = jetstream::new(client);
            context.set_timeout(answer_max);
            let mut groups = Vec::new();
            for group in options.groups.names() {
                groups.push(Group::open(&context, &name, group, &options, replicas).await?);
            }
            Ok((context, groups))
        });
        let (context, groups) = connected.await?;
        let mut capabilities = Capabilities::ALL;
        capabilities.is_durable = self.is_synced;
        capabilities.fences = false;
        capabilities.orders_keys = false;
        capabilities.priorities = false;
        capabilities.finds = false;
        capabilities.cancels = false;
        let terms = Terms::new(self.options, capabilities, self.limits, self.carries_unkept);
        let server = Arc::new(NatsServer {
            context,
            groups,
            terms,
            runtime: thread.handle().clone(),
        });
        for group in 0..server.groups.len() {
            thread
                .handle()
                .spawn(waiting::move_on(Arc::clone(&server), group));
        }
        Ok(OnServer::new(server, thread))
    }
}

impl NatsServer {
    /// Publishes, and returns when the server has confirmed it.
    async fn publish(
        &self,
        subject: String,
        envelope: &Envelope,
        message_id: &str,
        until: Instant,
    ) -> Result<Confirmed, QueueError> {
        let sent = self.send(subject, envelope, message_id).await?;
        confirm(sent, envelope, until).await
    }

    /// Publishes a job that another message still holds, and returns when `to` has it: the other message may then be
    /// acknowledged. A duplicate counts only while its stream still has that very job; otherwise the job is published
    /// under an ID of its own, so that two may be made of one, never none.
    async fn move_job(
        &self,
        to: &Stream,
        subject: String,
        envelope: &Envelope,
        message_id: &str,
        until: Instant,
    ) -> Result<(), QueueError> {
        let confirmed = self
            .publish(subject.clone(), envelope, message_id, until)
            .await?;
        if !confirmed.was_there {
            return Ok(());
        }
        match to.get_raw_message(confirmed.sequence).await {
            Ok(there)
                if Envelope::read(header(&there.headers), there.payload.clone()).identity
                    == envelope.identity =>
            {
                return Ok(());
            }
            Ok(_) => {}
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => {}
            Err(error) => return Err(unavailable(error, Work::OutcomeUnknown)),
        }
        let message_id = format!("{message_id}/{:x}", fastrand::u64(..));
        self.publish(subject, envelope, &message_id, until).await?;
        Ok(())
    }

    /// Publishes. Messages of one caller arrive in the order in which this returns.
    ///
    /// # Errors
    /// [`QueueError::TooLarge`] for a new job that has no room in a message with all that may be added to it later: nothing
    /// was sent.
    async fn send(
        &self,
        subject: String,
        envelope: &Envelope,
        message_id: &str,
    ) -> Result<PublishAckFuture, QueueError> {
        let max = self.context.client().max_payload();
        let room = max.saturating_sub(MESSAGE_BYTES + message_id.len());
        let room = room.checked_sub(envelope.body.len());
        let bytes = envelope.bytes();
        let room = room.ok_or(QueueError::TooLarge { bytes, max })?;
        let envelope = &*envelope.fitted(room)?;
        let mut message = PublishMessage::build().payload(envelope.body.clone());
        for (name, value) in envelope.headers() {
            message = message.header(name, value.as_str());
        }
        if !envelope.delay.is_zero() {
            message = message.header(DUE, envelope.due_ms().to_string().as_str());
        }
        let message = message.message_id(message_id);
        let sent = self.context.send_publish(subject, message).await;
        sent.map_err(|error| publish_error(error, envelope))
    }
}

impl Server for NatsServer {
    type Group = Group;
    type Sent = SentJob;
    type Worker = NatsWorker;

    fn terms(&self) -> &Terms {
        &self.terms
    }

    fn groups(&self) -> &[Group] {
        &self.groups
    }

    async fn send_new(&self, job: NewJob, _: Instant) -> Result<SentJob, QueueError> {
        let envelope = Envelope::new(job, now_ms());
        let place = match envelope.delay.is_zero() {
            true => Place::Jobs,
            false => Place::Waiting,
        };
        let message_id = push_id(&envelope);
        let mut sent = Vec::with_capacity(self.groups.len());
        for group in &self.groups {
            let subject = group.subject(place, None);
            sent.push(self.send(subject, &envelope, &message_id).await?);
        }
        Ok(SentJob {
            envelope,
            place,
            message_id,
            sent,
        })
    }

    async fn confirm_new(&self, job: SentJob, deadline: Instant) -> Result<Pushed, QueueError> {
        let envelope = job.envelope;
        let mut first = None;
        for (group, sent) in self.groups.iter().zip(job.sent) {
            let until = || self.terms.confirmed_by(deadline);
            let mut confirmed = confirm(sent, &envelope, until()).await;
            while matches!(confirmed, Err(QueueError::Full)) && Instant::now() < deadline {
                sleep_until(deadline.min(Instant::now() + FULL_RETRY)).await;
                let subject = group.subject(job.place, None);
                confirmed = self
                    .publish(subject, &envelope, &job.message_id, until())
                    .await;
            }
            first.get_or_insert(confirmed?);
        }
        let Some(Confirmed {
            sequence,
            was_there,
        }) = first
        else {
            return Err(QueueError::Closed);
        };
        let number = group_number(job.place, sequence);
        if !was_there {
            return Ok(Pushed::Accepted(number));
        }
        if envelope.id.is_none() {
            return Ok(Pushed::Again);
        }
        let state = self.groups[0].state(number, sequence).await?;
        Ok(Pushed::Duplicate { number, state })
    }

    async fn worker(self: Arc<Self>, group: usize) -> Result<NatsWorker, QueueError> {
        let lease = self.groups[group].lease(&self.terms.options).await?;
        Ok(NatsWorker::new(self, group, lease))
    }

    async fn dead_letters(
        &self,
        group: &Group,
        after: Option<JobNumber>,
        max: usize,
    ) -> Result<Vec<DeadLetter>, QueueError> {
        dead::list(group, after, max).await
    }

    async fn send_back(&self, group: &Group, numbers: Vec<JobNumber>) -> Result<usize, QueueError> {
        dead::send_back(self, group, numbers).await
    }

    async fn delete(&self, group: &Group, numbers: Vec<JobNumber>) -> Result<usize, QueueError> {
        dead::delete(group, numbers).await
    }

    async fn counters(&self, group: &Group) -> Result<QueueCounters, QueueError> {
        group.counters(&self.terms.options).await
    }
}

/// A new job on its way to every group.
pub struct SentJob {
    envelope: Envelope,
    place: Place,
    message_id: String,
    sent: Vec<PublishAckFuture>,
}

/// What the server says of a message that it has.
struct Confirmed {
    sequence: u64,
    was_there: bool,
}

async fn confirm(
    sent: PublishAckFuture,
    envelope: &Envelope,
    until: Instant,
) -> Result<Confirmed, QueueError> {
    match timeout_at(until, sent.into_future()).await {
        Ok(Ok(confirmed)) => Ok(Confirmed {
            sequence: confirmed.sequence,
            was_there: confirmed.duplicate,
        }),
        Ok(Err(error)) => Err(publish_error(error, envelope)),
        Err(_) => Err(unavailable(
            "the server did not confirm",
            Work::OutcomeUnknown,
        )),
    }
}

/// By what the server knows a push again.
fn push_id(envelope: &Envelope) -> String {
    match &envelope.id {
        Some(id) => format!("id/{}", escape(id.as_bytes())),
        None => format!("push/{}", envelope.identity),
    }
}

/// Returns the ID under which a job leaves the message that has it. The time of that message is in it: sequences begin
/// anew with a stream, and go back with one that is restored or loses its last writes.
fn message_id(kind: &str, sequence: u64, published: impl Display) -> String {
    format!("{kind}/{sequence}/{published}")
}

/// Returns what reads headers by their names.
fn header(headers: &HeaderMap) -> impl Fn(&str) -> Option<String> {
    |name| headers.get(name).map(|value| value.as_str().to_owned())
}

/// Numbers of jobs that were pushed with a delay have their highest bit set: their stream counts by itself.
const PUSHED_DELAYED: u64 = 1 << 63;

fn group_number(place: Place, sequence: u64) -> JobNumber {
    match place {
        Place::Waiting => JobNumber(sequence | PUSHED_DELAYED),
        Place::Jobs | Place::Dead => JobNumber(sequence),
    }
}

fn publish_error(
    error: async_nats::error::Error<jetstream::context::PublishErrorKind>,
    envelope: &Envelope,
) -> QueueError {
    use jetstream::context::PublishErrorKind::{MaxPayloadExceeded, StreamNotFound};
    // The server tells these apart by nothing but their text.
    let text = match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    };
    match error.kind() {
        _ if text.contains("maximum messages exceeded")
            || text.contains("maximum bytes exceeded") =>
        {
            QueueError::Full
        }
        MaxPayloadExceeded => QueueError::TooLarge {
            bytes: envelope.body.len(),
            // What the server's limit is, its error does not say.
            max: envelope.body.len().saturating_sub(1),
        },
        StreamNotFound => unavailable(text, Work::NotDone),
        _ => unavailable(text, Work::OutcomeUnknown),
    }
}
