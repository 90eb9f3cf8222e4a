//! A connection costs memory and a file before its peer has said who it is. Who waits for ever
//! for the rest of a handshake can be filled with halves of them.

use std::io;
use std::time::Duration;

use crate::field::Field;
use crate::zmtp::{Wire, greeting, ready};

/// Connections at a time.
const HALVES: usize = 160;

pub(super) fn sally(field: &Field) -> io::Result<()> {
    let whole = [&greeting()[..], &ready("DEALER", b"")].concat();
    let mut halves = Vec::new();
    for i in 0..HALVES {
        let (address, _) = field.doors().nth(i % 2).unwrap_or((field.calls, ""));
        let from = field.other_address((1 + i / 40) as u8);
        let Ok(mut wire) = Wire::connect(from, address) else {
            break; // as many as it lets in
        };
        // Nothing, a part of the greeting, all of it, a part of READY: then a byte now and then.
        let said = [0, 1, 10, 63, 64, 66][i % 6];
        if wire.send(&whole[..said]).is_ok() {
            field.struck(1);
            halves.push((wire, said));
        }
    }
    while field.goes_on() && !halves.is_empty() {
        field.pause(Duration::from_millis(300));
        halves.retain_mut(|(wire, said)| {
            let next = &whole[*said..whole.len().min(*said + 1)];
            // Never the last byte.
            if *said + 1 < whole.len() && *said > 0 {
                *said += 1;
                return wire.send(next).is_ok() && !wire.is_closed();
            }
            !wire.is_closed()
        });
    }
    Ok(())
}
