//! Which keys may come in, and what their owners are called.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use super::live::Live;
use super::{KeyError, Principal, PublicKey, Refreshed, from_toml};

/// Longest name of a principal, in bytes.
const NAME_BYTES_MAX: usize = 255;

/// The client keys that a server lets in, each with the name of its [`Principal`].
///
/// Cheap to clone; clones share the list, and a change of it is in force at once for new
/// connections and for messages, and within a second also for connections that are open: these are
/// closed. One principal may have several keys, as when a key is exchanged.
#[derive(Clone, Debug)]
pub struct AllowedKeys(Arc<Live<Names>>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Names(HashMap<PublicKey, Principal>);

impl Default for AllowedKeys {
    fn default() -> Self {
        Self(Arc::new(Live::new(Names::default())))
    }
}

impl AllowedKeys {
    /// None yet: nobody is let in.
    pub fn new() -> Self {
        Self::default()
    }

    /// From a TOML file, which is read again when it changes. It has a table `keys`:
    ///
    /// ```toml
    /// [keys]
    /// web = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"
    /// billing = ["…", "…"]   # both, while one replaces the other
    /// ```
    ///
    /// A later version that cannot be read changes nothing, and is logged.
    ///
    /// # Errors
    /// [`KeyError::List`].
    pub fn read(path: impl AsRef<Path>) -> Result<Self, KeyError> {
        let live = Live::read(path.as_ref(), parse).map_err(KeyError::List)?;
        Ok(Self(Arc::new(live)))
    }

    /// Lets a key in under a name, now and until it is [revoked](Self::revoke).
    ///
    /// # Errors
    /// [`KeyError::Name`], and [`KeyError::Taken`] where another principal has the key.
    pub fn allow(&self, principal: &str, key: PublicKey) -> Result<(), KeyError> {
        self.0.update(|names| {
            let mut names = names.clone();
            names.insert(principal, key)?;
            Ok(names)
        })
    }

    /// Lets a key in no more. Says whether it was on the list.
    pub fn revoke(&self, key: PublicKey) -> bool {
        let mut was_there = false;
        let _ = self.0.update(|names| {
            let mut names = names.clone();
            was_there = names.0.remove(&key).is_some();
            Ok::<_, KeyError>(names)
        });
        was_there
    }

    /// Lets no key of this principal in any more. Says how many there were.
    pub fn revoke_principal(&self, principal: &str) -> usize {
        let mut revoked = 0;
        let _ = self.0.update(|names| {
            let mut names = names.clone();
            revoked = names.0.len();
            names.0.retain(|_, of| of.as_str() != principal);
            revoked -= names.0.len();
            Ok::<_, KeyError>(names)
        });
        revoked
    }

    /// Whose key it is; `None` for one that is not let in.
    pub fn principal(&self, key: &PublicKey) -> Option<Principal> {
        self.0.with(|names| names.0.get(key).cloned())
    }

    pub(crate) fn generation(&self) -> u64 {
        self.0.generation()
    }

    pub(crate) fn refresh(&self) -> Refreshed {
        self.0.refresh(parse)
    }
}

impl PartialEq for AllowedKeys {
    /// Whether they are the same list, not only alike.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for AllowedKeys {}

impl Names {
    fn insert(&mut self, principal: &str, key: PublicKey) -> Result<(), KeyError> {
        let is_name = (1..=NAME_BYTES_MAX).contains(&principal.len())
            && principal != "*"
            && !principal.chars().any(char::is_control);
        if !is_name {
            return Err(KeyError::Name(principal.escape_debug().to_string()));
        }
        match self.0.get(&key) {
            Some(of) if of.as_str() != principal => Err(KeyError::Taken {
                key,
                principal: of.to_string(),
            }),
            Some(_) => Ok(()),
            None => {
                self.0.insert(key, Principal::new(principal));
                Ok(())
            }
        }
    }
}

/// What of a file is about keys; the rules may be in the same file.
#[derive(Deserialize)]
struct Written {
    #[serde(default)]
    keys: BTreeMap<String, OneOrMore>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

fn parse(text: &str) -> Result<Names, KeyError> {
    let written: Written = from_toml(text).map_err(KeyError::List)?;
    let mut names = Names::default();
    for (principal, keys) in written.keys {
        let keys = match keys {
            OneOrMore::One(key) => vec![key],
            OneOrMore::More(keys) => keys,
        };
        for key in keys {
            names.insert(&principal, key.parse()?)?;
        }
    }
    Ok(names)
}

/// For fuzzing: any text as a list of keys.
#[cfg(fuzzing)]
pub(crate) fn parse_any(text: &str) {
    let _ = parse(text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::{AccessList, Keys};

    #[test]
    fn a_key_is_let_in_under_its_name_until_it_is_revoked() {
        let (old, new) = (Keys::generate().public(), Keys::generate().public());
        let allowed = AllowedKeys::new();
        assert_eq!(allowed.principal(&old), None);
        allowed.allow("web", old).unwrap();
        allowed.allow("web", new).unwrap();
        assert_eq!(allowed.principal(&new).unwrap().as_str(), "web");
        assert!(allowed.revoke(old));
        assert!(!allowed.revoke(old));
        assert_eq!(allowed.principal(&old), None);
        assert_eq!(allowed.revoke_principal("web"), 1);
        assert_eq!(allowed.principal(&new), None);
    }

    #[test]
    fn one_key_stands_for_one_principal() {
        let key = Keys::generate().public();
        let allowed = AllowedKeys::new();
        allowed.allow("web", key).unwrap();
        allowed.allow("web", key).unwrap();
        let taken = allowed.allow("admin", key);
        assert!(matches!(taken, Err(KeyError::Taken { principal, .. }) if principal == "web"));
    }

    #[test]
    fn a_name_is_short_plain_text() {
        let key = Keys::generate().public();
        for name in ["", "*", "a\nb", &"x".repeat(256)] {
            let refused = AllowedKeys::new().allow(name, key);
            assert!(matches!(refused, Err(KeyError::Name(_))), "{name}");
        }
        AllowedKeys::new().allow(&"x".repeat(255), key).unwrap();
    }

    #[test]
    fn a_file_names_one_key_or_several() {
        let keys: Vec<_> = (0..3).map(|_| Keys::generate().public()).collect();
        let text = format!(
            "[keys]\nweb = '{}'\nbilling = ['{}', '{}']\n[[rule]]\nprincipals = ['web']\n",
            keys[0], keys[1], keys[2]
        );
        let names = parse(&text).unwrap();
        assert_eq!(names.0.len(), 3);
        assert_eq!(names.0[&keys[2]].as_str(), "billing");
        assert!(parse("[keys]\nweb = 'no key'").is_err());
    }

    #[test]
    fn a_file_of_a_secret_that_is_taken_for_a_list_is_not_shown() {
        const SECRET: &str = "JTKVSB%%)wK0E.X)V>+}o?pNmC{O&4W4b!Ni{Lh6";
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server.key");
        for text in [
            SECRET.to_owned(),
            format!("# Secret\n{SECRET}\n"),
            format!("[keys]\nweb = 3\n{SECRET}"),
            format!("[keys]\n{SECRET} = 1"),
            format!("[keys]\nweb = '{SECRET}"),
        ] {
            std::fs::write(&path, &text).unwrap();
            let keys = AllowedKeys::read(&path).unwrap_err();
            let rules = AccessList::read(&path).unwrap_err();
            let shown = format!("{keys} {keys:?} {rules} {rules:?}");
            assert!(shown.contains("line "), "{shown}");
            for part in SECRET.as_bytes().windows(8) {
                let part = std::str::from_utf8(part).unwrap();
                assert!(!shown.contains(part), "{shown}");
            }
        }
    }
}
