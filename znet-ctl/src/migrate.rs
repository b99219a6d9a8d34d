//! Moving everything from one store to another: networks with their history, the audit trail, operators, and keys.
//!
//! The controllers of both must be stopped. What is written is read again and compared, networks by the digest of their map
//! and by every row. The source is not changed.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use znet_api::tls::TlsError;
use znet_core::controller::{Network, Row};
use znet_core::id::Revision;
use znet_core::key::SigningKey;
use znet_core::map::Head;

use crate::keyring::Keyring;
use crate::keys::{DataDir, KeysError};
use crate::store::etcd::{EtcdUrl, EtcdUrlError};
use crate::store::{AuditRecord, EtcdStore, Location, MAX_AUDIT_PAGE, Moved, Store, StoreError};

/// How the name of a data directory begins.
const SQLITE: &str = "sqlite:";

/// One side of a move: `sqlite:DATA_DIR`, or `etcd:…` as `serve --store` takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Side {
    /// A data directory.
    Sqlite(PathBuf),
    /// A cluster.
    Etcd(EtcdUrl),
}

impl FromStr for Side {
    type Err = EtcdUrlError;

    fn from_str(text: &str) -> Result<Self, EtcdUrlError> {
        match text.strip_prefix(SQLITE) {
            Some("") => Err(EtcdUrlError { text: text.to_owned(), why: "sqlite: needs a data directory" }),
            Some(path) => Ok(Self::Sqlite(path.into())),
            None => text.parse().map(Self::Etcd),
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "{SQLITE}{}", path.display()),
            Self::Etcd(url) => url.fmt(f),
        }
    }
}

/// Why nothing, or not everything, was moved.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// A store failed.
    #[error("{side}: {source}")]
    Store {
        /// Which one.
        side: String,
        /// What it said.
        source: StoreError,
    },
    /// A key is missing or cannot be used.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The TLS key cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// There is something already.
    #[error("{side} holds networks or operators already; move into an empty store")]
    NotEmpty {
        /// The target.
        side: String,
    },
    /// What was read again is not what was written.
    #[error(
        "{what} came out different in {side}; the source is as it was, so empty that store and try again"
    )]
    Different {
        /// The target.
        side: String,
        /// What it is about.
        what: String,
    },
    /// The source was changed meanwhile.
    #[error("{side} was changed while it was read; stop its controllers and try again with an empty target")]
    Changed {
        /// The source.
        side: String,
    },
}

/// A network that was moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MovedNetwork {
    /// Its name.
    pub name: String,
    /// Where it is: revision and digest are the same in both stores.
    pub head: Head,
    /// Number of its rows.
    pub rows: usize,
}

/// What was moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The networks, by identifier.
    pub networks: Vec<MovedNetwork>,
    /// Number of operators.
    pub operators: usize,
    /// Number of audit records.
    pub audit: usize,
}

struct Opened {
    name: String,
    store: Arc<dyn Store>,
    keys: Keyring,
}

impl Opened {
    async fn open(side: &Side, store_key: &Path) -> Result<Self, MigrateError> {
        let name = side.to_string();
        let failed = |source| MigrateError::Store { side: name.clone(), source };
        match side {
            Side::Sqlite(path) => {
                let data = DataDir::open(path)?;
                let store = Location::Sqlite.open(data.store_file()).await.map_err(failed)?;
                Ok(Self { store, keys: data.into(), name })
            }
            Side::Etcd(url) => {
                let store: Arc<dyn Store> = Arc::new(EtcdStore::open(url).await.map_err(failed)?);
                let keys = Keyring::of_store(&store, store_key).await?;
                Ok(Self { store, keys, name })
            }
        }
    }

    fn failed(&self) -> impl Fn(StoreError) -> MigrateError + '_ {
        |source| MigrateError::Store { side: self.name.clone(), source }
    }

    fn different(&self, what: impl Into<String>) -> MigrateError {
        MigrateError::Different { side: self.name.clone(), what: what.into() }
    }

    async fn load(&self, id: znet_core::id::NetworkId) -> Result<(Network, Vec<Row>), MigrateError> {
        let mut loaded = self.store.load(id).await.map_err(self.failed())?;
        loaded.rows.sort_by_key(Row::key);
        let network = Network::from_rows(loaded.revision, loaded.rows.clone());
        let corrupt = |error: znet_core::controller::Corrupt| StoreError::Corrupt { what: error.what };
        Ok((network.map_err(corrupt).map_err(self.failed())?, loaded.rows))
    }

    async fn audit(&self) -> Result<Vec<AuditRecord>, MigrateError> {
        let (mut all, mut after) = (Vec::new(), 0);
        loop {
            let page = self.store.audit(None, after, MAX_AUDIT_PAGE).await.map_err(self.failed())?;
            let Some(last) = page.last() else { return Ok(all) };
            after = last.seq;
            all.extend(page);
        }
    }
}

