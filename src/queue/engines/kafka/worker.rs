//! A worker: gives out what its task has fetched, and passes on what became of it.
//!
//! There is no lease: Kafka gives a worker's partitions to others when nothing was heard of its process for the length
//! of a session, and takes nothing of it after that. An answer for a job of a partition that has gone is stale.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::queue::{
    Answer, Credit, EngineFuture, EngineWorker, JobNumber, LeasedJob, Poison, QueueError, Stale,
    Token,
};
use crate::wire::Work;

use super::super::envelope::{Envelope, Next, now_ms};
use super::super::held::Lease;
use super::super::unavailable;
use super::board::{Board, Change, Place, Told, number};
use super::member::{Leave, Member};
use super::{Group, KafkaBrokers, dead};

/// How long to wait before looking again whether dead letters were taken away, or credit came.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

pub struct KafkaWorker {
    shared: Arc<KafkaBrokers>,
    group: usize,
    board: Arc<Board>,
    leave: Mutex<Option<Leave>>,
}

impl KafkaWorker {
    pub async fn join(shared: Arc<KafkaBrokers>, group: usize) -> Result<Self, QueueError> {
        let board = Arc::new(Board::new(shared.window));
        let joined = {
            let (shared, board) = (Arc::clone(&shared), Arc::clone(&board));
            let runtime = shared.runtime.clone();
            move || {
                let _in_runtime = runtime.enter();
                Member::join(shared, group, board)
            }
        };
        let member = shared.blocking(joined).await?;
        let (leave, left) = oneshot::channel();
        // Ends when this worker goes, or the engine's runtime.
        shared.runtime.spawn(member.run(left));
        Ok(Self {
            shared,
            group,
            board,
            leave: Mutex::new(Some(leave)),
        })
    }

    fn group(&self) -> &Group {
        &self.shared.groups[self.group]
    }

    fn count(&self) {
        let group = self.group();
        let mut state = self.board.lock();
        state.count(&group.leased, &group.leased_again, &group.postponed);
    }

    /// Looks at the dead letters, unless it is known that there is room. Says whether there is.
    async fn has_room_for_dead(&self) -> Result<bool, QueueError> {
        let parkings = {
            let state = self.board.lock();
            if state.knows_dead() {
                return Ok(true);
            }
            state.parkings()
        };
        let parks = self.shared.parks();
        let read = self.shared.read(self.group(), move |reader| {
            let count = reader.count_dead()?;
            let keys: HashSet<_> = match parks {
                true => reader.dead_keys().collect(),
                false => HashSet::new(),
            };
            Ok((count, keys))
        });
        let (count, keys) = read.await?;
        if count >= self.shared.terms.options.dead_max {
            return Ok(false);
        }
        self.board.lock().know_dead(keys, parkings);
        Ok(true)
    }

    /// What may be taken now. Nothing where it is not known which keys stand still.
    fn take(&self, credit: Credit) -> Vec<LeasedJob> {
        let mut expired = 0;
        let leased = {
            let mut state = self.board.lock();
            if !state.knows_dead() {
                return Vec::new();
            }
            state.take(credit, now_ms(), &mut expired)
        };
        if expired > 0 {
            self.group().expired.fetch_add(expired, Ordering::Relaxed);
            self.board.work.notify_one();
        }
        self.count();
        leased
    }

    async fn answer_one(
        &self,
        lease: Lease<Place>,
        answer: Answer,
    ) -> Result<Result<Answered, Stale>, QueueError> {
        let place = lease.message;
        if !self.board.lock().is_current(&place) {
            return Ok(Err(Stale));
        }
        if answer == Answer::Release {
            self.board.lock().put_back(&place);
            return Ok(Ok(Answered::Kept));
        }
        let is_done = answer == Answer::Done;
        let answered = self.carry_out(lease, answer).await;
        if answered.is_err() {
            // It comes again, here.
            self.board.lock().put_back(&place);
        }
        match answered? {
            Some(envelope) => {
                let due = envelope.due_ms();
                self.board.lock().postpone(&place, envelope, due);
                Ok(Ok(Answered::Kept))
            }
            None => {
                let change = self.board.lock().finish(&place);
                Ok(change
                    .map(|change| Answered::Finished(change, is_done))
                    .ok_or(Stale))
            }
        }
    }

    /// Publishes a job to where it goes. Returns it where it is to be tried again here.
    async fn carry_out(
        &self,
        lease: Lease<Place>,
        answer: Answer,
    ) -> Result<Option<Envelope>, QueueError> {
        let (shared, group, options) = (&*self.shared, self.group(), &self.shared.terms.options);
        let number = number(&lease.message, &lease.envelope);
        let next = lease
            .envelope
            .answered(answer, options, now_ms(), fastrand::f64());
        match next {
            Next::Finish => Ok(None),
            // Its key's later jobs wait for it.
            Next::Again(envelope) if envelope.key.is_some() => Ok(Some(envelope)),
            Next::Bury(mut envelope)
                if envelope.key.is_some() && options.poison == Poison::Block =>
            {
                envelope.delay = options.backoff_max;
                Ok(Some(envelope))
            }
            Next::Again(mut envelope) => {
                let due = match envelope.delay.is_zero() {
                    true => 0,
                    false => envelope.due_ms(),
                };
                envelope.delay = Duration::ZERO;
                envelope.number = Some(number);
                shared.send_again(group, &envelope, due).await?;
                Ok(None)
            }
            Next::Bury(envelope) => {
                let key = envelope.key.clone();
                dead::bury(shared, group, number, envelope).await?;
                let mut state = self.board.lock();
                state.forget_dead();
                if let Some(key) = key.filter(|_| shared.parks()) {
                    state.park(key);
                }
                Ok(None)
            }
        }
    }

