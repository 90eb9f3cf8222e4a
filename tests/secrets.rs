//! What of a secret key is ever logged or printed: nothing. A test alone, since it listens to all that its process logs.

mod common;
#[path = "common/house.rs"]
mod house;
#[path = "common/listening.rs"]
mod listening;

use bowline::security::Keys;
use common::{ECHO, call};
use house::{House, client, security};

#[tokio::test]
async fn nothing_that_is_logged_or_printed_has_a_secret() {
    const SERVER: &str = "JTKVSB%%)wK0E.X)V>+}o?pNmC{O&4W4b!Ni{Lh6";
    const CLIENT: &str = "D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs";
    let logged = listening::listen();
    let mut house = House::new();
    house.server = Keys::from_secret_text(SERVER).unwrap();
    house.web = Keys::from_secret_text(CLIENT).unwrap();
    house.allowed.allow("web", house.web.public()).unwrap();
    let server = house.serve("tcp://127.0.0.1:0").await;
    let right = house.server.public();
    let web = client(server.endpoint(), security(&house.web, right)).await;
    call(&web, &ECHO, "hello").await.unwrap();
    let denied = call(&web, &common::SLEEP, vec![0, 0]).await.unwrap_err();
    let stranger = client(server.endpoint(), security(&Keys::generate(), right)).await;
    let refused = call(&stranger, &ECHO, "hello").await.unwrap_err();
    house.allowed.revoke(house.web.public());
    let revoked = call(&web, &ECHO, "hello").await.unwrap_err();
    let mut shown = format!("{:?} {:?} {server:?} {web:?}", house.security(), house.web);
    shown += &format!("{denied:?} {refused:?} {revoked:?} {denied} {refused} {revoked}");
    server.shutdown().await;
    shown += &logged.lock().unwrap();
    assert!(shown.contains("no rule allows the call"), "{shown}");
    assert!(shown.contains(&right.to_string()), "{shown}");
    for secret in [SERVER, CLIENT] {
        assert!(!shown.contains(&secret[..12]), "{shown}");
    }
    // Nor as bytes: those that both begin with.
    for bytes in ["142, 11, 221", "8e0bdd", "8e, 0b, dd"] {
        assert!(!shown.to_lowercase().contains(bytes), "{shown}");
    }
}
