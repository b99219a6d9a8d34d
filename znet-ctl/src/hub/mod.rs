//! All networks of a controller, and who may operate them.

mod follow;
mod operators;
mod signing;
mod tend;
mod tls;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;
use znet_api::error::Problem;
use znet_api::tls::{ServerKeys, TlsError};
use znet_core::controller::{Network, NewNetwork, StateChange};
use znet_core::id::{NetworkId, Revision};
use znet_core::key::SigningKey;
use znet_core::name::Name;

use crate::actor::Actor;
use crate::clock::Clock;
use crate::identities::Identities;
use crate::keyring::Keyring;
use crate::keys::KeysError;
use crate::metrics::{Metrics, NetworkFigures};
use crate::network::{CommandError, Common, Hosted};
use crate::store::{AuditNote, AuditRecord, Commit, Store, StoreError};
use operators::Operators;

pub use tls::{TlsStep, TlsStepError};

/// How long a store that fails is not tried again for the answer of `/healthz`.
const PROBE_PAUSE: Duration = Duration::from_secs(1);

/// Why a controller cannot start with what it found.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A key is missing or unusable.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The TLS key is unusable.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Why a network was not created, deleted or found.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// There is none.
    #[error("there is no network {wanted} at this controller; `znet-ctl network list` shows those that are")]
    Unknown {
        /// What was asked for.
        wanted: String,
    },
    /// The rules or the store say no.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// Its key cannot be written.
    #[error(transparent)]
    Keys(#[from] KeysError),
}

impl From<StoreError> for NetworkError {
    fn from(error: StoreError) -> Self {
        Self::Command(CommandError::Store(error))
    }
}

impl From<&NetworkError> for Problem {
    fn from(error: &NetworkError) -> Self {
        match error {
            NetworkError::Unknown { .. } => Self::new(404, "unknown_network", error),
            NetworkError::Command(error) => Self::from(error),
            NetworkError::Keys(_) => Self::new(500, "keys", error),
        }
    }
}

#[derive(Debug, Default)]
struct Networks {
    by_id: BTreeMap<NetworkId, Arc<Hosted>>,
    by_name: BTreeMap<Name, NetworkId>,
}

/// All networks of this controller.
pub struct Hub {
    common: Common,
    keys: Arc<Keyring>,
    tls: ArcSwap<Identities>,
    server_keys: Arc<ServerKeys>,
    advertise: Vec<String>,
    networks: RwLock<Networks>,
    operators: ArcSwap<Operators>,
    /// Told when a network came, so that its map says where its controllers are.
    tend: Arc<Notify>,
    /// Held while networks come or go and while operators change: those are rare.
    changing: tokio::sync::Mutex<()>,
    probed: tokio::sync::Mutex<Option<(tokio::time::Instant, Result<(), StoreError>)>>,
}

impl Hub {
    /// Starts all networks that are in the store and waits until each is served or known to be broken.
    ///
    /// `advertise` are the places, `HOST:PORT`, at which agents reach this controller.
    ///
    /// # Errors
    /// [`HubError`]: the store or the TLS key cannot be used. A network that cannot be served is no error of the hub.
    pub async fn start(
        keys: impl Into<Keyring>,
        store: Arc<dyn Store>,
        clock: Clock,
        advertise: Vec<String>,
    ) -> Result<Arc<Self>, HubError> {
        let keys: Arc<Keyring> = Arc::new(keys.into());
        let identities = keys.identities().await?;
        identities.pins()?;
        let server_keys = Arc::new(ServerKeys::new(&identities.all())?);
        // Before anything is read: what changes from then on is heard of.
        let news = follow::News::of(store.as_ref());
        let common = Common { store, clock, metrics: Arc::new(Metrics::new()), tasks: TaskTracker::new() };
        let operators = Operators::new(common.store.operators().await?);
        let mut networks = Networks::default();
        for entry in common.store.networks().await? {
            match keys.network_keys(entry.id).await {
                Ok(own) => networks.insert(Hosted::start(entry.id, entry.name, own, &keys, &common)),
                // The others are served all the same.
                Err(error) => tracing::error!(network = %entry.name, %error, "the network cannot be served"),
            }
        }
        for hosted in networks.by_id.values() {
            hosted.started().await;
        }
        let hub = Arc::new(Self {
            common,
            keys,
            tls: ArcSwap::from_pointee(identities),
            server_keys,
            advertise,
            networks: RwLock::new(networks),
            operators: ArcSwap::from_pointee(operators),
            tend: Arc::new(Notify::new()),
            changing: tokio::sync::Mutex::new(()),
            probed: tokio::sync::Mutex::new(None),
        });
        tokio::spawn(tend::run(Arc::downgrade(&hub), hub.tend.clone()));
        if let Some(news) = news {
            tokio::spawn(follow::run(Arc::downgrade(&hub), news));
        }
        Ok(hub)
    }

