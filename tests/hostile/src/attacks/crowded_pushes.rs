//! Work on one message holds up all others where it is not bounded: 20,000 jobs of nothing fit into one push.

use std::io;
use std::time::Duration;

use super::greed::{self, Request};
use crate::bodies::{empty_jobs, push};
use crate::field::Field;
use crate::{PUSH, QUEUES};

const JOBS: usize = 20_000;

pub(super) fn sally(field: &Field) -> io::Result<()> {
    let body = push(JOBS as u32, &empty_jobs(JOBS));
    greed::strike(field, 1, 200, Duration::from_millis(25), |_| Request {
        interface: QUEUES,
        method: PUSH,
        body: body.clone(),
    })
}
