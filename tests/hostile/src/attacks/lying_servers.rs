//! A client waits for what its server says, believes what it reads, and comes again when it is cut off. A server
//! that means harm says nothing, or too much, or rubbish, and every time something else.

use std::io;
use std::net::TcpListener;
use std::time::Duration;

use super::amplification::bodies;
use crate::bodies::{Header, message as capnp, struct_pointer};
use crate::field::Field;
use crate::zmtp::{LONG, MORE, Wire, command, declared, frame, message};

type Trick = fn(&Field, Wire) -> io::Result<()>;

const TRICKS: [Trick; 11] = [
    says_nothing,
    greets_with_rubbish,
    falls_silent,
    sends_rubbish,
    declares_too_much,
    sends_too_much,
    answers_what_nobody_asked,
    answers_with_rubbish,
    amplifies,
    never_reads,
    storms,
];

pub(super) fn sally(field: &Field) -> io::Result<()> {
    match field.liar {
        Some(liar) => each_its_own(field, TcpListener::bind(liar)?, &TRICKS),
        None => Ok(()),
    }
}

/// Plays one trick after the other, on who comes.
pub(super) fn each_its_own(
    field: &Field,
    listener: TcpListener,
    tricks: &[Trick],
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let mut next = tricks.iter().cycle();
    while field.goes_on() {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                field.struck(1);
                if let Some(trick) = next.next() {
                    // To be cut off is what it is here for.
                    let _ = trick(field, Wire::new(stream)?);
                }
            }
            Err(_) => field.pause(Duration::from_millis(10)),
        }
    }
    Ok(())
}

fn says_nothing(field: &Field, _: Wire) -> io::Result<()> {
    field.pause(Duration::from_millis(200));
    Ok(())
}

fn greets_with_rubbish(field: &Field, mut wire: Wire) -> io::Result<()> {
    wire.send(&[0xff; 256])?;
    field.pause(Duration::from_millis(50));
    Ok(())
}

/// Longer than a call may take.
fn falls_silent(field: &Field, wire: Wire) -> io::Result<()> {
    let _wire = wire.handshake("ROUTER", b"")?;
    field.pause(Duration::from_millis(1300));
    Ok(())
}

fn sends_rubbish(_: &Field, wire: Wire) -> io::Result<()> {
    let mut wire = wire.handshake("ROUTER", b"")?;
    for parts in 0..8 {
        wire.send(&message(&vec![&b"rubbish"[..]; parts]))?;
    }
    wire.send(&message(&[b"", b"", b""]))?;
    wire.send(&message(&[b"\x01topic"]))?;
    wire.send(&command("NOBODY-KNOWS", &[0xff; 300]))?;
    wire.send(&command("ERROR", b"\xff"))?;
    wire.send(&frame(0xf8, b"flags that do not exist"))
}

fn declares_too_much(_: &Field, wire: Wire) -> io::Result<()> {
    wire.handshake("ROUTER", b"")?
        .send(&declared(LONG | MORE, 1 << 62))
}

fn sends_too_much(_: &Field, wire: Wire) -> io::Result<()> {
    let mut wire = wire.handshake("ROUTER", b"")?;
    wire.send(&frame(MORE, b""))?;
    for _ in 0..64 {
        wire.send(&frame(MORE, &[7; 64 << 10]))?;
    }
    // Endless parts, without the last.
    wire.send(&frame(MORE, b"").repeat(20_000))
}

fn answers_what_nobody_asked(field: &Field, wire: Wire) -> io::Result<()> {
    let mut wire = wire.handshake("ROUTER", b"")?;
    for number in 0..2000u64 {
        let correlation = (number << 32) | (number % 64);
        wire.send(&message(&[b"", &reply(correlation, 0), &[7; 1024]]))?;
        if number % 500 == 0 {
            field.pause(Duration::from_millis(1));
        }
    }
    Ok(())
}

/// To calls that wait: statuses and headers that no server has.
fn answers_with_rubbish(_: &Field, wire: Wire) -> io::Result<()> {
    let mut wire = wire.handshake("ROUTER", b"")?;
    let mut pointers = Header::of(0, 0);
    pointers.pointers = [u64::MAX; 3];
    for status in [0, 1, 14, 16, 17, 99, 100, 101, u16::MAX] {
        let correlation = asked(&mut wire)?;
        wire.send(&message(&[b"", &reply(correlation, status), &[0xff; 64]]))?;
        wire.send(&message(&[b"", &pointers.bytes(), b"\0"]))?;
    }
    for cut in [0, 1, 7, 8, 15, 16, 24, 40] {
        let correlation = asked(&mut wire)?;
        wire.send(&message(&[b"", &reply(correlation, 0)[..cut], b""]))?;
    }
    Ok(())
}

/// With bodies that are read as far as the limits let them.
fn amplifies(_: &Field, wire: Wire) -> io::Result<()> {
    let mut wire = wire.handshake("ROUTER", b"")?;
    for body in bodies() {
        let correlation = asked(&mut wire)?;
        wire.send(&message(&[b"", &reply(correlation, 0), &body]))?;
    }
    Ok(())
}

fn never_reads(field: &Field, wire: Wire) -> io::Result<()> {
    let mut wire = wire.handshake("ROUTER", b"")?;
    for _ in 0..10 {
        wire.send(&message(&[b"", &reply(7, 0), b""]))?;
        field.pause(Duration::from_millis(50));
    }
    Ok(())
}

fn storms(_: &Field, wire: Wire) -> io::Result<()> {
    let mut wire = wire.handshake("ROUTER", b"")?;
    let ping = command("PING", &[&[0, 1][..], &[7; 16]].concat());
    for _ in 0..50 {
        wire.send(&ping.repeat(20))?;
    }
    wire.reset();
    Ok(())
}

/// The number of the next call.
fn asked(wire: &mut Wire) -> io::Result<u64> {
    let request = wire.receive_message()?;
    let number = request.get(1).and_then(|header| header.get(48..56));
    let number = number.and_then(|number| number.try_into().ok());
    Ok(u64::from_le_bytes(number.unwrap_or_default()))
}

fn reply(correlation: u64, status: u16) -> Vec<u8> {
    let first = u64::from(status) << 16;
    capnp(&[struct_pointer(0, 3, 2), first, correlation, 0, 0, 0])
}
