//! Jobs with a key.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bowline::queue::{Job, Poison, Queue, Refusal};
use tokio::time::sleep;

use super::{LONG, MILLISECOND, Setup, eventually, options, step, steps};
use crate::jobs::Step;

pub async fn jobs_of_a_key_are_done_one_at_a_time_and_in_order(setup: &impl Setup) {
    let (queue, can) = steps(setup, options()).await;
    if !can.orders_keys {
        return;
    }
    let works = ["a", "b", "c"];
    let all: Vec<Step> = (0..20)
        .flat_map(|number| works.map(|work| step(work, number)))
        .collect();
    queue.push_all(&all).await.expect("the queue answers");
    let seen = Arc::new(std::sync::Mutex::new(BTreeMap::<String, Vec<u64>>::new()));
    let running: Arc<[AtomicUsize; 3]> = Arc::default();
    let handler = {
        let (seen, running) = (Arc::clone(&seen), Arc::clone(&running));
        move |job: Arc<Job<Step>>| {
            let (seen, running) = (Arc::clone(&seen), Arc::clone(&running));
            async move {
                let step = job.plain()?;
                let of_key = &running[works.iter().position(|w| *w == step.work).unwrap_or(0)];
                assert_eq!(of_key.fetch_add(1, Ordering::SeqCst), 0, "one at a time");
                sleep(MILLISECOND).await;
                of_key.fetch_sub(1, Ordering::SeqCst);
                if step.number == 7 && job.earlier().used() == 0 {
                    return Err(Refusal::because("again, and still in order"));
                }
                let mut seen = seen.lock().expect("no test panics with it");
                seen.entry(step.work).or_default().push(step.number);
                Ok(())
            }
        }
    };
    let worker = queue.worker(8, handler).start().await.expect("the group");
    eventually(async || queue.counters().await.expect("counters").jobs == 0).await;
    worker.drain(LONG).await;
    let seen = seen.lock().expect("no test panics with it");
    for work in works {
        assert!(
            seen[work].iter().copied().eq(0..20),
            "{work}: {:?}",
            seen[work]
        );
    }
}

pub async fn each_producer_of_a_key_is_done_in_its_order(setup: &impl Setup) {
    const EACH: u64 = 30;
    let (queue, can) = steps(setup, options()).await;
    if !can.orders_keys {
        return;
    }
    // Two producers of the same key, at the same time.
    let pushing = [0, 1].map(|producer| {
        let queue = Queue::<Step>::shared(Arc::clone(queue.engine()));
        tokio::spawn(async move {
            for number in 0..EACH {
                let step = step("a", 2 * number + producer);
                queue.push(&step).await.expect("there is room");
            }
        })
    });
    let seen: Arc<std::sync::Mutex<Vec<u64>>> = Arc::default();
    let handler = {
        let seen = Arc::clone(&seen);
        move |job: Arc<Job<Step>>| {
            let seen = Arc::clone(&seen);
            async move {
                let number = job.plain()?.number;
                if number % 14 == 5 && job.earlier().used() == 0 {
                    return Err(Refusal::because("again, and still in order"));
                }
                seen.lock().expect("no test panics with it").push(number);
                Ok(())
            }
        }
    };
    let worker = queue.worker(8, handler).start().await.expect("the group");
    for pushing in pushing {
        pushing.await.expect("no panic");
    }
    eventually(async || queue.counters().await.expect("counters").jobs == 0).await;
    worker.drain(LONG).await;
    let seen = seen.lock().expect("no test panics with it");
    for producer in [0, 1] {
        let of_producer = seen.iter().filter(|number| *number % 2 == producer);
        let numbers = of_producer.map(|number| number / 2);
        assert!(numbers.eq(0..EACH), "{seen:?}");
    }
}

pub async fn a_poison_job_lets_its_key_go_on_or_parks_or_blocks_it(setup: &impl Setup) {
    for poison in [Poison::Skip, Poison::Park, Poison::Block] {
        let (queue, can) = steps(setup, options().with_poison(poison)).await;
        if !can.orders_keys {
            return;
        }
        let all = [step("a", 0), step("a", 1), step("b", 2)];
        queue.push_all(&all).await.expect("the queue answers");
        let done: Arc<std::sync::Mutex<Vec<u64>>> = Arc::default();
        let tried = Arc::new(AtomicUsize::new(0));
        let handler = {
            let (done, tried) = (Arc::clone(&done), Arc::clone(&tried));
            move |job: Arc<Job<Step>>| {
                let (done, tried) = (Arc::clone(&done), Arc::clone(&tried));
                async move {
                    let step = job.plain()?;
                    if step.number == 0 {
                        tried.fetch_add(1, Ordering::SeqCst);
                        return Err(Refusal::because("poison"));
                    }
                    done.lock()
                        .expect("no test panics with it")
                        .push(step.number);
                    Ok(())
                }
            }
        };
        let worker = queue.worker(4, handler).start().await.expect("the group");
        let done = || {
            let mut done = done.lock().expect("no test panics with it").clone();
            done.sort_unstable();
            done
        };
        let dead = async || queue.counters().await.expect("counters").dead;
        match poison {
            Poison::Skip => eventually(async || done() == [1, 2] && dead().await == 1).await,
            Poison::Park => {
                eventually(async || done() == [2] && dead().await == 1).await;
                sleep(100 * MILLISECOND).await;
                assert_eq!(done(), [2], "the key stands still");
                let letters = queue.dead_letters().list(None, 10).await.expect("a list");
                let numbers = vec![letters[0].number];
                queue
                    .dead_letters()
                    .delete(numbers)
                    .await
                    .expect("it answers");
                eventually(async || done() == [1, 2]).await;
            }
            Poison::Block => {
                eventually(async || tried.load(Ordering::SeqCst) > 5).await;
                assert_eq!((done(), dead().await), (vec![2], 0));
            }
        }
        worker.drain(LONG).await;
    }
}
