//! A peer says its own identity, and a ROUTER finds its peers by it. Who takes the word of the second
//! that says the same gives it the replies of the first, or shows the first out.

use std::io;

use crate::ECHO;
use crate::bodies::{Header, echo};
use crate::field::Field;
use crate::zmtp::{Wire, message};

pub(super) fn sally(field: &Field) -> io::Result<()> {
    let mut victim = Wire::connect(field.address(), field.calls)?.handshake("DEALER", b"victim")?;
    ask(&mut victim, 1)?;
    let thieves = (2..=4).map(|last| {
        let from = field.other_address(last);
        Wire::connect(from, field.calls)?.handshake("DEALER", b"victim")
    });
    // Those that are let in stay until the end.
    let thieves: Vec<_> = thieves.filter_map(Result::ok).collect();
    field.struck(1);
    for correlation in 2..10 {
        if ask(&mut victim, correlation).is_err() && field.goes_on() {
            field.harmed();
        }
    }
    drop(thieves);
    // Identities as a library makes them for those that have none: those of the good clients.
    for number in 0..32u32 {
        for identity in [
            [&[0][..], &number.to_be_bytes()].concat(),
            [&[0][..], &number.to_le_bytes()].concat(),
            u64::from(number).to_be_bytes().to_vec(),
        ] {
            let thief = Wire::connect(field.address(), field.calls)?.handshake("DEALER", &identity);
            if thief.is_ok() {
                field.struck(1);
            }
        }
    }
    Ok(())
}

fn ask(wire: &mut Wire, correlation: u64) -> io::Result<()> {
    let header = Header::of(ECHO, correlation).bytes();
    wire.send(&message(&[b"", &header, &echo(b"mine")]))?;
    wire.receive_message().map(|_| ())
}
