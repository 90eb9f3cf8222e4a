//! Files of Unix sockets: who may connect, and those of processes that have ended.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use tokio::net::UnixStream;

use super::{Endpoint, TransportError};

/// Gives the file that a socket is about to be bound to a mode, on systems that look at it then.
pub(super) fn restrict(socket: &impl AsFd, mode: u32) -> io::Result<()> {
    let file = std::fs::File::from(socket.as_fd().try_clone_to_owned()?);
    file.set_permissions(std::fs::Permissions::from_mode(mode))
}

/// Removes the file of a socket that no process listens on any more, as one that was killed leaves
/// behind.
///
/// # Errors
/// [`TransportError::InUse`] where a process listens. Anything else in the way stays, and binding
/// reports it.
pub(super) async fn take_over(endpoint: &Endpoint) -> Result<(), TransportError> {
    let Endpoint::Ipc(path) = endpoint else {
        return Ok(());
    };
    if path.as_os_str().as_encoded_bytes().starts_with(b"@") {
        return Ok(());
    }
    match UnixStream::connect(path).await {
        Ok(_) => Err(TransportError::InUse {
            endpoint: endpoint.clone(),
        }),
        Err(error) => {
            if error.kind() == io::ErrorKind::ConnectionRefused && is_socket(path) {
                // What cannot be removed is in the way, and binding says so.
                let _ = std::fs::remove_file(path);
            }
            Ok(())
        }
    }
}

fn is_socket(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket())
}
