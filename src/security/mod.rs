//! Keys, principals, and who may do what: the state and the rules. No sockets, no tasks, no clock.
//!
//! A peer proves with CURVE that it has the secret of its [`PublicKey`]; the list of
//! [`AllowedKeys`] gives that key a name, its [`Principal`]; the [`AccessList`] says what the name
//! may do. `transport` does the handshake and shows the key, `call` and `topic` ask the list.
//!
//! ```
//! use bowline::security::{AccessRules, AllowedKeys, ClientSecurity, Keys, ServerSecurity};
//!
//! let (server, web) = (Keys::generate(), Keys::generate());
//!
//! let allowed = AllowedKeys::new();
//! allowed.allow("web", web.public())?;
//! let rules = AccessRules::new().call("web", "login", "*");
//! let server_side = ServerSecurity::new(server.clone(), allowed).with_access(rules);
//!
//! let client_side = ClientSecurity::new(web, server.public());
//! # let _ = (server_side, client_side);
//! # Ok::<(), bowline::security::KeyError>(())
//! ```
//!
//! docs/security.md says how to run it, SECURITY.md against what it helps.

mod access;
mod admission;
mod allowed;
mod file;
mod keys;
mod live;
mod principal;
mod reload;
mod share;
mod sides;
mod subscriptions;
mod tally;
mod z85;

pub use access::{AccessError, AccessList, AccessRules, QueueRight};
pub(crate) use access::{Known, KnownService};
pub(crate) use admission::{AdmissionRefused, Admissions, Handshakes};
pub use allowed::AllowedKeys;
pub use keys::{KeyError, Keys, PublicKey};
pub use principal::Principal;
pub(crate) use reload::refresh;
pub(crate) use share::{Address, Holder, Pool, Share, Shares, may_take};
pub use sides::{ClientSecurity, ServerSecurity};
pub(crate) use subscriptions::{Subscriptions, Wanted};
pub(crate) use tally::Tally;

#[cfg(fuzzing)]
pub(crate) use keys::read_any as read_any_keys;

/// For fuzzing: any text as a file of keys and rules.
#[cfg(fuzzing)]
pub(crate) fn read_any(text: &str) {
    let _ = file::parse(text);
}
