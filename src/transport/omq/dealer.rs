//! The client's socket.

use omq_tokio::{MessagePool, SocketType, TrySendError};

use super::pair::{self, Pair, PairReceiver};
use super::{TABLES_KEPT, to_frames, to_message};
use crate::transport::{
    Closed, Endpoint, Frames, Received, Refused, TransportError, TransportOptions,
};

pub(in crate::transport) async fn connect_dealer(
    endpoint: &Endpoint,
    from: &TransportOptions,
) -> Result<(DealerSender, DealerReceiver), TransportError> {
    let (pair, receiver) = pair::connect(SocketType::Dealer, endpoint, from).await?;
    let sender = DealerSender {
        pair,
        pool: MessagePool::new(TABLES_KEPT, 4),
    };
    Ok((sender, DealerReceiver { receiver }))
}

#[derive(Debug)]
pub(crate) struct DealerSender {
    pair: Pair,
    pool: MessagePool,
}

impl DealerSender {
    pub fn try_send(&self, frames: Frames) -> Result<(), Refused> {
        match self.pair.current().try_send(to_message(&self.pool, frames)) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(message)) => match to_frames(&message) {
                Ok(frames) => Err(Refused::Full(Box::new(frames))),
                Err(_) => Err(Refused::Closed), // it gives back what it was given
            },
            Err(_) => Err(Refused::Closed),
        }
    }

    pub async fn writable(&self) {
        self.pair.current().wait_send_ready().await;
    }

    pub fn is_connected(&self) -> bool {
        self.pair.is_connected()
    }

    pub fn connection_generation(&self) -> u64 {
        self.pair.generation()
    }

    pub async fn connection_changed(&self, seen: u64) -> Result<u64, Closed> {
        self.pair.changed(seen).await
    }

    pub async fn close(&self) {
        self.pair.close().await;
    }
}

#[derive(Debug)]
pub(crate) struct DealerReceiver {
    receiver: PairReceiver,
}

impl DealerReceiver {
    pub async fn receive(&mut self, batch: &mut Vec<Received>) -> Result<(), Closed> {
        let (_, messages) = self.receiver.receive().await?;
        batch.extend(messages.map(|message| to_frames(&message)));
        Ok(())
    }
}
