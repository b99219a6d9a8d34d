//! The store for several controllers: a cluster of etcd.
//!
//! Everything that a controller keeps is here, so that any number of processes serve the same networks. Of two that commit
//! the same revision one wins, whatever either believed; the other is told and decides anew. What others commit is heard
//! by a watch (see [`observe`]). The change log is the truth, and rows are folded out of it (see [`fold`]).
//!
//! No secret is here that opens anything: keys are sealed before they come here (see [`crate::keyring`]).

mod adopt;
mod audit;
mod cluster;
mod commit;
mod encode;
mod fold;
mod inner;
mod names;
mod observe;
mod read;
mod shared;
mod url;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;
use znet_core::id::{NetworkId, Revision, TokenId};
use znet_core::name::Name;

use super::{
    AuditNote, AuditRecord, Commit, Loaded, Logged, MAX_AUDIT_PAGE, Moved, NetworkEntry, Operator,
    SharedStore, Store, StoreError,
};
use cluster::Cluster;
use inner::{Inner, absent, get, put, tag};
use names::Names;

pub use url::{EtcdTls, EtcdUrl, EtcdUrlError};

/// The form of what is stored. Newer ones are refused.
pub const FORMAT: i64 = 1;

/// Keeps networks in a cluster of etcd.
#[derive(Debug)]
pub struct EtcdStore {
    inner: Arc<Inner>,
}

impl EtcdStore {
    /// Connects to a cluster, and begins to watch it.
    ///
    /// # Errors
    /// [`StoreError::TooNew`], or that no member answers.
    pub async fn open(url: &EtcdUrl) -> Result<Self, StoreError> {
        let inner = Arc::new(Inner::new(Cluster::new(url).await?, Names::new(&url.prefix)));
        let store = Self { inner };
        store.check_format().await?;
        let seq = store.inner.last_seq().await?;
        store.inner.seen_seq(seq);
        tokio::spawn(observe::run(store.inner.clone()));
        Ok(store)
    }

    async fn check_format(&self) -> Result<(), StoreError> {
        let key = self.inner.names.format();
        let made = vec![put(key.clone(), FORMAT.to_string())];
        let said = self.inner.txn(vec![absent(key.clone())], made, vec![get(key)]).await?;
        let Some(pair) = said.only(0)? else { return Ok(()) };
        let found = encode::text("the format", &pair.value)?.parse();
        let found = found.map_err(|_| StoreError::Corrupt { what: "the format is no number".to_owned() })?;
        if found > FORMAT {
            return Err(StoreError::TooNew { found, known: FORMAT });
        }
        Ok(())
    }
}

impl Drop for EtcdStore {
    fn drop(&mut self) {
        self.inner.closed.cancel();
    }
}

#[async_trait]
impl Store for EtcdStore {
    async fn networks(&self) -> Result<Vec<NetworkEntry>, StoreError> {
        self.inner.networks().await
    }

    async fn create_network(&self, name: &Name, first: Commit) -> Result<(), StoreError> {
        super::check_sequence(first.head.network, Revision::ZERO, std::slice::from_ref(&first))?;
        self.inner.create(name, first).await
    }

    async fn delete_network(&self, network: NetworkId, audit: AuditNote) -> Result<(), StoreError> {
        self.inner.delete(network, audit).await?;
        self.inner.forget(network);
        Ok(())
    }

    async fn load(&self, network: NetworkId) -> Result<Loaded, StoreError> {
        inner::again(|| self.inner.load(network)).await
    }

    async fn commit(
        &self,
        network: NetworkId,
        expected: Revision,
        commits: Vec<Commit>,
    ) -> Result<(), StoreError> {
        super::check_sequence(network, expected, &commits)?;
        let newest = commits.last().map(|commit| commit.head.revision);
        self.inner.commit(network, expected, commits).await?;
        if let Some(newest) = newest {
            fold::after_commit(&self.inner, network, newest).await;
        }
        Ok(())
    }

    async fn changes_since(&self, network: NetworkId, revision: Revision) -> Result<Vec<Logged>, StoreError> {
        inner::again(|| self.inner.changes_since(network, revision)).await
    }

    fn revisions(&self, network: NetworkId) -> watch::Receiver<Revision> {
        self.inner.subscribe(network)
    }

    async fn audit(
        &self,
        network: Option<NetworkId>,
        after: u64,
        limit: usize,
    ) -> Result<Vec<AuditRecord>, StoreError> {
        self.inner.audit_after(network, after, limit.min(MAX_AUDIT_PAGE)).await
    }

    async fn operators(&self) -> Result<Vec<Operator>, StoreError> {
        self.inner.operators().await
    }

    async fn add_operator(&self, operator: Operator, audit: AuditNote) -> Result<(), StoreError> {
        self.inner.add_operator(operator, audit).await
    }

    async fn remove_operator(&self, id: TokenId, audit: AuditNote) -> Result<bool, StoreError> {
        self.inner.remove_operator(id, audit).await
    }

    async fn note(&self, audit: AuditNote) -> Result<(), StoreError> {
        self.inner.note(audit).await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.inner.ask(vec![put(self.inner.names.probe(), tag())]).await.map(drop)
    }

    async fn copy_to(&self, _path: &Path) -> Result<(), StoreError> {
        Err(StoreError::Unsupported {
            what: "be copied to a file, as it is in etcd; use `znet-ctl store migrate`, or `etcdctl snapshot save`",
        })
    }

    async fn adopt(&self, network: Moved) -> Result<(), StoreError> {
        self.inner.adopt(network).await
    }

    async fn adopt_rest(&self, operators: Vec<Operator>, audit: Vec<AuditRecord>) -> Result<(), StoreError> {
        self.inner.adopt_rest(operators, audit).await
    }

    async fn close(&self) {
        self.inner.closed.cancel();
    }

    fn shared(&self) -> Option<&dyn SharedStore> {
        Some(self)
    }
}
