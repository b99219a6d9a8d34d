//! The audit trail, and the operators' tokens.
//!
//! The records of one commit stand under one key, which bears the number of the last of them. Numbers follow the clocks of
//! the controllers and never go back within a network; between networks they are in order as far as the controllers'
//! clocks are, and as what they have heard of each other.

use etcd_client::{GetOptions, TxnOp};
use znet_core::id::{NetworkId, TokenId};

use super::commit::{MAX_RACES, busy};
use super::encode::{Note, OperatorForm, from_json, to_json};
use super::inner::{Inner, Pair, absent, delete, get, get_under, put, tag, unchanged};
use super::names::{end_of, number};
use crate::store::{AuditNote, AuditRecord, MAX_OPERATORS, Operator, StoreError};

/// Most keys that are asked for at once: etcd takes 128 operations.
const MAX_QUESTIONS: usize = 64;
/// Most entries of the trail that are removed at once: each takes two operations.
const MAX_REMOVED: usize = 50;

impl Inner {
    /// Audit records after `after`.
    pub(super) async fn audit_after(
        &self,
        network: Option<NetworkId>,
        after: u64,
        limit: usize,
    ) -> Result<Vec<AuditRecord>, StoreError> {
        let prefix = network.map_or_else(|| self.names.trail(), |network| self.names.audit(Some(network)));
        let from = format!("{prefix}{}", number(after.saturating_add(1)));
        let page = i64::try_from(limit).unwrap_or(i64::MAX);
        let options = GetOptions::new().with_range(end_of(&prefix)).with_limit(page);
        let found = self.ask(vec![TxnOp::get(from, Some(options))]).await?.all(0)?;
        let found = if network.is_some() { found } else { self.of_trail(&found).await? };
        let mut records = Vec::new();
        for pair in found {
            records.extend(records_of(&pair)?);
        }
        records.retain(|record| record.seq > after);
        records.sort_by_key(|record| record.seq);
        records.truncate(limit);
        Ok(records)
    }

    /// The records to which entries of the trail lead.
    async fn of_trail(&self, trail: &[Pair]) -> Result<Vec<Pair>, StoreError> {
        let mut found = Vec::with_capacity(trail.len());
        for entries in trail.chunks(MAX_QUESTIONS) {
            let keys = entries.iter().filter_map(|pair| self.names.audit_of_trail(&pair.key));
            let said = self.ask(keys.map(get).collect()).await?;
            for question in 0..said.found.len() {
                found.extend(said.only(question)?);
            }
        }
        Ok(found)
    }

    /// The number of the last record, so that this process's own come after it.
    pub(super) async fn last_seq(&self) -> Result<u64, StoreError> {
        let options = GetOptions::new()
            .with_prefix()
            .with_limit(1)
            .with_keys_only()
            .with_sort(etcd_client::SortTarget::Key, etcd_client::SortOrder::Descend);
        let last = self.ask(vec![TxnOp::get(self.names.trail(), Some(options))]).await?.only(0)?;
        let seq = last.as_ref().and_then(|pair| pair.key.rsplit('/').next()?.split_once('-'));
        Ok(seq.and_then(|(seq, _)| u64::from_str_radix(seq, 16).ok()).unwrap_or_default())
    }

    /// Removes the oldest entries of the trail until `kept` are left. Each holds one record at least.
    pub(super) async fn shorten_trail(&self, kept: u64) -> Result<(), StoreError> {
        let count = GetOptions::new().with_prefix().with_count_only();
        let said = self.ask(vec![TxnOp::get(self.names.trail(), Some(count))]).await?;
        let there = said.found.first().map_or(0, etcd_client::GetResponse::count);
        let mut beyond = u64::try_from(there).unwrap_or_default().saturating_sub(kept);
        while beyond > 0 {
            let some = usize::try_from(beyond).unwrap_or(usize::MAX).min(MAX_REMOVED);
            let page = i64::try_from(some).unwrap_or(i64::MAX);
            let oldest = GetOptions::new().with_prefix().with_limit(page).with_keys_only();
            let oldest = self.ask(vec![TxnOp::get(self.names.trail(), Some(oldest))]).await?.all(0)?;
            if oldest.is_empty() {
                break;
            }
            beyond = beyond.saturating_sub(u64::try_from(oldest.len()).unwrap_or(u64::MAX));
            let both = oldest.into_iter().flat_map(|pair| {
                let records = self.names.audit_of_trail(&pair.key);
                [Some(pair.key), records].into_iter().flatten().map(delete)
            });
            self.ask(both.collect()).await?;
        }
        Ok(())
    }

