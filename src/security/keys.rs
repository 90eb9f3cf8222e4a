//! Long-term keys: made, kept in files, read again, and never shown.

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::file::NAME_RULE;
use super::z85;

/// Largest file of keys that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The public half of a long-term key, X25519. Its text is Z85, as in libzmq: forty characters.
///
/// ```
/// use bowline::security::PublicKey;
///
/// let text = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7";
/// let key: PublicKey = text.parse()?;
/// assert_eq!(key.to_string(), text);
/// # Ok::<(), bowline::security::KeyError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey([u8; 32]);

/// A long-term key with its secret. Clones share the secret, which is overwritten with the last
/// of them; neither `Debug` nor any error shows it.
///
/// ```
/// use bowline::security::Keys;
///
/// let keys = Keys::generate();
/// println!("others need to know {}", keys.public());
/// ```
#[derive(Clone)]
pub struct Keys(Arc<Pair>);

struct Pair {
    public: PublicKey,
    secret: Secret,
}

#[derive(ZeroizeOnDrop)]
struct Secret([u8; 32]);

/// Why there are no keys. Nothing was kept of what was read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The text is not forty characters of Z85.
    #[error("no key: expected forty characters of Z85")]
    NotZ85,
    /// The file cannot be read or written.
    #[error("{path}: {error}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// Others may read the file, so its secret may be one no more.
    #[error(
        "{path} can be read by its group or by others (mode {mode:03o}): \
         make new keys, or say `chmod 600` if nobody has read it",
        path = path.display()
    )]
    Readable {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The file belongs to another user, who knows its secret and may replace it.
    #[error(
        "{path} belongs to user {owner}, and this process runs as user {user}: `chown` it, or make new keys",
        path = path.display()
    )]
    Owner {
        /// The file.
        path: PathBuf,
        /// The number of the user it belongs to.
        owner: u32,
        /// The number of the user that this process runs as.
        user: u32,
    },
    /// The environment has no such variable.
    #[error("the environment variable {0} is not set, or is no text")]
    NotSet(String),
    /// A principal needs a name of ASCII that cannot be taken for another.
    #[error("`{0}` is no name for a principal: {rule}", rule = NAME_RULE)]
    Name(String),
    /// One key cannot stand for two principals.
    #[error("the key {key} is that of `{principal}` already")]
    Taken {
        /// The key.
        key: PublicKey,
        /// Whose it is.
        principal: String,
    },
    /// The text is no list of keys.
    #[error("no list of keys: {0}")]
    List(String),
}

impl PublicKey {
    /// From its 32 bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let mut bytes = [0; 32];
        z85::decode(text.trim().as_bytes(), &mut bytes).ok_or(KeyError::NotZ85)?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = z85::encode(&self.0);
        f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl Keys {
    /// New ones, from the system's source of randomness.
    ///
    /// # Panics
    /// Where the system has no randomness to give.
    pub fn generate() -> Self {
        let secret = x25519_dalek::StaticSecret::random();
        Self::from_secret(Secret(secret.to_bytes()))
    }

    /// From the secret as text: forty characters of Z85, as libzmq's `zmq_curve_keypair` makes them.
    ///
    /// # Errors
    /// [`KeyError::NotZ85`].
    pub fn from_secret_text(text: &str) -> Result<Self, KeyError> {
        let mut secret = Secret([0; 32]);
        z85::decode(text.trim().as_bytes(), &mut secret.0).ok_or(KeyError::NotZ85)?;
        Ok(Self::from_secret(secret))
    }

    /// From an environment variable, which holds the secret as text.
    ///
    /// # Errors
    /// [`KeyError::NotSet`], [`KeyError::NotZ85`].
    pub fn from_environment(variable: &str) -> Result<Self, KeyError> {
        let text = std::env::var(variable).map_err(|_| KeyError::NotSet(variable.to_owned()))?;
        Self::from_secret_text(&Zeroizing::new(text))
    }

    /// From a file that holds the secret as text, alone or after lines that begin with `#`.
    ///
    /// # Errors
    /// [`KeyError::Readable`] where the file's group or others may read it (on Unix), [`KeyError::Owner`] where it
    /// belongs to neither this process's user nor root (on Linux),
    /// [`KeyError::File`], [`KeyError::NotZ85`].
    pub fn read(path: impl AsRef<Path>) -> Result<Self, KeyError> {
        let path = path.as_ref();
        let failed = |error| KeyError::File {
            path: path.to_owned(),
            error,
        };
        let mut file = std::fs::File::open(path).map_err(failed)?;
        // Of the file that is open, so that it cannot be another by the time it is read.
        let metadata = file.metadata().map_err(failed)?;
        refuse_readable(path, &metadata)?;
        refuse_owner(path, &metadata)?;
        Self::from_file_text(&read_text(&mut file).map_err(failed)?)
    }

    fn from_file_text(text: &str) -> Result<Self, KeyError> {
        let secret = text
            .lines()
            .map(str::trim)
            .find(|line| !line.is_empty() && !line.starts_with('#'));
        Self::from_secret_text(secret.unwrap_or_default())
    }

    /// Writes the secret to a new file that only its owner may read; [`read`](Self::read) takes it
    /// from there.
    ///
    /// # Errors
    /// [`KeyError::File`], also where the file is there already: it is not overwritten.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<(), KeyError> {
        let path = path.as_ref();
        let failed = |error| KeyError::File {
            path: path.to_owned(),
            error,
        };
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(path).map_err(failed)?;
        let secret = Zeroizing::new(z85::encode(self.secret_bytes()));
        let public = self.public();
        writeln!(file, "# Secret. The public key is {public}")
            .and_then(|()| file.write_all(&*secret))
            .and_then(|()| file.write_all(b"\n"))
            .and_then(|()| file.sync_all())
            .map_err(failed)
    }

