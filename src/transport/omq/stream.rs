//! A stream of bytes over tcp or ipc: how it is connected, listened for, read and written.

use std::fmt;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixSocket, UnixStream, tcp, unix};

use crate::transport::{self, ConnectionFailure, Endpoint, ipc};

/// Connections that may wait to be accepted on a Unix socket.
const BACKLOG: u32 = 1024;

/// An open stream, in halves.
#[derive(Debug)]
pub(super) struct Stream {
    pub read: ReadHalf,
    pub write: WriteHalf,
    /// Of the other end, over tcp.
    pub address: Option<IpAddr>,
    pub peer: PeerAddress,
}

/// The other end of a stream, for the log.
#[derive(Clone, Copy, Debug)]
pub(super) enum PeerAddress {
    Tcp(SocketAddr),
    /// The process, where the system says it.
    Ipc(Option<i32>),
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Ipc(Some(process)) => write!(f, "process {process}"),
            Self::Ipc(None) => f.write_str("a process of this machine"),
        }
    }
}

#[derive(Debug)]
pub(super) enum ReadHalf {
    Tcp(tcp::OwnedReadHalf),
    Ipc(unix::OwnedReadHalf),
}

/// Shuts the stream down when it is dropped.
#[derive(Debug)]
pub(super) enum WriteHalf {
    Tcp(tcp::OwnedWriteHalf),
    Ipc(unix::OwnedWriteHalf),
}

/// Takes a Unix socket's file away with it.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    Ipc(UnixListener, Option<PathBuf>),
}

impl Stream {
    fn tcp(stream: TcpStream) -> io::Result<Self> {
        // Whoever sends has gathered already what leaves together.
        stream.set_nodelay(true)?;
        let mut peer = stream.peer_addr()?;
        // An IPv4 peer of a socket that listens on IPv6, too.
        peer.set_ip(peer.ip().to_canonical());
        let (read, write) = stream.into_split();
        Ok(Self {
            read: ReadHalf::Tcp(read),
            write: WriteHalf::Tcp(write),
            address: Some(peer.ip()),
            peer: PeerAddress::Tcp(peer),
        })
    }

    pub fn ipc(stream: UnixStream) -> Self {
        let process = stream.peer_cred().ok().and_then(|of| of.pid());
        let (read, write) = stream.into_split();
        Self {
            read: ReadHalf::Ipc(read),
            write: WriteHalf::Ipc(write),
            address: None,
            peer: PeerAddress::Ipc(process),
        }
    }

    /// Connects within a time that resolving the host name is part of.
    pub async fn connect(endpoint: &Endpoint, within: Duration) -> Result<Self, ConnectionFailure> {
        let stream = match endpoint {
            Endpoint::Tcp { .. } => {
                let stream = transport::tcp::connect(endpoint, within).await?;
                Self::tcp(stream)
            }
            _ => Self::connect_ipc(endpoint).await,
        };
        stream.map_err(|error| ConnectionFailure::from(&error))
    }

    async fn connect_ipc(endpoint: &Endpoint) -> io::Result<Self> {
        match endpoint {
            Endpoint::Ipc(path) => match abstract_name(path) {
                None => Ok(Self::ipc(UnixStream::connect(path).await?)),
                Some(name) => {
                    let stream = net::UnixStream::connect_addr(&abstract_address(name)?)?;
                    stream.set_nonblocking(true)?;
                    Ok(Self::ipc(UnixStream::from_std(stream)?))
                }
            },
            _ => Err(no_stream()),
        }
    }
}

impl ReadHalf {
    /// Reads into the room that `to` has; 0 at the end of the stream.
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(half) => pin!(half.read_buf(to)).poll(cx),
            Self::Ipc(half) => pin!(half.read_buf(to)).poll(cx),
        }
    }
}

impl WriteHalf {
    /// Writes what the system takes now; [`io::ErrorKind::WouldBlock`] where that is nothing.
    pub fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match (self, slices) {
            (Self::Tcp(half), [one]) => half.try_write(one),
            (Self::Tcp(half), many) => half.try_write_vectored(many),
            (Self::Ipc(half), [one]) => half.try_write(one),
            (Self::Ipc(half), many) => half.try_write_vectored(many),
        }
    }

    /// For the one task that reads; others have [`writable`](Self::writable).
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(half) => half.as_ref().poll_write_ready(cx),
            Self::Ipc(half) => half.as_ref().poll_write_ready(cx),
        }
    }

    pub async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(half) => half.writable().await,
            Self::Ipc(half) => half.writable().await,
        }
    }
}

impl Listener {
    /// Listens on the first of the addresses that is possible, for `tcp`; the endpoint returned has
    /// the port that was free.
    pub async fn bind(
        endpoint: &Endpoint,
        addresses: &[SocketAddr],
        ipc_mode: u32,
    ) -> io::Result<(Self, Endpoint)> {
        match endpoint {
            Endpoint::Tcp { host, .. } => {
                let listener = TcpListener::bind(addresses).await?;
                let port = listener.local_addr()?.port();
                // Keeps the host as it was given: it may be a name.
                let host = host.clone();
                Ok((Self::Tcp(listener), Endpoint::Tcp { host, port }))
            }
            Endpoint::Ipc(path) => Ok((Self::bind_ipc(path, ipc_mode)?, endpoint.clone())),
            Endpoint::Inproc(_) => Err(no_stream()),
        }
    }

    fn bind_ipc(path: &Path, mode: u32) -> io::Result<Self> {
        if let Some(name) = abstract_name(path) {
            let listener = net::UnixListener::bind_addr(&abstract_address(name)?)?;
            listener.set_nonblocking(true)?;
            return Ok(Self::Ipc(UnixListener::from_std(listener)?, None));
        }
        let socket = UnixSocket::new_stream()?;
        // Before it is bound, so that no other user can connect in between; and after it, for
        // systems that do not look, and for bits that the umask has taken away.
        ipc::restrict(&socket, mode)?;
        socket.bind(path)?;
        let listener = Self::Ipc(socket.listen(BACKLOG)?, Some(path.to_owned()));
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
        Ok(listener)
    }

    pub async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => Stream::tcp(listener.accept().await?.0),
            Self::Ipc(listener, _) => Ok(Stream::ipc(listener.accept().await?.0)),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Ipc(_, Some(path)) = self {
            // One that is gone already is what is wanted.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn abstract_name(path: &Path) -> Option<&[u8]> {
    path.as_os_str().as_bytes().strip_prefix(b"@")
}

#[cfg(target_os = "linux")]
fn abstract_address(name: &[u8]) -> io::Result<net::SocketAddr> {
    use std::os::linux::net::SocketAddrExt;
    net::SocketAddr::from_abstract_name(name)
}

#[cfg(not(target_os = "linux"))]
fn abstract_address(_: &[u8]) -> io::Result<net::SocketAddr> {
    let reason = "abstract sockets are Linux's alone";
    Err(io::Error::new(io::ErrorKind::Unsupported, reason))
}

fn no_stream() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "inproc is no stream of bytes")
}
