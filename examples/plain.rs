//! Calls with plain Rust structs, which serde knows too: no builders, no readers.

use bowline::{Reply, Request, Status};
use bowline_examples::hello::{GreetParams, GreetResults, Hello, HelloClient, HelloServer};

struct Greeter;

impl Hello for Greeter {
    async fn greet(&self, request: Request<GreetParams>) -> Result<Reply<GreetResults>, Status> {
        let GreetParams { name } = request.plain()?;
        let text = format!("hello, {name}");
        Ok(GreetResults { text }.into())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let hello = HelloClient::new(HelloServer::new(Greeter));
    let name = "ann".to_owned();
    let reply = hello.greet_plain(&GreetParams { name }).await?;
    println!("{:?}", reply.plain()?);
    Ok(())
}
