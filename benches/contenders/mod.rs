//! What Bowline is measured beside: the raw socket of the same transport with frames of the same
//! sizes, and raw TCP with a length in front. Neither parses, correlates or keeps deadlines.

#![allow(dead_code, reason = "each bench uses a part of it")]

pub mod topics;

use bytes::Bytes;
use omq_tokio::options::WorkloadProfile;
use omq_tokio::{IdentitySocket, Message, MessagePool, Options, Socket, SocketType};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// As large as the header of a request.
pub const HEADER: &[u8] = &[7; 88];

/// A raw DEALER; its ROUTER echoes in a task.
pub struct RawSocket {
    dealer: Socket,
    pool: MessagePool,
    body: Bytes,
    /// Header and body, where they are one frame.
    one: Option<Bytes>,
}

fn options() -> Options {
    Options::new()
        .workload_profile(WorkloadProfile::Throughput)
        .recv_message_pool(MessagePool::new(256, 4))
}

pub async fn raw_router() -> (IdentitySocket, String) {
    let router = Socket::new(SocketType::Router, options());
    let endpoint = router.bind("tcp://127.0.0.1:0").await.unwrap();
    (router.identity_routing().unwrap(), endpoint.to_string())
}

pub async fn echo_raw(router: IdentitySocket) {
    while let Ok((peer, message)) = router.recv_from().await {
        if router.send_to(&peer, message).await.is_err() {
            return;
        }
    }
}

impl RawSocket {
    pub async fn connect(endpoint: &str, body: Bytes) -> Self {
        let dealer = Socket::new(SocketType::Dealer, options());
        dealer.connect(endpoint).await.unwrap();
        let wait = std::time::Duration::from_secs(5);
        dealer.wait_connected(1, wait).await.unwrap();
        Self {
            dealer,
            pool: MessagePool::new(256, 4),
            body,
            one: None,
        }
    }

    /// As many bytes in one frame, as Bowline sends a small call, instead of in three.
    pub fn in_one_frame(self) -> Self {
        let one = [HEADER, &self.body].concat().into();
        Self {
            one: Some(one),
            ..self
        }
    }

    pub async fn send(&self) {
        let message = match &self.one {
            Some(one) => Message::single(one.clone()),
            None => {
                self.pool
                    .multipart([Bytes::new(), Bytes::from_static(HEADER), self.body.clone()])
            }
        };
        self.dealer.send(message).await.unwrap();
    }

    /// All that has arrived, at least one.
    pub async fn receive(&self, messages: &mut Vec<Message>) {
        messages.clear();
        self.dealer.recv_many_into(64, messages).await.unwrap();
    }
}

/// A TCP connection whose other end echoes.
pub struct RawTcp {
    stream: BufReader<TcpStream>,
    frame: Vec<u8>,
    received: Vec<u8>,
}

pub async fn tcp_listener() -> (TcpListener, std::net::SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

pub async fn echo_tcp(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        stream.set_nodelay(true).unwrap();
        tokio::spawn(async move {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                if stream.write_all(&buffer[..n]).await.is_err() {
                    return;
                }
            }
        });
    }
}

impl RawTcp {
    pub async fn connect(address: std::net::SocketAddr, body: &[u8]) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let length = (HEADER.len() + body.len()) as u32;
        Self {
            stream: BufReader::with_capacity(64 * 1024, stream),
            frame: [&length.to_le_bytes(), HEADER, body].concat(),
            received: vec![0; 4 + HEADER.len() + body.len()],
        }
    }

    /// Sends `n` frames with one write.
    pub async fn send(&mut self, n: usize) {
        let frames = self.frame.repeat(n);
        self.stream.get_mut().write_all(&frames).await.unwrap();
    }

    pub async fn receive(&mut self) {
        self.stream.read_exact(&mut self.received).await.unwrap();
    }

    /// Whole frames that are there without another read.
    pub fn buffered(&self) -> usize {
        self.stream.buffer().len() / self.frame.len()
    }
}
