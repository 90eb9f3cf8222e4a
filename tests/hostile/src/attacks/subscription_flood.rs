//! A publisher keeps each subscription, and may look through all of them for each event. Their
//! number and their length are the subscriber's choice.

use std::io;
use std::time::Duration;

use crate::field::Field;
use crate::zmtp::{Wire, command, frame};

const SUBSCRIPTIONS: u32 = 20_000;
/// As long as a short frame can have it, and as long as it may be at all.
const LONG_PREFIX: usize = 900 * 1024;

pub(super) fn sally(field: &Field) -> io::Result<()> {
    let Some(topics) = field.topics else {
        return Ok(());
    };
    let mut many = Wire::connect(field.address(), topics)?.handshake("SUB", b"")?;
    for batch in 0..SUBSCRIPTIONS / 500 {
        let mut bytes = Vec::new();
        for i in 0..500 {
            let prefix = format!("tick/{:0>200}", batch * 500 + i);
            if i % 2 == 0 {
                bytes.extend(frame(0, &[b"\x01", prefix.as_bytes()].concat()));
            } else {
                bytes.extend(command("SUBSCRIBE", prefix.as_bytes()));
            }
        }
        if many.send(&bytes).is_err() || !field.goes_on() {
            break;
        }
        field.struck(500);
        field.pause(Duration::from_millis(10));
    }
    // The same one again and again.
    let mut same = Wire::connect(field.address(), topics)?.handshake("SUB", b"")?;
    let again = frame(0, b"\x01tick/").repeat(5000);
    let _ = same.send(&again);
    field.struck(5000);
    let mut long = Wire::connect(field.address(), topics)?.handshake("SUB", b"")?;
    for first in 0..=255 {
        let mut prefix = vec![first; LONG_PREFIX];
        prefix[0] = 1;
        if long.send(&frame(0, &prefix)).is_err() || !field.goes_on() {
            break;
        }
        field.struck(1);
        field.pause(Duration::from_millis(10));
    }
    Ok(())
}
