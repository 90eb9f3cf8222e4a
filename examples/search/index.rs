//! The index service: keeps documents, says where words are, publishes how far it is.

use std::collections::HashMap;
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use bowline::{Failure, Publisher, Reply, Request, Status};
use bowline_examples::search::{
    AddParams, AddResults, Denied, Document, FetchParams, Index, LoginClient, LookUpParams,
    LookUpResults, Missing, Progress, Term, TermPosting,
};

use crate::words::words;

pub struct Documents {
    login: LoginClient,
    progress: Publisher<Progress>,
    state: RwLock<State>,
}

#[derive(Default)]
struct State {
    documents: HashMap<String, Stored>,
    /// Of each word, how often it is in which document.
    postings: HashMap<String, HashMap<String, u32>>,
    words: u64,
    bytes: u64,
}

struct Stored {
    text: String,
    words: u32,
}

impl Documents {
    pub fn new(login: LoginClient, progress: Publisher<Progress>) -> Self {
        Self {
            login,
            progress,
            state: RwLock::default(),
        }
    }

    fn read(&self) -> Result<RwLockReadGuard<'_, State>, Status> {
        self.state
            .read()
            .map_err(|_| Status::internal("the index is damaged"))
    }

    fn write(&self) -> Result<RwLockWriteGuard<'_, State>, Status> {
        self.state
            .write()
            .map_err(|_| Status::internal("the index is damaged"))
    }
}

impl State {
    fn add(&mut self, document: Document) {
        self.remove(&document.path);
        let mut counts: HashMap<String, u32> = HashMap::new();
        for (_, word) in words(&document.text) {
            *counts.entry(word).or_default() += 1;
        }
        let words = counts.values().sum();
        self.words += u64::from(words);
        self.bytes += document.text.len() as u64;
        for (word, count) in counts {
            let postings = self.postings.entry(word).or_default();
            postings.insert(document.path.clone(), count);
        }
        let text = document.text;
        self.documents.insert(document.path, Stored { text, words });
    }

    fn remove(&mut self, path: &str) {
        if let Some(Stored { text, words: count }) = self.documents.remove(path) {
            self.words -= u64::from(count);
            self.bytes -= text.len() as u64;
            for (_, word) in words(&text) {
                if let Some(postings) = self.postings.get_mut(&word) {
                    postings.remove(path);
                }
            }
        }
    }
}

impl Index for Documents {
    async fn add(&self, request: Request<AddParams>) -> Result<Reply<AddResults>, Failure<Denied>> {
        let AddParams {
            session,
            job,
            documents,
        } = request.plain()?;
        // Composition: who may do this is another service's business, within the same deadline.
        let mut who = self.login.who_is(|mut params| params.set_session(&session));
        if let Some(deadline) = request.deadline() {
            who = who.deadline(deadline);
        }
        who.await?;
        let progress = {
            let mut state = self.write()?;
            documents
                .into_iter()
                .for_each(|document| state.add(document));
            let documents = state.documents.len() as u32;
            Progress {
                job,
                documents,
                bytes: state.bytes,
            }
        };
        let documents = progress.documents;
        // Progress that cannot be published is no reason to fail.
        let _ = self.progress.publish(&progress).await;
        Ok(AddResults { documents }.into())
    }

    async fn look_up(
        &self,
        request: Request<LookUpParams>,
    ) -> Result<Reply<LookUpResults>, Status> {
        let terms = request.plain()?.terms;
        let state = self.read()?;
        let found = terms.iter().map(|term| {
            let postings = state.postings.get(term).into_iter().flatten();
            let postings = postings.map(|(path, count)| TermPosting {
                path: path.clone(),
                count: *count,
                words: state.documents[path].words,
            });
            Term {
                postings: postings.collect(),
            }
        });
        let documents = state.documents.len() as u32;
        let results = LookUpResults {
            documents,
            average_words: state.words as f64 / f64::from(documents.max(1)),
            found: found.collect(),
        };
        Ok(results.into())
    }

    async fn fetch(
        &self,
        request: Request<FetchParams>,
    ) -> Result<Reply<Document>, Failure<Missing>> {
        let path = request.get()?.get_path()?.to_str()?;
        match self.read()?.documents.get(path) {
            // Straight from the index into the buffer that is sent.
            Some(stored) => Ok(Reply::<Document>::build(|mut document| {
                document.set_path(path);
                document.set_text(&stored.text[..]);
            })),
            None => Err(Missing {
                path: path.to_owned(),
            }
            .into()),
        }
    }
}
