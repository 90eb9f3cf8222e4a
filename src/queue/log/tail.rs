//! What is appended to the log, and what of it may be thrown away. No I/O but reading what is moved.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::num::NonZeroU32;

use twox_hash::XxHash3_64;

use super::batch::Batch;
use super::record::{self, Begun, Position, Pushed, Record};
use super::window::Window;
use super::{
    Place, RECORD_BYTES_MAX, SEGMENT_HEADER, SegmentKey, Storage, VERSION, next_segment_bytes,
    segment_header, segment_name,
};
use crate::queue::machine::{Arrival, Digest, Fact, Machine, Moment, Table};
use crate::queue::{JobNumber, NewJob, QueueType};

/// How often the wall clock is written down.
const MARK_EVERY_MILLISECONDS: u64 = 1000;
/// Bytes of the oldest segment that are looked through for each byte that is appended: more than are appended, so that
/// the log shrinks to what is needed whatever is written.
const CLEAN_FACTOR: u64 = 4;
/// Before so many bytes are owed, nothing is looked through …
const CLEAN_MIN: u64 = 64 << 10;
/// … and no more than this in one step.
const CLEAN_MAX: u64 = 256 << 10;
/// Job IDs of an old segment that one step writes down again.
const RETIRE_IDS_MAX: usize = 1024;
/// A segment is so many times as long as what it begins with, at least.
const PREAMBLE_FACTOR: u64 = 4;

/// The time of the queue, and that of the wall in milliseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub now: Moment,
    pub wall: u64,
}

#[derive(Debug)]
pub(crate) struct Tail {
    segment_bytes_max: u64,
    /// Of the segment that is appended to.
    segment_bytes: u64,
    seed: u64,
    opening: u32,
    segment: u32,
    key: SegmentKey,
    offset: u64,
    /// What the segment begins with: its first records, which others before it have too.
    preamble_bytes: u64,
    /// Which queue the log holds.
    holds: Option<QueueType>,
    batch: Batch,
    marked: Option<Moment>,
    segments: BTreeMap<u32, Segment>,
    places: Table<Place>,
    /// Ends of batches of this segment that were not known to be safe: positions and offsets.
    ends: VecDeque<(u64, u64)>,
    /// Up to where the segment is known to be safe, where that is not written down yet.
    safe: Option<u64>,
    /// How far the oldest segment has been looked through for jobs to move.
    cleaned: Option<(u32, u64)>,
    /// Bytes of old segments that are to be looked through.
    owed: u64,
    /// The position up to which `owed` counts what was appended.
    counted: u64,
}

/// What is in a segment that is still needed.
#[derive(Debug, Default)]
pub(super) struct Segment {
    pub key: SegmentKey,
    pub live: u32,
    /// The job IDs that are recorded here.
    pub ids: Vec<Digest>,
    pub end: u64,
}

impl Tail {
    /// Goes on after the segments that are there, in a new one.
    pub(super) fn new(
        segment_bytes_max: u64,
        seed: u64,
        opening: u32,
        last: u32,
        segments: BTreeMap<u32, Segment>,
        places: Table<Place>,
        holds: Option<QueueType>,
    ) -> Self {
        // A log that is longer than it has to be is looked through from the first step on.
        let owed = segments.values().map(|segment| segment.end).sum();
        Self {
            segment_bytes_max,
            segment_bytes: 0,
            seed,
            opening,
            segment: last,
            key: SegmentKey::default(),
            offset: 0,
            preamble_bytes: 0,
            holds,
            batch: Batch::default(),
            marked: None,
            segments,
            places,
            ends: VecDeque::new(),
            safe: None,
            cleaned: None,
            owed,
            counted: 0,
        }
    }

    /// Which queue the log holds, where that is known.
    pub fn holds(&self) -> Option<&QueueType> {
        self.holds.as_ref()
    }

    /// Another queue may be [claimed](Self::claim).
    pub fn forget_holds(&mut self) {
        self.holds = None;
    }

    /// Writes down which queue the log holds.
    pub fn claim(&mut self, times: Times, machine: &Machine, holds: QueueType) {
        self.append_record(times, machine, &Record::Holds(holds.clone()));
        self.holds = Some(holds);
    }

    /// Bytes that the next segment is to have at least.
    pub fn next_bytes_min(&self) -> u64 {
        self.preamble_bytes * PREAMBLE_FACTOR
    }

    /// The segment that is appended to.
    pub fn segment(&self) -> u32 {
        self.segment
    }

    /// Its length, but for a job that is longer.
    pub fn segment_bytes(&self) -> u64 {
        self.segment_bytes
    }

