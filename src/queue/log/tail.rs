//! What is appended to the log, and what of it may be thrown away. No I/O but reading what is moved.

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU32;

use twox_hash::XxHash3_64;

use super::record::{self, Begun, Position, Record};
use super::{Place, SEGMENT_HEADER, Storage, segment_header, segment_name};
use crate::queue::machine::{Arrival, Digest, Fact, Machine, Moment, Table};
use crate::queue::{JobNumber, NewJob};

/// How often the wall clock is written down.
const MARK_EVERY_MILLISECONDS: u64 = 1000;
/// The end of a segment.
const SEALED_BYTES: u64 = 24;

/// The time of the queue, and that of the wall in milliseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub now: Moment,
    pub wall: u64,
}

/// What is to be written together.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub chunks: Vec<Chunk>,
    /// Segments that can go once the chunks are safe.
    pub removals: Vec<u32>,
    /// Whether somebody waits for it to be safe.
    pub is_critical: bool,
    /// The end of it, counted over all that was ever appended.
    pub position: u64,
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.removals.is_empty()
    }
}

/// Bytes of one segment.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub segment: u32,
    pub offset: u64,
    pub bytes: Vec<u8>,
}

impl Batch {
    /// Goes on with a later batch.
    pub fn append(&mut self, later: Self) {
        let mut chunks = later.chunks.into_iter();
        if let (Some(last), Some(first)) = (self.chunks.last_mut(), chunks.as_slice().first())
            && last.segment == first.segment
        {
            last.bytes.extend_from_slice(&first.bytes);
            chunks.next();
        }
        self.chunks.extend(chunks);
        self.removals.extend(later.removals);
        self.is_critical |= later.is_critical;
        self.position = later.position;
    }
}

#[derive(Debug)]
pub(crate) struct Tail {
    segment_bytes: u64,
    seed: u64,
    opening: u32,
    segment: u32,
    salt: u64,
    offset: u64,
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
}

/// What is in a segment that is still needed.
#[derive(Debug, Default)]
pub(super) struct Segment {
    pub salt: u64,
    pub live: u32,
    /// The job IDs that are recorded here.
    pub ids: Vec<Digest>,
    pub end: u64,
}

impl Tail {
    /// Goes on after the segments that are there, in a new one.
    pub(super) fn new(
        segment_bytes: u64,
        seed: u64,
        opening: u32,
        last: u32,
        segments: BTreeMap<u32, Segment>,
        places: Table<Place>,
    ) -> Self {
        Self {
            segment_bytes,
            seed,
            opening,
            segment: last,
            salt: 0,
            offset: 0,
            batch: Batch::default(),
            marked: None,
            segments,
            places,
            ends: VecDeque::new(),
            safe: None,
            cleaned: None,
        }
    }

    /// The segment that is appended to.
    pub fn segment(&self) -> u32 {
        self.segment
    }

    /// What is left of it.
    pub fn bytes_left(&self) -> u64 {
        self.segment_bytes.saturating_sub(self.offset)
    }

