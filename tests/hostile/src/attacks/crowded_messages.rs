//! A message of one part may hold many calls, each of which says how long it is. Who believes that reads past
//! the end, or works for ever on what one message asks for.

use std::io;
use std::time::Duration;

use crate::ECHO;
use crate::bodies::{Header, echo, message as segment};
use crate::field::Field;
use crate::zmtp::{Wire, message};

/// As docs/wire.md has them.
const CALLS_MAX: u64 = 128;
const BYTES_MAX: usize = 64 * 1024;

pub(super) fn sally(field: &Field) -> io::Result<()> {
    let mut wire = Wire::connect(field.address(), field.calls)?.handshake("DEALER", b"")?;
    for crowd in crowds() {
        wire.send(&message(&[&crowd]))?;
        field.struck(1);
        // One that is answered shows that the connection is still there.
        wire.receive_message()?;
        field.pause(Duration::from_millis(2));
        if wire.is_closed() {
            wire = Wire::connect(field.address(), field.calls)?.handshake("DEALER", b"")?;
        }
    }
    Ok(())
}

fn crowds() -> Vec<Vec<u8>> {
    let call = |number: u64| [Header::of(ECHO, number).bytes(), echo(b"x")].concat();
    let of = |calls: u64| (1..=calls).flat_map(call).collect::<Vec<u8>>();
    let mut crowds = vec![of(CALLS_MAX), of(CALLS_MAX + 1), of(400)];
    // Calls of nothing at all, as many as fit and more.
    crowds.push([segment(&[]), segment(&[])].concat().repeat(BYTES_MAX / 16));
    crowds.push(segment(&[]).repeat(BYTES_MAX));
    // Cut within a header, between it and its body, within that.
    let two = of(2);
    let header = Header::of(ECHO, 1).bytes().len();
    for end in [
        1,
        7,
        8,
        header - 1,
        header,
        header + 8,
        two.len() / 2 + 4,
        two.len() - 8,
        two.len() - 1,
    ] {
        crowds.push(two[..end].to_vec());
    }
    // A second call that claims more words than there are, and more segments than one.
    for words in [1, 1 << 13, u32::MAX / 8, u32::MAX] {
        for segments in [0, 1, u32::MAX] {
            let table = [segments.to_le_bytes(), words.to_le_bytes()].concat();
            crowds.push([call(1), table].concat());
        }
    }
    // The same call again and again.
    crowds.push(call(1).repeat(100));
    crowds
}
