//! Writes batches, and makes them safe.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::index::{index_name, make};
use super::record::{self, Position, Record};
use super::{Batch, SegmentKey, Storage, next_segment_bytes, segment_name};

/// A segment gets an index when so many follow it: most are thrown away before.
const INDEXED_BEHIND: u32 = 2;

/// Up to where the log is safe: all that was ever acknowledged is before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SafeEnd {
    pub segment: u32,
    pub offset: u64,
}

#[derive(Debug)]
pub(crate) struct Flusher {
    storage: Arc<dyn Storage>,
    segment_bytes_max: u64,
    safe: SafeEnd,
    /// Written and not synced.
    unsynced: Option<SafeEnd>,
    /// What the records of the segment that is written to are checked with, where that is known.
    key: Option<SegmentKey>,
    /// Up to where a mark behind the last record says that all is safe.
    marked: SafeEnd,
    /// The newest segment that is there.
    created: u32,
    /// Its length, where it was made here.
    created_bytes: u64,
    /// Segments that can go, the oldest first. What is said of the jobs of one is in those behind it, so that none goes
    /// before it.
    removals: VecDeque<u32>,
    preparing: Option<(u32, JoinHandle<io::Result<()>>)>,
    /// Segments that are sealed, safe and without an index.
    unindexed: BTreeSet<u32>,
    indexing: Option<JoinHandle<()>>,
}

impl Flusher {
    /// Goes on where everything up to `safe` is there, and these segments have no index.
    pub fn new(
        storage: Arc<dyn Storage>,
        segment_bytes_max: u64,
        safe: SafeEnd,
        unindexed: Vec<u32>,
    ) -> Self {
        Self {
            storage,
            segment_bytes_max,
            safe,
            unsynced: None,
            key: None,
            marked: safe,
            created: safe.segment,
            created_bytes: 0,
            removals: VecDeque::new(),
            preparing: None,
            unindexed: unindexed.into_iter().collect(),
            indexing: None,
        }
    }

    /// Writes a batch; syncs it where somebody waits for that.
    pub fn write(&mut self, batch: &Batch) -> io::Result<()> {
        for (segment, offset, bytes) in batch.chunks() {
            if let Some(end) = self.unsynced
                && end.segment != segment
            {
                // In order: a segment that others follow is whole.
                self.sync()?;
                self.unindexed.insert(end.segment);
            }
            if offset == 0 {
                self.create(segment, bytes.len() as u64)?;
            }
            self.storage.write(&segment_name(segment), offset, bytes)?;
            self.unsynced = Some(SafeEnd {
                segment,
                offset: offset + bytes.len() as u64,
            });
        }
        if batch.has_bytes() {
            self.key = Some(batch.key);
        }
        if batch.is_critical {
            self.sync()?;
        }
        self.removals.extend(&batch.removals);
        self.remove();
        Ok(())
    }

    /// Whether something was written since the last [mark](Self::mark_safe).
    pub fn is_marked(&self) -> bool {
        self.unsynced.is_none() && self.marked == self.safe
    }

    /// Syncs what was written, and says behind it that all of it is safe, so that damage is not taken for the torn end
    /// of what was never acknowledged. What is written next takes the place of the mark.
    pub fn mark_safe(&mut self) -> io::Result<()> {
        self.sync()?;
        let (SafeEnd { segment, offset }, Some(key)) = (self.safe, self.key) else {
            self.marked = self.safe;
            return Ok(());
        };
        let mut mark = Vec::new();
        record::write(
            &mut mark,
            Position { key, offset },
            &Record::Safe { offset },
        );
        self.storage.write(&segment_name(segment), offset, &mark)?;
        self.storage.sync(&segment_name(segment))?;
        self.marked = self.safe;
        Ok(())
    }

    /// Removes what can go. What cannot be removed now is tried again with the next batch, and takes only room until then.
    fn remove(&mut self) {
        while let Some(segment) = self.removals.front().copied() {
            self.unindexed.remove(&segment);
            match self.storage.remove(&segment_name(segment)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(segment, %error, "an old segment of a queue's log stays");
                    return;
                }
                _ => {}
            }
            // There may be none. One that stays is removed when the queue is opened.
            let _ = self.storage.remove(&index_name(segment));
            self.removals.pop_front();
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        if let Some(end) = self.unsynced {
            self.storage.sync(&segment_name(end.segment))?;
            self.safe = end;
            self.unsynced = None;
        }
        Ok(())
    }

