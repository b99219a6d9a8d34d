//! The system calls that have no safe wrapper: entering namespaces between fork and exec, waiting on a pidfd, and a
//! network namespace's cookie.
//!
//! This file and `tap.rs` are the only ones with `unsafe`. What runs between fork and exec allocates nothing, takes no lock and
//! calls only the kernel, because another thread may have held any lock at the moment of the fork.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use crate::error::{LabError, Result};

/// Open references to the three namespaces that make a virtual host. As long as one lives, so do they.
#[derive(Debug)]
pub(crate) struct NamespaceFds {
    pub(crate) net: OwnedFd,
    pub(crate) mnt: OwnedFd,
    pub(crate) uts: OwnedFd,
}

impl NamespaceFds {
    /// Opens those of a living process.
    pub(crate) fn of_process(pid: u32) -> Result<Self> {
        let open = |which: &str| {
            let path = format!("/proc/{pid}/ns/{which}");
            File::open(&path).map(OwnedFd::from).map_err(LabError::io(format!("open {path}")))
        };
        Ok(Self { net: open("net")?, mnt: open("mnt")?, uts: open("uts")? })
    }
}

/// Where a child goes before it becomes its program.
pub(crate) struct Entry {
    /// The host whose mounts and name the child sees, and whose network unless `net` says otherwise.
    pub(crate) host: Arc<NamespaceFds>,
    /// A container's network namespace instead of the host's.
    pub(crate) net: Option<OwnedFd>,
    /// The working directory, looked up inside the host.
    pub(crate) cwd: CString,
    /// This process: a child whose parent is already another one was orphaned before it could ask for its death signal.
    pub(crate) parent: libc::pid_t,
}

impl Entry {
    fn apply(&self) -> io::Result<()> {
        // SAFETY: prctl with PR_SET_PDEATHSIG takes one integer and touches no memory of ours.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
            return Err(io::Error::last_os_error());
        }
        if nix::unistd::getppid().as_raw() != self.parent {
            return Err(Errno::ESRCH.into());
        }
        let net = self.net.as_ref().unwrap_or(&self.host.net);
        setns(net, CloneFlags::CLONE_NEWNET)?;
        setns(&self.host.uts, CloneFlags::CLONE_NEWUTS)?;
        setns(&self.host.mnt, CloneFlags::CLONE_NEWNS)?;
        nix::unistd::chdir(self.cwd.as_c_str())?;
        Ok(())
    }
}

/// Makes `command`'s child enter a host or container, and die when the thread that starts it ends.
pub(crate) fn enter_before_exec(command: &mut Command, entry: Entry) {
    // SAFETY: `Entry::apply` makes system calls only; everything it needs was allocated before the fork.
    unsafe { command.pre_exec(move || entry.apply()) };
}

/// What a new host's first process prepares before it becomes its program.
pub(crate) struct Birth {
    /// The host's name.
    pub(crate) hostname: CString,
    /// Directory pairs: what is private, and where it appears.
    pub(crate) binds: Vec<(CString, CString)>,
}

impl Birth {
    fn apply(&self) -> io::Result<()> {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)?;
        // A slave, not private: what is mounted outside later shows up in here too, while nothing that is mounted in here
        // shows outside.
        let none: Option<&str> = None;
        mount(none, c"/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
        for (source, target) in &self.binds {
            mount(Some(source.as_c_str()), target.as_c_str(), none, MsFlags::MS_BIND, none)?;
        }
        // SAFETY: the pointer and length describe a live CString.
        let named = unsafe { libc::sethostname(self.hostname.as_ptr(), self.hostname.as_bytes().len()) };
        if named == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// Makes `command`'s child the first process of a new host.
pub(crate) fn be_born_before_exec(command: &mut Command, birth: Birth) {
    // SAFETY: `Birth::apply` makes system calls only; nix's `mount` copies short strings to the stack, and everything else was
    // allocated before the fork.
    unsafe { command.pre_exec(move || birth.apply()) };
}

/// A path as the kernel wants it.
pub(crate) fn c_path(path: &Path) -> Result<CString> {
    c_text(path.as_os_str())
}

/// Text as the kernel wants it.
pub(crate) fn c_text(text: &OsStr) -> Result<CString> {
    CString::new(text.as_bytes())
        .map_err(|nul| LabError::Io { doing: format!("use {text:?}"), source: nul.into() })
}

/// Runs `work` on a thread of its own inside a network namespace, and waits for it.
///
/// Sockets and `/proc/sys/net` follow the thread that opens them, so this is how the harness reaches into a host without starting a
/// program there.
pub(crate) fn inside<T: Send>(net: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let worker = scope.spawn(move || setns(net, CloneFlags::CLONE_NEWNET).map(|()| work()));
        match worker.join() {
            Ok(done) => done.map_err(LabError::errno("enter a network namespace")),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// The number the kernel gave a network namespace, never given again until the next boot (unlike its inode number).
pub(crate) fn net_cookie(net: BorrowedFd<'_>) -> Result<u64> {
    inside(net, || {
        let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
        let mut cookie = 0u64;
        let mut size = size_of::<u64>() as libc::socklen_t;
        // SAFETY: the pointers describe `cookie` and `size`, which outlive the call; the kernel writes at most `size` bytes.
        let asked = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_NETNS_COOKIE,
                (&raw mut cookie).cast(),
                &raw mut size,
            )
        };
        if asked == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
    })?
    .map_err(LabError::io("ask for a network namespace's cookie"))
}

/// A handle on a child that becomes readable when it ends.
pub(crate) fn pidfd(pid: u32) -> Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(LabError::io(format!("watch process {pid}"))(io::Error::last_os_error()));
    }
    // SAFETY: the kernel just gave us this descriptor, nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Waits until `fd` is readable or `deadline` has come; true if readable.
pub(crate) fn readable_before(fd: &OwnedFd, deadline: Instant) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let millis = left.min(Duration::from_secs(60)).as_micros().div_ceil(1000) as u16;
        let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(millis)) {
            Ok(0) if Instant::now() >= deadline => return false,
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return true,
            Err(_) => return false,
        }
    }
}
