//! All services in this process, and workers that come and go.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bowline::Queue;
use bowline_examples::search::{Incoming, IndexClient};
use clap::Parser;
use tokio::time::sleep;

use crate::bar::Bar;
use crate::caller::{Latencies, log_in, upload};
use crate::{AnyError, Arguments, all_services, worker};

const DOCUMENTS: usize = 80;
const LONG: Duration = Duration::from_secs(60);

/// Looks at a bar again and again.
#[derive(Default)]
struct Watch {
    moved: AtomicU64,
    went_back: AtomicBool,
}

async fn watch(bar: Bar, watch: Arc<Watch>) {
    let mut before = 0;
    loop {
        let shown = bar.shown();
        watch
            .moved
            .fetch_add((shown > before).into(), Ordering::SeqCst);
        watch.went_back.fetch_or(shown < before, Ordering::SeqCst);
        before = shown;
        sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_are_added_and_killed_while_the_bar_moves_and_it_never_goes_back()
-> Result<(), AnyError> {
    let (folder, data) = (tempfile::tempdir()?, tempfile::tempdir()?);
    // Hidden folders, as a temporary one is, are left out.
    let texts = folder.path().join("texts");
    std::fs::create_dir(&texts)?;
    for number in 0..DOCUMENTS {
        let text = format!("a document with the number {number}");
        std::fs::write(texts.join(format!("{number}.txt")), text)?;
    }
    let mut arguments = Arguments::parse_from(["search".as_ref(), texts.as_os_str()]);
    arguments.data = Some(data.path().join("index.redb"));
    arguments.pause = 20;
    let services = all_services(&mut arguments).await?;
    let session = log_in(&arguments).await?;
    let queue = Queue::<Incoming>::connect(&arguments.index).await?;
    let bar = Bar::new()?;
    let watched = Arc::new(Watch::default());
    let watching = tokio::spawn(watch(bar.clone(), Arc::clone(&watched)));

    let mut latencies = Latencies::new()?;
    let uploading = upload(&arguments, &session, Duration::ZERO, &bar, &mut latencies);
    let mut killed = 0;
    let coming_and_going = async {
        // All of them are pushed while nobody works.
        let began = Instant::now();
        while queue.counters().await?.ready < DOCUMENTS {
            assert!(began.elapsed() < LONG, "pushing waits for workers");
            sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(bar.shown(), 0);
        let mut workers = std::collections::VecDeque::new();
        loop {
            // Two at a time; the one that has worked longest is killed with what it has in hand.
            workers.push_back(worker::start(&arguments).await?);
            sleep(Duration::from_millis(60)).await;
            if workers.len() > 1 {
                drop(workers.pop_front());
                killed += 1;
            }
        }
    };
    let pushed = tokio::select! {
        uploaded = uploading => uploaded?,
        ended = coming_and_going => return ended,
        () = sleep(LONG) => return Err("the documents were not taken in".into()),
    };
    assert_eq!((pushed, bar.shown()), (DOCUMENTS as u64, DOCUMENTS as u64));
    assert!(!watching.is_finished());
    watching.abort();
    let moved = watched.moved.load(Ordering::SeqCst);
    assert!(
        !watched.went_back.load(Ordering::SeqCst),
        "the bar went back"
    );
    // Otherwise it shows nothing.
    assert!(
        moved > 2 && killed > 2,
        "moved {moved} times, killed {killed}"
    );

    let index = IndexClient::connect(&arguments.index).await?;
    let counts = index.counts(|_| {}).await?.plain()?;
    let (documents, taken_in) = (counts.documents, counts.taken_in);
    assert_eq!((documents, taken_in), (DOCUMENTS as u64, DOCUMENTS as u64));
    for service in services {
        service.shutdown().await;
    }
    Ok(())
}
