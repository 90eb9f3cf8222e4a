//! A message of which only the end is missing has to be kept until it comes. Who counts messages when they are whole keeps
//! as many megabytes as there are connections.

use std::io;
use std::time::Duration;

use crate::ECHO;
use crate::bodies::{Header, echo};
use crate::field::Field;
use crate::zmtp::{MORE, Wire, declared, frame};

/// Hosts, and connections of each.
const HOSTS: u8 = 12;
const CONNECTIONS: usize = 30;
/// Of each message, but for its end.
const BYTES: usize = 1_000_000;
const PIECE: usize = 50_000;

pub(super) fn sally(field: &Field) -> io::Result<()> {
    let mut wires = Vec::new();
    for host in 1..=HOSTS {
        for _ in 0..CONNECTIONS {
            let wire = Wire::connect(field.other_address(host), field.calls)?;
            wires.push(wire.handshake("DEALER", b"")?);
        }
    }
    let body = echo(&vec![7; BYTES]);
    let header = Header::of(ECHO, 1).bytes();
    let front = [
        frame(MORE, b""),
        frame(MORE, &header),
        declared(0, body.len() as u64),
    ];
    wires.retain_mut(|wire| wire.send(&front.concat()).is_ok());
    field.struck(wires.len() as u64);
    for piece in body[..BYTES].chunks(PIECE) {
        // One that is read no more is kept as it is.
        for wire in &mut wires {
            wire.send_what_fits(piece);
        }
        if !field.goes_on() {
            break;
        }
        field.pause(Duration::from_millis(20));
    }
    field.pause(Duration::from_secs(2));
    Ok(())
}