    /// All operators' tokens, by handle.
    pub(super) async fn operators(&self) -> Result<Vec<Operator>, StoreError> {
        let found = self.ask(vec![get_under(self.names.operators())]).await?.all(0)?;
        let form = |pair: &Pair| from_json::<OperatorForm>("an operator", &pair.value)?.try_into();
        found.iter().map(form).collect()
    }

    /// Adds an operator's token.
    pub(super) async fn add_operator(&self, operator: Operator, audit: AuditNote) -> Result<(), StoreError> {
        let (key, changed, tag) = (self.names.operator(operator.id), self.names.operators_changed(), tag());
        let seq = self.next_seq(audit.at, 1);
        let value = to_json(&OperatorForm::from(operator))?;
        let mut writes = vec![put(key, value), put(changed.clone(), tag.clone())];
        writes.extend(self.notes(None, seq, &[Note::new(None, audit)])?);
        for _ in 0..MAX_RACES {
            let said = self.ask(vec![get(changed.clone()), get_under(self.names.operators())]).await?;
            if said.all(1)?.len() >= MAX_OPERATORS {
                return Err(StoreError::TooMany { what: "operators", bound: MAX_OPERATORS });
            }
            let since = said.only(0)?.map_or(0, |pair| pair.changed);
            let same = vec![unchanged(changed.clone(), since)];
            let said = self.txn(same, writes.clone(), vec![get(changed.clone())]).await?;
            let own = said.only(0)?.is_some_and(|pair| pair.value == tag.as_bytes());
            if said.held || said.repeated && own {
                return Ok(());
            }
        }
        Err(busy())
    }

    /// Adds a record of what was done to the controllers themselves.
    pub(super) async fn note(&self, audit: AuditNote) -> Result<(), StoreError> {
        let seq = self.next_seq(audit.at, 1);
        self.ask(self.notes(None, seq, &[Note::new(None, audit)])?).await.map(drop)
    }

    /// Removes an operator's token; `false` when there was none.
    pub(super) async fn remove_operator(&self, id: TokenId, audit: AuditNote) -> Result<bool, StoreError> {
        let key = self.names.operator(id);
        let seq = self.next_seq(audit.at, 1);
        let mut writes = vec![delete(key.clone()), put(self.names.operators_changed(), tag())];
        writes.extend(self.notes(None, seq, &[Note::new(None, audit)])?);
        // Nothing where it is gone already, and everything where it is there.
        let said = self.txn(vec![absent(key)], Vec::new(), writes).await?;
        Ok(!said.held || said.repeated)
    }
}

fn records_of(pair: &Pair) -> Result<Vec<AuditRecord>, StoreError> {
    let corrupt = || StoreError::Corrupt { what: format!("the key {} of audit records", pair.key) };
    let mut words = pair.key.rsplit('/');
    let last = words.next().and_then(|seq| u64::from_str_radix(seq, 16).ok()).ok_or_else(corrupt)?;
    let network = words.next().and_then(|network| network.parse().ok());
    let notes: Vec<Note> = from_json("audit records", &pair.value)?;
    let first = last.saturating_sub(u64::try_from(notes.len()).unwrap_or(u64::MAX).saturating_sub(1));
    Ok((first..).zip(notes).map(|(seq, note)| note.record(network, seq)).collect())
}
