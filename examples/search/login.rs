//! The login service: a password for a session.
//!
//! A session is the user's name and a proof that this service gave it out. Nothing is kept: any
//! login service with the same secret knows it, also one that was started a moment ago.

use bowline::{Failure, Reply, Request};
use bowline_examples::search::{
    Denied, LogInParams, LogInResults, Login, WhoIsParams, WhoIsResults,
};

/// Whoever says this is let in; a real service asks a directory.
pub const PASSWORD: &str = "open sesame";

pub struct Sessions {
    key: [u8; blake3::KEY_LEN],
}

impl Sessions {
    pub fn new(secret: &str) -> Self {
        let key = blake3::derive_key("bowline search example, sessions", secret.as_bytes());
        Self { key }
    }

    fn proof(&self, user: &str) -> blake3::Hash {
        blake3::keyed_hash(&self.key, user.as_bytes())
    }

    fn user<'s>(&self, session: &'s str) -> Option<&'s str> {
        let (proof, user) = session.split_once(' ')?;
        // Hashes are compared in constant time.
        let is_ours = blake3::Hash::from_hex(proof).ok()? == self.proof(user);
        is_ours.then_some(user)
    }
}

impl Login for Sessions {
    async fn log_in(
        &self,
        request: Request<LogInParams>,
    ) -> Result<Reply<LogInResults>, Failure<Denied>> {
        let LogInParams { user, password } = request.plain()?;
        if password != PASSWORD {
            let reason = format!("wrong password for {user}");
            return Err(Denied { reason }.into());
        }
        let session = format!("{} {user}", self.proof(&user).to_hex());
        Ok(LogInResults { session }.into())
    }

    async fn who_is(
        &self,
        request: Request<WhoIsParams>,
    ) -> Result<Reply<WhoIsResults>, Failure<Denied>> {
        let session = request.get()?.get_session()?.to_str()?;
        match self.user(session) {
            Some(user) => Ok(WhoIsResults {
                user: user.to_owned(),
            }
            .into()),
            None => {
                let reason = "no such session".to_owned();
                Err(Denied { reason }.into())
            }
        }
    }
}
