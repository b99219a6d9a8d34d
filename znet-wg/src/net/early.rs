//! Initiations that came before their sender was known.
//!
//! A container that was just attached speaks to the others at once, and some of their nodes learn of it a few
//! milliseconds later. Its initiations are kept for a moment, in a place whose size is fixed, and processed when the
//! directory names it. Only what comes from an underlay address that the directory knows gets in.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use znet_core::key::PublicKey;

/// Most initiations that are kept; a newer one takes the place of the oldest.
pub(super) const EARLY: usize = 256;
/// For how long they are.
const KEPT: Duration = Duration::from_secs(1);
/// Length of a handshake initiation in bytes (white paper, section 5.4.2).
pub(super) const INITIATION_LEN: usize = 148;

/// An initiation and where it came from.
pub(super) struct Initiation {
    key: PublicKey,
    at: Instant,
    pub(super) from: SocketAddr,
    pub(super) datagram: [u8; INITIATION_LEN],
}

/// The initiations of a network that wait for their sender to be known.
pub(super) struct Early(VecDeque<Initiation>);

impl Early {
    pub(super) fn new() -> Self {
        Self(VecDeque::with_capacity(EARLY))
    }

    /// Keeps an initiation of this sender.
    pub(super) fn keep(&mut self, key: PublicKey, from: SocketAddr, datagram: &[u8], now: Instant) {
        let Ok(datagram) = datagram.try_into() else { return };
        if self.0.len() >= EARLY {
            self.0.pop_front();
        }
        self.0.push_back(Initiation { key, at: now, from, datagram });
    }

    /// Takes out what these senders sent, as far as it is recent.
    pub(super) fn take(&mut self, keys: &[PublicKey], now: Instant) -> Vec<Initiation> {
        let kept = self.0.len();
        let mut taken = Vec::new();
        for _ in 0..kept {
            let Some(initiation) = self.0.pop_front() else { break };
            if now.duration_since(initiation.at) > KEPT {
                continue;
            }
            if keys.contains(&initiation.key) {
                taken.push(initiation);
            } else {
                self.0.push_back(initiation);
            }
        }
        taken
    }
}
