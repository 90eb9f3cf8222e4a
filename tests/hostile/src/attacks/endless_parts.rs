//! A message may have any number of parts. Each costs its receiver a table entry of dozens of bytes and
//! its sender two: a message that never ends, of empty parts, is an amplifier.

use std::io;
use std::time::Duration;

use crate::field::Field;
use crate::zmtp::{MORE, Wire};

pub(super) fn sally(field: &Field) -> io::Result<()> {
    let parts: Vec<u8> = [MORE, 0].repeat(16 * 1024);
    for (address, socket_type) in field.doors() {
        // Where parts are taken before the handshake, all the better.
        let mut early = Wire::connect(field.address(), address)?.greet()?;
        for _ in 0..64 {
            if early.send(&parts).is_err() {
                break;
            }
            field.struck(1);
        }
        let mut wire = Wire::connect(field.address(), address)?.handshake(socket_type, b"")?;
        for _ in 0..1024 {
            if wire.send(&parts).is_err() || !field.goes_on() {
                break;
            }
            field.struck(1);
            field.pause(Duration::from_millis(2));
        }
    }
    Ok(())
}
