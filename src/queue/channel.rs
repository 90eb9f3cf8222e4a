//! A bounded queue between tasks of one process: values, no leases and no bytes.
//!
//! It promises less than [`Queue`](super::Queue) and costs less: what is in it is lost with whoever has it. tokio's bounded channel carries the values; this bounds how long a push waits, shares the
//! receiving end, and counts.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;

/// A bounded queue for passing work between tasks: the end that pushes, and the end that takes.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let (pusher, taker) = bowline::queue::channel::<u64>(1000);
/// tokio::spawn(async move {
///     pusher.push(314).await.expect("somebody takes");
/// });
/// assert_eq!(taker.take().await, Some(314));
/// assert_eq!(taker.take().await, None, "nobody pushes any more");
/// # }
/// ```
pub fn channel<T>(jobs_max: usize) -> (Pusher<T>, Taker<T>) {
    let (sender, receiver) = mpsc::channel(jobs_max.max(1));
    let taker = Taker {
        receiver: Arc::new(Mutex::new(receiver)),
    };
    (Pusher { sender }, taker)
}

/// The end that pushes. Clones push into the same queue.
#[derive(Debug)]
pub struct Pusher<T> {
    sender: mpsc::Sender<T>,
}

/// The end that takes. Each value goes to one clone.
#[derive(Debug)]
pub struct Taker<T> {
    receiver: Arc<Mutex<mpsc::Receiver<T>>>,
}

/// A value that was not pushed, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotPushed<T> {
    /// No room until the time was over.
    #[error("the queue is full")]
    Full(T),
    /// Nobody takes any more.
    #[error("nobody takes from the queue any more")]
    Closed(T),
}

impl<T> Pusher<T> {
    /// Pushes; waits for room. Cancel safe: a push that is dropped has not pushed.
    ///
    /// # Errors
    /// [`NotPushed::Closed`].
    pub async fn push(&self, value: T) -> Result<(), NotPushed<T>> {
        let pushed = self.sender.send(value).await;
        pushed.map_err(|mpsc::error::SendError(value)| NotPushed::Closed(value))
    }

    /// The same, and waits no longer than this.
    ///
    /// # Errors
    /// Both.
    pub async fn push_within(&self, value: T, wait_max: Duration) -> Result<(), NotPushed<T>> {
        match timeout(wait_max, self.sender.reserve()).await {
            Ok(Ok(permit)) => {
                permit.send(value);
                Ok(())
            }
            Ok(Err(_)) => Err(NotPushed::Closed(value)),
            Err(_) => Err(NotPushed::Full(value)),
        }
    }

    /// Values that wait to be taken.
    pub fn len(&self) -> usize {
        self.sender.max_capacity() - self.sender.capacity()
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> Taker<T> {
    /// The next value; `None` when all have been taken and nobody pushes any more. Cancel safe.
    pub async fn take(&self) -> Option<T> {
        self.receiver.lock().await.recv().await
    }

    /// Up to `max` values, at least one; none when nobody pushes any more. Cancel safe.
    pub async fn take_many(&self, into: &mut Vec<T>, max: usize) -> usize {
        self.receiver.lock().await.recv_many(into, max).await
    }
}

impl<T> Clone for Pusher<T> {
    fn clone(&self) -> Self {
        Self {
            sender: self.sender.clone(),
        }
    }
}

impl<T> Clone for Taker<T> {
    fn clone(&self) -> Self {
        Self {
            receiver: Arc::clone(&self.receiver),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_full_queue_makes_a_push_wait_and_then_says_so() {
        let (pusher, taker) = channel(2);
        pusher.push(1).await.expect("there is room");
        pusher.push(2).await.expect("there is room");
        assert_eq!(pusher.len(), 2);
        let wait = Duration::from_secs(1);
        assert_eq!(pusher.push_within(3, wait).await, Err(NotPushed::Full(3)));
        assert_eq!(taker.take().await, Some(1));
        pusher.push_within(4, wait).await.expect("there is room");
        let mut rest = Vec::new();
        assert_eq!(taker.take_many(&mut rest, 10).await, 2);
        assert_eq!(rest, [2, 4]);
        drop(taker);
        assert_eq!(pusher.push(5).await, Err(NotPushed::Closed(5)));
    }

    #[tokio::test]
    async fn each_value_goes_to_one_taker() {
        let (pusher, taker) = channel(4);
        let takers: Vec<_> = (0..3)
            .map(|_| {
                let taker = taker.clone();
                tokio::spawn(async move {
                    let mut sum = 0;
                    while let Some(value) = taker.take().await {
                        sum += value;
                    }
                    sum
                })
            })
            .collect();
        for value in 1..=100u64 {
            pusher.push(value).await.expect("they take");
        }
        drop(pusher);
        let mut sum = 0;
        for taker in takers {
            sum += taker.await.expect("no panic");
        }
        assert_eq!(sum, 5050);
    }
}
