//! Calls in process: dealer and router.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, Weak};

use tokio::sync::{mpsc, watch};

use super::{Registry, lock};
use crate::transport::connection::Connection;
use crate::transport::{
    BATCH_MAX, Closed, ConnectionFailure, Form, Outgoing, Peer, Received, Refused, Requests,
    TransportError, TransportOptions, unpack,
};

static ROUTERS: LazyLock<Registry<Router>> = LazyLock::new(Registry::new);

fn apart(message: Outgoing, take: impl FnMut(Received)) {
    match message {
        Outgoing::Classic(frames) => std::iter::once(Ok((Form::Classic, frames))).for_each(take),
        Outgoing::Compact(packed) => unpack(&packed.bytes).for_each(take),
    }
}

// ---- router ----

#[derive(Debug)]
struct Router {
    name: String,
    requests: mpsc::Sender<(u64, Outgoing)>,
    peers: Mutex<Peers>,
}

#[derive(Debug, Default)]
struct Peers {
    replies: HashMap<u64, mpsc::Sender<Outgoing>>,
    last: u64,
    closed: bool,
}

impl Router {
    fn attach(&self, replies: mpsc::Sender<Outgoing>) -> Option<u64> {
        let mut peers = lock(&self.peers);
        if peers.closed {
            return None;
        }
        peers.last += 1;
        let id = peers.last;
        peers.replies.insert(id, replies);
        Some(id)
    }

    fn stop_accepting(&self) {
        ROUTERS.unbind(&self.name, self);
    }

    fn close(&self) {
        self.stop_accepting();
        let mut peers = lock(&self.peers);
        peers.closed = true;
        peers.replies.clear();
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.stop_accepting();
    }
}

pub(in crate::transport) fn bind_router(
    name: &str,
    options: &TransportOptions,
) -> Result<(RouterSender, RouterReceiver), TransportError> {
    let (requests, received) = mpsc::channel(options.receive_queue_max.max(1) as usize);
    let router = Arc::new(Router {
        name: name.to_owned(),
        requests,
        peers: Mutex::default(),
    });
    ROUTERS.bind(name, &router)?;
    let receiver = RouterReceiver {
        received,
        router: Arc::clone(&router),
    };
    Ok((RouterSender { router }, receiver))
}

#[derive(Clone, Debug)]
pub(crate) struct RouterSender {
    router: Arc<Router>,
}

impl RouterSender {
    pub fn try_send(&self, peer: u64, message: Outgoing) -> Result<(), Refused> {
        let mut peers = lock(&self.router.peers);
        if peers.closed {
            return Err(Refused::Closed);
        }
        let Some(replies) = peers.replies.get(&peer) else {
            return Err(Refused::NoPeer);
        };
        match replies.try_send(message) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Full(back)) => Err(Refused::Full(Box::new(back))),
            Err(mpsc::error::TrySendError::Closed(_)) => {
                peers.replies.remove(&peer);
                Err(Refused::NoPeer)
            }
        }
    }

    pub async fn gone(&self, peer: u64) {
        let replies = lock(&self.router.peers).replies.get(&peer).cloned();
        if let Some(replies) = replies {
            replies.closed().await;
        }
    }

    pub async fn stop_accepting(&self) {
        self.router.stop_accepting();
    }

    pub async fn close(&self) {
        self.router.close();
    }
}

#[derive(Debug)]
pub(crate) struct RouterReceiver {
    received: mpsc::Receiver<(u64, Outgoing)>,
    router: Arc<Router>,
}

impl RouterReceiver {
    pub async fn receive(&mut self, batch: &mut Requests) -> Result<(), Closed> {
        let mut next = self.received.recv().await;
        while let Some((peer, message)) = next {
            apart(message, batch.of(Peer::Memory(peer)));
            if batch.len() >= BATCH_MAX {
                return Ok(());
            }
            next = self.received.try_recv().ok();
        }
        if batch.is_empty() {
            Err(Closed)
        } else {
            Ok(())
        }
    }
}

impl Drop for RouterReceiver {
    fn drop(&mut self) {
        self.router.close();
    }
}

// ---- dealer ----

#[derive(Debug)]
struct Link {
    id: u64,
    router: Weak<Router>,
    requests: mpsc::Sender<(u64, Outgoing)>,
}

/// What the two halves of a dealer share.
#[derive(Debug)]
struct Dealer {
    name: String,
    replies_max: usize,
    link: Mutex<Option<Link>>,
    connection: Connection,
}

