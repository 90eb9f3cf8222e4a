//! All attacks, one by one and together, against a service under limits. `bare.rs` has what they do without it.
//!
//! On two cores, attackers, service and client take the processor from each other. With a core for the attackers:
//! `BOWLINE_HOSTILE_CORE=1 taskset -c 0 cargo test --release -p bowline-test-hostile --test siege -- --nocapture`
//! With other settings of the service, which `besieged` has: `BOWLINE_HOSTILE_SERVICE="threads=4 handshakes=32"` before it.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bowline::security::ClientSecurity;
use bowline::{Client, Publisher, Reply, Request, Server, Status};
use bowline_test_hostile::PASSWORD;
use bowline_test_hostile::attacks::ALL;
use bowline_test_hostile::curve::{client_keys, server_keys};
use bowline_test_hostile::good::{self, Seen};
use bowline_test_hostile::process::Victim;
use bowline_test_hostile::target::{
    EchoParams, EchoResults, GrowParams, GrowResults, LargeParams, LargeResults, RememberParams,
    RememberResults, Target, TargetClient, TargetServer, Tick,
};
use rustix::process::{Signal, kill_process};

const LIMITS: [&str; 2] = ["memory=2147483648", "files=512"];
/// What a service may have in memory, whatever is done to it.
const RESIDENT_MAX: u64 = 256 << 20;
const CALLS_A_SECOND: u32 = 500;

/// One siege at a time: they share the processor.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long all attack together, and whether the figures are held to what is promised. In between other work a short
/// form can only show that nothing breaks.
fn length() -> (Duration, bool) {
    match std::env::var("BOWLINE_HOSTILE_SECONDS") {
        Ok(seconds) => (Duration::from_secs(seconds.parse().unwrap()), true),
        Err(_) => (Duration::from_secs(10), false),
    }
}

fn service() -> Victim {
    let program = Path::new(env!("CARGO_BIN_EXE_besieged"));
    // Free now, and nobody else's for the next seconds.
    let free = [(); 3].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let [upstream, liar, news] = free.map(|it| it.local_addr().unwrap());
    let others = [
        format!("upstream={upstream}"),
        format!("liar={liar}"),
        format!("news={news}"),
    ];
    let tried = std::env::var("BOWLINE_HOSTILE_SERVICE").unwrap_or_default();
    let mut arguments = LIMITS.to_vec();
    arguments.extend(tried.split_whitespace());
    arguments.extend(others.iter().map(String::as_str));
    Victim::start(program, &arguments, 6, Stdio::inherit()).unwrap()
}

/// What became of an attack.
#[derive(Debug)]
struct Struck {
    name: String,
    times: u64,
    harm: u64,
}

/// Runs the attack to its end; how often each part of it struck.
async fn attack(which: &str, time: Duration, victim: &Victim) -> Vec<Struck> {
    let program = env!("CARGO_BIN_EXE_hostile");
    let mut hostile = match std::env::var("BOWLINE_HOSTILE_CORE") {
        Ok(core) => {
            let mut pinned = Command::new("taskset");
            pinned.args(["-c", &core, program]);
            pinned
        }
        Err(_) => Command::new(program),
    };
    hostile
        .args([&time.as_secs_f64().to_string(), which])
        .args(victim.arguments())
        .stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || hostile.output());
    let output = output.await.unwrap().unwrap();
    assert!(output.status.success(), "{output:?}");
    let output = String::from_utf8(output.stdout).unwrap();
    let strikes = output.lines().map(|line| {
        let fields: Vec<&str> = line.split('\t').collect();
        let [name, times, harm] = fields[..] else {
            panic!("{line}");
        };
        Struck {
            name: name.to_owned(),
            times: times.parse().unwrap(),
            harm: harm.parse().unwrap(),
        }
    });
    strikes.collect()
}

/// A service, a good client, and an attack of which both should see nothing.
async fn besiege(which: &str, time: Duration) -> (Seen, Seen) {
    let mut victim = service();
    let endpoint = format!("tcp://{}", victim.address("calls"));
    let client = TargetClient::connect(endpoint).await.unwrap();
    let locked = good_client_with_keys(&victim).await;
    let baseline = (time / 4).clamp(Duration::from_secs(1), Duration::from_secs(10));
    let before = good::call(&client, CALLS_A_SECOND, baseline).await;
    let (mut strikes, during, with_keys) = tokio::join!(
        attack(which, time, &victim),
        good::call(&client, CALLS_A_SECOND, time),
        good::call(&locked, CALLS_A_SECOND / 20, time)
    );
    // On a busy machine an attacker may have had no processor.
    for _ in 0..4 {
        if strikes.iter().all(|it| it.times > 0) {
            break;
        }
        for (it, again) in strikes.iter_mut().zip(attack(which, time, &victim).await) {
            assert_eq!(it.name, again.name);
            it.times += again.times;
            it.harm += again.harm;
        }
    }
    assert_eq!(victim.ended(), None, "{which} has killed the service");
    assert!(
        with_keys.share() >= 0.9,
        "with keys: {:?}",
        with_keys.failures
    );
    let refused = (during.refused, with_keys.refused);
    assert_eq!(refused, (0, 0), "{which}: {:?}", during.failures);
    let memory = victim.resident_max();
    println!(
        "{which}: {:.2} % of {} calls answered, p99 {:?} (before: {:?}), {} MiB at most; {strikes:?} {:?}",
        during.share() * 100.0,
        during.calls,
        during.p99(),
        before.p99(),
        memory >> 20,
        during.failures,
    );
    for Struck { name, times, harm } in &strikes {
        assert_ne!(*times, 0, "{name} has not struck");
        assert_eq!(*harm, 0, "{name} has done harm");
    }
    assert!(memory < RESIDENT_MAX, "{which}: {} MiB", memory >> 20);
    if which == "all" || which.starts_with("lying") {
        goes_on_with_good_ones(which, victim).await;
    }
    (before, during)
}

