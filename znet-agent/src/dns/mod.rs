//! Names for containers: in every attached namespace a resolver that answers out of the network's last verified map.
//!
//! A container finds the others of its network as `NAME.NETWORK.znet`, and their names by their addresses, whether the
//! controller is there or not. The resolver's sockets are bound inside the namespace, on a loopback address, so that
//! nobody but the container can ask it; it knows the networks that are attached there and nothing else, and forwards
//! nothing. It is part of the agent: while none runs, names do not resolve, and the next one binds again.
//!
//! | module | holds |
//! | --- | --- |
//! | [`names`] | the names and addresses of one network |
//! | [`answer`] | from a question to its answer, without I/O |
//! | [`bucket`] | how much may be asked |
//! | [`serve`] | the sockets of one namespace |
//!
//! Here is what leads from the attachments that are to the resolvers that should be, again and again. It knows nothing of
//! devices: a resolver needs the namespace alone.

pub mod answer;
pub mod bucket;
pub mod names;
pub mod serve;

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use znet_core::id::NetworkId;
use znet_core::name::Name;
use znet_local::DnsConfig;

use crate::agent::Agent;
use crate::attach::blocking;
use crate::error::AgentError;
use crate::files::Attachment;
use crate::host::netns::{Netns, NetnsError, NetnsId};

use answer::Zone;
use serve::{DnsStats, Server, Sockets};

/// The domain of all networks' names. Of no use outside them, and of no registry's.
pub const DOMAIN: &str = "znet";
/// Where the resolver listens in a container's namespace: a loopback address that no other resolver is known to use, so
/// that a DNS server of the container may have 127.0.0.1, `::1`, 127.0.0.53 and the container's own addresses.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 153);
/// The port, which `resolv.conf` cannot tell.
pub const PORT: u16 = 53;
/// For how long a taken port is tried again: as long as an agent that was killed may take to end. What holds it then is a
/// DNS server of the container's own, which must find its port free when it starts anew.
const TAKEN_FOR: Duration = Duration::from_secs(5);
/// The longest pause between attempts that failed otherwise.
const RETRY: Duration = Duration::from_secs(30);

/// What the `resolv.conf` of a container of this network should say.
fn config_of(network: &Name) -> DnsConfig {
    let domain = format!("{network}.{DOMAIN}");
    DnsConfig { nameservers: vec![ADDRESS.into()], search: vec![domain.clone()], domain }
}

/// The resolver that a namespace should have.
struct Wanted {
    paths: Vec<PathBuf>,
    networks: BTreeSet<NetworkId>,
    zones: Vec<Zone>,
}

/// The resolver that a namespace has.
#[derive(Debug)]
enum Resolver {
    Serving { server: Arc<Server>, networks: BTreeSet<NetworkId>, task: JoinHandle<std::io::Result<()>> },
    Failed { since: Instant, tried: Instant, taken: bool },
}

impl Resolver {
    /// Whether another attempt is due: soon at first, and then ever more seldom.
    fn is_due(&self) -> bool {
        match self {
            Self::Serving { task, .. } => task.is_finished(),
            Self::Failed { since, taken: true, .. } => since.elapsed() < TAKEN_FOR,
            Self::Failed { since, tried, taken: false } => {
                tried.elapsed() >= (tried.duration_since(*since)).min(RETRY)
            }
        }
    }

    fn failed(error: &AgentError, since: Option<Instant>) -> Self {
        let source =
            if let AgentError::Netns(NetnsError::Inside(source)) = error { Some(source) } else { None };
        let taken = source.is_some_and(|source| source.kind() == ErrorKind::AddrInUse);
        if since.is_none() {
            tracing::warn!(%error, "a container has no resolver, as {ADDRESS} port {PORT} cannot be had in its namespace");
        }
        let now = Instant::now();
        Self::Failed { since: since.unwrap_or(now), tried: now, taken }
    }

    fn failed_since(&self) -> Option<Instant> {
        match self {
            Self::Failed { since, .. } => Some(*since),
            Self::Serving { .. } => None,
        }
    }
}

/// The resolvers of all namespaces of this node.
#[derive(Debug)]
pub struct Dns {
    /// One thread for all of them: what containers ask takes one processor at most, and neither the control streams nor
    /// the reconciler wait for it. `None` where there are no resolvers.
    runtime: Option<Runtime>,
    resolvers: Mutex<BTreeMap<NetnsId, Resolver>>,
    settling: tokio::sync::Mutex<()>,
}

