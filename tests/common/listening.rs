//! Listens to what is logged: by a whole process, for the only test of a program; or by the thread of one test.

#![allow(dead_code, reason = "each test file uses its part")]

use std::cell::RefCell;
use std::fmt::Write;
use std::sync::{Arc, Mutex, Once};

/// What was logged, an event a line.
pub type Logged = Arc<Mutex<String>>;

thread_local! {
    static HERE: RefCell<Option<Logged>> = const { RefCell::new(None) };
}

/// Listens to the process from now on.
pub fn listen() -> Logged {
    let logged = Logged::default();
    let listening = Listening(Some(Arc::clone(&logged)));
    tracing::subscriber::set_global_default(listening).unwrap();
    logged
}

/// Listens to this thread from now on, and so to all tasks of a runtime that has no other.
pub fn listen_here() -> Logged {
    // One for all threads: what each would set for itself gets in the way of the others'.
    static ONCE: Once = Once::new();
    ONCE.call_once(|| tracing::subscriber::set_global_default(Listening(None)).unwrap());
    let logged = Logged::default();
    HERE.set(Some(Arc::clone(&logged)));
    logged
}

/// Keeps all that is logged: in one text, or in that of the thread.
struct Listening(Option<Logged>);

impl Listening {
    fn log(&self, write: impl FnOnce(&mut String)) {
        if let Some(logged) = self.0.clone().or_else(|| HERE.with_borrow(Clone::clone)) {
            write(&mut logged.lock().unwrap());
        }
    }
}

struct Field<'a>(&'a mut String);

impl tracing::field::Visit for Field<'_> {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

impl tracing::Subscriber for Listening {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        self.log(|logged| span.record(&mut Field(logged)));
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, values: &tracing::span::Record<'_>) {
        self.log(|logged| values.record(&mut Field(logged)));
    }

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        self.log(|logged| {
            let _ = write!(logged, "{}", event.metadata().level());
            event.record(&mut Field(logged));
            logged.push('\n');
        });
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}
