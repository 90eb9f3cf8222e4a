//! Rules compared with what a server or a publisher has: a rule that names nothing there is most often one for a
//! method that was renamed, or for a name that was mistyped.

use std::path::Path;
use std::sync::{Arc, Weak};

use super::{ANY, AccessList, InForce, Rule};

/// Rules that are named in the log at once.
const TOLD_MAX: usize = 64;

/// What a server or a publisher has.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Where, for the log.
    pub endpoint: String,
    /// `None` for who has no services, as a publisher.
    pub services: Option<Vec<KnownService>>,
    /// `None` for who has no queues.
    pub queues: Option<Vec<String>>,
    /// `None` for who has no topics.
    pub topics: Option<Vec<String>>,
}

#[derive(Debug)]
pub(crate) struct KnownService {
    pub name: &'static str,
    pub methods: Vec<&'static str>,
}

pub(super) type Listeners = Vec<Weak<Known>>;

impl Known {
    /// Whether a rule is about something that there is; also where it is about what this has none of at all.
    fn has(&self, rule: &Rule) -> bool {
        let is = |rule: &str, name: &str| rule == ANY || rule == name;
        match rule {
            Rule::Call(_, service, method) => self.services.as_ref().is_none_or(|known| {
                let mut named = known.iter().filter(|known| is(service, known.name));
                named.any(|known| known.methods.iter().any(|name| is(method, name)))
            }),
            Rule::Queue(_, queue, _) => {
                let known = self.queues.as_ref();
                known.is_none_or(|known| known.iter().any(|name| is(queue, name)))
            }
            Rule::Subscribe(_, prefix) => self.topics.as_ref().is_none_or(|known| {
                let meets = |topic: &String| {
                    let topic = format!("{topic}/");
                    topic.starts_with(prefix) || prefix.starts_with(&topic)
                };
                prefix == ANY || known.iter().any(meets)
            }),
            Rule::Publish(..) => true,
        }
    }

    /// The rules that name nothing here, each with its line.
    fn unknown<'a>(&self, rules: &'a [(usize, Rule)]) -> Vec<&'a (usize, Rule)> {
        let mut unknown: Vec<_> = rules.iter().filter(|(_, rule)| !self.has(rule)).collect();
        unknown.dedup();
        unknown
    }

    fn tell(&self, in_force: &InForce, file: Option<&Path>) {
        let unknown = self.unknown(&in_force.rules);
        for (line, rule) in unknown.iter().take(TOLD_MAX) {
            let file = file.map(|file| format!("{}:{line}", file.display()));
            let file = file.as_deref().unwrap_or("code");
            tracing::warn!(endpoint = %self.endpoint, file, %rule, "access rule names nothing that this endpoint has");
        }
        if unknown.len() > TOLD_MAX {
            let more = unknown.len() - TOLD_MAX;
            tracing::warn!(endpoint = %self.endpoint, more, "more access rules name nothing that this endpoint has");
        }
    }
}

impl AccessList {
    /// Logs which rules name nothing of what is known, now and whenever other rules are put in force, for as long as
    /// `known` is kept.
    pub(crate) fn compare_with(&self, known: &Arc<Known>) {
        let mut listeners = self.listeners();
        listeners.retain(|known| known.strong_count() > 0);
        listeners.push(Arc::downgrade(known));
        drop(listeners);
        self.tell(known);
    }

    /// Tells all again, of other rules.
    pub(in crate::security) fn tell_listeners(&self) {
        let listeners: Vec<_> = self.listeners().iter().filter_map(Weak::upgrade).collect();
        listeners.iter().for_each(|known| self.tell(known));
    }

    fn tell(&self, known: &Known) {
        let shared = self.shared();
        let file = shared.file.as_ref().map(|file| {
            let file = file
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            file.path().to_owned()
        });
        let in_force = shared.rules.read();
        known.tell(
            &in_force,
            file.as_deref().filter(|_| !in_force.is_by_code()),
        );
    }

    fn listeners(&self) -> std::sync::MutexGuard<'_, Listeners> {
        let listeners = self.shared().listeners.lock();
        listeners.unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::{AccessRules, QueueRight};

    #[test]
    fn rules_that_name_nothing_are_found() {
        let known = Known {
            endpoint: String::new(),
            services: Some(vec![KnownService {
                name: "login",
                methods: vec!["logIn"],
            }]),
            queues: Some(vec!["mail".to_owned()]),
            topics: Some(vec!["tick".to_owned()]),
        };
        let right = AccessRules::new()
            .everything("web")
            .call("web", "login", "logIn")
            .call("web", "*", "logIn")
            .call("web", "login", "*")
            .queue("web", "mail", QueueRight::Push)
            .subscribe("web", "ti")
            .subscribe("web", "tick/eu/");
        assert!(known.unknown(&InForce::by_code(&right).rules).is_empty());
        let wrong = AccessRules::new()
            .call("web", "login", "signIn")
            .call("web", "search", "find")
            .call("web", "search", "*")
            .queue("web", "post", QueueRight::Work)
            .subscribe("web", "tock/");
        assert_eq!(known.unknown(&InForce::by_code(&wrong).rules).len(), 5);
        assert!(
            Known::default()
                .unknown(&InForce::by_code(&wrong).rules)
                .is_empty()
        );
    }
}
