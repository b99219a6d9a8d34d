//! The questions that readers ask.

use rusqlite::{Connection, OptionalExtension as _, Row};
use znet_core::id::{NetworkId, Revision, TokenId};
use znet_core::time::Timestamp;

use super::encode::{from_json, logged};
use crate::actor::Scope;
use crate::store::{AuditRecord, Loaded, Logged, NetworkEntry, Operator, StoreError};

pub(super) fn networks(connection: &Connection) -> Result<Vec<NetworkEntry>, StoreError> {
    let mut statement = connection.prepare_cached("SELECT id, name, revision FROM networks ORDER BY id")?;
    let mut rows = statement.query([])?;
    let mut entries = Vec::new();
    while let Some(row) = rows.next()? {
        let name: String = row.get(1)?;
        entries.push(NetworkEntry {
            id: network_id(&row.get::<_, Vec<u8>>(0)?)?,
            name: name
                .parse()
                .map_err(|error| corrupt(format!("the name {name:?} of a network: {error}")))?,
            revision: Revision::new(row.get(2)?),
        });
    }
    Ok(entries)
}

/// The number under which a network's rows stand, and its revision.
pub(super) fn find(connection: &Connection, network: NetworkId) -> Result<(i64, Revision), StoreError> {
    let mut statement = connection.prepare_cached("SELECT n, revision FROM networks WHERE id = ?1")?;
    let found = statement
        .query_row([network.as_bytes().as_slice()], |row| Ok((row.get(0)?, Revision::new(row.get(1)?))))
        .optional()?;
    found.ok_or(StoreError::UnknownNetwork { network })
}

pub(super) fn load(connection: &mut Connection, network: NetworkId) -> Result<Loaded, StoreError> {
    // One transaction, so that revision and rows are of one moment.
    let transaction = connection.transaction()?;
    let (n, revision) = find(&transaction, network)?;
    let mut statement = transaction.prepare_cached("SELECT value FROM rows WHERE n = ?1")?;
    let mut found = statement.query([n])?;
    let mut rows = Vec::new();
    while let Some(row) = found.next()? {
        rows.push(from_json("a row", row.get_ref(0)?.as_str().map_err(|e| corrupt(e.to_string()))?)?);
    }
    Ok(Loaded { revision, rows })
}

pub(super) fn changes_since(
    connection: &mut Connection,
    network: NetworkId,
    since: Revision,
) -> Result<Vec<Logged>, StoreError> {
    let transaction = connection.transaction()?;
    let (n, _) = find(&transaction, network)?;
    let oldest: Option<u64> = transaction
        .prepare_cached("SELECT min(revision) FROM changes WHERE n = ?1")?
        .query_row([n], |row| row.get(0))?;
    if let Some(oldest) = oldest.filter(|oldest| since.next().get() < *oldest) {
        return Err(StoreError::Compacted { oldest: Revision::new(oldest.saturating_sub(1)) });
    }
    let mut statement = transaction.prepare_cached(
        "SELECT revision, epoch, digest, steps FROM changes WHERE n = ?1 AND revision > ?2 ORDER BY revision",
    )?;
    let columns = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?));
    // Numbers above what SQLite counts to are above every revision that there is.
    let since = i64::try_from(since.get()).unwrap_or(i64::MAX);
    let found = statement.query_map((n, since), columns)?;
    found.map(|entry| logged(network, entry?)).collect()
}

pub(super) fn audit(
    connection: &Connection,
    network: Option<NetworkId>,
    after: u64,
    limit: usize,
) -> Result<Vec<AuditRecord>, StoreError> {
    let after = i64::try_from(after).unwrap_or(i64::MAX);
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut statement = connection.prepare_cached(match network {
        Some(_) => {
            "SELECT seq, network, revision, at, actor, action, detail FROM audit
             WHERE network = ?3 AND seq > ?1 ORDER BY seq LIMIT ?2"
        }
        None => {
            "SELECT seq, network, revision, at, actor, action, detail FROM audit
             WHERE seq > ?1 AND ?3 IS NULL ORDER BY seq LIMIT ?2"
        }
    })?;
    let wanted = network.map(|network| network.as_bytes().to_vec());
    let mut rows = statement.query((after, limit, wanted))?;
    let mut records = Vec::new();
    while let Some(row) = rows.next()? {
        let network: Option<Vec<u8>> = row.get(1)?;
        records.push(AuditRecord {
            seq: row.get(0)?,
            network: network.as_deref().map(network_id).transpose()?,
            revision: row.get::<_, Option<u64>>(2)?.map(Revision::new),
            at: Timestamp::from_millis(row.get(3)?),
            actor: row.get(4)?,
            action: row.get(5)?,
            detail: row.get(6)?,
        });
    }
    Ok(records)
}

pub(super) fn operators(connection: &Connection) -> Result<Vec<Operator>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT id, note, secret_hash, network, role, created FROM operators ORDER BY created, id",
    )?;
    let mut rows = statement.query([])?;
    let mut operators = Vec::new();
    while let Some(row) = rows.next()? {
        let (id, hash): (Vec<u8>, Vec<u8>) = (row.get(0)?, row.get(2)?);
        let network: Option<Vec<u8>> = row.get(3)?;
        let role: String = row.get(4)?;
        operators.push(Operator {
            id: TokenId::try_from(id.as_slice()).map_err(|error| corrupt(error.to_string()))?,
            note: row.get(1)?,
            secret_hash: hash
                .try_into()
                .map_err(|_| corrupt("an operator's hash is cut short".to_owned()))?,
            scope: match network.as_deref() {
                None => Scope::All,
                Some(bytes) => Scope::Network(network_id(bytes)?),
            },
            role: role.parse().map_err(|error: crate::actor::UnknownRole| corrupt(error.to_string()))?,
            created: Timestamp::from_millis(row.get(5)?),
        });
    }
    Ok(operators)
}

fn network_id(bytes: &[u8]) -> Result<NetworkId, StoreError> {
    NetworkId::try_from(bytes).map_err(|error| corrupt(error.to_string()))
}

fn corrupt(what: String) -> StoreError {
    StoreError::Corrupt { what }
}