impl Dealer {
    /// Finds the router of the name, if there is one now.
    fn attach(&self) -> Option<mpsc::Receiver<Outgoing>> {
        let router = ROUTERS.find(&self.name)?;
        let (replies, received) = mpsc::channel(self.replies_max);
        let id = router.attach(replies)?;
        *lock(&self.link) = Some(Link {
            id,
            router: Arc::downgrade(&router),
            requests: router.requests.clone(),
        });
        self.connection.set(true);
        Some(received)
    }

    fn detach(&self) {
        if let Some(link) = lock(&self.link).take() {
            if let Some(router) = link.router.upgrade() {
                lock(&router.peers).replies.remove(&link.id);
            }
            self.connection.lost("closed by the peer");
            self.connection.failed(ConnectionFailure::not_bound());
            self.connection.set(false);
        }
    }
}

pub(in crate::transport) fn connect_dealer(
    name: &str,
    options: &TransportOptions,
) -> (DealerSender, DealerReceiver) {
    let dealer = Arc::new(Dealer {
        name: name.to_owned(),
        replies_max: options.receive_queue_max.max(1) as usize,
        link: Mutex::new(None),
        connection: Connection::new(),
    });
    dealer.connection.failed(ConnectionFailure::not_bound());
    let bound = ROUTERS.bound.subscribe();
    let replies = dealer.attach();
    let receiver = DealerReceiver {
        dealer: Arc::clone(&dealer),
        replies,
        bound,
    };
    (DealerSender { dealer }, receiver)
}

#[derive(Debug)]
pub(crate) struct DealerSender {
    dealer: Arc<Dealer>,
}

impl DealerSender {
    pub fn try_send(&self, message: Outgoing) -> Result<(), Refused> {
        if self.dealer.connection.is_closed() {
            return Err(Refused::Closed);
        }
        let link = lock(&self.dealer.link);
        let Some(link) = &*link else {
            return Err(Refused::NoPeer);
        };
        link.requests
            .try_send((link.id, message))
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full((_, back)) => Refused::Full(Box::new(back)),
                mpsc::error::TrySendError::Closed(_) => Refused::NoPeer,
            })
    }

    pub async fn writable(&self) {
        let requests = lock(&self.dealer.link).as_ref().map(|l| l.requests.clone());
        if let Some(requests) = requests {
            // Either outcome makes another try worth while.
            let _ = requests.reserve().await;
        }
    }

    pub fn is_connected(&self) -> bool {
        self.dealer.connection.is_connected()
    }

    pub fn failure(&self) -> ConnectionFailure {
        self.dealer.connection.failure()
    }

    pub fn last_lost(&self) -> Option<String> {
        self.dealer.connection.last_lost()
    }

    pub fn connection_generation(&self) -> u64 {
        self.dealer.connection.generation()
    }

    pub async fn connection_changed(&self, seen: u64) -> Result<u64, Closed> {
        self.dealer.connection.changed(seen).await
    }

    pub async fn close(&self) {
        self.dealer.connection.close();
        self.dealer.detach();
    }
}

#[derive(Debug)]
pub(crate) struct DealerReceiver {
    dealer: Arc<Dealer>,
    replies: Option<mpsc::Receiver<Outgoing>>,
    bound: watch::Receiver<()>,
}

impl DealerReceiver {
    pub async fn receive(&mut self, batch: &mut Vec<Received>) -> Result<(), Closed> {
        loop {
            if self.dealer.connection.is_closed() {
                return Err(Closed);
            }
            let Some(replies) = &mut self.replies else {
                self.replies = self.dealer.attach();
                if self.replies.is_none() {
                    tokio::select! {
                        _ = self.bound.changed() => {}
                        () = self.dealer.connection.closed() => {}
                    }
                }
                continue;
            };
            // Closing is told by `connection_changed` too: another wait here would cost each call.
            let mut next = replies.recv().await;
            while let Some(message) = next {
                apart(message, |received| batch.push(received));
                if batch.len() >= BATCH_MAX {
                    return Ok(());
                }
                next = replies.try_recv().ok();
            }
            if !batch.is_empty() {
                return Ok(());
            }
            self.replies = None;
            self.dealer.detach();
        }
    }
}

impl Drop for DealerReceiver {
    fn drop(&mut self) {
        self.dealer.detach();
    }
}
