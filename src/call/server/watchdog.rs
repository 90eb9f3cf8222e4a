//! Notices handlers that compute for long in the task that reads, and has another task read meanwhile.
//!
//! A thread of the process looks at each server that has something to do, every [`TICK`]. A runtime's timers
//! could not do that: the handler may compute on the only thread that there is. It ends with the last server.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use super::drive::Shared;

/// How often servers are looked at.
const TICK: Duration = Duration::from_millis(10);

static WATCHDOG: Watchdog = Watchdog {
    state: Mutex::new(State {
        servers: Vec::new(),
        is_running: false,
    }),
    changed: Condvar::new(),
};

struct Watchdog {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    servers: Vec<Weak<Shared>>,
    /// Whether there is a thread.
    is_running: bool,
}

/// Has a server looked at until what is returned is dropped.
pub(super) fn watch(server: &Arc<Shared>) -> Watched {
    let mut state = WATCHDOG.lock();
    state.servers.push(Arc::downgrade(server));
    if !state.is_running {
        let thread = std::thread::Builder::new().name("bowline-watchdog".into());
        // Where there can be no thread, a slow handler is not noticed.
        state.is_running = thread.stack_size(64 << 10).spawn(|| WATCHDOG.run()).is_ok();
    }
    drop(state);
    wake();
    Watched(Arc::downgrade(server))
}

/// A server that is looked at.
#[must_use]
pub(super) struct Watched(Weak<Shared>);

impl Drop for Watched {
    fn drop(&mut self) {
        WATCHDOG
            .lock()
            .servers
            .retain(|server| !server.ptr_eq(&self.0));
        wake();
    }
}

/// A server has something to do again.
pub(super) fn wake() {
    // Under the lock: the thread is either about to look, or waits.
    let _state = WATCHDOG.lock();
    WATCHDOG.changed.notify_all();
}

impl Watchdog {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut state = self.lock();
        loop {
            let mut is_busy = false;
            state.servers.retain(|server| match server.upgrade() {
                Some(server) => {
                    is_busy |= server.look();
                    true
                }
                None => false,
            });
            if state.servers.is_empty() {
                state.is_running = false;
                return;
            }
            state = match is_busy {
                true => {
                    let waited = self.changed.wait_timeout(state, TICK);
                    waited.map_or_else(|error| error.into_inner().0, |(state, _)| state)
                }
                false => {
                    let waited = self.changed.wait(state);
                    waited.unwrap_or_else(PoisonError::into_inner)
                }
            };
        }
    }
}