    /// What is left of it.
    pub fn bytes_left(&self) -> u64 {
        self.segment_bytes.saturating_sub(self.offset)
    }

    /// What is to be written, of which nothing else is kept here.
    pub fn take_batch(&mut self) -> Batch {
        let mut batch = Batch::default();
        self.hand_over(&mut batch);
        batch
    }

    /// The same, behind what is there already.
    pub fn hand_over(&mut self, to: &mut Batch) {
        if self.batch.has_bytes() {
            self.ends.push_back((self.batch.position, self.offset));
        }
        to.append(&mut self.batch);
    }

    /// Whether there is anything to be written.
    pub fn has_batch(&self) -> bool {
        !self.batch.is_empty()
    }

    /// Whether somebody waits for it to be safe.
    pub fn is_critical(&self) -> bool {
        self.batch.is_critical
    }

    /// All up to this position is safe; written down with what comes next.
    pub fn safe_up_to(&mut self, safe: u64) {
        while let Some((_, offset)) = self.ends.front().filter(|(end, _)| *end <= safe) {
            self.safe = Some(*offset);
            self.ends.pop_front();
        }
    }

    pub fn position(&self) -> u64 {
        self.batch.position
    }

    /// A job that is not finished, as it is in the log.
    ///
    /// # Errors
    /// What the storage says: then nothing is known of it.
    pub fn read_job(&self, storage: &dyn Storage, number: JobNumber) -> io::Result<StoredJob> {
        let Some(place) = self.place(number) else {
            return Ok(StoredJob::Unknown);
        };
        let Some(of) = self.segments.get(&place.segment()) else {
            return Ok(StoredJob::Unknown);
        };
        let read = RecordBytes::read(storage, place.segment(), of.key, place.offset())?;
        let job = read.and_then(|read| read.push());
        Ok(match job {
            Some((pushed, job)) if pushed.number == number => StoredJob::Whole(pushed.now, job),
            _ => StoredJob::Damaged(place),
        })
    }

    fn place(&self, number: JobNumber) -> Option<Place> {
        self.places.get(number.0).copied()
    }

    /// Begins a segment, with what must be known although older ones are thrown away.
    pub fn begin(&mut self, times: Times, machine: &Machine) {
        self.begin_before(times, machine, None);
    }

    /// The same, in front of a job that the machine knows already. Its record may be lost where this one is not, and
    /// then nobody must be told that it was pushed.
    fn begin_before(&mut self, times: Times, machine: &Machine, arriving: Option<&Arrival>) {
        if self.offset > 0 {
            self.append_unchecked(&Record::Sealed { safe: u64::MAX });
            if let Some(sealed) = self.segments.get_mut(&self.segment) {
                sealed.end = self.offset;
            }
        }
        self.ends.clear();
        self.safe = None;
        self.segment += 1;
        self.segment_bytes = next_segment_bytes(self.segment_bytes, self.segment_bytes_max);
        self.key = SegmentKey {
            salt: XxHash3_64::oneshot_with_seed(self.seed, &self.segment.to_le_bytes()),
            is_checked: VERSION > 0,
        };
        self.batch.key = self.key;
        self.offset = 0;
        let header = segment_header(self.segment, VERSION, self.key.salt);
        let _ = self.append_within(u64::MAX, |into, _| into.extend(header));
        let segment = Segment {
            key: self.key,
            ..Segment::default()
        };
        self.segments.insert(self.segment, segment);
        self.append_unchecked(&Record::Begun(Begun {
            now: times.now,
            wall: times.wall,
            opening: self.opening,
            next: machine.next_number(),
            groups: machine.options().groups.names().to_vec(),
            holds: self.holds.clone(),
        }));
        for mut producer in machine.producers() {
            if let Some(arriving) = arriving {
                producer.forget(&arriving.identity);
            }
            self.append_unchecked(&Record::Producer(producer));
        }
        self.preamble_bytes = self.offset;
        // Or a segment that many producers fill is begun for each push.
        self.segment_bytes = self.segment_bytes.max(self.next_bytes_min());
        self.batch.is_critical = true;
    }

    pub fn push(
        &mut self,
        times: Times,
        machine: &Machine,
        number: JobNumber,
        arrival: &Arrival,
        job: &NewJob,
    ) {
        let open = machine.all_groups();
        self.append_push(times, machine, number, open, arrival, job);
        self.batch.is_critical = true;
    }

