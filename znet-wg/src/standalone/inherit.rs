//! Descriptors that the caller opened and named by number (`WG_TUN_FD`, `WG_UAPI_FD`).

use std::io::{Error, Result};
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};

/// The lowest number for the duplicate: above the standard streams.
const LOWEST: RawFd = 3;

/// A descriptor of our own for what `number` is open on. The number itself stays the caller's: nobody here
/// knows who else uses it. Call this before the process opens anything itself, or a wrong number may name
/// something of ours.
///
/// # Errors
/// `EBADF`: nothing is open under this number.
pub fn duplicate(number: RawFd) -> Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC takes numbers and touches no memory of ours; it answers EBADF for a number that
    // is not open.
    let own = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, LOWEST) };
    if own < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: the kernel made this descriptor just now, and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(own) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::{Read as _, Seek as _, Write as _};
    use std::os::fd::AsRawFd as _;

    use super::*;

    #[test]
    fn the_duplicate_is_the_same_file() {
        let mut file = tempfile::tempfile().unwrap();
        let mut own = std::fs::File::from(duplicate(file.as_raw_fd()).unwrap());
        own.write_all(b"x").unwrap();
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
    }

    #[test]
    fn a_number_that_is_not_open_is_an_error() {
        for number in [-1, RawFd::MAX] {
            assert_eq!(duplicate(number).unwrap_err().raw_os_error(), Some(libc::EBADF));
        }
    }
}
