//! What each side of a connection has: who it is, and whom it trusts.

use super::{AccessList, AllowedKeys, Keys, PublicKey};

/// The side that binds: a server or a publisher. Only who has a key on the list is let in, and may
/// do what the access list allows: at first, nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct ServerSecurity {
    pub(crate) keys: Keys,
    pub(crate) allowed: AllowedKeys,
    pub(crate) access: AccessList,
}

/// The side that connects: a client or a subscriber. It talks to nobody but the server whose key
/// it knows.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct ClientSecurity {
    pub(crate) keys: Keys,
    pub(crate) server: PublicKey,
    pub(crate) server_also: Option<PublicKey>,
    pub(crate) publishers: Option<(AllowedKeys, AccessList)>,
}

impl ServerSecurity {
    /// Lets in whom `allowed` names, and refuses all that they ask for.
    pub fn new(keys: Keys, allowed: AllowedKeys) -> Self {
        Self {
            keys,
            allowed,
            access: AccessList::default(),
        }
    }

    /// Says what they may do: [`AccessRules`](super::AccessRules), or an [`AccessList`] that
    /// others share.
    pub fn with_access(mut self, access: impl Into<AccessList>) -> Self {
        self.access = access.into();
        self
    }
}

impl ClientSecurity {
    /// Shows `keys` to the server that has the secret of `server`, and to no other.
    pub fn new(keys: Keys, server: PublicKey) -> Self {
        Self {
            keys,
            server,
            server_also: None,
            publishers: None,
        }
    }

    /// Accepts a second server key too, while servers go from one to the other. Each is tried in the
    /// background for as long as both are here, so take the old one out afterwards.
    pub fn with_second_server(mut self, server: PublicKey) -> Self {
        self.server_also = Some(server);
        self
    }

    /// For a subscriber: takes events only from a publisher whose key is in `publishers`, and only under
    /// the topics that `access` lets its principal [publish](super::AccessRules::publish). Others
    /// are dropped and counted. Without this, whoever has the pinned key may publish everything.
    pub fn with_publishers(
        mut self,
        publishers: AllowedKeys,
        access: impl Into<AccessList>,
    ) -> Self {
        self.publishers = Some((publishers, access.into()));
        self
    }
}
