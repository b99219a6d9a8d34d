//! TUN devices. One is made inside the container's namespace, where it stays. Making it in the host's and moving it would
//! cost a grace period of the kernel (some 16 ms), for every container. The price is that the descriptor keeps the
//! namespace alive when its last process has ended, so whoever holds it has to look whether the namespace's path is there.

use std::fs::OpenOptions;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;

/// Longest name of an interface in bytes (IFNAMSIZ less its end).
pub const MAX_IFNAME: usize = 15;

/// Why no TUN device could be made.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// There is no `/dev/net/tun`.
    #[error(
        "/dev/net/tun cannot be opened: {0}; load the module (`modprobe tun`), or give the agent access to the device"
    )]
    NoDevice(std::io::Error),
    /// The privilege is missing.
    #[error("a TUN device cannot be made: {0}; the agent needs CAP_NET_ADMIN: run it as root")]
    NotPermitted(std::io::Error),
    /// There is a device of this name that is no TUN device, or somebody holds it.
    #[error("an interface of this name is there already")]
    NameTaken,
    /// Anything else.
    #[error("a TUN device cannot be made: {0}")]
    Io(std::io::Error),
}

nix::ioctl_write_ptr_bad!(
    /// Makes a descriptor of `/dev/net/tun` a device (`TUNSETIFF`).
    tunsetiff,
    libc::TUNSETIFF,
    libc::ifreq
);

/// Makes a TUN device of this name in the caller's namespace. It lives as long as the descriptor.
///
/// # Errors
/// [`TunError`].
pub fn create(name: &str) -> Result<OwnedFd, TunError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")
        .map_err(TunError::NoDevice)?;
    // SAFETY: ifreq is a plain C structure for which all zeroes are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(MAX_IFNAME)) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the descriptor is open and the request outlives the call, which reads and writes nothing else.
    match unsafe { tunsetiff(file.as_raw_fd(), &request) } {
        Ok(_) => Ok(file.into()),
        Err(nix::Error::EPERM) => Err(TunError::NotPermitted(nix::Error::EPERM.into())),
        Err(nix::Error::EBUSY | nix::Error::EINVAL | nix::Error::EEXIST) => Err(TunError::NameTaken),
        Err(error) => Err(TunError::Io(error.into())),
    }
}

/// Whether TUN devices can be made, tried once as the agent starts.
///
/// # Errors
/// [`TunError`] that says what is missing.
pub fn check() -> Result<(), TunError> {
    create(&format!("znc{:08x}", rand::random::<u32>())).map(drop)
}
