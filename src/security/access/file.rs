//! Rules as they are written in a TOML file.

use serde::Deserialize;

use super::ANY;
use super::rules::{AccessRules, QueueRight};
use super::tables::Tables;
use crate::security::from_toml;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    rule: Vec<WrittenRule>,
    /// See [`AllowedKeys`](crate::security::AllowedKeys), whose they are.
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

pub(super) fn parse(text: &str) -> Result<Tables, String> {
    let written: Written = from_toml(text)?;
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
pub(in crate::security) fn parse_any(text: &str) {
    let _ = parse(text);
}

#[cfg(test)]
mod tests {
    use super::super::{AccessList, Live};
    use super::*;
    use std::sync::Arc;

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
}
