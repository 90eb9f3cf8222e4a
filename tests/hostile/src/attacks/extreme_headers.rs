//! Each field of a header is a number or a list of the sender's choice, and some are used to compute
//! with: times that overflow, keys too long to keep, metadata without end.

use std::io;
use std::time::Duration;

use crate::ECHO;
use crate::bodies::{Header, echo, list_pointer, list_tag, struct_pointer, words_of};
use crate::field::Field;
use crate::zmtp::{Wire, message};

pub(super) fn sally(field: &Field) -> io::Result<()> {
    let body = echo(b"x");
    let mut wire = Wire::connect(field.address(), field.calls)?.handshake("DEALER", b"")?;
    for header in headers() {
        // One that is answered shows that the connection is still there.
        for body in [&body[..], b""] {
            wire.send(&message(&[b"", &header, body]))?;
            field.struck(1);
            wire.receive_message()?;
        }
        field.pause(Duration::from_millis(2));
    }
    Ok(())
}

fn headers() -> Vec<Vec<u8>> {
    let plain = Header::of(ECHO, 1);
    let mut headers = Vec::new();
    let mut with = |change: &dyn Fn(&mut Header)| {
        let mut header = plain.clone();
        change(&mut header);
        headers.push(header.bytes());
    };
    for word in 0..6 {
        for value in [0, 1, u64::MAX, i64::MAX as u64, 1 << 63] {
            with(&|header| header.data[word] = value);
        }
    }
    with(&|header| header.data = [u64::MAX; 6]);
    with(&|header| header.pointers = [u64::MAX; 3]);
    for bytes in [0, 1, 255, 256, 60_000] {
        with(&|header| {
            (header.data[2], header.data[3]) = (0, 0);
            header.pointers[0] = list_pointer(2, 2, bytes);
            header.rest = words_of(&vec![7; bytes as usize]);
        });
    }
    // A trace whose state is as long as a header can be.
    with(&|header| {
        header.pointers[1] = struct_pointer(1, 4, 1);
        header.rest = vec![u64::MAX, u64::MAX, u64::MAX, 0, list_pointer(0, 2, 60_001)];
        let mut state = vec![b'x'; 60_001];
        state[60_000] = 0;
        header.rest.extend(words_of(&state));
    });
    // Metadata: as many entries as are allowed, one more, as many as fit, and more than there are.
    for (entries, claimed) in [(64, 64), (65, 65), (2000, 2000), (1, (1 << 29) - 1)] {
        with(&|header| {
            let words = entries * 2;
            header.pointers[2] = list_pointer(0, 7, words as u32);
            header.rest = vec![list_tag(claimed, 0, 2)];
            for entry in 0..entries {
                // The same key and value for all: behind the last entry.
                let key = (entries - entry) * 2 - 1;
                header.rest.push(list_pointer(key, 2, 4));
                header.rest.push(list_pointer(key, 2, 16_000));
            }
            header.rest.extend(words_of(b"key\0four"));
            header.rest.extend(words_of(&[7; 16_000]));
        });
    }
    // Entries that take no space.
    with(&|header| {
        header.pointers[2] = list_pointer(0, 7, 0);
        header.rest = vec![list_tag((1 << 29) - 1, 0, 0)];
    });
    // As long as is allowed, a byte more, a word more, a megabyte.
    let whole = plain.bytes();
    for length in [64 << 10, (64 << 10) + 1, (64 << 10) + 8, 900 << 10] {
        let mut long = whole.clone();
        long.resize(length, 0);
        let words = (length as u32 / 8).saturating_sub(1);
        long[4..8].copy_from_slice(&words.to_le_bytes());
        headers.push(long);
    }
    for segments in [1, 511, 512, u32::MAX - 1, u32::MAX] {
        let mut table = whole.clone();
        table[..4].copy_from_slice(&segments.to_le_bytes());
        headers.push(table);
    }
    for end in [0, 1, 7, 8, 9, 17, whole.len() - 1] {
        headers.push(whole[..end].to_vec());
    }
    headers
}
