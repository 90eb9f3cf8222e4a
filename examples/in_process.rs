//! A test without sockets: the client stands straight on the service.
//!
//! `cargo test -p bowline-examples --example in_process` runs it as the test that it is.

use bowline::{Reply, Request, Status};
use bowline_examples::hello::{GreetParams, GreetResults, Hello, HelloClient, HelloServer};

struct Greeter;

impl Hello for Greeter {
    async fn greet(&self, request: Request<GreetParams>) -> Result<Reply<GreetResults>, Status> {
        match request.plain()?.name {
            name if name.is_empty() => Err(Status::invalid_argument("greet whom?")),
            name => Ok(GreetResults {
                text: format!("hello, {name}"),
            }
            .into()),
        }
    }
}

#[tokio::test]
async fn nobody_is_not_greeted() {
    check().await;
}

async fn check() {
    let hello = HelloClient::new(HelloServer::new(Greeter));
    let nobody = hello.greet(|_| {}).await.unwrap_err();
    assert_eq!(nobody.code(), bowline::Code::InvalidArgument);
}

#[tokio::main]
async fn main() {
    check().await;
    println!("nobody is not greeted");
}
