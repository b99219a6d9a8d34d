//! A network's sockets, as its packet logic sees them.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use znet_core::id::ContainerId;
use znet_core::key::PublicKey;

use super::Clock;
use crate::io::udp::Udp;
use crate::net::{Outbox, Underlay};

/// Who is told of sessions that begin.
pub type Began = Box<dyn Fn(ContainerId, &PublicKey) + Send + Sync>;

/// The sockets of a port. They can be exchanged for those of another port.
pub struct Sockets {
    bound: RwLock<Vec<Arc<Udp>>>,
    clock: Arc<Clock>,
    began: Option<Began>,
}

impl Sockets {
    /// Sends through these.
    pub fn new(bound: Vec<Arc<Udp>>, clock: Arc<Clock>, began: Option<Began>) -> Self {
        Self { bound: RwLock::new(bound), clock, began }
    }

    /// The sockets.
    pub fn bound(&self) -> Vec<Arc<Udp>> {
        self.bound.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends through others from now on; returns the old ones.
    pub fn exchange(&self, bound: Vec<Arc<Udp>>) -> Vec<Arc<Udp>> {
        std::mem::replace(&mut *self.bound.write().unwrap_or_else(PoisonError::into_inner), bound)
    }

    /// The port that peers send to; 0 without sockets.
    pub fn port(&self) -> u16 {
        self.bound().first().map_or(0, |udp| udp.port())
    }
}

impl Underlay for Sockets {
    fn send(&self, outbox: &Outbox) {
        // The first of each family: several share a port to receive, and each of them could send.
        let bound = self.bound.read().unwrap_or_else(PoisonError::into_inner);
        for v4 in [true, false] {
            if outbox.runs().any(|(run, _)| run.path.remote.is_ipv4() == v4)
                && let Some(udp) = bound.iter().find(|udp| udp.is_v4() == v4)
            {
                udp.send(outbox);
            }
        }
    }

    fn began(&self, device: ContainerId, peer: &PublicKey) {
        if let Some(began) = &self.began {
            began(device, peer);
        }
    }

    fn due_earlier(&self, at: Instant) {
        self.clock.due(at);
    }
}
