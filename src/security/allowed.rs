//! Which keys may come in, and what their owners are called.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::file::{self, Lists};
use super::live::{Live, Watched};
use super::{KeyError, Principal, PublicKey};

/// The client keys that a server lets in, each with the name of its [`Principal`].
///
/// Cheap to clone; clones share the list, and a change of it is in force at once for new
/// connections and for messages, and within a second also for connections that are open: these are
/// closed. One principal may have several keys, as when a key is exchanged.
///
/// What code [allowed](Self::allow) and [revoked](Self::revoke) lies over the file, also over its later
/// versions.
#[derive(Clone, Debug)]
pub struct AllowedKeys(Arc<Shared>);

#[derive(Debug)]
pub(super) struct Shared {
    pub names: Live<Names>,
    pub file: Option<Mutex<Watched>>,
}

#[derive(Debug, Default)]
pub(super) struct Names {
    in_force: HashMap<PublicKey, Principal>,
    of_file: HashMap<PublicKey, Principal>,
    by_code: HashMap<PublicKey, Principal>,
    revoked: HashSet<PublicKey>,
    revoked_principals: HashSet<String>,
}

impl Default for AllowedKeys {
    fn default() -> Self {
        Self(Arc::new(Shared {
            names: Live::new(Names::default()),
            file: None,
        }))
    }
}

