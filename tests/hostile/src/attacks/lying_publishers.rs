//! A subscriber counts what its publisher says: topics, numbers, epochs, and what was missed in between. A publisher that
//! means harm has no end of topics, numbers from the end of time, and confirms what nobody asked.

use std::io;
use std::net::TcpListener;
use std::time::Duration;

use super::amplification::bodies;
use super::lying_servers::each_its_own;
use crate::bodies::{list_pointer, list_tag, message as capnp, struct_pointer, words_of};
use crate::field::Field;
use crate::zmtp::{COMMAND, LONG, MORE, Wire, declared, frame, message};

const EVENT: u64 = 0;
const TAIL: u64 = 1;
const CONFIRMED: u64 = 2;
const REFUSED: u64 = 3;
/// Of those who ask for a confirmation: what stands before the prefix.
const CONFIRMATION: &[u8] = b"\0bowline/";

pub(super) fn sally(field: &Field) -> io::Result<()> {
    match field.news {
        Some(news) => each_its_own(
            field,
            TcpListener::bind(news)?,
            &[
                counts_from_the_end,
                malforms,
                has_endless_topics,
                has_long_topics,
                announces_without_end,
                confirms_what_nobody_asked,
                confirms_again_and_again,
                amplifies,
                declares_too_much,
            ],
        ),
        None => Ok(()),
    }
}

fn begin(wire: Wire) -> io::Result<Wire> {
    wire.handshake("PUB", b"")
}

/// Numbers and epochs at their limits, forwards and backwards; the last is the end of time, after which nothing comes.
fn counts_from_the_end(field: &Field, wire: Wire) -> io::Result<()> {
    let mut wire = begin(wire)?;
    let limits = [0, 1, 2, 1 << 32, 1 << 63, u64::MAX - 1, u64::MAX];
    let backwards = limits.iter().rev();
    for epoch in backwards.chain(&limits) {
        for number in limits.iter().chain(limits.iter().rev()) {
            for kind in [EVENT, TAIL] {
                wire.send(&event(b"tick/", kind, *epoch, *number, &tick(*number)))?;
            }
        }
        field.pause(Duration::from_millis(2));
    }
    Ok(())
}

fn malforms(_: &Field, wire: Wire) -> io::Result<()> {
    let mut wire = begin(wire)?;
    for parts in 0..8 {
        wire.send(&message(&vec![&b"tick/"[..]; parts]))?;
    }
    let whole = header(EVENT, 1, 1);
    for cut in 0..whole.len() {
        wire.send(&message(&[b"tick/", &whole[..cut], b""]))?;
    }
    for kind in [4, 99, u64::from(u16::MAX)] {
        wire.send(&event(b"tick/", kind, 1, 1, b""))?;
    }
    for topic in [
        &b""[..],
        b"tick",
        b"\xff\xff",
        CONFIRMATION,
        b"\0bowline/zz",
    ] {
        for kind in [EVENT, TAIL, CONFIRMED, REFUSED] {
            wire.send(&event(topic, kind, 1, 1, b"\xff"))?;
        }
    }
    Ok(())
}

fn has_endless_topics(field: &Field, wire: Wire) -> io::Result<()> {
    let mut wire = begin(wire)?;
    let body = tick(1);
    for batch in 0..100 {
        let mut bytes = Vec::new();
        for i in 0..100 {
            let topic = format!("tick/{batch}/{i}");
            bytes.extend(event(topic.as_bytes(), EVENT, 7, 1, &body));
        }
        wire.send(&bytes)?;
        field.pause(Duration::from_millis(2));
    }
    Ok(())
}

/// As long as a message can be.
fn has_long_topics(field: &Field, wire: Wire) -> io::Result<()> {
    let mut wire = begin(wire)?;
    for i in 0..24 {
        let mut topic = format!("tick/{i:05}").into_bytes();
        topic.resize(900 << 10, b'x');
        wire.send(&event(&topic, EVENT, 7, 1, b""))?;
        field.pause(Duration::from_millis(2));
    }
    Ok(())
}

