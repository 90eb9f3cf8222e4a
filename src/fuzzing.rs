//! What the targets of fuzz/ call: each decoder that meets bytes from outside, under one name.
//! Compiled for fuzzing only.

#![allow(missing_docs, reason = "named after the targets, which say it")]

use bytes::Bytes;

use crate::message::{Link, Msg};
use crate::once::Record;
use crate::security::PublicKey;
use crate::{Endpoint, Limits};

pub fn body(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    if let Ok(message) = Msg::<Link<String>>::open(bytes, &Limits::default()) {
        let _ = message.plain();
    }
}

pub fn compact(bytes: &[u8]) {
    crate::wire::unpack_any(bytes);
}

pub fn envelope(bytes: &[u8]) {
    crate::wire::decode_all(bytes);
}

pub fn events(bytes: &[u8]) {
    crate::wire::unpack_any_events(bytes);
}

pub fn headers(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        crate::queue::fuzzing::headers(text);
    }
}

pub fn jobs(bytes: &[u8]) {
    crate::queue::fuzzing::jobs(bytes);
}

pub fn keys(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        crate::security::read_any_keys(text);
    }
}

pub fn lists(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        crate::security::read_any(text);
    }
}

#[cfg(feature = "durable")]
pub fn log(bytes: &[u8]) {
    crate::queue::fuzzing::log(bytes);
}

pub fn names(bytes: &[u8]) {
    crate::topic::read_any_name(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(endpoint) = text.parse::<Endpoint>() {
        assert_eq!(endpoint.to_string().parse(), Ok(endpoint));
    }
    if let Ok(key) = text.parse::<PublicKey>() {
        // A line of a file may have space around it.
        assert_eq!(key.to_string(), text.trim());
    }
}

pub fn record(bytes: &[u8]) {
    if let Ok(record) = Record::from_bytes(Bytes::copy_from_slice(bytes)) {
        let again = Record::from_bytes(record.to_bytes());
        assert_eq!(again.ok(), Some(record));
    }
}

pub fn stored(bytes: &[u8]) {
    crate::once::read_any(bytes);
}

pub fn tails(bytes: &[u8]) {
    crate::topic::read_any_tails(bytes);
}
