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
mod keys;
mod live;
mod principal;
mod sides;
mod subscriptions;
mod tally;
mod z85;

pub use access::{AccessError, AccessList, AccessRules, QueueRight};
pub(crate) use admission::Admissions;
pub use allowed::AllowedKeys;
pub use keys::{KeyError, Keys, PublicKey};
use live::Refreshed;
pub use principal::Principal;
pub(crate) use sides::refresh;
pub use sides::{ClientSecurity, ServerSecurity};
pub(crate) use subscriptions::{Subscriptions, Wanted};
pub(crate) use tally::Tally;

/// Reads TOML. What is wrong with it is said by line, without the line: a file of secrets may have been
/// given for a list.
fn from_toml<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    toml::from_str(text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.map_or(1, |before| before.matches('\n').count() + 1);
        format!("line {line}: {}", error.message())
    })
}

#[cfg(fuzzing)]
pub(crate) use keys::read_any as read_any_keys;

/// For fuzzing: any text as each of the lists.
#[cfg(fuzzing)]
pub(crate) fn read_any(text: &str) {
    allowed::parse_any(text);
    access::parse_any(text);
}
