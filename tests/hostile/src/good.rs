//! The good client: calls at a steady rate, whether or not the last one has been answered, and keeps times.

use std::time::Duration;

use bytes::Bytes;
use hdrhistogram::Histogram;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::target::TargetClient;

/// What it has seen.
#[derive(Debug)]
pub struct Seen {
    /// Calls that it made.
    pub calls: u64,
    /// Those that were answered rightly, within their deadline.
    pub answered: u64,
    /// Microseconds from when each was due.
    pub latencies: Histogram<u64>,
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

/// Calls `echo` so many times a second, for so long. Each call has the deadline of the schema, a second.
///
/// # Panics
/// Where a reply is another call's.
pub async fn call(client: &TargetClient, a_second: u32, time: Duration) -> Seen {
    let mut seen = Seen {
        calls: 0,
        answered: 0,
        latencies: Histogram::new(3).expect("three digits are possible"),
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
            let data = Bytes::copy_from_slice(&number.to_be_bytes());
            let reply = client.echo(|mut params| params.set_data(&data)).await;
            let took = at.elapsed();
            reply.and_then(|reply| {
                assert_eq!(reply.plain()?.data, data, "the reply of another call");
                Ok(took)
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
            Err(status) if self.failures.len() < 8 => self.failures.push(status.to_string()),
            Err(_) => {}
        }
    }
}
