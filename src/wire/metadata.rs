//! What travels beside a body: metadata of the application, and the context of a trace.

use bytes::Bytes;

use super::HeaderError;
use crate::wire_capnp;

/// Key-value pairs beside a body: a tenant, a locale, a feature flag. Not for secrets, not for bulk.
///
/// Keys may repeat; order is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Most messages have none, and are moved about a lot. Never empty.
    #[expect(clippy::box_collection, reason = "one word where there is none")]
    entries: Option<Box<Vec<Entry>>>,
}

type Entry = (Box<str>, Bytes);

/// The entry does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "metadata is limited to {} entries and {} bytes",
    Metadata::ENTRIES_MAX,
    Metadata::BYTES_MAX
)]
pub struct MetadataError;

impl Metadata {
    /// Most entries of one message.
    pub const ENTRIES_MAX: usize = 64;
    /// Most bytes of keys and values of one message together.
    pub const BYTES_MAX: usize = 16 * 1024;

    /// Without entries; allocates nothing.
    pub const fn new() -> Self {
        Self { entries: None }
    }

    /// Appends an entry.
    ///
    /// # Errors
    /// Over [`ENTRIES_MAX`](Self::ENTRIES_MAX) or [`BYTES_MAX`](Self::BYTES_MAX); the metadata is as before.
    pub fn insert(
        &mut self,
        key: impl Into<Box<str>>,
        value: impl Into<Bytes>,
    ) -> Result<(), MetadataError> {
        let (key, value) = (key.into(), value.into());
        if self.len() == Self::ENTRIES_MAX
            || self.bytes() + key.len() + value.len() > Self::BYTES_MAX
        {
            return Err(MetadataError);
        }
        self.entries.get_or_insert_default().push((key, value));
        Ok(())
    }

    /// The first value of `key`.
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        self.iter().find(|(k, _)| *k == key).map(|(_, value)| value)
    }

    /// All entries in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let entries = self.entries.as_deref().into_iter().flatten();
        entries.map(|(key, value)| (&**key, &value[..]))
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.entries.is_none()
    }

    fn len(&self) -> usize {
        self.entries.as_deref().map_or(0, Vec::len)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.iter()
            .map(|(key, value)| key.len() + value.len())
            .sum()
    }

    pub(super) fn write<'a>(
        &self,
        init: impl FnOnce(u32) -> capnp::struct_list::Builder<'a, wire_capnp::metadata::Owned>,
    ) {
        if self.is_empty() {
            return;
        }
        let mut list = init(self.len() as u32); // at most ENTRIES_MAX
        for (i, (key, value)) in self.iter().enumerate() {
            let mut entry = list.reborrow().get(i as u32);
            entry.set_key(key);
            entry.set_value(value);
        }
    }

    pub(super) fn read(
        list: capnp::struct_list::Reader<'_, wire_capnp::metadata::Owned>,
    ) -> Result<Self, HeaderError> {
        let mut metadata = Self::new();
        for entry in list {
            metadata
                .insert(
                    entry.get_key()?.to_str()?,
                    Bytes::copy_from_slice(entry.get_value()?),
                )
                .map_err(|error| HeaderError::Malformed(error.to_string()))?;
        }
        Ok(metadata)
    }
}

/// The trace that a request or an event belongs to, as in
/// [W3C Trace Context](https://www.w3.org/TR/trace-context/).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// Of the whole trace; never 0.
    pub trace_id: u128,
    /// The span that caused this message; never 0.
    pub parent_id: u64,
    /// Bit 0: sampled.
    pub flags: u8,
    /// Vendor data, opaque.
    pub state: Option<Box<str>>,
}

impl TraceContext {
    pub(super) fn write(&self, mut to: wire_capnp::trace_context::Builder<'_>) {
        to.set_trace_id_high((self.trace_id >> 64) as u64);
        to.set_trace_id_low(self.trace_id as u64);
        to.set_parent_id(self.parent_id);
        to.set_flags(self.flags);
        if let Some(state) = &self.state {
            to.set_state(&state[..]);
        }
    }

    pub(super) fn read(from: wire_capnp::trace_context::Reader<'_>) -> Result<Self, HeaderError> {
        Ok(Self {
            trace_id: u128::from(from.get_trace_id_high()) << 64
                | u128::from(from.get_trace_id_low()),
            parent_id: from.get_parent_id(),
            flags: from.get_flags(),
            state: match from.has_state() {
                true => Some(from.get_state()?.to_str()?.into()),
                false => None,
            },
        })
    }
}
