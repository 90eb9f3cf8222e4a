//! Each PING is to be answered with a PONG that carries what it carried. Who answers all, to a peer
//! that does not read, fills its memory; who answers at once does nothing else.

use std::io;
use std::time::Duration;

use crate::field::Field;
use crate::zmtp::{Wire, command};

pub(super) fn sally(field: &Field) -> io::Result<()> {
    let ping = command("PING", b"\xff\xffsixteen bytes ...");
    let storm = ping.repeat(500);
    for (address, socket_type) in field.doors() {
        // Too long to be answered, too short to be one, and commands that are none of a peer's.
        for odd in [
            command("PING", &[0; 250]),
            command("PING", b"\0"),
            command("PONG", b"never asked"),
            command("ERROR", b"\xffshort"),
            command("READY", b""),
            command("SUBSCRIBE", b"to a router"),
            command("NEVER-HEARD-OF", &[0; 100]),
            command("", b""),
        ] {
            let mut wire = Wire::connect(field.address(), address)?.handshake(socket_type, b"")?;
            wire.send(&odd)?;
            field.struck(1);
        }
        let mut wire = Wire::connect(field.address(), address)?.handshake(socket_type, b"")?;
        for _ in 0..400 {
            if wire.send(&storm).is_err() || !field.goes_on() {
                break;
            }
            field.struck(500);
            field.pause(Duration::from_millis(5));
        }
    }
    Ok(())
}
