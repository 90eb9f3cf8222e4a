//! The client's socket.

use omq_tokio::{MessagePool, SocketType, TrySendError};

use super::pair::{self, Pair, PairReceiver};
use super::{TABLES_KEPT, apart, given_back, to_message};
use crate::transport::{
    Closed, Endpoint, Outgoing, Received, Refused, TransportError, TransportOptions,
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
    pub fn try_send(&self, outgoing: Outgoing) -> Result<(), Refused> {
        let calls = outgoing.calls();
        let message = to_message(&self.pool, outgoing);
        match self.pair.current().try_send(message) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(message)) => match given_back(&message, calls) {
                Some(back) => Err(Refused::Full(Box::new(back))),
                None => Err(Refused::Closed), // it gives back what it was given
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
        messages.for_each(|message| apart(&message, |received| batch.push(received)));
        Ok(())
    }
}
