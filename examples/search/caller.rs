//! Who uses the services: pushes a folder, shows the progress, asks, and prints the hits.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bowline::topic::Keys;
use bowline::{Call, Client, Failure, Queue, RequestId, Subscriber};
use bowline_examples::search::{
    Document, Incoming, LoginClient, Missing, Progress, SearchClient, SearchParams,
};
use hdrhistogram::Histogram;
use tokio::time::sleep;

use crate::bar::Bar;
use crate::words::words;
use crate::{AnyError, Arguments, login};

/// Larger files are not text that somebody wrote.
const FILE_BYTES_MAX: u64 = 512 << 10;
const LINES_A_HIT: usize = 3;

pub async fn run(arguments: &Arguments, out: &mut impl Write) -> Result<(), AnyError> {
    let mut latencies = Latencies::new()?;
    let session = log_in(arguments).await?;
    let bar = Bar::new()?;
    upload(arguments, &session, Duration::ZERO, &bar, &mut latencies).await?;
    ask(arguments, session, &mut latencies, out).await?;
    writeln!(out, "\n{latencies}")?;
    Ok(())
}

pub async fn log_in(arguments: &Arguments) -> Result<String, AnyError> {
    let login = LoginClient::connect(&arguments.login).await?;
    let session = login.log_in(|mut params| {
        params.set_user("ann");
        params.set_password(login::PASSWORD);
    });
    Ok(session.await?.plain()?.session)
}

/// Pushes the documents of the folder into the queue, with a pause after each, and watches the workers until they
/// have had all of them taken in. Returns how many.
pub async fn upload(
    arguments: &Arguments,
    session: &str,
    pause: Duration,
    bar: &Bar,
    latencies: &mut Latencies,
) -> Result<u64, AnyError> {
    let queue = Queue::<Incoming>::connect(&arguments.index).await?;
    let upload = RequestId::new().to_string();
    let files = text_files(&arguments.path);
    bar.begin(files.len());
    let progress = Subscriber::<Progress>::connect(&arguments.progress).await?;
    progress.subscribe(Keys::Prefix(&upload)).await?;
    let watching = tokio::spawn(bar.clone().watch(progress));

    let (start, mut pushed) = (Instant::now(), 0);
    for file in files {
        // What cannot be read, or is no text, is left out.
        let Ok(text) = tokio::fs::read_to_string(&file).await else {
            continue;
        };
        let path = file.display().to_string();
        let incoming = Incoming {
            session: session.to_owned(),
            upload: upload.clone(),
            document: Document { path, text },
        };
        // Returns when the document is safe in the queue, whoever is there to take it in.
        latencies.time(queue.push(&incoming)).await?;
        pushed += 1;
        sleep(pause).await;
    }
    bar.say(&format!(
        "{pushed} documents pushed after {:.1?}",
        start.elapsed()
    ));
    loop {
        let counters = queue.counters().await?;
        if counters.dead > 0 {
            return Err("a document could not be taken in: look at the dead letters".into());
        }
        if counters.jobs == 0 {
            break;
        }
        sleep(Duration::from_millis(20)).await;
    }
    watching.abort();
    bar.finish(pushed);
    bar.say(&format!("… and taken in after {:.1?}", start.elapsed()));
    Ok(pushed)
}

/// Asks the query, prints the hits, and follows the link of each to its document.
pub async fn ask(
    arguments: &Arguments,
    session: String,
    latencies: &mut Latencies,
    out: &mut impl Write,
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
    writeln!(
        out,
        "\n{} hits for `{}` in {} documents",
        found.hits.len(),
        params.query,
        found.documents
    )?;
    for hit in found.hits {
        writeln!(out, "\n{:6.2}  {}", hit.score, hit.path)?;
        let follow = Call::<_, Document, Failure<Missing>>::follow(&index, &hit.document);
        let document = latencies.time(follow).await?;
        for line in highlighted(document.get()?.get_text()?.to_str()?, &params.query) {
            writeln!(out, "        {line}")?;
        }
    }
    Ok(())
}

/// All files below a folder that may be text; neither hidden ones nor what a build made.
fn text_files(path: &Path) -> Vec<PathBuf> {
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
        let _ = self.0.record(start.elapsed().as_micros() as u64);
        output
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
