//! Peers that stand still, and what is sent to them.

use std::any::Any;
use std::pin::pin;
use std::task::{Context, Waker};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Mutex, MutexGuard};

use crate::wire::{frames, request_header, shake_hands};
use crate::*;

/// A peer that stands still until this is dropped.
pub type Stalled = Box<dyn Any + Send>;

pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// A connection to speak over by hand; `None` within this process, where there is none.
pub async fn connected(endpoint: &str) -> Option<Box<dyn Stream>> {
    Some(match endpoint.split_once("://").unwrap() {
        ("tcp", address) => Box::new(TcpStream::connect(address).await.unwrap()),
        ("ipc", path) => Box::new(UnixStream::connect(path).await.unwrap()),
        _ => return None,
    })
}

/// Runs what a peer begins, and from then on nothing of it.
pub fn stand_still<F: Future>(begin: impl FnOnce() -> F + Send + 'static) -> Stalled {
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().unwrap();
        let _peer = runtime.block_on(begin());
        let _ = stopped.recv();
    });
    Box::new(stop)
}

/// Has asked for as many large replies as requests are taken from it, and reads none.
pub async fn stalled_client(carried: Carried, endpoint: String) -> Stalled {
    const REQUESTS: usize = 200;
    static BODY: [u8; 64 << 10] = [7; 64 << 10];
    let Some(mut stream) = connected(&endpoint).await else {
        return stand_still(move || async move {
            let client = carried.connect(&endpoint).await;
            (0..REQUESTS)
                .map(|_| {
                    let client = client.clone();
                    let mut call = Box::pin(async move { call(&client, &ECHO, &BODY[..]).await });
                    let mut nobody = Context::from_waker(Waker::noop());
                    let _ = call.as_mut().poll(&mut nobody);
                    call
                })
                .collect::<Vec<_>>()
        });
    };
    assert!(shake_hands(&mut stream).await);
    let request = frames(&[b"", &request_header(0, 1), &BODY]);
    let some = Duration::from_millis(200);
    for _ in 0..REQUESTS {
        match tokio::time::timeout(some, stream.write_all(&request)).await {
            Ok(Ok(())) => {}
            _ => break, // nothing more is taken from it, or it is shown out: just as well
        }
    }
    Box::new(stream)
}

/// One at a time of the tests that fill all queues, so that they leave some of the machine to the others.
pub async fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::const_new(());
    ONE.lock().await
}

/// Whether a call leaves at once. It is given up in either case.
pub fn leaves(client: &Client, request: RawRequest) -> bool {
    let before = client.counters().in_flight;
    let mut call = pin!(send(client, request));
    let _ = call.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    client.counters().in_flight > before
}

/// Makes calls, each of which is dropped, until no more leave: all queues on the way to a server are full, which may hold a
/// hundred thousand. Returns how many have left.
pub async fn fill(client: &Client) -> usize {
    static BODY: [u8; 1 << 10] = [7; 1 << 10];
    eventually("it is connected", || client.is_connected()).await;
    let (start, mut left) = (Instant::now(), 0);
    // Small ones have room where larger ones have none left.
    for body in [&BODY[..], b""] {
        let mut last = Instant::now();
        while last.elapsed() < Duration::from_millis(300) {
            if leaves(client, RawRequest::new(&ECHO, Bytes::from_static(body))) {
                (left, last) = (left + 1, Instant::now());
                continue;
            }
            assert!(start.elapsed() < Duration::from_secs(120), "it has no end");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    left
}
