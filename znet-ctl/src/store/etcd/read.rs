//! Reading: networks, their rows, their log.

use std::collections::HashMap;

use znet_core::controller::{Row, StateChange};
use znet_core::id::{NetworkId, Revision};

use super::encode::{Base, Entry, Step, from_json, revision, text, to_json};
use super::inner::{Inner, PAGE, Pair, get, get_under};
use super::names::{end_of, revisions_of};
use crate::store::{Loaded, Logged, NetworkEntry, StoreError};

/// Most entries of the log in one answer: each holds half a MiB at most.
const LOG_PAGE: i64 = 32;
/// Most pieces of a big commit in one answer.
const PART_PAGE: i64 = 16;

/// Where a network is, at one moment of the whole cluster.
pub(super) struct Place {
    pub(super) revision: Revision,
    pub(super) base: Base,
    /// When the base was written last.
    pub(super) base_changed: i64,
    /// The moment.
    pub(super) at: i64,
}

impl Inner {
    /// All networks, by identifier.
    pub(super) async fn networks(&self) -> Result<Vec<NetworkEntry>, StoreError> {
        let said = self.ask(vec![get_under(self.names.names()), get_under(self.names.heads())]).await?;
        let mut revisions = HashMap::new();
        for pair in said.all(1)? {
            if let Some(network) = self.names.network_of_head(&pair.key) {
                revisions.insert(network, revision(&pair.value)?);
            }
        }
        let corrupt =
            |what: &str, pair: &Pair| StoreError::Corrupt { what: format!("{what} of {}", pair.key) };
        let mut all = Vec::new();
        for pair in said.all(0)? {
            let id = text("a network", &pair.value)?.parse().map_err(|_| corrupt("the network", &pair))?;
            let name = pair.key.rsplit('/').next().and_then(|name| name.parse().ok());
            let name = name.ok_or_else(|| corrupt("the name", &pair))?;
            let revision = revisions.get(&id).copied().ok_or_else(|| corrupt("the head", &pair))?;
            all.push(NetworkEntry { id, name, revision });
        }
        all.sort_by_key(|entry| entry.id);
        Ok(all)
    }

    /// Where a network is.
    pub(super) async fn place(&self, network: NetworkId) -> Result<Place, StoreError> {
        let said = self.ask(vec![get(self.names.head(network)), get(self.names.base(network))]).await?;
        let unknown = StoreError::UnknownNetwork { network };
        let (Some(head), Some(base)) = (said.only(0)?, said.only(1)?) else { return Err(unknown) };
        Ok(Place {
            revision: revision(&head.value)?,
            base: from_json("a base", &base.value)?,
            base_changed: base.changed,
            at: said.at,
        })
    }

    /// All rows: those that are folded, and what the log says since.
    pub(super) async fn load(&self, network: NetworkId) -> Result<Loaded, StoreError> {
        let place = self.place(network).await?;
        let prefix = self.names.rows(network);
        let mut rows: HashMap<Vec<u8>, Row> = HashMap::new();
        for pair in self.under(prefix.clone(), place.at, PAGE).await? {
            let key = pair.key.strip_prefix(&prefix).unwrap_or_default().as_bytes().to_vec();
            rows.insert(key, from_json("a row", &pair.value)?);
        }
        // The last entry is read whether it is folded or not, as it tells how far the audit trail is.
        let since = Revision::new(place.base.revision.get().min(place.revision.get().saturating_sub(1)));
        for step in self.steps(network, since, place.at).await? {
            for change in step.changes {
                match change {
                    StateChange::Put(row) => drop(rows.insert(to_json(&row.key())?, row)),
                    StateChange::Remove(key) => drop(rows.remove(&to_json(&key)?)),
                }
            }
        }
        self.folds.folded(network, place.base.revision);
        self.announce(network, place.revision);
        Ok(Loaded { revision: place.revision, rows: rows.into_values().collect() })
    }

    /// The revisions after `since`.
    pub(super) async fn changes_since(
        &self,
        network: NetworkId,
        since: Revision,
    ) -> Result<Vec<Logged>, StoreError> {
        let log = self.names.log(network);
        let oldest = etcd_client::GetOptions::new().with_prefix().with_limit(1).with_keys_only();
        let questions = vec![get(self.names.head(network)), etcd_client::TxnOp::get(log, Some(oldest))];
        let said = self.ask(questions).await?;
        let head = said.only(0)?.ok_or(StoreError::UnknownNetwork { network })?;
        let newest = revision(&head.value)?;
        if since >= newest {
            return Ok(Vec::new());
        }
        let first = said.only(1)?.and_then(|pair| revisions_of(&pair.key)).map(|(first, _)| first);
        let first = first.unwrap_or(newest.next());
        if since.next() < first {
            return Err(StoreError::Compacted { oldest: Revision::new(first.get().saturating_sub(1)) });
        }
        let steps = self.steps(network, since, said.at).await?;
        Ok(steps.into_iter().map(Logged::from).collect())
    }

    /// What the log holds after a revision, at a moment.
    pub(super) async fn steps(
        &self,
        network: NetworkId,
        since: Revision,
        at: i64,
    ) -> Result<Vec<Step>, StoreError> {
        let from = self.names.log_from(network, since.next());
        let end = end_of(&self.names.log(network));
        let mut steps = Vec::new();
        for pair in self.range(from, end, at, LOG_PAGE).await? {
            let mut entry: Entry = from_json("an entry of the change log", &pair.value)?;
            self.seen_seq(entry.seq);
            if entry.parts > 0 {
                let last = revisions_of(&pair.key).map(|(_, last)| last).unwrap_or_default();
                entry = self.assemble(network, last, &entry, at).await?;
            }
            steps.extend(entry.steps.into_iter().filter(|step| step.head.revision > since));
        }
        Ok(steps)
    }

    async fn assemble(
        &self,
        network: NetworkId,
        last: Revision,
        entry: &Entry,
        at: i64,
    ) -> Result<Entry, StoreError> {
        let parts = self.under(self.names.parts_of(network, last, &entry.tag), at, PART_PAGE).await?;
        if parts.len() != entry.parts {
            let what = format!("{} of {} pieces of revision {last} are there", parts.len(), entry.parts);
            return Err(StoreError::Corrupt { what });
        }
        let whole: Vec<u8> = parts.into_iter().flat_map(|pair| pair.value).collect();
        from_json("a commit in pieces", &whole)
    }
}
