//! Who pushes: an ID that outlives the process, an epoch for each start, and a count.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use super::Identity;
use crate::wire::RequestId;

/// A producer of jobs. Its clones are one producer, and count together.
///
/// Kept [on disk](Self::open), it is the same producer after a restart, with a greater epoch.
#[derive(Clone, Debug)]
pub struct Producer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: Uuid,
    epoch: u64,
    next: AtomicU64,
}

impl Producer {
    /// One that is known by nobody and ends with its process.
    pub fn ephemeral() -> Self {
        let id = match RequestId::new() {
            RequestId::Uuid(id) => id,
            RequestId::Key(_) => Uuid::nil(),
        };
        Self::new(id, 0)
    }

    /// The producer of this directory, which is made if it is not there. Only one process may have it open.
    ///
    /// # Errors
    /// What the file system says; and for a file `producer` that is not one.
    pub fn open(directory: impl AsRef<Path>) -> std::io::Result<Self> {
        let directory = directory.as_ref();
        std::fs::create_dir_all(directory)?;
        let file = directory.join("producer");
        let (id, epoch) = match std::fs::read_to_string(&file) {
            Ok(text) => parse(&text).ok_or_else(|| {
                let reason = format!("{} does not name a producer", file.display());
                std::io::Error::new(std::io::ErrorKind::InvalidData, reason)
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                (Self::ephemeral().0.id, 0)
            }
            Err(error) => return Err(error),
        };
        // Greater than the last, and by the clock where that goes forward, so that a file from a backup is
        // no old epoch again.
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let clock = since.map_or(0, |since| since.as_micros() as u64);
        let epoch = clock.max(epoch + 1);
        replace(directory, &file, &format!("{id} {epoch}\n"))?;
        Ok(Self::new(id, epoch))
    }

    fn new(id: Uuid, epoch: u64) -> Self {
        Self(Arc::new(Inner {
            id,
            epoch,
            next: AtomicU64::new(0),
        }))
    }

    /// The identity of one more push.
    pub fn identity(&self) -> Identity {
        Identity {
            producer: self.0.id,
            epoch: self.0.epoch,
            sequence: self.0.next.fetch_add(1, Ordering::Relaxed),
        }
    }
}

fn parse(text: &str) -> Option<(Uuid, u64)> {
    let (id, epoch) = text.trim_end().split_once(' ')?;
    Some((id.parse().ok()?, epoch.parse().ok()?))
}

/// Replaces a file, so that after a crash it is the old one or the new one.
fn replace(directory: &Path, file: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    let new = file.with_extension("new");
    let mut written = std::fs::File::create(&new)?;
    written.write_all(text.as_bytes())?;
    written.sync_all()?;
    std::fs::rename(&new, file)?;
    std::fs::File::open(directory)?.sync_all()
}
