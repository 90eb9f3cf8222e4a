//! `worker ENDPOINT`: delivers parcels until it is killed; every hundredth attempt fails.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bowline::queue::{Job, Queue, Refusal};
use bowline_test_soak::soak::{DeliverParams, Parcel, ShopClient};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let endpoint = std::env::args().nth(1).ok_or("worker ENDPOINT")?;
    let queue = Queue::<Parcel>::connect(endpoint.clone()).await?;
    let shop = ShopClient::connect(endpoint).await?;
    let attempts = Arc::new(AtomicU64::new(0));
    let handler = move |job: Arc<Job<Parcel>>| {
        let (shop, attempts) = (shop.clone(), Arc::clone(&attempts));
        async move {
            if attempts.fetch_add(1, Relaxed) % 100 == 99 {
                return Err(Refusal::because("one attempt of a hundred fails"));
            }
            let number = job.plain()?.number;
            let deliver = shop.deliver_plain(&DeliverParams { number });
            deliver.request_id(job.request_id()).await?;
            Ok(())
        }
    };
    let _worker = queue.worker(8, handler).start().await?;
    std::future::pending().await
}
