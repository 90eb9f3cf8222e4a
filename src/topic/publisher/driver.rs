//! The driver: the one task of a publisher. It sends the events that wait for company, hears of subscriptions, answers
//! the questions about them, and announces tails; each in small steps, so that none holds up the others.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::PublishEnd;
use super::shared::{Answering, Shared};
use crate::topic::names::is_confirmation;
use crate::transport::{self, SubscriptionChange, SubscriptionWatch};

/// How long to wait where none of those who ask has room for its answer.
const ROOM_WAIT: Duration = Duration::from_millis(20);
/// Between steps of announcements: those of many topics are spread, so that subscribers can take them.
const ANNOUNCE_STEP: Duration = Duration::from_millis(2);

/// Ends the publisher when the driver ends, also where its runtime drops it before its first turn.
#[derive(Debug)]
pub(super) struct Ending(pub Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.end(PublishEnd::RuntimeShutDown);
    }
}

pub(super) async fn drive(ending: Ending, mut watch: SubscriptionWatch, announce_after: Duration) {
    let shared = &ending.0;
    let mut tick = interval(announce_after);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Events wait until the socket has room again.
    let mut is_blocked = false;
    let mut answering = Answering::Done;
    let mut is_announcing = false;
    let mut answer_at = Instant::now();
    let mut announce_at = answer_at;
    loop {
        tokio::select! {
            () = shared.woken.notified() => {
                while shared.is_early() {
                    yield_now().await;
                }
                is_blocked = !shared.turn();
            }
            () = shared.sender.writable(), if is_blocked => is_blocked = !shared.turn(),
            change = watch.next() => match change {
                Ok(change) => {
                    apply(shared, change);
                    answering = Answering::Goes;
                }
                Err(transport::Closed) => return,
            },
            () = yield_now(), if answering == Answering::Goes => answering = shared.answer(),
            () = sleep_until(answer_at), if answering == Answering::Waits => {
                answering = shared.answer();
                answer_at = Instant::now() + ROOM_WAIT;
            }
            _ = tick.tick() => {
                is_announcing = true;
                shared.look_at_clock();
            }
            () = sleep_until(announce_at), if is_announcing => {
                let now = Instant::now();
                is_announcing = !shared.announce(now);
                announce_at = now + ANNOUNCE_STEP;
            }
        }
    }
}

fn apply(shared: &Shared, change: SubscriptionChange) {
    let mut state = shared.lock();
    match change {
        SubscriptionChange::Reset(peers) => {
            state.forget_subscriptions();
            for (peer, prefixes) in peers {
                for prefix in prefixes {
                    match is_confirmation(&prefix) {
                        // Confirmed once more where it was before: harmless, and none waits in vain.
                        Some(_) => state.confirmations.ask(peer, prefix),
                        None => state.subscribed(peer, prefix),
                    }
                }
            }
        }
        SubscriptionChange::Added { peer, prefix } => match is_confirmation(&prefix) {
            Some(_) => state.confirmations.ask(peer, prefix),
            None => state.subscribed(peer, prefix),
        },
        SubscriptionChange::Removed { peer, prefix } => match is_confirmation(&prefix) {
            Some(_) => state.confirmations.cancel(peer, &prefix),
            None => state.unsubscribed(peer, &prefix),
        },
        SubscriptionChange::Gone { peer } => state.gone(peer),
    }
}
