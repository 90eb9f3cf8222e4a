//! One suite over all transports: what a call may expect, whatever carries it.

mod common;

use std::time::Duration;

use bowline::{Client, Code, Server, Work};
use common::{ECHO, Probe, call};

#[tokio::test]
async fn a_call_comes_back_inproc() {
    round_trip("inproc://first").await;
}

#[tokio::test]
async fn a_call_comes_back_tcp() {
    round_trip("tcp://127.0.0.1:0").await;
}

async fn round_trip(endpoint: &str) {
    let server = Server::builder()
        .service(Probe::default())
        .bind(endpoint)
        .await
        .unwrap()
        .spawn();
    let client = Client::connect(server.endpoint().to_string())
        .await
        .unwrap();
    let reply = call(&client, &ECHO, "hello").await.unwrap();
    assert_eq!(reply, "hello");
    server.shutdown().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let gone = call(&client, &ECHO, "hello").await.unwrap_err();
    assert_eq!(
        (gone.code(), gone.work()),
        (Code::Unavailable, Work::NotDone)
    );
    client.close().await;
}
