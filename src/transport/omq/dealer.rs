//! The client's socket.

use omq_tokio::{Message, MessagePool, Socket, SocketType, TrySendError};

use super::{TABLES_KEPT, options, to_error, to_frames, to_message};
use crate::transport::{
    BATCH_MAX, Closed, Endpoint, Frames, Received, Refused, TransportError, TransportOptions,
};

pub(in crate::transport) async fn connect_dealer(
    endpoint: &Endpoint,
    from: &TransportOptions,
) -> Result<(DealerSender, DealerReceiver), TransportError> {
    let socket = Socket::try_new(SocketType::Dealer, options(from))
        .map_err(|error| to_error(endpoint, error))?;
    socket
        .connect(endpoint.to_string())
        .await
        .map_err(|error| to_error(endpoint, error))?;
    let receiver = DealerReceiver {
        socket: socket.clone_shared(),
        messages: Vec::with_capacity(BATCH_MAX),
    };
    let sender = DealerSender {
        socket,
        pool: MessagePool::new(TABLES_KEPT, 4),
    };
    Ok((sender, receiver))
}

#[derive(Debug)]
pub(crate) struct DealerSender {
    socket: Socket,
    pool: MessagePool,
}

impl DealerSender {
    pub fn try_send(&self, frames: Frames) -> Result<(), Refused> {
        match self.socket.try_send(to_message(&self.pool, frames)) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(message)) => match to_frames(&message) {
                Ok(frames) => Err(Refused::Full(frames)),
                Err(_) => Err(Refused::Closed), // it gives back what it was given
            },
            Err(_) => Err(Refused::Closed),
        }
    }

    pub async fn writable(&self) {
        self.socket.wait_send_ready().await;
    }

    pub fn is_connected(&self) -> bool {
        self.socket.ready_peer_count() > 0
    }

    pub fn connection_generation(&self) -> u64 {
        self.socket.connections_generation()
    }

    pub async fn connection_changed(&self, seen: u64) -> Result<u64, Closed> {
        self.socket
            .connections_changed(seen)
            .await
            .map_err(|_| Closed)
    }

    pub async fn close(&self) {
        // The only error is that the socket is closed already.
        let _ = self.socket.clone_shared().close().await;
    }
}

#[derive(Debug)]
pub(crate) struct DealerReceiver {
    socket: Socket,
    messages: Vec<Message>,
}

impl DealerReceiver {
    pub async fn receive(&mut self, batch: &mut Vec<Received>) -> Result<(), Closed> {
        self.socket
            .recv_many_into(BATCH_MAX, &mut self.messages)
            .await
            .map_err(|_| Closed)?;
        batch.extend(self.messages.drain(..).map(|message| to_frames(&message)));
        Ok(())
    }
}
