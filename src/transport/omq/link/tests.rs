use omq_proto::proto::{ConnectionConfig, Role, SocketType};
use omq_proto::{CurveServerOptions, MechanismSetup};
use proptest::prelude::*;
use tokio::net::UnixStream;

use super::*;
use crate::security::Keys;
use crate::transport::omq::outbox::Total;
use crate::transport::omq::stream::Stream;
use crate::transport::omq::{curve, keypair};
use crate::transport::{Frames, Outgoing};
use crate::wire::{HeaderBytes, Packed};

const MIB: usize = 1 << 20;
const ROOMY: Limits = Limits {
    bytes_max: 64 * MIB,
    messages_max: 100_000,
};
const SECOND: Duration = Duration::from_secs(1);

struct End {
    link: Arc<Link>,
    incoming: Incoming,
}

/// Both ends of a connection, with keys or without.
async fn pair(limits: Limits, has_keys: bool) -> (End, End) {
    let (client, server) = UnixStream::pair().unwrap();
    let (ours, theirs) = (Keys::generate(), Keys::generate());
    let (mut connecting, mut accepting) = (MechanismSetup::Null, MechanismSetup::Null);
    if has_keys {
        connecting = MechanismSetup::CurveClient {
            our_keypair: keypair(&theirs),
            server_public: curve(ours.public()),
        };
        accepting = MechanismSetup::CurveServer {
            our_keypair: keypair(&ours),
            options: CurveServerOptions::new(),
        };
    }
    let shake = |stream, role, kind, mechanism| {
        let config = ConnectionConfig::new(role, kind)
            .max_message_size(MIB)
            .mechanism(mechanism);
        Link::shake_hands(
            Stream::ipc(stream),
            config,
            limits,
            Total::default(),
            SECOND * 10,
        )
    };
    let (client, server) = tokio::join!(
        shake(client, Role::Client, SocketType::Dealer, connecting),
        shake(server, Role::Server, SocketType::Router, accepting),
    );
    let end = |(link, incoming, _)| End { link, incoming };
    (end(client.unwrap()), end(server.unwrap()))
}

fn classic(header: usize, body: usize) -> Outgoing {
    let header = vec![1; header];
    Outgoing::Classic(Frames {
        header: HeaderBytes::from(&header[..]),
        body: vec![2; body].into(),
    })
}

fn compact(bytes: usize) -> Outgoing {
    let bytes = vec![3; bytes].into();
    Outgoing::Compact(Packed { bytes, calls: 1 })
}

fn send(end: &End, outgoing: &Outgoing) -> Result<(), NotSent> {
    end.link.try_send(Parts::from(outgoing))
}

async fn hear(end: &mut End) -> Result<Vec<Heard>, Lost> {
    let mut heard = Vec::new();
    std::future::poll_fn(|cx| end.incoming.poll(cx, &mut heard)).await?;
    Ok(heard)
}

fn lengths(heard: Heard) -> Vec<usize> {
    match heard {
        Heard::Message(message) => message.iter().map(|part| part.len()).collect(),
        Heard::Command(command) => panic!("{command:?}"),
    }
}

fn message() -> impl Strategy<Value = Outgoing> {
    // Around the sizes at which frames and ways to write them change.
    let edge = prop_oneof![
        Just(255),
        Just(COPIED_MAX),
        Just(READ_MIN),
        Just(READ_MAX),
        0usize..2 * READ_MAX
    ];
    let size = (edge, 0usize..4).prop_map(|(edge, more)| (edge + more).saturating_sub(2));
    prop_oneof![
        (0usize..300, size.clone()).prop_map(|(header, body)| classic(header, body)),
        size.prop_map(compact),
    ]
}

