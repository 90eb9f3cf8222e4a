//! The file of keys and access rules: one grammar, read whole, whichever of the two is wanted from it. So a slip in
//! one half never puts the other half in force by itself.
//!
//! Nothing that a file holds is in an error, but names that a principal may have: a file of secrets may
//! have been given for a list.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};
use toml::Spanned;

use super::access::{ANY, QueueRight, Rule};
use super::{Principal, PublicKey};

/// What a file says.
#[derive(Debug)]
pub(super) struct Lists {
    pub keys: Vec<(PublicKey, Principal)>,
    /// Each with its line.
    pub rules: Vec<(usize, Rule)>,
    /// The file says how much it has, and has so much: it is whole, however short.
    is_expected: bool,
}

impl Lists {
    /// Whether `after` may take the place of `before` keys or rules. A file that is being written may be cut anywhere,
    /// also where it can still be read.
    pub fn may_replace(&self, before: usize, after: usize, what: &str) -> Result<(), String> {
        if self.is_expected || after * 2 >= before {
            return Ok(());
        }
        Err(format!(
            "it has {after} {what} where {before} are in force, as a file has that is cut off; if it is meant, say how \
             many it has: a table `[expect]` with `keys` and `rules`"
        ))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    keys: BTreeMap<String, Spanned<OneOrMore>>,
    #[serde(default)]
    rule: Vec<Spanned<WrittenRule>>,
    expect: Option<Spanned<Expect>>,
}

/// How many names under `keys` have a key, and how many tables `rule` there are.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expect {
    keys: usize,
    rules: usize,
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

/// A text, or a list of texts.
#[derive(Default)]
struct OneOrMore(Vec<String>);

impl<'de> Deserialize<'de> for OneOrMore {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Texts;

        impl<'de> Visitor<'de> for Texts {
            type Value = OneOrMore;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list of texts")
            }

            fn visit_str<E>(self, text: &str) -> Result<OneOrMore, E> {
                Ok(OneOrMore(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<OneOrMore, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = list.next_element()? {
                    texts.push(text);
                }
                Ok(OneOrMore(texts))
            }
        }

        deserializer.deserialize_any(Texts)
    }
}

/// Reads a whole file; an error says the line.
pub(super) fn parse(text: &str) -> Result<Lists, String> {
    let at = |start: usize, problem: &dyn fmt::Display| {
        let before = text.get(..start).unwrap_or_default();
        format!("line {}: {problem}", before.matches('\n').count() + 1)
    };
    let written: Written = toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        at(start, &kind_of(error.message()))
    })?;
    let mut keys: Vec<(PublicKey, Principal)> = Vec::new();
    for (name, texts) in &written.keys {
        let problem = |problem: &dyn fmt::Display| at(texts.span().start, problem);
        let principal = Principal::named(name)
            .ok_or_else(|| problem(&format_args!("no name of a principal: {NAME_RULE}")))?;
        for text in &texts.as_ref().0 {
            let key = text.parse::<PublicKey>().map_err(|_| {
                problem(&format_args!(
                    "principal `{principal}`: no key: expected forty characters of Z85"
                ))
            })?;
            if let Some((_, other)) = keys.iter().find(|(of, _)| *of == key) {
                if *other != principal {
                    let both =
                        format_args!("principal `{principal}`: its key is that of `{other}` too");
                    return Err(problem(&both));
                }
                continue;
            }
            keys.push((key, principal.clone()));
        }
    }
    let mut rules = Vec::new();
    for rule in &written.rule {
        let start = rule.span().start;
        let line = text.get(..start).unwrap_or_default().matches('\n').count() + 1;
        let of = rule
            .as_ref()
            .each()
            .map_err(|problem| at(start, &problem))?;
        rules.extend(of.into_iter().map(|rule| (line, rule)));
    }
    if let Some(expect) = &written.expect {
        let Expect { keys, rules } = expect.as_ref();
        let (has_keys, has_rules) = (written.keys.len(), written.rule.len());
        if (*keys, *rules) != (has_keys, has_rules) {
            let differs = format_args!(
                "expected {keys} names with keys and {rules} rules, and there are {has_keys} and {has_rules}"
            );
            return Err(at(expect.span().start, &differs));
        }
    }
    Ok(Lists {
        keys,
        rules,
        is_expected: written.expect.is_some(),
    })
}

/// What a principal may be called.
pub(super) const NAME_RULE: &str = "1 to 255 letters, digits and signs of ASCII, without spaces, quotes, `\\` and `*`, \
                                    and not the text of a key";

/// Which kind of error it is, without what the parser quotes from the file.
fn kind_of(message: &str) -> &'static str {
    const KINDS: [(&str, &str); 5] = [
        (
            "unknown field",
            "a word that is not known here; there are `keys`, `rule`, `expect`, and in a rule `principals`, \
          `calls`, `publish`, `subscribe`, `push`, `work`, `manage`",
        ),
        ("missing field `principals`", "a rule without `principals`"),
        ("missing field", "`expect` has both `keys` and `rules`"),
        (
            "invalid type",
            "a value of a wrong type: texts or lists of texts are expected, and numbers in `expect`",
        ),
        ("duplicate", "a word that is there twice"),
    ];
    let known = KINDS.iter().find(|(begin, _)| message.starts_with(begin));
    known.map_or("not TOML", |(_, kind)| kind)
}

impl WrittenRule {
    /// What it allows, one by one.
    fn each(&self) -> Result<Vec<Rule>, String> {
        let mut rules = Vec::new();
        for principal in &self.principals.0 {
            self.add(principal, &mut rules)?;
        }
        match rules.is_empty() {
            true => Err("a rule that allows nothing".to_owned()),
            false => Ok(rules),
        }
    }

