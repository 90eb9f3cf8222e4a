//! What is written to stderr while something runs: the embedded compiler says there what is wrong with
//! a schema, and offers no other way to hear it.

use std::path::Path;

use crate::Error;

/// Runs `work`, and returns what this process wrote to stderr meanwhile; where that cannot be had, it
/// goes to stderr as ever.
#[cfg(unix)]
pub(super) fn while_heard<T>(
    scratch: &Path,
    work: impl FnOnce() -> T,
) -> Result<(T, String), Error> {
    use std::fs::File;
    use std::os::fd::{AsFd, OwnedFd};
    use std::sync::{Mutex, PoisonError};

    /// Gives stderr back, also where `work` panics.
    struct Restore(OwnedFd);
    impl Drop for Restore {
        fn drop(&mut self) {
            // Fails for no descriptor that is open, and this one is.
            let _ = rustix::stdio::dup2_stderr(&self.0);
        }
    }

    // There is one stderr a process.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let path = scratch.join("bowline-compiler-says");
    let file = File::create(&path).map_err(Error::file(&path))?;
    let before = std::io::stderr().as_fd().try_clone_to_owned();
    let Ok(restore) = before.map(Restore) else {
        return Ok((work(), String::new()));
    };
    if rustix::stdio::dup2_stderr(&file).is_err() {
        return Ok((work(), String::new()));
    }
    let output = work();
    drop(restore);
    let said = std::fs::read(&path).map_err(Error::file(&path))?;
    Ok((output, String::from_utf8_lossy(&said).into_owned()))
}

/// Not known how, here: it goes to stderr as ever.
#[cfg(not(unix))]
pub(super) fn while_heard<T>(
    _scratch: &Path,
    work: impl FnOnce() -> T,
) -> Result<(T, String), Error> {
    Ok((work(), String::new()))
}