impl AllowedKeys {
    /// None yet: nobody is let in.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads a TOML file, which is read again when it changes. It has a table `keys`, and may have the rules of an
    /// [`AccessList`](super::AccessList) too:
    ///
    /// ```toml
    /// [keys]
    /// web = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"
    /// billing = ["…", "…"]   # both, while one replaces the other
    ///
    /// [expect]               # may be left out
    /// keys = 2               # so many names above
    /// rules = 0
    /// ```
    ///
    /// A later version that cannot be read, or has anything else in it, changes nothing, and is logged. Neither does one with
    /// less than half as many keys, which is what a file has that is cut off, unless its table `expect` says that
    /// this is how many there are. A file that an `AccessList` was read from too is read once for both, and changes both
    /// or neither.
    ///
    /// # Errors
    /// [`KeyError::List`], with the file, the line and the principal.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, KeyError> {
        let (file, text) = Watched::open(path.as_ref()).map_err(KeyError::List)?;
        let lists = file::parse(&text).map_err(|error| KeyError::List(file.of_it(&error)))?;
        let mut names = Names::default();
        names.set_file(&lists);
        Ok(Self(Arc::new(Shared {
            names: Live::new(names),
            file: Some(Mutex::new(file)),
        })))
    }

    /// Lets a key in under a name, now and until it is [revoked](Self::revoke), whatever its file says. A name is 1 to 255
    /// letters, digits and signs of ASCII, without spaces, quotes, `\\` and `*`.
    ///
    /// # Errors
    /// [`KeyError::Name`], and [`KeyError::Taken`] where another principal has the key.
    pub fn allow(&self, principal: &str, key: PublicKey) -> Result<(), KeyError> {
        let principal = Principal::named(principal)
            .ok_or_else(|| KeyError::Name(principal.escape_debug().to_string()))?;
        let mut names = self.0.names.write();
        if let Some(of) = names.in_force.get(&key)
            && *of != principal
        {
            let principal = of.to_string();
            return Err(KeyError::Taken { key, principal });
        }
        names.revoked.remove(&key);
        names.by_code.insert(key, principal);
        self.put_in_force(names);
        Ok(())
    }

    /// Lets a key in no more, whatever its file says. Returns whether it was on the list.
    pub fn revoke(&self, key: PublicKey) -> bool {
        let mut names = self.0.names.write();
        let was_there = names.in_force.contains_key(&key);
        names.by_code.remove(&key);
        if self.0.file.is_some() {
            names.revoked.insert(key);
        }
        self.put_in_force(names);
        was_there
    }

    /// Lets no key of this principal in any more, whatever its file says, but for those that are
    /// [allowed](Self::allow) later. Returns how many there were.
    pub fn revoke_principal(&self, principal: &str) -> usize {
        let mut names = self.0.names.write();
        let is_its = |of: &&Principal| of.as_str() == principal;
        let revoked = names.in_force.values().filter(is_its).count();
        names.by_code.retain(|_, of| of.as_str() != principal);
        if self.0.file.is_some() {
            names.revoked_principals.insert(principal.to_owned());
        }
        self.put_in_force(names);
        revoked
    }

    /// Whose key it is; `None` for one that is not let in.
    pub fn principal(&self, key: &PublicKey) -> Option<Principal> {
        self.0.names.read().in_force.get(key).cloned()
    }

    pub(crate) fn generation(&self) -> u64 {
        self.0.names.generation()
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.0
    }

    fn put_in_force(&self, mut names: std::sync::RwLockWriteGuard<'_, Names>) {
        names.compute();
        drop(names);
        self.0.names.changed();
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
    /// Keys of the file that is in force.
    pub fn of_file(&self) -> usize {
        self.of_file.len()
    }

    pub fn set_file(&mut self, lists: &Lists) {
        self.of_file = lists.keys.iter().cloned().collect();
        self.compute();
    }

    fn compute(&mut self) {
        let is_revoked = |key: &PublicKey, of: &Principal| {
            self.revoked.contains(key) || self.revoked_principals.contains(of.as_str())
        };
        let of_file = self.of_file.iter().filter(|(key, of)| !is_revoked(key, of));
        let all = of_file.chain(&self.by_code);
        self.in_force = all.map(|(key, of)| (*key, of.clone())).collect();
    }

    /// Principals with a key that the file allows and code has revoked, or allowed under another name.
    pub fn overruled(&self) -> Vec<&str> {
        let overruled = self
            .of_file
            .iter()
            .filter(|(key, of)| self.in_force.get(*key) != Some(*of));
        let mut names: Vec<_> = overruled.map(|(_, of)| of.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
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
        let (long, key_text) = ("x".repeat(256), key.to_string());
        let hidden = [
            "web\u{200b}",
            "w\u{435}b",
            "\u{202e}bew",
            "\u{feff}web",
            "m\u{fc}ller",
        ];
        let plain = [
            "", "*", "*.x", "a\nb", "web ", " ", "a b", "a'b", &long, &key_text,
        ];
        for name in hidden.into_iter().chain(plain) {
            let refused = AllowedKeys::new().allow(name, key);
            assert!(matches!(refused, Err(KeyError::Name(_))), "{name}");
        }
        AllowedKeys::new().allow(&"x".repeat(255), key).unwrap();
    }

    #[test]
    fn a_file_names_one_key_or_several() {
        let keys: Vec<_> = (0..3).map(|_| Keys::generate().public()).collect();
        let text = format!(
            "[keys]\nweb = '{}'\nbilling = ['{}', '{}']\n[[rule]]\nprincipals = ['web']\ncalls = '*'\n",
            keys[0], keys[1], keys[2]
        );
        let mut names = Names::default();
        names.set_file(&file::parse(&text).unwrap());
        assert_eq!(names.in_force.len(), 3);
        assert_eq!(names.in_force[&keys[2]].as_str(), "billing");
    }

    #[test]
    fn what_code_says_lies_over_every_version_of_the_file() {
        let [web, ops, added] = [(); 3].map(|()| Keys::generate().public());
        let lists = |text: &str| file::parse(text).unwrap();
        let allowed = AllowedKeys::default();
        let mut shared = Arc::into_inner(allowed.0).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        let text = format!("[keys]\nweb = '{web}'\nops = '{ops}'\n");
        std::fs::write(&path, &text).unwrap();
        shared.file = Some(Mutex::new(Watched::open(&path).unwrap().0));
        shared.names.write().set_file(&lists(&text));
        let allowed = AllowedKeys(Arc::new(shared));
        assert!(allowed.revoke(web));
        assert_eq!(allowed.revoke_principal("ops"), 1);
        allowed.allow("added", added).unwrap();
        allowed.0.names.write().set_file(&lists(&text));
        let name = |key| allowed.principal(&key).map(|of| of.to_string());
        assert_eq!((name(web), name(ops)), (None, None));
        assert_eq!(name(added).as_deref(), Some("added"));
        assert_eq!(allowed.0.names.read().overruled(), ["ops", "web"]);
        allowed.allow("ops", ops).unwrap();
        assert_eq!(name(ops).as_deref(), Some("ops"));
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