    fn create(&mut self, segment: u32, bytes: u64) -> io::Result<()> {
        // Where it failed, it is tried once more.
        let _ = self.join();
        if self.created < segment {
            let created_bytes = self.next_bytes();
            let name = segment_name(segment);
            self.storage.create(&name, created_bytes.max(bytes))?;
            self.has_created(segment);
        }
        Ok(())
    }

    /// Whether there is room for a file, though small.
    ///
    /// # Errors
    /// Where there is none.
    pub fn probe(&self) -> io::Result<()> {
        const PROBE: &str = "probe";
        self.storage.create(PROBE, 4096)?;
        self.storage.remove(PROBE)
    }

    /// Begins to make the segment behind the newest, of so many bytes at least, in a thread of its own. Says whether it
    /// is made.
    ///
    /// # Errors
    /// Where it could not be made.
    pub fn prepare(&mut self, segment: u32, bytes_min: u64) -> io::Result<bool> {
        if self.created >= segment {
            return Ok(true);
        }
        if let Some((_, thread)) = &self.preparing {
            if !thread.is_finished() {
                return Ok(false);
            }
            self.join()?;
            return Ok(self.created >= segment);
        }
        if self.created + 1 == segment {
            let bytes = self.next_bytes().max(bytes_min);
            let storage = Arc::clone(&self.storage);
            let make = move || storage.create(&segment_name(segment), bytes);
            let thread = std::thread::Builder::new().name("bowline-segment".into());
            self.preparing = Some((segment, thread.spawn(make)?));
        }
        Ok(false)
    }

    /// Begins to make an index that is missing, in a thread of its own.
    pub fn index(&mut self) {
        if let Some(thread) = self.indexing.take_if(|thread| thread.is_finished()) {
            let _ = thread.join();
        }
        if self.indexing.is_none()
            && let Some(segment) = self.next_unindexed()
        {
            let storage = Arc::clone(&self.storage);
            let make = move || index(&*storage, segment);
            let thread = std::thread::Builder::new().name("bowline-index".into());
            self.indexing = thread.spawn(make).ok();
        }
    }

    /// Makes the indexes that are missing.
    pub fn index_now(&mut self) -> io::Result<()> {
        while let Some(segment) = self.next_unindexed() {
            make(&*self.storage, segment)?;
        }
        Ok(())
    }

    fn next_unindexed(&mut self) -> Option<u32> {
        let first = *self.unindexed.first()?;
        if first + INDEXED_BEHIND > self.safe.segment {
            return None;
        }
        self.unindexed.pop_first()
    }

    fn join(&mut self) -> io::Result<()> {
        let Some((segment, thread)) = self.preparing.take() else {
            return Ok(());
        };
        let made = thread.join();
        made.unwrap_or_else(|_| Err(io::Error::other("making a segment panicked")))?;
        self.has_created(segment);
        Ok(())
    }

    fn end_index(&mut self) {
        if let Some(thread) = self.indexing.take() {
            let _ = thread.join();
        }
    }

    fn next_bytes(&self) -> u64 {
        next_segment_bytes(self.created_bytes, self.segment_bytes_max)
    }

    fn has_created(&mut self, segment: u32) {
        self.created_bytes = self.next_bytes();
        self.created = segment;
    }

    /// Goes on in a log that was read anew.
    pub fn go_on(&mut self, safe: SafeEnd, unindexed: Vec<u32>) {
        self.unindexed = unindexed.into_iter().collect();
        // What can go is found again.
        self.removals.clear();
        self.safe = safe;
        self.key = None;
        self.marked = safe;
        self.created = safe.segment;
        self.created_bytes = 0;
        self.unsynced = None;
    }

    /// Throws away what was written and never became safe, so that it cannot be read back.
    pub fn back_to_safe(&mut self) -> io::Result<()> {
        let _ = self.join();
        self.end_index();
        for name in self.storage.list()? {
            if super::segment_of(&name).is_some_and(|segment| segment > self.safe.segment) {
                self.storage.remove(&name)?;
            }
        }
        let name = segment_name(self.safe.segment);
        if self.safe.segment > 0 {
            self.storage.truncate(&name, self.safe.offset)?;
            self.storage.sync(&name)?;
        }
        self.unsynced = None;
        self.created = self.safe.segment;
        Ok(())
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        // The directory is free when nobody makes anything in it any more.
        let _ = self.join();
        self.end_index();
    }
}

/// The segment is read whole where it has none.
fn index(storage: &dyn Storage, segment: u32) {
    match make(storage, segment) {
        Ok(true) => {}
        Ok(false) => tracing::warn!(segment, "a damaged segment of a queue's log gets no index"),
        Err(error) => tracing::warn!(segment, %error, "no index of a segment of a queue's log"),
    }
}
