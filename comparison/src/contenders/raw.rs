//! The raw socket of Bowline's transport with as many bytes as Bowline sends, in the three frames of
//! its classic form and in one as it sends them; and raw TCP with a length in front. A call waits its
//! turn in a queue, as replies come in order: none of them correlates.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use omq_tokio::options::WorkloadProfile;
use omq_tokio::{Message, MessagePool, Options, Socket, SocketType};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use super::{AnyError, Caller, TEXT};

/// As large as the header of a request.
const HEADER: &[u8] = &[7; 88];

type Waiting = Rc<RefCell<VecDeque<oneshot::Sender<()>>>>;

fn wake_next(waiting: &Waiting) {
    if let Some(next) = waiting.borrow_mut().pop_front() {
        let _ = next.send(());
    }
}

fn options() -> Options {
    Options::new()
        .workload_profile(WorkloadProfile::Throughput)
        .recv_message_pool(MessagePool::new(256, 4))
}

pub async fn serve_socket(tell: impl FnOnce(SocketAddr)) -> Result<(), AnyError> {
    let router = Socket::new(SocketType::Router, options());
    let endpoint = router.bind("tcp://127.0.0.1:0").await?;
    tell(endpoint.to_string().trim_start_matches("tcp://").parse()?);
    let router = router.identity_routing()?;
    loop {
        let (peer, message) = router.recv_from().await?;
        router.send_to(&peer, message).await?;
    }
}

pub struct RawSocket {
    dealer: Rc<Socket>,
    pool: MessagePool,
    waiting: Waiting,
    /// Header and body, where they are one frame, as Bowline sends a small call.
    one: Option<Bytes>,
}

pub async fn connect_socket_of_one_frame(address: SocketAddr) -> Result<RawSocket, AnyError> {
    let one = [HEADER, TEXT.as_bytes()].concat().into();
    Ok(RawSocket {
        one: Some(one),
        ..connect_socket(address).await?
    })
}

pub async fn connect_socket(address: SocketAddr) -> Result<RawSocket, AnyError> {
    let dealer = Rc::new(Socket::new(SocketType::Dealer, options()));
    dealer.connect(format!("tcp://{address}")).await?;
    dealer
        .wait_connected(1, std::time::Duration::from_secs(5))
        .await?;
    let waiting = Waiting::default();
    tokio::task::spawn_local({
        let (dealer, waiting) = (Rc::clone(&dealer), Rc::clone(&waiting));
        async move {
            let mut messages = Vec::new();
            while dealer.recv_many_into(64, &mut messages).await.is_ok() {
                messages.drain(..).for_each(|_| wake_next(&waiting));
            }
        }
    });
    let pool = MessagePool::new(256, 4);
    Ok(RawSocket {
        dealer,
        pool,
        waiting,
        one: None,
    })
}

impl Caller for RawSocket {
    fn call(&self) -> LocalBoxFuture<'_, Result<(), AnyError>> {
        async {
            let (done, wait) = oneshot::channel();
            self.waiting.borrow_mut().push_back(done);
            let message = match &self.one {
                Some(one) => Message::single(one.clone()),
                None => self.pool.multipart([
                    Bytes::new(),
                    Bytes::from_static(HEADER),
                    Bytes::from_static(TEXT.as_bytes()),
                ]),
            };
            self.dealer.send(message).await?;
            Ok(wait.await?)
        }
        .boxed_local()
    }
}

pub async fn serve_tcp(tell: impl FnOnce(SocketAddr)) -> Result<(), AnyError> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    tell(listener.local_addr()?);
    loop {
        let (mut stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::task::spawn_local(async move {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                if stream.write_all(&buffer[..n]).await.is_err() {
                    return;
                }
            }
        });
    }
}

pub struct RawTcp {
    out: tokio::sync::Mutex<tokio::net::tcp::OwnedWriteHalf>,
    frame: Vec<u8>,
    waiting: Waiting,
}

pub async fn connect_tcp(address: SocketAddr) -> Result<RawTcp, AnyError> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (read, write) = stream.into_split();
    let length = (HEADER.len() + TEXT.len()) as u32;
    let frame = [&length.to_le_bytes(), HEADER, TEXT.as_bytes()].concat();
    let waiting = Waiting::default();
    tokio::task::spawn_local({
        let (waiting, mut received) = (Rc::clone(&waiting), frame.clone());
        async move {
            let mut read = BufReader::with_capacity(64 * 1024, read);
            while read.read_exact(&mut received).await.is_ok() {
                wake_next(&waiting);
            }
        }
    });
    let out = tokio::sync::Mutex::new(write);
    Ok(RawTcp {
        out,
        frame,
        waiting,
    })
}

impl Caller for RawTcp {
    fn call(&self) -> LocalBoxFuture<'_, Result<(), AnyError>> {
        async {
            let (done, wait) = oneshot::channel();
            {
                let mut out = self.out.lock().await;
                self.waiting.borrow_mut().push_back(done);
                out.write_all(&self.frame).await?;
            }
            Ok(wait.await?)
        }
        .boxed_local()
    }
}
