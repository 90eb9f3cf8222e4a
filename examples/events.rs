//! A publisher and a subscriber. The schema is `schema/weather.capnp`.

use bowline::topic::{Event, Keys};
use bowline::{Publisher, Subscriber};
use bowline_examples::weather::Reading;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let publisher = Publisher::<Reading>::bind("tcp://127.0.0.1:0").await?;
    let mut readings = Subscriber::<Reading>::connect(publisher.endpoint().to_string()).await?;
    // Returns when the publisher has it, so that the first event is not lost.
    readings.subscribe(Keys::All).await?;

    for (station, celsius) in [("oslo", -3.5), ("rome", 14.0)] {
        let station = station.into();
        let published = publisher.publish(&Reading { station, celsius }).await?;
        println!("went to {} subscriber", published.matched);
    }
    for _ in 0..2 {
        match readings.next().await {
            Some(Event::Message(message)) => println!("{:?}", message.plain()?),
            Some(Event::Missed { from, to, .. }) => println!("missed {from} to {to}"),
            Some(Event::Restarted { .. }) | None => break,
        }
    }
    publisher.close().await;
    Ok(())
}