    /// The TLS keys as the port shows them.
    pub fn server_keys(&self) -> Arc<ServerKeys> {
        self.server_keys.clone()
    }

    /// Where agents reach this controller.
    pub fn advertise(&self) -> &[String] {
        &self.advertise
    }

    /// The counters.
    pub fn metrics(&self) -> &Metrics {
        &self.common.metrics
    }

    /// The time.
    pub fn clock(&self) -> &Clock {
        &self.common.clock
    }

    /// All networks, by identifier.
    pub fn networks(&self) -> Vec<Arc<Hosted>> {
        self.networks.read().unwrap_or_else(PoisonError::into_inner).by_id.values().cloned().collect()
    }

    /// The network of this identifier.
    ///
    /// # Errors
    /// [`NetworkError::Unknown`].
    pub fn network(&self, id: NetworkId) -> Result<Arc<Hosted>, NetworkError> {
        let networks = self.networks.read().unwrap_or_else(PoisonError::into_inner);
        networks.by_id.get(&id).cloned().ok_or_else(|| NetworkError::Unknown { wanted: id.to_string() })
    }

    /// The network of this name or identifier.
    ///
    /// # Errors
    /// [`NetworkError::Unknown`].
    pub fn find(&self, wanted: &str) -> Result<Arc<Hosted>, NetworkError> {
        let networks = self.networks.read().unwrap_or_else(PoisonError::into_inner);
        let by_name = wanted.parse::<Name>().ok().and_then(|name| networks.by_name.get(&name).copied());
        let id = by_name.or_else(|| wanted.parse().ok());
        let found = id.and_then(|id| networks.by_id.get(&id)).cloned();
        found.ok_or_else(|| NetworkError::Unknown { wanted: wanted.chars().take(100).collect() })
    }

