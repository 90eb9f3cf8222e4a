//! What an engine says that it cannot do.

use std::sync::Arc;

use bowline::RequestKey;
use bowline::queue::{Engine, Priority, Queue, QueueError};

use super::{LONG, MILLISECOND, Setup, note, notes, options, step, steps};
use crate::jobs::{Note, Step};

pub async fn what_an_engine_does_not_claim_it_refuses(setup: &impl Setup) {
    let (queue, can) = notes(setup, options()).await;
    let refused = |pushed| matches!(pushed, Err(QueueError::Unsupported(_)));
    let id = RequestKey::new("order-316").expect("a key");
    if !can.deduplicates {
        assert!(refused(queue.push(&note(1)).id(id.clone()).await));
    }
    if !can.delays {
        assert!(refused(queue.push(&note(1)).delay(LONG).await));
    }
    if !can.expires {
        assert!(refused(queue.push(&note(1)).expires_after(LONG).await));
    }
    if !can.priorities {
        let urgent = queue.push(&note(1)).priority(Priority::High);
        assert!(refused(urgent.await));
    }
    if !can.orders_keys {
        let (queue, _) = steps(setup, options()).await;
        assert!(refused(queue.push(&step("a", 1)).await));
    }
    if !can.finds {
        let found = queue.find(&id).await;
        assert!(matches!(found, Err(QueueError::Unsupported(_))));
    }
    if !can.dead_letters {
        let dead = queue.dead_letters();
        let listed = dead.list(None, 1).await;
        assert!(matches!(listed, Err(QueueError::Unsupported(_))));
        for changed in [dead.send_back(vec![]).await, dead.delete(vec![]).await] {
            assert!(matches!(changed, Err(QueueError::Unsupported(_))));
        }
    }
    assert_eq!(queue.counters().await.expect("counters").jobs, 0);
}

/// What an engine refuses of all that can be asked for, in its own words.
pub async fn refusals(engine: Arc<dyn Engine>) -> Vec<&'static str> {
    let notes = Queue::<Note>::shared(Arc::clone(&engine));
    let steps = Queue::<Step>::shared(engine);
    let id = RequestKey::new("order-317").expect("a key");
    let asked = [
        notes.push(&note(1)).await.err(),
        steps.push(&step("a", 1)).await.err(),
        notes.push(&note(1)).id(id.clone()).await.err(),
        notes.push(&note(1)).priority(Priority::High).await.err(),
        notes.push(&note(1)).delay(MILLISECOND).await.err(),
        notes.push(&note(1)).expires_after(LONG).await.err(),
        notes.find(&id).await.err(),
        notes.dead_letters().list(None, 1).await.err(),
    ];
    let refused = asked.into_iter().flatten().map(|error| match error {
        QueueError::Unsupported(what) => what,
        other => panic!("not refused, but {other:?}"),
    });
    refused.collect()
}
