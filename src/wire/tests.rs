//! What is written is read back; what others write never harms; and docs/wire.md shows true bytes.

use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;

/// A message of one segment of so many words.
pub(super) fn framed(words: &[u64]) -> Vec<u8> {
    let table = (words.len() as u64) << 32;
    let words = std::iter::once(&table).chain(words);
    words.flat_map(|word| word.to_le_bytes()).collect()
}

pub(super) fn message(words_max: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u64>(), 0..words_max).prop_map(|words| framed(&words))
}

fn metadata() -> impl Strategy<Value = Metadata> {
    prop::collection::vec((".{0,10}", prop::collection::vec(any::<u8>(), 0..10)), 0..4).prop_map(
        |entries| {
            let mut metadata = Metadata::new();
            for (key, value) in entries {
                metadata.insert(key, value).unwrap();
            }
            metadata
        },
    )
}

fn trace() -> impl Strategy<Value = Option<TraceContext>> {
    let state = prop::option::of(".{0,10}".prop_map(Box::from));
    prop::option::of((any::<u128>(), any::<u64>(), any::<u8>(), state).prop_map(
        |(trace_id, parent_id, flags, state)| TraceContext {
            trace_id,
            parent_id,
            flags,
            state,
        },
    ))
}

fn request_id() -> impl Strategy<Value = RequestId> {
    prop_oneof![
        any::<u128>().prop_map(|id| Uuid::from_u128(id).into()),
        prop::collection::vec(any::<u8>(), 1..=255)
            .prop_map(|key| RequestKey::new(key).unwrap().into()),
    ]
}

fn sizes() -> impl Strategy<Value = SizesMax> {
    (1..=u32::MAX, 1..=u32::MAX).prop_map(|(body, message)| SizesMax { body, message })
}

prop_compose! {
    fn request()(
        interface in any::<u64>(), method in any::<u16>(), attempt in any::<u16>(), correlation in any::<u64>(),
        id in request_id(), remaining in prop::option::of(1..u64::MAX), trace in trace(), metadata in metadata(),
        takes in prop::option::of(prop_oneof![Just(SizesMax::DEFAULT), sizes()]), flags in 0..8u8,
    ) -> RequestHeader {
        let remaining = remaining.map(Duration::from_micros);
        let trace = trace.map(Box::new);
        let [outcome_only, announce, cancel] = [1, 2, 4].map(|flag| flags & flag != 0);
        RequestHeader { interface, method, attempt, correlation, id, remaining, trace, metadata, outcome_only, announce, cancel, takes }
    }
}

fn status() -> impl Strategy<Value = Status> {
    (
        1..=16u16,
        any::<bool>(),
        ".{0,30}",
        prop::option::of(1..u64::MAX),
    )
        .prop_map(|(number, not_done, message, retry_after)| {
            let work = if not_done {
                Work::NotDone
            } else {
                Work::OutcomeUnknown
            };
            let status = Status::new(Code::from_number(number), work, message);
            match retry_after {
                Some(wait) => status.with_retry_after(Duration::from_micros(wait)),
                None => status,
            }
        })
}

prop_compose! {
    fn reply()(
        correlation in any::<u64>(), replayed in any::<bool>(), compact in any::<bool>(), cancels in any::<bool>(), metadata in metadata(),
        takes in prop::option::of(sizes()),
        status in prop_oneof![
            Just(ReplyStatus::Ok),
            Just(ReplyStatus::ApplicationError),
            status().prop_map(ReplyStatus::Failed),
        ],
    ) -> ReplyHeader {
        ReplyHeader { correlation, status, replayed, compact, cancels, takes, metadata }
    }
}

prop_compose! {
    fn event()(
        kind in prop_oneof![Just(EventKind::Event), Just(EventKind::Tail), Just(EventKind::Confirmed), Just(EventKind::Refused), Just(EventKind::Tails)],
        epoch in any::<u64>(), sequence in any::<u64>(), trace in trace(), metadata in metadata(),
    ) -> EventHeader {
        EventHeader { kind, epoch, sequence, trace, metadata }
    }
}

