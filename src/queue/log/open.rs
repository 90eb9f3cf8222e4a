//! Reads a log back: every whole record is applied, and what is damaged is set aside and reported.

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroU32;

use super::index::{Index, indexed_by};
use super::record::{self, Begun, Position, Pushed, Record};
use super::tail::{Segment, Tail, Times};
use super::window::Window;
use super::{
    Place, SEGMENT_HEADER, SafeEnd, Storage, VERSION, key_of, segment_name, segment_of,
    version_and_salt_of,
};
use crate::queue::machine::{Fact, Machine, Moment, Table};
use crate::queue::{QueueOptions, QueueType};

/// A log that is ready to be appended to.
pub(crate) struct Opened {
    pub machine: Machine,
    pub tail: Tail,
    /// The time at which the queue goes on.
    pub now: Moment,
    pub safe: SafeEnd,
    /// Segments that were read whole, for want of an index.
    pub unindexed: Vec<u32>,
    pub recovery: Recovery,
}

/// What was found when a queue was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recovery {
    /// Records that were whole.
    pub records: u64,
    /// Bytes at the end that were being written when the process or the machine died: nobody was told that they
    /// are safe.
    pub torn_bytes: u64,
    /// What was damaged. It was copied into files called `damaged-…`, and the queue goes on without it.
    pub damage: Vec<Damage>,
}

/// A part of the log that is no longer what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Damage {
    /// Of which segment.
    pub segment: u32,
    /// From this byte.
    pub offset: u64,
    /// So many bytes; none where the whole segment is missing, and perhaps others behind it.
    pub bytes: u64,
}

/// Reads the log back and begins a new segment, which is the caller's to write. Where it is no restart, the
/// queue's clock has not stood still.
pub(crate) fn open(
    storage: &dyn Storage,
    options: &QueueOptions,
    segment_bytes: u64,
    wall: u64,
    seed: u64,
    is_restart: bool,
) -> io::Result<Opened> {
    let mut names = storage.list()?;
    names.sort_unstable();
    let mut numbers: Vec<u32> = names.iter().filter_map(|name| segment_of(name)).collect();
    // Before anything is changed.
    for number in &numbers {
        check_version(storage, *number)?;
    }
    // Made ahead of their time, and never begun: the last is the one before.
    while let Some(last) = numbers.last()
        && is_unused(storage, *last)?
    {
        storage.remove(&segment_name(*last))?;
        numbers.pop();
    }
    let mut replay = Replay {
        storage,
        machine: Machine::new(options.clone(), 0, seed),
        places: Table::default(),
        segments: BTreeMap::new(),
        last: None,
        now: Moment(0),
        marked: None,
        opening: 0,
        unindexed: Vec::new(),
        holds: None,
        recovery: Recovery::default(),
    };
    for name in &names {
        if indexed_by(name).is_some_and(|number| numbers.binary_search(&number).is_err()) {
            storage.remove(name)?;
        }
    }
    for (index, number) in numbers.iter().enumerate() {
        let is_last = index + 1 == numbers.len();
        replay.segment(*number, is_last)?;
        if let Some(next) = numbers.get(index + 1)
            && *next > number + 1
        {
            // They are made and thrown away in their order.
            replay.is_missing(number + 1);
        }
    }
    let Replay {
        mut machine,
        places,
        segments,
        last,
        now,
        marked,
        opening,
        unindexed,
        holds,
        recovery,
        ..
    } = replay;
    let groups = options.groups.names();
    if let Some(begun) = &last
        && !groups.starts_with(&begun.groups)
    {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "the queue's groups are {:?}; more can be added behind them, and none taken away",
                begun.groups
            ),
        ));
    }
    let down = marked.filter(|_| is_restart).map_or(0, |(at, marked)| {
        // The wall clock went on from the last mark; the queue's has come `now - at` further already.
        wall.saturating_sub(marked)
            .saturating_sub(now.0.saturating_sub(at.0))
    });
    let opening = opening + 1;
    let now = Moment(now.0 + down);
    machine.resume(now, std::time::Duration::from_millis(down), opening);
    let last_segment = segments.keys().next_back().copied();
    let safe = SafeEnd {
        segment: last_segment.unwrap_or(0),
        offset: last_segment.map_or(0, |last| segments[&last].end),
    };
    // A later one was never begun, whatever is in it: its number is used again, so that none is missing.
    let newest = safe.segment;
    let mut tail = Tail::new(
        segment_bytes,
        salts(seed),
        opening,
        newest,
        segments,
        places,
        holds,
    );
    tail.begin(Times { now, wall }, &machine);
    Ok(Opened {
        machine,
        tail,
        now,
        safe,
        unindexed,
        recovery,
    })
}

