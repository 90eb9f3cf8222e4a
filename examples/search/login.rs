//! The login service: a password for a session.

use std::collections::HashMap;
use std::sync::Mutex;

use bowline::{Failure, Reply, Request, RequestId, Status};
use bowline_examples::search::{
    Denied, LogInParams, LogInResults, Login, WhoIsParams, WhoIsResults,
};

/// Whoever says this is let in; a real service asks a directory.
pub const PASSWORD: &str = "open sesame";

#[derive(Default)]
pub struct Sessions {
    users: Mutex<HashMap<String, String>>,
}

impl Sessions {
    fn users(&self) -> Result<std::sync::MutexGuard<'_, HashMap<String, String>>, Status> {
        self.users
            .lock()
            .map_err(|_| Status::internal("the sessions are damaged"))
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
        let session = RequestId::new().to_string();
        self.users()?.insert(session.clone(), user);
        Ok(LogInResults { session }.into())
    }

    async fn who_is(
        &self,
        request: Request<WhoIsParams>,
    ) -> Result<Reply<WhoIsResults>, Failure<Denied>> {
        let session = request.get()?.get_session()?.to_str()?;
        match self.users()?.get(session) {
            Some(user) => Ok(WhoIsResults { user: user.clone() }.into()),
            None => {
                let reason = "no such session".to_owned();
                Err(Denied { reason }.into())
            }
        }
    }
}
