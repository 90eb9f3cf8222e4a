//! The index service: keeps documents, says where words are, publishes how far uploads are.
//!
//! Documents are in a database, and get there in the transaction that records the outcome of their request:
//! both are there, or neither. Where words are is kept in memory, and found out anew at the start.

use std::collections::HashMap;
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bowline::once::RedbTransaction;
use bowline::{Failure, Publisher, Reply, Request, Status};
use bowline_examples::search::{
    CountsParams, CountsResults, Denied, Document, FetchParams, Incoming, Index, LoginClient,
    LookUpParams, LookUpResults, Missing, Progress, Term, TermPosting,
};
use redb::{
    Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition,
    WriteTransaction,
};

use crate::words::words;

/// Texts by path.
const TEXTS: TableDefinition<'_, &str, &str> = TableDefinition::new("texts");
/// How often the document of a path was taken in.
const TAKEN_IN: TableDefinition<'_, &str, u64> = TableDefinition::new("taken in");
/// Documents that were taken in of each upload, and their bytes.
const UPLOADS: TableDefinition<'_, &str, (u32, u64)> = TableDefinition::new("uploads");

pub struct Documents {
    database: Arc<Database>,
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
}

struct Stored {
    text: String,
    words: u32,
}

impl Documents {
    pub fn new(
        database: Arc<Database>,
        login: LoginClient,
        progress: Publisher<Progress>,
    ) -> Result<Self, redb::Error> {
        let mut state = State::default();
        let writes = database.begin_write()?;
        writes.open_table(TAKEN_IN)?;
        writes.open_table(UPLOADS)?;
        for entry in writes.open_table(TEXTS)?.iter()? {
            let (path, text) = entry?;
            state.add(path.value(), text.value());
        }
        writes.commit()?;
        Ok(Self {
            database,
            login,
            progress,
            state: RwLock::new(state),
        })
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
    fn add(&mut self, path: &str, text: &str) {
        self.remove(path);
        let mut counts: HashMap<String, u32> = HashMap::new();
        for (_, word) in words(text) {
            *counts.entry(word).or_default() += 1;
        }
        let words = counts.values().sum();
        self.words += u64::from(words);
        for (word, count) in counts {
            let postings = self.postings.entry(word).or_default();
            postings.insert(path.to_owned(), count);
        }
        let text = text.to_owned();
        self.documents
            .insert(path.to_owned(), Stored { text, words });
    }

    fn remove(&mut self, path: &str) {
        if let Some(Stored { text, words: count }) = self.documents.remove(path) {
            self.words -= u64::from(count);
            for (_, word) in words(&text) {
                if let Some(postings) = self.postings.get_mut(&word) {
                    postings.remove(path);
                }
            }
        }
    }
}

impl Index for Documents {
    async fn add(&self, request: Request<Incoming>) -> Result<Reply<Progress>, Failure<Denied>> {
        let incoming = Arc::new(request.plain()?);
        // Composition: who may do this is another service's business, within the same deadline.
        let mut who = self
            .login
            .who_is(|mut params| params.set_session(&incoming.session));
        if let Some(deadline) = request.deadline() {
            who = who.deadline(deadline);
        }
        who.await?;
        let taken = Arc::clone(&incoming);
        let transaction = request.transaction::<RedbTransaction>()?;
        let reply = transaction
            .commit(move |writes| -> Result<_, Failure<Denied>> {
                Ok(take_in(writes, &taken).map_err(Status::from_store)?)
            })
            .await?;
        let Incoming {
            upload, document, ..
        } = &*incoming;
        self.write()?.add(&document.path, &document.text);
        // Progress that cannot be published is no reason to fail.
        if let Ok(progress) = progress(&self.database, upload) {
            let _ = self.progress.publish(&progress).await;
        }
        Ok(reply)
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

    async fn counts(&self, _: Request<CountsParams>) -> Result<Reply<CountsResults>, Status> {
        let (documents, taken_in) = counts(&self.database).map_err(Status::from_store)?;
        Ok(CountsResults {
            documents,
            taken_in,
        }
        .into())
    }
}

fn counts(database: &Database) -> Result<(u64, u64), redb::Error> {
    let reads = database.begin_read()?;
    let documents = reads.open_table(TEXTS)?.len()?;
    let mut taken_in = 0;
    for entry in reads.open_table(TAKEN_IN)?.iter()? {
        taken_in += entry?.1.value();
    }
    Ok((documents, taken_in))
}

/// Writes a document down, and how far its upload is with it.
fn take_in(writes: &WriteTransaction, incoming: &Incoming) -> Result<Progress, redb::Error> {
    let Incoming {
        upload, document, ..
    } = incoming;
    let Document { path, text } = document;
    writes.open_table(TEXTS)?.insert(&**path, &**text)?;
    let mut taken_in = writes.open_table(TAKEN_IN)?;
    let times = taken_in.get(&**path)?.map_or(0, |times| times.value());
    taken_in.insert(&**path, times + 1)?;
    let mut uploads = writes.open_table(UPLOADS)?;
    let before = uploads.get(&**upload)?.map(|far| far.value());
    let (documents, bytes) = before.unwrap_or_default();
    let (documents, bytes) = (documents + 1, bytes + text.len() as u64);
    uploads.insert(&**upload, (documents, bytes))?;
    Ok(Progress {
        upload: upload.clone(),
        documents,
        bytes,
    })
}

fn progress(database: &Database, upload: &str) -> Result<Progress, redb::Error> {
    let uploads = database.begin_read()?.open_table(UPLOADS)?;
    let far = uploads.get(upload)?.map(|far| far.value());
    let (documents, bytes) = far.unwrap_or_default();
    Ok(Progress {
        upload: upload.to_owned(),
        documents,
        bytes,
    })
}
