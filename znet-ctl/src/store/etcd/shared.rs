//! What controllers tell each other through the store.

use async_trait::async_trait;
use etcd_client::{Compare, CompareOp, PutOptions};
use tokio::sync::watch;
use znet_core::id::{Epoch, NetworkId, NodeId, Revision};

use super::EtcdStore;
use super::inner::{Pair, absent, delete, get, get_under, put, tag};
use super::names::number;
use crate::store::{Applied, PRESENT_FOR, SharedStore, StoreError};

/// Most nodes under one key: half a MiB.
const NODES_OF_A_KEY: usize = 16_384;
/// Bytes of a node's identifier.
const NODE_LEN: usize = 32;

#[async_trait]
impl SharedStore for EtcdStore {
    fn catalogue(&self) -> watch::Receiver<u64> {
        self.inner.catalogue.subscribe()
    }

    fn reachable(&self) -> watch::Receiver<bool> {
        self.inner.cluster.reachable()
    }

    async fn report_present(&self, network: NetworkId, nodes: &[NodeId]) -> Result<(), StoreError> {
        self.report(&self.inner.names.present(network), &[], nodes).await
    }

    async fn present_elsewhere(&self, network: NetworkId) -> Result<Vec<NodeId>, StoreError> {
        let reports = self.reported_elsewhere(self.inner.names.present(network)).await?;
        Ok(reports.iter().flat_map(|report| nodes_of(&report.value)).collect())
    }

    async fn report_suspects(&self, network: NetworkId, nodes: &[NodeId]) -> Result<(), StoreError> {
        self.report(&self.inner.names.suspects(network), &[], nodes).await
    }

    async fn suspects_elsewhere(&self, network: NetworkId) -> Result<Vec<NodeId>, StoreError> {
        let reports = self.reported_elsewhere(self.inner.names.suspects(network)).await?;
        Ok(reports.iter().flat_map(|report| nodes_of(&report.value)).collect())
    }

    async fn report_applied(&self, network: NetworkId, applied: &Applied) -> Result<(), StoreError> {
        let at = [applied.epoch.get().to_be_bytes(), applied.revision.get().to_be_bytes()].concat();
        self.report(&self.inner.names.applied(network), &at, &applied.nodes).await
    }

    async fn applied_elsewhere(&self, network: NetworkId) -> Result<Vec<Applied>, StoreError> {
        let reports = self.reported_elsewhere(self.inner.names.applied(network)).await?;
        Ok(reports.iter().filter_map(|report| applied_of(&report.value)).collect())
    }

    async fn secret(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let found = self.inner.ask(vec![get(self.inner.names.secret(name))]).await?.only(0)?;
        Ok(found.map(|pair| pair.value))
    }

    async fn put_secret(&self, name: &str, sealed: &[u8]) -> Result<Vec<u8>, StoreError> {
        let key = self.inner.names.secret(name);
        let made = vec![put(key.clone(), sealed)];
        let said = self.inner.txn(vec![absent(key.clone())], made, vec![get(key)]).await?;
        Ok(said.only(0)?.map_or_else(|| sealed.to_vec(), |pair| pair.value))
    }

    async fn replace_secret(&self, name: &str, old: &[u8], new: &[u8]) -> Result<bool, StoreError> {
        let key = self.inner.names.secret(name);
        let there = vec![Compare::value(key.clone(), CompareOp::Equal, old.to_vec())];
        let writes = vec![put(key.clone(), new), put(self.inner.names.keys_changed(), tag())];
        let said = self.inner.txn(there, writes, vec![get(key)]).await?;
        // An answer that got lost is no riddle: what is sealed anew is unlike anything else.
        Ok(said.held || said.only(0)?.is_some_and(|pair| pair.value == new))
    }

    async fn remove_secret(&self, name: &str) -> Result<(), StoreError> {
        self.inner.ask(vec![delete(self.inner.names.secret(name))]).await.map(drop)
    }
}

impl EtcdStore {
    /// Writes nodes down under keys of this controller, under each what it tells of them, for as long as a report holds.
    async fn report(&self, prefix: &str, told: &[u8], nodes: &[NodeId]) -> Result<(), StoreError> {
        let seconds = i64::try_from(PRESENT_FOR.as_secs()).unwrap_or(i64::MAX);
        // A lease for each report: it goes by itself when no other one follows, and nothing has to be kept alive.
        let granted = self.inner.cluster.call(|client| {
            let mut leases = client.lease_client();
            async move { leases.grant(seconds, None).await }
        });
        let lease = granted.await?.value.id();
        for (at, some) in (0..).zip(nodes.chunks(NODES_OF_A_KEY)) {
            let key = format!("{prefix}{}/{}", self.inner.id, number(at));
            let mut value = told.to_vec();
            value.extend(some.iter().flat_map(|node| *node.as_bytes()));
            let written = etcd_client::TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease)));
            self.inner.ask(vec![written]).await?;
        }
        Ok(())
    }

    async fn reported_elsewhere(&self, prefix: String) -> Result<Vec<Pair>, StoreError> {
        let own = format!("{prefix}{}/", self.inner.id);
        let mut found = self.inner.ask(vec![get_under(prefix)]).await?.all(0)?;
        found.retain(|pair| !pair.key.starts_with(&own));
        Ok(found)
    }
}

fn nodes_of(value: &[u8]) -> Vec<NodeId> {
    value.chunks(NODE_LEN).filter_map(|bytes| NodeId::try_from(bytes).ok()).collect()
}

fn applied_of(value: &[u8]) -> Option<Applied> {
    let (epoch, rest) = value.split_first_chunk()?;
    let (revision, nodes) = rest.split_first_chunk()?;
    Some(Applied {
        epoch: Epoch::new(u64::from_be_bytes(*epoch)),
        revision: Revision::new(u64::from_be_bytes(*revision)),
        nodes: nodes_of(nodes),
    })
}
