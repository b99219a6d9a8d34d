//! Seeing to it that every network's map says where its controllers are and by which keys they are known, and that a change of the
//! TLS key goes on by itself, also where the process was killed in the middle of it.
//!
//! Controllers that share a store put themselves into the list, once for each start: what an operator takes out stays out
//! until a controller that advertises it starts again. One controller alone leaves the list to the operator, until its key
//! changes. Keys are kept up to date in whatever list there is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use znet_core::controller::Command;
use znet_core::id::{NetworkId, Pin, Revision};

use super::{Hub, TlsStep};
use crate::actor::Actor;
use crate::network::Hosted;

/// How long to wait before what could not be done is tried again, and before nodes are asked again what they know.
const RETRY: Duration = Duration::from_millis(500);
/// The longest wait for the time at which a key is given up, so that a clock that is set is noticed.
const LONGEST: Duration = Duration::from_secs(60);

/// What this process has seen to.
#[derive(Debug, Default)]
pub(super) struct Tended {
    /// The networks into which it has put itself.
    introduced: BTreeSet<NetworkId>,
    /// The revision at which a network's map was seen to have these keys.
    published: BTreeMap<NetworkId, (Vec<Pin>, Revision)>,
}

/// Tends until the hub is gone. Looks again whenever it is woken.
pub(super) async fn run(hub: Weak<Hub>, wake: Arc<Notify>) {
    let mut tended = Tended::default();
    loop {
        let Some(hub) = hub.upgrade() else { return };
        let again = hub.tend(&mut tended).await;
        drop(hub);
        match again {
            Some(again) => {
                let _ = tokio::time::timeout(again, wake.notified()).await;
            }
            None => wake.notified().await,
        }
    }
}

impl Hub {
    /// Does what is due, and says when to look again at the latest.
    async fn tend(&self, tended: &mut Tended) -> Option<Duration> {
        let mut done = true;
        let mut known = true;
        for hosted in self.networks() {
            self.drop_spent_keys(&hosted).await;
            let published = self.tend_network(&hosted, tended).await;
            done &= published.is_some();
            known &= published.is_some_and(|revision| hosted.all_have_applied(revision));
        }
        let step = if self.tls().expire(self.clock().now()).is_some() {
            Some(TlsStep::Expire)
        } else {
            (self.tls().next().is_some() && known).then_some(TlsStep::Promote)
        };
        if let Some(step) = step {
            match self.step_tls(step, Actor::Controller).await {
                Ok(()) => return Some(Duration::ZERO),
                Err(error) => {
                    tracing::debug!(%error, "the TLS keys stay as they are for now");
                    // Another controller may have been faster.
                    let _ = self.reload_tls().await;
                    return Some(RETRY);
                }
            }
        }
        if !done || self.tls().next().is_some() {
            return Some(RETRY);
        }
        let deadline = self.tls().deadline()?;
        Some(deadline.since(self.clock().now()).clamp(RETRY, LONGEST))
    }

    /// Brings a network's list up to date. Returns the revision from which on it is.
    async fn tend_network(&self, hosted: &Hosted, tended: &mut Tended) -> Option<Revision> {
        let pins = self.pins();
        let changing = self.tls().next().is_some();
        let introduce = self.common.store.shared().is_some() && !tended.introduced.contains(&hosted.id());
        let is_empty = hosted.read(|network, _| network.conf().controllers.is_empty()).ok()?;
        let add = if introduce || changing && is_empty { self.advertise.clone() } else { Vec::new() };
        let command = Command::ChangeControllers { add, remove: Vec::new(), only: false, pins: pins.clone() };
        let now = self.clock().now();
        let due = hosted.read(|network, head| {
            let decided = network.decide(&command, now, &mut rand::rng());
            decided.map(|decision| (!decision.changes.is_empty(), head.head.revision))
        });
        let revision = match due.ok()? {
            Ok((false, revision)) => revision,
            Ok((true, _)) => match hosted.execute(command, Actor::Controller).await {
                Ok(done) => done.revision,
                Err(error) => {
                    tracing::debug!(network = %hosted.name(), %error, "where the controllers are cannot be published yet");
                    return None;
                }
            },
            Err(rejection) => {
                // Nothing changes by trying again.
                tracing::error!(network = %hosted.name(), %rejection, "the map does not say where this controller is");
                return Some(Revision::ZERO);
            }
        };
        tended.introduced.insert(hosted.id());
        let since = tended.published.entry(hosted.id()).or_insert_with(|| (pins.clone(), revision));
        if since.0 != pins {
            *since = (pins, revision);
        }
        Some(since.1)
    }
}
