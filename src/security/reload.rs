//! Files of keys and rules that have changed: taken whole, or not at all.
//!
//! Keys and rules of one file are read once, checked together, and put in force together: a rule is
//! never asked with the names of another version of its file.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::file::{self, Lists};
use super::live::{Look, Watched};
use super::{AccessList, AllowedKeys};

/// Looks at the files of both lists, puts in force what has changed, and logs what came of it.
pub(crate) fn refresh(allowed: &AllowedKeys, access: &AccessList) {
    let keys = allowed.shared().file.as_ref().map(lock);
    let rules = access.shared().file.as_ref().map(lock);
    let is_changed = match (keys, rules) {
        (Some(mut keys), Some(mut rules)) if keys.is_of(&rules) => {
            match (keys.look(), rules.look()) {
                (Look::Same, Look::Same) => false,
                // Both see what one of them has read.
                (Look::Same, look) => {
                    keys.has_seen_as(&rules);
                    take(&rules, look, Some(allowed), Some(access))
                }
                (look, _) => {
                    rules.has_seen_as(&keys);
                    take(&keys, look, Some(allowed), Some(access))
                }
            }
        }
        (keys, rules) => {
            if let Some(mut keys) = keys {
                let look = keys.look();
                take(&keys, look, Some(allowed), None);
            }
            rules.is_some_and(|mut rules| {
                let look = rules.look();
                take(&rules, look, None, Some(access))
            })
        }
    };
    if is_changed {
        access.tell_listeners();
    }
}

/// Puts in force what a look has found; returns whether it did.
fn take(
    file: &Watched,
    look: Look,
    allowed: Option<&AllowedKeys>,
    access: Option<&AccessList>,
) -> bool {
    let name = file.path().display();
    let taken = match look {
        Look::Same => return false,
        Look::Failed(error) => Err(error),
        Look::Changed(text) => {
            file::parse(&text).and_then(|lists| put_in_force(&lists, allowed, access))
        }
    };
    match taken {
        Ok((keys, rules)) => {
            tracing::info!(file = %name, keys, rules, "keys and access rules reloaded");
            if let Some(allowed) = allowed {
                let names = allowed.shared().names.read();
                let overruled = names.overruled();
                if !overruled.is_empty() {
                    tracing::warn!(file = %name, principals = ?overruled, "keys in the file that code has revoked or allowed under another name: what code says stands");
                }
            }
            if access.is_some_and(|access| access.shared().rules.read().is_by_code()) {
                tracing::warn!(file = %name, "access rules of the file not taken: code has replaced them");
            }
            true
        }
        Err(error) => {
            tracing::error!(file = %name, error, "keys and access rules not reloaded: those in force stay");
            false
        }
    }
}

/// Both or neither; returns how many keys and rules the file has.
fn put_in_force(
    lists: &Lists,
    allowed: Option<&AllowedKeys>,
    access: Option<&AccessList>,
) -> Result<(usize, usize), String> {
    let (count_keys, count_rules) = (lists.keys.len(), lists.rules.len());
    // Always in this order, and by nobody else together.
    let mut keys = allowed.map(|allowed| allowed.shared().names.write());
    let mut rules = access.map(|access| access.shared().rules.write());
    if let Some(keys) = &keys {
        lists.may_replace(keys.of_file(), count_keys, "keys")?;
    }
    if let Some(rules) = &rules {
        lists.may_replace(rules.of_file(), count_rules, "things that rules allow")?;
    }
    if let Some(keys) = &mut keys {
        keys.set_file(lists);
    }
    if let Some(rules) = &mut rules {
        rules.set_file(lists);
    }
    drop((keys, rules));
    if let Some(allowed) = allowed {
        allowed.shared().names.changed();
    }
    if let Some(access) = access {
        access.shared().rules.changed();
    }
    Ok((count_keys, count_rules))
}