/// What the salts of segments are drawn from: the secret of the tokens is not to be found in it.
fn salts(seed: u64) -> u64 {
    let key = blake3::derive_key("bowline 2026 queue log salts", &seed.to_le_bytes());
    let (first, _) = key.split_at(8);
    first
        .iter()
        .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

struct Replay<'a> {
    storage: &'a dyn Storage,
    machine: Machine,
    places: Table<Place>,
    segments: BTreeMap<u32, Segment>,
    last: Option<Begun>,
    now: Moment,
    /// The last time that the wall clock was written down, and what it said.
    marked: Option<(Moment, u64)>,
    opening: u32,
    unindexed: Vec<u32>,
    holds: Option<QueueType>,
    recovery: Recovery,
}

impl Replay<'_> {
    fn segment(&mut self, number: u32, is_last: bool) -> io::Result<()> {
        let name = segment_name(number);
        let mut header = [0; SEGMENT_HEADER as usize];
        let read = self.storage.read(&name, 0, &mut header)?;
        let header = &header[..read];
        let mut window = Window::new(self.storage, &name);
        let Some(key) = (read == SEGMENT_HEADER as usize)
            .then(|| key_of(header, number))
            .flatten()
        else {
            let is_unused = header.iter().all(|byte| *byte == 0);
            if !is_unused {
                let bytes = window.end()?;
                self.set_aside(number, 0, bytes, is_last)?;
                if is_last {
                    // Torn while it was begun, most likely; kept all the same, since nobody can tell.
                    set_aside(self.storage, number, 0, bytes)?;
                }
            }
            // Made ahead of its time, or no segment any more; a copy of it has been set aside.
            return self.storage.remove(&name);
        };
        let segment = Segment {
            key,
            ..Segment::default()
        };
        self.segments.insert(number, segment);
        // The last may have been torn: only itself says what of it is there.
        if !is_last && let Some(index) = Index::read(self.storage, number, key)? {
            self.set_end(number, index.end);
            return index.for_each(|offset, record| self.apply(number, offset, record));
        }
        let (mut offset, mut is_sealed) = (SEGMENT_HEADER, false);
        // What is no record between records; and up to where the segment is known to have been safe.
        let (mut holes, mut safe) = (Vec::new(), if is_last { 0 } else { u64::MAX });
        loop {
            match window.record(key, offset)? {
                Some((record, bytes)) => {
                    match record {
                        Record::Safe { offset } if is_last => safe = offset,
                        // The seal of the last may have been written before what is in front of it.
                        Record::Sealed { .. } if is_last => break,
                        Record::Sealed { safe: sealed } => {
                            is_sealed = true;
                            safe = sealed;
                        }
                        _ => {}
                    }
                    self.apply(number, offset, record);
                    offset += bytes;
                    if is_sealed {
                        break;
                    }
                }
                None => match window.next_record(key, offset)? {
                    Some(next) => {
                        holes.push((offset, next - offset));
                        offset = next;
                    }
                    None => break,
                },
            }
        }
        if !is_sealed {
            let is_record = window.record(key, offset)?.is_some();
            let rest = window.end_of_data(offset)?.saturating_sub(offset);
            if (rest > 0 && !is_record) || !is_last {
                holes.push((offset, rest));
            }
        }
        let torn = holes.iter().map(|(offset, _)| *offset);
        let torn = torn.filter(|offset| *offset >= safe).min();
        if holes.is_empty() {
            self.unindexed.push(number);
        }
        for (offset, bytes) in holes {
            // A disk may have written the end of a batch and not its beginning.
            self.set_aside(number, offset, bytes, offset >= safe)?;
        }
        if !is_sealed {
            // Sealed now, so that the next opening does not take its end for torn again.
            let mut sealed = Vec::new();
            let safe = torn.unwrap_or(u64::MAX);
            let record = Record::Sealed { safe };
            record::write(&mut sealed, Position { key, offset }, &record);
            self.storage.truncate(&name, offset)?;
            self.storage.write(&name, offset, &sealed)?;
            offset += sealed.len() as u64;
        }
        // What a process wrote before it was killed is seen, and need not be on the disk.
        if is_last {
            self.storage.sync(&name)?;
        }
        self.set_end(number, offset);
        Ok(())
    }

    /// A segment is not there, and perhaps more behind it.
    fn is_missing(&mut self, segment: u32) {
        tracing::error!(segment, "a segment of a queue's log is missing");
        self.recovery.damage.push(Damage {
            segment,
            offset: 0,
            bytes: 0,
        });
    }

    fn set_end(&mut self, segment: u32, end: u64) {
        if let Some(segment) = self.segments.get_mut(&segment) {
            segment.end = end;
        }
    }

    fn apply(&mut self, segment: u32, offset: u64, record: Record) {
        self.recovery.records += 1;
        match record {
            Record::Begun(begun) => {
                self.pass(begun.now);
                if let Some(holds) = &begun.holds {
                    self.holds = Some(holds.clone());
                }
                self.marked = Some((begun.now, begun.wall));
                self.opening = self.opening.max(begun.opening);
                self.machine.begin_at(begun.next);
                self.last = Some(begun);
            }
            Record::Pushed(Pushed {
                now,
                number,
                open,
                arrival,
            }) => {
                self.pass(now);
                self.machine.arrive(now, number, &arrival, open);
                if let (Some(id), Some(segment)) = (arrival.id, self.segments.get_mut(&segment)) {
                    segment.ids.push(id);
                }
                if !self.machine.is_live(number) {
                    return;
                }
                let place = Place {
                    segment: NonZeroU32::new(segment).unwrap_or(NonZeroU32::MIN),
                    words: (offset / record::ALIGN as u64) as u32,
                };
                if let Some(before) = self.places.insert(number.0, place) {
                    self.let_go(before);
                }
                if let Some(segment) = self.segments.get_mut(&segment) {
                    segment.live += 1;
                }
            }
            Record::Fact(now, fact) => {
                self.pass(now);
                self.machine.apply(now, &fact);
                if let Fact::Finished { number, .. } = fact
                    && !self.machine.is_live(number)
                    && let Some(place) = self.places.remove(number.0)
                {
                    self.let_go(place);
                }
            }
            Record::Seen {
                id,
                number,
                finished,
            } => {
                self.machine.remember_id(id, number, finished);
                if let Some(segment) = self.segments.get_mut(&segment) {
                    segment.ids.push(id);
                }
            }
            Record::Producer(producer) => self.machine.remember_producer(&producer),
            Record::Mark { now, wall } => {
                self.pass(now);
                self.marked = Some((now, wall));
            }
            Record::Holds(holds) => self.holds = Some(holds),
            Record::Safe { .. } | Record::Sealed { .. } => {}
        }
    }

    /// It is this time now: delays that are over by then ended before what follows, as they did when it happened.
    fn pass(&mut self, now: Moment) {
        self.now = self.now.max(now);
        self.machine.bring_due(now, usize::MAX);
    }

    fn let_go(&mut self, place: Place) {
        if let Some(segment) = self.segments.get_mut(&place.segment.get()) {
            segment.live = segment.live.saturating_sub(1);
        }
    }

    /// Copies what is not a record, and reports it.
    fn set_aside(
        &mut self,
        segment: u32,
        offset: u64,
        bytes: u64,
        is_torn: bool,
    ) -> io::Result<()> {
        if is_torn {
            self.recovery.torn_bytes += bytes;
            return Ok(());
        }
        self.recovery.damage.push(Damage {
            segment,
            offset,
            bytes,
        });
        set_aside(self.storage, segment, offset, bytes)
    }
}

