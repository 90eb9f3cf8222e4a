//! Handlers that wait for something to happen, as a long poll does, and hold nothing meanwhile.
//!
//! Says nothing of servers: a future tells whoever polls it that it is parked, through the thread that polls.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;

thread_local! {
    static PARKED: Cell<bool> = const { Cell::new(false) };
}

/// Waits for `future` within a handler, without a place among the calls that work.
///
/// A server counts the calls that are parked apart from those that work, each with a limit of its own
/// ([`ServerBuilder::parked_max`](crate::ServerBuilder::parked_max)): a hundred workers that wait for jobs keep no other
/// caller out. For that a handler that parks must hold only what it needs to wait: drop the request first. It must have
/// had no effect yet either: where too many are parked already, and when the server shuts down, the handler is dropped
/// there, and its caller is told that nothing was done.
///
/// Outside a handler it is just the future.
///
/// ```
/// # async fn handler(request: bowline::Request<String>, news: tokio::sync::watch::Receiver<u64>) -> u64 {
/// # let mut news = news;
/// drop(request);
/// let _ = bowline::call::park(news.changed()).await;
/// # let seen = *news.borrow();
/// # seen
/// # }
/// ```
pub async fn park<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|cx| {
        let polled = future.as_mut().poll(cx);
        if polled.is_pending() {
            PARKED.set(true);
        }
        polled
    })
    .await
}

/// Polls a handler; also says whether it is parked, where it is not done.
pub(crate) fn watched<T>(poll: impl FnOnce() -> T) -> (T, bool) {
    PARKED.set(false);
    let polled = poll();
    (polled, PARKED.get())
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn is_parked(future: impl Future<Output = ()>) -> (bool, bool) {
        let mut future = pin!(future);
        let mut cx = Context::from_waker(Waker::noop());
        let (polled, is_parked) = watched(|| future.as_mut().poll(&mut cx));
        (polled.is_ready(), is_parked)
    }

    #[test]
    fn a_handler_is_parked_while_what_it_parks_for_is_pending() {
        assert_eq!(is_parked(park(pending())), (false, true));
        assert_eq!(is_parked(pending()), (false, false));
        assert_eq!(is_parked(park(ready(()))), (true, false));
        let then_works = async {
            park(ready(())).await;
            pending().await
        };
        assert_eq!(is_parked(then_works), (false, false));
        let works_first = async {
            let mut has_waited = false;
            poll_fn(|_| match std::mem::replace(&mut has_waited, true) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            })
            .await;
            park(pending::<()>()).await
        };
        let mut works_first = pin!(works_first);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(!watched(|| works_first.as_mut().poll(&mut cx)).1);
        assert!(watched(|| works_first.as_mut().poll(&mut cx)).1);
    }
}