proptest! {
    #[test]
    fn headers_read_back_wherever_they_lie(request in request(), reply in reply(), event in event(), shift in 0..8usize) {
        let shifted = |bytes: &[u8]| [&vec![0; shift][..], bytes].concat();
        prop_assert_eq!(RequestHeader::decode(&shifted(&request.encode())[shift..]), Ok(request));
        prop_assert_eq!(ReplyHeader::decode(&shifted(&reply.encode())[shift..]), Ok(reply));
        prop_assert_eq!(EventHeader::decode(&shifted(&event.encode())[shift..]), Ok(event));
    }

    #[test]
    fn both_ways_of_writing_are_read_alike(request in request(), reply in reply(), event in event()) {
        for bytes in [Bytes::from(request.encode()), request.encode_any()] {
            prop_assert_eq!(RequestHeader::decode_any(&bytes), Ok(request.clone()));
            prop_assert_eq!(RequestHeader::peek_correlation(&bytes), Some(request.correlation).filter(|n| *n != 0));
        }
        for bytes in [Bytes::from(reply.encode()), reply.encode_any()] {
            prop_assert_eq!(ReplyHeader::decode_any(&bytes), Ok(reply.clone()));
            prop_assert_eq!(ReplyHeader::peek_correlation(&bytes), Some(reply.correlation).filter(|n| *n != 0));
        }
        for bytes in [Bytes::from(event.encode()), event.encode_any()] {
            prop_assert_eq!(EventHeader::decode_any(&bytes), Ok(event.clone()));
        }
    }

    /// What a peer of another version may send: more or fewer words, with anything in them.
    #[test]
    fn both_ways_of_reading_give_the_same_header(
        data in prop::collection::vec(prop_oneof![Just(0), any::<u64>(), 0..0x0001_0067_0000u64], 0..12),
        pointers in prop::collection::vec(prop_oneof![9 => Just(0), 1 => any::<u64>()], 0..6),
        behind in prop::collection::vec(any::<u64>(), 0..3),
    ) {
        let root = (data.len() as u64) << 32 | (pointers.len() as u64) << 48;
        let mut words = vec![((1 + data.len() + pointers.len() + behind.len()) as u64) << 32, root];
        words.extend(data.into_iter().chain(pointers).chain(behind));
        let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
        decode_all(&bytes);
    }

    #[test]
    fn any_bytes_are_a_header_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        decode_all(&bytes);
    }

    #[test]
    fn a_damaged_header_is_another_header_or_an_error(
        request in request(), at in any::<prop::sample::Index>(), bit in 0..8u8, cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = request.encode().to_vec();
        let index = at.index(bytes.len());
        bytes[index] ^= 1 << bit;
        decode_all(&bytes);
        decode_all(&bytes[..cut.index(bytes.len())]);
    }
}

fn example() -> RequestHeader {
    RequestHeader {
        interface: 0xd1ff_c4d0_0f5e_bae3,
        method: 0,
        attempt: 0,
        correlation: 1,
        id: Uuid::from_u128(0x0192_f3a4_b5c6_7d8e_8f90_a1b2_c3d4_e5f6).into(),
        remaining: Some(Duration::from_secs(2)),
        trace: None,
        metadata: Metadata::new(),
        outcome_only: false,
        announce: false,
        cancel: false,
        takes: None,
    }
}

#[test]
fn a_newer_version_is_refused_with_its_correlation_number() {
    let mut bytes = example().encode().to_vec();
    bytes[16] = 1 ^ 2; // 2, stored as its difference to the default of 1
    let refused = RequestHeader::decode(&bytes);
    assert!(
        matches!(
            refused,
            Err(HeaderError::Version {
                correlation: 1,
                version: 2
            })
        ),
        "{refused:?}"
    );
}

