//! Outcomes of `$once` methods are kept for a day. One caller with a new request ID each time can fill the store for all.

use std::io;
use std::time::Duration;

use super::greed::{self, Request};
use crate::bodies::echo;
use crate::field::Field;
use crate::{INTERFACE, REMEMBER};

pub(super) fn sally(field: &Field) -> io::Result<()> {
    greed::strike(field, 2, 20_000, Duration::from_micros(500), |_| Request {
        interface: INTERFACE,
        method: REMEMBER,
        body: echo(b"kept"),
    })
}
