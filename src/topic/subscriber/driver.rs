//! The driver: the one task of a subscriber. It takes what comes off the socket, as far as there is room for it, and asks
//! for confirmations again after a new connection, or when they do not come.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};

use super::SubscriberEnd;
use super::shared::Shared;
use crate::transport::{Malformed, SubscribeReceiver, TopicFrames};

/// How often is looked whether a question has to be asked again.
const LOOK_AT_QUESTIONS: Duration = Duration::from_secs(1);
/// For a wait that is longer than the clock can say.
const LONG: Duration = Duration::from_secs(365 * 24 * 3600);

/// Ends the subscriber when the driver ends, also where its runtime drops it before its first turn.
#[derive(Debug)]
pub(super) struct Ending(pub Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.end(SubscriberEnd::RuntimeShutDown);
    }
}

pub(super) async fn drive(ending: Ending, mut receiver: SubscribeReceiver, slow_after: Duration) {
    let shared = &ending.0;
    let mut batch = Vec::new();
    let mut room = Room {
        shared,
        slow_after,
        drops: false,
    };
    let mut seen = shared.sender.connection_generation();
    let mut was_connected = shared.sender.is_connected();
    let mut look = interval_at(Instant::now() + LOOK_AT_QUESTIONS, LOOK_AT_QUESTIONS);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_asking = false;
    // In any order: while much comes, the others have their turns.
    let end = loop {
        tokio::select! {
            received = receiver.receive(&mut batch) => {
                if received.is_err() {
                    break SubscriberEnd::Closed;
                }
                is_asking = room.accept(receiver.connection(), &mut batch).await;
                if shared.lock().buffer.is_overflowed() {
                    shared.sender.close().await;
                    break SubscriberEnd::TooSlow;
                }
            }
            changed = shared.sender.connection_changed(seen) => {
                let Ok(generation) = changed else { break SubscriberEnd::Closed };
                let again = was_connected || generation > seen + 1;
                seen = generation;
                if shared.sender.is_connected() {
                    if again && shared.connected_again().is_err() {
                        break SubscriberEnd::Closed;
                    }
                    was_connected = true;
                    is_asking = true;
                }
            }
            () = shared.asked.notified() => is_asking = true,
            _ = look.tick(), if is_asking => match shared.ask_again() {
                Ok(asking) => is_asking = asking,
                Err(_) => break SubscriberEnd::Closed,
            },
        }
    };
    shared.end(end);
}

/// Room for what arrives.
struct Room<'a> {
    shared: &'a Shared,
    slow_after: Duration,
    /// It was waited for room for long enough: until there is some again, events are dropped.
    drops: bool,
}

impl Room<'_> {
    /// Takes in what has come over a connection. While some of it has no room nothing is read, so that the network holds
    /// back what comes next, and then the publisher. Returns whether a question is unanswered.
    async fn accept(
        &mut self,
        connection: u64,
        batch: &mut Vec<Result<TopicFrames, Malformed>>,
    ) -> bool {
        let (is_holding, is_asking) = self.shared.accept(connection, batch, &mut self.drops);
        if is_holding {
            self.shared.sender.hold(true);
            self.wait().await;
            self.shared.sender.hold(false);
        }
        is_asking
    }

    async fn wait(&mut self) {
        let now = Instant::now();
        let slow_at = now.checked_add(self.slow_after).unwrap_or(now + LONG);
        self.drops |= self.slow_after.is_zero();
        // An answer is not dropped: it waits until it has room.
        while self.shared.put_held(self.drops) {
            tokio::select! {
                () = self.shared.room.notified() => {}
                () = sleep_until(slow_at), if !self.drops => self.drops = true,
            }
        }
    }
}
