//! What every part of the store works with: the cluster, the names of keys, and what this process knows of others.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use etcd_client::{Compare, CompareOp, DeleteOptions, GetOptions, GetResponse, Txn, TxnOp, TxnOpResponse};
use rand::RngExt as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use znet_core::id::{NetworkId, Revision};
use znet_core::time::Timestamp;

use super::cluster::{Answer, Cluster, is_compacted, kv};
use super::encode::text;
use super::fold::Folds;
use super::names::{Names, end_of};
use crate::store::StoreError;
use crate::store::revisions::Revisions;

/// Most keys of one page, where values are small.
pub(super) const PAGE: i64 = 2_000;
/// How many audit records may be made in a millisecond before their numbers run ahead of the clock, as a power of two. With
/// this many bits the numbers fit into what JavaScript counts to until the year 2248.
const SEQ_BITS: u32 = 10;
/// How often something is read anew because it was compacted away meanwhile.
const MAX_READS: usize = 3;

/// The store's inside, shared with its tasks.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) cluster: Cluster,
    pub(super) names: Names,
    /// Tells this process's reports from others'.
    pub(super) id: String,
    pub(super) revisions: Revisions,
    /// The newest revisions that were heard of.
    newest: Mutex<HashMap<NetworkId, Revision>>,
    pub(super) catalogue: watch::Sender<u64>,
    last_seq: AtomicU64,
    pub(super) folds: Folds,
    pub(super) closed: CancellationToken,
}

/// A key with its value.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) key: String,
    pub(super) value: Vec<u8>,
    pub(super) changed: i64,
}

/// What a transaction said.
#[derive(Debug)]
pub(super) struct Said {
    /// Whether the comparisons held.
    pub(super) held: bool,
    /// Whether it may have been carried out more than once.
    pub(super) repeated: bool,
    /// The revision of the whole cluster.
    pub(super) at: i64,
    /// What its questions found, in order.
    pub(super) found: Vec<GetResponse>,
}

impl Said {
    /// The only key that a question found.
    pub(super) fn only(&self, question: usize) -> Result<Option<Pair>, StoreError> {
        Ok(self.all(question)?.into_iter().next())
    }

    /// All keys that a question found.
    pub(super) fn all(&self, question: usize) -> Result<Vec<Pair>, StoreError> {
        self.found.get(question).map_or_else(|| Ok(Vec::new()), pairs)
    }
}

impl Inner {
    pub(super) fn new(cluster: Cluster, names: Names) -> Self {
        Self {
            cluster,
            names,
            id: tag(),
            revisions: Revisions::default(),
            newest: Mutex::default(),
            catalogue: watch::Sender::new(0),
            last_seq: AtomicU64::new(0),
            folds: Folds::default(),
            closed: CancellationToken::new(),
        }
    }

    fn open(&self) -> Result<(), StoreError> {
        if self.closed.is_cancelled() {
            return Err(StoreError::Unavailable { why: "the store was closed".to_owned() });
        }
        Ok(())
    }

    /// Compares, and does the one or the other, in one step.
    pub(super) async fn txn(
        &self,
        when: Vec<Compare>,
        then: Vec<TxnOp>,
        or_else: Vec<TxnOp>,
    ) -> Result<Said, StoreError> {
        self.open()?;
        let txn = Txn::new().when(when).and_then(then).or_else(or_else);
        let Answer { value, repeated } = self
            .cluster
            .call(|client| {
                let txn = txn.clone();
                async move { kv(&client).txn(txn).await }
            })
            .await?;
        let found = value.op_responses().into_iter().filter_map(|response| match response {
            TxnOpResponse::Get(found) => Some(found),
            _ => None,
        });
        let at = value.header().map_or(0, etcd_client::ResponseHeader::revision);
        Ok(Said { held: value.succeeded(), repeated, at, found: found.collect() })
    }

    /// Several questions, answered of one moment.
    pub(super) async fn ask(&self, questions: Vec<TxnOp>) -> Result<Said, StoreError> {
        self.txn(Vec::new(), questions, Vec::new()).await
    }

    /// All keys from `from` up to `end`, of the moment `at`, in pages of at most `limit`.
    pub(super) async fn range(
        &self,
        from: String,
        end: Vec<u8>,
        at: i64,
        limit: i64,
    ) -> Result<Vec<Pair>, StoreError> {
        self.open()?;
        let (mut from, mut all) = (from.into_bytes(), Vec::new());
        loop {
            let page = self
                .cluster
                .call(|client| {
                    let options =
                        GetOptions::new().with_range(end.clone()).with_limit(limit).with_revision(at);
                    let from = from.clone();
                    async move { kv(&client).get(from, Some(options)).await }
                })
                .await?
                .value;
            let mut found = pairs(&page)?;
            let last = found.last().map(|pair| pair.key.clone());
            all.append(&mut found);
            match last {
                // The key after this one: with a zero byte appended.
                Some(last) if page.more() => from = [last.as_bytes(), &[0]].concat(),
                _ => return Ok(all),
            }
        }
    }

