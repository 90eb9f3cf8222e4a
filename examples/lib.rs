//! The schemas of the examples, as Rust: `hello`, `weather` and `search`.

bowline::include_schemas!();