    fn append_push(
        &mut self,
        times: Times,
        machine: &Machine,
        number: JobNumber,
        open: u16,
        arrival: &Arrival,
        job: &NewJob,
    ) {
        let (position, place) = self.append(times, machine, Some(arrival), |into, at| {
            record::write_push(into, at, times.now, number, open, arrival, job);
        });
        debug_assert!(position.offset > 0);
        let before = self.places.insert(number.0, place);
        if let Some(before) = before {
            self.let_go(before);
        }
        if let Some(segment) = self.segments.get_mut(&self.segment) {
            segment.live += 1;
            segment.ids.extend(arrival.id);
        }
    }

    /// Writes down what has happened. A push has been written with its job.
    pub fn note(&mut self, times: Times, machine: &Machine, fact: &Fact) {
        if matches!(fact, Fact::Pushed { .. }) {
            return;
        }
        let due = self
            .marked
            .is_none_or(|marked| times.now.0 >= marked.0 + MARK_EVERY_MILLISECONDS);
        if due {
            self.marked = Some(times.now);
            self.append_record(
                times,
                machine,
                &Record::Mark {
                    now: times.now,
                    wall: times.wall,
                },
            );
        }
        self.append_record(times, machine, &Record::Fact(times.now, fact.clone()));
        // That a worker has a job is written down and not waited for: if it is lost, the job is sent again.
        self.batch.is_critical |= !matches!(fact, Fact::Leased { .. });
        if let Fact::Finished { number, .. } = fact
            && !machine.is_live(*number)
            && let Some(place) = self.places.remove(number.0)
        {
            self.let_go(place);
        }
    }

    fn let_go(&mut self, place: Place) {
        if let Some(segment) = self.segments.get_mut(&place.segment.get()) {
            segment.live = segment.live.saturating_sub(1);
        }
    }

    /// Lets the oldest segments go that hold no job, and remembers their job IDs: so many of them at a time.
    pub fn retire(&mut self, times: Times, machine: &Machine) {
        let mut left = RETIRE_IDS_MAX;
        while let Some(mut oldest) = self.segments.first_entry() {
            let segment = *oldest.key();
            if segment == self.segment || oldest.get().live > 0 {
                break;
            }
            let of = &mut oldest.get_mut().ids;
            let ids = of.split_off(of.len().saturating_sub(left));
            left -= ids.len();
            let is_over = of.is_empty();
            if is_over {
                oldest.remove();
            }
            for id in ids {
                if let Some((number, finished)) = machine.finished(id) {
                    let seen = Record::Seen {
                        id,
                        number,
                        finished,
                    };
                    self.append_record(times, machine, &seen);
                    if let Some(tail) = self.segments.get_mut(&self.segment) {
                        tail.ids.push(id);
                    }
                }
            }
            if !is_over {
                // The rest with the next step.
                self.owed += CLEAN_MIN;
                return;
            }
            self.batch.removals.push(segment);
            self.batch.is_critical = true;
        }
    }

    /// Whether so much was appended that old segments are to be looked at again.
    pub fn owes_cleaning(&mut self) -> bool {
        self.owed += (self.batch.position - self.counted) * CLEAN_FACTOR;
        self.counted = self.batch.position;
        self.owed >= CLEAN_MIN
    }

    /// Moves a few jobs out of the oldest segment, where little of the log is still needed. Gives each, which cannot be
    /// [read](Self::read_job) before what is to be written up to now is; and that position.
    pub fn clean(
        &mut self,
        times: Times,
        machine: &Machine,
        storage: &dyn Storage,
        jobs_max: usize,
        mut moved_to: impl FnMut(JobNumber, NewJob, u64),
    ) {
        let log_bytes: u64 = self.segments.values().map(|segment| segment.end).sum();
        // What is known of producers stands at the beginning of each segment.
        let preambles = self.preamble_bytes * self.segments.len() as u64;
        let live_bytes = machine.bytes() + 128 * machine.len() as u64 + preambles;
        let Some((oldest, key)) = self.segments.first_key_value().map(|(s, o)| (*s, o.key)) else {
            return;
        };
        if self.segments.len() < 4 || live_bytes * 3 > log_bytes || oldest == self.segment {
            self.owed = 0;
            return;
        }
        let budget = self.owed.clamp(CLEAN_MIN, CLEAN_MAX);
        let (_, mut offset) = self
            .cleaned
            .filter(|(segment, _)| *segment == oldest)
            .unwrap_or((oldest, SEGMENT_HEADER));
        let (name, began, until) = (segment_name(oldest), offset, offset + budget);
        let mut window = Window::new(storage, &name);
        let mut moved = 0;
        while moved < jobs_max && offset < until {
            let at = Position { key, offset };
            let Ok(read) = window.record_bytes(at) else {
                break;
            };
            let Some(bytes) = record::bytes_of(read, at) else {
                // The end, or damage.
                match window.next_record(key, offset) {
                    Ok(Some(next)) => offset = next,
                    _ => break,
                }
                continue;
            };
            if let Some((
                Pushed {
                    number, arrival, ..
                },
                job,
            )) = record::read_push(read, at)
                && self
                    .place(number)
                    .is_some_and(|place| place.segment.get() == oldest && place.offset() == offset)
                && let Some((open, restored)) = machine.standing(number)
            {
                self.append_push(times, machine, number, open, &arrival, &job);
                moved_to(number, job, self.position());
                for fact in restored {
                    self.append_record(times, machine, &Record::Fact(times.now, fact));
                }
                moved += 1;
            }
            offset += bytes as u64;
        }
        self.owed = self.owed.saturating_sub(offset - began);
        self.cleaned = Some((oldest, offset));
    }

