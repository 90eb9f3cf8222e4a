//! What one history is like: which store, how many servers, how long leases are.

use std::time::Duration;

use bowline::once::{Bounds, Duplicates, Terms};
use bowline::schema::Recovery;
use fastrand::Rng;

use crate::{Machine, NetworkFaults};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoreKind {
    /// Dies with its process.
    Memory,
    /// On the disk of the one machine that has a server.
    Redb,
    /// Shared by all servers, on a machine of its own that never dies.
    Shared,
}

#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub store: StoreKind,
    pub recovery: Recovery,
    pub clients: u16,
    pub servers: u16,
    pub terms: Terms,
    pub clock_skew_max: Duration,
    pub has_short_retention: bool,
    pub keys: usize,
    /// When the faults end.
    pub calm: Duration,
    /// How long a handler may run.
    pub run_max: Duration,
    pub network: NetworkFaults,
    /// Of a server dying, at each of its steps.
    pub crash: f64,
    /// Of the store not doing what it is asked, or not saying so.
    pub store_failure: f64,
    /// Of a handler that takes longer than its lease.
    pub slow_handler: f64,
    /// A store that has less room than there are keys.
    pub records_max: Option<usize>,
    /// Of a server's clock jumping ahead, at each round of its housekeeping.
    pub clock_jump: f64,
}

/// What each reply may have at most; some have more.
pub(crate) const REPLY_BYTES_MAX: usize = 256;

impl Setting {
    pub fn new(random: &mut Rng) -> Self {
        let store = *random
            .choice(&[
                StoreKind::Memory,
                StoreKind::Redb,
                StoreKind::Shared,
                StoreKind::Shared,
            ])
            .unwrap_or(&StoreKind::Shared);
        let recovery = match (store, random.u8(0..3)) {
            (StoreKind::Memory, 0 | 1) | (_, 0) => Recovery::InDoubt,
            (_, 1) => Recovery::Rerun,
            (StoreKind::Memory, _) => Recovery::Rerun,
            _ => Recovery::Atomic,
        };
        let has_short_retention = random.u8(0..4) == 0;
        let records_max = match (store, random.u8(0..3)) {
            (StoreKind::Memory | StoreKind::Redb, 0) => Some(random.usize(2..=4)),
            _ => None,
        };
        let lease = Duration::from_millis(random.u64(500..5000));
        let retention = match has_short_retention {
            true => Duration::from_secs(random.u64(20..40)),
            false => Duration::from_secs(24 * 60 * 60),
        };
        let duplicates = match random.u8(0..4) {
            0 => Duplicates::Refuse(Duration::from_millis(random.u64(10..500))),
            _ => Duplicates::Join,
        };
        Self {
            store,
            recovery,
            clients: random.u16(1..=4),
            servers: match store {
                StoreKind::Shared => random.u16(1..=3),
                StoreKind::Memory | StoreKind::Redb => 1,
            },
            terms: Terms {
                retention,
                lease,
                reply_bytes_max: REPLY_BYTES_MAX,
                duplicates,
            },
            clock_skew_max: match has_short_retention {
                // A store that forgets within seconds knows the keys of clocks that are right.
                _ if records_max.is_some() => Duration::ZERO,
                true => Duration::from_secs(random.u64(0..3)),
                false => Duration::from_secs(5 * 60),
            },
            has_short_retention,
            keys: random.usize(3..=10),
            calm: Duration::from_secs(random.u64(20..90)),
            run_max: lease * random.u32(2..5),
            network: match random.u8(0..5) {
                0 => NetworkFaults::none(),
                _ => NetworkFaults::some(random),
            },
            crash: match random.u8(0..4) {
                0 => 0.0,
                _ => 0.03 * random.f64(),
            },
            store_failure: match random.u8(0..3) {
                0 => 0.0,
                _ => 0.2 * random.f64(),
            },
            slow_handler: 0.3 * random.f64(),
            records_max,
            clock_jump: match (has_short_retention, random.u8(0..3)) {
                (false, 0) => 0.1,
                _ => 0.0,
            },
        }
    }

    /// Whether all keys say when they were made: one that does not may run again once its outcome is forgotten.
    pub fn keys_say_their_age(&self) -> bool {
        self.has_short_retention || self.records_max.is_some()
    }

    pub fn bounds(&self) -> Bounds {
        let bounds = Bounds::default();
        match self.records_max {
            Some(records_max) => bounds.with_records_max(records_max),
            None => bounds,
        }
    }

    pub fn machines(&self) -> u16 {
        self.clients + self.servers + 1
    }

    pub fn client(&self, number: u16) -> Machine {
        Machine(number % self.clients)
    }

    /// Machines that have a server, one after another.
    pub fn server_machines(&self) -> impl Iterator<Item = Machine> + use<> {
        (self.clients..self.clients + self.servers).map(Machine)
    }

    pub fn store_machine(&self) -> Machine {
        Machine(self.clients + self.servers)
    }
}
