//! Who may do what: rules as they are written, and as they are asked.
//!
//! Rules only allow; what none allows is refused. They are compiled into tables, so that asking
//! costs a few hashes, however many rules there are.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use super::live::Live;
use super::{Principal, Refreshed};

/// Stands for every principal, service, method, topic or queue.
const ANY: &str = "*";

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
pub struct AccessRules(Vec<Rule>);

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
enum Rule {
    Call(String, String, String),
    Publish(String, String),
    Subscribe(String, String),
    Queue(String, String, QueueRight),
}

/// The rules in force. Cheap to clone; clones share them, and a change is in force at once, for
/// subscriptions that are open within a second.
#[derive(Clone, Debug)]
pub struct AccessList(Arc<Live<Tables>>);

/// Why a file is no list of rules.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no list of rules: {0}")]
pub struct AccessError(String);

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

impl Default for AccessList {
    /// Refuses everything.
    fn default() -> Self {
        AccessRules::new().into()
    }
}

impl From<AccessRules> for AccessList {
    fn from(rules: AccessRules) -> Self {
        Self(Arc::new(Live::new(Tables::compile(&rules))))
    }
}

impl AccessList {
    /// From a TOML file, which is read again when it changes:
    ///
    /// ```toml
    /// [[rule]]
    /// principals = ["web", "mobile"]       # or one, or "*"
    /// calls = ["login.logIn", "search.*"]  # or "*"
    /// subscribe = ["progress/eu/"]
    /// publish = ["tick/"]
    /// push = ["mail"]
    /// work = []
    /// manage = []
    /// ```
    ///
    /// A later version that cannot be read changes nothing, and is logged.
    ///
    /// # Errors
    /// For a file that cannot be read or has anything else in it, besides a table `keys` for
    /// [`AllowedKeys::read`](super::AllowedKeys::read).
    pub fn read(path: impl AsRef<Path>) -> Result<Self, AccessError> {
        let live = Live::read(path.as_ref(), parse).map_err(AccessError)?;
        Ok(Self(Arc::new(live)))
    }

    /// Puts other rules in force.
    pub fn replace(&self, rules: &AccessRules) {
        self.0.set(Tables::compile(rules));
    }

    /// Whether a principal may call a method.
    pub fn may_call(&self, principal: &str, service: &str, method: &str) -> bool {
        self.any(principal, |rights| rights.calls.allows(service, method))
    }

    /// Whether events of a principal may be taken under a topic.
    pub fn may_publish(&self, principal: &str, topic: &[u8]) -> bool {
        self.any(principal, |rights| rights.publish.covers(topic))
    }

    /// Whether a principal may have all topics that begin with `prefix`.
    pub fn may_subscribe(&self, principal: &str, prefix: &[u8]) -> bool {
        self.any(principal, |rights| rights.subscribe.covers(prefix))
    }

    /// Whether a principal may use a queue in this way.
    pub fn may_use_queue(&self, principal: &str, queue: &str, right: QueueRight) -> bool {
        self.any(principal, |rights| rights.queues.allows(queue, right))
    }

    pub(crate) fn generation(&self) -> u64 {
        self.0.generation()
    }

    pub(crate) fn refresh(&self) -> Refreshed {
        self.0.refresh(parse)
    }

    fn any(&self, principal: &str, allows: impl Fn(&Rights) -> bool) -> bool {
        self.0.with(|tables| {
            tables.of.get(principal).is_some_and(&allows) || allows(&tables.of_anybody)
        })
    }
}

impl PartialEq for AccessList {
    /// Whether they are the same list, not only alike.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for AccessList {}

#[derive(Debug, Default)]
struct Tables {
    of: HashMap<Principal, Rights>,
    of_anybody: Rights,
}

#[derive(Debug, Default)]
struct Rights {
    calls: Calls,
    publish: Prefixes,
    subscribe: Prefixes,
    queues: Queues,
}

#[derive(Debug, Default)]
struct Calls {
    of: HashMap<String, Methods>,
    of_any_service: Methods,
}

#[derive(Debug, Default)]
struct Methods {
    any: bool,
    named: HashSet<String>,
}

#[derive(Debug, Default)]
struct Queues {
    of: HashMap<String, [bool; 3]>,
    of_any: [bool; 3],
}

/// Sorted, and none begins with another: so only the last one not after a topic can cover it.
#[derive(Debug, Default)]
struct Prefixes(Vec<Vec<u8>>);

impl Tables {
    fn compile(rules: &AccessRules) -> Self {
        let mut tables = Self::default();
        for rule in &rules.0 {
            match rule {
                Rule::Call(principal, service, method) => {
                    tables.rights(principal).calls.add(service, method);
                }
                Rule::Publish(principal, prefix) => tables.rights(principal).publish.add(prefix),
                Rule::Subscribe(principal, prefix) => {
                    tables.rights(principal).subscribe.add(prefix);
                }
                Rule::Queue(principal, queue, right) => {
                    tables.rights(principal).queues.add(queue, *right);
                }
            }
        }
        tables
    }

