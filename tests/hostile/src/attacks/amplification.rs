//! A Cap'n Proto message of a hundred bytes may claim millions of elements that take no space, or show
//! the same bytes to its reader a million times over, or nest for ever. Who reads all that it says
//! makes gigabytes of kilobytes, or runs out of stack.

use std::io;
use std::time::Duration;

use crate::GROW;
use crate::bodies::{Header, list_pointer, list_tag, message as capnp, struct_pointer, words_of};
use crate::field::Field;
use crate::zmtp::{Wire, message};

/// Of a node: no data, and the pointers to its text and its children.
const POINTERS: u16 = 2;

pub(super) fn sally(field: &Field) -> io::Result<()> {
    let mut wire = Wire::connect(field.address(), field.calls)?.handshake("DEALER", b"")?;
    for (correlation, body) in (0..).zip(bodies()) {
        let header = Header::of(GROW, correlation).bytes();
        wire.send(&message(&[b"", &header, &body]))?;
        field.struck(1);
        wire.receive_message()?;
        field.pause(Duration::from_millis(5));
    }
    Ok(())
}

/// All of them, for whoever reads a body.
pub(super) fn bodies() -> Vec<Vec<u8>> {
    vec![
        zero_sized(500_000_000),
        zero_sized(8_000_000),
        aliased_texts(1000, 10_000),
        laughing(30),
        nested(31),
        nested(10_000),
        // To itself, to nowhere, and a table of more segments than there are bytes.
        capnp(&[struct_pointer(-1, 0, 1)]),
        capnp(&[struct_pointer(0, 0, 1), struct_pointer(-1, 0, POINTERS)]),
        capnp(&[struct_pointer(1 << 28, u16::MAX, u16::MAX)]),
        capnp(&[struct_pointer(0, 0, 1), list_pointer(0, 7, (1 << 29) - 1)]),
        vec![0xff; 64],
        far_in_a_circle(),
    ]
}

/// The root of a tree whose children begin where the words do.
fn tree(children: u64, words: &[u64]) -> Vec<u8> {
    let mut all = vec![
        struct_pointer(0, 0, 1),
        struct_pointer(0, 0, POINTERS),
        0,
        children,
    ];
    all.extend(words);
    capnp(&all)
}

fn zero_sized(count: i32) -> Vec<u8> {
    tree(list_pointer(0, 7, 0), &[list_tag(count, 0, 0)])
}

/// Many nodes, all of whose texts are the same.
fn aliased_texts(nodes: i32, bytes: usize) -> Vec<u8> {
    let mut words = vec![list_tag(nodes, 0, POINTERS)];
    for node in 0..nodes {
        // From behind this pointer to behind the last node.
        let offset = (nodes - node) * 2 - 1;
        words.push(list_pointer(offset, 2, bytes as u32));
        words.push(0);
    }
    let mut text = vec![b'x'; bytes];
    text[bytes - 1] = 0;
    words.extend(words_of(&text));
    tree(list_pointer(0, 7, nodes as u32 * 2), &words)
}

/// Each node has two children, which are both the next: two to the power of `levels`.
fn laughing(levels: usize) -> Vec<u8> {
    let mut words = Vec::new();
    for _ in 0..levels {
        // A tag, and two nodes: the next level stands behind the second.
        words.push(list_tag(2, 0, POINTERS));
        words.extend([0, list_pointer(2, 7, 4), 0, list_pointer(0, 7, 4)]);
    }
    words.extend([list_tag(2, 0, POINTERS), 0, 0, 0, 0]);
    tree(list_pointer(0, 7, 4), &words)
}

/// Each node has one child.
fn nested(levels: usize) -> Vec<u8> {
    let mut words = Vec::new();
    for _ in 0..levels {
        words.extend([list_tag(1, 0, POINTERS), 0, list_pointer(0, 7, 2)]);
    }
    words.extend([list_tag(1, 0, POINTERS), 0, 0]);
    tree(list_pointer(0, 7, 2), &words)
}

/// Two segments, each of which says that the root is in the other.
fn far_in_a_circle() -> Vec<u8> {
    let far = |segment: u64| 2 | segment << 32;
    let table = [1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
    [&table[..], &far(1).to_le_bytes(), &far(0).to_le_bytes()].concat()
}
