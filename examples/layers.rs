//! Tower layers on both sides: any layer fits.

use std::time::Duration;

use bowline::{Client, Reply, Request, Server, Status};
use bowline_examples::hello::{GreetParams, GreetResults, Hello, HelloClient, HelloServer};
use tower::ServiceBuilder;
use tower::limit::ConcurrencyLimitLayer;

struct Greeter;

impl Hello for Greeter {
    async fn greet(&self, request: Request<GreetParams>) -> Result<Reply<GreetResults>, Status> {
        let text = format!("hello, {}", request.get()?.get_name()?.to_str()?);
        Ok(GreetResults { text }.into())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = Server::builder()
        .service(HelloServer::new(Greeter))
        .layer(ConcurrencyLimitLayer::new(100))
        .bind("tcp://127.0.0.1:0")
        .await?
        .spawn();

    let client = Client::connect(server.endpoint().to_string()).await?;
    let stack = ServiceBuilder::new()
        .timeout(Duration::from_secs(1))
        .concurrency_limit(10)
        .service(client);
    let reply = HelloClient::new(stack)
        .greet(|mut p| p.set_name("ann"))
        .await?;
    println!("{}", reply.plain()?.text);

    server.shutdown().await;
    Ok(())
}
