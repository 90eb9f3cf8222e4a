//! What a schema says about its services and structs, as static data for generated code to hold.
//!
//! Nothing here acts; other modules read it.

use std::time::Duration;

/// A service: an interface of a schema.
#[derive(Debug, PartialEq, Eq)]
pub struct ServiceInfo {
    /// `$service`, or the interface's name in snake_case.
    pub name: &'static str,
    /// Its type ID.
    pub interface: u64,
    /// Its methods, with those of the interfaces that it extends.
    pub methods: &'static [MethodInfo],
}

/// A method of a service.
#[derive(Debug, PartialEq, Eq)]
pub struct MethodInfo {
    /// The service that it was described for.
    pub service: &'static str,
    /// Its name in the schema.
    pub name: &'static str,
    /// Type ID of the interface that declares it.
    pub interface: u64,
    /// Its ordinal there.
    pub ordinal: u16,
    /// What it means to call it twice.
    pub effect: Effect,
    /// `$timeout`.
    pub timeout: Option<Duration>,
    /// Type ID of its parameters.
    pub params: u64,
    /// Type ID of its results.
    pub results: u64,
    /// Type ID of the struct that `$fails` names.
    pub fails: Option<u64>,
}

/// What it means to send a request twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// `$once`: the service keeps the outcome, and answers a duplicate from it.
    Once(Recovery),
    /// `$idempotent`: the second time changes nothing.
    Idempotent,
    /// Neither: it may act twice, so it is never sent again once it may have arrived.
    Unsafe,
}

impl Effect {
    /// Whether a request may be sent again although it may have arrived.
    pub fn may_be_resent(self) -> bool {
        self != Self::Unsafe
    }
}

/// What a retry gets where a `$once` method was begun and its outcome was never recorded, because
/// the process died in between or its handler said that it does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recovery {
    /// Nobody can know what was done: [`Reason::InDoubt`](crate::Reason::InDoubt), until someone
    /// [resolves](crate::once::Once::resolve) it.
    #[default]
    InDoubt,
    /// `$rerun`: it is run again.
    Rerun,
    /// `$atomic`: it is run again, and is known not to have been done, since its work commits
    /// together with its outcome.
    Atomic,
}

/// A struct of a schema.
#[derive(Debug, PartialEq, Eq)]
pub struct StructInfo {
    /// Its name in the schema.
    pub name: &'static str,
    /// Its type ID.
    pub id: u64,
    /// `$topic`.
    pub topic: Option<&'static str>,
    /// `$queue`.
    pub queue: Option<&'static str>,
    /// The name of the field with `$key`.
    pub key: Option<&'static str>,
    /// The names of the fields with `$secret`; of one in a group, `group.field`.
    pub secrets: &'static [&'static str],
}

/// A struct that knows its description.
pub trait Described {
    /// Its description.
    const INFO: &'static StructInfo;
}
