//! In process: `inproc://name` within one binary, for tests and for composing services.
//!
//! A registry of names leads who connects to who binds; from there both talk over bounded
//! channels. Who connects may be there first, and finds the next one that binds the name.

mod calls;
mod topics;

pub(super) use calls::{
    DealerReceiver, DealerSender, RouterReceiver, RouterSender, bind_router, connect_dealer,
};
pub(super) use topics::{
    PublishSender, SubscribeReceiver, SubscribeSender, SubscriptionWatch, bind_publish,
    connect_subscribe,
};

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::watch;

use super::{Endpoint, TransportError};

/// Nothing that is locked here can be left half changed, so a panic elsewhere does not make it wrong.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who has bound which name.
struct Registry<T> {
    names: Mutex<HashMap<String, Weak<T>>>,
    /// Told whenever a name is bound, for those who wait for one.
    bound: watch::Sender<()>,
}

impl<T> Registry<T> {
    fn new() -> Self {
        Self {
            names: Mutex::default(),
            bound: watch::Sender::default(),
        }
    }

    fn bind(&self, name: &str, socket: &Arc<T>) -> Result<(), TransportError> {
        let mut names = lock(&self.names);
        if names.get(name).is_some_and(|s| s.strong_count() > 0) {
            return Err(TransportError::InUse {
                endpoint: Endpoint::Inproc(name.to_owned()),
            });
        }
        names.insert(name.to_owned(), Arc::downgrade(socket));
        drop(names);
        self.bound.send_replace(());
        Ok(())
    }

    fn find(&self, name: &str) -> Option<Arc<T>> {
        lock(&self.names).get(name).and_then(Weak::upgrade)
    }

    /// Gives up the name, unless it is another's by now.
    fn unbind(&self, name: &str, socket: &T) {
        let mut names = lock(&self.names);
        if names
            .get(name)
            .is_some_and(|bound| std::ptr::eq(bound.as_ptr(), socket))
        {
            names.remove(name);
        }
    }
}
