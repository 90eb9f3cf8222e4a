//! Who may do what: the rules in force, and how they are asked. As they are written in code: [`rules`]; in a
//! file: [`file`](super::file); as they are looked up: [`tables`]; compared with what there is: [`known`].
//!
//! Rules only allow; what none allows is refused.

mod known;
mod rules;
mod tables;

use std::path::Path;
use std::sync::{Arc, Mutex};

use super::file::{self, Lists};
use super::live::{Live, Watched};
use known::Listeners;
pub(crate) use known::{Known, KnownService};
pub(super) use rules::Rule;
pub use rules::{AccessRules, QueueRight};
use tables::{Rights, Tables};

/// Stands for every principal, service, method, topic or queue.
pub(super) const ANY: &str = "*";

/// The rules in force. Cheap to clone; clones share them, and a change is in force at once, for
/// subscriptions that are open within a second.
#[derive(Clone, Debug)]
pub struct AccessList(Arc<Shared>);

#[derive(Debug)]
pub(super) struct Shared {
    pub rules: Live<InForce>,
    pub file: Option<Mutex<Watched>>,
    listeners: Mutex<Listeners>,
}

#[derive(Debug, Default)]
pub(super) struct InForce {
    tables: Tables,
    /// Each with its line in the file; 0 for those of code.
    rules: Vec<(usize, Rule)>,
    /// Code has put rules in force, so the file is not asked any more.
    is_by_code: bool,
}

/// Why a file is no list of rules.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no access rules: {0}")]
pub struct AccessError(String);

impl Default for AccessList {
    /// Refuses everything.
    fn default() -> Self {
        AccessRules::new().into()
    }
}

impl From<AccessRules> for AccessList {
    fn from(rules: AccessRules) -> Self {
        Self::new(InForce::by_code(&rules), None)
    }
}

impl InForce {
    fn new(rules: Vec<(usize, Rule)>) -> Self {
        Self {
            tables: Tables::compile(rules.iter().map(|(_, rule)| rule)),
            rules,
            is_by_code: false,
        }
    }

    fn by_code(rules: &AccessRules) -> Self {
        let rules = rules.0.iter().map(|rule| (0, rule.clone()));
        Self {
            is_by_code: true,
            ..Self::new(rules.collect())
        }
    }

    /// Rules of the file that is in force.
    pub fn of_file(&self) -> usize {
        match self.is_by_code {
            true => 0,
            false => self.rules.len(),
        }
    }

    pub fn is_by_code(&self) -> bool {
        self.is_by_code
    }

    /// Does nothing where code has put rules in force.
    pub fn set_file(&mut self, lists: &Lists) {
        if !self.is_by_code {
            *self = Self::new(lists.rules.clone());
        }
    }
}

impl AccessList {
    fn new(rules: InForce, file: Option<Watched>) -> Self {
        Self(Arc::new(Shared {
            rules: Live::new(rules),
            file: file.map(Mutex::new),
            listeners: Mutex::default(),
        }))
    }

    /// Reads a TOML file, which is read again when it changes:
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
    ///
    /// [expect]                             # may be left out
    /// keys = 0
    /// rules = 1                            # so many tables `rule` above
    /// ```
    ///
    /// A later version that cannot be read changes nothing, and is logged. Neither does one that allows less than half
    /// as many things, which is what a file has that is cut off, unless its table `expect` says that this is how many rules
    /// there are. A file that [`AllowedKeys`](super::AllowedKeys) were read from too is read once for both, and changes
    /// both or neither.
    ///
    /// Rules that name a service, method, queue or topic that a server or publisher with this list does not have are
    /// logged, each with its line, when that is bound and when the file changes.
    ///
    /// # Errors
    /// Returns an error, with the file and the line, if the file cannot be read or has anything else in it, besides a table
    /// `keys` for [`AllowedKeys::read`](crate::security::AllowedKeys::read).
    pub fn read(path: impl AsRef<Path>) -> Result<Self, AccessError> {
        let (file, text) = Watched::open(path.as_ref()).map_err(AccessError)?;
        let lists = file::parse(&text).map_err(|error| AccessError(file.of_it(&error)))?;
        Ok(Self::new(InForce::new(lists.rules), Some(file)))
    }

    /// Puts other rules in force. Later versions of the file that the list was read from change nothing any more.
    pub fn replace(&self, rules: &AccessRules) {
        *self.0.rules.write() = InForce::by_code(rules);
        self.0.rules.changed();
        self.tell_listeners();
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
        self.0.rules.generation()
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.0
    }

    fn any(&self, principal: &str, allows: impl Fn(&Rights) -> bool) -> bool {
        self.0.rules.read().tables.any_of(principal, allows)
    }
}

impl PartialEq for AccessList {
    /// Whether they are the same list, not only alike.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for AccessList {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::rules::Rule;
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
    fn other_rules_are_in_force_at_once() {
        let list = AccessList::default();
        let clone = list.clone();
        list.replace(&AccessRules::new().everything("web"));
        assert!(clone.may_call("web", "login", "logIn"));
        assert!(clone.may_publish("web", b"tick/"));
        assert!(!clone.may_call("other", "login", "logIn"));
    }

    #[test]
    fn a_file_says_the_same_as_code() {
        let lists = file::parse(
            "[keys]\n[[rule]]\nprincipals = ['web', 'mobile']\ncalls = ['login.logIn', 'search.*']\n\
             subscribe = 'progress/eu/'\npush = ['mail']\n\
             [[rule]]\nprincipals = '*'\ncalls = 'health.check'\n",
        );
        let list = AccessList::new(InForce::new(lists.unwrap().rules), None);
        assert!(list.may_call("mobile", "login", "logIn"));
        assert!(!list.may_call("mobile", "login", "logOut"));
        assert!(list.may_call("web", "search", "anything"));
        assert!(list.may_call("stranger", "health", "check"));
        assert!(list.may_subscribe("web", b"progress/eu/1"));
        assert!(!list.may_subscribe("web", b"progress/"));
        assert!(list.may_use_queue("web", "mail", QueueRight::Push));
        assert!(!list.may_use_queue("web", "mail", QueueRight::Work));
    }
}
