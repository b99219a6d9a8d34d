//! Sockets that the agent makes and the engine uses: a network's UDP port, and the sockets that `wg(8)` looks for.

use std::fs::{self, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use znet_wg::io::udp;

/// Where `wg(8)` looks for the sockets of user-space devices.
pub const WIREGUARD_DIR: &str = "/var/run/wireguard";
/// How the names of znet's devices begin.
pub const DEVICE_PREFIX: &str = "zn";
/// How many ports are tried after the one wanted.
pub const PORTS_TRIED: u16 = 64;
/// How many are tried where a node may have a port for each container.
const PORTS_BEYOND: u16 = 8_192;

/// Why a port could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Every port tried is in use.
    #[error("no UDP port from {from} on is free ({why}); choose another with --listen-port")]
    NoPort {
        /// The first tried.
        from: u16,
        /// What the last one said.
        why: std::io::Error,
    },
    /// The socket for `wg(8)` cannot be made.
    #[error("the socket {path} cannot be made: {source}")]
    Wg {
        /// Its path.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
}

/// Binds a network's port, on IPv4 and, where the host has it, on IPv6.
///
/// # Errors
/// [`SocketError::NoPort`].
pub fn bind_port(wanted: u16) -> Result<(u16, Vec<OwnedFd>), SocketError> {
    let mut last = std::io::Error::from(std::io::ErrorKind::AddrInUse);
    for port in (0..PORTS_TRIED).filter_map(|n| wanted.checked_add(n)) {
        match udp::bind(port, udp::Options::default()) {
            Ok(bound) => return Ok(bound),
            Err(error) => last = error,
        }
    }
    Err(SocketError::NoPort { from: wanted, why: last })
}

/// As [`bind_port`], but looks further: the kernel's devices, each of which has a port, may have all that are near.
///
/// # Errors
/// [`SocketError::NoPort`].
pub fn bind_port_beyond(wanted: u16) -> Result<(u16, Vec<OwnedFd>), SocketError> {
    let further = (1..PORTS_BEYOND / PORTS_TRIED).filter_map(|n| wanted.checked_add(n * PORTS_TRIED));
    bind_port(wanted).or_else(|none| further.filter_map(|port| bind_port(port).ok()).next().ok_or(none))
}

/// Makes the socket on which the engine answers `wg(8)` for a device.
///
/// # Errors
/// [`SocketError::Wg`].
pub fn wg_listener(device: &str) -> Result<UnixListener, SocketError> {
    let path = wg_path(device);
    let wg = |source| SocketError::Wg { path: path.clone(), source };
    fs::create_dir_all(WIREGUARD_DIR).map_err(wg)?;
    remove(&path).map_err(wg)?;
    let listener = UnixListener::bind(&path).map_err(wg)?;
    fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(wg)?;
    Ok(listener)
}

/// Removes the socket of a device that is gone.
pub fn remove_wg_socket(device: &str) {
    let _ = remove(&wg_path(device));
}

/// Removes the sockets of devices that died with their engine: nobody answers there any more.
pub fn remove_dead_wg_sockets() {
    let Ok(entries) = fs::read_dir(WIREGUARD_DIR) else { return };
    for entry in entries.flatten() {
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(DEVICE_PREFIX));
        let refused = || {
            let error = std::os::unix::net::UnixStream::connect(entry.path()).err();
            error.is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
        };
        if ours && refused() {
            let _ = remove(&entry.path());
        }
    }
}

fn wg_path(device: &str) -> PathBuf {
    Path::new(WIREGUARD_DIR).join(format!("{device}.sock"))
}

fn remove(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
