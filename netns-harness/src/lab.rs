//! The lab: it makes hosts, switches and cables, and takes all of it down.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::RngExt as _;

use crate::census;
use crate::error::{LabError, Result};
use crate::host::Host;
use crate::impair::Wire;
use crate::nat::{self, NatKind};
use crate::owner::HeldRecord;
use crate::switch::{self, Port, Switch};

/// How long killed processes may take to be gone.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many lines of each log are printed when a lab failed.
const TAIL: usize = 25;
/// Letters of a lab's prefix after `zt-`.
const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";

/// What a lab's parts share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) prefix: String,
    pub(crate) dir: PathBuf,
    record: Mutex<Option<HeldRecord>>,
    names: Mutex<BTreeSet<String>>,
    counter: AtomicUsize,
    /// Delayed cables; each is a thread of this process.
    pub(crate) wires: Mutex<Vec<Wire>>,
    passed: AtomicBool,
}

impl Shared {
    /// A number that this lab has not used yet.
    pub(crate) fn number(&self) -> usize {
        self.counter.fetch_add(1, Ordering::Relaxed)
    }

    /// Notes a network namespace, so that whoever cleans up finds who lives in it.
    pub(crate) fn note_network(&self, cookie: u64) -> Result<()> {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        match record.as_mut() {
            Some(held) => {
                held.record.net_cookies.insert(cookie);
                held.save()
            }
            None => Err(LabError::Foreign { what: "a new namespace".to_owned() }),
        }
    }

    fn take_name(&self, what: &'static str, name: &str) -> Result<()> {
        let usable = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
        let begins = name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
        if !begins || name.len() > LONGEST_NAME || !name.chars().all(usable) {
            return Err(LabError::BadName { what, name: name.to_owned(), longest: LONGEST_NAME });
        }
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.insert(name.to_owned()) {
            Ok(())
        } else {
            Err(LabError::NameTaken { what, name: name.to_owned() })
        }
    }
}

/// Longest name of a host or a switch, in bytes.
const LONGEST_NAME: usize = 40;

/// Virtual hosts and cables, and everything that runs on them.
#[derive(Debug)]
pub struct Lab {
    shared: Arc<Shared>,
    hosts: Mutex<Vec<Host>>,
}

/// Says clearly that root is missing, where it is.
///
/// # Errors
/// [`LabError::NotRoot`] with the command that helps.
pub fn require_root() -> Result<()> {
    let uid = nix::unistd::geteuid();
    if uid.is_root() {
        return Ok(());
    }
    let words: Vec<String> = std::env::args().collect();
    Err(LabError::NotRoot { uid: uid.as_raw(), command: words.join(" ") })
}

impl Lab {
    /// An empty lab. What dead owners left on the machine is removed first.
    ///
    /// # Errors
    /// [`LabError::NotRoot`], or the lab cannot be registered.
    pub fn new(purpose: &str) -> Result<Self> {
        require_root()?;
        crate::sweep()?;
        let letters = std::iter::repeat_with(|| {
            let at = rand::rng().random_range(0..LETTERS.len());
            char::from(LETTERS.get(at).copied().unwrap_or(b'a'))
        });
        let prefix: String = "zt-".chars().chain(letters.take(6)).collect();
        let dir = labs_dir().join(&prefix);
        std::fs::create_dir_all(dir.join("hosts"))
            .map_err(LabError::io(format!("make {}", dir.display())))?;
        let record = HeldRecord::register(&prefix, purpose, &dir)?;
        let shared = Arc::new(Shared {
            prefix,
            dir,
            record: Mutex::new(Some(record)),
            names: Mutex::default(),
            counter: AtomicUsize::new(0),
            wires: Mutex::default(),
            passed: AtomicBool::new(false),
        });
        Ok(Self { shared, hosts: Mutex::default() })
    }

    /// The lab's unique prefix, `zt-` and six characters.
    pub fn prefix(&self) -> &str {
        &self.shared.prefix
    }

