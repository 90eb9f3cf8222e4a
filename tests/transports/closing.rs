//! Closing while a peer does not read what is still to be sent: a linger time is an end.

use bowline::topic::Keys;
use bowline::{Publisher, Subscriber};
use bowline_test_schemas::everything::Sample;
use tokio::io::AsyncWriteExt;

use crate::stalled::{Stalled, alone, connected, fill, stalled_client, stand_still};
use crate::wire::{frames, shake_hands_as};
use crate::*;

/// Less than the default, and than what libraries take for theirs.
const LINGER: Duration = Duration::from_millis(200);
/// Nobody who keeps to that is so late, however busy the machine is.
const LATE: Duration = Duration::from_secs(15);

fn lingering(carried: Carried) -> TransportOptions {
    carried.options().with_linger(LINGER)
}

async fn ends(closing: impl Future<Output = ()>) {
    let closed = tokio::time::timeout(LATE, closing).await;
    closed.expect("it closes, whatever is still to be sent");
}

pub async fn a_client_that_cannot_send_what_it_has_closes_within_its_linger_time(carried: Carried) {
    let _alone = alone().await;
    // Bound, and never run: nothing of it reads.
    let server = carried.server().bind(carried.endpoint()).await.unwrap();
    let client = Client::builder().transport(lingering(carried));
    let client = client.connect(server.endpoint().to_string()).await.unwrap();
    fill(&client).await;
    ends(client.close()).await;
}

pub async fn a_server_that_cannot_send_what_it_has_closes_within_its_linger_time(carried: Carried) {
    let _alone = alone().await;
    let server = carried
        .server()
        .drain_max(LINGER)
        .send_wait_max(4 * LATE)
        .transport(lingering(carried));
    let server = server.bind(carried.endpoint()).await.unwrap().spawn();
    let stalled = stalled_client(carried, server.endpoint().to_string()).await;
    eventually("it is served", || server.counters().handled > 0).await;
    ends(server.shutdown()).await;
    drop(stalled);
}

pub async fn a_publisher_that_cannot_send_what_it_has_closes_within_its_linger_time(
    carried: Carried,
) {
    let _alone = alone().await;
    let options = lingering(carried).with_send_queue_max(16);
    let publisher = Publisher::<()>::builder().transport(options);
    let publisher = publisher.bind::<Sample>(carried.endpoint()).await.unwrap();
    let stalled = stalled_subscriber(carried, publisher.endpoint().to_string()).await;
    eventually("it has subscribed", || publisher.matching("a") > 0).await;
    let sample = Sample {
        series: "a".to_owned(),
        payload: vec![7; 64 << 10].into(),
    };
    // More than fits between the two. Some carriers drop what does not, and one waits.
    for _ in 0..600 {
        let publish = publisher.publish(&sample);
        if tokio::time::timeout(Duration::from_millis(500), publish)
            .await
            .is_err()
        {
            break;
        }
    }
    ends(publisher.close()).await;
    drop(stalled);
}

async fn stalled_subscriber(carried: Carried, endpoint: String) -> Stalled {
    let Some(mut stream) = connected(&endpoint).await else {
        return stand_still(move || async move {
            let subscriber = Subscriber::<()>::builder().transport(carried.options());
            let subscriber = subscriber.connect::<Sample>(endpoint).await.unwrap();
            subscriber.subscribe(Keys::All).await.unwrap();
            subscriber
        });
    };
    assert!(shake_hands_as(&mut stream, "SUB").await);
    stream.write_all(&frames(&[b"\x01sample/"])).await.unwrap();
    Box::new(stream)
}