    /// Returns when Kafka knows of a change, or never will.
    async fn wait_until_told(&self, change: Change, until: Instant) -> Result<Told, QueueError> {
        loop {
            let told = self.board.told.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            match self.board.lock().is_told(&change) {
                Told::NotYet => {}
                known => return Ok(known),
            }
            if timeout_at(until, told).await.is_err() {
                let reason = "Kafka did not confirm what was done";
                return Err(unavailable(reason, Work::OutcomeUnknown));
            }
        }
    }
}

/// What became of an answer here.
enum Answered {
    /// It is tried again here.
    Kept,
    /// It is finished, and done if so; Kafka is to know.
    Finished(Change, bool),
}

impl EngineWorker for KafkaWorker {
    fn lease_time(&self) -> Duration {
        self.shared.terms.options.lease
    }

    fn lease(&self, credit: Credit, until: Instant) -> EngineFuture<'_, Vec<LeasedJob>> {
        Box::pin(async move {
            loop {
                let changed = self.board.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                self.shared.terms.check_open()?;
                let look_again = until.min(Instant::now() + LOOK_AGAIN);
                if !self.has_room_for_dead().await? {
                    sleep_until(look_again).await;
                    if Instant::now() >= until {
                        return Ok(Vec::new());
                    }
                    continue;
                }
                let leased = self.take(credit);
                if !leased.is_empty() || Instant::now() >= until {
                    return Ok(leased);
                }
                let (error, has_waiting) = {
                    let mut state = self.board.lock();
                    (state.take_error(), state.held().has_waiting())
                };
                if let Some(error) = error {
                    return Err(unavailable(error, Work::NotDone));
                }
                if has_waiting {
                    // What is here does not fit; the caller may soon have more room.
                    sleep_until(look_again).await;
                    return Ok(Vec::new());
                }
                // Parked keys are looked for again after a while.
                let wait = match self.shared.parks() {
                    true => look_again,
                    false => until,
                };
                let _ = timeout_at(wait, changed).await;
            }
        })
    }

    fn answer(
        &self,
        answers: Vec<(JobNumber, Token, Answer)>,
    ) -> EngineFuture<'_, Vec<Result<(), Stale>>> {
        Box::pin(async move {
            let answered: Vec<_> = {
                let mut state = self.board.lock();
                answers
                    .into_iter()
                    .map(|(number, token, answer)| (state.held().remove(number, token), answer))
                    .collect()
            };
            let answered = answered.into_iter().map(|(lease, answer)| async move {
                match lease {
                    Some(lease) => self.answer_one(lease, answer).await,
                    None => Ok(Err(Stale)),
                }
            });
            let answered = join_all(answered).await;
            self.board.changed.notify_waiters();
            self.board.work.notify_one();
            self.count();
            let until = self.shared.terms.answered_by();
            let mut results = Vec::with_capacity(answered.len());
            for answered in answered {
                results.push(match answered? {
                    Err(stale) => Err(stale),
                    Ok(Answered::Kept) => Ok(()),
                    Ok(Answered::Finished(change, is_done)) => {
                        match self.wait_until_told(change, until).await? {
                            Told::Yes => {
                                let done = &self.group().done;
                                done.fetch_add(u64::from(is_done), Ordering::Relaxed);
                                Ok(())
                            }
                            Told::NotYet | Told::Never => Err(Stale),
                        }
                    }
                });
            }
            Ok(results)
        })
    }

    fn renew(&self, leases: Vec<(JobNumber, Token)>) -> EngineFuture<'_, Vec<Result<(), Stale>>> {
        let mut state = self.board.lock();
        let mut renew = |(number, token)| {
            let place = state
                .held()
                .get_mut(number, token)
                .map(|lease| lease.message);
            place
                .filter(|place| state.is_current(place))
                .map(drop)
                .ok_or(Stale)
        };
        let renewed = leases.into_iter().map(&mut renew).collect();
        drop(state);
        Box::pin(async move { Ok(renewed) })
    }

    fn leave(&self) -> EngineFuture<'_, ()> {
        let leave = self
            .leave
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        Box::pin(async move {
            let Some(leave) = leave else {
                return Ok(());
            };
            let (told, left) = oneshot::channel();
            if leave.send(told).is_ok() {
                // What was not begun is not told to be done: it goes to whoever has its partition next.
                let _ = timeout_at(self.shared.terms.answered_by(), left).await;
            }
            self.board.lock().lose_all();
            self.count();
            Ok(())
        })
    }
}

impl Drop for KafkaWorker {
    fn drop(&mut self) {
        self.board.lock().lose_all();
        self.count();
    }
}