    /// What others may know, and need to know.
    pub fn public(&self) -> PublicKey {
        self.0.public
    }

    pub(crate) fn secret_bytes(&self) -> &[u8; 32] {
        &self.0.secret.0
    }

    fn from_secret(secret: Secret) -> Self {
        // Overwritten when it is dropped, here at the end.
        let exchange = x25519_dalek::StaticSecret::from(secret.0);
        let public = PublicKey(x25519_dalek::PublicKey::from(&exchange).to_bytes());
        Self(Arc::new(Pair { public, secret }))
    }
}

impl PartialEq for Keys {
    /// By the public half, which the secret determines.
    fn eq(&self, other: &Self) -> bool {
        self.public() == other.public()
    }
}

impl Eq for Keys {}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({})", self.public())
    }
}

/// At most [`FILE_BYTES_MAX`], overwritten when it is dropped.
pub(super) fn read_text(file: &mut std::fs::File) -> io::Result<Zeroizing<String>> {
    let length = file.metadata()?.len();
    if length > FILE_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "larger than a file of keys or rules may be (1 MiB)",
        ));
    }
    // As large as it will be, so that growing leaves no copy behind.
    let mut text = Zeroizing::new(String::with_capacity(length as usize + 1));
    let read = io::Read::take(&mut *file, FILE_BYTES_MAX);
    io::Read::read_to_string(&mut { read }, &mut text).inspect_err(|_| text.zeroize())?;
    Ok(text)
}

#[cfg(unix)]
fn refuse_readable(path: &Path, metadata: &std::fs::Metadata) -> Result<(), KeyError> {
    let mode = std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Readable {
            path: path.to_owned(),
            mode,
        });
    }
    Ok(())
}

#[cfg(not(unix))]
fn refuse_readable(_: &Path, _: &std::fs::Metadata) -> Result<(), KeyError> {
    Ok(())
}

