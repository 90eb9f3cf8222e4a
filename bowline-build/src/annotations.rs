//! What annotations say, checked. The IDs are those of schema/bowline.capnp.

use std::time::Duration;

use capnp::schema_capnp::{annotation, value};
use capnp::struct_list;

use crate::Error;

/// The file that declares them, and `Link(T)`.
pub(crate) const FILE: u64 = 0xb0f1_a3c5_d7e9_0200;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Annotation {
    Service = 0x01,
    Idempotent,
    Once,
    Timeout,
    Fails,
    Topic,
    Queue,
    Key,
    Secret,
    Rerun,
    Atomic,
    RustName,
}

/// `$Rust.name` of capnpc's own rust.capnp, which means the same as `$rustName`.
const NAME_OF_CAPNPC: u64 = 0xc2fe_4c6d_1001_66d0;

impl Annotation {
    pub const ALL: [Self; 12] = [
        Self::Service,
        Self::Idempotent,
        Self::Once,
        Self::Timeout,
        Self::Fails,
        Self::Topic,
        Self::Queue,
        Self::Key,
        Self::Secret,
        Self::Rerun,
        Self::Atomic,
        Self::RustName,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Idempotent => "idempotent",
            Self::Once => "once",
            Self::Timeout => "timeout",
            Self::Fails => "fails",
            Self::Topic => "topic",
            Self::Queue => "queue",
            Self::Key => "key",
            Self::Secret => "secret",
            Self::Rerun => "rerun",
            Self::Atomic => "atomic",
            Self::RustName => "rustName",
        }
    }
}

/// The annotations of one declaration.
pub(crate) struct Annotations<'a> {
    place: &'a str,
    list: struct_list::Reader<'a, annotation::Owned>,
}

impl<'a> Annotations<'a> {
    pub fn new(place: &'a str, list: struct_list::Reader<'a, annotation::Owned>) -> Self {
        Self { place, list }
    }

    pub fn has(&self, which: Annotation) -> bool {
        self.list.iter().any(|a| a.get_id() == FILE + which as u64)
    }

    pub fn text(&self, which: Annotation) -> Result<Option<&'a str>, Error> {
        for annotation in self.list.iter() {
            if annotation.get_id() == FILE + which as u64
                && let value::Text(text) = annotation.get_value()?.which()?
            {
                return Ok(Some(text?.to_str()?));
            }
        }
        Ok(None)
    }

    /// A declaration says each thing once.
    pub fn check_each_once(&self) -> Result<(), Error> {
        for which in Annotation::ALL {
            let of_this = |a: &annotation::Reader<'_>| a.get_id() == FILE + which as u64;
            if self.list.iter().filter(of_this).count() > 1 {
                return Err(self.error(which, None, "is there twice; remove one"));
            }
        }
        Ok(())
    }

    /// A name that is sent, matched by access rules and shown: letters and digits of ASCII, and a few marks between
    /// them, so that no two names look alike and none means something to a rule.
    pub fn name(&self, which: Annotation) -> Result<Option<&'a str>, Error> {
        match self.text(which)? {
            Some(name) if !is_name(name) => {
                let reason = "is not a name: use letters and digits of ASCII, and between them \
                              '-', '_', '.', ':' and '/'";
                Err(self.error(which, name, reason))
            }
            name => Ok(name),
        }
    }

    /// The name that Rust names are made of: that of the schema, or what `$rustName` says.
    pub fn rust_name(&self, schema_name: &str) -> Result<String, Error> {
        let of_capnpc = self.list.iter().find(|a| a.get_id() == NAME_OF_CAPNPC);
        let name = match (self.text(Annotation::RustName)?, of_capnpc) {
            (Some(name), _) => name,
            (None, Some(annotation)) => match annotation.get_value()?.which()? {
                value::Text(text) => text?.to_str()?,
                _ => schema_name,
            },
            (None, None) => return Ok(schema_name.to_owned()),
        };
        let is_word = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !is_word || !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
            let reason =
                "is no name in Rust: use letters, digits and underscores, and a letter first";
            return Err(self.error(Annotation::RustName, name, reason));
        }
        Ok(name.to_owned())
    }

    pub fn timeout(&self) -> Result<Option<Duration>, Error> {
        let which = Annotation::Timeout;
        self.text(which)?
            .map(|text| duration(text).map_err(|reason| self.error(which, text, reason)))
            .transpose()
    }

    pub fn error<'b>(
        &self,
        which: Annotation,
        argument: impl Into<Option<&'b str>>,
        reason: impl Into<String>,
    ) -> Error {
        Error::Annotation {
            place: self.place.to_owned(),
            annotation: which.name(),
            argument: argument.into().map(str::to_owned),
            reason: reason.into(),
        }
    }
}

fn is_name(name: &str) -> bool {
    let is_end = |c: char| c.is_ascii_alphanumeric();
    name.starts_with(is_end)
        && name.ends_with(is_end)
        && name.chars().all(|c| is_end(c) || "-_.:/".contains(c))
}

/// A number and a unit: "250ms", "1.5s".
fn duration(text: &str) -> Result<Duration, &'static str> {
    let text = text.trim();
    let unit_at = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .ok_or("has no unit: us, ms, s, min or h")?;
    let (number, unit) = text.split_at(unit_at);
    let number: f64 = number.parse().map_err(|_| "does not start with a number")?;
    let seconds = match unit.trim() {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "min" => 60.0,
        "h" => 3600.0,
        _ => return Err("has an unknown unit; known are us, ms, s, min and h"),
    };
    let duration =
        Duration::try_from_secs_f64(number * seconds).map_err(|_| "is longer than can be said")?;
    if duration.is_zero() {
        return Err("is no time at all");
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_ascii() {
        for name in ["login", "a", "v1.login", "progress/upload", "a-b_c:d", "9"] {
            assert!(is_name(name), "{name}");
        }
        for name in [
            "",
            "*",
            "a*",
            "a b",
            "-a",
            "a/",
            "a\u{200b}b",
            "pаypal",
            "a\nb",
        ] {
            assert!(!is_name(name), "{name:?}");
        }
    }

    #[test]
    fn durations_have_a_number_and_a_unit() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("1.5 s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("2min"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("10us"), Ok(Duration::from_micros(10)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3600)));
        for wrong in [
            "",
            "5",
            "s",
            "5 parsecs",
            "-1s",
            "0s",
            "1.2.3s",
            "1e30h",
            "ms5",
            "99999999999999999999h",
        ] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
