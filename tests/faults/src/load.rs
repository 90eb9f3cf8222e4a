//! Callers who call at a rate, whether or not they are answered, as the world does.

use std::time::Duration;

use bowline::Status;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// One call that has ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// When it began, from the first on.
    pub begun: Duration,
    /// How long it took.
    pub took: Duration,
    /// How it ended.
    pub how: Result<(), Status>,
}

/// Makes `per_second` calls for so long, each in a task of its own, and returns how all of them ended.
///
/// # Panics
/// Where a call panics.
pub async fn open_loop<F>(
    per_second: u32,
    time: Duration,
    mut call: impl FnMut(u64) -> F,
) -> Vec<Ended>
where
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    let mut ticks = interval(Duration::from_secs(1) / per_second);
    // Late calls are made up for: the rate is what is asked for, also on a busy machine.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (mut calls, mut ended) = (JoinSet::new(), Vec::new());
    let first = Instant::now();
    for number in 0.. {
        ticks.tick().await;
        if first.elapsed() >= time {
            break;
        }
        let call = call(number);
        calls.spawn(async move {
            let begun = Instant::now();
            let how = call.await;
            Ended {
                begun: begun - first,
                took: begun.elapsed(),
                how,
            }
        });
        while let Some(done) = calls.try_join_next() {
            ended.push(done.expect("no panic"));
        }
    }
    while let Some(done) = calls.join_next().await {
        ended.push(done.expect("no panic"));
    }
    ended
}

/// How many of the calls that began in this part of the time were answered, from 0 to 1.
pub fn goodput(ended: &[Ended], from: Duration, to: Duration) -> f64 {
    let of = ended.iter().filter(|it| (from..to).contains(&it.begun));
    let (calls, good) = of.fold((0, 0), |(calls, good), it| {
        (calls + 1, good + u32::from(it.how.is_ok()))
    });
    f64::from(good) / f64::from(calls.max(1))
}

/// The latency that this share of them stayed under.
pub fn percentile(ended: impl Iterator<Item = Duration>, share: f64) -> Duration {
    let mut sorted: Vec<Duration> = ended.collect();
    sorted.sort_unstable();
    let last = sorted.len().saturating_sub(1);
    let index = ((sorted.len() as f64 * share) as usize).min(last);
    sorted.get(index).copied().unwrap_or_default()
}
