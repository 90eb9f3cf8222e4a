//! A worker as a member of Kafka's group: the task that fetches records, tells what is done, and hears which
//! partitions are its own.
//!
//! It never waits for a handler, so a worker whose hands are full stays a member. librdkafka's own thread says
//! that the process is there.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use rdkafka::consumer::{
    BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance, StreamConsumer,
};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::BorrowedMessage;
use rdkafka::{ClientContext, Message, Offset, TopicPartitionList};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until};

use crate::queue::QueueError;

use super::super::envelope::{milliseconds, now_ms};
use super::board::Board;
use super::record::{self, Partition};
use super::{FETCHED_KIB, Group, KafkaBrokers, failed, set_unless};

/// Records that are noted before anything else is looked at.
const NOTED_MAX: usize = 256;
/// The longest between two looks at what is to do.
const LOOK: Duration = Duration::from_secs(1);
/// A job that is due in so small a part of the time that it may hold others back is left where it is.
const HOLD_PART: u32 = 12;

/// What ends the task: it is told when the group has been left.
pub(super) type Leave = oneshot::Sender<oneshot::Sender<()>>;

pub(super) struct Member {
    shared: Arc<KafkaBrokers>,
    group: usize,
    board: Arc<Board>,
    consumer: Consuming,
}

impl Member {
    /// Subscribes. Blocks, and has to be called in a runtime.
    pub fn join(
        shared: Arc<KafkaBrokers>,
        group: usize,
        board: Arc<Board>,
    ) -> Result<Self, QueueError> {
        let of = &shared.groups[group];
        let mut config = shared.config.clone();
        let session = config.get("session.timeout.ms").map(str::parse);
        let session = match session {
            Some(Ok(milliseconds)) => Duration::from_millis(milliseconds),
            _ => shared.session(),
        };
        config.set("session.timeout.ms", session.as_millis().to_string());
        let heartbeat = (session / 10).as_millis();
        set_unless(&mut config, "heartbeat.interval.ms", heartbeat);
        config
            .set("group.id", &of.id)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "earliest")
            .set("isolation.level", "read_committed")
            // What stays with a worker is not taken from it when another comes.
            .set("partition.assignment.strategy", "cooperative-sticky");
        set_unless(&mut config, "queued.min.messages", 1000);
        set_unless(&mut config, FETCHED_KIB.0, FETCHED_KIB.1);
        let context = MemberContext {
            board: Arc::clone(&board),
            topic: shared.topic.clone(),
            again: of.again.clone(),
        };
        let consumer: StreamConsumer<MemberContext> =
            config.create_with_context(context).map_err(failed)?;
        let topics = [shared.topic.as_str(), of.again.as_str()];
        let subscribed = consumer.subscribe(&topics);
        let consumer = Consuming {
            consumer: Some(Arc::new(consumer)),
            told: None,
            answer_max: shared.terms.limits.answer_max,
        };
        subscribed.map_err(failed)?;
        Ok(Self {
            shared,
            group,
            board,
            consumer,
        })
    }

    /// Until it is told to leave, or nobody is there to tell it.
    pub async fn run(mut self, leave: oneshot::Receiver<oneshot::Sender<()>>) {
        let told = tokio::select! {
            told = leave => told.ok(),
            () = self.receive() => None,
            () = self.move_on() => None,
        };
        self.consumer.told = told;
    }

    fn group(&self) -> &Group {
        &self.shared.groups[self.group]
    }

    async fn receive(&self) {
        let Some(consumer) = &self.consumer.consumer else {
            return;
        };
        loop {
            let look_again = self.look(consumer);
            tokio::select! {
                received = consumer.recv() => self.note(consumer, received),
                () = self.board.work.notified() => continue,
                () = sleep_until(look_again) => continue,
            }
            for _ in 0..NOTED_MAX {
                match consumer.recv().now_or_never() {
                    Some(received) => self.note(consumer, received),
                    None => break,
                }
            }
            self.board.changed.notify_waiters();
        }
    }

    fn note(
        &self,
        consumer: &StreamConsumer<MemberContext>,
        received: KafkaResult<BorrowedMessage<'_>>,
    ) {
        let message = match received {
            Ok(message) => message,
            Err(error) => {
                // librdkafka tries again by itself; whoever waits for jobs is told.
                tracing::debug!(%error, "no jobs from Kafka");
                self.board.lock().fail(error.to_string());
                return;
            }
        };
        let partition = consumer
            .context()
            .partition(message.topic(), message.partition());
        let record = record::read(&message);
        let is_ours = record
            .only_for
            .as_ref()
            .is_none_or(|group| *group == self.group().name);
        let record = is_ours.then_some(record);
        let is_full = self
            .board
            .lock()
            .note(partition, message.offset(), record, now_ms());
        if is_full {
            let list = self.list(&[(partition, Offset::Invalid)]);
            if let Err(error) = consumer.pause(&list) {
                tracing::warn!(%error, "a partition that is full is still fetched");
            }
        }
    }

    /// Does what is to do, and says when to look again.
    fn look(&self, consumer: &Arc<StreamConsumer<MemberContext>>) -> Instant {
        let now = Instant::now();
        let mut look_again = now + LOOK;
        let now_ms = now_ms();
        let (due, resume, tell, tell_again) = {
            let mut state = self.board.lock();
            let due = state.wake(now_ms);
            let (resume, tell) = (state.resume(), state.untold());
            let group = self.group();
            state.count(&group.leased, &group.leased_again, &group.postponed);
            (due, resume, tell, state.tell_again())
        };
        self.board.changed.notify_waiters();
        self.board.told.notify_waiters();
        if let Some(tell_again) = tell_again {
            look_again = look_again.min(tell_again);
        }
        if let Some(due) = due {
            look_again = look_again.min(now + Duration::from_millis(due.saturating_sub(now_ms)));
        }
        if !resume.is_empty() {
            let resume: Vec<_> = resume.into_iter().map(|p| (p, Offset::Invalid)).collect();
            if let Err(error) = consumer.resume(&self.list(&resume)) {
                tracing::warn!(%error, "a partition is not fetched again");
            }
        }
        if !tell.is_empty() {
            self.tell(consumer, tell);
        }
        look_again
    }

    /// Tells Kafka where everything is done, on a thread that may be blocked: of what it is told otherwise, rdkafka 0.39
    /// does not say whether it was taken.
    fn tell(&self, consumer: &Arc<StreamConsumer<MemberContext>>, tell: Vec<(Partition, i64)>) {
        let offset = |(partition, before)| (partition, Offset::Offset(before));
        let list = self.list(&tell.into_iter().map(offset).collect::<Vec<_>>());
        let (consumer, board) = (Arc::clone(consumer), Arc::clone(&self.board));
        // Awaited by what it writes on the board; it ends when Kafka has answered, or is not waited for any more.
        drop(self.shared.runtime.spawn_blocking(move || {
            let told = consumer.commit(&list, CommitMode::Sync);
            if let Err(error) = &told {
                tracing::debug!(%error, "what is done was not taken");
            }
            drop(consumer);
            board.lock().was_told(told.is_ok());
            board.work.notify_one();
        }));
    }

    fn list(&self, partitions: &[(Partition, Offset)]) -> TopicPartitionList {
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for (partition, offset) in partitions {
            let topic = match partition.is_of_group {
                true => &self.group().again,
                false => &self.shared.topic,
            };
            let mut element = list.add_partition(topic, partition.index);
            // Offsets that are no number cannot be set, and are not needed.
            let _ = element.set_offset(*offset);
        }
        list
    }

    /// Publishes anew what has long waited for its time, so that what is done behind it can be told.
    async fn move_on(&self) {
        let hold_max = self.shared.window.hold_max;
        let moved_max = self.shared.terms.limits.unconfirmed_max;
        loop {
            sleep(LOOK).await;
            let now = now_ms();
            let since = now.saturating_sub(milliseconds(hold_max));
            let waiting = self.board.lock().waiting_since(since, moved_max);
            let soon = now.saturating_add(milliseconds(hold_max / HOLD_PART));
            for (place, envelope, due) in waiting.into_iter().filter(|(.., due)| *due > soon) {
                let mut envelope = envelope;
                envelope.number = Some(super::board::number(&place, &envelope));
                match self.shared.send_again(self.group(), &envelope, due).await {
                    Ok(()) => drop(self.board.lock().finish(&place)),
                    Err(error) => tracing::debug!(%error, "a waiting job stays where it is"),
                }
            }
            self.board.work.notify_one();
        }
    }
}

