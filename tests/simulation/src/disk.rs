//! A disk that loses and tears what was not synced.
//!
//! What is written is seen at once by whoever reads, and is on the disk after a sync. When the power
//! fails, each write since then is kept, lost, or torn: some of its sectors are kept, in any order.
//! A sync that fails leaves the same behind, and a later one that succeeds does not mend it, as on
//! Linux. That a file is there at all, under its name, is on the disk after [`Disk::sync_directory`].
//!
//! It does not model damage to what was synced, except where [`File::damage`] is asked for.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fastrand::Rng;

use crate::Faults;

/// What a disk writes whole.
const SECTOR_BYTES: usize = 512;

/// The disk of one machine. Clones are the same disk.
#[derive(Clone, Debug)]
pub struct Disk(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    random: Rng,
    faults: Faults,
    files: Vec<Contents>,
    /// As whoever looks sees it, and as it is on the disk.
    directory: Directory,
    directory_synced: Directory,
    renames: Vec<Directory>,
    is_on: bool,
    /// Files that were opened in an earlier life of the machine are closed.
    life: u32,
    /// The power fails at this sync, counted from now.
    cut_at_sync: Option<u32>,
    syncs: u64,
    do_syncs_fail: bool,
    has_failed: bool,
    bytes_max: Option<usize>,
}

type Directory = BTreeMap<String, usize>;

#[derive(Debug, Default)]
struct Contents {
    seen: Vec<u8>,
    synced: Vec<u8>,
    unsynced: Vec<Change>,
}

#[derive(Debug)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    SetLength(usize),
}

/// An open file. Clones are the same file.
///
/// Everything fails once the power was cut or the process that opened it is gone.
#[derive(Clone, Debug)]
pub struct File {
    disk: Disk,
    index: usize,
    life: u32,
}

impl Disk {
    /// An empty disk. `random` decides what a power cut leaves.
    pub fn new(random: &mut Rng, faults: Faults) -> Self {
        Self(Arc::new(Mutex::new(State {
            random: random.fork(),
            faults,
            files: Vec::new(),
            directory: Directory::new(),
            directory_synced: Directory::new(),
            renames: Vec::new(),
            is_on: true,
            life: 0,
            cut_at_sync: None,
            syncs: 0,
            do_syncs_fail: false,
            has_failed: false,
            bytes_max: None,
        })))
    }

    /// Opens a file, or makes it.
    ///
    /// # Errors
    /// While the power is off.
    pub fn open(&self, name: &str) -> io::Result<File> {
        let mut state = self.state();
        state.check_power()?;
        let index = match state.directory.get(name) {
            Some(index) => *index,
            None => {
                let index = state.files.len();
                state.files.push(Contents::default());
                state.change_directory(|directory| {
                    directory.insert(name.to_owned(), index);
                });
                index
            }
        };
        let (disk, life) = (self.clone(), state.life);
        Ok(File { disk, index, life })
    }

    /// The names of all files, in order.
    ///
    /// # Errors
    /// While the power is off.
    pub fn list(&self) -> io::Result<Vec<String>> {
        let state = self.state();
        state.check_power()?;
        Ok(state.directory.keys().cloned().collect())
    }

