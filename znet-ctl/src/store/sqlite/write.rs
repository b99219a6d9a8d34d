//! The thread that writes: everything that waits goes into one transaction.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};
use znet_core::id::{NetworkId, Revision, TokenId};
use znet_core::name::Name;

use super::adopt;
use super::encode::{Adopted, Encoded};
use super::error::translate;
use super::read;
use crate::actor::Scope;
use crate::store::{
    AUDIT_KEPT, AuditNote, AuditRecord, CHANGES_KEPT, MAX_NETWORKS, MAX_OPERATORS, Operator, StoreError,
};

/// Most writes of one transaction; those that come later wait for the next.
const MAX_GROUP: usize = 256;
/// After how many audit records the oldest ones beyond the bound are cleared away.
const AUDIT_CLEARED_EVERY: i64 = 1024;

/// One thing to write.
#[derive(Debug)]
pub(super) enum Write {
    Create { network: NetworkId, name: Name, first: Encoded },
    Delete { network: NetworkId, audit: AuditNote },
    Commit { network: NetworkId, expected: Revision, commits: Vec<Encoded> },
    AddOperator { operator: Operator, audit: AuditNote },
    RemoveOperator { id: TokenId, audit: AuditNote },
    Adopt(Adopted),
    AdoptRest { operators: Vec<Operator>, audit: Vec<AuditRecord> },
    Note(AuditNote),
    Probe,
    Close,
}

/// A write and whoever waits for its result: whether anything was changed.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) write: Write,
    pub(super) done: oneshot::Sender<Result<bool, StoreError>>,
}

/// Writes until told to close or until nobody can send any more.
pub(super) fn run(mut connection: Connection, mut jobs: mpsc::Receiver<Job>, path: &Path) {
    let mut group: Vec<Job> = Vec::with_capacity(MAX_GROUP);
    let closer = loop {
        let Some(first) = jobs.blocking_recv() else { break None };
        group.push(first);
        while group.len() < MAX_GROUP
            && let Ok(next) = jobs.try_recv()
        {
            group.push(next);
        }
        let close = group.iter().position(|job| matches!(job.write, Write::Close));
        let after_close = close.map(|at| group.split_off(at)).unwrap_or_default();
        write_group(&mut connection, &mut group, path);
        if let Some(closer) = after_close.into_iter().next() {
            break Some(closer);
        }
    };
    // Fold the log back, so that the file alone is whole. If that fails the log stays and is read at the next start.
    let folded = connection.pragma_query(None, "wal_checkpoint(TRUNCATE)", |_| Ok(()));
    if let Err(error) = folded {
        tracing::warn!(%error, "the write-ahead log was not folded back; it is read at the next start");
    }
    drop(connection);
    if let Some(closer) = closer {
        let _ = closer.done.send(Ok(true));
    }
}

fn write_group(connection: &mut Connection, group: &mut Vec<Job>, path: &Path) {
    if group.is_empty() {
        return;
    }
    match try_group(connection, group) {
        Ok(results) => {
            for (job, result) in group.drain(..).zip(results) {
                let _ = job.done.send(result);
            }
        }
        Err(error) => {
            let error = match error {
                Failure::Sqlite(error) => translate(&error, Some(path)),
                Failure::Store(error) => error,
            };
            tracing::warn!(%error, writes = group.len(), "nothing of this group of writes was kept");
            for job in group.drain(..) {
                let _ = job.done.send(Err(error.clone()));
            }
        }
    }
}

