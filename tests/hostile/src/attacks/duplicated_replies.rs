//! A server may be hostile too. Who gives the next reply to the caller that waits longest gives it
//! to the wrong one as soon as one reply comes twice; here they come twice, late, and to nobody.

use std::io;
use std::net::TcpListener;
use std::time::Duration;

use crate::bodies::{echo, message as capnp, struct_pointer};
use crate::field::Field;
use crate::zmtp::{MORE, Wire, declared, message};

/// Where the correlation stands in a header of Bowline's clients.
const CORRELATION: std::ops::Range<usize> = 48..56;

pub(super) fn sally(field: &Field) -> io::Result<()> {
    let Some(upstream) = field.upstream else {
        return Ok(());
    };
    let listener = TcpListener::bind(upstream)?;
    listener.set_nonblocking(true)?;
    while field.goes_on() {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                // To the next client.
                let _ = serve(field, Wire::new(stream)?);
            }
            Err(_) => field.pause(Duration::from_millis(10)),
        }
    }
    Ok(())
}

fn serve(field: &Field, wire: Wire) -> io::Result<()> {
    let mut wire = wire.handshake("ROUTER", b"")?;
    let mut before: Vec<[u8; 8]> = Vec::new();
    for count in 0..200 {
        if !field.goes_on() {
            return Ok(());
        }
        let request = wire.receive_message()?;
        let [delimiter, header, body] = &request[..] else {
            return Ok(());
        };
        let correlation: [u8; 8] = header[CORRELATION].try_into().unwrap_or_default();
        let wrong = echo(b"the reply to another");
        for earlier in before.iter().rev().take(3) {
            wire.send(&message(&[delimiter, &reply(*earlier), &wrong]))?;
        }
        for nobody in [0, u64::MAX, count << 32] {
            wire.send(&message(&[delimiter, &reply(nobody.to_le_bytes()), &wrong]))?;
        }
        wire.send(&message(&[b"", b"no header", b""]))?;
        wire.send(&message(&[b"no delimiter"]))?;
        let right = message(&[delimiter, &reply(correlation), body]);
        wire.send(&right.repeat(3))?;
        field.struck(1);
        before.push(correlation);
    }
    // And then it dies in the middle of a large one.
    wire.send(&declared(MORE, 1 << 62))?;
    Ok(())
}

fn reply(correlation: [u8; 8]) -> Vec<u8> {
    let correlation = u64::from_le_bytes(correlation);
    capnp(&[struct_pointer(0, 3, 2), 0, correlation, 0, 0, 0])
}
