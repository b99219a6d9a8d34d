//! The signals that end the process, as something to wait on beside packets: no handler runs in between.

use std::io::Result;
use std::os::fd::OwnedFd;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// The signals that ask the process to end: the service manager's, and the terminal's.
const TERMINATION: [Signal; 2] = [Signal::SIGTERM, Signal::SIGINT];

/// A descriptor that becomes readable when SIGTERM or SIGINT arrives; one is enough, there is nothing to read
/// out. The calling thread and all it starts from now on are no longer ended by them: call this before the
/// first thread is made, or one that does not block them will take them.
///
/// # Errors
/// The operating system gives no descriptor.
pub fn termination() -> Result<OwnedFd> {
    let signals = SigSet::from_iter(TERMINATION);
    signals.thread_block()?;
    Ok(SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::fd::AsFd as _;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    #[test]
    fn a_signal_is_waited_for_like_a_packet() {
        let descriptor = termination().unwrap();
        let readable = || {
            let mut descriptors = [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)];
            poll(&mut descriptors, PollTimeout::ZERO).unwrap() == 1
        };
        assert!(!readable());
        // To this thread alone: others of the harness do not block it.
        // SAFETY: `pthread_self` is this thread, which lives; the signal is blocked and runs no handler.
        assert_eq!(unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGTERM) }, 0);
        assert!(readable());
    }
}
