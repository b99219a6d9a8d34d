//! What strangers may cost: a budget of handshake initiations, and what of them is remembered for a moment.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use znet_core::key::PublicKey;

use super::early::{Early, Initiation};
use crate::control::NetworkStats;

/// Handshake messages a second that one network processes: each costs a quarter of a millisecond. A part is kept for
/// endpoints that the directory knows.
pub const INITIATIONS_PER_SECOND: u32 = 2_000;
/// Of these, what strangers' endpoints may use.
const INITIATIONS_FROM_STRANGERS: u32 = 500;
/// Beyond these, what may come from who proved to be where it says it is, which is asked of everybody then.
const INITIATIONS_PROVED: u32 = 1_000;
/// Keyed MACs a second that telling for which of the local keys a message is may cost, each a third of a microsecond.
const MACS_PER_SECOND: u32 = 100_000;

/// Who sent a handshake message, as far as that is known before it is processed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sender {
    /// It came from an address where the directory has a peer.
    Known,
    /// It came from another.
    Stranger,
    /// It came from where it says.
    Proved,
}

/// What handshake messages may still cost within the current second.
struct Budget {
    since: Instant,
    macs: u32,
    all: u32,
    strangers: u32,
    proved: u32,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Self { since: now, macs: 0, all: 0, strangers: 0, proved: 0 }
    }

    fn begin_second(&mut self, now: Instant) {
        if now.duration_since(self.since) >= Duration::from_secs(1) {
            *self = Self::new(now);
        }
    }

    fn admits_macs(&mut self, macs: u32, now: Instant) -> bool {
        self.begin_second(now);
        self.macs = self.macs.saturating_add(macs);
        self.macs <= MACS_PER_SECOND
    }

    fn admits(&mut self, sender: Sender, now: Instant) -> bool {
        self.begin_second(now);
        let (all, strangers, proved) = (self.all, self.strangers, self.proved);
        match sender {
            Sender::Proved if proved < INITIATIONS_PROVED => self.proved += 1,
            Sender::Known if all < INITIATIONS_PER_SECOND => self.all += 1,
            Sender::Stranger if all < INITIATIONS_PER_SECOND && strangers < INITIATIONS_FROM_STRANGERS => {
                self.all += 1;
                self.strangers += 1;
            }
            _ => return false,
        }
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
            inner: Mutex::new((Budget::new(now), Early::new())),
            drop_malformed: AtomicU64::new(0),
            drop_no_session: AtomicU64::new(0),
            drop_stranger: AtomicU64::new(0),
            drop_budget: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, (Budget, Early)> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a message may be tried against so many local keys.
    pub(super) fn admits_macs(&self, keys: usize, now: Instant) -> bool {
        self.lock().0.admits_macs(u32::try_from(keys).unwrap_or(u32::MAX), now)
    }

    /// Whether one more handshake message may be processed.
    pub(super) fn admits(&self, sender: Sender, now: Instant) -> bool {
        self.lock().0.admits(sender, now)
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
