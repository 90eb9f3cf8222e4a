//! Typed calls, topics and queues between Rust services, without a broker.
