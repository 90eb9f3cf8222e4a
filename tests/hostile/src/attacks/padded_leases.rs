//! A call that waits may keep its request meanwhile, and a request may be much larger than what it asks for.

use std::io;
use std::time::Duration;

use super::greed::{self, Request};
use crate::bodies::lease;
use crate::field::Field;
use crate::{LEASE, QUEUES};

/// Connections at a time, and calls of each.
const CONNECTIONS: usize = 3;
const CALLS: u64 = 400;
/// Of each, of nothing that anybody asked for.
const PADDING: usize = 1_000_000;

pub(super) fn sally(field: &Field) -> io::Result<()> {
    greed::strike(
        field,
        CONNECTIONS,
        CALLS,
        Duration::from_millis(25),
        |number| Request {
            interface: QUEUES,
            method: LEASE,
            body: lease(number, Duration::from_secs(30), PADDING),
        },
    )
}
