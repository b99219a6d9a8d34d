//! The programs, and where they are.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::{Result, program};

/// Another path of our own program than that of the same build.
const OURS: &str = "ZNET_WG";
/// Another directory of the peers that come as crates than that of `./x`.
const PEERS: &str = "ZNET_PEERS";
/// Where Debian puts programs that root uses, beside `PATH`.
const SYSTEM: &str = "/usr/sbin:/sbin";

/// A user-space WireGuard program. All take `-f NAME` and then serve `/run/wireguard/NAME.sock`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireGuard {
    /// This project's.
    Znet,
    /// This project's as on a machine of four processors: several sockets share a port, and several queues a device.
    ZnetWide,
    /// `boringtun-cli`. It panics when a peer that it has is told anything: each peer can be set once only.
    Boringtun,
    /// `gotatun`.
    Gotatun,
    /// `wireguard-go`.
    WireguardGo,
}

impl WireGuard {
    /// Its program's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Znet | Self::ZnetWide => "znet-wg",
            Self::Boringtun => "boringtun-cli",
            Self::Gotatun => "gotatun",
            Self::WireguardGo => "wireguard-go",
        }
    }

    /// Words before `-f NAME`, and the environment, by which it keeps its privileges and logs what a failed test needs.
    pub(super) fn settings(self) -> (&'static [&'static str], &'static [(&'static str, &'static str)]) {
        match self {
            Self::Znet | Self::WireguardGo => (&[], &[("LOG_LEVEL", "verbose")]),
            Self::ZnetWide => (&["--threads", "4"], &[("LOG_LEVEL", "verbose")]),
            Self::Boringtun | Self::Gotatun => (&["--disable-drop-privileges", "-v", "info"], &[]),
        }
    }

    /// The path of its program.
    ///
    /// # Errors
    /// It is missing; the error says what helps.
    pub fn path(self) -> Result<PathBuf> {
        match self {
            Self::Znet | Self::ZnetWide => match std::env::var_os(OURS) {
                Some(path) => Ok(PathBuf::from(path)),
                None => program(self.name()),
            },
            Self::Boringtun | Self::Gotatun => {
                let path = peers().join(self.name());
                if is_program(&path) {
                    return Ok(path);
                }
                bail!("{} is missing\n  hint: run ./x test, which builds it", path.display())
            }
            Self::WireguardGo => installed(self.name()),
        }
    }
}

/// The directory of the peers that come as crates.
fn peers() -> PathBuf {
    std::env::var_os(PEERS).map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench/peers/bin"),
        PathBuf::from,
    )
}

fn installed(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(std::env::split_paths(OsStr::new(SYSTEM)));
    let found = directories.map(|directory| directory.join(name)).find(|path| is_program(path));
    found.with_context(|| {
        format!("the program `{name}` is not installed\n  hint: run ./x test, which installs it")
    })
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}
