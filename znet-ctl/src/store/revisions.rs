//! Tells who waits for a network's next revision.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;
use znet_core::id::{NetworkId, Revision};

/// The newest known revision of each network that somebody asked about.
#[derive(Debug, Default)]
pub(super) struct Revisions(Mutex<HashMap<NetworkId, watch::Sender<Revision>>>);

impl Revisions {
    /// A receiver that sees every later revision. It begins with the newest one announced, or zero.
    pub(super) fn subscribe(&self, network: NetworkId) -> watch::Receiver<Revision> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(network).or_insert_with(|| watch::Sender::new(Revision::ZERO)).subscribe()
    }

    /// Announces a committed revision.
    pub(super) fn announce(&self, network: NetworkId, revision: Revision) {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = all.get(&network) {
            sender.send_if_modified(|newest| {
                let newer = revision > *newest;
                *newest = revision.max(*newest);
                newer
            });
        }
    }

    /// Ends the receivers of a network that is gone.
    pub(super) fn forget(&self, network: &NetworkId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(network);
    }
}
