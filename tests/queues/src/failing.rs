//! A disk that fails as it is told to: a directory, and between it and the queue what goes wrong.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bowline::queue::{Directory, Storage};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// There is no room for another file.
    Full,
    /// Nothing that is written becomes safe.
    NoSync,
    /// Files of which the names end like this cannot be read.
    Unreadable(&'static str),
    /// Files cannot be removed whose names end like this.
    Stays(&'static str),
    /// Whoever writes to a segment or syncs one waits until all is well again.
    Stalled,
    /// Of all that is asked of it from now on, only the n-th fails, counted from 0.
    Nth(u64),
    /// The same, and all that follow.
    FromNth(u64),
}

/// A directory that fails.
#[derive(Debug)]
pub struct Failing {
    directory: Directory,
    fault: Mutex<Option<Fault>>,
    mended: Condvar,
    asked: AtomicU64,
}

/// What is asked of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    ToMake,
    ToRead,
    ToWrite,
    ToSync,
    ToRemove,
    Other,
}

impl Failing {
    /// All is well with it at first.
    pub fn open(path: &Path) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            directory: Directory::open(path)?,
            fault: Mutex::new(None),
            mended: Condvar::new(),
            asked: AtomicU64::new(0),
        }))
    }

    /// From now on this goes wrong, and nothing else.
    pub fn fail(&self, fault: Fault) {
        let mut current = self.lock();
        self.asked.store(0, Ordering::SeqCst);
        *current = Some(fault);
    }

    /// All is well again. Returns how much was asked since it was not.
    pub fn mend(&self) -> u64 {
        *self.lock() = None;
        self.mended.notify_all();
        self.asked.load(Ordering::SeqCst)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Fault>> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, asked: Asked, name: &str) -> io::Result<()> {
        const INPUT_OUTPUT_ERROR: i32 = 5;
        let mut fault = self.lock();
        let makes_safe = matches!(asked, Asked::ToWrite | Asked::ToSync);
        while *fault == Some(Fault::Stalled) && makes_safe && name.ends_with(".log") {
            let waited = self.mended.wait(fault);
            fault = waited.unwrap_or_else(PoisonError::into_inner);
        }
        let nth = self.asked.fetch_add(1, Ordering::SeqCst);
        let fails = match *fault {
            None | Some(Fault::Stalled) => false,
            Some(Fault::Full) if asked == Asked::ToMake => {
                return Err(io::ErrorKind::StorageFull.into());
            }
            Some(Fault::Full) => false,
            Some(Fault::NoSync) => matches!(asked, Asked::ToMake | Asked::ToSync),
            Some(Fault::Unreadable(end)) => asked == Asked::ToRead && name.ends_with(end),
            Some(Fault::Stays(end)) => asked == Asked::ToRemove && name.ends_with(end),
            Some(Fault::Nth(failing)) => nth == failing,
            Some(Fault::FromNth(first)) => nth >= first,
        };
        match fails {
            true => Err(io::Error::from_raw_os_error(INPUT_OUTPUT_ERROR)),
            false => Ok(()),
        }
    }
}

impl Storage for Failing {
    fn list(&self) -> io::Result<Vec<String>> {
        self.check(Asked::Other, "")?;
        self.directory.list()
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<()> {
        self.check(Asked::ToMake, name)?;
        self.directory.create(name, bytes)
    }

    fn read(&self, name: &str, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        self.check(Asked::ToRead, name)?;
        self.directory.read(name, offset, into)
    }

    fn write(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.check(Asked::ToWrite, name)?;
        self.directory.write(name, offset, bytes)
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        self.check(Asked::ToSync, name)?;
        self.directory.sync(name)
    }

    fn truncate(&self, name: &str, bytes: u64) -> io::Result<()> {
        self.check(Asked::ToSync, name)?;
        self.directory.truncate(name, bytes)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.check(Asked::ToRemove, name)?;
        self.directory.remove(name)
    }
}
