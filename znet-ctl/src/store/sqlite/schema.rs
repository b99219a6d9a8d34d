//! The file's form, and connections to it.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::error::translate;
use crate::store::StoreError;

/// The format that this version writes, kept in `user_version`. Raised with every change of the tables.
pub const FORMAT: i64 = 1;
/// Says in the file's header whose it is: `znet`.
const APPLICATION_ID: i64 = 0x7a6e_6574;
/// How long a connection waits for another one's lock. Only a copy or an inspection by hand ever holds one.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// To how many bytes the write-ahead log is cut when it was folded back.
const WAL_KEPT_BYTES: i64 = 16 << 20;

const TABLES: &str = "
CREATE TABLE networks (
    n INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    name TEXT NOT NULL UNIQUE,
    revision INTEGER NOT NULL
) STRICT;
CREATE TABLE rows (
    n INTEGER NOT NULL REFERENCES networks(n) ON DELETE CASCADE,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (n, key)
) STRICT, WITHOUT ROWID;
CREATE TABLE changes (
    n INTEGER NOT NULL REFERENCES networks(n) ON DELETE CASCADE,
    revision INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    digest BLOB NOT NULL,
    steps TEXT NOT NULL,
    PRIMARY KEY (n, revision)
) STRICT, WITHOUT ROWID;
CREATE TABLE audit (
    seq INTEGER PRIMARY KEY,
    network BLOB,
    revision INTEGER,
    at INTEGER NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    detail TEXT NOT NULL
) STRICT;
CREATE INDEX audit_of_network ON audit (network, seq);
CREATE TABLE operators (
    id BLOB PRIMARY KEY,
    note TEXT NOT NULL,
    secret_hash BLOB NOT NULL,
    network BLOB,
    role TEXT NOT NULL,
    created INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE probe (one INTEGER PRIMARY KEY CHECK (one = 1), count INTEGER NOT NULL) STRICT;
INSERT INTO probe VALUES (1, 0);
";

/// The connection that writes. Makes the file and its tables where there are none.
pub(super) fn open_writer(path: &Path) -> Result<Connection, StoreError> {
    let failed = |error: rusqlite::Error| translate(&error, Some(path));
    // SQLite would let everybody read it; the files that it makes beside it take over its mode.
    let made = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
    made.map_err(|error| StoreError::Unavailable { why: format!("{}: {error}", path.display()) })?;
    let mut connection = Connection::open(path).map_err(failed)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
    // Before anything is written, or a newer version's file would be changed by an older one.
    check_format(&connection, path)?;
    let mode: String =
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0)).map_err(failed)?;
    if mode != "wal" {
        return Err(StoreError::Unavailable {
            why: format!(
                "{} cannot use a write-ahead log; it must be on a local file system",
                path.display()
            ),
        });
    }
    // FULL: the log is flushed to the disk before a commit returns.
    connection.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
    connection.pragma_update(None, "foreign_keys", "ON").map_err(failed)?;
    connection.pragma_update(None, "trusted_schema", "OFF").map_err(failed)?;
    connection.pragma_update(None, "cell_size_check", "ON").map_err(failed)?;
    connection
        .pragma_update_and_check(None, "journal_size_limit", WAL_KEPT_BYTES, |_| Ok(()))
        .map_err(failed)?;
    connection.set_prepared_statement_cache_capacity(32);
    let format: i64 =
        connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
    if format == 0 {
        let transaction = connection.transaction().map_err(failed)?;
        transaction.execute_batch(TABLES).map_err(failed)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID).map_err(failed)?;
        transaction.pragma_update(None, "user_version", FORMAT).map_err(failed)?;
        transaction.commit().map_err(failed)?;
        sync_directory(path)?;
    }
    Ok(connection)
}

/// A connection that only reads.
pub(super) fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    let failed = |error: rusqlite::Error| translate(&error, Some(path));
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
    connection.pragma_update(None, "query_only", "ON").map_err(failed)?;
    Ok(connection)
}

/// Writes a consistent and compact copy of the file, flushed to the disk.
pub(super) fn copy(from: &Path, to: &Path) -> Result<(), StoreError> {
    let failed = |error: rusqlite::Error| translate(&error, Some(to));
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(from, flags).map_err(failed)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
    let target = to.to_str().ok_or(StoreError::Unsupported { what: "copy to a path that is not UTF-8" })?;
    connection.execute("VACUUM INTO ?1", [target]).map_err(failed)?;
    let unavailable = |error: std::io::Error| StoreError::Unavailable { why: error.to_string() };
    std::fs::File::open(to).and_then(|file| file.sync_all()).map_err(unavailable)
}

/// Refuses files of newer versions and of other programs.
fn check_format(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let failed = |error: rusqlite::Error| translate(&error, Some(path));
    let pragma = |name: &str| -> Result<i64, StoreError> {
        connection.pragma_query_value(None, name, |row| row.get(0)).map_err(failed)
    };
    let (format, application) = (pragma("user_version")?, pragma("application_id")?);
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(failed)?;
    if tables == 0 && format == 0 {
        return Ok(());
    }
    if application != APPLICATION_ID {
        return Err(StoreError::Corrupt { what: format!("{} is another program's file", path.display()) });
    }
    if format > FORMAT {
        return Err(StoreError::TooNew { found: format, known: FORMAT });
    }
    Ok(())
}

fn sync_directory(path: &Path) -> Result<(), StoreError> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(|error| StoreError::Unavailable { why: error.to_string() })
}
