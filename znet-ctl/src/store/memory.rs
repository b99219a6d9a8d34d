//! A store in memory: for tests and simulations, with storage failures on demand.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::watch;
use znet_core::controller::{Row, RowKey, StateChange};
use znet_core::id::{NetworkId, Revision, TokenId};
use znet_core::name::Name;

use super::revisions::Revisions;
use super::{
    AUDIT_KEPT, AuditNote, AuditRecord, CHANGES_KEPT, Commit, Loaded, Logged, MAX_AUDIT_PAGE, MAX_NETWORKS,
    MAX_OPERATORS, Moved, NetworkEntry, Operator, Store, StoreError,
};

/// Keeps everything in memory and loses it with the process.
#[derive(Debug, Default)]
pub struct MemoryStore {
    inner: Mutex<Inner>,
    revisions: Revisions,
}

#[derive(Debug, Default)]
struct Inner {
    networks: BTreeMap<NetworkId, Kept>,
    audit: VecDeque<AuditRecord>,
    last_seq: u64,
    operators: BTreeMap<[u8; 8], Operator>,
    failure: Option<StoreError>,
}

#[derive(Debug)]
struct Kept {
    name: Name,
    revision: Revision,
    rows: BTreeMap<RowKey, Row>,
    log: VecDeque<Logged>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes every write fail with this error from now on; `None` ends it.
    pub fn fail_writes(&self, failure: Option<StoreError>) {
        self.lock().failure = failure;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn writable(&self) -> Result<(), StoreError> {
        self.failure.clone().map_or(Ok(()), Err)
    }

    fn note(&mut self, network: Option<NetworkId>, revision: Option<Revision>, note: AuditNote) {
        self.last_seq += 1;
        self.audit.push_back(AuditRecord {
            seq: self.last_seq,
            network,
            revision,
            at: note.at,
            actor: note.actor.to_string(),
            action: note.action.to_owned(),
            detail: note.detail,
        });
        while self.audit.len() as u64 > AUDIT_KEPT {
            self.audit.pop_front();
        }
    }

    fn write(&mut self, network: NetworkId, commit: Commit) {
        let revision = commit.head.revision;
        if let Some(kept) = self.networks.get_mut(&network) {
            kept.revision = revision;
            for change in &commit.changes {
                match change {
                    StateChange::Put(row) => drop(kept.rows.insert(row.key(), row.clone())),
                    StateChange::Remove(key) => drop(kept.rows.remove(key)),
                }
            }
            kept.log.push_back(Logged { head: commit.head, changes: commit.changes });
            while kept.log.len() as u64 > CHANGES_KEPT {
                kept.log.pop_front();
            }
        }
        self.note(Some(network), Some(revision), commit.audit);
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn networks(&self) -> Result<Vec<NetworkEntry>, StoreError> {
        let inner = self.lock();
        let entry = |(id, kept): (&NetworkId, &Kept)| NetworkEntry {
            id: *id,
            name: kept.name.clone(),
            revision: kept.revision,
        };
        Ok(inner.networks.iter().map(entry).collect())
    }

    async fn create_network(&self, name: &Name, first: Commit) -> Result<(), StoreError> {
        let network = first.head.network;
        super::check_sequence(network, Revision::ZERO, std::slice::from_ref(&first))?;
        let mut inner = self.lock();
        inner.writable()?;
        if let Some(kept) = inner.networks.get(&network) {
            return Err(StoreError::Conflict { network, expected: Revision::ZERO, found: kept.revision });
        }
        if inner.networks.values().any(|kept| kept.name == *name) {
            return Err(StoreError::NameTaken { name: name.clone() });
        }
        if inner.networks.len() >= MAX_NETWORKS {
            return Err(StoreError::TooMany { what: "networks", bound: MAX_NETWORKS });
        }
        let empty = Kept {
            name: name.clone(),
            revision: Revision::ZERO,
            rows: BTreeMap::new(),
            log: VecDeque::new(),
        };
        inner.networks.insert(network, empty);
        let revision = first.head.revision;
        inner.write(network, first);
        drop(inner);
        self.revisions.announce(network, revision);
        Ok(())
    }

    async fn delete_network(&self, network: NetworkId, audit: AuditNote) -> Result<(), StoreError> {
        let mut inner = self.lock();
        inner.writable()?;
        let kept = inner.networks.remove(&network).ok_or(StoreError::UnknownNetwork { network })?;
        inner.note(Some(network), Some(kept.revision), audit);
        drop(inner);
        self.revisions.forget(&network);
        Ok(())
    }

    async fn load(&self, network: NetworkId) -> Result<Loaded, StoreError> {
        let inner = self.lock();
        let kept = inner.networks.get(&network).ok_or(StoreError::UnknownNetwork { network })?;
        Ok(Loaded { revision: kept.revision, rows: kept.rows.values().cloned().collect() })
    }

    async fn commit(
        &self,
        network: NetworkId,
        expected: Revision,
        commits: Vec<Commit>,
    ) -> Result<(), StoreError> {
        let mut inner = self.lock();
        inner.writable()?;
        let found = inner.networks.get(&network).ok_or(StoreError::UnknownNetwork { network })?.revision;
        if found != expected {
            return Err(StoreError::Conflict { network, expected, found });
        }
        super::check_sequence(network, expected, &commits)?;
        let newest = commits.last().map(|commit| commit.head.revision);
        for commit in commits {
            inner.write(network, commit);
        }
        drop(inner);
        if let Some(newest) = newest {
            self.revisions.announce(network, newest);
        }
        Ok(())
    }

    async fn changes_since(&self, network: NetworkId, revision: Revision) -> Result<Vec<Logged>, StoreError> {
        let inner = self.lock();
        let kept = inner.networks.get(&network).ok_or(StoreError::UnknownNetwork { network })?;
        let first = kept.log.front().map_or(kept.revision.next(), |logged| logged.head.revision);
        if revision.next() < first {
            return Err(StoreError::Compacted { oldest: Revision::new(first.get().saturating_sub(1)) });
        }
        Ok(kept.log.iter().filter(|logged| logged.head.revision > revision).cloned().collect())
    }

    fn revisions(&self, network: NetworkId) -> watch::Receiver<Revision> {
        let receiver = self.revisions.subscribe(network);
        if let Some(kept) = self.lock().networks.get(&network) {
            self.revisions.announce(network, kept.revision);
        }
        receiver
    }

    async fn audit(
        &self,
        network: Option<NetworkId>,
        after: u64,
        limit: usize,
    ) -> Result<Vec<AuditRecord>, StoreError> {
        let inner = self.lock();
        let wanted =
            |record: &&AuditRecord| record.seq > after && (network.is_none() || record.network == network);
        Ok(inner.audit.iter().filter(wanted).take(limit.min(MAX_AUDIT_PAGE)).cloned().collect())
    }

    async fn operators(&self) -> Result<Vec<Operator>, StoreError> {
        Ok(self.lock().operators.values().cloned().collect())
    }

    async fn add_operator(&self, operator: Operator, audit: AuditNote) -> Result<(), StoreError> {
        let mut inner = self.lock();
        inner.writable()?;
        if inner.operators.len() >= MAX_OPERATORS {
            return Err(StoreError::TooMany { what: "operators", bound: MAX_OPERATORS });
        }
        inner.operators.insert(*operator.id.as_bytes(), operator);
        inner.note(None, None, audit);
        Ok(())
    }

    async fn remove_operator(&self, id: TokenId, audit: AuditNote) -> Result<bool, StoreError> {
        let mut inner = self.lock();
        inner.writable()?;
        let removed = inner.operators.remove(id.as_bytes()).is_some();
        if removed {
            inner.note(None, None, audit);
        }
        Ok(removed)
    }

    async fn note(&self, audit: AuditNote) -> Result<(), StoreError> {
        let mut inner = self.lock();
        inner.writable()?;
        inner.note(None, None, audit);
        Ok(())
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.lock().writable()
    }

    async fn copy_to(&self, _path: &Path) -> Result<(), StoreError> {
        Err(StoreError::Unsupported { what: "be copied to a file, as it is in memory alone" })
    }

    async fn adopt(&self, network: Moved) -> Result<(), StoreError> {
        let Moved { head, name, rows, log } = network;
        let (network, revision) = (head.network, head.revision);
        let mut inner = self.lock();
        inner.writable()?;
        if let Some(kept) = inner.networks.get(&network) {
            return Err(StoreError::Conflict { network, expected: Revision::ZERO, found: kept.revision });
        }
        if inner.networks.values().any(|kept| kept.name == name) {
            return Err(StoreError::NameTaken { name });
        }
        let rows = rows.into_iter().map(|row| (row.key(), row)).collect();
        inner.networks.insert(network, Kept { name, revision, rows, log: log.into() });
        drop(inner);
        self.revisions.announce(network, revision);
        Ok(())
    }

    async fn adopt_rest(&self, operators: Vec<Operator>, audit: Vec<AuditRecord>) -> Result<(), StoreError> {
        let mut inner = self.lock();
        inner.writable()?;
        for operator in operators {
            inner.operators.insert(*operator.id.as_bytes(), operator);
        }
        for record in audit {
            inner.last_seq += 1;
            let seq = inner.last_seq;
            inner.audit.push_back(AuditRecord { seq, ..record });
        }
        Ok(())
    }

    async fn close(&self) {
        self.lock().failure = Some(StoreError::Unavailable { why: "the store was closed".to_owned() });
    }
}
