//! What is compared, and where its program is.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::Serialize;
use znet_tests::program;

/// Where `./x` puts the peers that come as crates; from the workspace's root.
const CRATES: &str = "target/bench/peers/bin";
/// Where our own program is when this one was built elsewhere.
const OURS: &str = "target/release";
/// Where Debian puts programs that root uses, beside `PATH`.
const SYSTEM: &str = "/usr/sbin:/sbin";

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
pub(super) enum Subject {
    #[value(name = "znet-wg", help = "this project's user-space WireGuard")]
    #[serde(rename = "znet-wg")]
    Ours,
    #[value(name = "boringtun-1", help = "boringtun-cli with 1 thread")]
    #[serde(rename = "boringtun-1")]
    Boringtun1,
    #[value(name = "boringtun-2", help = "boringtun-cli with 2 threads")]
    #[serde(rename = "boringtun-2")]
    Boringtun2,
    #[value(name = "boringtun-4", help = "boringtun-cli with 4 threads")]
    #[serde(rename = "boringtun-4")]
    Boringtun4,
    #[value(name = "gotatun", help = "gotatun-cli")]
    #[serde(rename = "gotatun")]
    Gotatun,
    #[value(name = "wireguard-go", help = "Debian's wireguard-go")]
    #[serde(rename = "wireguard-go")]
    WireguardGo,
    #[value(name = "nebula", help = "Debian's nebula, with AES")]
    #[serde(rename = "nebula")]
    Nebula,
    #[value(name = "veth", help = "the bare veth, without a tunnel: a limit")]
    #[serde(rename = "veth")]
    Veth,
    #[value(name = "aead", help = "ChaCha20-Poly1305 alone, as boringtun has it here, on one core: a limit")]
    #[serde(rename = "aead")]
    Aead,
}

impl Subject {
    /// boringtun-cli; in each metric its best number of threads counts.
    pub(super) const BORINGTUN: [Self; 3] = [Self::Boringtun1, Self::Boringtun2, Self::Boringtun4];
    /// Everything that ours is compared to.
    pub(super) const PEERS: [Self; 6] = [
        Self::Boringtun1,
        Self::Boringtun2,
        Self::Boringtun4,
        Self::Gotatun,
        Self::WireguardGo,
        Self::Nebula,
    ];

    /// Its name, as on the command line.
    pub(super) fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// The program of its data plane, and the words that make it run in the foreground for the device `ifname`. None where there
    /// is no program, or it is set up in a way of its own.
    pub(super) fn wireguard_command(self, ifname: &str) -> Option<Vec<String>> {
        let (program, args): (&str, &[&str]) = match self {
            Self::Ours => ("znet-wg", &[]),
            Self::Boringtun1 => ("boringtun-cli", &["--disable-drop-privileges", "-t", "1"]),
            Self::Boringtun2 => ("boringtun-cli", &["--disable-drop-privileges", "-t", "2"]),
            Self::Boringtun4 => ("boringtun-cli", &["--disable-drop-privileges", "-t", "4"]),
            Self::Gotatun => ("gotatun", &["--disable-drop-privileges", "-v", "error"]),
            Self::WireguardGo => ("wireguard-go", &[]),
            Self::Nebula | Self::Veth | Self::Aead => return None,
        };
        let words = [program].into_iter().chain(args.iter().copied()).chain(["-f", ifname]);
        Some(words.map(str::to_owned).collect())
    }

    /// Programs that it cannot do without.
    fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Ours => &["znet-wg", "wg"],
            Self::Boringtun1 | Self::Boringtun2 | Self::Boringtun4 => &["boringtun-cli", "wg"],
            Self::Gotatun => &["gotatun", "wg"],
            Self::WireguardGo => &["wireguard-go", "wg"],
            Self::Nebula => &["nebula", "nebula-cert"],
            Self::Veth | Self::Aead => &[],
        }
    }

    /// The first of its programs that is nowhere to be found, if any.
    pub(super) fn missing(self) -> Option<&'static str> {
        self.programs().iter().copied().find(|program| find(program).is_none())
    }
}

/// The absolute path of a program: beside this one, among the peers that `./x` installed, or on the machine.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    if let Ok(beside) = program(name) {
        return Some(beside);
    }
    let here = std::env::current_dir().ok()?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_machine: Vec<PathBuf> =
        std::env::split_paths(&path).chain(SYSTEM.split(':').map(PathBuf::from)).collect();
    let directories = [here.join(OURS), here.join(CRATES)].into_iter().chain(on_machine);
    directories.map(|directory| directory.join(name)).find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}
