//! What a socket is set to, whatever carries it.

use std::time::Duration;

use crate::security::{ClientSecurity, ServerSecurity};

/// Settings of sockets, with a default for each: nothing is left to a transport library.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TransportOptions {
    /// Which library carries `tcp` and `ipc`. `inproc` is always carried in memory.
    pub carrier: Carrier,
    /// Largest message in bytes, header and body together; a peer that sends more is disconnected.
    /// Default: 1 MiB and a header. Larger ones need larger [`Limits`](crate::Limits) too; with less
    /// than 64 KiB, calls do not share messages.
    pub message_bytes_max: usize,
    /// Most parts of a message; a peer that sends more is disconnected. Default: 16.
    pub parts_max: usize,
    /// Bytes of the envelope of a request, which sockets between client and server have put in front of
    /// it, as `zmq.proxy` does; it is kept while the request is in flight. A message with a longer one is
    /// answered as malformed. Default: 4 KiB.
    pub envelope_bytes_max: usize,
    /// Connections that a bound socket has at once; one more is refused. Default: 1,024.
    pub connections_max: usize,
    /// Those of them from one address: of an IPv4 host, or of the 64 bits that name an IPv6 network.
    /// Over `tcp`. Default: 64.
    pub connections_per_address_max: usize,
    /// Messages that wait to be sent to one peer. Default: 4,096.
    pub send_queue_max: u32,
    /// Bytes that wait to be sent to one peer, over `tcp` and `ipc` by `omq`; a larger message waits
    /// alone. Default: 4 MiB.
    pub send_bytes_max: usize,
    /// Bytes of replies that wait to be sent to all peers of a server together. Half of them are kept
    /// for peers that have nothing else waiting; of the other half one principal or address may have up to three times what
    /// is left free. Half as many may wait besides for a place in their queue, by the same rule. Default: 64 MiB.
    pub send_bytes_total_max: usize,
    /// Subscriptions that a publisher takes from one peer, and that a subscriber asks for; one more is refused.
    /// Default: 1,024.
    pub subscriptions_max: usize,
    /// Longest subscription that a publisher takes, and that a subscriber asks for, in bytes, of at most 64 KiB; a longer
    /// one is refused. Default: 512.
    pub subscription_bytes_max: usize,
    /// Bytes of subscriptions that a publisher takes from all peers together, each with 64 more for what is
    /// around it; one more is refused. Half of them are shared out among as many peers as may connect,
    /// so that each always has its part. Default: 32 MiB.
    pub subscription_bytes_total_max: usize,
    /// Messages of one peer that wait to be received, besides what one read brings; of requests at most 1 MiB, or one that is
    /// larger. Default: 1,024.
    pub receive_queue_max: u32,
    /// Bytes of requests of all peers together that are received, whole or in part, and wait for a server to take them. What
    /// one principal or address may have of it is up to three times what is left free; past that its connections are not read until
    /// there is room, but for one at a time that has a message to finish. Messages that have come in part have half of it. A connection that waits so for the rest of a message for
    /// more than 30 s is closed. Over `tcp` and `ipc` by `omq`. Default: 32 MiB.
    pub receive_bytes_total_max: usize,
    /// How long closing waits for what is still to be sent. Default: 1 s.
    pub linger: Duration,
    /// How often a silent peer is asked whether it lives. Default: 1 s.
    pub heartbeat_interval: Duration,
    /// How long it may stay silent after that. Default: 3 s.
    pub heartbeat_timeout: Duration,
    /// How long a peer may take to say who it is. Default: 5 s.
    pub handshake_timeout: Duration,
    /// Connections that may be in their handshake at once; one more is closed, and may come again. Default: 64.
    pub handshakes_max: usize,
    /// The first wait before a lost connection is tried again; it doubles. Default: 20 ms.
    pub reconnect_min: Duration,
    /// The longest such wait. Default: 2 s.
    pub reconnect_max: Duration,
    /// Mode of the file of an `ipc` socket that is bound, as of `chmod`: who may connect. Abstract
    /// sockets have none. Default: 0o600, which is this process's user alone.
    pub ipc_mode: u32,
    /// Allows to bind where other machines can reach an endpoint that has no keys. Default: false.
    pub insecure: bool,
    /// Keys for sockets that bind, and whom they let in. Over `inproc` nobody is asked for a key:
    /// there is only this process. Default: none.
    pub server_security: Option<ServerSecurity>,
    /// Keys for sockets that connect, and the server that they trust. Default: none.
    pub client_security: Option<ClientSecurity>,
}

/// The library that speaks ZMTP over `tcp` and `ipc`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Carrier {
    /// `omq-proto`, over sockets of Bowline's own.
    #[default]
    Omq,
    /// The `zeromq` crate. docs/transports.md lists what it lacks.
    #[cfg(feature = "zeromq")]
    Zeromq,
}

