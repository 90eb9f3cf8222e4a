//! A worker's `lease` waits for jobs. Who counts it as a call that works has no places left once there are as many
//! workers as places, and one peer can be all of them.

use std::io;
use std::time::Duration;

use super::greed::{self, Request};
use crate::bodies::lease;
use crate::field::Field;
use crate::{LEASE, QUEUES};

/// Connections at a time, and calls of each.
const CONNECTIONS: usize = 4;
const CALLS: u64 = 600;

pub(super) fn sally(field: &Field) -> io::Result<()> {
    greed::strike(
        field,
        CONNECTIONS,
        CALLS,
        Duration::from_millis(2),
        |number| Request {
            interface: QUEUES,
            method: LEASE,
            body: lease(number, Duration::from_secs(30), 0),
        },
    )
}
