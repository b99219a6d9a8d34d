//! The agent as a whole, and what it knows of each network.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::DirBuilder;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tokio::sync::Notify;
use znet_api::agent_client::AgentClient;
use znet_api::tls::Identity;
use znet_api::token::JoinToken;
use znet_api::v1;
use znet_core::controller::TokenSecret;
use znet_core::id::{NetworkId, NodeId};
use znet_core::map::{ControllerRecord, MAX_ENDPOINTS, Member};
use znet_core::name::Name;
use znet_wg::control::Peer;

use crate::access;
use crate::backend::{Backend, Choice};
use crate::contact::{Contact, Controller};
use crate::dns::Dns;
use crate::dns::names::Directory;
use crate::error::AgentError;
use crate::files::{Attachment, Files, MapCache, Membership};
use crate::host::{link, netns, socket};
use crate::owned::OwnerLocks;
use crate::pairs::settle_all;
use crate::peers::Viewpoint;

/// How many attachments of one network are worked on side by side; those of one name never are.
const NAME_LOCKS: usize = 64;
/// Bytes of deltas that are kept on disk before they are put together with the map.
const MAX_DELTAS: u64 = 1 << 20;
/// How long a map that could not be written to the disk is left alone.
const MAP_RETRY: Duration = Duration::from_secs(3);
/// Bytes that WireGuard adds to a packet: an IPv6 header, a UDP header, and its own (white paper, section 5.4.6).
const OVERHEAD: u32 = 40 + 8 + 32;
/// How long the underlay's MTU counts as known: many containers are looked at in a row.
const MTU_KEPT: Duration = Duration::from_secs(1);
/// The least MTU of an IPv6 link (RFC 8200, section 5).
const MIN_MTU: u32 = 1_280;
/// The MTU of an Ethernet underlay, assumed where no link tells.
const DEFAULT_UNDERLAY_MTU: u32 = 1_500;

/// How an agent is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The name that the node asks for.
    pub name: Name,
    /// Where it keeps what must survive.
    pub state_dir: PathBuf,
    /// Where its sockets are.
    pub run_dir: PathBuf,
    /// The first UDP port that is tried.
    pub listen_port: u16,
    /// Where others reach it; found out when empty. Port 0 stands for the network's port.
    pub advertise: Vec<SocketAddr>,
    /// Seconds between keepalives, for a node behind a NAT.
    pub keepalive: Option<u16>,
    /// Where it keeps the last verified maps.
    pub map_cache: MapCache,
    /// Whether containers get a resolver.
    pub dns: bool,
    /// What is to move the packets.
    pub backend: Choice,
}

/// What changes about a network while the agent is a member.
#[derive(Debug)]
pub struct JoinedState {
    /// The last verified map.
    pub member: Member,
    /// The membership as it is on disk: what is believed of the controllers changes with the map and with new tokens.
    pub kept: Membership,
    /// The containers of this node.
    pub attachments: BTreeMap<Name, Attachment>,
    /// Containers that were detached while the controller was away; it has still to be told.
    pub releases: BTreeSet<Name>,
    /// The endpoints that the controller was told last.
    pub reported: Vec<SocketAddr>,
    /// The access points of this node.
    pub access: access::State,
}

/// A network that this node is a member of.
#[derive(Debug)]
pub struct Joined {
    /// The membership, of which network, name and port are looked at here: they never change.
    pub membership: Membership,
    /// The secret of a token, until the controller has seen it.
    pub secret: Mutex<Option<TokenSecret>>,
    /// The way to the controller.
    pub controller: Controller,
    /// The number of the controller's endpoint that is used, or tried next.
    pub endpoint: AtomicUsize,
    /// The names in the map.
    pub directory: Arc<Directory>,
    /// When the map on disk, which lacks a change, was last tried to be written anew; `None` when it lacks none.
    map_behind: Mutex<Option<Instant>>,
    /// The engine was adopted with peers that no map told of: the first map has to replace all of them.
    peers_unknown: AtomicBool,
    state: Mutex<JoinedState>,
    names: Vec<tokio::sync::Mutex<()>>,
}

impl Joined {
    /// Takes the lock on what changes. It is held for moments only, and never while the engine is called.
    pub fn state(&self) -> MutexGuard<'_, JoinedState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the engine's peers have to be replaced by those of the map; only once.
    pub fn take_peers_unknown(&self) -> bool {
        self.peers_unknown.swap(false, Ordering::Relaxed)
    }

