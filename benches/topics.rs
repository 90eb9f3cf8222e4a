//! Publishing to one subscriber and to eight, beside raw PUB and SUB of the same transport and raw
//! TCP: how long until all that was published is delivered, per event and subscriber.

mod contenders;

use std::time::{Duration, Instant};

use contenders::topics::{Raw, Tcp, Typed};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tokio::runtime::{Builder, Runtime};

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn topics(criterion: &mut Criterion) {
    for subscribers in [1, 8] {
        for bytes in [64, 1024] {
            let mut group = criterion.benchmark_group(format!("publish to {subscribers}"));
            group.throughput(Throughput::Elements(subscribers as u64));
            macro_rules! contender {
                ($name:literal, $contender:ty) => {
                    let runtime = runtime();
                    let mut contender = runtime.block_on(<$contender>::new(subscribers, bytes));
                    group.bench_function(BenchmarkId::new($name, bytes), |bencher| {
                        bencher.iter_custom(|n| {
                            let start = Instant::now();
                            runtime.block_on(contender.deliver(n));
                            start.elapsed()
                        });
                    });
                };
            }
            contender!("bowline", Typed);
            contender!("raw omq", Raw);
            contender!("raw tcp", Tcp);
            group.finish();
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = topics
}
criterion_main!(benches);
