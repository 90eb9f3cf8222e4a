//! A small request may have a large reply. Who keeps replies for a client that does not read them
//! pays for each with memory, or waits for one client while the others wait for it.

use std::io;
use std::time::Duration;

use crate::bodies::{Header, large};
use crate::field::Field;
use crate::zmtp::{Wire, message};
use crate::{LARGE, LARGE_BYTES_MAX};

/// Clients at a time.
const CLIENTS: usize = 40;
/// Requests of each.
const REQUESTS: u64 = 100;

pub(super) fn sally(field: &Field) -> io::Result<()> {
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(Wire::connect(field.address(), field.calls)?.handshake("DEALER", b"")?);
    }
    for correlation in 0..REQUESTS {
        let header = Header::of(LARGE, correlation).bytes();
        let request = message(&[b"", &header, &large(LARGE_BYTES_MAX)]);
        clients.retain_mut(|wire| wire.send(&request).is_ok());
        field.struck(clients.len() as u64);
        field.pause(Duration::from_millis(40));
        if clients.is_empty() || !field.goes_on() {
            break;
        }
    }
    Ok(())
}
