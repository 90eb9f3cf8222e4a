//! Cap'n Proto messages by hand: headers and bodies that no builder would make.
//!
//! A message here is one segment: a table of eight bytes, then words.

use crate::INTERFACE;

/// The words of one segment, with the table in front.
pub fn message(words: &[u64]) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    bytes.extend_from_slice(&(words.len() as u32).to_le_bytes());
    for word in words {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// A pointer to a struct, `offset` words behind the pointer.
pub fn struct_pointer(offset: i32, data_words: u16, pointers: u16) -> u64 {
    u64::from((offset << 2) as u32) | u64::from(data_words) << 32 | u64::from(pointers) << 48
}

/// A pointer to a list of elements of a size code (0 void, 2 bytes, 6 pointers, 7 structs; with 7
/// the count is that of words).
pub fn list_pointer(offset: i32, size: u8, count: u32) -> u64 {
    u64::from((offset << 2) as u32 | 1) | u64::from(size) << 32 | u64::from(count) << 35
}

/// What stands in front of a list of structs.
pub fn list_tag(count: i32, data_words: u16, pointers: u16) -> u64 {
    struct_pointer(count, data_words, pointers)
}

/// Bytes as words, filled up with zeros.
pub fn words_of(bytes: &[u8]) -> Vec<u64> {
    let word = |chunk: &[u8]| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(word)
    };
    bytes.chunks(8).map(word).collect()
}

/// A `RequestHeader` of six words of data and three pointers, as docs/wire.md shows it.
#[derive(Clone, Debug)]
pub struct Header {
    /// The six words.
    pub data: [u64; 6],
    /// Its pointers: request key, trace, metadata; offsets count from each pointer.
    pub pointers: [u64; 3],
    /// What they point to.
    pub rest: Vec<u64>,
}

impl Header {
    /// A request as a client would send it, with ten seconds left.
    pub fn of(method: u16, correlation: u64) -> Self {
        Self::for_interface(INTERFACE, method, correlation)
    }

    /// The same for a method of any interface.
    pub fn for_interface(interface: u64, method: u16, correlation: u64) -> Self {
        // Version 1 is 0 on the wire: defaults are taken off.
        let id = [0x0192_f3a4_b5c6_7d8e, 0x8f90_a1b2_0000_0000 | correlation];
        Self {
            data: [
                u64::from(method) << 16,
                interface,
                id[0],
                id[1],
                correlation,
                10_000_000,
            ],
            pointers: [0; 3],
            rest: Vec::new(),
        }
    }

    /// Its bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut words = vec![struct_pointer(0, 6, 3)];
        words.extend(self.data);
        words.extend(self.pointers);
        words.extend(&self.rest);
        message(&words)
    }
}

/// The parameters of an echo.
pub fn echo(data: &[u8]) -> Vec<u8> {
    let mut words = vec![
        struct_pointer(0, 0, 1),
        list_pointer(0, 2, data.len() as u32),
    ];
    words.extend(words_of(data));
    message(&words)
}

/// The parameters that ask for a large reply.
pub fn large(bytes: u32) -> Vec<u8> {
    message(&[struct_pointer(0, 1, 0), u64::from(bytes)])
}

/// The name of the service's queue.
const QUEUE: &str = "work";
/// Of workers.
const GROUP: &str = "workers";

/// A text with its zero byte, in words.
fn text(text: &str) -> Vec<u64> {
    words_of(&[text.as_bytes(), &[0]].concat())
}

fn text_pointer(offset: usize, text: &str) -> u64 {
    list_pointer(offset as i32, 2, text.len() as u32 + 1)
}

