//! The server's socket.

use std::sync::Arc;

use omq_tokio::{Error, Identity, IdentitySocket, MessagePool, Socket, SocketType, TrySendError};

use super::{TABLES_KEPT, actual, options, to_error, to_frames, to_message};
use crate::transport::{
    self, BATCH_MAX, Closed, Endpoint, Frames, Received, Refused, TransportError, TransportOptions,
};

/// The peer's routing identity, as omq knows it. Not a principal: any peer may claim any.
#[derive(Clone, Debug)]
pub(crate) struct Peer(Identity);

pub(in crate::transport) async fn bind_router(
    endpoint: &Endpoint,
    from: &TransportOptions,
) -> Result<(RouterSender, RouterReceiver, Endpoint), TransportError> {
    let failed = |error| to_error(endpoint, error);
    let options = options(from).router_mandatory(true);
    let socket = Socket::try_new(SocketType::Router, options).map_err(failed)?;
    let bound = socket.bind(endpoint.to_string()).await.map_err(failed)?;
    let actual = actual(endpoint, &bound)?;
    let receiver = RouterReceiver {
        socket: socket.identity_routing().map_err(failed)?,
    };
    let sender = RouterSender {
        socket: Arc::new(socket),
        bound,
        pool: MessagePool::new(TABLES_KEPT, 4),
    };
    Ok((sender, receiver, actual))
}

#[derive(Clone, Debug)]
pub(crate) struct RouterSender {
    socket: Arc<Socket>,
    bound: omq_tokio::Endpoint,
    pool: MessagePool,
}

impl RouterSender {
    pub fn try_send(&self, peer: &Peer, frames: Frames) -> Result<(), Refused> {
        match self
            .socket
            .try_send_to(&peer.0, to_message(&self.pool, frames))
        {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(message)) => match to_frames(&message) {
                Ok(frames) => Err(Refused::Full(frames)),
                Err(_) => Err(Refused::Closed), // it gives back what it was given
            },
            Err(TrySendError::Error(Error::Unroutable)) => Err(Refused::NoPeer),
            Err(_) => Err(Refused::Closed),
        }
    }

    pub async fn stop_accepting(&self) {
        // The only error is that the socket is closed already.
        let _ = self.socket.unbind(self.bound.clone()).await;
    }

    pub async fn close(&self) {
        let _ = self.socket.clone_shared().close().await;
    }
}

#[derive(Debug)]
pub(crate) struct RouterReceiver {
    socket: IdentitySocket,
}

impl RouterReceiver {
    pub async fn receive(
        &mut self,
        batch: &mut Vec<(transport::Peer, Received)>,
    ) -> Result<(), Closed> {
        let mut next = self.socket.recv_from().await.map_err(|_| Closed)?;
        loop {
            let (peer, message) = next;
            batch.push((transport::Peer::Omq(Peer(peer)), to_frames(&message)));
            if batch.len() >= BATCH_MAX {
                return Ok(());
            }
            match self.socket.try_recv_from() {
                Ok(received) => next = received,
                Err(_) => return Ok(()),
            }
        }
    }
}
