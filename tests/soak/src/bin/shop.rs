//! `shop FOLDER`: the service under test. Prints `LISTENING <calls and queue> <topic>`; ends when its standard input is closed.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bowline::once::{Bounds, Once, RedbStore, RedbTransaction};
use bowline::queue::{Durable, Queue, QueueOptions, QueueService};
use bowline::{Publisher, Reply, Request, Server, Status};
use bowline_test_soak::soak::{
    DeliverParams, DeliverResults, OrderParams, OrderResults, Parcel, Placed, QuoteParams,
    QuoteResults, Shop, ShopServer, Usage, UsageParams,
};
use bowline_test_soak::{RETENTION, measure};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use tokio::io::AsyncReadExt;
use tokio::time::sleep;

/// How often each kind of work was done.
const COUNTS: TableDefinition<&str, u64> = TableDefinition::new("counts");

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // One handler of a hundred panics: the log would hold little else.
    std::panic::set_hook(Box::new(|_| {}));
    let folder = PathBuf::from(std::env::args().nth(1).ok_or("shop FOLDER")?);
    let database = Arc::new(Database::create(folder.join("shop.redb"))?);
    let store = RedbStore::with_database(Arc::clone(&database), Bounds::default())?;
    let once = Once::builder()
        .retention(RETENTION)
        .retry_horizon(RETENTION / 3)
        .clock_skew_max(Duration::from_secs(2))
        .lease(Duration::from_secs(3))
        .build(store)?;
    let options = QueueOptions::default()
        .with_lease(Duration::from_secs(2))
        .with_attempts_max(1000)
        .with_lost_max(1000)
        .with_backoff_min(Duration::from_millis(20))
        .with_backoff_max(Duration::from_millis(500))
        .with_id_retention(RETENTION)
        .with_producer_retention(RETENTION);
    let engine = Durable::builder(options).segment_bytes(1 << 20);
    let parcels = Queue::<Parcel>::on(engine.open(folder.join("parcels"))?);
    let publisher = Publisher::<Placed>::bind("tcp://127.0.0.1:0").await?;
    let topic = publisher.endpoint().clone();
    let shop = OneShop {
        folder,
        database,
        publisher,
        published: AtomicU64::new(0),
    };
    let server = Server::builder()
        .service(ShopServer::new(shop))
        .service(QueueService::new().queue(&parcels))
        .once(once)
        .bind("tcp://127.0.0.1:0")
        .await?
        .spawn();
    println!("LISTENING {} {topic}", server.endpoint());
    // Nothing is ever written to it.
    let _ = tokio::io::stdin().read_u8().await;
    server.shutdown().await;
    Ok(())
}

struct OneShop {
    folder: PathBuf,
    database: Arc<Database>,
    publisher: Publisher<Placed>,
    published: AtomicU64,
}

impl OneShop {
    fn count(&self, kind: &str) -> Result<u64, redb::Error> {
        let reads = self.database.begin_read()?;
        let counts = match reads.open_table(COUNTS) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(0),
            counts => counts?,
        };
        Ok(counts.get(kind)?.map_or(0, |count| count.value()))
    }

    /// Publishes an event; how many were is asked for at the end.
    async fn tell(&self, number: u64) {
        let shelf = format!("shelf-{}", number % 16);
        if self
            .publisher
            .publish(&Placed { shelf, number })
            .await
            .is_ok()
        {
            self.published.fetch_add(1, Relaxed);
        }
    }
}

/// Counts one more, in the transaction of the outcome.
fn count_one(writes: &WriteTransaction, kind: &str) -> Result<u64, redb::Error> {
    let mut counts = writes.open_table(COUNTS)?;
    let count = counts.get(kind)?.map_or(0, |count| count.value()) + 1;
    counts.insert(kind, count)?;
    Ok(count)
}

impl Shop for OneShop {
    async fn order(&self, request: Request<OrderParams>) -> Result<Reply<OrderResults>, Status> {
        let number = request.get()?.get_number();
        let transaction = request.transaction::<RedbTransaction>()?;
        let ordered = transaction.commit(move |writes| -> Result<_, Status> {
            let total = count_one(writes, "orders").map_err(Status::from_store)?;
            Ok(OrderResults { total })
        });
        let reply = ordered.await?;
        self.tell(number).await;
        Ok(reply)
    }

    async fn quote(&self, request: Request<QuoteParams>) -> Result<Reply<QuoteResults>, Status> {
        let number = request.get()?.get_number();
        let mut padding = vec![0; 64];
        match number % 100 {
            10 => return Err(Status::internal("no price for this number")),
            20 => panic!("no price for this number"),
            30 => sleep(Duration::from_secs(5)).await,
            40 => std::thread::sleep(Duration::from_millis(20)),
            50 => return Err(Status::unavailable("x".repeat(100_000))),
            60 => padding = vec![0; 300_000],
            70 => sleep(Duration::from_millis(200)).await,
            _ => {}
        }
        self.tell(number).await;
        let padding = padding.into();
        Ok(QuoteResults { number, padding }.into())
    }

    async fn deliver(
        &self,
        request: Request<DeliverParams>,
    ) -> Result<Reply<DeliverResults>, Status> {
        let transaction = request.transaction::<RedbTransaction>()?;
        let delivered = transaction.commit(move |writes| -> Result<_, Status> {
            let total = count_one(writes, "deliveries").map_err(Status::from_store)?;
            Ok(DeliverResults { total })
        });
        delivered.await
    }

    async fn usage(&self, _: Request<UsageParams>) -> Result<Reply<Usage>, Status> {
        let usage = Usage {
            resident_bytes: measure::resident_bytes(),
            descriptors: measure::descriptors(),
            tasks: measure::tasks(),
            disk_bytes: measure::disk_bytes(Path::new(&self.folder)),
            orders: self.count("orders").map_err(Status::from_store)?,
            deliveries: self.count("deliveries").map_err(Status::from_store)?,
            published: self.published.load(Relaxed),
        };
        Ok(usage.into())
    }
}
