//! How a contender is loaded, and what is measured.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::runtime::Builder;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::sleep_until;

use crate::contenders::{AnyError, Caller, Kind};

const WARM_UP: Duration = Duration::from_millis(200);
const MEASURED: Duration = Duration::from_millis(600);
const OFFERED: Duration = Duration::from_secs(2);

/// Where the server runs: in the client's thread, or in one of its own.
#[derive(Clone, Copy)]
pub enum Cores {
    One,
    Two,
}

#[derive(Clone, Copy)]
pub enum Load {
    /// One call after the other.
    RoundTrip,
    /// As many at once.
    InFlight(usize),
}

/// Runs `work` against a fresh server.
fn against<R>(
    kind: Kind,
    cores: Cores,
    work: impl AsyncFnOnce(Rc<dyn Caller>) -> Result<R, AnyError>,
) -> Result<R, AnyError> {
    let stopped = std::sync::Arc::new(tokio::sync::Notify::new());
    let mut thread = None;
    let client = Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    let result = local.block_on(&client, async {
        let address: SocketAddr = match cores {
            Cores::One => {
                let (tell, told) = tokio::sync::oneshot::channel();
                tokio::task::spawn_local(kind.serve(move |address| {
                    let _ = tell.send(address);
                }));
                told.await?
            }
            Cores::Two => {
                let (tell, told) = std::sync::mpsc::channel();
                let stop = std::sync::Arc::clone(&stopped);
                thread = Some(std::thread::spawn(move || {
                    let server = Builder::new_current_thread().enable_all().build();
                    let Ok(server) = server else { return };
                    LocalSet::new().block_on(&server, async {
                        tokio::select! {
                            _ = kind.serve(move |address| { let _ = tell.send(address); }) => {}
                            () = stop.notified() => {}
                        }
                    });
                }));
                told.recv()?
            }
        };
        let caller = kind.connect(address).await?;
        work(caller).await
    });
    stopped.notify_one();
    drop(local);
    client.shutdown_timeout(Duration::from_secs(1));
    if let Some(thread) = thread {
        let _ = thread.join();
    }
    result
}

/// How long a call takes from the caller's view when the next follows at once; with several in
/// flight, the time of all divided by their number.
///
/// Where client and server share a thread, the time is the processor's: on an idle machine that is
/// the same, since one of them always has work, and on a busy one the time of others is not in it.
pub fn seconds_per_call(kind: Kind, cores: Cores, load: Load) -> Result<f64, AnyError> {
    let at_once = match load {
        Load::RoundTrip => 1,
        Load::InFlight(n) => n,
    };
    against(kind, cores, async |caller| {
        call_for(&caller, at_once, WARM_UP).await?;
        let (start, start_cpu) = (Instant::now(), cpu_time()?);
        let calls = call_for(&caller, at_once, MEASURED).await?;
        let time = match cores {
            Cores::One => cpu_time()? - start_cpu,
            Cores::Two => start.elapsed(),
        };
        Ok(time.as_secs_f64() / calls as f64)
    })
}

/// So many calls of one contender, and nothing measured.
pub fn alone(kind: Kind, cores: Cores, at_once: usize, calls: usize) -> Result<(), AnyError> {
    against(kind, cores, async |caller| {
        let mut tasks = JoinSet::new();
        for _ in 0..at_once {
            let caller = Rc::clone(&caller);
            tasks.spawn_local(async move {
                for _ in 0..calls / at_once {
                    caller.call().await?;
                }
                Ok::<(), AnyError>(())
            });
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        Ok(())
    })
}

/// What this thread has used of a processor, as Linux tells it.
fn cpu_time() -> Result<Duration, AnyError> {
    let statistics = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds = statistics.split(' ').next().unwrap_or_default().parse()?;
    Ok(Duration::from_nanos(nanoseconds))
}

async fn call_for(
    caller: &Rc<dyn Caller>,
    at_once: usize,
    time: Duration,
) -> Result<u64, AnyError> {
    let end = Instant::now() + time;
    let mut tasks = JoinSet::new();
    for _ in 0..at_once {
        let caller = Rc::clone(caller);
        tasks.spawn_local(async move {
            let mut calls = 0;
            while Instant::now() < end {
                caller.call().await?;
                calls += 1;
            }
            Ok::<u64, AnyError>(calls)
        });
    }
    let mut calls = 0;
    while let Some(done) = tasks.join_next().await {
        calls += done??;
    }
    Ok(calls)
}

/// Latencies under a constant offered rate. Each is counted from when its call *should* have been
/// made: a stall that delays later calls shows in all of them, and nothing is left out.
pub fn latencies(kind: Kind, calls_per_second: u32) -> Result<Histogram<u64>, AnyError> {
    let interval = Duration::from_secs(1) / calls_per_second;
    let calls = (OFFERED.as_secs_f64() * f64::from(calls_per_second)) as u32;
    against(kind, Cores::Two, async |caller| {
        call_for(&caller, 1, WARM_UP).await?;
        let mut tasks = JoinSet::new();
        let start = tokio::time::Instant::now() + Duration::from_millis(10);
        for i in 0..calls {
            let due = start + interval * i;
            if due > tokio::time::Instant::now() {
                sleep_until(due).await;
            }
            let caller = Rc::clone(&caller);
            tasks.spawn_local(async move {
                caller.call().await?;
                Ok::<Duration, AnyError>(due.elapsed())
            });
        }
        let mut histogram = Histogram::new(3)?;
        while let Some(done) = tasks.join_next().await {
            histogram.record((done??.as_nanos() as u64).max(1))?;
        }
        Ok(histogram)
    })
}
