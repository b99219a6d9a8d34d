//! Folding: carrying over from the log to the rows what the log has to say, so that both stay short.
//!
//! Any controller may fold, and only one at a time does: it writes a claim into the network's base, and every later step of
//! it compares that. Who claims later takes over, and the former one's next step fails. What a fold wrote before it was
//! interrupted does no harm: whoever loads the network repeats the log from the base on, and a row that was folded
//! already gets the same value once more.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use etcd_client::TxnOp;
use znet_core::controller::StateChange;
use znet_core::id::{NetworkId, Revision};

use super::encode::{Base, to_json};
use super::inner::{Inner, delete, delete_range, put, tag, unchanged};
use crate::store::{AUDIT_KEPT, CHANGES_KEPT, StoreError};

/// After how many revisions a network is folded.
const FOLD_AFTER: u64 = 512;
/// After how many a commit waits for it, so that the log has a bound however fast commits come.
const FOLD_AT_LATEST: u64 = CHANGES_KEPT;
/// Most rows of one transaction: etcd takes 128 operations.
pub(super) const MAX_ROWS: usize = 100;
/// Most bytes of the rows of one transaction.
pub(super) const MAX_BYTES: usize = 512 * 1024;
/// After how many folds of this process the audit trail is shortened.
const TRAIL_EVERY: u64 = 64;

/// How far networks are folded, as far as this process knows.
#[derive(Debug, Default)]
pub(super) struct Folds(Mutex<HashMap<NetworkId, Fold>>);

#[derive(Debug, Default)]
struct Fold {
    folded: Revision,
    /// Held while this process folds it.
    turn: Arc<tokio::sync::Mutex<()>>,
    done: u64,
}

impl Folds {
    fn lock(&self) -> MutexGuard<'_, HashMap<NetworkId, Fold>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A network is folded up to this revision.
    pub(super) fn folded(&self, network: NetworkId, revision: Revision) {
        let mut all = self.lock();
        let fold = all.entry(network).or_default();
        fold.folded = revision.max(fold.folded);
    }

    pub(super) fn forget(&self, network: NetworkId) {
        self.lock().remove(&network);
    }

    /// How many revisions are not folded, and whose turn it is.
    fn behind(&self, network: NetworkId, newest: Revision) -> (u64, Arc<tokio::sync::Mutex<()>>) {
        let mut all = self.lock();
        let fold = all.entry(network).or_default();
        (newest.get().saturating_sub(fold.folded.get()), fold.turn.clone())
    }

    /// Counts a fold of a network.
    fn count(&self, network: NetworkId) -> u64 {
        let mut all = self.lock();
        let fold = all.entry(network).or_default();
        fold.done += 1;
        fold.done
    }
}

/// Folds a network after a commit if it is time: beside the caller as a rule, before it goes on when it is high time.
pub(super) async fn after_commit(inner: &Arc<Inner>, network: NetworkId, newest: Revision) {
    let (behind, turn) = inner.folds.behind(network, newest);
    if behind < FOLD_AFTER {
        return;
    }
    if behind >= FOLD_AT_LATEST {
        let _turn = turn.lock().await;
        fold_and_tell(inner, network, newest).await;
    } else if let Ok(turn) = turn.try_lock_owned() {
        let inner = inner.clone();
        tokio::spawn(async move {
            fold_and_tell(&inner, network, newest).await;
            drop(turn);
        });
    }
}

async fn fold_and_tell(inner: &Inner, network: NetworkId, newest: Revision) {
    if inner.folds.behind(network, newest).0 < FOLD_AFTER {
        return;
    }
    match inner.fold(network).await {
        Ok(()) | Err(StoreError::UnknownNetwork { .. }) => {}
        // The log is longer for it, and the next commit tries again.
        Err(error) => tracing::warn!(%network, %error, "the change log could not be folded into the rows"),
    }
    if inner.folds.count(network).is_multiple_of(TRAIL_EVERY)
        && let Err(error) = inner.shorten_trail(AUDIT_KEPT).await
    {
        tracing::warn!(%error, "the audit trail could not be shortened");
    }
}

impl Inner {
    /// Folds everything that is committed.
    pub(super) async fn fold(&self, network: NetworkId) -> Result<(), StoreError> {
        let key = self.names.base(network);
        let place = self.place(network).await?;
        let claim = Base { revision: place.base.revision, claim: tag() };
        let same = vec![unchanged(key.clone(), place.base_changed)];
        let claimed = self.txn(same, vec![put(key.clone(), to_json(&claim)?)], Vec::new()).await?;
        if !claimed.held {
            // Somebody else folds.
            return Ok(());
        }
        // What is committed by now, and not before the claim: nobody may have folded further than this will.
        let now = self.place(network).await?;
        if now.base.claim != claim.claim {
            return Ok(());
        }
        let mut last: HashMap<String, Option<Vec<u8>>> = HashMap::new();
        for step in self.steps(network, now.base.revision, now.at).await? {
            for change in step.changes {
                let (key, value) = match change {
                    StateChange::Put(row) => (row.key(), Some(to_json(&row)?)),
                    StateChange::Remove(key) => (key, None),
                };
                last.insert(self.row_key(network, &key)?, value);
            }
        }
        let mut writes = Vec::with_capacity(MAX_ROWS);
        let mut bytes = 0;
        for (row, value) in last {
            let size = row.len() + value.as_ref().map_or(0, Vec::len);
            if writes.len() >= MAX_ROWS || bytes + size > MAX_BYTES {
                if !self.fold_step(&key, now.base_changed, std::mem::take(&mut writes)).await? {
                    return Ok(());
                }
                bytes = 0;
            }
            bytes += size;
            writes.push(value.map_or_else(|| delete(row.clone()), |value| put(row.clone(), value)));
        }
        if !self.fold_step(&key, now.base_changed, writes).await? {
            return Ok(());
        }
        let base = Base { revision: now.revision, claim: String::new() };
        let kept_from = Revision::new(now.revision.get().saturating_sub(CHANGES_KEPT)).next();
        let writes = vec![
            put(key.clone(), to_json(&base)?),
            delete_range(self.names.log(network), self.names.log_from(network, kept_from)),
            delete_range(self.names.parts(network), self.names.parts_from(network, kept_from)),
        ];
        if self.fold_step(&key, now.base_changed, writes).await? {
            self.folds.folded(network, now.revision);
        }
        Ok(())
    }

    /// One step of a fold; `false` when somebody else has taken over.
    async fn fold_step(&self, base: &str, claimed: i64, writes: Vec<TxnOp>) -> Result<bool, StoreError> {
        if writes.is_empty() {
            return Ok(true);
        }
        Ok(self.txn(vec![unchanged(base.to_owned(), claimed)], writes, Vec::new()).await?.held)
    }

    /// The key of a row.
    pub(super) fn row_key(
        &self,
        network: NetworkId,
        key: &znet_core::controller::RowKey,
    ) -> Result<String, StoreError> {
        let json = String::from_utf8(to_json(key)?)
            .map_err(|_| StoreError::Corrupt { what: "a row's key is no text".to_owned() })?;
        Ok(format!("{}{json}", self.names.rows(network)))
    }
}
