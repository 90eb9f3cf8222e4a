//! Endpoints that are not there, not private, in the way, or bound again.

use std::os::unix::fs::PermissionsExt;

use crate::*;

pub async fn a_call_without_a_server_says_why(carried: Carried) {
    // An endpoint that was free a moment ago.
    let server = carried.start().await;
    let endpoint = server.endpoint().to_string();
    server.shutdown().await;
    let client = Client::builder()
        .transport(carried.options())
        .connect_wait(Duration::from_millis(50));
    let client = client.connect(&endpoint).await.unwrap();
    let start = Instant::now();
    loop {
        let status = call(&client, &ECHO, "x").await.unwrap_err();
        assert_eq!(
            (status.code(), status.work()),
            (Code::Unavailable, Work::NotDone)
        );
        if status.reason() == Some(Reason::ConnectionRefused) {
            assert!(status.message().contains(&endpoint), "{status}");
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{status}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn mode(endpoint: &str) -> Option<u32> {
    let path = endpoint.strip_prefix("ipc://")?;
    Some(std::fs::metadata(path).unwrap().permissions().mode() & 0o7777)
}

pub async fn an_ipc_socket_is_private_unless_another_mode_is_set(carried: Carried) {
    let server = carried.start().await;
    let endpoint = server.endpoint().to_string();
    if let Some(mode) = mode(&endpoint) {
        assert_eq!(mode, 0o600);
    }
    server.shutdown().await;
    let options = carried.options().with_ipc_mode(0o666);
    let server = carried.server().transport(options);
    let server = server.bind(&endpoint).await.unwrap().spawn();
    if let Some(mode) = mode(&endpoint) {
        assert_eq!(mode, 0o666);
    }
    server.shutdown().await;
}

pub async fn a_socket_file_that_no_process_listens_on_is_taken_over(carried: Carried) {
    let endpoint = carried.endpoint();
    let Some(path) = endpoint.strip_prefix("ipc://") else {
        return;
    };
    // Left behind, as by a process that was killed.
    drop(std::os::unix::net::UnixListener::bind(path).unwrap());
    let server = carried.start_at(&endpoint).await;
    let client = carried.connect(&endpoint).await;
    assert_eq!(call(&client, &ECHO, "x").await.unwrap(), "x");
    server.shutdown().await;
}

pub async fn a_client_is_back_when_its_server_is_bound_again_in_the_process(carried: Carried) {
    let (mut server, client) = carried.both().await;
    let endpoint = server.endpoint().to_string();
    for _ in 0..3 {
        let start = Instant::now();
        while call(&client, &ECHO, "x").await.is_err() {
            assert!(start.elapsed() < Duration::from_secs(20), "it stays away");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        server.shutdown().await;
        eventually("its connections are closed", || !client.is_connected()).await;
        server = carried.start_at(&endpoint).await;
    }
    server.shutdown().await;
}