impl Default for TransportOptions {
    fn default() -> Self {
        Self {
            carrier: Carrier::default(),
            message_bytes_max: (1 << 20) + crate::wire::HEADER_BYTES_MAX,
            parts_max: 16,
            envelope_bytes_max: 4 << 10,
            connections_max: 1024,
            connections_per_address_max: 64,
            send_queue_max: 4096,
            send_bytes_max: 4 << 20,
            send_bytes_total_max: 64 << 20,
            subscriptions_max: 1024,
            subscription_bytes_max: 512,
            subscription_bytes_total_max: 32 << 20,
            receive_queue_max: 1024,
            receive_bytes_total_max: 32 << 20,
            linger: Duration::from_secs(1),
            heartbeat_interval: Duration::from_secs(1),
            heartbeat_timeout: Duration::from_secs(3),
            handshake_timeout: Duration::from_secs(5),
            handshakes_max: 64,
            reconnect_min: Duration::from_millis(20),
            reconnect_max: Duration::from_secs(2),
            ipc_mode: 0o600,
            insecure: false,
            server_security: None,
            client_security: None,
        }
    }
}

impl TransportOptions {
    /// Sets [`carrier`](Self::carrier).
    pub fn with_carrier(mut self, carrier: Carrier) -> Self {
        self.carrier = carrier;
        self
    }

    /// Sets [`message_bytes_max`](Self::message_bytes_max).
    pub fn with_message_bytes_max(mut self, bytes: usize) -> Self {
        self.message_bytes_max = bytes;
        self
    }

    /// Sets [`send_queue_max`](Self::send_queue_max).
    pub fn with_send_queue_max(mut self, messages: u32) -> Self {
        self.send_queue_max = messages;
        self
    }

    /// Sets [`send_bytes_max`](Self::send_bytes_max).
    pub fn with_send_bytes_max(mut self, bytes: usize) -> Self {
        self.send_bytes_max = bytes;
        self
    }

    /// Sets [`receive_queue_max`](Self::receive_queue_max).
    pub fn with_receive_queue_max(mut self, messages: u32) -> Self {
        self.receive_queue_max = messages;
        self
    }

    /// Sets [`receive_bytes_total_max`](Self::receive_bytes_total_max).
    pub fn with_receive_bytes_total_max(mut self, bytes: usize) -> Self {
        self.receive_bytes_total_max = bytes;
        self
    }

    /// Sets [`linger`](Self::linger).
    pub fn with_linger(mut self, linger: Duration) -> Self {
        self.linger = linger;
        self
    }

    /// Sets [`heartbeat_interval`](Self::heartbeat_interval) and [`heartbeat_timeout`](Self::heartbeat_timeout).
    pub fn with_heartbeat(mut self, interval: Duration, timeout: Duration) -> Self {
        self.heartbeat_interval = interval;
        self.heartbeat_timeout = timeout;
        self
    }

    /// Sets [`reconnect_min`](Self::reconnect_min) and [`reconnect_max`](Self::reconnect_max).
    pub fn with_reconnect(mut self, min: Duration, max: Duration) -> Self {
        self.reconnect_min = min;
        self.reconnect_max = max;
        self
    }

    /// Sets [`parts_max`](Self::parts_max).
    pub fn with_parts_max(mut self, parts: usize) -> Self {
        self.parts_max = parts;
        self
    }

    /// Sets [`envelope_bytes_max`](Self::envelope_bytes_max).
    pub fn with_envelope_bytes_max(mut self, bytes: usize) -> Self {
        self.envelope_bytes_max = bytes;
        self
    }

    /// Sets [`connections_max`](Self::connections_max) and
    /// [`connections_per_address_max`](Self::connections_per_address_max).
    pub fn with_connections_max(mut self, total: usize, per_address: usize) -> Self {
        self.connections_max = total;
        self.connections_per_address_max = per_address;
        self
    }

    /// Sets [`send_bytes_total_max`](Self::send_bytes_total_max).
    pub fn with_send_bytes_total_max(mut self, bytes: usize) -> Self {
        self.send_bytes_total_max = bytes;
        self
    }

    /// Sets [`subscriptions_max`](Self::subscriptions_max).
    pub fn with_subscriptions_max(mut self, subscriptions: usize) -> Self {
        self.subscriptions_max = subscriptions;
        self
    }

    /// Sets [`subscription_bytes_max`](Self::subscription_bytes_max).
    pub fn with_subscription_bytes_max(mut self, bytes: usize) -> Self {
        self.subscription_bytes_max = bytes;
        self
    }

    /// Sets [`subscription_bytes_total_max`](Self::subscription_bytes_total_max).
    pub fn with_subscription_bytes_total_max(mut self, bytes: usize) -> Self {
        self.subscription_bytes_total_max = bytes;
        self
    }

    /// Sets [`handshake_timeout`](Self::handshake_timeout) and
    /// [`handshakes_max`](Self::handshakes_max).
    pub fn with_handshakes(mut self, timeout: Duration, max: usize) -> Self {
        self.handshake_timeout = timeout;
        self.handshakes_max = max;
        self
    }

    /// Sets [`server_security`](Self::server_security).
    pub fn with_server_security(mut self, security: ServerSecurity) -> Self {
        self.server_security = Some(security);
        self
    }

    /// Sets [`client_security`](Self::client_security).
    pub fn with_client_security(mut self, security: ClientSecurity) -> Self {
        self.client_security = Some(security);
        self
    }

    /// Sets [`ipc_mode`](Self::ipc_mode).
    pub fn with_ipc_mode(mut self, mode: u32) -> Self {
        self.ipc_mode = mode;
        self
    }

    /// Sets [`insecure`](Self::insecure).
    pub fn with_insecure(mut self, insecure: bool) -> Self {
        self.insecure = insecure;
        self
    }
}