    fn map_behind(&self) -> MutexGuard<'_, Option<Instant>> {
        self.map_behind.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody else works on the container of this name.
    pub async fn lock_name(&self, name: &Name) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        let sum =
            name.as_str().bytes().fold(0usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        Some(self.names.get(sum % NAME_LOCKS)?.lock().await)
    }

    /// Where its controllers are looked for, in this order.
    pub fn places(&self) -> Vec<ControllerRecord> {
        let state = self.state();
        state.kept.places(state.member.map(), state.member.position())
    }

    /// The controller's client.
    ///
    /// # Errors
    /// [`AgentError::ControllerAway`].
    pub fn controller(&self) -> Result<AgentClient, AgentError> {
        self.controller.now().map_err(|why| self.away(why))
    }

    /// The controller's client, as soon as there is one, until `patience` is over: see [`Controller::within`].
    ///
    /// # Errors
    /// [`AgentError::ControllerAway`].
    pub async fn controller_within(&self, patience: Duration) -> Result<AgentClient, AgentError> {
        self.controller.within(patience).await.map_err(|why| self.away(why))
    }

    /// The network's prefixes, each of which is routed into the devices of its containers; none without a map.
    pub fn prefixes(&self) -> Vec<IpNet> {
        let state = self.state();
        let Some(record) = state.member.map().network() else { return Vec::new() };
        [Some(IpNet::V6(record.prefix6)), record.prefix4.map(IpNet::V4)].into_iter().flatten().collect()
    }

    /// The controller cannot be asked, for this reason.
    pub fn away(&self, why: String) -> AgentError {
        AgentError::ControllerAway { network: self.membership.name.clone(), why }
    }
}

/// The agent.
#[derive(Debug)]
pub struct Agent {
    /// How it is run.
    pub options: Options,
    /// What it keeps on disk.
    pub files: Files,
    /// Its own key.
    pub identity: Identity,
    /// The node that it is.
    pub node: NodeId,
    /// The resolvers of its containers.
    pub dns: Dns,
    /// Told when something changed that [`crate::reconcile`] should look at.
    pub wake: Notify,
    /// One runtime's calls about one container, one after the other.
    pub owners: OwnerLocks,
    /// The next look of [`crate::reconcile`] goes to the links and the map as well, not only to the engine.
    closely: AtomicBool,
    backend: Mutex<Backend>,
    /// The MTU of devices and when it was found out.
    mtu: Mutex<Option<(Instant, u32)>>,
    networks: RwLock<BTreeMap<NetworkId, Arc<Joined>>>,
}

