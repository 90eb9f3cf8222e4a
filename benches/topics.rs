//! Publishing to one subscriber and to eight, one event at a time, and from several threads, beside raw
//! PUB and SUB of the same transport and raw TCP: how long until all that was published is delivered,
//! per event and subscriber.

mod contenders;

use std::time::{Duration, Instant};

use contenders::topics::{Pace, Raw, Tcp, Typed};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tokio::runtime::{Builder, Runtime};

/// Publishers at once, each with a thread.
const PUBLISHERS: usize = 2;

fn runtime(publishers: usize) -> Runtime {
    let mut builder = match publishers {
        1 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    builder.worker_threads(publishers);
    builder.enable_all().build().unwrap()
}

fn topics(criterion: &mut Criterion) {
    for subscribers in [1, 8] {
        let kind = format!("publish to {subscribers}");
        for bytes in [64, 1024] {
            measure(criterion, &kind, subscribers, bytes, Pace::default());
        }
    }
    measure(criterion, "publish one at a time", 1, 64, Pace::ALONE);
    let pace = Pace {
        publishers: PUBLISHERS as u64,
        ..Pace::default()
    };
    measure(criterion, "publish from two threads", 1, 64, pace);
}

fn measure(criterion: &mut Criterion, kind: &str, subscribers: usize, bytes: usize, pace: Pace) {
    let mut group = criterion.benchmark_group(kind);
    group.throughput(Throughput::Elements(subscribers as u64));
    macro_rules! contender {
        ($name:literal, $contender:expr) => {
            let runtime = runtime(pace.publishers as usize);
            let mut contender = runtime.block_on($contender).at(pace);
            group.bench_function(BenchmarkId::new($name, bytes), |bencher| {
                bencher.iter_custom(|n| {
                    let start = Instant::now();
                    runtime.block_on(contender.deliver(n));
                    start.elapsed()
                });
            });
        };
    }
    contender!("bowline", Typed::new(subscribers, bytes));
    contender!("raw omq", Raw::new(subscribers, bytes));
    contender!("raw omq, one frame", async {
        Raw::new(subscribers, bytes).await.in_one_frame()
    });
    contender!("raw tcp", Tcp::new(subscribers, bytes));
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(1));
    targets = topics
}
criterion_main!(benches);
