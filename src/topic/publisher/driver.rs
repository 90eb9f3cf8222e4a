//! The driver: the one task of a publisher. It sends the events that wait for
//! company, hears of subscriptions and confirms them, and announces tails.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::shared::Shared;
use crate::topic::names::is_confirmation;
use crate::transport::{self, SubscriptionChange, SubscriptionWatch};
use crate::wire::EventKind;

pub(super) async fn drive(
    shared: Arc<Shared>,
    mut watch: SubscriptionWatch,
    announce_after: Duration,
) {
    let mut tick = interval(announce_after);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Events wait until the socket has room again.
    let mut is_blocked = false;
    loop {
        tokio::select! {
            () = shared.woken.notified() => is_blocked = !shared.turn(),
            () = shared.sender.writable(), if is_blocked => is_blocked = !shared.turn(),
            change = watch.next() => match change {
                Ok(change) => apply(&shared, change).await,
                Err(transport::Closed) => return,
            },
            _ = tick.tick() => {
                let due = shared.lock().outgoing.due(Instant::now());
                for (topic, last) in due {
                    // The lock again, so that no event of the topic passes its own tail.
                    let mut state = shared.lock();
                    let next = state.outgoing.next(&topic);
                    if next.is_ok_and(|next| next.number == last + 1) {
                        shared.send(&mut state, topic, EventKind::Tail, last, Bytes::new());
                    }
                }
            }
        }
    }
}

async fn apply(shared: &Shared, change: SubscriptionChange) {
    match change {
        SubscriptionChange::Reset(peers) => {
            let asked: Vec<(u64, Bytes)> = peers
                .iter()
                .flat_map(|(peer, prefixes)| prefixes.iter().map(|of| (*peer, of.clone())))
                .collect();
            let subscriptions = peers
                .into_iter()
                .map(|(peer, mut prefixes)| {
                    prefixes.retain(|prefix| is_confirmation(prefix).is_none());
                    (peer, prefixes)
                })
                .filter(|(_, prefixes)| !prefixes.is_empty())
                .collect();
            shared.lock().subscriptions = subscriptions;
            // Confirmed once more where it was before: harmless, and nobody waits in vain.
            for (peer, topic) in asked {
                if let Some((_, prefix)) = is_confirmation(&topic) {
                    shared.confirm(peer, &topic, prefix).await;
                }
            }
        }
        SubscriptionChange::Added { peer, prefix } => match is_confirmation(&prefix) {
            Some((_, of)) => shared.confirm(peer, &prefix, of).await,
            None => {
                let mut state = shared.lock();
                state.subscriptions.entry(peer).or_default().push(prefix);
            }
        },
        SubscriptionChange::Removed { peer, prefix } => {
            let mut state = shared.lock();
            if let Some(prefixes) = state.subscriptions.get_mut(&peer) {
                if let Some(index) = prefixes.iter().position(|p| *p == prefix) {
                    prefixes.swap_remove(index);
                }
                if prefixes.is_empty() {
                    state.subscriptions.remove(&peer);
                }
            }
        }
        SubscriptionChange::Gone { peer } => {
            shared.lock().subscriptions.remove(&peer);
        }
    }
}
