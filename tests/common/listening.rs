//! Listens to all that a process logs. Only one test of a program may.

use std::fmt::Write;
use std::sync::{Arc, Mutex};

/// Listens from now on; what is logged comes to stand in the text, an event a line.
pub fn listen() -> Arc<Mutex<String>> {
    let logged = Arc::new(Mutex::new(String::new()));
    tracing::subscriber::set_global_default(Listening(Arc::clone(&logged))).unwrap();
    logged
}

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
