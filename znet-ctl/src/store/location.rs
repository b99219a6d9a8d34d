//! How a store is named on a command line.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use super::etcd::{EtcdUrl, EtcdUrlError};
use super::{EtcdStore, SqliteStore, Store, StoreError};

/// Where networks are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Location {
    /// In one SQLite file of the data directory: `sqlite`.
    #[default]
    Sqlite,
    /// In a cluster of etcd: `etcd:http://A:2379,http://B:2379`.
    Etcd(EtcdUrl),
}

impl FromStr for Location {
    type Err = EtcdUrlError;

    fn from_str(text: &str) -> Result<Self, EtcdUrlError> {
        if text == "sqlite" { Ok(Self::Sqlite) } else { text.parse().map(Self::Etcd) }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite => f.write_str("sqlite"),
            Self::Etcd(url) => url.fmt(f),
        }
    }
}

impl Location {
    /// Opens it; `file` is where SQLite's is.
    ///
    /// # Errors
    /// What the store says.
    pub async fn open(&self, file: PathBuf) -> Result<Arc<dyn Store>, StoreError> {
        match self {
            Self::Sqlite => {
                let store = tokio::task::spawn_blocking(move || SqliteStore::open(&file)).await;
                let failed =
                    |error: tokio::task::JoinError| StoreError::Unavailable { why: error.to_string() };
                Ok(Arc::new(store.map_err(failed)??))
            }
            Self::Etcd(url) => Ok(Arc::new(EtcdStore::open(url).await?)),
        }
    }
}
