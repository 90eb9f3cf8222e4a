//! A worker: takes documents out of the queue and has the index take them in.
//!
//! `add` is `$once`, and is called with the request ID of the job: a document that is sent to another worker, because
//! the first was killed, is not taken in twice. Start as many as you like, and kill them as you like.

use std::sync::Arc;
use std::time::Duration;

use bowline::queue::{Attempts, Job, Queue, Refusal, Worker};
use bowline::{Client, Failure};
use bowline_examples::search::{Incoming, IndexClient};
use tokio::time::sleep;

use crate::{AnyError, Arguments, Role};

/// Documents that one worker has in hand.
const HANDS: usize = 4;

pub async fn start(arguments: &Arguments) -> Result<Worker, AnyError> {
    let queue = Queue::<Incoming>::connect(&arguments.index).await?;
    let index = IndexClient::new(Client::connect(&arguments.index).await?);
    let pause = Duration::from_millis(arguments.pause);
    let is_alone = arguments.role == Role::Worker;
    let handler = move |job: Arc<Job<Incoming>>| {
        let index = index.clone();
        async move {
            sleep(pause).await;
            let incoming = job.plain()?;
            let add = index.add_plain(&incoming).request_id(job.request_id());
            match add.wait_for_ready().await {
                Ok(_) if is_alone => say(&incoming, job.earlier()),
                Ok(_) => {}
                // Another attempt would be denied as well.
                Err(Failure::Application(denied)) => {
                    return Err(Refusal::because(denied.reason).for_good());
                }
                Err(Failure::Status(status)) => return Err(status.into()),
            }
            Ok(())
        }
    };
    Ok(queue.worker(HANDS, handler).start().await?)
}

/// What the line ends with where another worker had the document before.
pub const AGAIN: &str = ", which another worker left";

fn say(incoming: &Incoming, earlier: Attempts) {
    let again = if earlier.lost > 0 { AGAIN } else { "" };
    println!("{}{again}", incoming.document.path);
}
