//! What strangers may cost: a budget of handshake initiations, and what of them is remembered for a moment.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use znet_core::key::PublicKey;

use super::early::{Early, Initiation};
use crate::control::NetworkStats;

/// Handshake initiations a second that one network looks at: each costs a keyed MAC for every local key, and a
/// quarter of a millisecond when it is for one of them. A part is kept for endpoints that the directory knows.
pub const INITIATIONS_PER_SECOND: u32 = 2_000;
/// Of these, what strangers' endpoints may use.
const INITIATIONS_FROM_STRANGERS: u32 = 500;

/// What initiations may still cost within the current second.
struct Budget {
    since: Instant,
    all: u32,
    strangers: u32,
}

impl Budget {
    fn admits(&mut self, known: bool, now: Instant) -> bool {
        if now.duration_since(self.since) >= Duration::from_secs(1) {
            *self = Self { since: now, all: 0, strangers: 0 };
        }
        if self.all >= INITIATIONS_PER_SECOND || (!known && self.strangers >= INITIATIONS_FROM_STRANGERS) {
            return false;
        }
        self.all += 1;
        self.strangers += u32::from(!known);
        true
    }
}

/// What comes in on a network's port before it is known whose it is.
pub(super) struct Gate {
    inner: Mutex<(Budget, Early)>,
    pub(super) drop_malformed: AtomicU64,
    pub(super) drop_no_session: AtomicU64,
    pub(super) drop_stranger: AtomicU64,
    pub(super) drop_budget: AtomicU64,
}

impl Gate {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            inner: Mutex::new((Budget { since: now, all: 0, strangers: 0 }, Early::new())),
            drop_malformed: AtomicU64::new(0),
            drop_no_session: AtomicU64::new(0),
            drop_stranger: AtomicU64::new(0),
            drop_budget: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, (Budget, Early)> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one more initiation may be looked at.
    pub(super) fn admits(&self, known: bool, now: Instant) -> bool {
        self.lock().0.admits(known, now)
    }

    /// Keeps an initiation whose sender is not known yet.
    pub(super) fn keep(&self, key: PublicKey, from: SocketAddr, datagram: &[u8], now: Instant) {
        self.lock().1.keep(key, from, datagram, now);
    }

    /// Takes out what these senders sent.
    pub(super) fn take(&self, keys: &[PublicKey], now: Instant) -> Vec<Initiation> {
        self.lock().1.take(keys, now)
    }

    pub(super) fn stats(&self) -> NetworkStats {
        NetworkStats {
            drop_malformed: self.drop_malformed.load(Ordering::Relaxed),
            drop_no_session: self.drop_no_session.load(Ordering::Relaxed),
            drop_stranger: self.drop_stranger.load(Ordering::Relaxed),
            drop_budget: self.drop_budget.load(Ordering::Relaxed),
        }
    }
}