/// The parameters of a lease that waits for `wait`, with so many bytes behind that nobody asked for.
pub fn lease(session: u64, wait: std::time::Duration, padding: usize) -> Vec<u8> {
    let (queue, group) = (text(QUEUE), text(GROUP));
    let mut words = vec![
        struct_pointer(0, 2, 3),
        session,
        wait.as_micros() as u64,
        text_pointer(2, QUEUE),
        text_pointer(1 + queue.len(), GROUP),
        // The credit: so many jobs and bytes.
        struct_pointer((queue.len() + group.len()) as i32, 2, 0),
    ];
    words.extend(queue);
    words.extend(group);
    words.extend([16, 1 << 16]);
    words.extend(std::iter::repeat_n(0x7777_7777_7777_7777, padding / 8));
    message(&words)
}

/// The parameters of a lease of a few jobs of any queue.
pub fn lease_of(queue: &str, session: u64, wait: std::time::Duration) -> Vec<u8> {
    let (queue_words, group) = (text(queue), text(GROUP));
    let mut words = vec![
        struct_pointer(0, 2, 3),
        session,
        wait.as_micros() as u64,
        text_pointer(2, queue),
        text_pointer(1 + queue_words.len(), GROUP),
        struct_pointer((queue_words.len() + group.len()) as i32, 2, 0),
    ];
    words.extend(queue_words);
    words.extend(group);
    words.extend([4, 1 << 16]);
    message(&words)
}

/// A job that a worker was given, and the token that it was given with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leased {
    /// The job.
    pub number: u64,
    /// Of its lease.
    pub token: u64,
}

/// What a reply to a lease gives, where it is one segment.
pub fn leased(reply: &[u8]) -> Vec<Leased> {
    let words = words_of(reply.get(8..).unwrap_or_default());
    let word = |at: usize| words.get(at).copied().unwrap_or(0);
    let Some(list) = first_list(&words) else {
        return Vec::new();
    };
    let tag = word(list);
    let (count, data) = ((tag as u32 >> 2) as usize, (tag >> 32) as u16);
    let each = usize::from(data) + usize::from((tag >> 48) as u16);
    if data < 2 || list + 1 + count * each > words.len() {
        return Vec::new();
    }
    let starts = (0..count).map(|nth| list + 1 + nth * each);
    starts
        .map(|at| Leased {
            number: word(at),
            token: word(at + 1),
        })
        .collect()
}

/// The parameters of an answer that these jobs are done.
pub fn answer(queue: &str, session: u64, done: &[Leased]) -> Vec<u8> {
    let (queue_words, group) = (text(queue), text(GROUP));
    let mut words = vec![
        struct_pointer(0, 1, 3),
        session,
        text_pointer(2, queue),
        text_pointer(1 + queue_words.len(), GROUP),
        list_pointer(
            (queue_words.len() + group.len()) as i32,
            7,
            done.len() as u32 * 4,
        ),
    ];
    words.extend(queue_words);
    words.extend(group);
    // Two words of data, which say that it is done; the lease and no cause. Leases stand behind all of them.
    words.push(list_tag(done.len() as i32, 2, 2));
    for nth in 0..done.len() {
        let to_lease = (done.len() - nth - 1) * 4 + 1 + nth * 2;
        words.extend([0, 0, struct_pointer(to_lease as i32, 2, 0), 0]);
    }
    for lease in done {
        words.extend([lease.number, lease.token]);
    }
    message(&words)
}

/// Whether a reply to an answer, of one segment, says of any lease that it held.
pub fn held(reply: &[u8]) -> bool {
    let words = words_of(reply.get(8..).unwrap_or_default());
    first_list(&words).is_some_and(|list| words[list..].iter().any(|&bits| bits != 0))
}

/// Where the first list of the root begins, in a segment with the root in front.
fn first_list(words: &[u64]) -> Option<usize> {
    let root = *words.first()?;
    let pointer = 1 + (root as u32 >> 2) as usize + usize::from((root >> 32) as u16);
    let list = *words.get(pointer)?;
    let start = pointer + 1 + (list as u32 >> 2) as usize;
    (list & 3 == 1 && start < words.len()).then_some(start)
}

