//! Rules as they are written in code.

use super::ANY;

/// Rules, each of which allows something.
///
/// A principal, service, method, topic prefix or queue may be `"*"`: all of them. A service has the name of
/// its `$service`, or else that of its interface in snake_case; a method that of the schema. Topics
/// are named as on the wire: `progress/` and what begins so.
///
/// ```
/// use bowline::security::{AccessList, AccessRules, QueueRight};
///
/// let rules = AccessRules::new()
///     .call("web", "login", "logIn")
///     .call("admin", "*", "*")
///     .subscribe("web", "progress/eu/")
///     .publish("clock", "tick/")
///     .queue("web", "mail", QueueRight::Push);
/// let list = AccessList::from(rules);
///
/// assert!(list.may_call("web", "login", "logIn"));
/// assert!(!list.may_call("web", "login", "remove"));
/// assert!(!list.may_subscribe("web", b"progress/"));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct AccessRules(pub(super) Vec<Rule>);

/// What a principal may do with a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum QueueRight {
    /// Put jobs in.
    Push,
    /// Take jobs out, and say what became of them.
    Work,
    /// Look at jobs, and remove, retry or hold them.
    Manage,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    Call(String, String, String),
    Publish(String, String),
    Subscribe(String, String),
    Queue(String, String, QueueRight),
}

impl AccessRules {
    /// None: everything is refused.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets a principal call a method of a service.
    pub fn call(mut self, principal: &str, service: &str, method: &str) -> Self {
        self.0
            .push(Rule::Call(principal.into(), service.into(), method.into()));
        self
    }

    /// Lets subscribers take events from a principal, under topics that begin with `prefix`.
    pub fn publish(mut self, principal: &str, prefix: &str) -> Self {
        self.0.push(Rule::Publish(principal.into(), prefix.into()));
        self
    }

    /// Lets a principal subscribe to topics that begin with `prefix`.
    pub fn subscribe(mut self, principal: &str, prefix: &str) -> Self {
        self.0
            .push(Rule::Subscribe(principal.into(), prefix.into()));
        self
    }

    /// Lets a principal use a queue in one way.
    pub fn queue(mut self, principal: &str, queue: &str, right: QueueRight) -> Self {
        self.0
            .push(Rule::Queue(principal.into(), queue.into(), right));
        self
    }

    /// Lets a principal do everything; with `"*"`, whoever has a key that is let in.
    pub fn everything(self, principal: &str) -> Self {
        self.call(principal, ANY, ANY)
            .publish(principal, ANY)
            .subscribe(principal, ANY)
            .queue(principal, ANY, QueueRight::Push)
            .queue(principal, ANY, QueueRight::Work)
            .queue(principal, ANY, QueueRight::Manage)
    }
}
