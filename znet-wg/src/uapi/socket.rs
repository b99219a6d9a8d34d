//! The listening socket that `wg(8)` looks for: made for its owner alone, never another living process's, and
//! removed only while it is still ours.
//!
//! The directory stays open as a descriptor, and everything goes through it. So the socket can be removed
//! after the process gave up its view of the file system ([`crate::standalone::privileges`]), as long as its
//! user may write to the directory.

use std::fs::{DirBuilder, File};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen as accept_on, socket,
};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// Where `wg(8)` looks for the sockets of user-space devices.
pub const DIRECTORY: &str = "/var/run/wireguard";
/// Who may enter the directory if it has to be made: as wireguard-go makes it. The sockets are their owners'
/// alone.
const DIRECTORY_MODE: u32 = 0o755;
/// Clients that wait to be accepted: `wg(8)` is one at a time, and connects twice.
const BACKLOG: i32 = 16;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The name is a path, or too long for an address.
    #[error("{name:?} cannot be the name of a socket in {DIRECTORY}")]
    Name {
        /// The name.
        name: String,
    },
    /// A living process answers there.
    #[error("another process serves {path} already; stop it first, or choose another name")]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something stands there that is no socket.
    #[error("{path} is in the way and is no socket; remove it if nobody needs it")]
    NoSocket {
        /// What stands there.
        path: PathBuf,
    },
    /// The operating system refused a step.
    #[error("the socket {path} cannot be made ({step}): {source}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What was tried.
        step: &'static str,
        /// What the operating system said.
        source: std::io::Error,
    },
}

/// A listening socket, not blocking. Dropping it removes its file.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    file: Option<SocketFile>,
}

/// The socket's file, as it was when it was made.
#[derive(Debug)]
struct SocketFile {
    directory: OwnedFd,
    name: String,
    identity: (libc::dev_t, libc::ino_t),
}

/// Listens as `NAME.sock` in [`DIRECTORY`], which is made if it is missing. A socket that a dead process left
/// is replaced.
///
/// # Errors
/// [`SocketError`].
pub fn listen(name: &str) -> Result<Listener, SocketError> {
    listen_in(Path::new(DIRECTORY), name)
}

/// Listens like [`listen`], in another directory.
///
/// # Errors
/// [`SocketError`].
pub fn listen_in(directory: &Path, name: &str) -> Result<Listener, SocketError> {
    let name = format!("{name}.sock");
    let path = directory.join(&name);
    if name.contains(['/', '\0']) {
        return Err(SocketError::Name { name });
    }
    let Ok(address) = UnixAddr::new(&path) else { return Err(SocketError::Name { name }) };
    let failed = |step| {
        let path = path.clone();
        move |source: Errno| SocketError::Io { path, step, source: source.into() }
    };
    let opened = DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(directory)
        .and_then(|()| File::open(directory))
        .map_err(|source| SocketError::Io { path: path.clone(), step: "directory", source })?;
    let directory = OwnedFd::from(opened);
    remove_dead(&directory, &name, &path, &address)?;

    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(failed("socket"))?;
    // The file gets the socket's mode as it is made, so that there is no moment in which others may connect.
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR).map_err(failed("mode"))?;
    match bind(socket.as_raw_fd(), &address) {
        // Another process was quicker.
        Err(Errno::EADDRINUSE) => return Err(SocketError::InUse { path }),
        bound => bound.map_err(failed("bind"))?,
    }
    let made = stat(&directory, &name).map_err(failed("stat"))?;
    // From here on the file is removed if anything fails.
    let file = SocketFile { directory, name, identity: identity(&made) };
    let listener = Listener { listener: UnixListener::from(socket), file: Some(file) };
    let backlog = Backlog::new(BACKLOG).map_err(failed("listen"))?;
    accept_on(&listener.listener, backlog).map_err(failed("listen"))?;
    Ok(listener)
}

impl Listener {
    /// Takes over a listening socket that another process made; its file is that process's to remove.
    ///
    /// # Errors
    /// It cannot be made to not block.
    pub fn adopt(socket: OwnedFd) -> std::io::Result<Self> {
        let listener = UnixListener::from(socket);
        listener.set_nonblocking(true)?;
        Ok(Self { listener, file: None })
    }