    fn rights(&mut self, principal: &str) -> &mut Rights {
        match principal {
            ANY => &mut self.of_anybody,
            _ => self.of.entry(Principal::new(principal)).or_default(),
        }
    }
}

impl Calls {
    fn add(&mut self, service: &str, method: &str) {
        let methods = match service {
            ANY => &mut self.of_any_service,
            _ => self.of.entry(service.to_owned()).or_default(),
        };
        match method {
            ANY => methods.any = true,
            _ => {
                methods.named.insert(method.to_owned());
            }
        }
    }

    fn allows(&self, service: &str, method: &str) -> bool {
        self.of_any_service.allows(method) || self.of.get(service).is_some_and(|m| m.allows(method))
    }
}

impl Methods {
    fn allows(&self, method: &str) -> bool {
        self.any || self.named.contains(method)
    }
}

impl Queues {
    fn add(&mut self, queue: &str, right: QueueRight) {
        let rights = match queue {
            ANY => &mut self.of_any,
            _ => self.of.entry(queue.to_owned()).or_default(),
        };
        rights[right as usize] = true;
    }

    fn allows(&self, queue: &str, right: QueueRight) -> bool {
        self.of_any[right as usize] || self.of.get(queue).is_some_and(|of| of[right as usize])
    }
}

impl Prefixes {
    fn add(&mut self, prefix: &str) {
        let prefix = match prefix {
            ANY => &[],
            _ => prefix.as_bytes(),
        };
        if !self.covers(prefix) {
            self.0.retain(|other| !other.starts_with(prefix));
            let at = self.0.partition_point(|other| other.as_slice() < prefix);
            self.0.insert(at, prefix.to_vec());
        }
    }

