//! The client's socket.

use std::sync::Arc;

use omq_proto::proto::SocketType;

use super::frames::{Parts, apart};
use super::link::{Heard, NotSent};
use super::reach::{self, Reach, Reached};
use crate::transport::{
    Closed, ConnectionFailure, Endpoint, Envelope, Outgoing, Received, Refused, TransportError,
    TransportOptions,
};

pub(in crate::transport) async fn connect_dealer(
    endpoint: &Endpoint,
    options: &TransportOptions,
) -> Result<(DealerSender, DealerReceiver), TransportError> {
    let begin = Arc::new(|_: &_| {});
    let (reach, reached) = reach::connect(SocketType::Dealer, endpoint, options, begin);
    let receiver = DealerReceiver {
        reached,
        heard: Vec::new(),
    };
    Ok((DealerSender { reach }, receiver))
}

#[derive(Debug)]
pub(crate) struct DealerSender {
    reach: Reach,
}

impl DealerSender {
    pub fn try_send(&self, outgoing: Outgoing) -> Result<(), Refused> {
        let Some(link) = self.reach.link() else {
            return Err(self.no_link());
        };
        match link.try_send(Parts::from(&outgoing)) {
            Ok(()) => Ok(()),
            Err(NotSent::Full) => Err(Refused::Full(Box::new(outgoing))),
            Err(NotSent::Closed) => Err(self.no_link()),
        }
    }

    fn no_link(&self) -> Refused {
        match self.reach.is_closed() {
            true => Refused::Closed,
            false => Refused::NoPeer,
        }
    }

    pub async fn writable(&self) {
        let seen = self.reach.generation();
        match self.reach.link() {
            Some(link) => link.has_room().await,
            None => {
                // Where it is closed, the next try says so.
                let _ = self.reach.changed(seen).await;
            }
        }
    }

    pub fn is_connected(&self) -> bool {
        self.reach.is_connected()
    }

    pub fn failure(&self) -> ConnectionFailure {
        self.reach.failure()
    }

    pub fn last_lost(&self) -> Option<String> {
        self.reach.last_lost()
    }

    pub fn connection_generation(&self) -> u64 {
        self.reach.generation()
    }

    pub async fn connection_changed(&self, seen: u64) -> Result<u64, Closed> {
        self.reach.changed(seen).await
    }

    pub async fn close(&self) {
        self.reach.close().await;
    }
}

#[derive(Debug)]
pub(crate) struct DealerReceiver {
    reached: Reached,
    heard: Vec<Heard>,
}

impl DealerReceiver {
    pub async fn receive(&mut self, batch: &mut Vec<Received>) -> Result<(), Closed> {
        self.reached.receive(&mut self.heard).await?;
        for heard in self.heard.drain(..) {
            if let Heard::Message(message) = heard {
                apart(&message, &Envelope::default(), |received| {
                    batch.push(received)
                });
            }
        }
        Ok(())
    }
}
