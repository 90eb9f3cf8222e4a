//! The subscriber's socket.

use bytes::Bytes;
use omq_tokio::{Message, Socket, SocketType};

use super::{PARTS, options, to_error};
use crate::transport::{
    BATCH_MAX, Closed, Endpoint, Malformed, TopicFrames, TransportError, TransportOptions,
};

pub(in crate::transport) async fn connect_subscribe(
    endpoint: &Endpoint,
    from: &TransportOptions,
) -> Result<(SubscribeSender, SubscribeReceiver), TransportError> {
    let failed = |error| to_error(endpoint, error);
    let socket = Socket::try_new(SocketType::Sub, options(from)).map_err(failed)?;
    socket.connect(endpoint.to_string()).await.map_err(failed)?;
    let receiver = SubscribeReceiver {
        socket: socket.clone_shared(),
        messages: Vec::with_capacity(BATCH_MAX),
    };
    Ok((SubscribeSender { socket }, receiver))
}

#[derive(Debug)]
pub(crate) struct SubscribeSender {
    socket: Socket,
}

impl SubscribeSender {
    pub async fn subscribe(&self, prefix: Bytes) -> Result<(), Closed> {
        self.socket.subscribe(prefix).await.map_err(|_| Closed)
    }

    pub async fn unsubscribe(&self, prefix: Bytes) -> Result<(), Closed> {
        self.socket.unsubscribe(prefix).await.map_err(|_| Closed)
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
pub(crate) struct SubscribeReceiver {
    socket: Socket,
    messages: Vec<Message>,
}

impl SubscribeReceiver {
    pub async fn receive(
        &mut self,
        batch: &mut Vec<Result<TopicFrames, Malformed>>,
    ) -> Result<(), Closed> {
        self.socket
            .recv_many_into(BATCH_MAX, &mut self.messages)
            .await
            .map_err(|_| Closed)?;
        batch.extend(self.messages.drain(..).map(|message| frames(&message)));
        Ok(())
    }
}

fn frames(message: &Message) -> Result<TopicFrames, Malformed> {
    let parts = message.len();
    match message.try_as_parts::<PARTS>() {
        Ok([topic, header, body]) => Ok(TopicFrames {
            topic,
            header,
            body,
        }),
        Err(_) => Err(Malformed { parts }),
    }
}