impl Drop for Dns {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Dns {
    /// No resolver yet, and none ever unless `on`.
    ///
    /// # Errors
    /// [`AgentError::Invalid`]: there is no thread to be had.
    pub fn new(on: bool) -> Result<Self, AgentError> {
        let runtime = || {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(1).thread_name("znet-dns").enable_all().build()
        };
        let runtime = on.then(runtime).transpose();
        let runtime = runtime.map_err(|error| AgentError::Invalid(format!("no thread for DNS: {error}")))?;
        Ok(Self { runtime, resolvers: Mutex::default(), settling: tokio::sync::Mutex::default() })
    }

    fn resolvers(&self) -> MutexGuard<'_, BTreeMap<NetnsId, Resolver>> {
        self.resolvers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to write into the `resolv.conf` of an attached container; `None` when it has no resolver of ours.
    pub fn config(&self, network: &Name, attachment: &Attachment) -> Option<DnsConfig> {
        self.stats(attachment).map(|_| config_of(network))
    }

    /// What the resolver of an attached container was asked.
    pub fn stats(&self, attachment: &Attachment) -> Option<DnsStats> {
        match self.resolvers().get(&attachment.netns_id) {
            Some(Resolver::Serving { server, .. }) if !attachment.no_dns => Some(server.stats()),
            _ => None,
        }
    }

    /// Sees to it that every namespace with an attachment has its resolver, and no other.
    pub async fn settle(&self, agent: &Agent) {
        let _settling = self.settling.lock().await;
        let wanted = wanted(agent, None);
        let known: Vec<NetnsId> = self.resolvers().keys().copied().collect();
        for gone in known.into_iter().filter(|id| !wanted.contains_key(id)) {
            self.stop(gone).await;
        }
        for (id, wanted) in wanted {
            self.see_to(id, wanted).await;
        }
    }

    /// The same for one namespace.
    pub async fn settle_one(&self, agent: &Agent, id: NetnsId) {
        let _settling = self.settling.lock().await;
        match wanted(agent, Some(id)).remove(&id) {
            Some(wanted) => self.see_to(id, wanted).await,
            None => self.stop(id).await,
        }
    }

    /// Ends a resolver and waits until its sockets are closed, as they keep the namespace.
    async fn stop(&self, id: NetnsId) {
        let left = self.resolvers().remove(&id);
        if let Some(Resolver::Serving { task, .. }) = left {
            task.abort();
            let _ = task.await;
        }
    }

    async fn see_to(&self, id: NetnsId, wanted: Wanted) {
        let Some(runtime) = &self.runtime else { return };
        if let Some(resolver) = self.resolvers().get_mut(&id)
            && !resolver.is_due()
        {
            if let Resolver::Serving { server, networks, .. } = resolver
                && *networks != wanted.networks
            {
                server.set_zones(wanted.zones);
                *networks = wanted.networks;
            }
            return;
        }
        let since = self.resolvers().get(&id).and_then(Resolver::failed_since);
        let paths = wanted.paths;
        let resolver = match blocking(move || bind_inside(id, &paths)).await {
            Ok(sockets) => {
                let server = Arc::new(Server::new(wanted.zones));
                let task = runtime.spawn(server.clone().serve(sockets));
                Resolver::Serving { server, networks: wanted.networks, task }
            }
            Err(error) => Resolver::failed(&error, since),
        };
        self.resolvers().insert(id, resolver);
    }
}

/// The resolvers that there should be, of all namespaces or of one.
fn wanted(agent: &Agent, only: Option<NetnsId>) -> BTreeMap<NetnsId, Wanted> {
    let mut all: BTreeMap<NetnsId, Wanted> = BTreeMap::new();
    for joined in agent.networks() {
        let Some(zone) = Zone::new(&joined.membership.name, joined.directory.clone()) else { continue };
        let state = joined.state();
        let asking =
            state.attachments.values().filter(|attachment| !attachment.no_dns && attachment.lent.is_none());
        for attachment in asking.filter(|attachment| only.is_none_or(|id| id == attachment.netns_id)) {
            let wanted = all.entry(attachment.netns_id).or_insert_with(|| Wanted {
                paths: Vec::new(),
                networks: BTreeSet::new(),
                zones: Vec::new(),
            });
            wanted.paths.push(attachment.netns.clone());
            if wanted.networks.insert(joined.membership.network) {
                wanted.zones.push(zone.clone());
            }
        }
    }
    all
}

/// Binds the sockets of a namespace, by whichever path still leads to it. Blocks.
fn bind_inside(id: NetnsId, paths: &[PathBuf]) -> Result<Sockets, AgentError> {
    let mut last = None;
    for path in paths {
        match Netns::open(path) {
            Ok(netns) if netns.id() == id => {
                let at = SocketAddr::from((ADDRESS, PORT));
                return Ok(netns.visit(move || Sockets::bind(at))?);
            }
            Ok(_) => {}
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or_else(|| AgentError::Invalid("its namespace is gone".to_owned()), AgentError::from))
}
