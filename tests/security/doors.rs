//! What there is before any key: who can reach a door at all, and who only repeats what somebody else said.

use std::time::Duration;

use crate::common::{ECHO, Probe, call};
use crate::house::{House, client, security};
use bowline::{Publisher, Server, TransportError};
use bowline_test_schemas::everything::Progress;

#[tokio::test]
async fn other_machines_reach_a_server_only_through_a_door_with_a_lock() {
    let open = Server::builder()
        .service(Probe::default())
        .bind("tcp://0.0.0.0:0")
        .await;
    let error = open.map(|_| ()).unwrap_err();
    assert!(
        error.to_string().contains("with_server_security"),
        "{error}"
    );
    assert!(matches!(
        Publisher::<Progress>::bind("tcp://0.0.0.0:0").await,
        Err(TransportError::Insecure { .. })
    ));
    let house = House::new();
    house.serve("tcp://0.0.0.0:0").await.shutdown().await;
    let insecure = bowline::TransportOptions::default().with_insecure(true);
    let open = Server::builder()
        .service(Probe::default())
        .transport(insecure);
    drop(open.bind("tcp://0.0.0.0:0").await.unwrap());
}

#[cfg(feature = "zeromq")]
#[tokio::test]
async fn the_zeromq_crate_is_for_this_machine_unless_somebody_says_insecure() {
    use bowline::security::ClientSecurity;
    use bowline::{Carrier, Client, TransportOptions};

    let zeromq = || TransportOptions::default().with_carrier(Carrier::Zeromq);
    let bind = async |endpoint: &str, options: TransportOptions| {
        let server = Server::builder().service(Probe::default());
        server.transport(options).bind(endpoint).await.map(|_| ())
    };
    let open = bind("tcp://0.0.0.0:0", zeromq()).await.unwrap_err();
    assert!(open.to_string().contains("insecure"), "{open}");
    let publisher = Publisher::builder().transport(zeromq());
    let open = publisher.bind::<Progress>("tcp://0.0.0.0:0").await;
    assert!(matches!(open, Err(TransportError::Insecure { .. })));
    bind("tcp://127.0.0.1:0", zeromq()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let ipc = format!("ipc://{}", folder.path().join("socket").display());
    bind(&ipc, zeromq()).await.unwrap();
    bind("tcp://0.0.0.0:0", zeromq().with_insecure(true))
        .await
        .unwrap();

    // It has no keys: whoever asks for them is told so, on either side.
    let house = House::new();
    let keys = zeromq().with_server_security(house.security());
    let refused = bind("tcp://127.0.0.1:0", keys).await.unwrap_err();
    assert!(refused.to_string().contains("no CURVE"), "{refused}");
    let keys = ClientSecurity::new(house.web.clone(), house.server.public());
    let client = Client::builder().transport(zeromq().with_client_security(keys));
    let refused = client.connect("tcp://127.0.0.1:1").await.unwrap_err();
    assert!(refused.to_string().contains("no CURVE"), "{refused}");
}

/// Passes bytes on, and keeps those that come from the client.
async fn record(from: tokio::net::TcpStream, to: std::net::SocketAddr) -> Vec<u8> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let (mut client, mut to_client) = from.into_split();
    let (mut server, mut to_server) = tokio::net::TcpStream::connect(to)
        .await
        .unwrap()
        .into_split();
    let back = tokio::spawn(async move { tokio::io::copy(&mut server, &mut to_client).await });
    let mut recorded = Vec::new();
    let mut buffer = vec![0; 4096];
    while let Ok(length @ 1..) = client.read(&mut buffer).await {
        recorded.extend(&buffer[..length]);
        if to_server.write_all(&buffer[..length]).await.is_err() {
            break;
        }
    }
    back.abort();
    recorded
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recorded_session_that_is_played_back_has_no_effect() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    // Ten thousand with BOWLINE_LONG, as it was measured; enough to see it otherwise.
    let times = if std::env::var_os("BOWLINE_LONG").is_some() {
        10_000
    } else {
        300
    };
    let house = House::new();
    let server = house.serve("tcp://127.0.0.1:0").await;
    let endpoint = server.endpoint().to_string();
    let address: std::net::SocketAddr = endpoint.strip_prefix("tcp://").unwrap().parse().unwrap();
    let proxy = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let through = format!("tcp://{}", proxy.local_addr().unwrap());
    let recording = tokio::spawn(async move {
        let (stream, _) = proxy.accept().await.unwrap();
        record(stream, address).await
    });
    let web = client(&through, security(&house.web, house.server.public())).await;
    for _ in 0..3 {
        call(&web, &ECHO, "once only").await.unwrap();
    }
    web.close().await;
    let recorded = recording.await.unwrap();
    assert!(
        recorded.len() > 500,
        "a handshake and three calls: {}",
        recorded.len()
    );
    let before = server.counters();
    assert_eq!(before.handled, 3);

    for time in 0..times {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        // It may be closed before all is sent, and is closed at the end.
        let _ = stream.write_all(&recorded).await;
        let mut answer = Vec::new();
        let closed = stream.read_to_end(&mut answer);
        let closed = tokio::time::timeout(Duration::from_secs(10), closed).await;
        assert!(closed.is_ok(), "number {time} is still open");
    }
    assert_eq!(server.counters(), before);
    let web = client(&endpoint, security(&house.web, house.server.public())).await;
    assert_eq!(call(&web, &ECHO, "alive").await.unwrap(), "alive");
    server.shutdown().await;
}