fn lock(file: &Mutex<Watched>) -> MutexGuard<'_, Watched> {
    file.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::{AccessRules, Keys, PublicKey};

    struct Both {
        folder: tempfile::TempDir,
        allowed: AllowedKeys,
        access: AccessList,
    }

    impl Both {
        fn read(text: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("access.toml");
            std::fs::write(&path, text).unwrap();
            Self {
                allowed: AllowedKeys::read(&path).unwrap(),
                access: AccessList::read(&path).unwrap(),
                folder,
            }
        }

        fn becomes(&self, text: &str) {
            std::fs::write(self.folder.path().join("access.toml"), text).unwrap();
            refresh(&self.allowed, &self.access);
        }

        fn name(&self, key: PublicKey) -> Option<String> {
            self.allowed.principal(&key).map(|of| of.to_string())
        }
    }

    const RULES: &str = "\n[[rule]]\nprincipals = 'ops'\ncalls = '*'\n[[rule]]\nprincipals = 'web'\ncalls = 'health.check'\n";

    #[test]
    fn a_slip_in_the_rules_keeps_the_keys_out_too() {
        let [web, batch] = [(); 2].map(|()| Keys::generate().public());
        let both = Both::read(&format!("[keys]\nweb = '{web}'{RULES}"));
        let narrowed = |call| {
            format!(
                "[keys]\nweb = '{web}'\nops = '{batch}'\n[[rule]]\nprincipals = 'ops'\n{call} = 'health.check'\n"
            )
        };
        both.becomes(&narrowed("call"));
        assert_eq!(both.name(batch), None);
        assert!(both.access.may_call("ops", "lab", "big"));
        both.becomes(&narrowed("calls"));
        assert_eq!(both.name(batch).as_deref(), Some("ops"));
        assert!(!both.access.may_call("ops", "lab", "big"));
        assert!(both.access.may_call("ops", "health", "check"));
    }

    #[test]
    fn a_misspelt_table_or_a_file_that_is_cut_changes_nothing() {
        let web = Keys::generate().public();
        let whole = format!("[keys]\nweb = '{web}'{RULES}");
        let both = Both::read(&whole);
        both.becomes(&whole.replace("[keys]", "[kyes]"));
        assert_eq!(both.name(web).as_deref(), Some("web"));
        for end in 0..whole.len() {
            both.becomes(&whole[..end]);
            assert_eq!(both.name(web).as_deref(), Some("web"), "cut at {end}");
            assert!(both.access.may_call("ops", "lab", "big"), "cut at {end}");
        }
        both.becomes("[expect]\nkeys = 0\nrules = 0\n");
        assert_eq!(both.name(web), None);
        assert!(!both.access.may_call("ops", "lab", "big"));
    }

    #[test]
    fn what_code_says_stands_when_the_file_changes_for_another_reason() {
        let [web, other] = [(); 2].map(|()| Keys::generate().public());
        let text = format!("[keys]\nweb = '{web}'{RULES}");
        let both = Both::read(&text);
        assert!(both.allowed.revoke(web));
        both.allowed.allow("other", other).unwrap();
        both.becomes(&format!("{text}push = 'mail'\n"));
        assert_eq!(
            (both.name(web), both.name(other).as_deref()),
            (None, Some("other"))
        );
        both.access
            .replace(&AccessRules::new().call("web", "lab", "big"));
        both.becomes(&format!("{text}push = 'post'\n"));
        assert!(both.access.may_call("web", "lab", "big"));
        assert!(!both.access.may_call("ops", "lab", "big"));
    }

    #[test]
    fn lists_of_two_files_change_each_by_itself() {
        let web = Keys::generate().public();
        let both = Both::read(RULES);
        let keys = both.folder.path().join("keys.toml");
        std::fs::write(&keys, "[keys]\n").unwrap();
        let allowed = AllowedKeys::read(&keys).unwrap();
        std::fs::write(&keys, format!("[keys]\nweb = '{web}'\n")).unwrap();
        refresh(&allowed, &both.access);
        assert_eq!(allowed.principal(&web).unwrap().as_str(), "web");
        assert!(both.access.may_call("ops", "lab", "big"));
    }
}
