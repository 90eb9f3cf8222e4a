//! Every connection costs a file. Who accepts all of them has none left at its limit, and may then
//! spin over the one that it cannot accept.

use std::io;
use std::time::Duration;

use crate::field::Field;
use crate::zmtp::Wire;

/// More than a process with 512 files can have.
const CONNECTIONS: u8 = 20;
const PER_ADDRESS: usize = 30;

pub(super) fn sally(field: &Field) -> io::Result<()> {
    let mut held = Vec::new();
    'flood: for last in 1..=CONNECTIONS {
        for i in 0..PER_ADDRESS {
            let Some((address, socket_type)) = field.doors().nth(usize::from(i % 4 == 3)) else {
                continue;
            };
            if !field.goes_on() {
                break 'flood;
            }
            let Ok(mut wire) = Wire::connect(field.other_address(last), address) else {
                break 'flood;
            };
            // Not waited for: the flood does not care who is let in.
            let hello = [
                &crate::zmtp::greeting()[..],
                &crate::zmtp::ready(socket_type, b""),
            ];
            if wire.send(&hello.concat()).is_ok() {
                field.struck(1);
                held.push(wire);
            }
        }
    }
    field.pause(Duration::from_millis(700));
    for (i, wire) in held.into_iter().enumerate() {
        if i % 2 == 0 {
            wire.reset();
        }
    }
    field.pause(Duration::from_millis(500));
    Ok(())
}