#[cfg(target_os = "linux")]
fn refuse_owner(path: &Path, metadata: &std::fs::Metadata) -> Result<(), KeyError> {
    use std::os::unix::fs::MetadataExt;

    let owner = metadata.uid();
    // Whose this process is; where that cannot be told, nothing can be compared.
    let Ok(user) = std::fs::metadata("/proc/self").map(|of| of.uid()) else {
        return Ok(());
    };
    if owner != user && owner != 0 {
        let path = path.to_owned();
        return Err(KeyError::Owner { path, owner, user });
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn refuse_owner(_: &Path, _: &std::fs::Metadata) -> Result<(), KeyError> {
    Ok(())
}

/// For fuzzing: any text as a file of keys.
#[cfg(fuzzing)]
pub(crate) fn read_any(text: &str) {
    match Keys::from_file_text(text) {
        Ok(keys) => {
            let secret = z85::encode(keys.secret_bytes());
            assert!(text.as_bytes().windows(secret.len()).any(|of| of == secret));
            assert_eq!(format!("{keys:?}"), format!("Keys({})", keys.public()));
        }
        Err(error) => assert!(matches!(error, KeyError::NotZ85)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret_of(keys: &Keys) -> String {
        String::from_utf8(z85::encode(keys.secret_bytes()).to_vec()).unwrap()
    }

    #[test]
    fn the_public_key_follows_from_the_secret_as_in_libzmq() {
        // The pair of the manual of `zmq_curve`.
        let keys = Keys::from_secret_text("JTKVSB%%)wK0E.X)V>+}o?pNmC{O&4W4b!Ni{Lh6").unwrap();
        assert_eq!(
            keys.public().to_string(),
            "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"
        );
    }

    #[test]
    fn nothing_that_can_be_printed_shows_the_secret() {
        let keys = Keys::generate();
        let secret = secret_of(&keys);
        let bytes = format!("{:?}", keys.secret_bytes());
        let shown = format!("{keys:?} {keys:#?} {:?}", Some(&keys));
        assert!(
            !shown.contains(&secret) && !shown.contains(&bytes),
            "{shown}"
        );
        let error = Keys::from_secret_text(&format!("{secret}x")).unwrap_err();
        assert!(!format!("{error} {error:?}").contains(&secret[..20]));
    }

    #[test]
    fn keys_from_the_environment_show_their_secret_no_more_than_others() {
        let keys = Keys::generate();
        let secret = secret_of(&keys);
        // A process of its own: to set a variable of one that has threads is not safe.
        let program = std::env::current_exe().unwrap();
        for (value, expected) in [(secret.clone(), "Keys("), (format!("{secret}x"), "NotZ85")] {
            let output = std::process::Command::new(&program)
                .args(["--exact", "--nocapture", "--ignored"])
                .arg("security::keys::tests::says_what_it_read_from_the_environment")
                .env("BOWLINE_TEST_KEY", value)
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr);
            assert!(said.contains(expected), "{said}");
            assert!(!said.contains(&secret[..20]), "{said}");
        }
    }

    #[test]
    #[ignore = "the other half of the test before it, which runs it: cargo test -p bowline --lib security::keys"]
    fn says_what_it_read_from_the_environment() {
        let read = Keys::from_environment("BOWLINE_TEST_KEY");
        println!(
            "{read:?} {}",
            read.as_ref()
                .err()
                .map_or(String::new(), KeyError::to_string)
        );
    }

    #[test]
    fn a_secret_is_overwritten_when_it_is_dropped() {
        let mut place = std::mem::MaybeUninit::new(Secret([7; 32]));
        // SAFETY: it was made in the line before, and is not dropped again.
        unsafe { place.assume_init_drop() };
        // SAFETY: dropping wrote zeros there, or left the sevens; either are bytes.
        let left = unsafe { place.as_ptr().cast::<[u8; 32]>().read() };
        assert_eq!(left, [0; 32]);
    }

    #[test]
    fn a_file_that_was_written_reads_back_and_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server.key");
        let keys = Keys::generate();
        keys.write(&path).unwrap();
        assert_eq!(secret_of(&Keys::read(&path).unwrap()), secret_of(&keys));
        assert!(matches!(
            Keys::generate().write(&path),
            Err(KeyError::File { .. })
        ));
        assert_eq!(Keys::read(&path).unwrap(), keys);
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server.key");
        Keys::generate().write(&path).unwrap();
        for (mode, readable) in [
            (0o600, false),
            (0o400, false),
            (0o640, true),
            (0o604, true),
            (0o620, true),
        ] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            let refused = matches!(Keys::read(&path), Err(KeyError::Readable { .. }));
            assert_eq!(refused, readable, "{mode:o}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_of_another_user_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server.key");
        Keys::generate().write(&path).unwrap();
        // Only root may give a file away, and there is nothing to be shown without.
        if std::os::unix::fs::chown(&path, Some(65_534), None).is_ok() {
            let refused = Keys::read(&path).unwrap_err();
            assert!(
                matches!(refused, KeyError::Owner { owner: 65_534, .. }),
                "{refused}"
            );
        }
    }

    #[test]
    fn what_is_no_file_of_keys_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none");
        assert!(matches!(Keys::read(&path), Err(KeyError::File { .. })));
        assert!(matches!(
            Keys::from_environment("BOWLINE_NO_SUCH_VARIABLE"),
            Err(KeyError::NotSet(_))
        ));
    }
}