/// Why one write, or all of the group, did not happen.
pub(super) enum Failure {
    Sqlite(rusqlite::Error),
    Store(StoreError),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// One transaction over all; a write that is refused leaves the others' in place, a failure of the storage none.
fn try_group(connection: &mut Connection, group: &[Job]) -> Result<Vec<Result<bool, StoreError>>, Failure> {
    // Dropped without a commit it rolls back, whatever is left of it.
    let mut transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut results = Vec::with_capacity(group.len());
    let mut changed = false;
    for job in group {
        let savepoint = transaction.savepoint()?;
        match write_one(&savepoint, &job.write) {
            Ok(done) => {
                savepoint.commit()?;
                changed |= done;
                results.push(Ok(done));
            }
            Err(Failure::Store(refused)) if !refused.is_failure() => {
                savepoint.finish()?;
                results.push(Err(refused));
            }
            Err(failure) => return Err(failure),
        }
    }
    if changed {
        transaction.commit()?;
    }
    Ok(results)
}

fn write_one(connection: &Connection, write: &Write) -> Result<bool, Failure> {
    match write {
        Write::Create { network, name, first } => create(connection, *network, name, first)?,
        Write::Delete { network, audit } => {
            let (n, revision) = read::find(connection, *network)?;
            for table in ["rows", "changes", "networks"] {
                connection.execute(&format!("DELETE FROM {table} WHERE n = ?1"), [n])?;
            }
            note(connection, Some(*network), Some(revision), audit)?;
        }
        Write::Commit { network, expected, commits } => {
            let (n, found) = read::find(connection, *network)?;
            if found != *expected {
                return Err(StoreError::Conflict { network: *network, expected: *expected, found }.into());
            }
            put(connection, n, commits)?;
        }
        Write::AddOperator { operator, audit } => {
            if count(connection, "SELECT count(*) FROM operators")? >= MAX_OPERATORS {
                return Err(StoreError::TooMany { what: "operators", bound: MAX_OPERATORS }.into());
            }
            add_operator(connection, operator)?;
            note(connection, None, None, audit)?;
        }
        Write::RemoveOperator { id, audit } => {
            let gone =
                connection.execute("DELETE FROM operators WHERE id = ?1", [id.as_bytes().as_slice()])?;
            if gone == 0 {
                return Ok(false);
            }
            note(connection, None, None, audit)?;
        }
        Write::Adopt(adopted) => adopt::network(connection, adopted)?,
        Write::AdoptRest { operators, audit } => adopt::rest(connection, operators, audit)?,
        Write::Note(audit) => note(connection, None, None, audit)?,
        Write::Probe => {
            connection.execute("UPDATE probe SET count = count + 1", [])?;
        }
        Write::Close => return Ok(false),
    }
    Ok(true)
}

fn create(connection: &Connection, network: NetworkId, name: &Name, first: &Encoded) -> Result<(), Failure> {
    let n = add(connection, network, name)?;
    put(connection, n, std::slice::from_ref(first))
}

/// Adds a network without anything in it, and returns its number.
pub(super) fn add(connection: &Connection, network: NetworkId, name: &Name) -> Result<i64, Failure> {
    match read::find(connection, network) {
        Ok((_, found)) => {
            return Err(StoreError::Conflict { network, expected: Revision::ZERO, found }.into());
        }
        Err(StoreError::UnknownNetwork { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let mut taken = connection.prepare_cached("SELECT 1 FROM networks WHERE name = ?1")?;
    if taken.exists([name.as_str()])? {
        return Err(StoreError::NameTaken { name: name.clone() }.into());
    }
    if count(connection, "SELECT count(*) FROM networks")? >= MAX_NETWORKS {
        return Err(StoreError::TooMany { what: "networks", bound: MAX_NETWORKS }.into());
    }
    connection.execute(
        "INSERT INTO networks (id, name, revision) VALUES (?1, ?2, 0)",
        (network.as_bytes().as_slice(), name.as_str()),
    )?;
    Ok(connection.last_insert_rowid())
}

fn put(connection: &Connection, n: i64, commits: &[Encoded]) -> Result<(), Failure> {
    let mut insert =
        connection.prepare_cached("INSERT OR REPLACE INTO rows (n, key, value) VALUES (?1, ?2, ?3)")?;
    let mut remove = connection.prepare_cached("DELETE FROM rows WHERE n = ?1 AND key = ?2")?;
    let mut log = connection.prepare_cached(
        "INSERT INTO changes (n, revision, epoch, digest, steps) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    for commit in commits {
        for (key, value) in &commit.rows {
            match value {
                Some(value) => insert.execute((n, key, value))?,
                None => remove.execute((n, key))?,
            };
        }
        let head = &commit.head;
        let digest = head.digest.as_bytes().as_slice();
        log.execute((n, head.revision.get(), head.epoch.get(), digest, &commit.steps))?;
        note(connection, Some(head.network), Some(head.revision), &commit.audit)?;
    }
    let Some(last) = commits.last() else { return Ok(()) };
    let revision = last.head.revision.get();
    connection.prepare_cached("UPDATE networks SET revision = ?2 WHERE n = ?1")?.execute((n, revision))?;
    connection
        .prepare_cached("DELETE FROM changes WHERE n = ?1 AND revision <= ?2")?
        .execute((n, revision.saturating_sub(CHANGES_KEPT)))?;
    Ok(())
}

pub(super) fn add_operator(connection: &Connection, operator: &Operator) -> Result<(), Failure> {
    let network = match operator.scope {
        Scope::All => None,
        Scope::Network(network) => Some(network.as_bytes().to_vec()),
    };
    connection.execute(
        "INSERT OR REPLACE INTO operators (id, note, secret_hash, network, role, created)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        (
            operator.id.as_bytes().as_slice(),
            &operator.note,
            operator.secret_hash.as_slice(),
            network,
            operator.role.to_string(),
            operator.created.as_millis(),
        ),
    )?;
    Ok(())
}

fn note(
    connection: &Connection,
    network: Option<NetworkId>,
    revision: Option<Revision>,
    note: &AuditNote,
) -> Result<(), Failure> {
    let mut insert = connection.prepare_cached(
        "INSERT INTO audit (network, revision, at, actor, action, detail) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?;
    let seq = insert.insert((
        network.map(|network| network.as_bytes().to_vec()),
        revision.map(Revision::get),
        note.at.as_millis(),
        note.actor.to_string(),
        note.action,
        &note.detail,
    ))?;
    if seq % AUDIT_CLEARED_EVERY == 0 {
        let beyond = seq.saturating_sub(i64::try_from(AUDIT_KEPT).unwrap_or(i64::MAX));
        connection.execute("DELETE FROM audit WHERE seq <= ?1", [beyond])?;
    }
    Ok(())
}

fn count(connection: &Connection, question: &str) -> Result<usize, Failure> {
    Ok(connection.prepare_cached(question)?.query_row([], |row| row.get(0))?)
}
