//! Seeing to it that every network's map says where its controllers are and by which keys they are known.
//!
//! Controllers that share a store put themselves into the list, once for each start: what an operator takes out stays out
//! until a controller that advertises it starts again. One controller alone leaves the list to the operator. Keys are kept up
//! to date in whatever list there is.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use znet_core::controller::Command;
use znet_core::id::NetworkId;

use super::Hub;
use crate::actor::Actor;
use crate::network::Hosted;

/// How long to wait before a network that could not be brought up to date is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Which networks this process has put itself into.
#[derive(Debug, Default)]
pub(super) struct Tended {
    introduced: BTreeSet<NetworkId>,
}

/// Tends until the hub is gone. Looks again whenever it is woken.
pub(super) async fn run(hub: Weak<Hub>, wake: Arc<Notify>) {
    let mut tended = Tended::default();
    loop {
        let Some(hub) = hub.upgrade() else { return };
        let done = hub.tend(&mut tended).await;
        drop(hub);
        if done {
            wake.notified().await;
        } else {
            tokio::time::sleep(RETRY).await;
        }
    }
}

impl Hub {
    /// Whether everything is as it should be now.
    async fn tend(&self, tended: &mut Tended) -> bool {
        let mut done = true;
        for hosted in self.networks() {
            done &= self.tend_network(&hosted, tended).await;
        }
        done
    }

    async fn tend_network(&self, hosted: &Hosted, tended: &mut Tended) -> bool {
        let introduce = self.common.store.shared().is_some() && !tended.introduced.contains(&hosted.id());
        let add = if introduce { self.advertise.clone() } else { Vec::new() };
        let command = Command::ChangeControllers { add, remove: Vec::new(), only: false, pins: self.pins() };
        let due = hosted.read(|network, _| {
            let decided = network.decide(&command, self.clock().now(), &mut rand::rng());
            decided.map(|decision| !decision.changes.is_empty())
        });
        let done = match due {
            Ok(Ok(false)) => Ok(()),
            Ok(Ok(true)) => {
                hosted.execute(command, Actor::Controller).await.map(drop).map_err(|error| error.to_string())
            }
            Ok(Err(rejection)) => {
                // Nothing changes by trying again.
                tracing::error!(network = %hosted.name(), %rejection, "the map does not say where this controller is");
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        };
        match done {
            Ok(()) => {
                tended.introduced.insert(hosted.id());
                true
            }
            Err(why) => {
                tracing::debug!(network = %hosted.name(), why, "where the controllers are cannot be published yet");
                false
            }
        }
    }
}
