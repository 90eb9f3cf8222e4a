//! Addresses of `tcp` endpoints: which one to connect to, and which ones to bind.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout_at};

use super::endpoint::{ALL_ADDRESSES, without_zone};
use super::{ConnectionFailure, Endpoint, TransportError};

/// Connects within a time that resolving the host name is part of; an endpoint of another kind is
/// not found.
pub(super) async fn connect(
    endpoint: &Endpoint,
    within: Duration,
) -> Result<TcpStream, ConnectionFailure> {
    let (host, port) = match endpoint {
        // Of this machine, any address will do.
        Endpoint::Tcp { host, port } if host == ALL_ADDRESSES => ("127.0.0.1", *port),
        Endpoint::Tcp { host, port } => (host.as_str(), *port),
        Endpoint::Ipc(_) | Endpoint::Inproc(_) => ("", 0),
    };
    let until = Instant::now() + within;
    let addresses = timeout_at(until, lookup_host((resolvable(host), port))).await;
    let addresses = addresses
        .map_err(|_| ConnectionFailure::name_timeout(host, within))?
        .map_err(|error| ConnectionFailure::name_not_found(host, &error))?;
    let mut failure = None;
    for address in addresses {
        match timeout_at(until, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => failure = Some(ConnectionFailure::from(&error)),
            Err(_) => return Err(ConnectionFailure::connect_timeout(within)),
        }
    }
    Err(failure.unwrap_or_else(|| {
        let none = io::Error::other("the name has no address");
        ConnectionFailure::name_not_found(host, &none)
    }))
}

/// Returns the addresses that an endpoint may be bound to, the best first; none where it is not a
/// `tcp` endpoint. They are what is checked and what is bound: a name is resolved once.
pub(super) async fn to_bind(endpoint: &Endpoint) -> Result<Vec<SocketAddr>, TransportError> {
    let Endpoint::Tcp { host, port } = endpoint else {
        return Ok(Vec::new());
    };
    if host == ALL_ADDRESSES {
        // The first takes IPv4 as well; the second is for machines without IPv6.
        let (v6, v4) = (Ipv6Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED);
        return Ok(vec![(v6, *port).into(), (v4, *port).into()]);
    }
    let resolved = lookup_host((resolvable(host), *port)).await;
    resolved
        .map(Iterator::collect)
        .map_err(|error| TransportError::Refused {
            endpoint: endpoint.clone(),
            reason: format!(
                "`{host}` is neither an address nor a host name that can be resolved ({error}); \
                 the names of network interfaces are not supported"
            ),
        })
}

/// Returns the host without its zone where it is a loopback address, which needs none and which resolvers refuse with one.
fn resolvable(host: &str) -> &str {
    let address = without_zone(host);
    match address.parse::<IpAddr>() {
        Ok(loopback) if loopback.is_loopback() => address,
        _ => host,
    }
}
