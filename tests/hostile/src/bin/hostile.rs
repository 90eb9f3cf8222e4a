//! `hostile <seconds> <attack|all> calls=<address> [topics=<address>] [locked=<address>] [upstream=<address>]
//! [liar=<address>] [news=<address>]`
//!
//! Strikes, then prints a line for each attack: its name, how often it struck, and how often it saw that it did harm,
//! with tabs between. It gives way to every other
//! process of the machine, as one on another machine would.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bowline_test_hostile::attacks::{ALL, Attack};
use bowline_test_hostile::field::Field;
use bowline_test_hostile::process::raise_file_limit;

/// To every process that has something to do, at once. The lowest priority alone does not: the system lets who runs finish
/// its slice, some milliseconds, in which a service on the same processor waits for its attacker.
fn give_way() -> std::io::Result<()> {
    rustix::process::nice(19)?;
    let own = std::process::id().to_string();
    let idle = std::process::Command::new("chrt")
        .args(["--idle", "--pid", "0", &own])
        .status();
    if !idle.is_ok_and(|status| status.success()) {
        eprintln!("hostile: no `chrt --idle` here, so the service may wait for it");
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [seconds, which, addresses @ ..] = &arguments[..] else {
        return Err("how long, and which attack?".into());
    };
    let address = |name: &str| -> Result<Option<SocketAddr>, std::net::AddrParseError> {
        let address = addresses
            .iter()
            .find_map(|argument| argument.strip_prefix(name)?.strip_prefix('='));
        address.map(str::parse).transpose()
    };
    let attacks = match which.as_str() {
        "all" => ALL.to_vec(),
        name => vec![Attack::named(name).ok_or("no such attack")?],
    };
    give_way()?;
    raise_file_limit()?;
    let until = Instant::now() + Duration::from_secs_f64(seconds.parse()?);
    let mut fields = Vec::new();
    for network in 1..=attacks.len() {
        fields.push(Field {
            calls: address("calls")?.ok_or("whose calls?")?,
            topics: address("topics")?,
            locked: address("locked")?,
            upstream: address("upstream")?,
            liar: address("liar")?,
            news: address("news")?,
            until,
            network: u8::try_from(network)?,
            strikes: AtomicU64::new(0),
            harm: AtomicU64::new(0),
            used: AtomicU32::new(0),
        });
    }
    std::thread::scope(|scope| {
        for (attack, field) in attacks.iter().zip(&fields) {
            scope.spawn(move || attack.run(field));
        }
    });
    for (attack, field) in attacks.iter().zip(&fields) {
        let (strikes, harm) = (field.strikes.load(Relaxed), field.harm.load(Relaxed));
        println!("{}\t{strikes}\t{harm}", attack.name);
    }
    Ok(())
}
