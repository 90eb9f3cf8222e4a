//! Rules compiled into tables, so that asking costs a few hashes, however many rules there are.

use std::collections::{HashMap, HashSet};

use super::ANY;
use super::rules::{QueueRight, Rule};
use crate::security::Principal;

#[derive(Debug, Default)]
pub(super) struct Tables {
    of: HashMap<Principal, Rights>,
    of_anybody: Rights,
}

#[derive(Debug, Default)]
pub(super) struct Rights {
    pub calls: Calls,
    pub publish: Prefixes,
    pub subscribe: Prefixes,
    pub queues: Queues,
}

#[derive(Debug, Default)]
pub(super) struct Calls {
    of: HashMap<String, Methods>,
    of_any_service: Methods,
}

#[derive(Debug, Default)]
struct Methods {
    any: bool,
    named: HashSet<String>,
}

#[derive(Debug, Default)]
pub(super) struct Queues {
    of: HashMap<String, [bool; 3]>,
    of_any: [bool; 3],
}

/// Sorted, and none begins with another: so only the last one not after a topic can cover it.
#[derive(Debug, Default)]
pub(super) struct Prefixes(Vec<Vec<u8>>);

impl Tables {
    pub fn compile<'a>(rules: impl Iterator<Item = &'a Rule>) -> Self {
        let mut tables = Self::default();
        for rule in rules {
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

    /// Whether what a principal may by its name, or what everybody may, allows something.
    pub fn any_of(&self, principal: &str, allows: impl Fn(&Rights) -> bool) -> bool {
        self.of.get(principal).is_some_and(&allows) || allows(&self.of_anybody)
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

    pub fn allows(&self, service: &str, method: &str) -> bool {
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

    pub fn allows(&self, queue: &str, right: QueueRight) -> bool {
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

    pub fn covers(&self, topic: &[u8]) -> bool {
        let after = self.0.partition_point(|prefix| prefix.as_slice() <= topic);
        after > 0 && topic.starts_with(&self.0[after - 1])
    }
}
