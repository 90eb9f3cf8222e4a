//! Who shows the token of a lease ends its job. Where tokens are counted up, or belong to nobody, one worker ends, renews and
//! puts off the jobs of all others.

use std::io;
use std::time::Duration;

use bowline::call::RawRequest;
use tower::Service;

use super::greed;
use crate::bodies::{Header, Leased, answer, held, lease_of, leased, push_to};
use crate::field::Field;
use crate::zmtp::{Wire, message};
use crate::{ANSWER, LEASE, PUSH, QUEUES};

/// The queue that no other attack knows.
const QUEUE: &str = "guarded";
/// As a worker draws it at its start.
const OWNER: u64 = 0x5e55_0001;
const OTHER: u64 = 0x5e55_0002;

/// Asks for a method of queues; the body of its reply, or `None` where it is refused.
type Ask<'a> = dyn FnMut(u16, Vec<u8>) -> io::Result<Option<Vec<u8>>> + 'a;

pub(super) fn sally(field: &Field) -> io::Result<()> {
    std::thread::scope(|scope| {
        if field.locked.is_some() {
            scope.spawn(|| {
                // What it does is seen by itself.
                let _ = with_key(field);
            });
        }
        without_key(field)
    })
}

fn without_key(field: &Field) -> io::Result<()> {
    let mut owner = Wire::connect(field.address(), field.calls)?.handshake("DEALER", b"")?;
    let mut other = Wire::connect(field.other_address(2), field.calls)?.handshake("DEALER", b"")?;
    let sessions = [OTHER, OWNER];
    strike(
        field,
        &mut |method, body| ask(&mut owner, method, &body),
        &mut |method, body| ask(&mut other, method, &body),
        &sessions,
    )
}

fn ask(wire: &mut Wire, method: u16, body: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let header = Header::for_interface(QUEUES, method, 1).bytes();
    wire.send(&message(&[b"", &header, body]))?;
    Ok(wire.receive_message()?.into_iter().nth(2))
}

fn with_key(field: &Field) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let client = || runtime.block_on(greed::client_with_key(field));
    let (mut owner, mut other) = (client()?, client()?);
    let ask = |client: &mut bowline::Client, method, body: Vec<u8>| {
        let info = greed::method(QUEUES, method);
        let call = client.call(RawRequest::new(&info, body.into()));
        let reply = runtime.block_on(call);
        Ok(reply.ok().map(|reply| reply.body.to_vec()))
    };
    // Both are one principal: only the session is another's.
    strike(
        field,
        &mut |method, body| ask(&mut owner, method, body),
        &mut |method, body| ask(&mut other, method, body),
        &[OTHER],
    )
}

/// One gets jobs; another answers for them. Strikes where the first can still answer itself: there was something to steal.
fn strike(
    field: &Field,
    owner: &mut Ask<'_>,
    other: &mut Ask<'_>,
    sessions: &[u64],
) -> io::Result<()> {
    let wait = Duration::from_millis(500);
    owner(PUSH, push_to(QUEUE, u64::from(field.fresh())))?;
    let Some(jobs) = owner(LEASE, lease_of(QUEUE, OWNER, wait))? else {
        return Ok(());
    };
    let jobs = leased(&jobs);
    // One who has seen a token has another session; one who knows the session has to guess the token.
    let seen = jobs.iter().map(|&job| (OTHER, vec![job]));
    let guessed = jobs.iter().flat_map(|&job| {
        let sessions = sessions.iter();
        sessions.map(move |&session| (session, guesses(job)))
    });
    for (session, answers) in seen.chain(guessed) {
        let reply = other(ANSWER, answer(QUEUE, session, &answers))?;
        if reply.is_some_and(|reply| held(&reply)) {
            field.harmed();
        }
        field.pause(Duration::from_millis(2));
    }
    let own = owner(ANSWER, answer(QUEUE, OWNER, &jobs))?;
    if own.is_some_and(|reply| held(&reply)) {
        field.struck(1);
    }
    Ok(())
}

/// What a token could be, by what its job and its neighbours are.
fn guesses(job: Leased) -> Vec<Leased> {
    let near = (-8i64..=8).filter(|&by| by != 0);
    let near = near.map(|by| job.token.wrapping_add_signed(by));
    let counted = (0..64).chain([job.number, job.number + 1, u64::MAX]);
    near.chain(counted)
        .map(|token| Leased { token, ..job })
        .collect()
}
