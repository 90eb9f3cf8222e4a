//! One echo service, seven ways. Each opens a server on a free loopback port and a client to it.
//!
//! A contender says how one call is made; how many at once, and what is measured, is `measure`'s.

mod bowline;
pub mod capnp_rpc;
mod raw;
mod tarpc;
mod tonic;

use std::net::SocketAddr;
use std::rc::Rc;

use futures::future::LocalBoxFuture;

/// What each call carries, both ways.
pub const TEXT: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

pub type AnyError = Box<dyn std::error::Error + Send + Sync>;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Bowline,
    RawSocket,
    RawSocketOneFrame,
    RawTcp,
    Tarpc,
    Tonic,
    CapnpRpc,
}

impl Kind {
    pub const ALL: [Self; 7] = [
        Self::Bowline,
        Self::RawSocket,
        Self::RawSocketOneFrame,
        Self::RawTcp,
        Self::Tarpc,
        Self::Tonic,
        Self::CapnpRpc,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Bowline => "Bowline",
            Self::RawSocket => "raw omq socket, three frames",
            Self::RawSocketOneFrame => "raw omq socket, one frame",
            Self::RawTcp => "raw tokio TCP",
            Self::Tarpc => "tarpc",
            Self::Tonic => "tonic",
            Self::CapnpRpc => "capnp-rpc",
        }
    }

    /// Binds, tells where, and serves until the runtime ends.
    pub async fn serve(self, tell: impl FnOnce(SocketAddr)) -> Result<(), AnyError> {
        match self {
            Self::Bowline => bowline::serve(tell).await,
            Self::RawSocket | Self::RawSocketOneFrame => raw::serve_socket(tell).await,
            Self::RawTcp => raw::serve_tcp(tell).await,
            Self::Tarpc => tarpc::serve(tell).await,
            Self::Tonic => tonic::serve(tell).await,
            Self::CapnpRpc => capnp_rpc::serve(tell).await,
        }
    }

    pub async fn connect(self, address: SocketAddr) -> Result<Rc<dyn Caller>, AnyError> {
        Ok(match self {
            Self::Bowline => Rc::new(bowline::connect(address).await?),
            Self::RawSocket => Rc::new(raw::connect_socket(address).await?),
            Self::RawSocketOneFrame => Rc::new(raw::connect_socket_of_one_frame(address).await?),
            Self::RawTcp => Rc::new(raw::connect_tcp(address).await?),
            Self::Tarpc => Rc::new(tarpc::connect(address).await?),
            Self::Tonic => Rc::new(tonic::connect(address).await?),
            Self::CapnpRpc => Rc::new(capnp_rpc::connect(address).await?),
        })
    }
}

/// A client. All are called through a box a call: the same small cost for each.
pub trait Caller {
    /// One call, whose reply is read and checked.
    fn call(&self) -> LocalBoxFuture<'_, Result<(), AnyError>>;
}
