//! A frame may declare any length up to 2^63. Who reserves what is declared, before it has come,
//! dies of nine bytes.

use std::io;
use std::time::Duration;

use crate::field::Field;
use crate::zmtp::{COMMAND, Wire, declared};

const LENGTHS: [u64; 5] = [1 << 62, u64::MAX, i64::MAX as u64, 1 << 40, 3 << 30];

pub(super) fn sally(field: &Field) -> io::Result<()> {
    for (address, socket_type) in field.doors() {
        for length in LENGTHS {
            // As a message and as a command, before the handshake and after it.
            for flags in [0, COMMAND] {
                let mut wire = Wire::connect(field.address(), address)?.greet()?;
                wire.send(&declared(flags, length))?;
                field.struck(1);
                let mut wire =
                    Wire::connect(field.address(), address)?.handshake(socket_type, b"")?;
                wire.send(&declared(flags, length))?;
                // It may be believed only when something follows.
                let _ = wire.send(&[0; 4096]);
                field.struck(1);
                field.pause(Duration::from_millis(5));
            }
        }
    }
    Ok(())
}