/// Moves everything. `store_key` is the key file of the side that is etcd; made when nothing was sealed there yet.
///
/// # Errors
/// [`MigrateError`]. The source is as it was in any case.
pub async fn migrate(from: &Side, to: &Side, store_key: &Path) -> Result<Report, MigrateError> {
    znet_api::tls::install_provider();
    let (source, target) = (Opened::open(from, store_key).await?, Opened::open(to, store_key).await?);
    let networks = target.store.networks().await.map_err(target.failed())?;
    let operators = target.store.operators().await.map_err(target.failed())?;
    if !networks.is_empty() || !operators.is_empty() {
        return Err(MigrateError::NotEmpty { side: target.name.clone() });
    }
    // Keys before anything that needs them.
    let identities = source.keys.identities().await?;
    target.keys.take_over_identities(&identities).await?;
    let before = source.store.networks().await.map_err(source.failed())?;
    let mut report = Report { networks: Vec::new(), operators: 0, audit: 0 };
    for entry in &before {
        target.keys.write_network_keys(entry.id, &source.keys.network_keys(entry.id).await?).await?;
        report.networks.push(move_network(&source, &target, entry.id).await?);
    }
    let (operators, audit) =
        (source.store.operators().await.map_err(source.failed())?, source.audit().await?);
    (report.operators, report.audit) = (operators.len(), audit.len());
    target.store.adopt_rest(operators.clone(), audit.clone()).await.map_err(target.failed())?;
    if target.store.operators().await.map_err(target.failed())? != operators {
        return Err(target.different("the operators"));
    }
    let unnumbered = |records: Vec<AuditRecord>| -> Vec<AuditRecord> {
        records.into_iter().map(|record| AuditRecord { seq: 0, ..record }).collect()
    };
    if unnumbered(target.audit().await?) != unnumbered(audit) {
        return Err(target.different("the audit trail"));
    }
    if target.keys.identities().await?.to_text() != identities.to_text() {
        return Err(target.different("the TLS keys"));
    }
    let after = source.store.networks().await.map_err(source.failed())?;
    target.store.close().await;
    source.store.close().await;
    if after != before {
        return Err(MigrateError::Changed { side: source.name.clone() });
    }
    Ok(report)
}

async fn move_network(
    source: &Opened,
    target: &Opened,
    id: znet_core::id::NetworkId,
) -> Result<MovedNetwork, MigrateError> {
    let (network, rows) = source.load(id).await?;
    let log = match source.store.changes_since(id, Revision::ZERO).await {
        Err(StoreError::Compacted { oldest }) => source.store.changes_since(id, oldest).await,
        log => log,
    };
    let log = log.map_err(source.failed())?;
    let name = network.conf().name.clone();
    let moved = Moved { head: network.head(), name: name.clone(), rows: rows.clone(), log: log.clone() };
    target.store.adopt(moved).await.map_err(target.failed())?;
    let (there, there_rows) = target.load(id).await?;
    if there.head() != network.head() || there_rows != rows {
        return Err(target.different(format!("network {name}")));
    }
    let since =
        Revision::new(log.first().map_or(network.revision().get(), |first| first.head.revision.get() - 1));
    if target.store.changes_since(id, since).await.map_err(target.failed())? != log {
        return Err(target.different(format!("the change log of network {name}")));
    }
    let public = |keys: Vec<SigningKey>| keys.iter().map(SigningKey::verifying_key).collect::<Vec<_>>();
    if public(target.keys.network_keys(id).await?) != public(source.keys.network_keys(id).await?) {
        return Err(target.different(format!("the signing keys of network {name}")));
    }
    Ok(MovedNetwork { name: name.to_string(), head: there.head(), rows: rows.len() })
}
