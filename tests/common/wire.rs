//! A peer that speaks ZMTP by hand, for what no library would send.

#![allow(dead_code, reason = "each test file uses its part")]

use std::net::SocketAddr;
use std::time::Duration;

use bowline::ServerHandle;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::common::INTERFACE;

const PATIENCE: Duration = Duration::from_secs(10);

/// A connection from one of this machine's addresses, before its handshake.
pub async fn raw(server: &ServerHandle, from: &str) -> TcpStream {
    let endpoint = server.endpoint().to_string();
    let address = endpoint.strip_prefix("tcp://").unwrap().parse().unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket
        .bind(SocketAddr::new(from.parse().unwrap(), 0))
        .unwrap();
    socket.connect(address).await.unwrap()
}

/// The handshake of ZMTP 3.1 without keys; whether the server is ready then.
pub async fn shake_hands(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> bool {
    shake_hands_as(stream, "DEALER").await
}

/// The same as a socket of another type.
pub async fn shake_hands_as(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    socket_type: &str,
) -> bool {
    let mut greeting = [0; 64];
    (greeting[0], greeting[9], greeting[10], greeting[11]) = (0xff, 0x7f, 3, 1);
    greeting[12..16].copy_from_slice(b"NULL");
    let length = socket_type.len() as u8;
    let mut ready = vec![4, 22 + length];
    ready.extend_from_slice(b"\x05READY\x0bSocket-Type\0\0\0");
    ready.push(length);
    ready.extend_from_slice(socket_type.as_bytes());
    let mut theirs = [0; 64];
    let exchange = async {
        stream.write_all(&greeting).await?;
        stream.read_exact(&mut theirs).await?;
        stream.write_all(&ready).await?;
        frame(stream).await
    };
    let first = tokio::time::timeout(PATIENCE, exchange).await.unwrap();
    first.is_ok_and(|(flags, body)| flags == 4 && body.starts_with(b"\x05READY"))
}

/// A message of these parts.
pub fn frames(parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        let more = u8::from(index + 1 < parts.len());
        match u8::try_from(part.len()) {
            Ok(length) => bytes.extend([more, length]),
            Err(_) => {
                bytes.push(more | 2);
                bytes.extend((part.len() as u64).to_be_bytes());
            }
        }
        bytes.extend_from_slice(part);
    }
    bytes
}

/// The next frame, its flags (without that of its length) and its body; `None` where the connection ends before it.
pub async fn receive_frame(stream: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
    let next = tokio::time::timeout(PATIENCE, frame(stream));
    next.await.expect("it says something").ok()
}

async fn frame(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<(u8, Vec<u8>)> {
    let flags = stream.read_u8().await?;
    let length = match flags & 2 {
        0 => u64::from(stream.read_u8().await?),
        _ => stream.read_u64().await?,
    };
    let mut body = vec![0; length as usize];
    stream.read_exact(&mut body).await?;
    Ok((flags & !2, body))
}

pub async fn is_closed_within(stream: &mut TcpStream, time: Duration) -> bool {
    let mut rest = Vec::new();
    tokio::time::timeout(time, stream.read_to_end(&mut rest))
        .await
        .is_ok()
}

/// The header of a request with all other fields at their defaults: see docs/wire.md.
pub fn request_header(method: u16, correlation: u64) -> Vec<u8> {
    let mut words = [0u64; 8];
    words[0] = 7 << 32;
    words[1] = 6 << 32; // a struct of six words of data, no pointers
    words[2] = u64::from(method) << 16;
    words[3] = INTERFACE;
    words[4] = 0x0192_f3a4_b5c6_7d8e;
    words[5] = 0x8f90_a1b2_c3d4_e5f6;
    words[6] = correlation;
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
