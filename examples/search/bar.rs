//! A progress bar that never goes back.

use bowline::Subscriber;
use bowline::topic::Event;
use bowline_examples::search::Progress;
use indicatif::{ProgressBar, ProgressStyle};

use crate::AnyError;

#[derive(Clone)]
pub struct Bar(ProgressBar);

impl Bar {
    /// At nothing of nothing.
    pub fn new() -> Result<Self, AnyError> {
        let style = ProgressStyle::with_template("{bar:40} {pos}/{len} documents, {msg}")?;
        Ok(Self(ProgressBar::new(0).with_style(style)))
    }

    /// There are so many documents to come.
    pub fn begin(&self, documents: usize) {
        self.0.set_length(documents as u64);
    }

    /// How many documents it shows to be done.
    #[cfg(test)]
    pub fn shown(&self) -> u64 {
        self.0.position()
    }

    /// Shows what is published, until it is ended.
    pub async fn watch(self, mut progress: Subscriber<Progress>) {
        while let Some(event) = progress.next().await {
            if let Event::Message(message) = event
                && let Ok(progress) = message.plain()
            {
                self.show(&progress);
            }
        }
    }

    fn show(&self, progress: &Progress) {
        let documents = u64::from(progress.documents);
        // Workers finish in any order, so what comes later may be of earlier.
        if documents > self.0.position() {
            self.0.set_position(documents);
            let mebibytes = progress.bytes as f64 / f64::from(1 << 20);
            self.0.set_message(format!("{mebibytes:.1} MiB"));
        }
    }

    /// Prints a line above it.
    pub fn say(&self, line: &str) {
        self.0.suspend(|| println!("{line}"));
    }

    /// All of them are done.
    pub fn finish(&self, documents: u64) {
        self.0.set_length(documents);
        self.0.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_never_goes_back() -> Result<(), AnyError> {
        let bar = Bar::new()?;
        bar.begin(100);
        let mut before = 0;
        // As after a publisher that was killed, and from workers that finish in any order.
        for documents in [1, 3, 2, 2, 4, 0, 1, 5, 90, 6, 100, 99] {
            let upload = String::new();
            bar.show(&Progress {
                upload,
                documents,
                bytes: 0,
            });
            let shown = bar.shown();
            assert!(shown >= before, "{shown} after {before}");
            before = shown;
        }
        assert_eq!(before, 100);
        Ok(())
    }
}