    /// All keys that begin with a text, of the moment `at`.
    pub(super) async fn under(&self, prefix: String, at: i64, limit: i64) -> Result<Vec<Pair>, StoreError> {
        let end = end_of(&prefix);
        self.range(prefix, end, at, limit).await
    }

    /// A number for the last of `count` audit records that are made at a time: above all that this process knows of.
    pub(super) fn next_seq(&self, at: Timestamp, count: usize) -> u64 {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        let floor = at.as_millis().saturating_mul(1 << SEQ_BITS);
        let next = |last: u64| floor.max(last).saturating_add(count);
        let step = |last| Some(next(last));
        self.last_seq.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step).map_or(floor, next)
    }

    /// Somebody used this number.
    pub(super) fn seen_seq(&self, seq: u64) {
        self.last_seq.fetch_max(seq, Ordering::Relaxed);
    }

    fn newest(&self) -> MutexGuard<'_, HashMap<NetworkId, Revision>> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A network is at this revision at least.
    pub(super) fn announce(&self, network: NetworkId, revision: Revision) {
        {
            let mut newest = self.newest();
            let known = newest.entry(network).or_default();
            *known = revision.max(*known);
        }
        self.revisions.announce(network, revision);
    }

    /// A network is gone.
    pub(super) fn forget(&self, network: NetworkId) {
        self.newest().remove(&network);
        self.folds.forget(network);
        self.revisions.forget(&network);
    }

    /// Networks that were heard of.
    pub(super) fn known(&self) -> Vec<NetworkId> {
        self.newest().keys().copied().collect()
    }

    /// See [`Revisions::subscribe`].
    pub(super) fn subscribe(&self, network: NetworkId) -> watch::Receiver<Revision> {
        let receiver = self.revisions.subscribe(network);
        if let Some(revision) = self.newest().get(&network).copied() {
            self.revisions.announce(network, revision);
        }
        receiver
    }

    /// Networks or operators came or went.
    pub(super) fn catalogue_changed(&self) {
        self.catalogue.send_modify(|count| *count = count.wrapping_add(1));
    }
}

/// Reads again what was compacted away while it was read.
pub(super) async fn again<T, Fut>(read: impl Fn() -> Fut) -> Result<T, StoreError>
where
    Fut: Future<Output = Result<T, StoreError>>,
{
    for _ in 1..MAX_READS {
        match read().await {
            Err(error) if is_compacted(&error) => {}
            result => return result,
        }
    }
    read().await
}

fn pairs(response: &GetResponse) -> Result<Vec<Pair>, StoreError> {
    let pair = |found: &etcd_client::KeyValue| {
        Ok(Pair {
            key: text("a key", found.key())?.to_owned(),
            value: found.value().to_vec(),
            changed: found.mod_revision(),
        })
    };
    response.kvs().iter().map(pair).collect()
}

/// A text that nobody else draws.
pub(super) fn tag() -> String {
    format!("{:032x}", rand::rng().random::<u128>())
}

pub(super) fn put(key: String, value: impl Into<Vec<u8>>) -> TxnOp {
    TxnOp::put(key, value, None)
}

pub(super) fn get(key: String) -> TxnOp {
    TxnOp::get(key, None)
}

pub(super) fn get_under(prefix: String) -> TxnOp {
    TxnOp::get(prefix, Some(GetOptions::new().with_prefix()))
}

pub(super) fn delete(key: String) -> TxnOp {
    TxnOp::delete(key, None)
}

pub(super) fn delete_under(prefix: String) -> TxnOp {
    TxnOp::delete(prefix, Some(DeleteOptions::new().with_prefix()))
}

pub(super) fn delete_range(from: String, end: String) -> TxnOp {
    TxnOp::delete(from, Some(DeleteOptions::new().with_range(end)))
}

/// That a key has this value.
pub(super) fn is(key: String, value: impl Into<Vec<u8>>) -> Compare {
    Compare::value(key, CompareOp::Equal, value)
}

/// That a key was last changed at this revision of the cluster; zero when there is none.
pub(super) fn unchanged(key: String, since: i64) -> Compare {
    Compare::mod_revision(key, CompareOp::Equal, since)
}

/// That there is no such key.
pub(super) fn absent(key: String) -> Compare {
    Compare::create_revision(key, CompareOp::Equal, 0)
}