/// Refuses what another version of this code has written.
fn check_version(storage: &dyn Storage, segment: u32) -> io::Result<()> {
    let mut header = [0; SEGMENT_HEADER as usize];
    storage.read(&segment_name(segment), 0, &mut header)?;
    match version_and_salt_of(&header, segment) {
        Some((version, _)) if version > VERSION => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!(
                "segment {segment} of the queue's log has version {version} of the format, and this program reads \
                 versions up to {VERSION}; nothing was changed"
            ),
        )),
        _ => Ok(()),
    }
}

/// Whether a segment's first bytes are what it was made of.
fn is_unused(storage: &dyn Storage, segment: u32) -> io::Result<bool> {
    let mut header = [0; SEGMENT_HEADER as usize];
    storage.read(&segment_name(segment), 0, &mut header)?;
    Ok(header == [0; SEGMENT_HEADER as usize])
}

/// Copies a part of a segment into a file of its own, once. Where there is another of this name, as when the power
/// failed while it was written, that stays as it is.
fn set_aside(storage: &dyn Storage, segment: u32, offset: u64, bytes: u64) -> io::Result<()> {
    tracing::error!(segment, offset, bytes, "a part of a queue's log is damaged");
    if bytes == 0 {
        return Ok(());
    }
    let mut copy = vec![0; bytes as usize];
    let read = storage.read(&segment_name(segment), offset, &mut copy)?;
    copy.truncate(read);
    let names = storage.list()?;
    let name = format!("damaged-{segment:010}-{offset:010}");
    let numbered = |number: u32| format!("{name}-{number}");
    let candidates = std::iter::once(name.clone()).chain((2..).map(numbered));
    for name in candidates {
        if !names.contains(&name) {
            storage.create(&name, copy.len() as u64)?;
            storage.write(&name, 0, &copy)?;
            return storage.sync(&name);
        }
        let mut there = vec![0; copy.len() + 1];
        let length = storage.read(&name, 0, &mut there)?;
        if there[..length] == copy {
            return Ok(());
        }
    }
    Ok(())
}

/// Copies the damaged record of a job of so many bytes.
///
/// # Errors
/// Where it cannot be copied, and so is not to be taken out of the log.
pub(crate) fn set_aside_job(
    storage: &dyn Storage,
    place: Place,
    job_bytes: usize,
) -> io::Result<Damage> {
    let (segment, offset) = (place.segment(), place.offset());
    // Its own length may be what is damaged.
    let bytes = record::bytes_of_push(job_bytes) as u64;
    set_aside(storage, segment, offset, bytes)?;
    Ok(Damage {
        segment,
        offset,
        bytes,
    })
}
