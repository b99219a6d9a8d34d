//! Who owns a lab, and is that process still alive?
//!
//! Every lab has a file `/run/zt-labs/PREFIX.json` that its process keeps locked for as long as it lives. The kernel gives the lock back
//! when the process dies, however it dies, so "can I take the lock" is an answer that no reused process id can
//! falsify. The process id and start time in the file are for people. The registry is machine-wide, so that a sweep finds what a run in
//! another checkout left behind.
//!
//! `/run` may survive a reboot where it is no tmpfs; the boot id in the file tells, since after a reboot none of the recorded
//! namespaces exists any more.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::error::{LabError, Result};

/// Where the machine's labs are registered.
pub(crate) const REGISTRY: &str = "/run/zt-labs";

/// What is known about one lab on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabRecord {
    /// The lab's unique prefix, `zt-` and six characters.
    pub prefix: String,
    /// What the lab was made for, in its maker's words.
    pub purpose: String,
    /// The owner's process id.
    pub pid: u32,
    /// When the owner started, in clock ticks after boot (field 22 of `/proc/PID/stat`).
    pub start_ticks: u64,
    /// The boot in which the lab was made.
    pub boot_id: String,
    /// Where its logs and captures are.
    pub dir: PathBuf,
    /// Cookies of the network namespaces it made.
    pub net_cookies: BTreeSet<u64>,
    /// True once the logs were kept on purpose: a sweep leaves them.
    pub logs_kept: bool,
}

/// A record with its file held locked: proof that its owner is this process, or is dead.
#[derive(Debug)]
pub(crate) struct HeldRecord {
    pub(crate) record: LabRecord,
    path: PathBuf,
    file: Flock<File>,
}

impl HeldRecord {
    /// Registers a new lab of this process.
    pub(crate) fn register(prefix: &str, purpose: &str, dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(REGISTRY).map_err(LabError::io(format!("make {REGISTRY}")))?;
        let pid = std::process::id();
        let record = LabRecord {
            prefix: prefix.to_owned(),
            purpose: purpose.to_owned(),
            pid,
            start_ticks: start_ticks(pid).unwrap_or(0),
            boot_id: boot_id(),
            dir: dir.to_owned(),
            net_cookies: BTreeSet::new(),
            logs_kept: false,
        };
        // Locked under another name first: at no moment does a sweep see the record without its lock.
        let draft = Path::new(REGISTRY).join(format!(".{prefix}.new"));
        let path = Path::new(REGISTRY).join(format!("{prefix}.json"));
        let doing = format!("register the lab in {}", path.display());
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&draft)
            .map_err(LabError::io(doing.clone()))?;
        let file = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, errno)| LabError::errno(doing.clone())(errno))?;
        let mut held = Self { record, path, file };
        held.save()?;
        std::fs::rename(&draft, &held.path).map_err(LabError::io(doing))?;
        Ok(held)
    }

    /// Takes the record of a dead owner's lab; `None` if the owner lives or the record is gone.
    pub(crate) fn take_over(path: &Path) -> Result<Option<Self>> {
        let doing = || format!("read {}", path.display());
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(gone) if gone.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(LabError::Io { doing: doing(), source }),
        };
        let Ok(mut file) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else { return Ok(None) };
        if file.metadata().map_err(LabError::io(doing()))?.nlink() == 0 {
            return Ok(None);
        }
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(LabError::io(doing()))?;
        let record = serde_json::from_str(&text).map_err(|why| LabError::Parse {
            command: doing(),
            why: why.to_string(),
            output: text.clone(),
        })?;
        Ok(Some(Self { record, path: path.to_owned(), file }))
    }

    /// Writes the record as it is now.
    pub(crate) fn save(&mut self) -> Result<()> {
        let doing = || format!("write {}", self.path.display());
        let text = serde_json::to_vec_pretty(&self.record)
            .map_err(|why| LabError::Io { doing: doing(), source: why.into() })?;
        let file: &mut File = &mut self.file;
        file.set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .and_then(|_| file.write_all(&text))
            .map_err(LabError::io(doing()))
    }

    /// Strikes the lab off the registry.
    pub(crate) fn forget(self) -> Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(LabError::Io { doing: format!("remove {}", self.path.display()), source })
            }
            _ => Ok(()),
        }
    }
}

/// The files of all registered labs.
pub(crate) fn registered() -> Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(REGISTRY) {
        Ok(entries) => entries,
        Err(none) if none.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(LabError::Io { doing: format!("list {REGISTRY}"), source }),
    };
    let mut paths: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    paths.sort();
    Ok(paths)
}

/// This boot's id.
pub(crate) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// When a process started, in clock ticks after boot.
fn start_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name may hold spaces and parentheses; the fields after its last ')' do not. The first of those is field 3.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}