    /// What is to be written, of which nothing else is kept here.
    pub fn take_batch(&mut self) -> Batch {
        let position = self.batch.position;
        if !self.batch.chunks.is_empty() {
            self.ends.push_back((position, self.offset));
        }
        std::mem::replace(
            &mut self.batch,
            Batch {
                position,
                ..Batch::default()
            },
        )
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

    pub fn place(&self, number: JobNumber) -> Option<Place> {
        self.places.get(number.0).copied()
    }

    pub fn salt(&self, segment: u32) -> Option<u64> {
        self.segments.get(&segment).map(|segment| segment.salt)
    }

    /// Begins a segment, with what must be known although older ones are thrown away.
    pub fn begin(&mut self, times: Times, machine: &Machine) {
        if self.offset > 0 {
            self.append_unchecked(&Record::Sealed { safe: u64::MAX });
        }
        self.ends.clear();
        self.safe = None;
        self.segment += 1;
        self.salt = XxHash3_64::oneshot_with_seed(self.seed, &self.segment.to_le_bytes());
        self.offset = 0;
        let header = segment_header(self.segment, self.salt);
        self.extend(&header);
        let segment = Segment {
            salt: self.salt,
            ..Segment::default()
        };
        self.segments.insert(self.segment, segment);
        self.append_unchecked(&Record::Begun(Begun {
            now: times.now,
            wall: times.wall,
            opening: self.opening,
            next: machine.next_number(),
            groups: machine.options().groups.names().to_vec(),
        }));
        for producer in machine.producers() {
            self.append_unchecked(&Record::Producer(producer));
        }
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
        let (position, place) = self.append(times, machine, |into, at| {
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

    /// Lets the oldest segments go that hold no job, and remembers their job IDs.
    pub fn retire(&mut self, times: Times, machine: &Machine) {
        while let Some(oldest) = self.segments.first_entry() {
            let segment = *oldest.key();
            if segment == self.segment || oldest.get().live > 0 {
                break;
            }
            let ids = oldest.remove().ids;
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
            self.batch.removals.push(segment);
            self.batch.is_critical = true;
        }
    }

    /// Moves a few jobs out of the oldest segment, where little of the log is still needed.
    pub fn clean(
        &mut self,
        times: Times,
        machine: &Machine,
        storage: &dyn Storage,
        jobs_max: usize,
    ) {
        let log_bytes = self.segments.len() as u64 * self.segment_bytes;
        let live_bytes = machine.bytes() + 128 * machine.len() as u64;
        let Some((oldest, salt)) = self.segments.first_key_value().map(|(s, o)| (*s, o.salt))
        else {
            return;
        };
        if self.segments.len() < 4 || live_bytes * 3 > log_bytes || oldest == self.segment {
            return;
        }
        let (_, mut offset) = self
            .cleaned
            .filter(|(segment, _)| *segment == oldest)
            .unwrap_or((oldest, SEGMENT_HEADER));
        let mut moved = 0;
        while moved < jobs_max {
            let Ok(Some((record, bytes))) = read_record(storage, oldest, salt, offset) else {
                // The end, or damage: what is behind it is kept where it is.
                break;
            };
            if let Record::Pushed {
                number,
                arrival,
                job,
                ..
            } = record
                && self
                    .place(number)
                    .is_some_and(|place| place.segment.get() == oldest && place.offset() == offset)
                && let Some((open, restored)) = machine.standing(number)
            {
                self.append_push(times, machine, number, open, &arrival, &job);
                for fact in restored {
                    self.append_record(times, machine, &Record::Fact(times.now, fact));
                }
                moved += 1;
            }
            offset += bytes as u64;
        }
        self.cleaned = Some((oldest, offset));
    }

    fn append_record(&mut self, times: Times, machine: &Machine, record: &Record) {
        self.append(times, machine, |into, at| record::write(into, at, record));
    }

    /// Appends where there is room, and otherwise to the next segment.
    fn append(
        &mut self,
        times: Times,
        machine: &Machine,
        write: impl Fn(&mut Vec<u8>, Position),
    ) -> (Position, Place) {
        if let Some(offset) = self.safe.take()
            && self.bytes_left() > 2 * SEALED_BYTES
        {
            self.append_unchecked(&Record::Safe { offset });
        }
        let before = self.offset;
        let at = self.position_now();
        let chunk = self.chunk();
        let start = chunk.bytes.len();
        write(&mut chunk.bytes, at);
        let bytes = (chunk.bytes.len() - start) as u64;
        if before + bytes + SEALED_BYTES <= self.segment_bytes {
            self.offset += bytes;
            self.batch.position += bytes;
            return (at, self.place_of(at.offset));
        }
        self.chunk().bytes.truncate(start);
        self.begin(times, machine);
        // One that does not fit into an empty segment makes it longer.
        let at = self.position_now();
        let chunk = self.chunk();
        let start = chunk.bytes.len();
        write(&mut chunk.bytes, at);
        let bytes = (chunk.bytes.len() - start) as u64;
        self.offset += bytes;
        self.batch.position += bytes;
        (at, self.place_of(at.offset))
    }

    /// Appends what there always is room for: the end of a segment, and its beginning.
    fn append_unchecked(&mut self, record: &Record) {
        let at = self.position_now();
        let mut bytes = Vec::new();
        record::write(&mut bytes, at, record);
        self.extend(&bytes);
    }

    fn extend(&mut self, bytes: &[u8]) {
        self.chunk().bytes.extend(bytes);
        self.offset += bytes.len() as u64;
        self.batch.position += bytes.len() as u64;
    }

    fn position_now(&self) -> Position {
        Position {
            salt: self.salt,
            offset: self.offset,
        }
    }

    fn place_of(&self, offset: u64) -> Place {
        Place {
            segment: NonZeroU32::new(self.segment).unwrap_or(NonZeroU32::MIN),
            words: (offset / record::ALIGN as u64) as u32,
        }
    }

    fn chunk(&mut self) -> &mut Chunk {
        let is_same = |chunk: &Chunk| chunk.segment == self.segment;
        if !self.batch.chunks.last().is_some_and(is_same) {
            self.batch.chunks.push(Chunk {
                segment: self.segment,
                offset: self.offset,
                bytes: Vec::new(),
            });
        }
        let last = self.batch.chunks.len() - 1;
        &mut self.batch.chunks[last]
    }
}

/// A record of a segment on disk; `None` where there is none, or it is damaged.
pub(super) fn read_record(
    storage: &dyn Storage,
    segment: u32,
    salt: u64,
    offset: u64,
) -> std::io::Result<Option<(Record, usize)>> {
    const GUESS: usize = 4096;
    let name = segment_name(segment);
    let mut bytes = vec![0; GUESS];
    let read = storage.read(&name, offset, &mut bytes)?;
    bytes.truncate(read);
    let Some(needed) = record::bytes_of(&bytes) else {
        return Ok(None);
    };
    if needed > read {
        // A damaged length may claim anything; nothing is larger than a segment can be.
        if needed > 256 << 20 {
            return Ok(None);
        }
        bytes.resize(needed, 0);
        let read = storage.read(&name, offset, &mut bytes)?;
        bytes.truncate(read);
    }
    Ok(record::read(&bytes, Position { salt, offset }))
}

/// The job at a place, if it is that job and whole.
pub(crate) fn read_job(
    storage: &dyn Storage,
    salt: u64,
    place: Place,
    number: JobNumber,
) -> Option<(Moment, NewJob)> {
    let read = read_record(storage, place.segment.get(), salt, place.offset()).ok()??;
    match read.0 {
        Record::Pushed {
            now,
            number: found,
            job,
            ..
        } if found == number => Some((now, job)),
        _ => None,
    }
}
