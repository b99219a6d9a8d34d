//! TAP devices: a switch port whose wire is a file descriptor.
//!
//! The kernel asks nothing of the far end, so a frame read here is a plain one: segmented and with its checksum filled in. The device goes
//! with its descriptor, so a killed owner leaves none behind.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use crate::error::{LabError, Result};

nix::ioctl_write_ptr_bad!(
    /// Names a TUN descriptor's device and makes it.
    tun_set_iff,
    nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
    libc::ifreq
);

/// Makes the TAP device `name` in the calling thread's network namespace. The descriptor does not block.
pub(crate) fn open_tap(name: &str) -> Result<File> {
    let doing = || format!("make the TAP device {name}");
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .map_err(LabError::io("open /dev/net/tun"))?;
    // SAFETY: ifreq is plain data for which all zeroes is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(LabError::BadName { what: "device", name: name.to_owned(), longest: libc::IFNAMSIZ - 1 });
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the descriptor is open and `request` is a live, NUL-terminated ifreq.
    unsafe { tun_set_iff(device.as_raw_fd(), &raw const request) }.map_err(LabError::errno(doing()))?;
    Ok(device)
}