/// The parameters of a push that has, or claims to have, so many empty jobs: `words` of each are there.
pub fn push(claimed: u32, jobs: &[Vec<u64>]) -> Vec<u8> {
    let queue = text(QUEUE);
    let mut words = vec![
        struct_pointer(0, 1, 2),
        0,
        text_pointer(1, QUEUE),
        // A list of structs: its words without the tag, then the tag.
        list_pointer(
            queue.len() as i32,
            7,
            jobs.iter().map(Vec::len).sum::<usize>() as u32,
        ),
    ];
    words.extend(queue);
    let (data, pointers) = match jobs.first() {
        Some(job) => (JOB_DATA, job.len() as u16 - JOB_DATA),
        None => (0, 0),
    };
    words.push(list_tag(claimed as i32, data, pointers));
    jobs.iter().for_each(|job| words.extend(job));
    message(&words)
}

/// Words of data of a `NewJob`.
const JOB_DATA: u16 = 3;

/// Jobs of nothing but a priority, which all are alike.
pub fn empty_jobs(count: usize) -> Vec<Vec<u64>> {
    vec![vec![0; usize::from(JOB_DATA)]; count]
}

/// A push of one job by the producer of this number, which is not known yet.
pub fn push_of(producer: u64) -> Vec<u8> {
    push_to(QUEUE, producer)
}

/// The same for any queue.
pub fn push_to(queue: &str, producer: u64) -> Vec<u8> {
    let mut words = vec![struct_pointer(0, 1, 2), 0, text_pointer(1, queue)];
    let queue = text(queue);
    let identity = [
        0x1234_5678_0000_7000 | producer >> 32,
        1 << 63 | producer,
        1,
        1,
    ];
    let job_words = usize::from(JOB_DATA) + 1 + identity.len();
    words.push(list_pointer(
        queue.len() as i32,
        7,
        job_words as u32 - identity.len() as u32,
    ));
    words.extend(queue);
    words.push(list_tag(1, JOB_DATA, 1));
    words.extend([0; JOB_DATA as usize]);
    words.push(struct_pointer(0, 4, 0));
    words.extend(identity);
    message(&words)
}

#[cfg(test)]
mod tests {
    use bowline::message::{Limits, Msg};

    use super::*;
    use crate::target::{EchoParams, Work};

    /// Read by a schema that has fields in the same places.
    #[test]
    fn bodies_by_hand_are_messages() {
        for body in [
            lease(7, std::time::Duration::from_secs(1), 64),
            push(500_000, &[]),
            push(20_000, &empty_jobs(20_000)),
            push_of(3),
            lease_of("guarded", 7, std::time::Duration::from_secs(1)),
            answer(
                "guarded",
                7,
                &[Leased {
                    number: 1,
                    token: 2,
                }; 3],
            ),
        ] {
            assert_eq!(body.len() % 8, 0);
            let words = u32::from_le_bytes(body[4..8].try_into().unwrap()) as usize;
            assert_eq!(body.len(), 8 + words * 8);
        }
        let echo = Msg::<EchoParams>::open(echo(b"x").into(), &Limits::default()).unwrap();
        assert_eq!(echo.get().unwrap().get_data().unwrap(), b"x");
        // The first pointer of both is a list of bytes.
        let lease = lease(7, std::time::Duration::from_secs(1), 64);
        let lease = Msg::<Work>::open(lease.into(), &Limits::default()).unwrap();
        assert_eq!(lease.get().unwrap().get_data().unwrap(), b"work\0");
        let answer = answer(
            "guarded",
            7,
            &[Leased {
                number: 1,
                token: 2,
            }; 3],
        );
        let answer = Msg::<Work>::open(answer.into(), &Limits::default()).unwrap();
        assert_eq!(answer.get().unwrap().get_data().unwrap(), b"guarded\0");
        let push = Msg::<Work>::open(push_of(3).into(), &Limits::default()).unwrap();
        assert_eq!(push.get().unwrap().get_data().unwrap(), b"work\0");
    }
}
