//! What an error of SQLite means for a store.

use std::path::Path;

use rusqlite::{Error, ErrorCode};

use crate::store::StoreError;

/// With less free space than this an input/output error is taken for a full disk: SQLite needs a few pages for its
/// shared-memory file and reports that it could not get them as a plain input/output error.
const FULL_BELOW_BYTES: u64 = 128 * 1024;

/// Translates an error; `path` is the store's file, whose free space tells a full disk from a broken one.
pub(super) fn translate(error: &Error, path: Option<&Path>) -> StoreError {
    let why = error.to_string();
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full { why },
        Some(ErrorCode::SystemIoFailure) if path.is_some_and(is_full) => StoreError::Full { why },
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreError::Corrupt { what: why },
        Some(_) => StoreError::Unavailable { why },
        // Not SQLite's own: a column of another type than was written.
        None => StoreError::Corrupt { what: why },
    }
}

fn is_full(path: &Path) -> bool {
    let directory = path.parent().unwrap_or(path);
    nix::sys::statvfs::statvfs(directory)
        .is_ok_and(|fs| fs.blocks_available().saturating_mul(fs.fragment_size()) < FULL_BELOW_BYTES)
}

impl From<Error> for StoreError {
    fn from(error: Error) -> Self {
        translate(&error, None)
    }
}
