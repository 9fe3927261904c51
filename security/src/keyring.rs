//! Secrets in files, by name: only the name and the path are kept, so nothing that lists or saves keys can show one.
//!
//! A file is read when a key is put to use. It must belong to the user that the process runs as, and nobody else may have
//! any right to it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// Keys of one keyring at most.
pub const KEYS_MAX: usize = 4096;
/// Bytes of a name at most.
pub const NAME_LEN_MAX: usize = 255;
/// Bytes of a key's file at most.
pub const FILE_LEN_MAX: u64 = 4096;

/// Why a key cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyringError {
    /// A name that cannot be.
    #[error("a key's name has 1 to {NAME_LEN_MAX} bytes; {name:?} has {}", name.len())]
    Name {
        /// The name.
        name: String,
    },
    /// The name is taken.
    #[error("there is a key {name} already; remove it first, or choose another name")]
    Present {
        /// The name.
        name: String,
    },
    /// No such key.
    #[error("there is no key {name}; keyring_get_keys lists them, keyring_file_add_key adds one")]
    Missing {
        /// The name.
        name: String,
    },
    /// Too many keys.
    #[error("the keyring is at its limit of {KEYS_MAX} keys; remove one first")]
    Full,
    /// A relative path.
    #[error("the path of key file {} is not absolute", path.display())]
    Relative {
        /// The path.
        path: PathBuf,
    },
    /// Others have rights to the file.
    #[error("key file {} has mode {mode:04o}: others have rights to it; set it to 0600", path.display())]
    Mode {
        /// The path.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It belongs to somebody else.
    #[error("key file {} belongs to user {owner}, not to user {user} that the daemon runs as", path.display())]
    Owner {
        /// The path.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who wants it.
        user: u32,
    },
    /// It holds more than a key, or no text.
    #[error("key file {} holds no key: {why}", path.display())]
    Contents {
        /// The path.
        path: PathBuf,
        /// What is wrong.
        why: &'static str,
    },
    /// It cannot be read.
    #[error("cannot read key file {}: {source}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}

/// Names of keys and where they are.
#[derive(Debug, Default)]
pub struct Keyring {
    keys: BTreeMap<String, PathBuf>,
}

impl Keyring {
    /// Adds a key. Its file is looked at, not read.
    ///
    /// # Errors
    /// A name that is taken or cannot be; a file that is not there, not ours, or not ours alone.
    pub fn add(&mut self, name: &str, path: &Path) -> Result<(), KeyringError> {
        if name.is_empty() || name.len() > NAME_LEN_MAX {
            return Err(KeyringError::Name { name: name.to_owned() });
        }
        if self.keys.contains_key(name) {
            return Err(KeyringError::Present { name: name.to_owned() });
        }
        if self.keys.len() >= KEYS_MAX {
            return Err(KeyringError::Full);
        }
        open(path)?;
        self.keys.insert(name.to_owned(), path.to_owned());
        Ok(())
    }

    /// Forgets a key. Whoever uses it already goes on.
    ///
    /// # Errors
    /// [`KeyringError::Missing`].
    pub fn remove(&mut self, name: &str) -> Result<(), KeyringError> {
        let removed = self.keys.remove(name);
        removed.map(drop).ok_or_else(|| KeyringError::Missing { name: name.to_owned() })
    }

    /// Reads a key.
    ///
    /// # Errors
    /// [`KeyringError::Missing`]; what is wrong with its file now.
    pub fn load(&self, name: &str) -> Result<Zeroizing<String>, KeyringError> {
        let path = self.keys.get(name).ok_or_else(|| KeyringError::Missing { name: name.to_owned() })?;
        let file = open(path)?;
        let io = |source| KeyringError::Io { path: path.clone(), source };
        let contents = |why| KeyringError::Contents { path: path.clone(), why };
        // Room for all of it at once: a buffer that grows leaves copies behind.
        let mut text = Zeroizing::new(String::with_capacity(usize::try_from(FILE_LEN_MAX).unwrap_or(0) + 1));
        match file.take(FILE_LEN_MAX + 1).read_to_string(&mut text) {
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                return Err(contents("it is no text"));
            }
            other => other.map_err(io)?,
        };
        if u64::try_from(text.len()).unwrap_or(u64::MAX) > FILE_LEN_MAX {
            return Err(contents("it is longer than any key"));
        }
        Ok(text)
    }

    /// Names and paths, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.keys.iter().map(|(name, path)| (name.as_str(), path.as_path()))
    }
}

/// Opens a key's file, if it is ours and ours alone.
fn open(path: &Path) -> Result<File, KeyringError> {
    let io = |source| KeyringError::Io { path: path.to_owned(), source };
    if !path.is_absolute() {
        return Err(KeyringError::Relative { path: path.to_owned() });
    }
    // A FIFO must not make the daemon wait for a writer.
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::NONBLOCK;
    let fd = rustix::fs::open(path, flags, rustix::fs::Mode::empty()).map_err(|errno| io(errno.into()))?;
    let file = File::from(fd);
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() {
        return Err(KeyringError::Contents { path: path.to_owned(), why: "it is no regular file" });
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(KeyringError::Mode { path: path.to_owned(), mode: metadata.mode() & 0o7777 });
    }
    let user = rustix::process::getuid().as_raw();
    if metadata.uid() != user {
        return Err(KeyringError::Owner { path: path.to_owned(), owner: metadata.uid(), user });
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn file(name: &str, text: &[u8], mode: u32) -> PathBuf {
        let path = std::env::temp_dir().join(format!("penstock-keyring-{}-{name}", std::process::id()));
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn a_key_is_added_read_and_removed() {
        let path = file("ok", b"DHHC-1:secret\n", 0o600);
        let mut keyring = Keyring::default();
        keyring.add("key0", &path).unwrap();
        assert!(matches!(keyring.add("key0", &path), Err(KeyringError::Present { .. })));
        assert_eq!(*keyring.load("key0").unwrap(), "DHHC-1:secret\n");
        assert!(!format!("{keyring:?}").contains("secret"));
        keyring.remove("key0").unwrap();
        assert!(matches!(keyring.load("key0"), Err(KeyringError::Missing { .. })));
        assert!(matches!(keyring.remove("key0"), Err(KeyringError::Missing { .. })));
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_file_that_others_may_read_is_refused_whenever_it_is_looked_at() {
        let mut keyring = Keyring::default();
        for mode in [0o644, 0o660, 0o604, 0o610, 0o601] {
            let path = file("open", b"x", mode);
            assert!(matches!(keyring.add("key", &path), Err(KeyringError::Mode { .. })), "{mode:o}");
        }
        let path = file("open", b"x", 0o600);
        keyring.add("key", &path).unwrap();
        let path = file("open", b"x", 0o640);
        assert!(matches!(keyring.load("key"), Err(KeyringError::Mode { mode: 0o640, .. })));
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn what_is_no_key_file_is_refused() {
        let mut keyring = Keyring::default();
        assert!(matches!(keyring.add("k", Path::new("key")), Err(KeyringError::Relative { .. })));
        assert!(matches!(keyring.add("k", Path::new("/nowhere/key")), Err(KeyringError::Io { .. })));
        assert!(matches!(keyring.add("", Path::new("/dev/null")), Err(KeyringError::Name { .. })));
        assert!(keyring.add("k", &std::env::temp_dir()).is_err());
        let long = file("long", &[b'a'; 5000], 0o600);
        keyring.add("long", &long).unwrap();
        assert!(matches!(keyring.load("long"), Err(KeyringError::Contents { .. })));
        fs::remove_file(long).unwrap();
    }
}
