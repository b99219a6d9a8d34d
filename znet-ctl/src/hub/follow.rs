//! Following other controllers on the same store: networks and operators that they add and remove.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::watch;
use znet_core::id::NetworkId;

use super::{Hub, NetworkError};
use crate::network::{CommandError, Hosted};
use crate::store::{Store, StoreError};

/// How long to wait before what could not be read is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What tells of the others.
pub(super) struct News {
    catalogue: watch::Receiver<u64>,
    reachable: watch::Receiver<bool>,
}

impl News {
    /// Nothing where nobody else uses the store.
    pub(super) fn of(store: &dyn Store) -> Option<Self> {
        let shared = store.shared()?;
        Some(Self { catalogue: shared.catalogue(), reachable: shared.reachable() })
    }
}

/// Follows until the hub or its store is gone.
pub(super) async fn run(hub: Weak<Hub>, mut news: News) {
    loop {
        let changed = tokio::select! {
            changed = news.catalogue.changed() => changed,
            changed = news.reachable.changed() => {
                let reachable = *news.reachable.borrow_and_update();
                if let (false, Some(hub)) = (reachable, hub.upgrade()) {
                    hub.send_agents_away();
                }
                if changed.is_err() {
                    return;
                }
                continue;
            }
        };
        if changed.is_err() {
            return;
        }
        loop {
            let Some(hub) = hub.upgrade() else { return };
            let Err(error) = hub.take_stock().await else { break };
            drop(hub);
            tracing::debug!(%error, "what other controllers changed cannot be read yet");
            tokio::time::sleep(RETRY).await;
        }
    }
}

impl Hub {
    /// The network of this identifier, for an agent: one that is told that its network is gone takes its containers down. So
    /// the store is asked before that is said, where another controller may have created it a moment ago.
    ///
    /// # Errors
    /// [`NetworkError::Unknown`], or a failure of the store.
    pub async fn network_of_agent(&self, id: NetworkId) -> Result<Arc<Hosted>, NetworkError> {
        if self.common.store.shared().is_some() && self.network(id).is_err() {
            self.take_stock().await?;
        }
        self.network(id)
    }

    /// The store is out of this process's reach, which another controller may not be: agents may try.
    fn send_agents_away(&self) {
        tracing::warn!("the store is out of reach; agents are sent to look for another controller");
        let why = StoreError::Unavailable { why: "it is out of this controller's reach".to_owned() };
        self.networks().iter().for_each(|hosted| hosted.send_away(&why));
    }

    /// Makes networks and operators what the store says.
    async fn take_stock(&self) -> Result<(), CommandError> {
        let _changing = self.changing.lock().await;
        self.reload_operators().await?;
        if let Err(error) = self.reload_tls().await {
            tracing::warn!(%error, "what another controller did to the TLS keys cannot be read");
        }
        let there = self.common.store.networks().await?;
        let ids: BTreeSet<_> = there.iter().map(|entry| entry.id).collect();
        for gone in self.networks().iter().filter(|hosted| !ids.contains(&hosted.id())) {
            tracing::info!(network = %gone.name(), "another controller deleted the network");
            gone.deleted();
            self.networks.write().unwrap_or_else(PoisonError::into_inner).remove(gone.id());
        }
        for entry in there {
            if self.network(entry.id).is_ok() {
                continue;
            }
            let hosted: Arc<Hosted> = match self.keys.network_keys(entry.id).await {
                Ok(keys) => Hosted::start(entry.id, entry.name, keys, &self.keys, &self.common),
                Err(error) => {
                    tracing::error!(network = %entry.name, %error, "the network cannot be served");
                    continue;
                }
            };
            self.networks.write().unwrap_or_else(PoisonError::into_inner).insert(hosted.clone());
            hosted.started().await;
            self.tend.notify_one();
        }
        Ok(())
    }
}