    /// The next client, whose stream blocks.
    ///
    /// # Errors
    /// [`std::io::ErrorKind::WouldBlock`] when nobody waits; else the operating system's.
    pub fn accept(&self) -> std::io::Result<UnixStream> {
        self.listener.accept().map(|(stream, _)| stream)
    }

    /// The directory of its file, unless the socket was adopted.
    pub fn directory(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(|file| file.directory.as_fd())
    }

    /// Removes its file if it is still there and still ours. Repeating it is harmless.
    ///
    /// # Errors
    /// The file system's.
    pub fn remove(&mut self) -> std::io::Result<()> {
        let Some(file) = self.file.take() else { return Ok(()) };
        match unlink_if(&file.directory, &file.name, file.identity) {
            Err(Errno::ENOENT) => Ok(()),
            done => done.map_err(std::io::Error::from),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Listener {
    /// The socket is closed only after this, and keeps its inode until then: no other file can have the same
    /// number.
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::warn!(%error, "the socket for wg(8) stays behind");
        }
    }
}

/// Removes what a dead process left under this name. Two processes that start at once may both find it dead;
/// the later one leaves the earlier one's new socket alone, because that is another inode.
fn remove_dead(directory: &OwnedFd, name: &str, path: &Path, address: &UnixAddr) -> Result<(), SocketError> {
    let failed =
        |step| move |source: Errno| SocketError::Io { path: path.to_owned(), step, source: source.into() };
    let found = match stat(directory, name) {
        Err(Errno::ENOENT) => return Ok(()),
        found => found.map_err(failed("stat"))?,
    };
    if SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits()) != SFlag::S_IFSOCK {
        return Err(SocketError::NoSocket { path: path.to_owned() });
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let probe = socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(failed("socket"))?;
    match connect(probe.as_raw_fd(), address) {
        Err(Errno::ECONNREFUSED) => match unlink_if(directory, name, identity(&found)) {
            Err(Errno::ENOENT) => Ok(()),
            done => done.map_err(failed("remove the old one")),
        },
        Err(Errno::ENOENT) => Ok(()),
        // A full queue is a sign of life as well.
        Ok(()) | Err(Errno::EAGAIN) => Err(SocketError::InUse { path: path.to_owned() }),
        Err(error) => Err(failed("ask whether it is in use")(error)),
    }
}

fn unlink_if(directory: &OwnedFd, name: &str, ours: (libc::dev_t, libc::ino_t)) -> nix::Result<()> {
    if identity(&stat(directory, name)?) != ours {
        return Ok(());
    }
    unlinkat(directory, name, UnlinkatFlags::NoRemoveDir)
}

fn stat(directory: &OwnedFd, name: &str) -> nix::Result<FileStat> {
    fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)
}

fn identity(stat: &FileStat) -> (libc::dev_t, libc::ino_t) {
    (stat.st_dev, stat.st_ino)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_socket_is_its_owners_alone_and_goes_with_its_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run").join("wg0.sock");
        let listener = listen_in(&dir.path().join("run"), "wg0").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        let _client = UnixStream::connect(&path).unwrap();
        listener.accept().unwrap();
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_living_process_keeps_its_socket_and_a_dead_one_loses_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wg0.sock");
        let living = UnixListener::bind(&path).unwrap();
        assert!(matches!(listen_in(dir.path(), "wg0"), Err(SocketError::InUse { .. })));
        drop(living);
        assert!(path.exists());
        listen_in(dir.path(), "wg0").unwrap();
    }

    #[test]
    fn a_file_that_is_no_socket_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wg0.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(listen_in(dir.path(), "wg0"), Err(SocketError::NoSocket { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_socket_that_another_made_meanwhile_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wg0.sock");
        let mut first = listen_in(dir.path(), "wg0").unwrap();
        fs::remove_file(&path).unwrap();
        let _second = listen_in(dir.path(), "wg0").unwrap();
        first.remove().unwrap();
        drop(first);
        assert!(path.exists());
    }

    #[test]
    fn a_name_that_leads_elsewhere_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["../wg0".to_owned(), "a".repeat(200)] {
            assert!(matches!(listen_in(dir.path(), &name), Err(SocketError::Name { .. })), "{name}");
        }
    }

    #[test]
    fn an_adopted_socket_keeps_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wg0.sock");
        let mut adopted = Listener::adopt(UnixListener::bind(&path).unwrap().into()).unwrap();
        adopted.remove().unwrap();
        drop(adopted);
        assert!(path.exists());
    }
}
