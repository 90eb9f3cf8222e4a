//! ZMTP 3 by hand (RFC 23, RFC 37): greeting, handshake and frames, right or wrong as asked.
//!
//! Blocking sockets from std. It checks nothing that it sends.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// Longest wait for the other side.
const PATIENCE: Duration = Duration::from_secs(2);

/// More frames of the same message follow.
pub const MORE: u8 = 0b001;
/// The length has eight bytes.
pub const LONG: u8 = 0b010;
/// A command and no message.
pub const COMMAND: u8 = 0b100;

/// The 64 bytes that come first: version 3.0, no security.
pub fn greeting() -> [u8; 64] {
    greeting_for("NULL", false)
}

/// The same for any security.
pub fn greeting_for(mechanism: &str, as_server: bool) -> [u8; 64] {
    let mut greeting = [0; 64];
    greeting[0] = 0xff;
    greeting[8] = 1;
    greeting[9] = 0x7f;
    greeting[10] = 3;
    greeting[12..12 + mechanism.len()].copy_from_slice(mechanism.as_bytes());
    greeting[32] = u8::from(as_server);
    greeting
}

/// A frame whose length is what it has.
pub fn frame(flags: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = match u8::try_from(body.len()) {
        Ok(length) => vec![flags, length],
        Err(_) => declared(flags, body.len() as u64),
    };
    frame.extend_from_slice(body);
    frame
}

/// The beginning of a frame that declares any length.
pub fn declared(flags: u8, length: u64) -> Vec<u8> {
    let mut frame = vec![flags | LONG];
    frame.extend_from_slice(&length.to_be_bytes());
    frame
}

/// A message of these parts.
pub fn message(parts: &[&[u8]]) -> Vec<u8> {
    let last = parts.len().saturating_sub(1);
    let flags = |i| if i < last { MORE } else { 0 };
    let frames = parts.iter().enumerate();
    frames.flat_map(|(i, part)| frame(flags(i), part)).collect()
}

/// A command of this name.
pub fn command(name: &str, body: &[u8]) -> Vec<u8> {
    let mut full = vec![name.len() as u8];
    full.extend_from_slice(name.as_bytes());
    full.extend_from_slice(body);
    frame(COMMAND, &full)
}

/// READY, with the socket's type and any identity.
pub fn ready(socket_type: &str, identity: &[u8]) -> Vec<u8> {
    let mut properties = Vec::new();
    for (name, value) in [
        ("Socket-Type", socket_type.as_bytes()),
        ("Identity", identity),
    ] {
        properties.push(name.len() as u8);
        properties.extend_from_slice(name.as_bytes());
        properties.extend_from_slice(&(value.len() as u32).to_be_bytes());
        properties.extend_from_slice(value);
    }
    command("READY", &properties)
}

/// A connection to a service, or from a client.
#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
}

impl Wire {
    /// A TCP connection from an address of this machine, and nothing said yet.
    ///
    /// # Errors
    /// Where it cannot be had.
    pub fn connect(from: Ipv4Addr, to: SocketAddr) -> io::Result<Self> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(IpAddr::V4(from), 0).into())?;
        socket.connect_timeout(&to.into(), PATIENCE)?;
        Self::new(socket.into())
    }

    /// A connection that somebody made to us.
    ///
    /// # Errors
    /// Where it is gone already.
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream })
    }

    /// As far as both greetings: what was connected to is there, and speaks ZMTP.
    ///
    /// # Errors
    /// Where the other side does not greet.
    pub fn greet(self) -> io::Result<Self> {
        self.greet_with(&greeting())
    }

    /// The same with any greeting.
    ///
    /// # Errors
    /// Where the other side does not greet.
    pub fn greet_with(mut self, greeting: &[u8]) -> io::Result<Self> {
        self.send(greeting)?;
        let mut answer = [0; 64];
        self.stream.read_exact(&mut answer)?;
        Ok(self)
    }

    /// The whole handshake.
    ///
    /// # Errors
    /// Where the other side does not answer with READY.
    pub fn handshake(self, socket_type: &str, identity: &[u8]) -> io::Result<Self> {
        let mut wire = self.greet()?;
        wire.send(&ready(socket_type, identity))?;
        let (flags, body) = wire.receive()?;
        if flags & COMMAND == 0 || !body.starts_with(b"\x05READY") {
            return Err(io::Error::other("not welcome"));
        }
        Ok(wire)
    }

    /// Any bytes.
    ///
    /// # Errors
    /// Where the other side has closed, or takes no more.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// As many of these bytes as the system takes at once.
    pub fn send_what_fits(&mut self, bytes: &[u8]) {
        let _ = self.stream.set_nonblocking(true);
        let _ = self.stream.write(bytes);
        let _ = self.stream.set_nonblocking(false);
    }

    /// One frame of at most 16 MiB: its flags and its body.
    ///
    /// # Errors
    /// Where none comes.
    pub fn receive(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let mut byte = [0; 1];
        self.stream.read_exact(&mut byte)?;
        let flags = byte[0];
        let length = if flags & LONG == 0 {
            self.stream.read_exact(&mut byte)?;
            u64::from(byte[0])
        } else {
            let mut length = [0; 8];
            self.stream.read_exact(&mut length)?;
            u64::from_be_bytes(length)
        };
        if length > 16 << 20 {
            return Err(io::Error::other("more than it should send"));
        }
        let mut body = vec![0; length as usize];
        self.stream.read_exact(&mut body)?;
        Ok((flags, body))
    }

    /// One message, past any commands.
    ///
    /// # Errors
    /// Where none comes.
    pub fn receive_message(&mut self) -> io::Result<Vec<Vec<u8>>> {
        let mut parts = Vec::new();
        loop {
            let (flags, body) = self.receive()?;
            if flags & COMMAND != 0 {
                continue;
            }
            parts.push(body);
            if flags & MORE == 0 {
                return Ok(parts);
            }
        }
    }

    /// Whether the other side has closed. Waits no time; throws away what has arrived.
    pub fn is_closed(&mut self) -> bool {
        let mut bytes = [0; 4096];
        let _ = self.stream.set_nonblocking(true);
        let closed = loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => break true,
                Ok(_) => {}
                Err(error) => break error.kind() != io::ErrorKind::WouldBlock,
            }
        };
        let _ = self.stream.set_nonblocking(false);
        closed
    }

    /// Closes with a reset, in the middle of whatever was said.
    pub fn reset(self) {
        let socket = socket2::Socket::from(self.stream);
        // Where it cannot be set, it is closed the usual way.
        let _ = socket.set_linger(Some(Duration::ZERO));
    }
}
