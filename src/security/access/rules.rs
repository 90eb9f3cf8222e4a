//! Rules as they are written in code.

use std::fmt;

use super::ANY;
use crate::security::Principal;

/// Rules, each of which allows something.
///
/// A principal, service, method, topic prefix or queue may be `"*"`: all of them. A service has the name of
/// its `$service`, or else that of its interface in snake_case; a method that of the schema. Topics
/// are named as on the wire: `progress/` and what begins so.
///
/// A rule with an empty name or prefix allows nothing, as does one for a principal whose name no principal may have; it is left
/// out and logged as an error.
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
pub(in crate::security) enum Rule {
    Call(String, String, String),
    Publish(String, String),
    Subscribe(String, String),
    Queue(String, String, QueueRight),
}

/// For a log.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call(principal, service, method) => {
                write!(f, "{principal} calls {service}.{method}")
            }
            Self::Publish(principal, prefix) => write!(f, "{principal} publishes {prefix:?}"),
            Self::Subscribe(principal, prefix) => write!(f, "{principal} subscribes to {prefix:?}"),
            Self::Queue(principal, queue, right) => {
                write!(f, "{principal} may {right:?} in queue {queue:?}")
            }
        }
    }
}

impl AccessRules {
    /// None: everything is refused.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets a principal call a method of a service.
    pub fn call(mut self, principal: &str, service: &str, method: &str) -> Self {
        let rule = Rule::Call(principal.into(), service.into(), method.into());
        self.push(principal, &[service, method], rule);
        self
    }

    /// Lets subscribers take events from a principal, under topics that begin with `prefix`.
    pub fn publish(mut self, principal: &str, prefix: &str) -> Self {
        let rule = Rule::Publish(principal.into(), prefix.into());
        self.push(principal, &[prefix], rule);
        self
    }

    /// Lets a principal subscribe to topics that begin with `prefix`.
    pub fn subscribe(mut self, principal: &str, prefix: &str) -> Self {
        let rule = Rule::Subscribe(principal.into(), prefix.into());
        self.push(principal, &[prefix], rule);
        self
    }

    /// Lets a principal use a queue in one way.
    pub fn queue(mut self, principal: &str, queue: &str, right: QueueRight) -> Self {
        let rule = Rule::Queue(principal.into(), queue.into(), right);
        self.push(principal, &[queue], rule);
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

    fn push(&mut self, principal: &str, names: &[&str], rule: Rule) {
        let is_principal = principal == ANY || Principal::named(principal).is_some();
        if is_principal && names.iter().all(|name| !name.is_empty()) {
            self.0.push(rule);
        } else {
            tracing::error!(
                principal,
                ?names,
                "access rule left out: an empty name, or one that no principal may have"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::AccessList;

    #[test]
    fn an_empty_name_or_prefix_allows_nothing() {
        let rules = AccessRules::new()
            .subscribe("web", "")
            .publish("web", "")
            .queue("web", "", QueueRight::Push)
            .call("", "lab", "big")
            .call("web", "", "big")
            .call("w\u{435}b", "lab", "big");
        assert_eq!(rules, AccessRules::new());
        let list = AccessList::from(rules);
        assert!(!list.may_subscribe("web", b"salary/"));
        assert!(!list.may_publish("web", b"salary/"));
        assert!(!list.may_call("", "lab", "big"));
    }
}
