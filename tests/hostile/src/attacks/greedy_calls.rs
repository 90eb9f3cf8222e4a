//! A caller may have many calls in flight, with much in each. What all peers have together is gone when one has it all.

use std::io;
use std::time::Duration;

use super::greed::{self, Request};
use crate::bodies::echo;
use crate::field::Field;
use crate::{ECHO, INTERFACE};

/// Of each request.
const BYTES: usize = 200_000;

pub(super) fn sally(field: &Field) -> io::Result<()> {
    let body = echo(&vec![7; BYTES]);
    greed::strike(field, 8, 200, Duration::from_millis(10), |_| Request {
        interface: INTERFACE,
        method: ECHO,
        body: body.clone(),
    })
}