/// A client whose key is let in.
async fn good_client_with_keys(victim: &Victim) -> TargetClient {
    let security = ClientSecurity::new(client_keys().unwrap(), server_keys().unwrap().public());
    let endpoint = format!("tcp://{}", victim.address("locked"));
    let client = Client::builder().security(security).connect(endpoint);
    TargetClient::new(client.await.unwrap())
}

/// Knows the password.
struct Honest;

impl Target for Honest {
    async fn echo(&self, request: Request<EchoParams>) -> Result<Reply<EchoResults>, Status> {
        let data = request.plain()?.data;
        Ok(EchoResults { data }.into())
    }

    async fn large(&self, _: Request<LargeParams>) -> Result<Reply<LargeResults>, Status> {
        Err(Status::unavailable("nobody asks"))
    }

    async fn grow(&self, _: Request<GrowParams>) -> Result<Reply<GrowResults>, Status> {
        Ok(GrowResults { nodes: PASSWORD }.into())
    }

    async fn remember(
        &self,
        request: Request<RememberParams>,
    ) -> Result<Reply<RememberResults>, Status> {
        let data = request.plain()?.data;
        Ok(RememberResults { data }.into())
    }
}

/// Good peers where the hostile ones were: they are called, answered and heard.
async fn goes_on_with_good_ones(which: &str, mut victim: Victim) {
    let at = |name| format!("tcp://{}", victim.address(name));
    let (upstream, liar, news) = (at("upstream"), at("liar"), at("news"));
    let serve = async |endpoint| {
        let server = Server::builder().service(TargetServer::new(Honest));
        server.bind(endpoint).await.unwrap().spawn()
    };
    let (upstream, _liar) = (serve(upstream).await, serve(liar).await);
    let news = Publisher::<Tick>::bind(news).await.unwrap();
    let publishing = tokio::spawn(async move {
        loop {
            let tick = Tick {
                number: PASSWORD,
                ..Tick::default()
            };
            news.publish(&tick).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let pid = victim.pid();
    let mut says = tokio::task::spawn_blocking(move || {
        let said = victim.says(vec!["answered", "heard"]);
        (said, victim)
    });
    let said = tokio::time::timeout(Duration::from_secs(60), &mut says).await;
    if said.is_err() {
        // Nobody waits for what it has still to say.
        kill_process(pid, Signal::KILL).unwrap();
    }
    let said = said.unwrap_or_else(|_| panic!("{which}: it does not go on with good peers"));
    let (said, _victim) = said.unwrap();
    assert!(said, "{which}: it has ended");
    let called = async {
        while upstream.counters().handled == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let called = tokio::time::timeout(Duration::from_secs(30), called).await;
    assert!(called.is_ok(), "{which}: upstream is not called");
    publishing.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[expect(clippy::await_holding_lock, reason = "a test at a time is the purpose")]
async fn a_service_outlives_all_attacks_together_and_its_client_hardly_notices() {
    let _alone = alone();
    let (time, is_strict) = length();
    let (before, during) = besiege("all", time).await;
    if is_strict {
        assert!(during.share() >= 0.99, "{:?}", during.failures);
        assert!(during.p99() <= before.p99() * 2);
    } else {
        assert!(during.share() >= 0.9, "{:?}", during.failures);
    }
}

/// A test for each attack, under its name.
macro_rules! each_alone {
    ($($name:ident)*) => {
        mod a_service_outlives {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
                async fn $name() {
                    super::besiege_alone(stringify!($name)).await;
                }
            )*
        }

        #[test]
        fn each_attack_has_a_test_of_its_own() {
            let tested = [$(stringify!($name)),*];
            assert_eq!(tested.map(|name| name.replace('_', "-")).to_vec(), ALL.map(|attack| attack.name));
        }
    };
}

each_alone! {
    amplification
    claimed_jobs
    connection_flood
    crowded_messages
    crowded_pushes
    curve_handshakes
    cut_frames
    duplicated_replies
    endless_parts
    extreme_headers
    greedy_calls
    guessed_tokens
    half_handshakes
    huge_lengths
    lying_publishers
    lying_servers
    missing_delimiters
    new_producers
    once_keys
    padded_leases
    parked_leases
    ping_storm
    stolen_identities
    subscription_churn
    subscription_flood
    unfinished_messages
    unread_echoes
    unread_replies
}

#[expect(clippy::await_holding_lock, reason = "a test at a time is the purpose")]
async fn besiege_alone(name: &str) {
    let _alone = alone();
    // Those who lie have many ways to do it, one after the other.
    let seconds = if name.starts_with("lying") { 6 } else { 2 };
    let (_, during) = besiege(&name.replace('_', "-"), Duration::from_secs(seconds)).await;
    assert!(during.share() >= 0.9, "{:?}", during.failures);
}
