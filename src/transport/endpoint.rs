//! Where a socket binds or connects: a checked address.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

/// The host that stands for all addresses of this machine.
pub(super) const ALL_ADDRESSES: &str = "*";

/// `tcp://host:port`, `ipc://path` or `inproc://name`.
///
/// Port 0 binds to a free port; what is bound then says which. `tcp://*:port` binds all addresses of this
/// machine, IPv6 and IPv4; to connect, it is the loopback address. An `ipc` path that starts with `@`
/// names a Linux abstract socket, which any user of the machine can connect to.
///
/// ```
/// # use bowline::Endpoint;
/// let endpoint: Endpoint = "tcp://127.0.0.1:5555".parse()?;
/// assert_eq!(endpoint.to_string(), "tcp://127.0.0.1:5555");
/// assert!("http://example.org".parse::<Endpoint>().is_err());
/// # Ok::<(), bowline::EndpointError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Endpoint {
    /// A TCP address.
    #[non_exhaustive]
    Tcp {
        /// A name, an address, or `*` for all addresses; an IPv6 address without its brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// A Unix socket.
    Ipc(PathBuf),
    /// A name within this process.
    Inproc(String),
}

/// Why a text is no endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is no endpoint ({reason}); expected tcp://host:port, ipc://path or inproc://name"
)]
pub struct EndpointError {
    text: String,
    reason: &'static str,
}

impl Endpoint {
    /// Whether only processes of this machine can reach it, as far as its text says: of names, only
    /// `localhost` is taken for local. Binding looks at the addresses of a name.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Ipc(_) | Self::Inproc(_) => true,
            Self::Tcp { host, .. } => match without_zone(host).parse::<IpAddr>() {
                Ok(address) => address.is_loopback(),
                Err(_) => host == "localhost",
            },
        }
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let error = |reason| EndpointError {
            text: text.to_owned(),
            reason,
        };
        let (scheme, rest) = text.split_once("://").ok_or_else(|| error("no scheme"))?;
        if rest.is_empty() {
            return Err(error("nothing after the scheme"));
        }
        if rest.chars().any(char::is_control) {
            return Err(error("a control character"));
        }
        match scheme {
            "tcp" => {
                let (host, port) = rest.rsplit_once(':').ok_or_else(|| error("no port"))?;
                let port = port.parse().map_err(|_| error("a port is 0 to 65535"))?;
                let host = match host {
                    ALL_ADDRESSES => ALL_ADDRESSES.to_owned(),
                    _ => match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
                        Some(address) if is_ipv6(address) => address.to_owned(),
                        Some(_) => return Err(error("only an IPv6 address stands in brackets")),
                        None if host.contains(':') => {
                            return Err(error("an IPv6 address stands in brackets"));
                        }
                        None => host.to_owned(),
                    },
                };
                if host.is_empty() {
                    return Err(error("no host"));
                }
                if host.contains(['[', ']']) {
                    return Err(error("brackets stand around a whole IPv6 address"));
                }
                Ok(Self::Tcp { host, port })
            }
            "ipc" => Ok(Self::Ipc(rest.into())),
            "inproc" => Ok(Self::Inproc(rest.to_owned())),
            _ => Err(error("an unknown scheme")),
        }
    }
}

/// With or without a zone, as in `fe80::1%eth0` (RFC 4007, section 11).
fn is_ipv6(text: &str) -> bool {
    without_zone(text).parse::<Ipv6Addr>().is_ok()
}

pub(super) fn without_zone(text: &str) -> &str {
    text.split_once('%').map_or(text, |(address, _)| address)
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
            Self::Ipc(path) => write!(f, "ipc://{}", path.display()),
            Self::Inproc(name) => write!(f, "inproc://{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_reads_back() {
        for text in [
            "tcp://127.0.0.1:0",
            "tcp://[::1]:65535",
            "tcp://[fe80::1%eth0]:80",
            "tcp://*:80",
            "tcp://example.org:80",
            "ipc://run/login.sock",
            "ipc://@login",
            "inproc://login",
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_endpoint_says_why() {
        for (text, reason) in [
            ("login", "no scheme"),
            ("tcp://", "nothing after the scheme"),
            ("tcp://localhost", "no port"),
            ("tcp://localhost:65536", "a port is"),
            ("tcp://::1:80", "brackets"),
            ("tcp://:80", "no host"),
            ("tcp://[[::1]]:80", "in brackets"),
            ("tcp://[*]:80", "in brackets"),
            ("tcp://[localhost]:80", "in brackets"),
            ("tcp://local[host:80", "around a whole"),
            ("tcp://[::1:80", "brackets"),
            ("udp://localhost:80", "unknown scheme"),
            ("inproc://a\nb", "control"),
        ] {
            let error = text.parse::<Endpoint>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn local_is_what_another_machine_cannot_reach() {
        for (text, local) in [
            ("tcp://127.0.0.1:1", true),
            ("tcp://127.9.9.9:1", true),
            ("tcp://[::1]:1", true),
            ("tcp://[::1%lo]:1", true),
            ("tcp://[fe80::1%eth0]:1", false),
            ("tcp://localhost:1", true),
            ("ipc://x", true),
            ("inproc://x", true),
            ("tcp://*:1", false),
            ("tcp://0.0.0.0:1", false),
            ("tcp://[::]:1", false),
            ("tcp://10.0.0.1:1", false),
            ("tcp://example.org:1", false),
        ] {
            assert_eq!(
                text.parse::<Endpoint>().unwrap().is_local(),
                local,
                "{text}"
            );
        }
    }
}
