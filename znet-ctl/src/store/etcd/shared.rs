//! What controllers tell each other through the store.

use async_trait::async_trait;
use etcd_client::{Compare, CompareOp, PutOptions};
use tokio::sync::watch;
use znet_core::id::{NetworkId, NodeId};

use super::EtcdStore;
use super::inner::{Pair, absent, delete, get, get_under, put, tag};
use super::names::number;
use crate::store::{PRESENT_FOR, SharedStore, StoreError};

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
        self.report(&self.inner.names.present(network), nodes).await
    }

    async fn present_elsewhere(&self, network: NetworkId) -> Result<Vec<NodeId>, StoreError> {
        self.reported_elsewhere(self.inner.names.present(network)).await
    }

    async fn report_suspects(&self, network: NetworkId, nodes: &[NodeId]) -> Result<(), StoreError> {
        self.report(&self.inner.names.suspects(network), nodes).await
    }

    async fn suspects_elsewhere(&self, network: NetworkId) -> Result<Vec<NodeId>, StoreError> {
        self.reported_elsewhere(self.inner.names.suspects(network)).await
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
    /// Writes nodes down under a key of this controller, for as long as a report holds.
    async fn report(&self, prefix: &str, nodes: &[NodeId]) -> Result<(), StoreError> {
        let seconds = i64::try_from(PRESENT_FOR.as_secs()).unwrap_or(i64::MAX);
        // A lease for each report: it goes by itself when no other one follows, and nothing has to be kept alive.
        let granted = self.inner.cluster.call(|client| {
            let mut leases = client.lease_client();
            async move { leases.grant(seconds, None).await }
        });
        let lease = granted.await?.value.id();
        for (at, some) in (0..).zip(nodes.chunks(NODES_OF_A_KEY)) {
            let key = format!("{prefix}{}/{}", self.inner.id, number(at));
            let value: Vec<u8> = some.iter().flat_map(|node| *node.as_bytes()).collect();
            let written = etcd_client::TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease)));
            self.inner.ask(vec![written]).await?;
        }
        Ok(())
    }

    async fn reported_elsewhere(&self, prefix: String) -> Result<Vec<NodeId>, StoreError> {
        let own = format!("{prefix}{}/", self.inner.id);
        let found = self.inner.ask(vec![get_under(prefix)]).await?.all(0)?;
        let others = found.iter().filter(|pair| !pair.key.starts_with(&own));
        Ok(others.flat_map(nodes_of).collect())
    }
}

fn nodes_of(pair: &Pair) -> Vec<NodeId> {
    pair.value.chunks(NODE_LEN).filter_map(|bytes| NodeId::try_from(bytes).ok()).collect()
}
