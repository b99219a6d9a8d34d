//! The data thread: waits for packets, moves a batch of each source, lets sessions see the time.

use std::io::ErrorKind;
use std::os::fd::AsFd as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollTimeout};
use znet_core::id::{ContainerId, NetworkId};

use super::state::{Source, State};
use crate::net::MAX_PACKET;

/// Most packets that are taken from one source before the others have their turn.
const BATCH: usize = 64;
/// Most sources that one wait reports.
const EVENTS: usize = 128;
/// How often sessions see the time: the precision that boringtun's timers need.
const TICK: Duration = Duration::from_millis(250);

pub(super) fn epoll() -> std::io::Result<Epoll> {
    Ok(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?)
}

/// Moves packets for as long as the process lives.
pub(super) fn run(state: &Mutex<State>, epoll: &Epoll) {
    let mut events = [EpollEvent::empty(); EVENTS];
    let mut buffer = vec![0u8; MAX_PACKET + 1];
    let mut next_tick = Instant::now() + TICK;
    let mut next_retry = None;
    loop {
        let wake = next_retry.map_or(next_tick, |retry: Instant| retry.min(next_tick));
        let wait = wake.saturating_duration_since(Instant::now());
        let timeout =
            EpollTimeout::try_from(wait.as_millis().min(1_000) as i32 + 1).unwrap_or(EpollTimeout::ZERO);
        let ready = match epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            // Nothing else can happen to a descriptor that is ours and open.
            Err(error) => panic_without_poll(error),
        };
        let mut state = lock(state);
        let state = &mut *state;
        let now = Instant::now();
        for event in events.iter().take(ready) {
            match state.sources.get(&event.data()).copied() {
                Some(Source::Tun(network, device)) => {
                    drain_tun(state, network, device, &mut buffer, now);
                }
                Some(Source::Udp4(network)) => drain_udp(state, network, true, &mut buffer, now),
                Some(Source::Udp6(network)) => drain_udp(state, network, false, &mut buffer, now),
                None => {}
            }
        }
        next_retry = None;
        for served in state.networks.values_mut() {
            let (network, mut sink) = served.split(&mut state.sessions);
            network.retry(now, &mut sink);
            next_retry = next_retry.into_iter().chain(network.next_retry()).min();
        }
        if now >= next_tick {
            next_tick = now + TICK;
            for served in state.networks.values_mut() {
                let (network, mut sink) = served.split(&mut state.sessions);
                network.tick(now, &mut sink);
            }
            state.tidy_sessions();
        }
    }
}

/// Takes the lock. A thread that panics ends the process, so a poisoned lock is never seen.
pub(super) fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn panic_without_poll(error: Errno) -> ! {
    tracing::error!(%error, "the poll descriptor failed; the agent will start a new engine");
    std::process::exit(102)
}

fn drain_tun(state: &mut State, id: NetworkId, device: ContainerId, buffer: &mut [u8], now: Instant) {
    for _ in 0..BATCH {
        let Some(served) = state.networks.get_mut(&id) else { return };
        let Some(ports) = served.ports.get(&device) else { return };
        match nix::unistd::read(ports.tun.as_fd(), buffer) {
            Ok(len) => {
                let (network, mut sink) = served.split(&mut state.sessions);
                network.from_tun(device, buffer.get(..len).unwrap_or_default(), now, &mut sink);
            }
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return,
            Err(error) => {
                let fd = super::state::describe(ports);
                tracing::info!(network = %id, container = %device, fd, %error, "the TUN device is gone");
                state.device_gone(id, device);
                return;
            }
        }
    }
}

fn drain_udp(state: &mut State, id: NetworkId, v4: bool, buffer: &mut [u8], now: Instant) {
    let Some(served) = state.networks.get_mut(&id) else { return };
    for _ in 0..BATCH {
        let socket = if v4 { &served.udp4 } else { &served.udp6 };
        let Some(socket) = socket else { return };
        match socket.recv_from(buffer) {
            Ok((len, from)) => {
                let (network, mut sink) = served.split(&mut state.sessions);
                network.from_udp(from, buffer.get(..len).unwrap_or_default(), now, &mut sink);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            // An ICMP error of an earlier datagram (nobody listens there) is reported on the next call: read on.
            Err(_) => {}
        }
    }
}