    fn covers(&self, topic: &[u8]) -> bool {
        let after = self.0.partition_point(|prefix| prefix.as_slice() <= topic);
        after > 0 && topic.starts_with(&self.0[after - 1])
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    rule: Vec<WrittenRule>,
    /// See [`AllowedKeys`](super::AllowedKeys), whose they are.
    #[serde(default, rename = "keys")]
    _keys: toml::Table,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenRule {
    principals: OneOrMore,
    #[serde(default)]
    calls: OneOrMore,
    #[serde(default)]
    publish: OneOrMore,
    #[serde(default)]
    subscribe: OneOrMore,
    #[serde(default)]
    push: OneOrMore,
    #[serde(default)]
    work: OneOrMore,
    #[serde(default)]
    manage: OneOrMore,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl Default for OneOrMore {
    fn default() -> Self {
        Self::More(Vec::new())
    }
}

impl OneOrMore {
    fn each(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::More(more) => more,
        }
    }
}

fn parse(text: &str) -> Result<Tables, String> {
    let written: Written = toml::from_str(text).map_err(|error| error.to_string())?;
    let mut rules = AccessRules::new();
    for rule in &written.rule {
        for principal in rule.principals.each() {
            rules = rule.add(rules, principal)?;
        }
    }
    Ok(Tables::compile(&rules))
}

impl WrittenRule {
    fn add(&self, mut rules: AccessRules, principal: &str) -> Result<AccessRules, String> {
        if principal.is_empty() {
            return Err("a principal without a name".to_owned());
        }
        for call in self.calls.each() {
            let (service, method) = match call.as_str() {
                ANY => (ANY, ANY),
                call => call
                    .rsplit_once('.')
                    .filter(|(service, method)| !service.is_empty() && !method.is_empty())
                    .ok_or_else(|| format!("`{call}`: expected `service.method` or `*`"))?,
            };
            rules = rules.call(principal, service, method);
        }
        let all = [
            &self.publish,
            &self.subscribe,
            &self.push,
            &self.work,
            &self.manage,
        ];
        if all.iter().any(|of| of.each().iter().any(String::is_empty)) {
            return Err("an empty topic or queue; `*` stands for all of them".to_owned());
        }
        for prefix in self.publish.each() {
            rules = rules.publish(principal, prefix);
        }
        for prefix in self.subscribe.each() {
            rules = rules.subscribe(principal, prefix);
        }
        for (queues, right) in [
            (&self.push, QueueRight::Push),
            (&self.work, QueueRight::Work),
            (&self.manage, QueueRight::Manage),
        ] {
            for queue in queues.each() {
                rules = rules.queue(principal, queue, right);
            }
        }
        Ok(rules)
    }
}

/// For fuzzing: any text as a list of rules.
#[cfg(fuzzing)]
pub(crate) fn parse_any(text: &str) {
    let _ = parse(text);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Rule {
        /// What a rule means, one by one and slowly.
        fn allows(&self, asked: &Self) -> bool {
            let is = |rule: &str, asked: &str| rule == ANY || rule == asked;
            let begins = |rule: &str, asked: &str| rule == ANY || asked.starts_with(rule);
            match (self, asked) {
                (Self::Call(p, s, m), Self::Call(q, t, n)) => is(p, q) && is(s, t) && is(m, n),
                (Self::Publish(p, a), Self::Publish(q, b))
                | (Self::Subscribe(p, a), Self::Subscribe(q, b)) => is(p, q) && begins(a, b),
                (Self::Queue(p, a, r), Self::Queue(q, b, s)) => is(p, q) && is(a, b) && r == s,
                _ => false,
            }
        }
    }

    fn rules(star: &'static str) -> impl Strategy<Value = Rule> {
        let name = move || prop_oneof![Just("a"), Just("b"), Just(star)].prop_map(str::to_owned);
        let topic = move || {
            prop_oneof![
                4 => proptest::string::string_regex("[ab/]{1,4}").unwrap(),
                1 => Just(if star == ANY { ANY.to_owned() } else { "a/b/a/b".to_owned() }),
            ]
        };
        let right = prop_oneof![
            Just(QueueRight::Push),
            Just(QueueRight::Work),
            Just(QueueRight::Manage)
        ];
        prop_oneof![
            (name(), name(), name()).prop_map(|(p, s, m)| Rule::Call(p, s, m)),
            (name(), topic()).prop_map(|(p, t)| Rule::Publish(p, t)),
            (name(), topic()).prop_map(|(p, t)| Rule::Subscribe(p, t)),
            (name(), name(), right).prop_map(|(p, q, r)| Rule::Queue(p, q, r)),
        ]
    }

    proptest! {
        #[test]
        fn the_tables_say_what_the_rules_say(
            written in proptest::collection::vec(rules("*"), 0..12),
            asked in rules("c"),
        ) {
            let list = AccessList::from(AccessRules(written.clone()));
            let answer = match &asked {
                Rule::Call(p, s, m) => list.may_call(p, s, m),
                Rule::Publish(p, t) => list.may_publish(p, t.as_bytes()),
                Rule::Subscribe(p, t) => list.may_subscribe(p, t.as_bytes()),
                Rule::Queue(p, q, r) => list.may_use_queue(p, q, *r),
            };
            prop_assert_eq!(answer, written.iter().any(|rule| rule.allows(&asked)));
        }
    }

    #[test]
    fn nothing_is_allowed_by_default() {
        let list = AccessList::default();
        assert!(!list.may_call("web", "login", "logIn"));
        assert!(!list.may_subscribe("web", b"tick/"));
    }

    #[test]
    fn a_file_says_the_same_as_code() {
        let list = AccessList(Arc::new(Live::new(
            parse(
                "[keys]\nweb = 'ignored here'\n\
                 [[rule]]\nprincipals = ['web', 'mobile']\ncalls = ['login.logIn', 'search.*']\n\
                 subscribe = 'progress/eu/'\npush = ['mail']\n\
                 [[rule]]\nprincipals = '*'\ncalls = 'health.check'\n",
            )
            .unwrap(),
        )));
        assert!(list.may_call("mobile", "login", "logIn"));
        assert!(!list.may_call("mobile", "login", "logOut"));
        assert!(list.may_call("web", "search", "anything"));
        assert!(list.may_call("stranger", "health", "check"));
        assert!(list.may_subscribe("web", b"progress/eu/1"));
        assert!(!list.may_subscribe("web", b"progress/"));
        assert!(list.may_use_queue("web", "mail", QueueRight::Push));
        assert!(!list.may_use_queue("web", "mail", QueueRight::Work));
    }

    #[test]
    fn a_file_with_a_slip_is_refused_whole() {
        for text in [
            "[[rule]]\ncalls = ['a.b']",
            "[[rule]]\nprincipals = 'a'\ncall = ['a.b']",
            "[[rule]]\nprincipals = 'a'\ncalls = ['ab']",
            "[[rule]]\nprincipals = 'a'\ncalls = ['.b']",
            "[[rule]]\nprincipals = 'a'\nsubscribe = ''",
            "[[rule]]\nprincipals = ''\nsubscribe = 'a'",
            "[[rules]]\nprincipals = 'a'",
            "rule = 3",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn other_rules_are_in_force_at_once() {
        let list = AccessList::default();
        let clone = list.clone();
        list.replace(&AccessRules::new().everything("web"));
        assert!(clone.may_call("web", "login", "logIn"));
        assert!(clone.may_publish("web", b"tick/"));
        assert!(!clone.may_call("other", "login", "logIn"));
    }
}
