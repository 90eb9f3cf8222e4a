//! Ordinary subscribers come and go. A publisher that waits for one of them under a lock which another
//! needs stands still for good. Each also asks to be confirmed, which is answered with all topics.

use std::io;
use std::time::Duration;

use crate::field::Field;
use crate::zmtp::{Wire, frame};

const CLIENTS: usize = 4;
const TOPICS: usize = 50;

pub(super) fn sally(field: &Field) -> io::Result<()> {
    let Some(topics) = field.topics else {
        return Ok(());
    };
    let subscription = |first: u8, topic: &str| frame(0, &[&[first], topic.as_bytes()].concat());
    let mut clients = Vec::new();
    for client in 0..CLIENTS {
        let mut wire = Wire::connect(field.address(), topics)?.handshake("SUB", b"")?;
        let mut bytes = Vec::new();
        for topic in 0..TOPICS {
            bytes.extend(subscription(1, &format!("tick/{client}/{topic}")));
            if topic % 2 == 0 {
                bytes.extend(subscription(0, &format!("tick/{client}/{topic}")));
            }
        }
        bytes.extend(subscription(1, &format!("\0bowline/{client:032x}tick/")));
        wire.send(&bytes)?;
        field.struck(1);
        clients.push(wire);
    }
    field.pause(Duration::from_millis(10));
    for (i, wire) in clients.into_iter().enumerate() {
        if i % 2 == 0 {
            wire.reset();
        }
    }
    Ok(())
}