/// The consumer, which leaves its group when it goes. That blocks: so it goes on a thread of its own, which ends when Kafka
/// has answered or librdkafka no longer waits for it.
struct Consuming {
    consumer: Option<Arc<StreamConsumer<MemberContext>>>,
    told: Option<oneshot::Sender<()>>,
    answer_max: Duration,
}

impl Drop for Consuming {
    fn drop(&mut self) {
        let (consumer, told) = (self.consumer.take(), self.told.take());
        let answer_max = self.answer_max;
        let close = move || {
            if let Some(consumer) = consumer {
                consumer.context().board.lock().lose_all();
                let until = Instant::now() + answer_max;
                // What is being told is to arrive first.
                while Arc::strong_count(&consumer) > 1 && Instant::now() < until {
                    std::thread::sleep(Duration::from_millis(5));
                }
                drop(consumer);
            }
            if let Some(told) = told {
                // Whoever does not wait for it does not want to know.
                let _ = told.send(());
            }
        };
        let thread = std::thread::Builder::new().name("bowline-kafka-leave".into());
        // Where there is no thread to be had, it is dropped here.
        if let Err(error) = thread.spawn(close) {
            tracing::debug!(%error, "no thread to leave a group on");
        }
    }
}

pub(super) struct MemberContext {
    board: Arc<Board>,
    topic: String,
    again: String,
}

impl MemberContext {
    fn partition(&self, topic: &str, index: i32) -> Partition {
        let is_of_group = topic == self.again;
        Partition { is_of_group, index }
    }

    fn partitions(&self, list: &TopicPartitionList) -> Vec<Partition> {
        let elements = list.elements();
        let of = |element: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| {
            self.partition(element.topic(), element.partition())
        };
        elements.iter().map(of).collect()
    }
}

impl ClientContext for MemberContext {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(%error, reason, topic = self.topic, "librdkafka");
    }
}

impl ConsumerContext for MemberContext {
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let mut state = self.board.lock();
        match rebalance {
            Rebalance::Assign(list) => state.gain(self.partitions(list).into_iter()),
            Rebalance::Revoke(list) => state.lose(self.partitions(list).into_iter()),
            Rebalance::Error(error) => {
                tracing::debug!(%error, "the group is not divided");
                state.lose_all();
            }
        }
        drop(state);
        self.board.told.notify_waiters();
        self.board.work.notify_one();
    }
}
