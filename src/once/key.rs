//! Under which key an outcome is recorded, and how old a key is.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState};
use std::num::NonZeroU64;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use super::Timestamp;
use crate::wire::RequestId;

/// The key of a record: a request ID, in the scope that it is unique in.
///
/// A method's scope is (principal, interface, method): two callers cannot meet in one record, nor
/// two methods. Keys of one scope that are UUIDv7 sort by the time of their call, which is the
/// order that an embedded store likes best.
#[derive(Clone)]
pub struct Key {
    bytes: Arc<[u8]>,
    /// Of the bytes, so that tables which move their keys need not read them.
    hash: u64,
    /// In milliseconds since 1970.
    created: Option<NonZeroU64>,
}

/// Keyed at random in each process: callers choose what is hashed.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// The map type of stores and waiters: a key brings its hash along.
pub(super) type KeyMap<T> = HashMap<Key, T, BuildHasherDefault<Brought>>;

/// Passes on the hash that a key brings.
#[derive(Default)]
pub(super) struct Brought(u64);

impl Hasher for Brought {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Only for completeness: a key writes its number.
        self.0 = HASHER.hash_one(bytes);
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

const METHOD: u8 = 0;
const NAMED: u8 = 1;

const UUID: u8 = 0;
const CALLERS_OWN: u8 = 1;

impl Key {
    /// The key of a call. `principal` is empty for a caller that nobody knows.
    pub fn of_call(principal: &str, interface: u64, method: u16, id: &RequestId) -> Self {
        let [method_high, method_low] = method.to_be_bytes();
        let [a, b, c, d, e, f, g, h] = interface.to_be_bytes();
        let rest = [a, b, c, d, e, f, g, h, method_high, method_low];
        Self::new(id, METHOD, principal, &rest)
    }

    /// The key of work that is no call: a job, an HTTP request. `scope` names what it is.
    pub fn named(scope: &str, id: &RequestId) -> Self {
        Self::new(id, NAMED, scope, &[])
    }

    fn new(id: &RequestId, kind: u8, scope: &str, rest: &[u8]) -> Self {
        let (id_kind, id, created) = id_bytes(id);
        let [high, low] = (scope.len().min(usize::from(u16::MAX)) as u16).to_be_bytes();
        let parts = [&[kind, high, low], scope.as_bytes(), rest, &[id_kind], id];
        let length = parts.iter().map(|part| part.len()).sum();
        // Nearly all fit into this, and take no more memory than what is kept of them.
        let mut buffer = [0; 128];
        let key = match buffer.get_mut(..length) {
            Some(buffer) => {
                let mut at = 0;
                for part in parts {
                    buffer[at..at + part.len()].copy_from_slice(part);
                    at += part.len();
                }
                Self::from_bytes(buffer)
            }
            None => Self::from_bytes(&parts.concat()),
        };
        Self {
            created: created.and_then(|at| NonZeroU64::new(at.milliseconds())),
            ..key
        }
    }

    /// Its bytes, as a store keeps them.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// From the bytes of a store. What it says of its age is lost.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut hasher = HASHER.build_hasher();
        hasher.write(bytes);
        Self {
            bytes: bytes.into(),
            hash: hasher.finish(),
            created: None,
        }
    }

    /// When the call began, which a UUIDv7 says and a caller's own key does not.
    pub fn created(&self) -> Option<Timestamp> {
        let created = self.created?;
        Some(Timestamp::from_milliseconds(created.get()))
    }
}

type Id<'a> = (u8, &'a [u8], Option<Timestamp>);

fn id_bytes(id: &RequestId) -> Id<'_> {
    match id {
        RequestId::Uuid(uuid) => {
            let created = uuid.get_timestamp().filter(|_| uuid.get_version_num() == 7);
            let created = created.map(|time| {
                let (seconds, nanoseconds) = time.to_unix();
                Timestamp::EPOCH + Duration::new(seconds, nanoseconds)
            });
            (UUID, uuid.as_bytes(), created)
        }
        RequestId::Key(key) => (CALLERS_OWN, key.as_bytes(), None),
    }
}

// Its bytes are all of it; what they say of its age is read from them.

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.bytes == other.bytes
    }
}

impl Eq for Key {}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        self.bytes.cmp(&other.bytes)
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.bytes.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::RequestKey;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn id() -> impl Strategy<Value = RequestId> {
        prop_oneof![
            any::<u128>().prop_map(|id| uuid::Uuid::from_u128(id).into()),
            prop::collection::vec(any::<u8>(), 1..4)
                .prop_map(|key| RequestKey::new(key).expect("short").into()),
        ]
    }

    proptest! {
        #[test]
        fn different_calls_have_different_keys(
            calls in prop::collection::vec((("[a-b]{0,2}"), 0..3u64, 0..3u16, id()), 1..50)
        ) {
            let mut seen = HashMap::new();
            for call in calls {
                let key = Key::of_call(&call.0, call.1, call.2, &call.3);
                let before = seen.insert(key, call.clone());
                prop_assert!(before.is_none() || before == Some(call));
            }
        }
    }

    #[test]
    fn a_uuid_v7_says_when_its_call_began() {
        let key = Key::of_call("", 1, 1, &RequestId::new());
        let age = Timestamp::now().since(key.created().expect("it says"));
        assert!(age < Duration::from_secs(60), "{age:?}");
        let own = RequestKey::new("mine").expect("short");
        assert_eq!(Key::named("jobs", &own.into()).created(), None);
    }
}
