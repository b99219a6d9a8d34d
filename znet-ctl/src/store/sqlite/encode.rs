//! Between the store's types and the columns of its tables.

use serde::Serialize;
use znet_core::controller::StateChange;
use znet_core::id::{Epoch, NetworkId, Revision};
use znet_core::map::{Digest, Head};

use znet_core::name::Name;

use crate::store::{AuditNote, Commit, Logged, Moved, StoreError};

/// A commit in the form in which it is written, made by the caller and not by the one thread that writes.
#[derive(Debug)]
pub(super) struct Encoded {
    pub(super) head: Head,
    /// Keys with their new value, or none for a row that goes.
    pub(super) rows: Vec<(String, Option<String>)>,
    pub(super) steps: String,
    pub(super) audit: AuditNote,
}

impl Encoded {
    pub(super) fn new(commit: Commit) -> Result<Self, StoreError> {
        let row = |change: &StateChange| match change {
            StateChange::Put(row) => Ok((json(&row.key())?, Some(json(row)?))),
            StateChange::Remove(key) => Ok((json(key)?, None)),
        };
        let rows = commit.changes.iter().map(row).collect::<Result<_, StoreError>>()?;
        Ok(Self { head: commit.head, rows, steps: json(&commit.changes)?, audit: commit.audit })
    }
}

/// A network with its history in the form in which it is written.
#[derive(Debug)]
pub(super) struct Adopted {
    pub(super) head: Head,
    pub(super) name: Name,
    /// Keys and values.
    pub(super) rows: Vec<(String, String)>,
    /// Heads, and what changed.
    pub(super) log: Vec<(Head, String)>,
}

impl Adopted {
    pub(super) fn new(moved: &Moved) -> Result<Self, StoreError> {
        let rows = moved.rows.iter().map(|row| Ok((json(&row.key())?, json(row)?)));
        let log = moved.log.iter().map(|logged| Ok((logged.head, json(&logged.changes)?)));
        Ok(Self {
            head: moved.head,
            name: moved.name.clone(),
            rows: rows.collect::<Result<_, StoreError>>()?,
            log: log.collect::<Result<_, StoreError>>()?,
        })
    }
}

fn json<T: Serialize>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value)
        .map_err(|error| StoreError::Corrupt { what: format!("a row cannot be encoded: {error}") })
}

/// Reads a JSON column.
pub(super) fn from_json<'de, T: serde::Deserialize<'de>>(
    what: &str,
    text: &'de str,
) -> Result<T, StoreError> {
    serde_json::from_str(text)
        .map_err(|error| StoreError::Corrupt { what: format!("{what} cannot be read: {error}") })
}

/// Reads one entry of the change log.
pub(super) fn logged(
    network: NetworkId,
    (revision, epoch, digest, steps): (u64, u64, Vec<u8>, String),
) -> Result<Logged, StoreError> {
    let digest = <[u8; 32]>::try_from(digest).map_err(|_| StoreError::Corrupt {
        what: format!("the digest of revision {revision} is cut short"),
    })?;
    let head = Head {
        network,
        epoch: Epoch::new(epoch),
        revision: Revision::new(revision),
        digest: Digest::from_bytes(digest),
    };
    Ok(Logged { head, changes: from_json("an entry of the change log", &steps)? })
}
