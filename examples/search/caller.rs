//! Who uses the services: feeds them a folder, shows the progress, asks, and prints the hits.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bowline::topic::{Event, Keys};
use bowline::{Call, Client, Failure, RequestId, Subscriber};
use bowline_examples::search::{
    AddParams, Document, IndexClient, LoginClient, Missing, Progress, SearchClient, SearchParams,
};
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::task::JoinSet;

use crate::words::words;
use crate::{AnyError, Arguments, login};

/// A batch is sent when it has this many bytes of text.
const BATCH_BYTES: usize = 256 * 1024;
/// Larger files are not text that somebody wrote.
const FILE_BYTES_MAX: u64 = 1 << 20;
const BATCHES_IN_FLIGHT: usize = 8;
const LINES_A_HIT: usize = 3;

pub async fn run(arguments: &Arguments) -> Result<(), AnyError> {
    let mut latencies = Latencies::new()?;
    let login = LoginClient::connect(&arguments.login).await?;
    let index = IndexClient::connect(&arguments.index).await?;
    let session = latencies
        .time(login.log_in(|mut params| {
            params.set_user("ann");
            params.set_password(login::PASSWORD);
        }))
        .await?
        .plain()?
        .session;

    let files = text_files(&arguments.path);
    let job = RequestId::new().to_string();
    let bar = ProgressBar::new(files.len() as u64).with_style(ProgressStyle::with_template(
        "{bar:40} {pos}/{len} documents, {msg}",
    )?);
    let progress = Subscriber::<Progress>::connect(&arguments.progress).await?;
    progress.subscribe(Keys::Prefix(&job)).await?;
    let watching = tokio::spawn(show(progress, bar.clone()));
    feed(&index, &session, &job, files, &mut latencies).await?;
    watching.abort();
    bar.finish();
    ask(arguments, session, &mut latencies).await?;
    println!("\n{latencies}");
    Ok(())
}

/// Asks the query, prints the hits, and follows the link of each to its document.
pub async fn ask(
    arguments: &Arguments,
    session: String,
    latencies: &mut Latencies,
) -> Result<(), AnyError> {
    let index = Client::connect(&arguments.index).await?;
    let search = SearchClient::connect(&arguments.search).await?;
    let params = SearchParams {
        session,
        query: arguments.query.clone(),
        limit: arguments.limit,
    };
    let found = latencies
        .time(search.search_plain(&params))
        .await?
        .plain()?;
    println!(
        "\n{} hits for `{}` in {} documents",
        found.hits.len(),
        params.query,
        found.documents
    );
    for hit in found.hits {
        println!("\n{:6.2}  {}", hit.score, hit.path);
        let follow = Call::<_, Document, Failure<Missing>>::follow(&index, &hit.document);
        let document = latencies.time(follow).await?;
        for line in highlighted(document.get()?.get_text()?.to_str()?, &params.query) {
            println!("        {line}");
        }
    }
    Ok(())
}

/// Sends the files in batches, several at once.
async fn feed(
    index: &IndexClient,
    session: &str,
    job: &str,
    files: Vec<PathBuf>,
    latencies: &mut Latencies,
) -> Result<(), AnyError> {
    let mut calls = JoinSet::new();
    let mut files = files.into_iter().peekable();
    while files.peek().is_some() {
        let mut documents = Vec::new();
        let mut bytes = 0;
        while bytes < BATCH_BYTES
            && let Some(file) = files.next()
        {
            // What cannot be read, or is no text, is left out.
            if let Ok(text) = tokio::fs::read_to_string(&file).await {
                bytes += text.len();
                let path = file.display().to_string();
                documents.push(Document { path, text });
            }
        }
        if calls.len() >= BATCHES_IN_FLIGHT
            && let Some(done) = calls.join_next().await
        {
            latencies.record(done??)?;
        }
        let params = AddParams {
            session: session.to_owned(),
            job: job.to_owned(),
            documents,
        };
        let add = index.add_plain(&params);
        calls.spawn(async move {
            let start = Instant::now();
            add.await.map(|_| start.elapsed())
        });
    }
    while let Some(done) = calls.join_next().await {
        latencies.record(done??)?;
    }
    Ok(())
}

async fn show(mut progress: Subscriber<Progress>, bar: ProgressBar) {
    while let Some(event) = progress.next().await {
        if let Event::Message(message) = event
            && let Ok(Progress {
                documents, bytes, ..
            }) = message.plain()
        {
            bar.set_position(documents.into());
            bar.set_message(format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64));
        }
    }
}

/// All files below a folder that may be text; neither hidden ones nor what a build made.
pub fn text_files(path: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut open = vec![path.to_owned()];
    while let Some(path) = open.pop() {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_skipped = name == "target" || name.starts_with('.') && name.len() > 1;
        let Ok(about) = path.symlink_metadata() else {
            continue;
        };
        if about.is_file() && about.len() <= FILE_BYTES_MAX {
            files.push(path);
        } else if about.is_dir() && !is_skipped {
            let entries = std::fs::read_dir(&path).into_iter().flatten().flatten();
            open.extend(entries.map(|entry| entry.path()));
        }
    }
    files.sort();
    files
}

/// The lines with the most different words of the query, in their order, the words in bold.
fn highlighted(text: &str, query: &str) -> Vec<String> {
    let terms: Vec<String> = words(query).map(|(_, word)| word).collect();
    let mut lines: Vec<(usize, usize, String)> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let mut found = std::collections::BTreeSet::new();
        let mut shown = String::new();
        let mut end = 0;
        for (range, word) in words(line) {
            if terms.contains(&word) {
                shown += &line[end..range.start];
                shown += &format!("\x1b[1m{}\x1b[0m", &line[range.clone()]);
                end = range.end;
                found.insert(word);
            }
        }
        shown += &line[end..];
        if !found.is_empty() {
            lines.push((found.len(), number + 1, shown));
        }
    }
    lines.sort_by_key(|(found, number, _)| (std::cmp::Reverse(*found), *number));
    lines.truncate(LINES_A_HIT);
    lines.sort_by_key(|(_, number, _)| *number);
    lines
        .into_iter()
        .map(|(_, number, line)| format!("{number}: {}", line.trim()))
        .collect()
}

/// How long the calls of this run took.
pub struct Latencies(Histogram<u64>);

impl Latencies {
    pub fn new() -> Result<Self, AnyError> {
        Ok(Self(Histogram::new(3)?))
    }

    async fn time<C: IntoFuture>(&mut self, call: C) -> C::Output {
        let start = Instant::now();
        let output = call.await;
        // Three digits of any duration fit.
        let _ = self.record(start.elapsed());
        output
    }

    fn record(&mut self, latency: Duration) -> Result<(), AnyError> {
        Ok(self.0.record(latency.as_micros() as u64)?)
    }
}

impl std::fmt::Display for Latencies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let at = |quantile| Duration::from_micros(self.0.value_at_quantile(quantile));
        write!(
            f,
            "{} calls; latency: median {:?}, 90 % {:?}, slowest {:?}",
            self.0.len(),
            at(0.5),
            at(0.9),
            Duration::from_micros(self.0.max()),
        )
    }
}
