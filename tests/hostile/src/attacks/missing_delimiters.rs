//! A request is `[empty][header][body]`. Who takes that for granted reads past the end of what came, or
//! answers to nobody.

use std::io;
use std::time::Duration;

use crate::ECHO;
use crate::bodies::{Header, echo};
use crate::field::Field;
use crate::zmtp::{Wire, message};

pub(super) fn sally(field: &Field) -> io::Result<()> {
    let header = Header::of(ECHO, 1).bytes();
    let body = echo(b"x");
    let large = vec![0; 900 * 1024];
    let odd: [&[&[u8]]; 10] = [
        &[&header, &body],
        &[&header],
        &[b""],
        &[b"", b""],
        &[b"", b"", b""],
        &[b"", b"", &header, &body],
        &[b"x", &header, &body],
        &[b"", &header, &body, b""],
        &[b"", &body, &header],
        &[b"", b"", &large],
    ];
    let mut wire = Wire::connect(field.address(), field.calls)?.handshake("DEALER", b"")?;
    for parts in odd {
        wire.send(&message(parts))?;
        field.struck(1);
        field.pause(Duration::from_millis(5));
        if wire.is_closed() {
            wire = Wire::connect(field.address(), field.calls)?.handshake("DEALER", b"")?;
        }
    }
    for parts in [15, 16, 17, 1000] {
        let mut wire = Wire::connect(field.address(), field.calls)?.handshake("DEALER", b"")?;
        wire.send(&message(&vec![&b"part"[..]; parts]))?;
        field.struck(1);
    }
    // What subscribes to nothing that there is, and what a subscriber does not say.
    if let Some(topics) = field.topics {
        for parts in [
            &[&b"\x02"[..]][..],
            &[b""],
            &[b"\x01", b"\x01"],
            &[b"\x00never"],
        ] {
            let mut wire = Wire::connect(field.address(), topics)?.handshake("SUB", b"")?;
            wire.send(&message(parts))?;
            field.struck(1);
        }
    }
    Ok(())
}
