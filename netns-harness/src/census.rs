//! Which processes of this machine live in a lab?
//!
//! A process counts as a lab's if either is true:
//! - it sees one of the lab's private directories: its mount table has a mount whose source lies in `…/PREFIX/hosts/`. Every process of a
//!   host inherits those mounts, whatever network namespace it moves to;
//! - its network namespace has a cookie that the lab recorded. That finds a sandboxed process which left the host's mounts.
//!
//! Both marks are unique for all time of one boot, unlike process ids and inode numbers, so nothing that belongs to somebody
//! else can be hit, even long after the lab's own processes died.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::Result;
use crate::sys;

/// How often to look again while processes are dying.
const RECHECK: Duration = Duration::from_millis(5);

/// The processes that live in the lab `prefix`, this one never among them.
pub(crate) fn residents(prefix: &str, cookies: &BTreeSet<u64>) -> Result<Vec<u32>> {
    let me = std::process::id();
    let mut by_mounts: HashMap<PathBuf, bool> = HashMap::new();
    let mut by_net: HashMap<PathBuf, bool> = HashMap::new();
    let mut found = Vec::new();
    for pid in pids() {
        if pid == me {
            continue;
        }
        // Processes end while we look; one that cannot be read any more is no resident.
        let dir = PathBuf::from(format!("/proc/{pid}"));
        let Ok(mnt) = dir.join("ns/mnt").read_link() else { continue };
        let mounted = *by_mounts.entry(mnt).or_insert_with(|| sees_lab(&dir, prefix));
        let Ok(net) = dir.join("ns/net").read_link() else { continue };
        let networked = *by_net.entry(net).or_insert_with(|| in_networks(&dir.join("ns/net"), cookies));
        if mounted || networked {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Kills whatever `list` names, again and again until it names nothing or `patience` is over. Returns how many processes were killed and
/// those that would not die.
pub(crate) fn kill_all(
    patience: Duration,
    mut list: impl FnMut() -> Result<Vec<u32>>,
) -> Result<(usize, Vec<u32>)> {
    let deadline = Instant::now() + patience;
    let mut killed = BTreeSet::new();
    loop {
        let left = list()?;
        if left.is_empty() || Instant::now() >= deadline {
            return Ok((killed.len(), left));
        }
        for pid in left {
            if kill(Pid::from_raw(pid as i32), Signal::SIGKILL).is_ok() {
                killed.insert(pid);
            }
        }
        std::thread::sleep(RECHECK);
    }
}

fn pids() -> impl Iterator<Item = u32> {
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok()))
}

/// Field 4 of a mountinfo line is the mount's source inside its file system.
fn sees_lab(proc_dir: &Path, prefix: &str) -> bool {
    let mark = format!("/{prefix}/hosts/");
    std::fs::read_to_string(proc_dir.join("mountinfo")).is_ok_and(|mounts| {
        mounts.lines().any(|line| line.split(' ').nth(3).is_some_and(|source| source.contains(&mark)))
    })
}

fn in_networks(net: &Path, cookies: &BTreeSet<u64>) -> bool {
    !cookies.is_empty()
        && File::open(net)
            .ok()
            .and_then(|file| sys::net_cookie(file.as_fd()).ok())
            .is_some_and(|cookie| cookies.contains(&cookie))
}
