//! Under which key an outcome is recorded, and how old a key is.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState};
use std::num::NonZeroU64;
use std::sync::{Arc, LazyLock};

use super::Timestamp;
use crate::security::{Address, Principal};
use crate::wire::RequestId;

/// The key of a record: a request ID, in the scope that it is unique in.
///
/// A method's scope is (principal, interface, method): two callers cannot meet in one record, nor
/// two methods. Keys of one scope that are UUIDv7 sort by the time of their call, which is the
/// order that an embedded store likes best.
#[derive(Clone)]
pub struct Key {
    bytes: KeyBytes,
    /// Of the bytes, so that tables which move their keys need not read them.
    hash: u64,
    /// In milliseconds since 1970.
    created: Option<NonZeroU64>,
    /// Of the address that its record counts for, where no key proves who calls. It is no part of the key: a caller that
    /// comes again from another address finds its record.
    address: Option<NonZeroU64>,
}

/// Nearly all are short, and need no memory of their own.
#[derive(Clone)]
enum KeyBytes {
    Short {
        length: u8,
        bytes: [u8; SHORT_BYTES_MAX],
    },
    Long(Arc<[u8]>),
}

/// A call with a UUID takes 30, and its principal's name.
const SHORT_BYTES_MAX: usize = 54;

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

/// Its kind and the length of the scope.
const SCOPE_BEGIN: usize = 3;

/// Interface and method.
const METHOD_BYTES: usize = 10;

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
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let mut bytes = [0; SHORT_BYTES_MAX];
        let bytes = match length <= SHORT_BYTES_MAX {
            true => {
                let mut at = 0;
                for part in parts {
                    bytes[at..at + part.len()].copy_from_slice(part);
                    at += part.len();
                }
                let length = length as u8;
                KeyBytes::Short { length, bytes }
            }
            false => KeyBytes::Long(parts.concat().into()),
        };
        Self::with_hash(bytes, created)
    }

    fn with_hash(bytes: KeyBytes, created: Option<NonZeroU64>) -> Self {
        let mut hasher = HASHER.build_hasher();
        hasher.write(bytes.as_slice());
        Self {
            bytes,
            hash: hasher.finish(),
            created,
            address: None,
        }
    }

    /// Counts its record for an address, where no key proves who calls.
    pub(super) fn with_address(self, address: Option<Address>) -> Self {
        let address = address.and_then(|address| NonZeroU64::new(HASHER.hash_one(address)));
        Self { address, ..self }
    }

    /// Its bytes, as a store keeps them.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.as_slice()
    }

    /// From the bytes of a store.
    pub fn from_bytes(from: &[u8]) -> Self {
        let mut bytes = [0; SHORT_BYTES_MAX];
        let bytes = match bytes.get_mut(..from.len()) {
            Some(short) => {
                short.copy_from_slice(from);
                let length = from.len() as u8;
                KeyBytes::Short { length, bytes }
            }
            None => KeyBytes::Long(from.into()),
        };
        Self::with_hash(bytes, created(from))
    }

    /// Its kind, and the principal or the name of the work.
    fn scope(&self) -> &[u8] {
        Self::scope_of(self.as_bytes())
    }

    /// The same of the bytes of a key.
    pub(super) fn scope_of(bytes: &[u8]) -> &[u8] {
        let length = match bytes {
            [_, high, low, ..] => usize::from(u16::from_be_bytes([*high, *low])),
            _ => 0,
        };
        bytes.get(..SCOPE_BEGIN + length).unwrap_or(bytes)
    }

    /// The scope, and where the ID begins in the bytes: for stores that take keys apart themselves.
    #[cfg(any(feature = "postgres", feature = "redis"))]
    pub(super) fn scope_and_id(&self) -> (&[u8], usize) {
        let scope = self.scope();
        let of_method = match scope.first() {
            Some(&METHOD) => METHOD_BYTES,
            _ => 0,
        };
        (scope, scope.len() + of_method)
    }

    /// Tells the principals and kinds of work apart that records belong to.
    pub(super) fn scope_hash(&self) -> u64 {
        HASHER.hash_one(self.scope())
    }

    /// Tells those apart who share a store's room: principals, kinds of work, and addresses without keys.
    pub(super) fn share_hash(&self) -> u64 {
        self.address
            .map_or_else(|| self.scope_hash(), NonZeroU64::get)
    }

    /// Whether no key proves who calls.
    pub(super) fn is_anonymous(&self) -> bool {
        self.scope() == [METHOD, 0, 0]
    }

    /// Whose it is, for counts and logs: its principal, or the name of the work.
    pub(super) fn principal(&self) -> Principal {
        let name = self.scope().get(SCOPE_BEGIN..).unwrap_or_default();
        match name {
            [] => Principal::new("anonymous"),
            name => Principal::new(&String::from_utf8_lossy(name)),
        }
    }

    /// The hash that it brings along.
    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    /// With the hash of another key, which is one in 2^64.
    #[cfg(test)]
    pub(super) fn with_hash_of(mut self, other: &Self) -> Self {
        self.hash = other.hash;
        self
    }

    /// When the call began, which a UUIDv7 says and a caller's own key does not.
    pub fn created(&self) -> Option<Timestamp> {
        let created = self.created?;
        Some(Timestamp::from_milliseconds(created.get()))
    }
}

/// When the call began that has this key, if the key says so.
fn created(key: &[u8]) -> Option<NonZeroU64> {
    let length = usize::from(u16::from_be_bytes([*key.get(1)?, *key.get(2)?]));
    let of_method = match key.first()? {
        &METHOD => METHOD_BYTES,
        _ => 0,
    };
    let id = key.get(SCOPE_BEGIN + length + of_method..)?;
    let (&UUID, id) = id.split_first()? else {
        return None;
    };
    created_of_uuid(&uuid::Uuid::from_slice(id).ok()?)
}

fn created_of_uuid(uuid: &uuid::Uuid) -> Option<NonZeroU64> {
    // Its first 48 bits are that, by RFC 9562.
    let milliseconds = (uuid.as_u128() >> 80) as u64;
    NonZeroU64::new(milliseconds).filter(|_| uuid.get_version_num() == 7)
}

impl KeyBytes {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Short { length, bytes } => &bytes[..usize::from(*length)],
            Self::Long(bytes) => bytes,
        }
    }
}

/// Its kind, its bytes, and its milliseconds since 1970.
type Id<'a> = (u8, &'a [u8], Option<NonZeroU64>);

fn id_bytes(id: &RequestId) -> Id<'_> {
    match id {
        RequestId::Uuid(uuid) => (UUID, uuid.as_bytes(), created_of_uuid(uuid)),
        RequestId::Key(key) => (CALLERS_OWN, key.as_bytes(), None),
    }
}

// Its bytes are all of it; what they say of its age is read from them.

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.as_bytes() == other.as_bytes()
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
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.as_bytes().escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::RequestKey;
    use proptest::prelude::*;
    use std::collections::HashMap;
    use std::time::Duration;

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
    fn a_key_is_its_bytes_however_long_it_is() {
        for length in [0, 24, 25, 1000] {
            let principal = "p".repeat(length);
            let key = Key::of_call(&principal, 1, 2, &RequestId::new());
            let again = Key::from_bytes(key.as_bytes());
            assert_eq!((&again, again.hash()), (&key, key.hash()));
            assert_eq!(again.created(), key.created());
            assert!(key.created().is_some());
            assert_eq!(again.scope().len(), 3 + length);
            assert_eq!(key.as_bytes().len(), 30 + length);
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
