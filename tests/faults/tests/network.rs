//! A counter behind a network that loses, repeats, swaps and holds up messages: it counts what was
//! asked, once, and every caller can find out what became of its call.

use std::collections::HashSet;
use std::time::Duration;

use bowline::resilience::{Resilient, TryTimeout};
use bowline::{Client, Reason, RequestId, Status, Work};
use bowline_test_faults::by_form;
use bowline_test_faults::faults::CounterClient;
use bowline_test_faults::process::Service;
use bowline_test_faults::proxy::{Plan, Proxy};
use tokio::task::JoinSet;

const ATTEMPT: Duration = Duration::from_millis(100);
const PLAN: Plan = Plan {
    lost: 10,
    repeated: 10,
    swapped: 20,
    delayed: 5,
    delay: Duration::from_millis(150),
};
const CALLERS: usize = 64;

/// How a call ended.
enum Known {
    Counted(u64),
    NotCounted,
    Unknown(RequestId),
}

async fn connect(endpoint: &str) -> Resilient {
    let client = Client::builder()
        .resilient()
        .try_timeout(TryTimeout {
            share: 0.0,
            at_least: ATTEMPT,
        })
        // There is one endpoint. Leaving it alone would only leave less of the network to test.
        .breaker(None);
    client.connect([endpoint]).await.expect("an endpoint")
}

async fn add(client: &CounterClient<Resilient>) -> Known {
    let id = RequestId::new();
    let call = client.add(|mut params| params.set_by(1));
    match call.request_id(id.clone()).await {
        Ok(reply) => Known::Counted(reply.get().expect("a reply").get_total()),
        Err(status) if status.work() == Work::NotDone => Known::NotCounted,
        Err(_) => Known::Unknown(id),
    }
}

/// Asks until somebody knows.
async fn resolve(client: &CounterClient<Resilient>, id: RequestId) -> Option<u64> {
    for _ in 0..100 {
        match client.add_outcome(id.clone()).await {
            Ok(reply) => {
                assert!(reply.is_replayed());
                return Some(reply.get().expect("a reply").get_total());
            }
            Err(status) if status.reason() == Some(Reason::KeyUnknown) => return None,
            Err(_) => {}
        }
    }
    panic!("nobody could say what became of {id}");
}

/// Does it with each of `work`, so many at once.
async fn at_once<W, T, F>(
    work: impl IntoIterator<Item = W>,
    clients: &[CounterClient<Resilient>],
    each: impl Fn(CounterClient<Resilient>, W) -> F,
) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let (mut running, mut ended) = (JoinSet::new(), Vec::new());
    for (work, client) in work.into_iter().zip(clients.iter().cycle()) {
        running.spawn(each(client.clone(), work));
        if running.len() >= CALLERS {
            ended.extend(running.join_next().await.map(|it| it.expect("no panic")));
        }
    }
    while let Some(done) = running.join_next().await {
        ended.push(done.expect("no panic"));
    }
    ended
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_bad_network_every_call_is_counted_once_or_not_and_its_caller_can_know_which() {
    let calls = by_form(3_000, 50_000);
    let seed = std::env::var("BOWLINE_SEED").map_or_else(
        |_| fastrand::u64(..),
        |seed| seed.parse().expect("a number"),
    );
    println!("BOWLINE_SEED={seed}");
    let server = Service::start(env!("CARGO_BIN_EXE_service"), &["counter"]).await;
    let address = server.endpoint().strip_prefix("tcp://").expect("TCP");
    let proxy = Proxy::start(address.parse().expect("an address"), PLAN, seed).await;
    let proxy = proxy.expect("a port");
    let mut connections = Vec::new();
    for _ in 0..4 {
        connections.push(connect(proxy.endpoint()).await);
    }
    let clients: Vec<_> = connections
        .iter()
        .cloned()
        .map(CounterClient::new)
        .collect();

    let ended = at_once(
        0..calls,
        &clients,
        |client, _| async move { add(&client).await },
    )
    .await;
    // What is still held up arrives now, and is done or not.
    tokio::time::sleep(PLAN.delay * 2 + Duration::from_secs(1)).await;

    let (mut counted, mut refused, mut unknown) = (Vec::new(), 0, Vec::new());
    for known in ended {
        match known {
            Known::Counted(total) => counted.push(total),
            Known::NotCounted => refused += 1,
            Known::Unknown(id) => unknown.push(id),
        }
    }
    let (succeeded, unresolved) = (counted.len(), unknown.len());
    // Over the same network.
    let resolved = at_once(unknown, &clients, |client, id| async move {
        resolve(&client, id).await
    })
    .await;
    counted.extend(resolved.into_iter().flatten());
    let found = counted.len() - succeeded;
    let sent_again = connections.iter().map(|it| it.counters().sent_again);
    let sent_again: u64 = sent_again.sum();
    println!(
        "{calls} calls: {succeeded} succeeded, {refused} were refused, {unresolved} did not know; \
         of these, {found} had been counted. {sent_again} attempts were sent again"
    );
    println!("injected: {}", proxy.injected());

    let direct = CounterClient::connect(server.endpoint()).await;
    let total = direct.expect("there").total(|_| {}).await;
    let total = total.and_then(|total| Ok(total.plain()?)).expect("a total");
    assert_eq!(succeeded + refused + unresolved, calls);
    assert_eq!(
        total.total,
        counted.len() as u64,
        "counted as often as was said"
    );
    assert_eq!(total.records, total.total, "and as often as is recorded");
    let totals: HashSet<u64> = counted.iter().copied().collect();
    assert_eq!(
        totals.len(),
        counted.len(),
        "nobody was told another's total"
    );
    assert_eq!(counted.iter().max(), Some(&total.total));
    assert!(found > 0 && sent_again > 0, "the network was too good");
    for (kind, count) in proxy.injected().kinds() {
        assert!(count > 0, "no message was {kind}");
    }
}

/// So that the test above would notice.
#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_was_healed_lets_everything_through() {
    let server = Service::start(env!("CARGO_BIN_EXE_service"), &["counter"]).await;
    let address = server.endpoint().strip_prefix("tcp://").expect("TCP");
    let proxy = Proxy::start(address.parse().expect("an address"), PLAN, 1).await;
    let proxy = proxy.expect("a port");
    proxy.heal();
    let client = Client::connect(proxy.endpoint())
        .await
        .expect("an endpoint");
    let client = CounterClient::new(client);
    for total in 1..=200 {
        let reply = client.add(|mut params| params.set_by(1)).await;
        let reply = reply.and_then(|reply| Ok::<_, Status>(reply.plain()?));
        assert_eq!(reply.expect("counted").total, total);
    }
    assert!(
        proxy
            .injected()
            .kinds()
            .iter()
            .all(|(_, count)| *count == 0)
    );
}
