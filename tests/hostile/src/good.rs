//! Good clients and subscribers: what they see while others are attacked.
//!
//! The client calls at a steady rate, whether or not the last one has been answered.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bowline::Subscriber;
use bowline::topic::Event;
use bytes::Bytes;
use hdrhistogram::Histogram;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::target::{TargetClient, Tick};

/// What it has seen.
#[derive(Debug)]
pub struct Seen {
    /// Calls that it made.
    pub calls: u64,
    /// Those that were answered rightly, within their deadline.
    pub answered: u64,
    /// Microseconds from when each was due.
    pub latencies: Histogram<u64>,
    /// Calls that were refused because there was no room for them.
    pub refused: u64,
    /// What some of the others were told.
    pub failures: Vec<String>,
}

impl Seen {
    /// The part of calls that were answered.
    pub fn share(&self) -> f64 {
        self.answered as f64 / self.calls.max(1) as f64
    }

    /// 99 of a hundred answered calls took no longer.
    pub fn p99(&self) -> Duration {
        Duration::from_micros(self.latencies.value_at_quantile(0.99))
    }
}

/// One call in so many has an outcome that is kept.
const REMEMBERED_EACH: u64 = 20;

/// Calls `echo`, and now and then `remember`, so many times a second, for so long. Each call has the deadline of the schema, a second.
///
/// # Panics
/// Where a reply is another call's.
pub async fn call(client: &TargetClient, a_second: u32, time: Duration) -> Seen {
    let mut seen = Seen {
        calls: 0,
        answered: 0,
        latencies: times(),
        refused: 0,
        failures: Vec::new(),
    };
    let mut due = interval(Duration::from_secs(1) / a_second);
    due.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let end = Instant::now() + time;
    let mut calls = JoinSet::new();
    loop {
        let at = due.tick().await;
        if at >= end {
            break;
        }
        seen.calls += 1;
        let (client, number) = (client.clone(), seen.calls);
        calls.spawn(async move {
            // One in ten is of a size that has to find room in the service's queues.
            let length = if number % 10 == 0 { 512 } else { 1 };
            let data = Bytes::from(number.to_be_bytes().repeat(length));
            let reply = match number % REMEMBERED_EACH {
                0 => {
                    let reply = client.remember(|mut params| params.set_data(&data)).await;
                    reply.and_then(|reply| Ok(reply.plain()?.data))
                }
                _ => {
                    let reply = client.echo(|mut params| params.set_data(&data)).await;
                    reply.and_then(|reply| Ok(reply.plain()?.data))
                }
            };
            let took = at.elapsed();
            reply.map(|reply| {
                assert_eq!(reply, data, "the reply of another call");
                took
            })
        });
        while let Some(ended) = calls.try_join_next() {
            seen.note(ended.expect("no wrong reply"));
        }
    }
    while let Some(ended) = calls.join_next().await {
        seen.note(ended.expect("no wrong reply"));
    }
    seen
}

impl Seen {
    fn note(&mut self, ended: Result<Duration, impl std::fmt::Display>) {
        match ended {
            Ok(took) => {
                self.answered += 1;
                self.latencies.saturating_record(took.as_micros() as u64);
            }
            Err(status) => {
                let status = status.to_string();
                self.refused += u64::from(status.contains("ResourceExhausted"));
                if self.failures.len() < 8 {
                    self.failures.push(status);
                }
            }
        }
    }
}

/// Times in microseconds, up to a minute.
fn times() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("possible bounds")
}

/// What a subscriber has seen of a number of events.
#[derive(Clone, Debug)]
pub struct Watched {
    /// Events that it got.
    pub delivered: u64,
    /// Events that it was told it had missed.
    pub missed: u64,
    /// Microseconds from the publisher to here.
    pub latencies: Histogram<u64>,
    /// The longest time without an event.
    pub longest_wait: Duration,
}

/// Watches until `events` ticks were delivered or missed, or until `end`.
///
/// # Panics
/// Where an event cannot be read.
pub async fn watch(subscriber: &mut Subscriber<Tick>, events: u64, end: Instant) -> Watched {
    let mut watched = Watched {
        delivered: 0,
        missed: 0,
        latencies: times(),
        longest_wait: Duration::ZERO,
    };
    let mut last = Instant::now();
    while watched.delivered + watched.missed < events {
        let next = tokio::time::timeout_at(end, subscriber.next()).await;
        let now = Instant::now();
        watched.longest_wait = watched.longest_wait.max(now - last);
        last = now;
        match next {
            Ok(Some(Event::Message(message))) => {
                let tick = message.plain().expect("a tick");
                let took = unix_nanoseconds().saturating_sub(tick.unix_nanoseconds);
                watched.latencies.saturating_record(took / 1000);
                watched.delivered += 1;
            }
            Ok(Some(Event::Missed { from, to, .. })) => watched.missed += to - from + 1,
            Ok(Some(Event::Restarted { .. })) => {}
            Ok(None) | Err(_) => break,
        }
        if now >= end {
            break;
        }
    }
    watched
}

/// A time that all processes of a machine agree about.
pub fn unix_nanoseconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as u64)
}
