//! Network namespaces: opening them, telling them apart, and running something inside.

use std::fs::File;
use std::future::Future;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{FsType, fstatfs};
use rtnetlink::Handle;
use serde::{Deserialize, Serialize};

/// The magic number of nsfs, the file system of namespace files (`linux/magic.h`).
const NSFS_MAGIC: FsType = FsType(0x6e73_6673);

/// Why a namespace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// There is no such file.
    #[error("there is no network namespace at {path}: {source}")]
    Missing {
        /// The path.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file is something else.
    #[error("{path} is not a network namespace; give a path such as /run/netns/NAME or /proc/PID/ns/net")]
    NotANamespace {
        /// The path.
        path: PathBuf,
    },
    /// It is the namespace of the host.
    #[error("{path} is the host's own network namespace; a container needs one of its own")]
    Host {
        /// The path.
        path: PathBuf,
    },
    /// It could not be entered.
    #[error("the network namespace cannot be entered: {0}")]
    Enter(std::io::Error),
    /// What was done inside failed.
    #[error("in the network namespace: {0}")]
    Inside(std::io::Error),
    /// Something inside failed.
    #[error("{what}: {source}")]
    Netlink {
        /// What was tried.
        what: String,
        /// What the kernel said.
        source: rtnetlink::Error,
    },
    /// A link is in the way.
    #[error("interface {name} exists already in that namespace; choose another name with --ifname")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// No WireGuard device can be made.
    #[error("the kernel makes no WireGuard device: {why}")]
    NoWireguard {
        /// What it said.
        why: String,
    },
    /// The link is not there.
    #[error("interface {name} is not in the namespace")]
    NoLink {
        /// The name.
        name: String,
    },
}

/// Which namespace a file stands for, for as long as that namespace lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NetnsId {
    device: u64,
    inode: u64,
}

impl NetnsId {
    /// The namespace of the agent itself.
    ///
    /// # Errors
    /// [`NetnsError::Missing`] where there is no `/proc`.
    pub fn host() -> Result<Self, NetnsError> {
        Ok(Netns::open_any(Path::new("/proc/self/ns/net"))?.id)
    }

    /// The namespace that an open file stands for.
    ///
    /// # Errors
    /// [`NetnsError::Inside`] with what the operating system said.
    pub fn of(file: std::os::fd::OwnedFd) -> Result<Self, NetnsError> {
        let metadata = File::from(file).metadata().map_err(NetnsError::Inside)?;
        Ok(Self { device: metadata.dev(), inode: metadata.ino() })
    }
}

/// An open namespace. It keeps the namespace alive, so it is not held for longer than a few steps take.
#[derive(Debug)]
pub struct Netns {
    file: File,
    id: NetnsId,
}

impl Netns {
    /// Opens the namespace of a container.
    ///
    /// # Errors
    /// [`NetnsError`]: nothing there, no namespace, or the host's.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let netns = Self::open_any(path)?;
        let own = Self::open_any(Path::new("/proc/self/ns/net"))?;
        if own.id == netns.id {
            return Err(NetnsError::Host { path: path.to_owned() });
        }
        Ok(netns)
    }

    fn open_any(path: &Path) -> Result<Self, NetnsError> {
        let missing = |source| NetnsError::Missing { path: path.to_owned(), source };
        let not = || NetnsError::NotANamespace { path: path.to_owned() };
        let metadata = std::fs::metadata(path).map_err(missing)?;
        // Opening a device or a pipe could do or wait for anything.
        if !metadata.is_file() {
            return Err(not());
        }
        let file = File::open(path).map_err(missing)?;
        let statfs = fstatfs(&file).map_err(|_| not())?;
        if statfs.filesystem_type() != NSFS_MAGIC || !is_network(&file) {
            return Err(not());
        }
        Ok(Self { id: NetnsId { device: metadata.dev(), inode: metadata.ino() }, file })
    }

    /// Which namespace it is.
    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// One more hold on the same namespace.
    ///
    /// # Errors
    /// [`NetnsError::Enter`]: there are no descriptors left.
    pub fn try_clone(&self) -> Result<Self, NetnsError> {
        Ok(Self { file: self.file.try_clone().map_err(NetnsError::Enter)?, id: self.id })
    }

    /// The file that stands for it.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Runs something inside, with a netlink socket of its own, on a thread that ends afterwards: what a thread that
    /// lives on has entered, it can forget to leave. The socket ends with it, since it would keep the namespace alive.
    ///
    /// # Errors
    /// [`NetnsError`] of entering, or of what was run.
    pub fn run<T, F, Fut>(&self, inside: F) -> Result<T, NetnsError>
    where
        T: Send,
        F: FnOnce(Handle) -> Fut + Send,
        Fut: Future<Output = Result<T, NetnsError>>,
    {
        run(Some(&self.file), inside)
    }

    /// Runs something inside that needs no netlink, on a thread that ends afterwards. Sockets that it makes belong to the
    /// namespace, and keep it, for as long as they are open.
    ///
    /// # Errors
    /// [`NetnsError::Enter`], or [`NetnsError::Inside`] with the error of what was run.
    pub fn visit<T: Send>(
        &self,
        inside: impl FnOnce() -> std::io::Result<T> + Send,
    ) -> Result<T, NetnsError> {
        let panicked = || NetnsError::Enter(std::io::Error::other("the thread inside panicked"));
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)
                    .map_err(|error| NetnsError::Enter(error.into()))?;
                inside().map_err(NetnsError::Inside)
            });
            thread.join().unwrap_or_else(|_| Err(panicked()))
        })
    }
}

/// Runs something with a netlink socket in the host's own namespace.
///
/// # Errors
/// [`NetnsError`] of what was run.
pub fn run_in_host<T, F, Fut>(inside: F) -> Result<T, NetnsError>
where
    T: Send,
    F: FnOnce(Handle) -> Fut + Send,
    Fut: Future<Output = Result<T, NetnsError>>,
{
    run(None, inside)
}

fn run<T, F, Fut>(netns: Option<&File>, inside: F) -> Result<T, NetnsError>
where
    T: Send,
    F: FnOnce(Handle) -> Fut + Send,
    Fut: Future<Output = Result<T, NetnsError>>,
{
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            if let Some(file) = netns {
                setns(file.as_fd(), CloneFlags::CLONE_NEWNET)
                    .map_err(|error| NetnsError::Enter(error.into()))?;
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(NetnsError::Enter)?;
            runtime.block_on(async {
                let (connection, handle, _) = rtnetlink::new_connection().map_err(NetnsError::Enter)?;
                let connection = tokio::spawn(connection);
                let result = inside(handle).await;
                connection.abort();
                result
            })
        });
        thread
            .join()
            .unwrap_or_else(|_| Err(NetnsError::Enter(std::io::Error::other("the thread inside panicked"))))
    })
}

nix::ioctl_none_bad!(
    /// The kind of the namespace behind a descriptor (`NS_GET_NSTYPE`, ioctl_nsfs(2)).
    ns_get_nstype,
    0xb703
);

fn is_network(file: &File) -> bool {
    // SAFETY: NS_GET_NSTYPE takes no argument and touches no memory of ours; the descriptor is open.
    let kind = unsafe { ns_get_nstype(file.as_raw_fd()) };
    kind == Ok(CloneFlags::CLONE_NEWNET.bits())
}
