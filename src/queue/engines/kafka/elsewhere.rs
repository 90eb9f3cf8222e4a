//! Clients of librdkafka block their thread while they end: they leave their group, and wait for what is on its way. So
//! that no runtime waits with them, they end on a thread of their own, within librdkafka's own time limits.

use std::ops::Deref;

/// Is dropped on a thread that is made for it.
pub(super) struct Elsewhere<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> Elsewhere<T> {
    pub fn new(value: T) -> Self {
        Self(Some(value))
    }
}

impl<T: Send + 'static> Deref for Elsewhere<T> {
    type Target = T;

    fn deref(&self) -> &T {
        match &self.0 {
            Some(value) => value,
            None => unreachable!("it goes with what it is in, and not before"),
        }
    }
}

impl<T: Send + 'static> Drop for Elsewhere<T> {
    fn drop(&mut self) {
        let value = self.0.take();
        let thread = std::thread::Builder::new().name("bowline-kafka-end".into());
        // Where there is no thread to be had, it is dropped here.
        if let Err(error) = thread.spawn(move || drop(value)) {
            tracing::debug!(%error, "no thread for a client of Kafka's to end on");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    struct Slow(mpsc::Sender<std::thread::ThreadId>);

    impl Drop for Slow {
        fn drop(&mut self) {
            let _ = self.0.send(std::thread::current().id());
        }
    }

    #[test]
    fn what_is_slow_to_end_ends_on_another_thread() {
        let (ended, ends) = mpsc::channel();
        drop(Elsewhere::new(Slow(ended)));
        let thread = ends.recv_timeout(Duration::from_secs(20)).expect("it ends");
        assert_ne!(thread, std::thread::current().id());
    }
}
