//! When the worker that keeps the time has to wake, for all networks.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::net::{Lane, Network};

/// Keeps the networks and the time at which the next of their sessions has to be looked at.
pub struct Clock {
    networks: Mutex<Vec<Arc<Network>>>,
    event: EventFd,
    origin: Instant,
    /// Microseconds after the origin at which the worker means to look next; 0 while it looks.
    wakes: AtomicU64,
}

impl Clock {
    pub(super) fn new() -> io::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Self { networks: Mutex::default(), event, origin: Instant::now(), wakes: AtomicU64::new(0) })
    }

    /// Looks after the sessions of a network from now on.
    pub fn add(&self, network: Arc<Network>) {
        self.networks.lock().unwrap_or_else(PoisonError::into_inner).push(network);
        self.nudge();
    }

    /// Looks after them no longer.
    pub fn remove(&self, network: &Arc<Network>) {
        let mut networks = self.networks.lock().unwrap_or_else(PoisonError::into_inner);
        networks.retain(|held| !Arc::ptr_eq(held, network));
    }

    /// A session has to be looked at at this time: wakes the worker in time if it would sleep longer.
    pub fn due(&self, at: Instant) {
        if self.micros(at) < self.wakes.load(Ordering::SeqCst) {
            self.nudge();
        }
    }

    pub(super) fn event(&self) -> &EventFd {
        &self.event
    }

    /// Looks at what is due, and returns when it has to be called again, unless it is nudged earlier; `None` for never.
    pub(super) fn run(&self, lane: &mut Lane, now: Instant) -> Option<Instant> {
        self.wakes.store(0, Ordering::SeqCst);
        let networks = self.networks.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for network in &networks {
            if network.next_due().is_some_and(|at| at <= now) {
                network.run_due(lane, now);
            }
        }
        // What is scheduled after this line and before the worker sleeps nudges it.
        self.wakes.store(u64::MAX, Ordering::SeqCst);
        let next = networks.iter().filter_map(|network| network.next_due()).min();
        if let Some(next) = next {
            self.wakes.store(self.micros(next), Ordering::SeqCst);
        }
        next
    }

    fn nudge(&self) {
        let _ = self.event.write(1);
    }

    fn micros(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.origin).as_micros()).unwrap_or(u64::MAX)
    }
}
