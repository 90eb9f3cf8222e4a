//! A service, and a call of it. The schema is `schema/hello.capnp`.

use bowline::{Reply, Request, Server, Status};
use bowline_examples::hello::{GreetParams, GreetResults, Hello, HelloClient, HelloServer};

struct Greeter;

impl Hello for Greeter {
    async fn greet(&self, request: Request<GreetParams>) -> Result<Reply<GreetResults>, Status> {
        let name = request.get()?.get_name()?.to_str()?;
        let text = format!("hello, {name}");
        Ok(GreetResults { text }.into())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = Server::builder()
        .service(HelloServer::new(Greeter))
        .bind("tcp://127.0.0.1:0")
        .await?
        .spawn();

    let hello = HelloClient::connect(server.endpoint().to_string()).await?;
    let reply = hello.greet(|mut params| params.set_name("ann")).await?;
    println!("{}", reply.get()?.get_text()?.to_str()?);

    server.shutdown().await;
    Ok(())
}
