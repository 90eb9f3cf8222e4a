//! `subscriber topics=<address> events=<n>`: says `ready 0.0.0.0:0` when its subscription is confirmed, then how many of
//! so many ticks were delivered and how many it was told it had missed. It is stopped and continued from outside.

use std::time::Duration;

use bowline::Subscriber;
use bowline::topic::Keys;
use bowline_test_hostile::good;
use bowline_test_hostile::process::argument;
use bowline_test_hostile::target::Tick;
use tokio::time::Instant;

/// Longer than any test.
const PATIENCE: Duration = Duration::from_secs(900);

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let topics = argument("topics").ok_or("whose topics?")?;
    let events = argument("events").ok_or("how many events?")?.parse()?;
    let mut subscriber = Subscriber::<Tick>::connect(format!("tcp://{topics}")).await?;
    subscriber.subscribe(Keys::All).await?;
    println!("ready 0.0.0.0:0");
    let watched = good::watch(&mut subscriber, events, Instant::now() + PATIENCE).await;
    println!("{} {}", watched.delivered, watched.missed);
    Ok(())
}
