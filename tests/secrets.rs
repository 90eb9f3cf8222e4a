//! What of a secret key is ever logged or printed: nothing. A test alone, since it listens to all that its process logs.

mod common;
#[path = "common/house.rs"]
mod house;

use std::fmt::Write;
use std::sync::{Arc, Mutex};

use bowline::security::Keys;
use common::{ECHO, call};
use house::{House, client, security};

/// Keeps all that is logged, by whomever.
struct Listening(Arc<Mutex<String>>);

struct Field<'a>(&'a mut String);

impl tracing::field::Visit for Field<'_> {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        let _ = write!(self.0, " {field}={value:?}");
    }
}

impl tracing::Subscriber for Listening {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        span.record(&mut Field(&mut self.0.lock().unwrap()));
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, values: &tracing::span::Record<'_>) {
        values.record(&mut Field(&mut self.0.lock().unwrap()));
    }

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut logged = self.0.lock().unwrap();
        event.record(&mut Field(&mut logged));
        logged.push('\n');
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test]
async fn nothing_that_is_logged_or_printed_has_a_secret() {
    const SERVER: &str = "JTKVSB%%)wK0E.X)V>+}o?pNmC{O&4W4b!Ni{Lh6";
    const CLIENT: &str = "D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs";
    let logged = Arc::new(Mutex::new(String::new()));
    tracing::subscriber::set_global_default(Listening(Arc::clone(&logged))).unwrap();
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