fn announces_without_end(field: &Field, wire: Wire) -> io::Result<()> {
    let mut wire = begin(wire)?;
    for batch in 0..100 {
        let mut bytes = Vec::new();
        for i in 0..100u64 {
            let topic = format!("tick/{i}/{:0200}", 0);
            bytes.extend(event(topic.as_bytes(), TAIL, 7, batch * 100 + i, b""));
        }
        wire.send(&bytes)?;
        field.pause(Duration::from_millis(2));
    }
    Ok(())
}

fn confirms_what_nobody_asked(field: &Field, wire: Wire) -> io::Result<()> {
    let mut wire = begin(wire)?;
    let none = tails(0);
    for batch in 0..100 {
        let mut bytes = Vec::new();
        for i in 0..100 {
            let topic = format!("\0bowline/{i:032x}tick/{batch}/{i}");
            bytes.extend(event(topic.as_bytes(), CONFIRMED, 7, 0, &none));
        }
        wire.send(&bytes)?;
        field.pause(Duration::from_millis(2));
    }
    Ok(())
}

/// What was asked, with as many last numbers as a message has room for; then it refuses it.
fn confirms_again_and_again(field: &Field, wire: Wire) -> io::Result<()> {
    let mut wire = begin(wire)?;
    let asked = loop {
        let (flags, body) = wire.receive()?;
        // A command SUBSCRIBE, or a message that begins with 1.
        let prefix = match flags & COMMAND {
            0 => body.strip_prefix(b"\x01"),
            _ => body.strip_prefix(b"\x09SUBSCRIBE"),
        };
        if let Some(prefix) = prefix.filter(|prefix| prefix.starts_with(CONFIRMATION)) {
            break prefix.to_vec();
        }
    };
    let many = tails(20_000);
    for _ in 0..10 {
        wire.send(&event(&asked, CONFIRMED, 7, 0, &many))?;
        field.pause(Duration::from_millis(5));
    }
    wire.send(&event(&asked, REFUSED, 7, 0, b""))
}

fn amplifies(_: &Field, wire: Wire) -> io::Result<()> {
    let mut wire = begin(wire)?;
    for (number, body) in (1..).zip(bodies()) {
        wire.send(&event(b"tick/", EVENT, 7, number, &body))?;
        wire.send(&event(
            b"\0bowline/0123456789abcdef0123456789abcdeftick/",
            CONFIRMED,
            7,
            0,
            &body,
        ))?;
    }
    Ok(())
}

fn declares_too_much(_: &Field, wire: Wire) -> io::Result<()> {
    begin(wire)?.send(&declared(LONG | MORE, 1 << 62))?;
    Ok(())
}

fn header(kind: u64, epoch: u64, number: u64) -> Vec<u8> {
    capnp(&[struct_pointer(0, 3, 2), kind << 16, epoch, number, 0, 0])
}

fn event(topic: &[u8], kind: u64, epoch: u64, number: u64, body: &[u8]) -> Vec<u8> {
    let header = header(kind, epoch, number);
    [frame(MORE, topic), frame(MORE, &header), frame(0, body)].concat()
}

/// A tick with this number.
fn tick(number: u64) -> Vec<u8> {
    capnp(&[struct_pointer(0, 2, 1), number, 0, 0])
}

/// The last numbers of so many topics, which all have the same name.
fn tails(count: u32) -> Vec<u8> {
    let mut words = vec![struct_pointer(0, 0, 1), list_pointer(0, 7, count * 2)];
    words.push(list_tag(count as i32, 1, 1));
    for i in 0..count {
        words.push(u64::MAX);
        words.push(list_pointer(((count - i) * 2 - 2) as i32, 2, 8));
    }
    words.extend(words_of(b"tick/abc"));
    capnp(&words)
}
