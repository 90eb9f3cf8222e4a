//! The search service: asks `login` who it is and `index` where the words are, and ranks.

use std::collections::HashMap;

use bowline::message::Plain;
use bowline::{Failure, Link, Reply, Request};
use bowline_examples::search::{
    Denied, Document, FetchParams, Hit, INDEX_SERVICE, IndexClient, LoginClient, LookUpParams,
    Search, SearchParams, SearchResults,
};

use crate::words::words;

pub struct Ranking {
    pub login: LoginClient,
    pub index: IndexClient,
}

impl Search for Ranking {
    async fn search(
        &self,
        request: Request<SearchParams>,
    ) -> Result<Reply<SearchResults>, Failure<Denied>> {
        let SearchParams {
            session,
            query,
            limit,
        } = request.plain()?;
        self.login
            .who_is(|mut params| params.set_session(&session))
            .await?;
        let terms = words(&query).map(|(_, word)| word).collect();
        let found = self
            .index
            .look_up_plain(&LookUpParams { terms })
            .await?
            .plain()?;

        // BM25 (Robertson and Zaragoza, The Probabilistic Relevance Framework, 2009).
        const K1: f64 = 1.2;
        const B: f64 = 0.75;
        let mut scores: HashMap<String, f64> = HashMap::new();
        for term in found.found {
            let with = term.postings.len() as f64;
            let rarity = ((f64::from(found.documents) - with + 0.5) / (with + 0.5)).ln_1p();
            for posting in term.postings {
                let count = f64::from(posting.count);
                let length = f64::from(posting.words) / found.average_words.max(1.0);
                let score = rarity * count * (K1 + 1.0) / (count + K1 * (1.0 - B + B * length));
                *scores.entry(posting.path).or_default() += score;
            }
        }
        let mut scores: Vec<(String, f64)> = scores.into_iter().collect();
        scores.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        scores.truncate(usize::from(limit));
        let hits = scores
            .into_iter()
            .map(|(path, score)| {
                Ok(Hit {
                    document: link(&path)?,
                    path,
                    score,
                })
            })
            .collect::<Result<_, Failure<Denied>>>()?;
        let documents = found.documents;
        Ok(SearchResults { hits, documents }.into())
    }
}

/// The document of that path, for whoever wants to follow it.
fn link(path: &str) -> Result<Link<Document>, bowline::MessageError> {
    let fetch = &INDEX_SERVICE.methods[2];
    let path = path.to_owned();
    let parameters = FetchParams { path }.to_bytes()?;
    Ok(Link::new(
        INDEX_SERVICE.name,
        fetch.interface,
        fetch.ordinal,
        parameters,
    ))
}