impl Agent {
    /// Opens the agent's files, adopts or starts its engine, and takes up its memberships. Blocks.
    ///
    /// # Errors
    /// [`AgentError`]: a privilege or a device is missing, another agent runs, or a file cannot be read.
    pub fn open(options: Options, replace_engine: bool) -> Result<Arc<Self>, AgentError> {
        let files = Files::open(&options.state_dir, options.map_cache)?;
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&options.run_dir);
        made.map_err(|source| AgentError::File { path: options.run_dir.clone(), source })?;
        let identity = files.identity()?;
        let node = identity.node_id().map_err(|error| AgentError::Invalid(error.to_string()))?;
        let memberships = files.memberships()?;
        let chosen = Backend::choose(options.backend, &options.run_dir, options.listen_port);
        let backend = Mutex::new(chosen?);
        let (networks, wake, closely) = (RwLock::default(), Notify::new(), AtomicBool::new(true));
        let mtu = Mutex::new(None);
        let owners = OwnerLocks::default();
        let dns = Dns::new(options.dns)?;
        let agent =
            Self { options, files, identity, node, dns, wake, owners, closely, backend, mtu, networks };
        if replace_engine {
            agent.backend().dismiss();
        }
        agent.backend().ensure(&|_| Vec::new())?;
        for membership in memberships {
            agent.take_up(membership, None)?;
        }
        agent.remove_strangers();
        Ok(Arc::new(agent))
    }

    /// Becomes a member by a token, as far as this can be done without the controller. Blocks.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn accept_token(&self, token: &JoinToken) -> Result<Arc<Joined>, AgentError> {
        if let Some(joined) = self.network(token.network) {
            let kept = {
                let mut state = joined.state();
                let applied = state.member.position();
                state.kept.take(token, applied);
                let key = state.kept.verifying_key;
                state.member.believe(key);
                state.kept.clone()
            };
            self.files.put_membership(&kept)?;
            joined.controller.want();
            *joined.secret.lock().unwrap_or_else(PoisonError::into_inner) = Some(token.secret.clone());
            return Ok(joined);
        }
        self.take_up(Membership::of(token), Some(token.secret.clone()))
    }

    /// What the engine serves of networks that this node is no member of goes away, and sockets that nobody serves.
    fn remove_strangers(&self) {
        let of = |joined: &Arc<Joined>| [Some(joined.membership.network), joined.state().access.network()];
        let members: BTreeSet<NetworkId> = self.networks().iter().flat_map(of).flatten().collect();
        let mut backend = self.backend();
        let served: Vec<NetworkId> = backend.networks();
        for stranger in served.into_iter().filter(|id| !members.contains(id)) {
            tracing::info!(network = %stranger, "removing a network that this node is no member of");
            backend.remove_network(stranger);
        }
        socket::remove_dead_wg_sockets();
    }

    fn take_up(
        &self,
        mut membership: Membership,
        secret: Option<TokenSecret>,
    ) -> Result<Arc<Joined>, AgentError> {
        let id = membership.network;
        let attachments = self.files.attachments(id)?;
        // A port that others may have learned is kept if it can be.
        let wanted = if membership.port == 0 { self.options.listen_port } else { membership.port };
        let (port, served) = self.backend().take_up(id, wanted, self.options.keepalive, &attachments)?;
        membership.port = port;
        let mut member = Member::new(id, membership.verifying_key);
        // Put together, so that what is torn at the end of the deltas does not stand before new ones.
        let torn = self.files.load_map(&mut member, &membership.former_keys);
        let behind = torn && self.files.put_map(&member).is_err();
        let map_behind = Mutex::new(behind.then(Instant::now));
        let attachments = attachments.into_iter().map(|a| (a.name.clone(), a)).collect();
        let releases = self.files.releases(id)?;
        let access = access::State::new(self.files.access(id)?);
        // Without a map the engine knows better: links that it serves go on.
        let peers_unknown = served && member.head().is_none();
        if !peers_unknown {
            let peers: Vec<Peer> = self.viewpoint(&membership).peers(member.map()).collect();
            self.backend().replace_peers(id, peers)?;
        }
        if secret.is_none()
            && let Err(error) = self.files.put_membership(&membership)
        {
            tracing::warn!(%error, "the port of this network cannot be kept; a restart may choose another one");
        }
        let kept = membership.clone();
        let joined = Arc::new(Joined {
            membership,
            secret: Mutex::new(secret),
            controller: Controller::default(),
            endpoint: AtomicUsize::new(0),
            directory: Arc::new(Directory::of(member.map(), member.revision())),
            map_behind,
            peers_unknown: AtomicBool::new(peers_unknown),
            state: Mutex::new(JoinedState {
                member,
                kept,
                attachments,
                releases,
                reported: Vec::new(),
                access,
            }),
            names: std::iter::repeat_with(tokio::sync::Mutex::default).take(NAME_LOCKS).collect(),
        });
        self.networks.write().unwrap_or_else(PoisonError::into_inner).insert(id, joined.clone());
        settle_all(self, &joined);
        Ok(joined)
    }

    /// Forgets a network with everything of it. Blocks.
    pub fn forget(&self, network: NetworkId) {
        let left = self.networks.write().unwrap_or_else(PoisonError::into_inner).remove(&network);
        if let Some(left) = left {
            left.controller.tell(Contact::Away("the network was left".to_owned()));
            left.state().attachments.clear();
            let access = left.state().access.network();
            if let Some(access) = access {
                self.backend().remove_network(access);
            }
        }
        self.backend().remove_network(network);
        if let Err(error) = self.files.remove_network(network) {
            tracing::warn!(%error, "the files of a network that was left could not be removed");
        }
    }

    /// Keeps the last verified map of a network on disk. Blocks.
    pub fn keep_map(&self, joined: &Joined) {
        if self.network(joined.membership.network).is_none() {
            return;
        }
        let member = joined.state().member.clone();
        let kept = self.files.put_map(&member);
        *joined.map_behind() = kept.is_err().then(Instant::now);
        if let Err(error) = kept {
            tracing::warn!(%error, "the map cannot be kept on disk; a restart with the controller away would not know it");
        }
    }

    /// Keeps a verified delta on disk; the map as a whole when there are many, or when one before could not be kept, as
    /// nothing leads on over a gap. On a full disk that is tried now and then, as it costs what the map does. Blocks.
    pub fn keep_delta(&self, joined: &Joined, delta: &v1::Delta) {
        let tried = *joined.map_behind();
        match tried {
            Some(tried) if tried.elapsed() < MAP_RETRY => {}
            Some(_) => self.keep_map(joined),
            None => match self.files.append_delta(joined.membership.network, delta) {
                Ok(length) if length <= MAX_DELTAS => {}
                _ => self.keep_map(joined),
            },
        }
    }

    /// Makes [`crate::reconcile`] look at everything at once.
    pub fn look_closely(&self) {
        self.closely.store(true, Ordering::Relaxed);
        self.wake.notify_one();
    }

    /// Whether that was asked for since the last time.
    pub fn take_closely(&self) -> bool {
        self.closely.swap(false, Ordering::Relaxed)
    }

    /// Takes the lock on what moves the packets. Whoever holds it may block; it is not taken on a thread of the runtime.
    pub fn backend(&self) -> MutexGuard<'_, Backend> {
        self.backend.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the engine serve a network, for a device that only it can serve. Blocks.
    ///
    /// # Errors
    /// [`AgentError`]: no engine can be started.
    pub fn have_engine_serve(&self, network: NetworkId) -> Result<(), AgentError> {
        self.backend().have_engine_serve(network, &|network| self.all_peers(network))
    }

    /// The networks of this node.
    pub fn networks(&self) -> Vec<Arc<Joined>> {
        self.networks.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The network of this identifier.
    pub fn network(&self, id: NetworkId) -> Option<Arc<Joined>> {
        self.networks.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// The network of this name or identifier.
    ///
    /// # Errors
    /// [`AgentError::UnknownNetwork`].
    pub fn network_named(&self, text: &str) -> Result<Arc<Joined>, AgentError> {
        let is = |joined: &Arc<Joined>| {
            joined.membership.name.as_str() == text || joined.membership.network.to_string() == text
        };
        let unknown = || AgentError::UnknownNetwork { network: text.to_owned() };
        self.networks().into_iter().find(is).ok_or_else(unknown)
    }

    /// How this node looks at a network.
    pub fn viewpoint(&self, membership: &Membership) -> Viewpoint {
        Viewpoint { node: self.node, port: membership.port }
    }

    /// All peers of a network, for an engine that starts.
    pub fn all_peers(&self, network: NetworkId) -> Vec<Peer> {
        let Some(joined) = self.network(network) else {
            let serves = |joined: &Arc<Joined>| joined.state().access.network() == Some(network);
            let joined = self.networks().into_iter().find(serves);
            return joined.map(|joined| access::peers(self, &joined)).unwrap_or_default();
        };
        let state = joined.state();
        self.viewpoint(&joined.membership).peers(state.member.map()).collect()
    }

    /// Where others reach this node's port of a network. Blocks.
    pub fn endpoints(&self, port: u16) -> Vec<SocketAddr> {
        let with_port = |endpoint: &SocketAddr| match endpoint.port() {
            0 => SocketAddr::new(endpoint.ip(), port),
            _ => *endpoint,
        };
        if !self.options.advertise.is_empty() {
            return self.options.advertise.iter().map(with_port).take(MAX_ENDPOINTS).collect();
        }
        let found = netns::run_in_host(|handle| async move { link::underlay(&handle).await });
        let found = found.unwrap_or_else(|error| {
            tracing::warn!(%error, "the host's addresses cannot be listed");
            Vec::new()
        });
        found.into_iter().map(|(address, _)| SocketAddr::new(address, port)).take(MAX_ENDPOINTS).collect()
    }

    /// The MTU of devices: what the narrowest underlay link leaves. Blocks.
    pub fn mtu(&self) -> u32 {
        let mut kept = self.mtu.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, mtu)) = *kept
            && at.elapsed() < MTU_KEPT
        {
            return mtu;
        }
        let found = netns::run_in_host(|handle| async move { link::underlay(&handle).await });
        let narrowest = found.ok().and_then(|found| found.into_iter().map(|(_, mtu)| mtu).min());
        let mtu = narrowest.unwrap_or(DEFAULT_UNDERLAY_MTU).saturating_sub(OVERHEAD).max(MIN_MTU);
        *kept = Some((Instant::now(), mtu));
        mtu
    }
}