fn expected(outgoing: &Outgoing) -> Vec<usize> {
    match outgoing {
        Outgoing::Classic(frames) => vec![0, frames.header.len(), frames.body.len()],
        Outgoing::Compact(packed) => vec![packed.bytes.len()],
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_is_sent_arrives_whole_and_in_order_however_large(
        messages in proptest::collection::vec(message(), 1..20),
        has_keys in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut client, mut server) = pair(ROOMY, has_keys).await;
            for outgoing in &messages {
                send(&client, outgoing).unwrap();
            }
            let mut arrived = Vec::new();
            while arrived.len() < messages.len() {
                tokio::select! {
                    heard = hear(&mut server) => arrived.extend(heard.unwrap().into_iter().map(lengths)),
                    // Writes what the stream did not take at once.
                    heard = hear(&mut client) => panic!("{heard:?}"),
                }
            }
            assert_eq!(arrived, messages.iter().map(expected).collect::<Vec<_>>());
        });
    }
}

/// Sends until the stream takes no more and `waiting` wait.
fn fill(end: &End, size: usize) {
    let outgoing = compact(size);
    while end.link.waiting_bytes() == 0 {
        send(end, &outgoing).unwrap();
    }
}

#[tokio::test]
async fn messages_wait_up_to_their_count_and_have_room_again_when_some_have_left() {
    let limits = Limits {
        messages_max: 4,
        ..ROOMY
    };
    let (client, mut server) = pair(limits, false).await;
    fill(&client, 10_000);
    for _ in 1..4 {
        send(&client, &compact(1)).unwrap();
    }
    assert_eq!(send(&client, &compact(1)), Err(NotSent::Full));
    let drained = tokio::spawn({
        let link = Arc::clone(&client.link);
        async move { link.drained().await }
    });
    let reading = async {
        loop {
            hear(&mut server).await.unwrap();
        }
    };
    tokio::select! {
        () = client.link.has_room() => {}
        () = reading => {}
    }
    send(&client, &compact(1)).unwrap();
    drained.abort();
}

#[tokio::test]
async fn bytes_wait_up_to_their_limit_and_one_message_alone_whatever_its_size() {
    let limits = Limits {
        bytes_max: 20_000,
        ..ROOMY
    };
    let (client, _server) = pair(limits, false).await;
    fill(&client, 10_000);
    let room = 20_000 - client.link.waiting_bytes();
    // Nine bytes of frame header.
    assert_eq!(send(&client, &compact(room - 8)), Err(NotSent::Full));
    send(&client, &compact(room - 9)).unwrap();
    assert_eq!(client.link.waiting_bytes(), 20_000);
    assert_eq!(send(&client, &compact(0)), Err(NotSent::Full));

    let (client, _server) = pair(limits, false).await;
    send(&client, &compact(2 * MIB)).unwrap();
    assert!(client.link.waiting_bytes() > 20_000);
    assert_eq!(send(&client, &compact(0)), Err(NotSent::Full));
}

#[tokio::test]
async fn a_silent_peer_is_asked_once_and_lost_when_its_time_is_over() {
    let (client, mut server) = pair(ROOMY, false).await;
    let start = Instant::now();
    let tick = |seconds: u32| {
        client
            .link
            .tick(start + SECOND * seconds, SECOND, SECOND * 3, false)
    };
    tick(1).unwrap(); // it has just said who it is
    tick(2).unwrap(); // asks
    tick(4).unwrap();
    assert!(matches!(tick(5), Err(Lost::Silent(_))));

    // One that reads answers by itself.
    let mut client = client;
    let answering = async {
        loop {
            hear(&mut server).await.unwrap();
        }
    };
    tokio::select! {
        () = answering => {}
        _ = hear(&mut client) => {}
        () = tokio::time::sleep(SECOND / 5) => {}
    }
    client
        .link
        .tick(start + SECOND * 6, SECOND, SECOND * 3, false)
        .unwrap();
}

#[tokio::test]
async fn a_peer_that_reads_nothing_is_lost_though_it_speaks() {
    let (mut client, server) = pair(ROOMY, false).await;
    fill(&client, 10_000);
    let start = Instant::now();
    for seconds in 1..10 {
        send(&server, &compact(1)).unwrap();
        hear(&mut client).await.unwrap();
        let ticked = client
            .link
            .tick(start + SECOND * seconds, SECOND, SECOND * 3, false);
        match seconds {
            // The first sees what was written before it.
            ..6 => ticked.unwrap(),
            6 => assert!(matches!(ticked, Err(Lost::Stuck(_))), "{ticked:?}"),
            _ => return,
        }
    }
}