/// What a peer of a later version may send: more words of data and more pointers.
#[test]
fn fields_that_are_not_known_here_are_ignored() {
    let known = example().encode();
    let data_words = u16::from_le_bytes([known[12], known[13]]) as usize;
    let mut bytes = known.to_vec();
    let root = 16;
    bytes.splice(root + data_words * 8..root + data_words * 8, [0xff; 16]);
    bytes[12..14].copy_from_slice(&(data_words as u16 + 2).to_le_bytes());
    let words = u32::from_le_bytes([known[4], known[5], known[6], known[7]]) + 2;
    bytes[4..8].copy_from_slice(&words.to_le_bytes());
    assert_eq!(RequestHeader::decode(&bytes), Ok(example()));
}

#[test]
fn a_header_over_the_limit_is_refused_unread() {
    let bytes = vec![0; HEADER_BYTES_MAX + 1];
    let refused = RequestHeader::decode(&bytes);
    assert_eq!(refused, Err(HeaderError::TooLarge { bytes: bytes.len() }));
}

#[test]
fn metadata_is_limited_at_its_edge() {
    let mut metadata = Metadata::new();
    for _ in 0..Metadata::ENTRIES_MAX {
        metadata.insert("k", "v").unwrap();
    }
    assert_eq!(metadata.insert("k", "v"), Err(MetadataError));
    let mut metadata = Metadata::new();
    metadata
        .insert("k", vec![0; Metadata::BYTES_MAX - 1])
        .unwrap();
    assert_eq!(metadata.insert("", "v"), Err(MetadataError));
    assert_eq!(metadata.insert("", ""), Ok(()));
}

#[test]
fn codes_are_numbered_as_in_grpc() {
    assert_eq!(Code::Cancelled.number(), 1);
    assert_eq!(Code::Unimplemented.number(), 12);
    assert_eq!(Code::Unauthenticated.number(), 16);
    for number in 1..=16 {
        assert_eq!(Code::from_number(number).number(), number);
    }
    for number in [0, 17, 99, u16::MAX] {
        assert_eq!(Code::from_number(number), Code::Unknown);
    }
}

/// Eight bytes a line, as docs/wire.md has them.
fn dump(bytes: &[u8]) -> String {
    let mut lines = String::new();
    for word in bytes.chunks(8) {
        let hex: Vec<String> = word.iter().map(|byte| format!("{byte:02x}")).collect();
        lines += &format!("    {}\n", hex.join(" "));
    }
    lines
}

#[test]
fn the_page_shows_the_bytes_that_are_sent() {
    let page = include_str!("../../docs/wire.md");
    // The page explains each line after two spaces and a bar.
    let bytes_of_page: String = page
        .lines()
        .filter(|line| line.starts_with("    "))
        .map(|line| {
            line.split("  |")
                .next()
                .unwrap_or(line)
                .trim_end()
                .to_owned()
                + "\n"
        })
        .collect();
    let reply = ReplyHeader {
        correlation: 1,
        status: ReplyStatus::Ok,
        replayed: false,
        compact: false,
        cancels: false,
        takes: None,
        metadata: Metadata::new(),
    };
    for (name, bytes) in [("request", example().encode()), ("reply", reply.encode())] {
        let dump = dump(&bytes);
        assert!(bytes_of_page.contains(&dump), "{name} header:\n{dump}");
    }
    let events: Vec<u8> = [(1, 10), (2, 20)]
        .into_iter()
        .flat_map(|(sequence, value): (u64, u64)| {
            let header = EventHeader {
                kind: EventKind::Event,
                epoch: 7,
                sequence,
                trace: None,
                metadata: Metadata::new(),
            };
            let body = [2 << 32, 1 << 32, value].map(u64::to_le_bytes);
            [&header.encode()[..], &body.concat()].concat()
        })
        .collect();
    let message = [b"tick/\xff\xff\xff", &events[..]].concat();
    let dump = dump(&message);
    assert!(bytes_of_page.contains(&dump), "events:\n{dump}");
    let (topic, events) = unpack_events(&message).unwrap();
    assert_eq!((topic, events.count()), (&b"tick/"[..], 2));
}
