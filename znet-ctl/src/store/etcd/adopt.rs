//! Writing what comes out of another store.
//!
//! A network is written under its own keys first and gets its head last: until then nobody sees it, and what an earlier
//! attempt left behind is removed before the next.

use etcd_client::TxnOp;
use znet_core::id::Revision;

use super::encode::{Base, Entry, Note, OperatorForm, Step, revision, to_json};
use super::fold::{MAX_BYTES, MAX_ROWS};
use super::inner::{Inner, absent, delete_under, get, put, tag};
use crate::store::{AuditRecord, Moved, Operator, StoreError};

/// Most audit records of one transaction: each takes two operations.
const MAX_RECORDS: usize = 50;

impl Inner {
    pub(super) async fn adopt(&self, moved: Moved) -> Result<(), StoreError> {
        let Moved { head, name, rows, log } = moved;
        let (network, key, named) = (head.network, self.names.head(head.network), self.names.name(&name));
        let said = self.ask(vec![get(key.clone()), get(named.clone())]).await?;
        if let Some(pair) = said.only(0)? {
            let found = revision(&pair.value)?;
            return Err(StoreError::Conflict { network, expected: Revision::ZERO, found });
        }
        if said.only(1)?.is_some() {
            return Err(StoreError::NameTaken { name });
        }
        self.ask(vec![delete_under(self.names.network(network))]).await?;
        let mut writes = Batches::default();
        for row in &rows {
            writes.add(self.row_key(network, &row.key())?, to_json(row)?);
        }
        let entries = log.len();
        for logged in log {
            let at = logged.head.revision;
            let step = Step { head: logged.head, changes: logged.changes };
            let entry = Entry { tag: tag(), seq: 0, parts: 0, steps: vec![step] };
            writes.add(self.names.log_entry(network, at, at), to_json(&entry)?);
        }
        tracing::debug!(%network, rows = rows.len(), entries, "a network is taken over");
        for batch in writes.all {
            self.ask(batch).await?;
        }
        let base = to_json(&Base { revision: head.revision, claim: String::new() })?;
        let shown = vec![
            put(self.names.base(network), base),
            put(key.clone(), head.revision.to_string()),
            put(named.clone(), network.to_string()),
            put(self.names.networks_changed(), tag()),
        ];
        let said = self.txn(vec![absent(key), absent(named)], shown, Vec::new()).await?;
        if !said.held && !said.repeated {
            return Err(StoreError::NameTaken { name });
        }
        self.announce(network, head.revision);
        Ok(())
    }

    pub(super) async fn adopt_rest(
        &self,
        operators: Vec<Operator>,
        audit: Vec<AuditRecord>,
    ) -> Result<(), StoreError> {
        let mut writes = Batches::default();
        for operator in operators {
            writes.add(self.names.operator(operator.id), to_json(&OperatorForm::from(operator))?);
        }
        for batch in writes.all {
            self.ask(batch).await?;
        }
        self.ask(vec![put(self.names.operators_changed(), tag())]).await?;
        let mut audit = audit.into_iter().peekable();
        while audit.peek().is_some() {
            let mut writes = Vec::new();
            for record in audit.by_ref().take(MAX_RECORDS) {
                let seq = self.next_seq(record.at, 1);
                writes.extend(self.notes(record.network, seq, &[Note::from(record)])?);
            }
            self.ask(writes).await?;
        }
        Ok(())
    }
}

/// Writes in portions that etcd takes.
#[derive(Default)]
struct Batches {
    all: Vec<Vec<TxnOp>>,
    bytes: usize,
}

impl Batches {
    fn add(&mut self, key: String, value: Vec<u8>) {
        let size = key.len() + value.len();
        let fits =
            self.all.last().is_some_and(|last| last.len() < MAX_ROWS) && self.bytes + size <= MAX_BYTES;
        if !fits {
            self.all.push(Vec::new());
            self.bytes = 0;
        }
        self.bytes += size;
        if let Some(last) = self.all.last_mut() {
            last.push(put(key, value));
        }
    }
}