    fn add(&self, principal: &str, rules: &mut Vec<Rule>) -> Result<(), String> {
        if principal != ANY && Principal::named(principal).is_none() {
            return Err(format!("no name of a principal: {NAME_RULE}"));
        }
        let name = || principal.to_owned();
        for call in &self.calls.0 {
            let (service, method) = match call.as_str() {
                ANY => (ANY, ANY),
                call => call
                    .rsplit_once('.')
                    .filter(|(service, method)| !service.is_empty() && !method.is_empty())
                    .ok_or_else(|| {
                        format!(
                            "principal `{principal}`: a call that is not `service.method` or `*`"
                        )
                    })?,
            };
            rules.push(Rule::Call(name(), service.to_owned(), method.to_owned()));
        }
        let others = [
            &self.publish,
            &self.subscribe,
            &self.push,
            &self.work,
            &self.manage,
        ];
        if others.iter().any(|of| of.0.iter().any(String::is_empty)) {
            return Err(format!(
                "principal `{principal}`: an empty topic or queue; `*` stands for all of them"
            ));
        }
        rules.extend(
            self.publish
                .0
                .iter()
                .map(|prefix| Rule::Publish(name(), prefix.clone())),
        );
        rules.extend(
            self.subscribe
                .0
                .iter()
                .map(|prefix| Rule::Subscribe(name(), prefix.clone())),
        );
        for (queues, right) in [
            (&self.push, QueueRight::Push),
            (&self.work, QueueRight::Work),
            (&self.manage, QueueRight::Manage),
        ] {
            rules.extend(
                queues
                    .0
                    .iter()
                    .map(|queue| Rule::Queue(name(), queue.clone(), right)),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::Keys;

    #[test]
    fn a_file_with_a_slip_is_refused_whole_and_says_the_line() {
        let key = Keys::generate().public();
        for (line, text) in [
            (1, "[[rule]]\ncalls = ['a.b']".to_owned()),
            (3, "[[rule]]\nprincipals = 'a'\ncall = ['a.b']".to_owned()),
            (1, "[[rule]]\nprincipals = 'a'\ncalls = ['ab']".to_owned()),
            (1, "[[rule]]\nprincipals = 'a'\ncalls = ['.b']".to_owned()),
            (1, "[[rule]]\nprincipals = 'a'\nsubscribe = ''".to_owned()),
            (1, "[[rule]]\nprincipals = ''\nsubscribe = 'a'".to_owned()),
            (1, "[[rule]]\nprincipals = 'a'".to_owned()),
            (1, "[[rule]]\nprincipals = []\ncalls = '*'".to_owned()),
            (1, "[[rules]]\nprincipals = 'a'".to_owned()),
            (1, "rule = 3".to_owned()),
            (1, format!("[kyes]\nweb = '{key}'\n")),
            (3, format!("\n[keys]\nweb = '{key}x'\n")),
            (
                3,
                format!(
                    "\n[keys]\nweb = '{key}'\nops = '{key}'\n[[rule]]\nprincipals = 'a'\ncalls = '*'"
                ),
            ),
            (2, "[keys]\n'two words' = []\n".to_owned()),
            (1, "[expect]\nkeys = 1\nrules = 0".to_owned()),
            (1, "[expect]\nkeys = 0".to_owned()),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(
                error.starts_with(&format!("line {line}: ")),
                "{text}\n{error}"
            );
        }
    }

    #[test]
    fn an_error_names_the_principal_and_never_shows_a_value() {
        const SECRET: &str = "JTKVSB%%)wK0E.X)V>+}o?pNmC{O&4W4b!Ni{Lh6";
        let error = parse("[keys]\nweb = 'short'\n").unwrap_err();
        assert_eq!(
            error,
            "line 2: principal `web`: no key: expected forty characters of Z85"
        );
        for text in [
            SECRET.to_owned(),
            format!("# Secret\n{SECRET}\n"),
            format!("[keys]\nweb = 3\n{SECRET}"),
            format!("[keys]\n{SECRET} = 1"),
            format!("[keys]\n'{SECRET}' = '{SECRET}'"),
            format!("[keys]\nweb = '{SECRET}"),
            format!("[keys]\nweb = '{SECRET}x'"),
            format!("[keys]\na = '{SECRET}'\nb = '{SECRET}'"),
            format!("'{SECRET}' = 1"),
            format!("rule = '{SECRET}'"),
            format!("[[rule]]\n'{SECRET}' = 1"),
            format!("[[rule]]\nprincipals = '{SECRET}'\ncalls = '*'"),
            format!(
                "[[rule]]\nprincipals = 'a'\ncalls = '{}'",
                SECRET.replace('.', "-")
            ),
            format!("[expect]\nkeys = '{SECRET}'"),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(error.starts_with("line "), "{error}");
            for part in SECRET.as_bytes().windows(8) {
                assert!(
                    !error.contains(std::str::from_utf8(part).unwrap()),
                    "{error}"
                );
            }
        }
    }

    #[test]
    fn a_shorter_list_needs_a_sign_that_it_is_meant() {
        let keys = |count: usize| -> String {
            let lines = (0..count).map(|i| format!("k{i} = '{}'\n", Keys::generate().public()));
            format!("[keys]\n{}", lines.collect::<String>())
        };
        let lists = parse(&keys(2)).unwrap();
        assert!(lists.may_replace(4, 2, "keys").is_ok());
        assert!(lists.may_replace(5, 2, "keys").is_err());
        assert!(lists.may_replace(1, 0, "keys").is_err());
        assert!(lists.may_replace(0, 0, "keys").is_ok());
        let meant = parse(&format!("{}[expect]\nkeys = 1\nrules = 0\n", keys(1))).unwrap();
        assert!(meant.may_replace(100, 1, "keys").is_ok());
    }
}
