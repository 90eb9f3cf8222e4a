//! Jobs as Kafka's records: what is in their headers beside what is in those of every engine, and how a job gets its number.

use bytes::Bytes;
use rdkafka::Message;
use rdkafka::message::{BorrowedMessage, Header, Headers, OwnedHeaders};

use crate::queue::JobNumber;

use super::super::envelope::{DUE, Envelope};
use super::window::Milliseconds;

/// For which group of workers a record in the topic of all groups is; the others pass it over.
const GROUP: &str = "Bowline-Group";

/// Numbers of jobs that a group's own topic gave them: its offsets count by themselves.
const OF_GROUP: u64 = 1 << 63;
/// Where the partition stands in a number, above the offset.
const PARTITION_SHIFT: u32 = 48;

/// One partition of the topic that all groups read, or of the one of a group's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Partition {
    pub is_of_group: bool,
    pub index: i32,
}

impl Partition {
    /// The number of a job that was pushed there and brought none.
    pub fn number(self, offset: i64) -> JobNumber {
        let partition = u64::from(self.index.unsigned_abs() & 0x7FFF) << PARTITION_SHIFT;
        let offset = offset.unsigned_abs() & ((1 << PARTITION_SHIFT) - 1);
        let of_group = if self.is_of_group { OF_GROUP } else { 0 };
        JobNumber(of_group | partition | offset)
    }
}

/// A job that came, when it is due, and for which group alone it is.
pub(super) struct Record {
    pub envelope: Envelope,
    pub due: Milliseconds,
    pub only_for: Option<String>,
}

/// Reads a job. One that another program published has its key as the record's alone.
pub(super) fn read(message: &BorrowedMessage<'_>) -> Record {
    let mut record = read_letter(message);
    if record.envelope.key.is_none() {
        record.envelope.key = message.key().map(Bytes::copy_from_slice);
    }
    record
}

/// Reads a dead letter, whose record has the job's number as its key.
pub(super) fn read_letter(message: &BorrowedMessage<'_>) -> Record {
    let header = |name: &str| {
        let headers = message.headers()?;
        let found = headers.iter().find(|header| header.key == name)?;
        String::from_utf8(found.value?.to_vec()).ok()
    };
    let body = Bytes::copy_from_slice(message.payload().unwrap_or_default());
    let mut envelope = Envelope::read(header, body);
    // It is due at a time: a delay would begin anew whenever it is read.
    envelope.delay = std::time::Duration::ZERO;
    Record {
        envelope,
        due: header(DUE).and_then(|text| text.parse().ok()).unwrap_or(0),
        only_for: header(GROUP),
    }
}

pub(super) fn headers(
    envelope: &Envelope,
    due: Milliseconds,
    only_for: Option<&str>,
) -> OwnedHeaders {
    let mut all = envelope.headers();
    if due > 0 {
        all.push((DUE, due.to_string()));
    }
    if let Some(group) = only_for {
        all.push((GROUP, group.to_owned()));
    }
    all.iter()
        .fold(OwnedHeaders::new(), |headers, (key, value)| {
            let value = Some(value);
            headers.insert(Header { key, value })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_of_different_partitions_and_topics_have_different_numbers_in_the_order_of_offsets() {
        let (is_of_group, index) = (false, 3);
        let all = Partition { is_of_group, index };
        let of_group = Partition {
            is_of_group: true,
            index,
        };
        let other = Partition {
            is_of_group,
            index: 4,
        };
        assert!(all.number(7) < all.number(8));
        assert_ne!(all.number(7), other.number(7));
        assert_ne!(all.number(7), of_group.number(7));
    }
}
