//! A peer may go in the middle of a frame. Who waits for the rest, or makes an error of it that
//! comes again and again, spins or hangs.

use std::io;

use crate::ECHO;
use crate::bodies::{Header, echo};
use crate::field::Field;
use crate::zmtp::{MORE, Wire, declared, frame, greeting, message, ready};

pub(super) fn sally(field: &Field) -> io::Result<()> {
    let whole = message(&[b"", &Header::of(ECHO, 1).bytes(), &echo(&[7; 2000])]);
    let half_of_a_long_frame = [declared(MORE, 100_000), vec![0; 50_000]].concat();
    let openings: [&[u8]; 6] = [
        &whole[..1],
        &whole[..whole.len() / 2],
        &whole[..whole.len() - 1],
        &half_of_a_long_frame,
        &frame(MORE, b""),
        &[MORE],
    ];
    for (i, opening) in openings.into_iter().enumerate() {
        for (address, socket_type) in field.doors() {
            let mut wire = Wire::connect(field.address(), address)?.handshake(socket_type, b"")?;
            wire.send(opening)?;
            field.struck(1);
            if i % 2 == 0 {
                wire.reset();
            }
        }
    }
    // The handshake can be cut too.
    let ready = ready("DEALER", b"cut");
    for end in [1, 9, 63] {
        let mut wire = Wire::connect(field.address(), field.calls)?;
        wire.send(&greeting()[..end])?;
        wire.reset();
        let mut wire = Wire::connect(field.address(), field.calls)?.greet()?;
        wire.send(&ready[..ready.len().min(end)])?;
        field.struck(1);
        wire.reset();
    }
    Ok(())
}
