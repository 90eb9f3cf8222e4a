//! A bad network: a proxy on loopback that loses, repeats, swaps and holds up whole messages, both
//! ways. The handshake and heartbeats pass as they are.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::zmtp::{Piece, Splitter};

/// How long a message is held that others should overtake.
const SWAP: Duration = Duration::from_millis(10);

/// What happens to messages, in percent; what is left passes as it is.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Never arrive.
    pub lost: u64,
    /// Arrive twice.
    pub repeated: u64,
    /// Arrive after some that were sent later.
    pub swapped: u64,
    /// Arrive after [`delay`](Self::delay) or up to twice that.
    pub delayed: u64,
    /// Longer than an attempt is waited for.
    pub delay: Duration,
}

/// What was done so far.
#[derive(Debug, Default)]
pub struct Injected {
    /// Messages that came to the proxy.
    pub messages: AtomicU64,
    /// Of [`Plan::lost`].
    pub lost: AtomicU64,
    /// Of [`Plan::repeated`].
    pub repeated: AtomicU64,
    /// Held back, and really overtaken.
    pub swapped: AtomicU64,
    /// Of [`Plan::delayed`].
    pub delayed: AtomicU64,
}

impl Injected {
    /// The number of each kind, with its name.
    pub fn kinds(&self) -> [(&'static str, u64); 4] {
        [
            ("lost", self.lost.load(Relaxed)),
            ("repeated", self.repeated.load(Relaxed)),
            ("swapped", self.swapped.load(Relaxed)),
            ("delayed", self.delayed.load(Relaxed)),
        ]
    }
}

impl fmt::Display for Injected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "of {} messages", self.messages.load(Relaxed))?;
        let mut separator = ":";
        for (name, count) in self.kinds() {
            write!(f, "{separator} {count} {name}")?;
            separator = ",";
        }
        Ok(())
    }
}

/// The proxy. Dropping it cuts all connections.
#[derive(Debug)]
pub struct Proxy {
    endpoint: String,
    network: Arc<Network>,
    _task: JoinSet<()>,
}

#[derive(Debug)]
struct Network {
    server: SocketAddr,
    plan: Plan,
    is_bad: AtomicBool,
    cut: Notify,
    random: Mutex<fastrand::Rng>,
    injected: Injected,
}

impl Proxy {
    /// In front of a server.
    ///
    /// # Errors
    /// Where no port can be had.
    pub async fn start(server: SocketAddr, plan: Plan, seed: u64) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = format!("tcp://{}", listener.local_addr()?);
        let network = Arc::new(Network {
            server,
            plan,
            is_bad: AtomicBool::new(true),
            cut: Notify::new(),
            random: Mutex::new(fastrand::Rng::with_seed(seed)),
            injected: Injected::default(),
        });
        let mut task = JoinSet::new();
        task.spawn(accept(listener, Arc::clone(&network)));
        Ok(Self {
            endpoint,
            network,
            _task: task,
        })
    }

    /// Where clients connect.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// What it did.
    pub fn injected(&self) -> &Injected {
        &self.network.injected
    }

    /// Cuts the connections that are open now. New ones pass.
    pub fn cut(&self) {
        self.network.cut.notify_waiters();
    }

    /// From now on, what comes passes.
    pub fn heal(&self) {
        self.network.is_bad.store(false, Relaxed);
    }
}

async fn accept(listener: TcpListener, network: Arc<Network>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let network = Arc::clone(&network);
        connections.spawn(async move {
            let Ok(server) = TcpStream::connect(network.server).await else {
                return;
            };
            // Small messages must not wait for each other: that is what is tested.
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let ((from_client, to_client), (from_server, to_server)) =
                (client.into_split(), server.into_split());
            tokio::select! {
                () = network.cut.notified() => {}
                () = carry(&network, from_client, to_server) => {}
                () = carry(&network, from_server, to_client) => {}
            }
        });
    }
}

/// One direction of a connection, until either end closes it.
async fn carry(network: &Arc<Network>, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    let (send, mut sent) = mpsc::channel::<Vec<u8>>(1024);
    let write = async {
        while let Some(bytes) = sent.recv().await {
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    let read = async {
        let lane = Lane {
            network: Arc::clone(network),
            send,
            passed: Arc::default(),
        };
        let (mut splitter, mut held) = (Splitter::default(), JoinSet::new());
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            splitter.push(&buffer[..length]);
            while let Some(piece) = splitter.next_piece() {
                match piece {
                    Piece::Connection(bytes) => lane.pass(bytes).await,
                    Piece::Message(bytes) => lane.message(bytes, &mut held).await,
                }
            }
            while held.try_join_next().is_some() {}
        }
    };
    tokio::select! {
        () = write => {}
        () = read => {}
    }
}

#[derive(Clone)]
struct Lane {
    network: Arc<Network>,
    send: mpsc::Sender<Vec<u8>>,
    passed: Arc<AtomicU64>,
}

impl Lane {
    async fn pass(&self, bytes: Vec<u8>) {
        self.passed.fetch_add(1, Relaxed);
        // Where the connection is closed, nothing arrives.
        let _ = self.send.send(bytes).await;
    }

    async fn message(&self, bytes: Vec<u8>, held: &mut JoinSet<()>) {
        let Network { plan, injected, .. } = &*self.network;
        injected.messages.fetch_add(1, Relaxed);
        let (fate, longer) = {
            let random = self.network.random.lock();
            let mut random = random.unwrap_or_else(PoisonError::into_inner);
            (random.u64(..100), random.f64())
        };
        let is_good = !self.network.is_bad.load(Relaxed);
        let mut bound = 0;
        let mut is = |percent| {
            bound += percent;
            fate < bound
        };
        if is_good {
            self.pass(bytes).await;
        } else if is(plan.lost) {
            injected.lost.fetch_add(1, Relaxed);
        } else if is(plan.repeated) {
            injected.repeated.fetch_add(1, Relaxed);
            self.pass(bytes.clone()).await;
            self.pass(bytes).await;
        } else if is(plan.swapped) {
            let (lane, before) = (self.clone(), self.passed.load(Relaxed));
            held.spawn(async move {
                sleep(SWAP).await;
                let is_overtaken = lane.passed.load(Relaxed) > before;
                let swapped = &lane.network.injected.swapped;
                swapped.fetch_add(u64::from(is_overtaken), Relaxed);
                lane.pass(bytes).await;
            });
        } else if is(plan.delayed) {
            injected.delayed.fetch_add(1, Relaxed);
            let (lane, delay) = (self.clone(), plan.delay.mul_f64(1.0 + longer));
            held.spawn(async move {
                sleep(delay).await;
                lane.pass(bytes).await;
            });
        } else {
            self.pass(bytes).await;
        }
    }
}
