//! The control socket in the file system: made without a moment in which others could connect, and never taken from a
//! daemon that lives.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, fchmod, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// Why the control socket could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// Another daemon has it.
    #[error("another daemon serves {path}; stop it, or give this one another socket (--socket)")]
    Taken {
        /// The socket.
        path: PathBuf,
    },
    /// Something else has that name.
    #[error("{path} exists and is not a socket; remove it, or choose another path (--socket)")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The kernel's limit.
    #[error(
        "the socket's path {path} is too long: the system takes 107 bytes; choose a shorter one (--socket)"
    )]
    TooLong {
        /// The path.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot {what} {path}")]
    Os {
        /// What was attempted.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// A listening control socket; its file goes with it.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    /// Held for as long as the socket is ours.
    _lock: File,
    listener: Option<std::os::unix::net::UnixListener>,
}

impl ControlSocket {
    /// Makes the socket at `path`, for its owner alone (mode 0600). A socket that nobody answers on is replaced.
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let os =
            |what| move |errno: Errno| SocketError::Os { what, path: path.to_owned(), source: errno.into() };
        let address = SocketAddrUnix::new(path).map_err(|errno| match errno {
            Errno::NAMETOOLONG => SocketError::TooLong { path: path.to_owned() },
            errno => os("use the socket path")(errno),
        })?;
        let lock = lock(path)?;
        remove_stale(path)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(os("make the socket"))?;
        // The file that bind makes has the mode of the socket: there is no moment in which it is open to others.
        fchmod(socket.as_fd(), Mode::from_raw_mode(0o600)).map_err(os("set the mode of"))?;
        bind(&socket, &address).map_err(os("make the socket"))?;
        listen(&socket, BACKLOG).map_err(os("listen on"))?;
        Ok(Self { path: path.to_owned(), _lock: lock, listener: Some(socket.into()) })
    }

    /// The listener, for tokio; once.
    pub fn take_listener(&mut self) -> Option<std::os::unix::net::UnixListener> {
        self.listener.take()
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // The lock is still held: it is ours. The lock file stays; removing it would race with the next daemon.
        drop(std::fs::remove_file(&self.path));
    }
}

/// Takes the lock that says whose socket it is. It ends with the process, however that ends.
fn lock(path: &Path) -> Result<File, SocketError> {
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push(".lock");
    let lock_path = PathBuf::from(lock_path);
    let os = |what, source| SocketError::Os { what, path: lock_path.clone(), source };
    let mut options = std::fs::OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options
        .create(true)
        .truncate(false)
        .write(true)
        .open(&lock_path)
        .map_err(|source| os("make the lock file", source))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(SocketError::Taken { path: path.to_owned() }),
        Err(errno) => Err(os("lock", errno.into())),
    }
}

/// Removes a socket that nobody answers on.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let os = |what, source| SocketError::Os { what, path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(os("look at", error)),
        Ok(found) if !std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()) => {
            return Err(SocketError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|source| os("remove the stale socket", source))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(os("connect to", error)),
        Ok(_) => Err(SocketError::Taken { path: path.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("penstock-socket-{}-{name}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        std::fs::create_dir_all(&dir).unwrap();
        dir.join("penstock.sock")
    }

    #[test]
    fn the_socket_is_for_its_owner_alone_and_goes_with_the_daemon() {
        let path = scratch("mode");
        let socket = ControlSocket::bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_that_somebody_serves_is_refused_and_a_stale_one_replaced() {
        let path = scratch("stale");
        let first = ControlSocket::bind(&path).unwrap();
        assert!(matches!(ControlSocket::bind(&path), Err(SocketError::Taken { .. })));
        drop(first);
        let foreign = UnixListener::bind(&path).unwrap();
        assert!(matches!(ControlSocket::bind(&path), Err(SocketError::Taken { .. })));
        drop(foreign);
        assert!(path.exists(), "a listener that ended leaves its file");
        ControlSocket::bind(&path).unwrap();
    }

    #[test]
    fn a_file_of_that_name_is_never_removed() {
        let path = scratch("file");
        std::fs::write(&path, b"precious").unwrap();
        assert!(matches!(ControlSocket::bind(&path), Err(SocketError::NotASocket { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_path_longer_than_the_system_takes_is_refused_with_the_limit() {
        let path = std::env::temp_dir().join("x".repeat(120));
        let error = ControlSocket::bind(&path).unwrap_err().to_string();
        assert!(error.contains("107"), "{error}");
    }
}
