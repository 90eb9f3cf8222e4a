//! Writes batches, and makes them safe.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::{Batch, Storage, segment_name};

/// Up to where the log is safe: all that was ever acknowledged is before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SafeEnd {
    pub segment: u32,
    pub offset: u64,
}

#[derive(Debug)]
pub(crate) struct Flusher {
    storage: Arc<dyn Storage>,
    segment_bytes: u64,
    safe: SafeEnd,
    /// Written and not synced.
    unsynced: Option<SafeEnd>,
    /// The newest segment that is there.
    created: u32,
    preparing: Option<(u32, JoinHandle<io::Result<()>>)>,
}

impl Flusher {
    /// Goes on where everything up to `safe` is there.
    pub fn new(storage: Arc<dyn Storage>, segment_bytes: u64, safe: SafeEnd) -> Self {
        Self {
            storage,
            segment_bytes,
            safe,
            unsynced: None,
            created: safe.segment,
            preparing: None,
        }
    }

    /// Writes a batch; syncs it where somebody waits for that.
    pub fn write(&mut self, batch: &Batch) -> io::Result<()> {
        for chunk in &batch.chunks {
            if self
                .unsynced
                .is_some_and(|end| end.segment != chunk.segment)
            {
                // In order: a segment that others follow is whole.
                self.sync()?;
            }
            if chunk.offset == 0 {
                self.create(chunk.segment, chunk.bytes.len() as u64)?;
            }
            let name = segment_name(chunk.segment);
            self.storage.write(&name, chunk.offset, &chunk.bytes)?;
            self.unsynced = Some(SafeEnd {
                segment: chunk.segment,
                offset: chunk.offset + chunk.bytes.len() as u64,
            });
        }
        if batch.is_critical {
            self.sync()?;
        }
        for segment in &batch.removals {
            // One that cannot be removed now is empty when it is read again, and removed then.
            let _ = self.storage.remove(&segment_name(*segment));
        }
        Ok(())
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
        self.join();
        if self.created < segment {
            let bytes = self.segment_bytes.max(bytes);
            self.storage.create(&segment_name(segment), bytes)?;
            self.created = segment;
        }
        Ok(())
    }

    /// Begins to make the next segment, in a thread of its own. Says whether it is made.
    pub fn prepare(&mut self, segment: u32) -> bool {
        if self.created >= segment {
            return true;
        }
        if self
            .preparing
            .as_ref()
            .is_some_and(|(_, thread)| thread.is_finished())
        {
            self.join();
            return self.created >= segment;
        }
        if self.preparing.is_none() {
            let (storage, bytes) = (Arc::clone(&self.storage), self.segment_bytes);
            let make = move || storage.create(&segment_name(segment), bytes);
            let thread = std::thread::Builder::new().name("bowline-segment".into());
            self.preparing = thread.spawn(make).ok().map(|thread| (segment, thread));
        }
        false
    }

    fn join(&mut self) {
        if let Some((segment, thread)) = self.preparing.take()
            && let Ok(Ok(())) = thread.join()
        {
            self.created = self.created.max(segment);
        }
    }

    /// Goes on in a log that was read anew.
    pub fn go_on(&mut self, safe: SafeEnd) {
        self.safe = safe;
        self.created = safe.segment;
        self.unsynced = None;
    }

    /// Throws away what was written and never became safe, so that it cannot be read back.
    pub fn back_to_safe(&mut self) -> io::Result<()> {
        self.join();
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