    /// Creates a network: its key first, then its first commit, then its task.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub async fn create(&self, new: &NewNetwork, actor: Actor) -> Result<Arc<Hosted>, NetworkError> {
        let _changing = self.changing.lock().await;
        let now = self.common.clock.now();
        let (id, key) = {
            let mut rng = rand::rng();
            (NetworkId::generate(&mut rng), SigningKey::generate(&mut rng))
        };
        let changes = Network::create(id, new, now, &mut rand::rng()).map_err(CommandError::Rejected)?;
        let rows = changes.iter().filter_map(|change| match change {
            StateChange::Put(row) => Some(row.clone()),
            StateChange::Remove(_) => None,
        });
        let network = Network::from_rows(Revision::ZERO.next(), rows)
            .map_err(|corrupt| StoreError::Corrupt { what: corrupt.what })?;
        let prefixes =
            [Some(network.conf().prefix6.to_string()), network.conf().prefix4.map(|p| p.to_string())];
        let detail = format!(
            "network {} ({id}) {}",
            new.name,
            prefixes.into_iter().flatten().collect::<Vec<_>>().join(", ")
        );
        let audit = AuditNote { at: now, actor, action: "network.create", detail };
        self.keys.write_network_keys(id, std::slice::from_ref(&key)).await?;
        let first = Commit { head: network.head(), changes, audit };
        let created = self.common.store.create_network(&new.name, first).await;
        self.common.metrics.command("network.create", if created.is_ok() { "ok" } else { "refused" });
        if let Err(error) = created {
            // Where the store failed the network may have been created all the same. Otherwise: left behind the key would
            // open nothing, and that it cannot be removed is no reason to hide the other error.
            if !(error.is_failure() && self.common.store.shared().is_some()) {
                let _ = self.keys.remove_network_key(id).await;
            }
            return Err(error.into());
        }
        let hosted = Hosted::start(id, new.name.clone(), vec![key], &self.keys, &self.common);
        self.networks.write().unwrap_or_else(PoisonError::into_inner).insert(hosted.clone());
        hosted.started().await;
        self.tend.notify_one();
        Ok(hosted)
    }

    /// Deletes a network with all its state but the audit trail, ends its streams and removes its key. Returns the
    /// numbers of nodes and containers that went away.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub async fn delete(&self, hosted: &Hosted, actor: Actor) -> Result<(usize, usize), NetworkError> {
        let _changing = self.changing.lock().await;
        let counts = hosted.read(|network, _| (network.nodes().len(), network.containers().len()));
        let (nodes, containers) = counts.unwrap_or_default();
        let detail = format!(
            "network {} ({}) with {nodes} nodes and {containers} containers",
            hosted.name(),
            hosted.id()
        );
        let audit = AuditNote { at: self.common.clock.now(), actor, action: "network.delete", detail };
        self.common.store.delete_network(hosted.id(), audit).await?;
        self.common.metrics.command("network.delete", "ok");
        hosted.deleted();
        self.networks.write().unwrap_or_else(PoisonError::into_inner).remove(hosted.id());
        if let Err(error) = self.keys.remove_network_key(hosted.id()).await {
            tracing::warn!(network = %hosted.name(), %error, "the key of a deleted network is left behind");
        }
        Ok((nodes, containers))
    }

    /// Audit records after `after`; of all networks and the controller itself when `network` is none.
    ///
    /// # Errors
    /// A failure of the store.
    pub async fn audit(
        &self,
        network: Option<NetworkId>,
        after: u64,
        limit: usize,
    ) -> Result<Vec<AuditRecord>, CommandError> {
        Ok(self.common.store.audit(network, after, limit).await?)
    }

    /// Whether the store takes writes; asked at most once a second, however often this is called.
    ///
    /// # Errors
    /// What the store said.
    pub async fn probe(&self) -> Result<(), StoreError> {
        let mut probed = self.probed.lock().await;
        if let Some((at, result)) = &*probed
            && at.elapsed() < PROBE_PAUSE
        {
            return result.clone();
        }
        let result = self.common.store.probe().await;
        *probed = Some((tokio::time::Instant::now(), result.clone()));
        result
    }

    /// Figures of all networks, for the counters.
    pub fn figures(&self) -> Vec<NetworkFigures> {
        self.networks().iter().map(|hosted| hosted.figures()).collect()
    }

    /// Writes a backup: see [`crate::backup`].
    ///
    /// # Errors
    /// [`crate::backup::BackupError`].
    pub async fn backup(&self, actor: Actor) -> Result<std::fs::File, crate::backup::BackupError> {
        // No network comes or goes meanwhile, so that store and keys belong together.
        let _changing = self.changing.lock().await;
        tracing::info!(%actor, "a backup is made");
        let none = StoreError::Unsupported { what: "be copied to a file without a data directory" };
        let data = self.keys.data().ok_or(none)?;
        crate::backup::make(data, self.common.store.as_ref()).await
    }

    /// Ends all streams of agents, as the controller is shutting down.
    pub fn end_streams(&self) {
        self.networks().iter().for_each(|hosted| hosted.end_streams());
    }

    /// Lets every network finish what waits, then closes the store. Returns when all is done.
    pub async fn close(&self) {
        self.common.tasks.close();
        self.networks().iter().for_each(|hosted| hosted.stop());
        self.common.tasks.wait().await;
        self.common.store.close().await;
    }
}

impl Networks {
    fn insert(&mut self, hosted: Arc<Hosted>) {
        self.by_name.insert(hosted.name().clone(), hosted.id());
        self.by_id.insert(hosted.id(), hosted);
    }

    fn remove(&mut self, id: NetworkId) {
        if let Some(hosted) = self.by_id.remove(&id) {
            self.by_name.remove(hosted.name());
        }
    }
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub")
            .field("keys", &self.keys)
            .field("advertise", &self.advertise)
            .finish_non_exhaustive()
    }
}
