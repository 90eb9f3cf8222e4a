//! The same calls by Bowline, raw sockets, tarpc, tonic and capnp-rpc, side by side in one run:
//!
//! ```text
//! cargo run --release -p bowline-comparison -- docs/benchmarks.md
//! ```
//!
//! prints tables of ratios, and writes them between the markers of that file. The contenders take
//! turns, several rounds; a ratio is the median of the rounds' ratios. Without a file it only prints.
//!
//! ```text
//! strace -fc target/release/bowline-comparison alone Bowline 1 20000
//! ```
//!
//! makes 20,000 calls of one contender, one at once, for whoever counts system calls or instructions; `two`
//! behind that gives the server a thread of its own.

mod contenders;
mod machine;
mod measure;
mod tables;

bowline::include_schemas!();

use contenders::Kind;
use measure::{Cores, Load};

const ROUNDS: usize = 5;
/// Calls a second that every contender can keep, on a busy machine too.
const OFFERED_RATES: [u32; 2] = [1_000, 4_000];

fn main() -> Result<(), contenders::AnyError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, name, at_once, calls, rest @ ..] = &arguments[..]
        && first == "alone"
    {
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name);
        let kind = kind.ok_or_else(|| format!("no contender `{name}`"))?;
        let cores = match rest {
            [] => Cores::One,
            _ => Cores::Two,
        };
        return measure::alone(kind, cores, at_once.parse()?, calls.parse()?);
    }
    let mut page = machine::describe()?;
    for cores in [Cores::One, Cores::Two] {
        for load in [Load::RoundTrip, Load::InFlight(64)] {
            let mut rounds: Vec<Vec<f64>> = vec![Vec::new(); Kind::ALL.len()];
            for _ in 0..ROUNDS {
                for (seconds, kind) in rounds.iter_mut().zip(Kind::ALL) {
                    seconds.push(measure::seconds_per_call(kind, cores, load)?);
                }
            }
            page += &tables::throughput(cores, load, &rounds);
        }
    }
    for rate in OFFERED_RATES {
        let mut latencies = Vec::new();
        for kind in Kind::ALL {
            latencies.push(measure::latencies(kind, rate)?);
        }
        page += &tables::latencies(rate, &latencies);
    }
    print!("{page}");
    if let Some(file) = arguments.first() {
        tables::write(file, &page)?;
    }
    Ok(())
}
