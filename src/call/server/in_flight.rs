//! Calls in flight: what one of them counts for, and whether there is room for it.
//!
//! A call counts only once its handler has to wait. It counts for its connection, and for the share of its
//! principal or address; one that is [parked](crate::call::park) counts apart, and its bytes no more.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use super::drive::Shared;
use crate::security::{Pool, Share};
use crate::transport::{self, Peer};
use crate::wire::{Reason, Status};

/// When a caller that was refused should try again.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// What all calls in flight share.
#[derive(Debug)]
pub(super) struct Pools {
    pub calls: Pool,
    pub parked: Pool,
    pub request_bytes: Pool,
    pub per_connection_max: usize,
    /// Of peers that have no share: of this process, or of a transport that does not tell them apart.
    others: Others,
}

#[derive(Debug, Default)]
struct Others {
    calls: AtomicUsize,
    parked: AtomicUsize,
    request_bytes: AtomicUsize,
}

/// Why there is no room for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoRoom {
    Total(&'static str),
    Share(&'static str),
    Connection,
}

impl std::fmt::Display for NoRoom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Total(what) => write!(f, "the server has too many {what} at once"),
            Self::Share(what) => write!(f, "this caller has its share of the server's {what}"),
            Self::Connection => f.write_str("this connection has too many requests at once"),
        }
    }
}

impl From<NoRoom> for Status {
    fn from(no_room: NoRoom) -> Self {
        Self::resource_exhausted(no_room.to_string())
            .with_reason(Reason::Overloaded)
            .with_retry_after(RETRY_AFTER)
    }
}

const REQUESTS: &str = "requests";
const PARKED: &str = "parked requests";
const BYTES: &str = "bytes of requests";

impl Pools {
    pub fn new(calls: Pool, parked: Pool, request_bytes: Pool, per_connection_max: usize) -> Self {
        Self {
            calls,
            parked,
            request_bytes,
            per_connection_max,
            others: Others::default(),
        }
    }

    /// Whether a call of so many bytes may begin.
    pub fn has_room(&self, peer: &Peer, bytes: usize) -> Result<(), NoRoom> {
        let share = peer.share();
        room(&self.calls, share.map(|share| &share.calls), 1, REQUESTS)?;
        if peer.is_busy(self.per_connection_max) {
            return Err(NoRoom::Connection);
        }
        let held = share.map(|share| &share.request_bytes);
        room(&self.request_bytes, held, bytes, BYTES)
    }

    fn calls<'a>(&'a self, share: Option<&'a Share>) -> &'a AtomicUsize {
        share.map_or(&self.others.calls, |share| &share.calls)
    }

    fn parked<'a>(&'a self, share: Option<&'a Share>) -> &'a AtomicUsize {
        share.map_or(&self.others.parked, |share| &share.parked)
    }

    fn request_bytes<'a>(&'a self, share: Option<&'a Share>) -> &'a AtomicUsize {
        share.map_or(&self.others.request_bytes, |share| &share.request_bytes)
    }
}

/// Peers without a share have what the pool has.
fn room(
    pool: &Pool,
    held: Option<&AtomicUsize>,
    amount: usize,
    what: &'static str,
) -> Result<(), NoRoom> {
    let nothing = AtomicUsize::new(0);
    match pool.may_take(held.unwrap_or(&nothing), amount) {
        true => Ok(()),
        false if pool.has_free(amount) => Err(NoRoom::Share(what)),
        false => Err(NoRoom::Total(what)),
    }
}

/// A call whose handler waits, until it is dropped.
#[derive(Debug)]
pub(super) struct InFlight {
    shared: Arc<Shared>,
    peer: Peer,
    /// Of its request, as long as the handler has it.
    bytes: usize,
    counts: Counts,
}

/// What a call counts among.
#[derive(Debug)]
enum Counts {
    Nothing,
    Working(#[allow(dead_code, reason = "counts until it is dropped")] transport::InFlight),
    Parked,
}

impl InFlight {
    /// Counts nothing yet.
    pub fn new(shared: &Arc<Shared>, peer: &Peer, bytes: usize) -> Self {
        Self {
            shared: Arc::clone(shared),
            peer: peer.clone(),
            bytes,
            counts: Counts::Nothing,
        }
    }

    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Counts it among those that are parked or among those that work. There is always room for one that works: it was
    /// asked for before, or what the call has done by now must not be lost.
    pub fn set_parked(&mut self, is_parked: bool) -> Result<(), NoRoom> {
        match (&self.counts, is_parked) {
            (Counts::Working(_), false) | (Counts::Parked, true) => return Ok(()),
            (_, false) => {
                self.count_nothing();
                let (pools, share) = (&self.shared.pools, self.share());
                pools.calls.take(pools.calls(share), 1);
                pools
                    .request_bytes
                    .take(pools.request_bytes(share), self.bytes);
                self.counts = Counts::Working(self.peer.enter());
            }
            (_, true) => {
                let pools = &self.shared.pools;
                room(
                    &pools.parked,
                    self.share().map(|share| &share.parked),
                    1,
                    PARKED,
                )?;
                self.count_nothing();
                self.bytes = 0;
                let (pools, share) = (&self.shared.pools, self.share());
                pools.parked.take(pools.parked(share), 1);
                self.counts = Counts::Parked;
            }
        }
        Ok(())
    }

    fn share(&self) -> Option<&Share> {
        self.peer.share().map(AsRef::as_ref)
    }

    fn count_nothing(&mut self) {
        let counts = std::mem::replace(&mut self.counts, Counts::Nothing);
        let (pools, share) = (&self.shared.pools, self.share());
        match counts {
            Counts::Nothing => {}
            Counts::Working(_) => {
                pools.calls.give_back(pools.calls(share), 1);
                pools
                    .request_bytes
                    .give_back(pools.request_bytes(share), self.bytes);
            }
            Counts::Parked => pools.parked.give_back(pools.parked(share), 1),
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.count_nothing();
    }
}
