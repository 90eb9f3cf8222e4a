//! The attacks, a file each: its first lines say what it exploits.
//!
//! An attack is a function that makes one sally: it returns when it is cut off, or at the end, and
//! is then sent out again. It counts a strike when its bytes have gone to a peer that had
//! greeted. It paces itself: what a flood of bytes takes from the processor of one machine is not
//! what is measured here.

mod amplification;
mod claimed_jobs;
mod connection_flood;
mod crowded_messages;
mod crowded_pushes;
mod curve_handshakes;
mod cut_frames;
mod duplicated_replies;
mod endless_parts;
mod extreme_headers;
mod greed;
mod greedy_calls;
mod guessed_tokens;
mod half_handshakes;
mod huge_lengths;
mod lying_publishers;
mod lying_servers;
mod missing_delimiters;
mod new_producers;
mod once_keys;
mod padded_leases;
mod parked_leases;
mod ping_storm;
mod stolen_identities;
mod subscription_churn;
mod subscription_flood;
mod unfinished_messages;
mod unread_echoes;
mod unread_replies;

use std::io;
use std::time::Duration;

use crate::field::Field;

/// Between two sallies.
const REST: Duration = Duration::from_millis(20);

/// One way to harm a service.
#[derive(Clone, Copy, Debug)]
pub struct Attack {
    /// What it is called in reports, and on the command line.
    pub name: &'static str,
    sally: fn(&Field) -> io::Result<()>,
}

/// All of them.
pub const ALL: [Attack; 28] = [
    Attack {
        name: "amplification",
        sally: amplification::sally,
    },
    Attack {
        name: "claimed-jobs",
        sally: claimed_jobs::sally,
    },
    Attack {
        name: "connection-flood",
        sally: connection_flood::sally,
    },
    Attack {
        name: "crowded-messages",
        sally: crowded_messages::sally,
    },
    Attack {
        name: "crowded-pushes",
        sally: crowded_pushes::sally,
    },
    Attack {
        name: "curve-handshakes",
        sally: curve_handshakes::sally,
    },
    Attack {
        name: "cut-frames",
        sally: cut_frames::sally,
    },
    Attack {
        name: "duplicated-replies",
        sally: duplicated_replies::sally,
    },
    Attack {
        name: "endless-parts",
        sally: endless_parts::sally,
    },
    Attack {
        name: "extreme-headers",
        sally: extreme_headers::sally,
    },
    Attack {
        name: "greedy-calls",
        sally: greedy_calls::sally,
    },
    Attack {
        name: "guessed-tokens",
        sally: guessed_tokens::sally,
    },
    Attack {
        name: "half-handshakes",
        sally: half_handshakes::sally,
    },
    Attack {
        name: "huge-lengths",
        sally: huge_lengths::sally,
    },
    Attack {
        name: "lying-publishers",
        sally: lying_publishers::sally,
    },
    Attack {
        name: "lying-servers",
        sally: lying_servers::sally,
    },
    Attack {
        name: "missing-delimiters",
        sally: missing_delimiters::sally,
    },
    Attack {
        name: "new-producers",
        sally: new_producers::sally,
    },
    Attack {
        name: "once-keys",
        sally: once_keys::sally,
    },
    Attack {
        name: "padded-leases",
        sally: padded_leases::sally,
    },
    Attack {
        name: "parked-leases",
        sally: parked_leases::sally,
    },
    Attack {
        name: "ping-storm",
        sally: ping_storm::sally,
    },
    Attack {
        name: "stolen-identities",
        sally: stolen_identities::sally,
    },
    Attack {
        name: "subscription-churn",
        sally: subscription_churn::sally,
    },
    Attack {
        name: "subscription-flood",
        sally: subscription_flood::sally,
    },
    Attack {
        name: "unfinished-messages",
        sally: unfinished_messages::sally,
    },
    Attack {
        name: "unread-echoes",
        sally: unread_echoes::sally,
    },
    Attack {
        name: "unread-replies",
        sally: unread_replies::sally,
    },
];

impl Attack {
    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        ALL.iter().copied().find(|attack| attack.name == name)
    }

    /// Sallies until the end.
    pub fn run(&self, field: &Field) {
        while field.goes_on() {
            // To be cut off is what it is here for.
            let _ = (self.sally)(field);
            field.pause(REST);
        }
    }
}