    /// Where logs and captures are while the lab stands, and after a failure.
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// One more host, with nothing but `lo`.
    ///
    /// # Errors
    /// The name is unusable or taken, or the kernel refuses.
    pub fn host(&self, name: &str) -> Result<Host> {
        self.shared.take_name("host", name)?;
        let host = Host::start(&self.shared, name)?;
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner).push(host.clone());
        Ok(host)
    }

    /// One more switch for frames of up to 1,500 bytes.
    ///
    /// # Errors
    /// As [`Lab::host`].
    pub fn switch(&self, name: &str) -> Result<Switch> {
        self.switch_with_mtu(name, switch::DEFAULT_MTU)
    }

    /// One more switch for frames of up to `mtu` bytes.
    ///
    /// # Errors
    /// As [`Lab::host`], or the MTU is out of range.
    pub fn switch_with_mtu(&self, name: &str, mtu: u32) -> Result<Switch> {
        let host = self.host(&format!("switch-{name}"))?;
        Switch::start(host, mtu)
    }

    /// Plugs a host into a switch.
    ///
    /// # Errors
    /// The port's settings are out of range, its name is taken, or the kernel refuses.
    pub fn plug(&self, host: &Host, to: &Switch, port: Port) -> Result<()> {
        self.ours(host)?;
        self.ours(to.host())?;
        switch::plug(host, to, &port)
    }

    /// A router that hides everything behind `lan` behind its address on `wan`.
    ///
    /// # Errors
    /// As [`Lab::host`] and [`Lab::plug`].
    pub fn nat_router(
        &self,
        name: &str,
        kind: NatKind,
        (lan, lan_port): (&Switch, Port),
        (wan, wan_port): (&Switch, Port),
    ) -> Result<Host> {
        let router = self.host(name)?;
        self.plug(&router, lan, lan_port)?;
        let wan_name = wan_port.name().to_owned();
        self.plug(&router, wan, wan_port)?;
        nat::route(&router, kind, &wan_name)?;
        Ok(router)
    }

    /// Says that all went well: the logs are removed with the lab.
    pub fn passed(&self) {
        self.shared.passed.store(true, Ordering::Relaxed);
    }

    fn ours(&self, host: &Host) -> Result<()> {
        if Arc::ptr_eq(&self.shared, host.shared()) {
            Ok(())
        } else {
            Err(LabError::Foreign { what: format!("host {}", host.name()) })
        }
    }

    fn take_down(&self) -> Result<()> {
        self.shared.wires.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let record = self.shared.record.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut held) = record else { return Ok(()) };
        let (_, left) =
            census::kill_all(PATIENCE, || census::residents(&held.record.prefix, &held.record.net_cookies))?;
        if !left.is_empty() {
            eprintln!("lab {}: processes {left:?} would not die", self.shared.prefix);
        }
        for host in self.hosts.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            host.end();
        }
        let failed = std::thread::panicking() || !self.shared.passed.load(Ordering::Relaxed);
        if failed {
            print_logs(&self.shared.dir);
            held.record.logs_kept = true;
        } else {
            remove_dir(&self.shared.dir)?;
        }
        held.forget()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = self.take_down() {
            eprintln!("lab {}: {error}\n  hint: netns-harness sweep", self.shared.prefix);
        }
    }
}

/// Removes a lab's directory.
pub(crate) fn remove_dir(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(LabError::Io { doing: format!("remove {}", dir.display()), source })
        }
        _ => Ok(()),
    }
}

fn print_logs(dir: &Path) {
    eprintln!("\nthis lab failed; logs and captures are kept in {}", dir.display());
    let mut logs: Vec<PathBuf> = std::fs::read_dir(dir.join("logs"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    logs.sort();
    for log in logs {
        let text = std::fs::read(&log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        if let Some(end) = lines.get(lines.len().saturating_sub(TAIL)..).filter(|end| !end.is_empty()) {
            eprintln!("--- {}\n{}", log.file_name().unwrap_or_default().display(), end.join("\n"));
        }
    }
}

/// `target/lab` of the build that this program came from.
fn labs_dir() -> PathBuf {
    if let Some(target) = std::env::var_os("CARGO_TARGET_DIR") {
        return PathBuf::from(target).join("lab");
    }
    let exe = std::env::current_exe().unwrap_or_default();
    // Cargo marks its target directory so that backups leave it out.
    let target = exe.ancestors().find(|dir| dir.join("CACHEDIR.TAG").is_file()).map(Path::to_owned);
    target.unwrap_or_else(|| std::env::temp_dir().join("zt-target")).join("lab")
}
