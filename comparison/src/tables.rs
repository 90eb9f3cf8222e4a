//! The figures as Markdown.

use std::fmt::Write;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::contenders::Kind;
use crate::measure::{Cores, Load};

const BEGIN: &str = "<!-- comparison:begin -->\n";
const END: &str = "<!-- comparison:end -->";

pub fn throughput(cores: Cores, load: Load, rounds: &[Vec<f64>]) -> String {
    let cores = match cores {
        Cores::One => "client and server in one thread, by processor time",
        Cores::Two => "client and server in a thread each",
    };
    let load = match load {
        Load::RoundTrip => "One call after the other".to_owned(),
        Load::InFlight(n) => format!("{n} calls in flight"),
    };
    let mut table = format!(
        "\n{load}, {cores}:\n\n| | µs a call | calls a second | time of Bowline / its time (lowest to highest round) |\n|---|---|---|---|\n"
    );
    let (bowline, _) = (&rounds[0], Kind::Bowline);
    for (kind, seconds) in Kind::ALL.iter().zip(rounds) {
        let mut ratios: Vec<f64> = bowline.iter().zip(seconds).map(|(b, s)| b / s).collect();
        ratios.sort_by(f64::total_cmp);
        let median_seconds = median(seconds);
        let _ = writeln!(
            table,
            "| {} | {:.2} | {:.0} | {:.2} ({:.2} to {:.2}) |",
            kind.name(),
            median_seconds * 1e6,
            1.0 / median_seconds,
            median(&ratios),
            ratios[0],
            ratios[ratios.len() - 1],
        );
    }
    table
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

pub fn latencies(rate: u32, histograms: &[Histogram<u64>]) -> String {
    let mut table = format!(
        "\nLatency under {rate} calls a second, a thread each:\n\n| | p50 | p99 | p99.9 |\n|---|---|---|---|\n"
    );
    for (kind, histogram) in Kind::ALL.iter().zip(histograms) {
        let at = |quantile| {
            let nanoseconds = histogram.value_at_quantile(quantile);
            format!("{:.0?}", Duration::from_micros(nanoseconds / 1000))
        };
        let _ = writeln!(
            table,
            "| {} | {} | {} | {} |",
            kind.name(),
            at(0.5),
            at(0.99),
            at(0.999)
        );
    }
    table
}

/// Replaces what is between the markers of a file.
pub fn write(file: &str, page: &str) -> std::io::Result<()> {
    let text = std::fs::read_to_string(file)?;
    let (Some(begin), Some(end)) = (text.find(BEGIN), text.find(END)) else {
        return Err(std::io::Error::other(format!("{file} has no markers")));
    };
    let (before, after) = (&text[..begin + BEGIN.len()], &text[end..]);
    std::fs::write(file, format!("{before}{page}{after}"))
}
