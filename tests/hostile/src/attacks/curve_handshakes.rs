//! A handshake with keys costs the server more than the peer that begins it: it computes with a key for
//! each HELLO, and remembers what it has said until the peer is done. Who has heard a HELLO can say it again
//! without a key of its own.

use std::io;
use std::sync::OnceLock;
use std::time::Duration;

use crate::curve::{hello, server_keys};
use crate::field::Field;
use crate::zmtp::{COMMAND, Wire, command, declared, frame, greeting_for, ready};

/// Connections that begin, and do not end.
const UNFINISHED: usize = 24;

pub(super) fn sally(field: &Field) -> io::Result<()> {
    let Some(locked) = field.locked else {
        return Ok(());
    };
    let hello = recorded()?;
    let mut open = Vec::new();
    for _ in 0..UNFINISHED {
        let mut wire = begin(field, locked)?;
        wire.send(&frame(COMMAND, hello))?;
        let (_, welcome) = wire.receive()?;
        field.struck(1);
        open.push((wire, welcome));
        field.pause(Duration::from_millis(10));
    }
    // Each goes on otherwise than it should; the others stay until they are cut off.
    let (_, another) = open[0].1.split_at(8);
    let another = another.to_vec();
    let wrong: [Vec<u8>; 10] = [
        frame(COMMAND, hello),
        command("INITIATE", &[]),
        command("INITIATE", &[7; 248]),
        command("INITIATE", &[&another[..], &[7; 152]].concat()),
        command("INITIATE", &[7; 900]),
        declared(COMMAND, 1 << 62),
        ready("DEALER", b""),
        command("MESSAGE", &[0; 64]),
        command("ERROR", &[255]),
        frame(0, b"no command"),
    ];
    for ((wire, _), wrong) in open.iter_mut().zip(&wrong) {
        // Some of them are cut off before.
        if wire.send(wrong).is_ok() {
            field.struck(1);
        }
    }
    for bad in bad_hellos(hello) {
        let mut wire = begin(field, locked)?;
        if wire.send(&bad).is_ok() {
            field.struck(1);
        }
        field.pause(Duration::from_millis(10));
    }
    for (mechanism, as_server) in [
        ("CURVE", true),
        ("NULL", false),
        ("PLAIN", false),
        ("", false),
    ] {
        let wire = Wire::connect(field.address(), locked)?;
        let greeting = greeting_for(mechanism, as_server);
        if let Ok(mut wire) = wire.greet_with(&greeting) {
            let said = wire.send(&ready("DEALER", b""));
            // With no keys nobody is welcome.
            if said.is_ok()
                && wire
                    .receive()
                    .is_ok_and(|(_, body)| body.starts_with(b"\x05READY"))
            {
                field.harmed();
            }
        }
    }
    while field.goes_on() && open.iter_mut().any(|(wire, _)| !wire.is_closed()) {
        field.pause(Duration::from_millis(200));
    }
    Ok(())
}

/// One for all times that it is said.
fn recorded() -> io::Result<&'static [u8]> {
    static HELLO: OnceLock<Vec<u8>> = OnceLock::new();
    if let Some(hello) = HELLO.get() {
        return Ok(hello);
    }
    let server = server_keys().map_err(io::Error::other)?.public();
    let hello = hello(server)?;
    Ok(HELLO.get_or_init(|| hello))
}

fn begin(field: &Field, locked: std::net::SocketAddr) -> io::Result<Wire> {
    Wire::connect(field.address(), locked)?.greet_with(&greeting_for("CURVE", false))
}

/// Too short, too long, of another version, with a signature that does not fit, and cut in the middle.
fn bad_hellos(hello: &[u8]) -> Vec<Vec<u8>> {
    let changed = |at: usize| {
        let mut hello = hello.to_vec();
        let at = at.min(hello.len() - 1);
        hello[at] ^= 0xff;
        frame(COMMAND, &hello)
    };
    vec![
        frame(COMMAND, &hello[..7]),
        frame(COMMAND, &hello[..hello.len() - 1]),
        frame(COMMAND, &[hello, &[0; 300]].concat()),
        frame(COMMAND, &[&hello[..6], &[0; 194]].concat()),
        changed(6),
        changed(90),
        changed(hello.len()),
        declared(COMMAND, hello.len() as u64),
        declared(COMMAND, 1 << 30),
        frame(0, hello),
    ]
}