    fn append_record(&mut self, times: Times, machine: &Machine, record: &Record) {
        self.append(times, machine, None, |into, at| {
            record::write(into, at, record);
        });
    }

    /// Appends where there is room, and otherwise to the next segment.
    fn append(
        &mut self,
        times: Times,
        machine: &Machine,
        arriving: Option<&Arrival>,
        write: impl Fn(&mut Vec<u8>, Position),
    ) -> (Position, Place) {
        if let Some(offset) = self.safe.take()
            && self.bytes_left() > 2 * record::SEALED_BYTES
        {
            self.append_unchecked(&Record::Safe { offset });
        }
        let left = self.bytes_left().saturating_sub(record::SEALED_BYTES);
        if let Some(appended) = self.append_within(left, &write) {
            return appended;
        }
        self.begin_before(times, machine, arriving);
        // One that does not fit into an empty segment makes it longer.
        let at = self.position_now();
        let appended = self.append_within(u64::MAX, &write);
        appended.unwrap_or((at, self.place_of(at.offset)))
    }

    fn append_within(
        &mut self,
        max: u64,
        write: impl Fn(&mut Vec<u8>, Position),
    ) -> Option<(Position, Place)> {
        let at = self.position_now();
        let write = |into: &mut Vec<u8>| write(into, at);
        let written = self.batch.write(self.segment, at.offset, max, write);
        self.offset += written?;
        Some((at, self.place_of(at.offset)))
    }

    /// Appends what there always is room for: the end of a segment, and its beginning.
    fn append_unchecked(&mut self, record: &Record) {
        let _ = self.append_within(u64::MAX, |into, at| record::write(into, at, record));
    }

    fn position_now(&self) -> Position {
        Position {
            key: self.key,
            offset: self.offset,
        }
    }

    fn place_of(&self, offset: u64) -> Place {
        Place {
            segment: NonZeroU32::new(self.segment).unwrap_or(NonZeroU32::MIN),
            words: (offset / record::ALIGN as u64) as u32,
        }
    }
}

/// What the log has of a job.
#[derive(Debug)]
pub(crate) enum StoredJob {
    /// When it was pushed, and all of it.
    Whole(Moment, NewJob),
    /// Here is something else.
    Damaged(Place),
    /// No such job is in the log.
    Unknown,
}

/// What may be a record of a segment on disk.
struct RecordBytes {
    bytes: Vec<u8>,
    at: Position,
}

impl RecordBytes {
    /// `None` where there is none.
    fn read(
        storage: &dyn Storage,
        segment: u32,
        key: SegmentKey,
        offset: u64,
    ) -> io::Result<Option<Self>> {
        let at = Position { key, offset };
        const GUESS: usize = 4096;
        let name = segment_name(segment);
        let mut bytes = vec![0; GUESS];
        let read = storage.read(&name, offset, &mut bytes)?;
        bytes.truncate(read);
        let Some(needed) = record::bytes_of(&bytes, at) else {
            return Ok(None);
        };
        if needed > read {
            // A damaged length may claim anything; nothing is larger than a segment can be.
            if needed > RECORD_BYTES_MAX {
                return Ok(None);
            }
            bytes.resize(needed, 0);
            let read = storage.read(&name, offset, &mut bytes)?;
            bytes.truncate(read);
        }
        Ok(Some(Self { bytes, at }))
    }

    /// `None` where it is damaged, or no push.
    fn push(&self) -> Option<(Pushed, NewJob)> {
        record::read_push(&self.bytes, self.at)
    }
}
