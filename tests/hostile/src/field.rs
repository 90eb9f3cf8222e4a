//! Where an attack takes place: whom it meets, from which addresses, how long, and how often it struck.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// What each attack is given.
#[derive(Debug)]
pub struct Field {
    /// The service's calls.
    pub calls: SocketAddr,
    /// The service's topics; `None` where it has none.
    pub topics: Option<SocketAddr>,
    /// The service's calls behind a lock.
    pub locked: Option<SocketAddr>,
    /// Where the service looks for another service; `None` where it does not.
    pub upstream: Option<SocketAddr>,
    /// Where it looks for one more, which it does not believe.
    pub liar: Option<SocketAddr>,
    /// Where it listens to a publisher.
    pub news: Option<SocketAddr>,
    /// When it is over.
    pub until: Instant,
    /// A network of this machine that is the attack's own: the third byte of its addresses.
    pub network: u8,
    /// What it has counted.
    pub strikes: AtomicU64,
    /// Harm that it has seen itself.
    pub harm: AtomicU64,
    /// Numbers that it has used.
    pub used: AtomicU32,
}

impl Field {
    /// Whether there is time left.
    pub fn goes_on(&self) -> bool {
        Instant::now() < self.until
    }

    /// Sleeps, not past the end.
    pub fn pause(&self, time: Duration) {
        let left = self.until.saturating_duration_since(Instant::now());
        std::thread::sleep(time.min(left));
    }

    /// Counts what has reached a peer that listened.
    pub fn struck(&self, times: u64) {
        self.strikes.fetch_add(times, Relaxed);
    }

    /// A number that no attack has used.
    pub fn fresh(&self) -> u32 {
        u32::from(self.network) << 24 | (self.used.fetch_add(1, Relaxed) & 0xff_ffff)
    }

    /// Counts what must not happen and only the attack can see.
    pub fn harmed(&self) {
        self.harm.fetch_add(1, Relaxed);
    }

    /// The attack's own address.
    pub fn address(&self) -> Ipv4Addr {
        self.other_address(1)
    }

    /// Another of its addresses.
    pub fn other_address(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, 1, self.network, last)
    }

    /// Both doors of the service, or the one that it has.
    pub fn doors(&self) -> impl Iterator<Item = (SocketAddr, &'static str)> {
        let calls = std::iter::once((self.calls, "DEALER"));
        calls.chain(self.topics.map(|topics| (topics, "SUB")))
    }
}
