//! Publishers and subscribers: Bowline's, the raw sockets of the same transport with frames of the
//! same sizes, and raw TCP.
//!
//! A publisher goes ahead of its subscribers by a window only, so that nothing is dropped and
//! every contender delivers the same.

use std::sync::Arc;
use std::time::Duration;

use bowline::topic::{Event, Keys};
use bowline::{Publisher, Subscriber};
use bowline_test_schemas::everything::Sample;
use bytes::Bytes;
use omq_tokio::options::WorkloadProfile;
use omq_tokio::{Message, MessagePool, Options, Socket, SocketType};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

const WINDOW: u64 = 256;

/// How many events are published before their subscribers are waited for, and by how many tasks.
#[derive(Clone, Copy)]
pub struct Pace {
    pub window: u64,
    pub publishers: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            window: WINDOW,
            publishers: 1,
        }
    }
}

impl Pace {
    /// One event at a time.
    pub const ALONE: Self = Self {
        window: 1,
        publishers: 1,
    };

    /// Has the window's events published, each task its share of them.
    async fn publish<F: Future<Output = ()> + Send + 'static>(
        self,
        events: u64,
        share: impl Fn(u64) -> F,
    ) {
        if self.publishers == 1 {
            return share(events).await;
        }
        let mut tasks = JoinSet::new();
        for task in 0..self.publishers {
            let more = u64::from(task < events % self.publishers);
            tasks.spawn(share(events / self.publishers + more));
        }
        tasks.join_all().await;
    }
}
/// As large as the header of an event.
const HEADER: &[u8] = &[7; 56];
const TOPIC: &str = "sample/cpu";
/// What a typed body has beside its payload.
const BODY_BESIDE: usize = 40;

pub struct Typed {
    publisher: Publisher<Sample>,
    subscribers: Vec<Subscriber<Sample>>,
    event: Arc<Sample>,
    pace: Pace,
}

impl Typed {
    pub async fn new(subscribers: usize, bytes: usize) -> Self {
        let publisher = Publisher::<Sample>::bind("tcp://127.0.0.1:0")
            .await
            .unwrap();
        let mut connected = Vec::new();
        for _ in 0..subscribers {
            let endpoint = publisher.endpoint().to_string();
            let subscriber = Subscriber::<Sample>::connect(endpoint).await.unwrap();
            subscriber.subscribe(Keys::All).await.unwrap();
            connected.push(subscriber);
        }
        let payload = Bytes::from(vec![7; bytes]);
        let series = "cpu".to_owned();
        Self {
            publisher,
            subscribers: connected,
            event: Arc::new(Sample { series, payload }),
            pace: Pace::default(),
        }
    }

    pub fn at(self, pace: Pace) -> Self {
        Self { pace, ..self }
    }

    pub async fn deliver(&mut self, events: u64) {
        let mut left = events;
        while left > 0 {
            let window = left.min(self.pace.window);
            let share = |events| {
                let (publisher, event) = (self.publisher.clone(), Arc::clone(&self.event));
                async move {
                    for _ in 0..events {
                        publisher.publish(&event).await.unwrap();
                    }
                }
            };
            self.pace.publish(window, share).await;
            for subscriber in &mut self.subscribers {
                let mut received = 0;
                while received < window {
                    match subscriber.next().await.unwrap() {
                        Event::Message(message) => {
                            message.open().unwrap();
                            received += 1;
                        }
                        other => panic!("{other:?}"),
                    }
                }
            }
            left -= window;
        }
    }
}

pub struct Raw {
    publisher: Socket,
    subscribers: Vec<Socket>,
    pool: MessagePool,
    parts: [Bytes; 3],
    /// The three of them, where they are one frame.
    one: Option<Bytes>,
    pace: Pace,
}

impl Raw {
    pub async fn new(subscribers: usize, bytes: usize) -> Self {
        let pool = MessagePool::new(256, 4);
        let options = || {
            Options::new()
                .workload_profile(WorkloadProfile::Throughput)
                .recv_message_pool(pool.clone())
        };
        let publisher = Socket::new(SocketType::Pub, options());
        let endpoint = publisher.bind("tcp://127.0.0.1:0").await.unwrap();
        let mut connected = Vec::new();
        for _ in 0..subscribers {
            let subscriber = Socket::new(SocketType::Sub, options());
            subscriber.connect(endpoint.clone()).await.unwrap();
            subscriber.subscribe("sample/").await.unwrap();
            connected.push(subscriber);
        }
        let wait = Duration::from_secs(5);
        publisher
            .wait_subscribed(subscribers as u64, wait)
            .await
            .unwrap();
        let body = vec![7; bytes + BODY_BESIDE];
        Self {
            publisher,
            subscribers: connected,
            pool,
            parts: [TOPIC.into(), Bytes::from_static(HEADER), body.into()],
            one: None,
            pace: Pace::default(),
        }
    }

    pub fn at(self, pace: Pace) -> Self {
        Self { pace, ..self }
    }

    /// As many bytes in one frame, as Bowline sends small events, but each in a message of its own.
    pub fn in_one_frame(self) -> Self {
        Self {
            one: Some(self.parts.concat().into()),
            ..self
        }
    }

    pub async fn deliver(&mut self, events: u64) {
        let mut left = events;
        let mut batch: Vec<Message> = Vec::new();
        while left > 0 {
            let window = left.min(self.pace.window);
            let share = |events| {
                let publisher = self.publisher.clone_shared();
                let (pool, parts, one) = (self.pool.clone(), self.parts.clone(), self.one.clone());
                async move {
                    for _ in 0..events {
                        let message = match &one {
                            Some(one) => Message::single(one.clone()),
                            None => pool.multipart(parts.clone()),
                        };
                        publisher.send(message).await.unwrap();
                    }
                }
            };
            self.pace.publish(window, share).await;
            for subscriber in &self.subscribers {
                let mut received = 0;
                while received < window {
                    batch.clear();
                    subscriber.recv_many_into(128, &mut batch).await.unwrap();
                    received += batch.len() as u64;
                }
            }
            left -= window;
        }
    }
}

pub struct Tcp {
    out: Vec<TcpStream>,
    subscribers: Vec<BufReader<TcpStream>>,
    frame: Vec<u8>,
    received: Vec<u8>,
    pace: Pace,
}

impl Tcp {
    pub async fn new(subscribers: usize, bytes: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (mut out, mut connected) = (Vec::new(), Vec::new());
        for _ in 0..subscribers {
            let stream = TcpStream::connect(listener.local_addr().unwrap())
                .await
                .unwrap();
            connected.push(BufReader::with_capacity(64 * 1024, stream));
            out.push(listener.accept().await.unwrap().0);
        }
        let frame = vec![7; TOPIC.len() + HEADER.len() + bytes + BODY_BESIDE];
        Self {
            received: frame.clone(),
            out,
            subscribers: connected,
            frame,
            pace: Pace::default(),
        }
    }

    /// Publishes from one task, whatever the pace says.
    pub fn at(self, pace: Pace) -> Self {
        Self { pace, ..self }
    }

    pub async fn deliver(&mut self, events: u64) {
        let mut left = events;
        while left > 0 {
            let window = left.min(self.pace.window);
            let frames = self.frame.repeat(window as usize);
            for (out, subscriber) in self.out.iter_mut().zip(&mut self.subscribers) {
                let write = out.write_all(&frames);
                let read = async {
                    for _ in 0..window {
                        subscriber.read_exact(&mut self.received).await.unwrap();
                    }
                };
                let (written, ()) = tokio::join!(write, read);
                written.unwrap();
            }
            left -= window;
        }
    }
}
