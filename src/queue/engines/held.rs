//! What a worker of an engine has: jobs that its server sent, those of them that were given out, and what answers
//! each. The same for every server; what a message of theirs is, only they know.

use std::collections::{HashMap, VecDeque};

use crate::queue::{Credit, JobNumber, LeasedJob, Token};

use super::envelope::Envelope;

/// Jobs by their numbers, with what `M` says of each one's message.
#[derive(Debug)]
pub(super) struct Held<M> {
    jobs: HashMap<JobNumber, Lease<M>>,
    /// Sent by the server, and not yet given out: it counts credit in jobs, we in bytes too.
    waiting: VecDeque<JobNumber>,
}

#[derive(Debug)]
pub(super) struct Lease<M> {
    pub token: Token,
    pub envelope: Envelope,
    pub message: M,
}

impl<M> Default for Held<M> {
    fn default() -> Self {
        Self {
            jobs: HashMap::new(),
            waiting: VecDeque::new(),
        }
    }
}

impl<M> Held<M> {
    /// A job has come.
    pub fn note(&mut self, number: JobNumber, lease: Lease<M>) {
        self.jobs.insert(number, lease);
        self.waiting.push_back(number);
    }

    /// Gives out what the credit allows; forgets what `is_over`.
    pub fn take(&mut self, credit: Credit, is_over: impl Fn(&M) -> bool) -> Vec<LeasedJob> {
        let (mut leased, mut bytes) = (Vec::new(), 0);
        while leased.len() < credit.jobs
            && let Some(number) = self.waiting.front().copied()
        {
            let Some(lease) = self.jobs.get(&number) else {
                self.waiting.pop_front();
                continue;
            };
            if is_over(&lease.message) {
                self.waiting.pop_front();
                self.jobs.remove(&number);
                continue;
            }
            bytes += lease.envelope.bytes();
            if bytes > credit.bytes && !(leased.is_empty() && credit.takes_any_first) {
                break;
            }
            leased.push(lease.envelope.leased(number, lease.token));
            self.waiting.pop_front();
        }
        leased
    }

    pub fn get_mut(&mut self, number: JobNumber, token: Token) -> Option<&mut Lease<M>> {
        let lease = self.jobs.get_mut(&number);
        lease.filter(|lease| lease.token == token)
    }

    /// Takes back what is to be answered. None where that lease is over.
    pub fn remove(&mut self, number: JobNumber, token: Token) -> Option<Lease<M>> {
        self.get_mut(number, token)?;
        self.jobs.remove(&number)
    }

    /// Takes back all that was not given out.
    pub fn remove_waiting(&mut self) -> Vec<Lease<M>> {
        let numbers = std::mem::take(&mut self.waiting);
        numbers
            .iter()
            .filter_map(|number| self.jobs.remove(number))
            .collect()
    }

    /// Those that were not given out.
    pub fn waiting(&self) -> impl Iterator<Item = (JobNumber, Token)> {
        let number = |number: &JobNumber| Some((*number, self.jobs.get(number)?.token));
        self.waiting.iter().filter_map(number)
    }

    /// Forgets what is not so.
    pub fn retain(&mut self, is: impl Fn(&M) -> bool) {
        self.jobs.retain(|_, lease| is(&lease.message));
    }

    pub fn contains(&self, number: JobNumber) -> bool {
        self.jobs.contains_key(&number)
    }

    /// What is said of the messages of all that it has.
    pub fn messages(&self) -> impl Iterator<Item = &M> {
        self.jobs.values().map(|lease| &lease.message)
    }

    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }
}