    /// Removes a file.
    ///
    /// # Errors
    /// Where there is none of this name, and while the power is off.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        state.check_power()?;
        if !state.directory.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.change_directory(|directory| {
            directory.remove(name);
        });
        Ok(())
    }

    /// Gives a file another name, in place of a file that had it.
    ///
    /// # Errors
    /// Where there is none of this name, and while the power is off.
    pub fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        state.check_power()?;
        let Some(index) = state.directory.get(from).copied() else {
            return Err(io::ErrorKind::NotFound.into());
        };
        state.change_directory(|directory| {
            directory.remove(from);
            directory.insert(to.to_owned(), index);
        });
        Ok(())
    }

    /// Makes it last which files there are and how they are called.
    ///
    /// # Errors
    /// Where syncs fail, and when the power fails at this one.
    pub fn sync_directory(&self) -> io::Result<()> {
        let mut state = self.state();
        state.sync(|state| {
            state.renames.clear();
            state.directory_synced = state.directory.clone();
        })
    }

    /// The power fails now.
    pub fn cut_power(&self) {
        self.state().cut_power();
    }

    /// The power fails at the n-th sync from now, just before or just after it. 0 is the next one.
    pub fn cut_power_at_sync(&self, syncs: u32) {
        self.state().cut_at_sync = Some(syncs);
    }

    /// Takes back [`cut_power_at_sync`](Self::cut_power_at_sync), if the power is still on.
    pub fn keep_power_on(&self) {
        self.state().cut_at_sync = None;
    }

    /// Whether the power is on.
    pub fn is_on(&self) -> bool {
        self.state().is_on
    }

    /// The power comes back, and with it a working disk.
    pub fn turn_on(&self) {
        let mut state = self.state();
        state.is_on = true;
        state.do_syncs_fail = false;
    }

    /// The process dies and the machine does not: nothing is lost, and all files are closed.
    pub fn close_all(&self) {
        self.state().life += 1;
    }

    /// Has all syncs fail, or no longer.
    pub fn fail_syncs(&self, fail: bool) {
        self.state().do_syncs_fail = fail;
    }

    /// Whether a sync has failed since the power was last cut. Then a process that is merely
    /// started again reads what is not on the disk, and takes it for synced.
    pub fn has_failed(&self) -> bool {
        self.state().has_failed
    }

    /// How many bytes all files may have together; `None` for as many as they like.
    pub fn limit(&self, bytes_max: Option<usize>) {
        self.state().bytes_max = bytes_max;
    }

    /// How many syncs were asked for so far.
    pub fn syncs(&self) -> u64 {
        self.state().syncs
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn check_power(&self) -> io::Result<()> {
        match self.is_on {
            true => Ok(()),
            false => Err(io::Error::other("the power is off")),
        }
    }

    /// Names are changed in order, as in a journal: what lasts is one of the directories on the way.
    fn change_directory(&mut self, change: impl FnOnce(&mut Directory)) {
        let before = self.directory.clone();
        self.renames.push(before);
        change(&mut self.directory);
    }

    fn sync(&mut self, take_effect: impl FnOnce(&mut Self)) -> io::Result<()> {
        self.check_power()?;
        self.syncs += 1;
        match &mut self.cut_at_sync {
            Some(0) => {
                if self.random.bool() {
                    self.faults.count("disk: power cut after a sync");
                    take_effect(self);
                } else {
                    self.faults.count("disk: power cut before a sync");
                }
                self.cut_power();
                self.check_power()
            }
            Some(syncs) => {
                *syncs -= 1;
                take_effect(self);
                Ok(())
            }
            None => {
                take_effect(self);
                Ok(())
            }
        }
    }

    fn cut_power(&mut self) {
        self.faults.count("disk: power cut");
        self.is_on = false;
        self.has_failed = false;
        self.life += 1;
        self.cut_at_sync = None;
        for contents in &mut self.files {
            contents.fall_back(&mut self.random, &self.faults);
            contents.seen.clone_from(&contents.synced);
        }
        let kept = self.random.usize(0..=self.renames.len());
        if let Some(directory) = self.renames.get(kept) {
            self.faults.count("disk: lost names");
            self.directory = directory.clone();
        }
        self.renames.clear();
        self.directory_synced = self.directory.clone();
    }

    fn check_space(&self, more: usize) -> io::Result<()> {
        let used: usize = self
            .directory
            .values()
            .map(|index| self.files[*index].seen.len())
            .sum();
        match self.bytes_max {
            Some(max) if used + more > max => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }
}

impl Contents {
    fn sync(&mut self) {
        for change in self.unsynced.drain(..) {
            match change {
                Change::Write { offset, bytes } => write(&mut self.synced, offset, &bytes),
                Change::SetLength(length) => self.synced.resize(length, 0),
            }
        }
    }

    /// Puts on the disk what happens to get there of what was not synced.
    fn fall_back(&mut self, random: &mut Rng, faults: &Faults) {
        for change in self.unsynced.drain(..) {
            match (change, random.u8(0..4)) {
                (Change::Write { .. } | Change::SetLength(_), 0 | 1) => {
                    faults.count("disk: lost write");
                }
                (Change::Write { offset, bytes }, 2) if bytes.len() > 1 => {
                    faults.count("disk: torn write");
                    tear(&mut self.synced, offset, &bytes, random);
                }
                (Change::Write { offset, bytes }, _) => write(&mut self.synced, offset, &bytes),
                (Change::SetLength(length), _) => self.synced.resize(length, 0),
            }
        }
    }
}

fn write(to: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if to.len() < end {
        to.resize(end, 0);
    }
    to[offset..end].copy_from_slice(bytes);
}

/// Some of the sectors; now and then, one that ends in its middle.
fn tear(to: &mut Vec<u8>, offset: usize, bytes: &[u8], random: &mut Rng) {
    let mut at = 0;
    while at < bytes.len() {
        let sector_end = (offset + at) / SECTOR_BYTES * SECTOR_BYTES + SECTOR_BYTES - offset;
        let end = sector_end.min(bytes.len());
        let kept = match random.u8(0..8) {
            0..=3 => end,
            4 => random.usize(at..end),
            _ => at,
        };
        write(to, offset + at, &bytes[at..kept]);
        at = end;
    }
}

impl File {
    /// Its length in bytes.
    ///
    /// # Errors
    /// Once it is closed.
    pub fn length(&self) -> io::Result<usize> {
        self.with(|contents, _| Ok(contents.seen.len()))
    }

    /// Fills `bytes` from `offset` on.
    ///
    /// # Errors
    /// Past the end, and once it is closed.
    pub fn read_at(&self, offset: usize, bytes: &mut [u8]) -> io::Result<()> {
        self.with(|contents, _| {
            let end = offset.checked_add(bytes.len());
            let found = end.and_then(|end| contents.seen.get(offset..end));
            bytes.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    /// All of it.
    ///
    /// # Errors
    /// Once it is closed.
    pub fn read_all(&self) -> io::Result<Vec<u8>> {
        self.with(|contents, _| Ok(contents.seen.clone()))
    }

    /// Writes over what is there, and makes the file longer where it ends before.
    ///
    /// # Errors
    /// On a full disk, with nothing written; and once it is closed.
    pub fn write_at(&self, offset: usize, bytes: &[u8]) -> io::Result<()> {
        let length = self.length()?;
        self.check_space((offset + bytes.len()).saturating_sub(length))?;
        self.with(|contents, _| {
            write(&mut contents.seen, offset, bytes);
            let bytes = bytes.to_vec();
            contents.unsynced.push(Change::Write { offset, bytes });
            Ok(())
        })
    }

    /// Writes at the end. Returns where that was.
    ///
    /// # Errors
    /// On a full disk, with nothing written; and once it is closed.
    pub fn append(&self, bytes: &[u8]) -> io::Result<usize> {
        let offset = self.length()?;
        self.write_at(offset, bytes)?;
        Ok(offset)
    }

    /// Cuts it off, or fills it up with zeros.
    ///
    /// # Errors
    /// On a full disk, with nothing changed; and once it is closed.
    pub fn set_length(&self, length: usize) -> io::Result<()> {
        self.check_space(length.saturating_sub(self.length()?))?;
        self.with(|contents, _| {
            contents.seen.resize(length, 0);
            contents.unsynced.push(Change::SetLength(length));
            Ok(())
        })
    }

    /// Returns when all that was written is on the disk.
    ///
    /// # Errors
    /// Where syncs fail, when the power fails at this one, and once it is closed. Then nobody knows
    /// what is on the disk, and another sync does not change that.
    pub fn sync(&self) -> io::Result<()> {
        let index = self.index;
        let mut state = self.open_state()?;
        if state.do_syncs_fail {
            state.has_failed = true;
            let State {
                files,
                random,
                faults,
                ..
            } = &mut *state;
            faults.count("disk: failed sync");
            files[index].fall_back(random, faults);
            return Err(io::Error::other("the disk failed"));
        }
        state.sync(|state| state.files[index].sync())
    }

    /// Inverts bits of one byte, as a disk that rots would: what reads it, sees it.
    ///
    /// # Panics
    /// Past the end.
    pub fn damage(&self, offset: usize, bits: u8) {
        let mut state = self.disk.state();
        state.faults.count("disk: damaged byte");
        let contents = &mut state.files[self.index];
        contents.sync();
        contents.seen[offset] ^= bits;
        contents.synced[offset] ^= bits;
    }

    fn check_space(&self, more: usize) -> io::Result<()> {
        self.open_state()?.check_space(more)
    }

    fn open_state(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.state();
        state.check_power()?;
        match self.life == state.life {
            true => Ok(state),
            false => Err(io::Error::other("the file is closed")),
        }
    }

    fn with<T>(&self, f: impl FnOnce(&mut Contents, &mut Rng) -> io::Result<T>) -> io::Result<T> {
        let state = &mut *self.open_state()?;
        f(&mut state.files[self.index], &mut state.random)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(seed: u64) -> Disk {
        Disk::new(&mut Rng::with_seed(seed), Faults::default())
    }

    fn file(disk: &Disk) -> File {
        let file = disk.open("log").expect("open");
        disk.sync_directory().expect("sync");
        file
    }

    fn after_power_cut(disk: &Disk) -> Vec<u8> {
        disk.cut_power();
        disk.turn_on();
        disk.open("log")
            .and_then(|file| file.read_all())
            .expect("it is on")
    }

    #[test]
    fn what_was_synced_is_there_after_a_power_cut() {
        for seed in 0..100 {
            let disk = disk(seed);
            let file = file(&disk);
            file.append(b"kept").expect("append");
            file.sync().expect("sync");
            file.append(&[1; 5000]).expect("append");
            assert_eq!(&after_power_cut(&disk)[..4], b"kept");
        }
    }

    #[test]
    fn what_was_not_synced_is_kept_lost_or_torn() {
        let (mut kept, mut lost, mut torn) = (0, 0, 0);
        for seed in 0..200 {
            let disk = disk(seed);
            let file = file(&disk);
            file.append(&[1; 2000]).expect("append");
            match after_power_cut(&disk) {
                bytes if bytes == [1; 2000] => kept += 1,
                bytes if bytes.is_empty() => lost += 1,
                _ => torn += 1,
            }
        }
        assert!(kept > 20 && lost > 20 && torn > 20, "{kept} {lost} {torn}");
    }

    #[test]
    fn a_power_cut_at_a_sync_comes_before_or_after_it() {
        let mut lengths = Vec::new();
        for seed in 0..50 {
            let disk = disk(seed);
            let file = file(&disk);
            disk.cut_power_at_sync(1);
            file.append(b"a").expect("append");
            file.sync().expect("the first");
            file.append(b"b").expect("append");
            assert!(file.sync().is_err(), "the second");
            assert!(!disk.is_on());
            lengths.push(after_power_cut(&disk).len());
        }
        assert!(lengths.contains(&1) && lengths.contains(&2), "{lengths:?}");
    }

    #[test]
    fn a_file_of_an_earlier_life_is_closed() {
        let disk = disk(0);
        let file = file(&disk);
        file.append(b"a").expect("append");
        disk.close_all();
        assert!(file.append(b"b").is_err());
        assert!(file.sync().is_err());
        let seen = disk.open("log").and_then(|file| file.read_all());
        assert_eq!(seen.expect("open"), b"a");
    }

    #[test]
    fn a_sync_that_failed_is_not_mended_by_one_that_succeeds() {
        let lost = (0..50).any(|seed| {
            let disk = disk(seed);
            let file = file(&disk);
            file.append(b"a").expect("append");
            disk.fail_syncs(true);
            assert!(file.sync().is_err());
            disk.fail_syncs(false);
            file.sync().expect("nothing is left to sync");
            assert_eq!(file.read_all().expect("open"), b"a");
            after_power_cut(&disk).is_empty()
        });
        assert!(lost);
    }

    #[test]
    fn names_last_once_their_directory_is_synced() {
        let (mut old, mut new) = (0, 0);
        for seed in 0..50 {
            let disk = disk(seed);
            let file = disk.open("new").expect("open");
            file.append(b"a").and_then(|_| file.sync()).expect("sync");
            disk.sync_directory().expect("sync");
            disk.rename("new", "log").expect("rename");
            disk.cut_power();
            disk.turn_on();
            match &disk.list().expect("on")[..] {
                [name] if name == "new" => old += 1,
                [name] if name == "log" => new += 1,
                names => panic!("{names:?}"),
            }
        }
        assert!(old > 0 && new > 0, "{old} {new}");
    }

    #[test]
    fn a_full_disk_takes_nothing_and_loses_nothing() {
        let disk = disk(0);
        let file = file(&disk);
        disk.limit(Some(10));
        file.append(&[1; 8]).expect("it fits");
        let full = file.append(&[2; 3]).expect_err("it does not");
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        file.write_at(0, &[3; 8]).expect("no more than before");
        assert_eq!(file.length().expect("open"), 8);
    }
}
