//! The thread that attends to the kernel's devices: it hears who knocks and who is wanted, and looks at each device now and
//! then. It ends when nobody holds the state any more.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::EventFd;
use nix::sys::time::TimeSpec;
use znet_core::plan::DeviceKey;

use super::state::State;
use super::waker::{self, Waker};
use crate::host::packet::Tap;

/// The longest sleep.
const SLEEP: Duration = Duration::from_secs(2);
/// Knocks that are looked at before something else is.
const KNOCKS_AT_ONCE: usize = 64;

/// Starts it in the host's namespace.
pub(super) fn start(state: &Arc<Mutex<State>>, wake: &Arc<EventFd>) -> io::Result<()> {
    let tap = Tap::open()?;
    let (state, wake) = (Arc::downgrade(state), wake.clone());
    std::thread::Builder::new().name("attendant".to_owned()).spawn(move || attend(&state, &wake, &tap))?;
    Ok(())
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn attend(state: &Weak<Mutex<State>>, wake: &EventFd, tap: &Tap) {
    loop {
        let (wakers, next) = {
            let Some(state) = state.upgrade() else { return };
            let state = lock(&state);
            (state.wakers(), state.next_look())
        };
        let ready = wait(&wakers, next, wake, tap);
        let Some(state) = state.upgrade() else { return };
        let _ = wake.read();
        for knock in std::iter::from_fn(|| tap.next()).take(KNOCKS_AT_ONCE) {
            if let Err(error) = lock(&state).knocked(&knock) {
                tracing::warn!(%error, "a peer that knocked could not be told");
            }
        }
        for (key, waker) in ready {
            serve(&state, *key, waker);
        }
        lock(&state).look(Instant::now());
    }
}

/// Waits until something is to be done. Returns the wakers that have packets, or have ended.
fn wait<'a>(
    wakers: &'a [(DeviceKey, Arc<Waker>)],
    next: Option<Instant>,
    wake: &EventFd,
    tap: &Tap,
) -> impl Iterator<Item = &'a (DeviceKey, Arc<Waker>)> {
    let fixed = [wake.as_fd(), tap.as_fd()];
    let all = fixed.into_iter().chain(wakers.iter().map(|(_, waker)| waker.as_fd()));
    let mut fds: Vec<PollFd<'_>> = all.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    let sleep = next.map_or(SLEEP, |at| at.saturating_duration_since(Instant::now()).min(SLEEP));
    if ppoll(&mut fds, Some(TimeSpec::from_duration(sleep)), None).is_err() {
        // Interrupted, or out of memory: all are looked at, none too often.
        std::thread::sleep(Duration::from_millis(1));
    }
    let ready: Vec<bool> =
        fds.iter().skip(fixed.len()).map(|fd| fd.revents().is_some_and(|got| !got.is_empty())).collect();
    wakers.iter().zip(ready).filter_map(|(waker, ready)| ready.then_some(waker))
}

fn serve(state: &Mutex<State>, key: DeviceKey, waker: &Waker) {
    let ended = waker.read(|packet| {
        if let Err(error) = lock(state).wanted(key, packet) {
            tracing::warn!(container = %key.container, %error, "a peer that is wanted could not be told");
        }
    });
    if ended == waker::State::Gone {
        lock(state).lost_waker(key);
    }
}
