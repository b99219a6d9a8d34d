//! Writing what comes out of another store.

use rusqlite::Connection;
use znet_core::id::Revision;

use super::encode::Adopted;
use super::write::{Failure, add, add_operator};
use crate::store::{AuditRecord, Operator};

pub(super) fn network(connection: &Connection, adopted: &Adopted) -> Result<(), Failure> {
    let n = add(connection, adopted.head.network, &adopted.name)?;
    let mut insert = connection.prepare("INSERT INTO rows (n, key, value) VALUES (?1, ?2, ?3)")?;
    for (key, value) in &adopted.rows {
        insert.execute((n, key, value))?;
    }
    let mut log = connection
        .prepare("INSERT INTO changes (n, revision, epoch, digest, steps) VALUES (?1, ?2, ?3, ?4, ?5)")?;
    for (head, steps) in &adopted.log {
        let digest = head.digest.as_bytes().as_slice();
        log.execute((n, head.revision.get(), head.epoch.get(), digest, steps))?;
    }
    let revision = adopted.head.revision.get();
    connection.execute("UPDATE networks SET revision = ?2 WHERE n = ?1", (n, revision))?;
    Ok(())
}

pub(super) fn rest(
    connection: &Connection,
    operators: &[Operator],
    audit: &[AuditRecord],
) -> Result<(), Failure> {
    for operator in operators {
        add_operator(connection, operator)?;
    }
    // Numbers of its own: another store counts in another way.
    let mut insert = connection.prepare(
        "INSERT INTO audit (network, revision, at, actor, action, detail) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?;
    for record in audit {
        insert.execute((
            record.network.map(|network| network.as_bytes().to_vec()),
            record.revision.map(Revision::get),
            record.at.as_millis(),
            &record.actor,
            &record.action,
            &record.detail,
        ))?;
    }
    Ok(())
}
