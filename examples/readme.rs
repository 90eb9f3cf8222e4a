//! The service of the README, to the letter. The schema is `schema/hello.capnp`.

use bowline_examples::hello;

use bowline::{Reply, Request, Server, Status};
use hello::{GreetParams, GreetResults, Hello, HelloClient, HelloServer};

struct Greeter;

impl Hello for Greeter {
    async fn greet(&self, request: Request<GreetParams>) -> Result<Reply<GreetResults>, Status> {
        let text = format!("hello, {}", request.get()?.get_name()?.to_str()?);
        Ok(GreetResults { text }.into())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let service = HelloServer::new(Greeter);
    let server = Server::builder()
        .service(service)
        .bind("tcp://127.0.0.1:5555")
        .await?
        .spawn();

    let hello = HelloClient::connect("tcp://127.0.0.1:5555").await?;
    let reply = hello.greet(|mut params| params.set_name("ann")).await?;
    println!("{}", reply.plain()?.text);
    server.shutdown().await;
    Ok(())
}
