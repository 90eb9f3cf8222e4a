//! Replies that wait for a client that does not read are held by somebody. Where that is whoever runs handlers, three
//! such clients leave no handlers for others.

use std::io;
use std::time::Duration;

use crate::ECHO;
use crate::bodies::{Header, echo};
use crate::field::Field;
use crate::zmtp::{Wire, message};

const CLIENTS: usize = 3;
const BYTES: usize = 4 << 10;

pub(super) fn sally(field: &Field) -> io::Result<()> {
    let mut wires = Vec::new();
    for _ in 0..CLIENTS {
        wires.push(Wire::connect(field.address(), field.calls)?.handshake("DEALER", b"")?);
    }
    let body = echo(&[7; BYTES]);
    for number in 0.. {
        let request = message(&[b"", &Header::of(ECHO, number).bytes(), &body]);
        wires.retain_mut(|wire| wire.send(&request).is_ok());
        field.struck(wires.len() as u64);
        if wires.is_empty() || !field.goes_on() {
            break;
        }
        field.pause(Duration::from_millis(1));
    }
    Ok(())
}
