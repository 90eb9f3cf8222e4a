//! Topics: one publisher, any number of subscribers, no promise but honesty about what was lost.

use std::borrow::Cow;

use crate::message::Plain;
use crate::schema::Described;

/// A struct with `$topic`: what is published, and under which name.
pub trait Topic: Plain + Described {
    /// The topic's name.
    const NAME: &'static str;

    /// The value of the field with `$key`, the last part of the full topic.
    fn key(&self) -> Option<Cow<'_, str>>;
}