#[tokio::test]
async fn a_peer_of_which_nothing_is_read_is_told_that_this_side_lives() {
    let (client, mut server) = pair(ROOMY, false).await;
    let start = Instant::now();
    for seconds in 1..20 {
        let at = start + SECOND * seconds;
        client.link.tick(at, SECOND, SECOND * 3, true).unwrap();
        let heard = tokio::time::timeout(SECOND / 20, hear(&mut server)).await;
        assert!(heard.is_err(), "nothing but heartbeats");
        server.link.tick(at, SECOND, SECOND * 3, false).unwrap();
    }
}

#[tokio::test]
async fn a_connection_is_congested_until_half_of_what_waits_is_left() {
    let (mut client, mut server) = pair(ROOMY, false).await;
    let mut cx = Context::from_waker(Waker::noop());
    assert!(!client.link.poll_congested(&cx));
    while client.link.waiting_bytes() <= CONGESTED_BYTES {
        assert!(!client.link.is_congested());
        send(&client, &compact(10_000)).unwrap();
    }
    assert!(client.link.poll_congested(&cx));
    let link = Arc::clone(&client.link);
    let reading = async {
        loop {
            hear(&mut server).await.unwrap();
        }
    };
    // Reads nothing, and writes.
    let writing = std::future::poll_fn(|cx| client.incoming.poll_paused(cx));
    tokio::select! {
        () = link.relieved() => {}
        () = reading => {}
        () = writing => panic!("it has ended"),
    }
    assert!(link.waiting_bytes() <= CONGESTED_BYTES / 2);
    assert!(!link.poll_congested(&cx));
    // One that ends is congested no more, or its requests would wait for ever.
    while !link.is_congested() {
        send(&client, &compact(10_000)).unwrap();
    }
    link.close();
    assert!(!link.is_congested());
    assert!(client.incoming.poll_paused(&mut cx).is_ready());
}

#[tokio::test]
async fn who_asks_without_end_and_reads_no_answer_is_lost() {
    let (client, mut server) = pair(ROOMY, false).await;
    let ping = Command::Ping {
        ttl_deciseconds: 0,
        context: Bytes::from_static(&[7; 16]),
    };
    let asking = async {
        loop {
            client.link.command(&ping).unwrap();
            if client.link.waiting_bytes() > 0 {
                client.link.drained().await;
            }
            tokio::task::yield_now().await;
        }
    };
    let lost = tokio::select! {
        lost = hear(&mut server) => lost,
        () = asking => unreachable!("it asks for ever"),
    };
    assert!(matches!(lost, Err(Lost::Pings)), "{lost:?}");
    assert!(server.link.is_closed());
    assert_eq!(server.link.waiting_bytes(), 0);
}

#[tokio::test]
async fn what_came_before_the_end_is_handed_over_before_it() {
    let (client, mut server) = pair(ROOMY, false).await;
    send(&client, &compact(10)).unwrap();
    send(&client, &compact(2 * MIB)).unwrap(); // over the limit of a message
    let heard = hear(&mut server).await.unwrap();
    assert_eq!(heard.into_iter().map(lengths).collect::<Vec<_>>(), [[10]]);
    let lost = hear(&mut server).await;
    assert!(matches!(lost, Err(Lost::TooLarge(_))), "{lost:?}");
}

#[tokio::test]
async fn closing_wakes_everybody_who_waits() {
    let (mut client, server) = pair(ROOMY, false).await;
    fill(&client, 10_000);
    let link = Arc::clone(&client.link);
    let waiting = async { tokio::join!(link.ended(), link.drained(), hear(&mut client)) };
    let closing = async {
        tokio::task::yield_now().await;
        link.close();
    };
    let ((_, _, lost), ()) = tokio::join!(waiting, closing);
    assert!(matches!(lost, Err(Lost::ByUs)), "{lost:?}");
    assert_eq!(send(&client, &compact(1)), Err(NotSent::Closed));
    drop(server);
}
