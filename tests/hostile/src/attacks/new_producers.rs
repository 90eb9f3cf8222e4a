//! A queue knows its producers for days, to recognise a push that comes again. A peer may be a new one with each push.

use std::io;
use std::time::Duration;

use super::greed::{self, Request};
use crate::bodies::push_of;
use crate::field::Field;
use crate::{PUSH, QUEUES};

pub(super) fn sally(field: &Field) -> io::Result<()> {
    greed::strike(field, 1, 20_000, Duration::from_micros(500), |_| Request {
        interface: QUEUES,
        method: PUSH,
        body: push_of(u64::from(field.fresh())),
    })
}
