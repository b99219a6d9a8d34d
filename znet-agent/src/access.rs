//! Access points: people's devices, which this node lets into a network as containers.
//!
//! Towards the network an access point is a container of this node like any other, but for its namespace: there is
//! none. Its device ends in a pair of sockets, at whose other end is a second device, which speaks plain WireGuard with
//! the person's. So what a person sends goes from tunnel to tunnel inside the engine, no kernel routes it, and there is
//! nowhere else that it could go: the outer device takes packets from the person's own addresses alone, the inner one
//! passes on to containers of the network alone.
//!
//! All access points of a network share a port, and each has a key of its own, which is kept: the person's file names
//! both. The port is served by the engine as a network of its own, whose peers are the persons' devices.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use znet_api::v1;
use znet_core::controller::AccessPoint;
use znet_core::id::{ContainerId, NetworkId};
use znet_core::key::{PrivateKey, PublicKey};
use znet_core::map::AccessRecord;
use znet_core::name::Name;
use znet_wg::control::{Device, EngineStats, Peer, WirePrivateKey};
use znet_wg::io::tun::{self, MAX_IFNAME};

use crate::agent::{Agent, Joined};
use crate::attach::{Keys, ask_controller, blocking, bounded, network_bytes};
use crate::error::AgentError;
use crate::host::socket::{self, DEVICE_PREFIX, PORTS_TRIED};
use crate::local::ServedAccess;

/// How long what failed is left alone, unless everything is looked at anyway.
const RETRY: Duration = Duration::from_secs(3);

/// The devices that the engine told are gone.
type Gone = BTreeSet<(NetworkId, ContainerId)>;

/// What is kept of a network's access points. People's files name port and keys, so they outlive everything here.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Kept {
    /// The port, and as what the engine serves it.
    pub port: Option<Port>,
    /// The key of each access point's outer device.
    pub keys: Vec<EndKey>,
}

/// The port of a network's access points.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// The UDP port.
    pub number: u16,
    /// The network as which the engine serves it: drawn at random, so that nobody can name one that is taken.
    pub network: NetworkId,
}

/// The key of an access point's outer device.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EndKey {
    /// The container as which the others see the access point.
    pub container: ContainerId,
    /// The private key.
    pub private_key: WirePrivateKey,
}

impl Kept {
    fn key(&self, container: ContainerId) -> Option<&PrivateKey> {
        self.keys.iter().find(|key| key.container == container).map(|key| &key.private_key.0)
    }
}

/// What the agent knows of a network's access points.
#[derive(Debug, Default)]
pub struct State {
    /// What is on disk.
    pub kept: Kept,
    /// The peers that the engine was told; `None` when that is not known.
    told: Option<Vec<Peer>>,
    /// What the controller was told of each.
    offered: BTreeMap<ContainerId, AccessPoint>,
    /// When one was last not as it should be in the end.
    failed: Option<Instant>,
}

impl State {
    /// With what was found on disk.
    pub fn new(kept: Kept) -> Self {
        Self { kept, ..Self::default() }
    }

    /// The network as which the engine serves them.
    pub fn network(&self) -> Option<NetworkId> {
        self.kept.port.map(|port| port.network)
    }

    /// Has the controller told everything again: it may be another one, or know less than before.
    pub fn offer_again(&mut self) {
        self.offered.clear();
    }
}

/// The access points of this node; `None` while nobody knows, as there is no map.
fn wanted(agent: &Agent, joined: &Joined) -> Option<Vec<AccessRecord>> {
    let state = joined.state();
    state.member.head()?;
    Some(state.member.map().accesses().filter(|record| record.node == agent.node).cloned().collect())
}

/// The numbers of the containers that are access points of this node.
pub(crate) fn containers(agent: &Agent, joined: &Joined) -> BTreeSet<ContainerId> {
    wanted(agent, joined).into_iter().flatten().map(|record| record.id).collect()
}

/// Whether a name is an access point's.
pub(crate) fn is_access(joined: &Joined, name: &Name) -> bool {
    joined.state().member.map().accesses().any(|record| record.name == *name)
}

/// The persons' devices, as the outer devices see them: each is where its last packet came from.
pub(crate) fn peers(agent: &Agent, joined: &Joined) -> Vec<Peer> {
    let of = |record: AccessRecord| Peer {
        public_key: record.public_key,
        also_key: None,
        addresses: record.addresses().collect(),
        endpoints: Vec::new(),
        preshared_key: None,
    };
    wanted(agent, joined).into_iter().flatten().map(of).collect()
}

/// Compares the access points with what they should be, and makes, mends and removes what is not.
pub(crate) async fn look(
    agent: &Arc<Agent>,
    joined: &Arc<Joined>,
    gone: &Gone,
    closely: bool,
) -> Result<(), AgentError> {
    let rests = joined.state().access.failed.is_some_and(|failed| failed.elapsed() < RETRY);
    if rests && !closely {
        return Ok(());
    }
    let done = compare(agent, joined, gone, closely).await;
    joined.state().access.failed = done.is_err().then(Instant::now);
    done
}

async fn compare(
    agent: &Arc<Agent>,
    joined: &Arc<Joined>,
    gone: &Gone,
    closely: bool,
) -> Result<(), AgentError> {
    let Some(wanted) = wanted(agent, joined) else { return Ok(()) };
    if wanted.is_empty() {
        return retire(agent, joined).await;
    }
    // The way from one device to the other is inside the engine.
    let (asking, network) = (agent.clone(), joined.membership.network);
    blocking(move || asking.have_engine_serve(network)).await?;
    let mut outcome = Ok(());
    let port = serve(agent, joined, &wanted).await?;
    admit(agent, joined, port).await?;
    for record in wanted {
        let (id, name) = (record.id, record.name.clone());
        let lost = gone.contains(&(joined.membership.network, id)) || gone.contains(&(port.network, id));
        let done = match lost || !is_served(agent, joined, port, id) {
            true => make(agent, joined, port, record).await,
            false if closely => mend(agent, joined, port, id).await,
            false => Ok(()),
        };
        let done = match done {
            Ok(()) => offer(joined, port, id, &name).await,
            failed => failed,
        };
        if let Err(error) = done {
            tracing::warn!(%name, %error, "the access point is not as it should be");
            outcome = Err(error);
        }
    }
    // One that fails does not keep the others waiting.
    outcome
}

fn is_served(agent: &Agent, joined: &Joined, port: Port, id: ContainerId) -> bool {
    let backend = agent.backend();
    let outer = backend.device(port.network, id).map(|device| device.private_key.0.public_key());
    let end = joined.state().access.kept.key(id).map(PrivateKey::public_key);
    backend.device(joined.membership.network, id).is_some() && outer.is_some() && outer == end
}

/// Serves nothing any more. The port is kept, for those that come.
async fn retire(agent: &Arc<Agent>, joined: &Arc<Joined>) -> Result<(), AgentError> {
    let kept = joined.state().access.kept.clone();
    let Some(port) = kept.port else { return Ok(()) };
    if !agent.backend().networks().contains(&port.network) && kept.keys.is_empty() {
        return Ok(());
    }
    let (agent, joined) = (agent.clone(), joined.clone());
    blocking(move || {
        agent.backend().remove_network(port.network);
        keep(&agent, &joined, Kept { port: Some(port), keys: Vec::new() })?;
        joined.state().access.told = None;
        Ok(())
    })
    .await
}

/// Sees to it that there is a port, and a key for each access point and for no other, before anybody is told of them.
async fn serve(
    agent: &Arc<Agent>,
    joined: &Arc<Joined>,
    wanted: &[AccessRecord],
) -> Result<Port, AgentError> {
    let kept = joined.state().access.kept.clone();
    let ids: BTreeSet<ContainerId> = wanted.iter().map(|record| record.id).collect();
    let keys: Vec<EndKey> = ids.iter().map(|id| end_key(&kept, *id)).collect();
    let served = kept.port.filter(|port| agent.backend().networks().contains(&port.network));
    let same = kept.keys.len() == ids.len() && kept.keys.iter().all(|key| ids.contains(&key.container));
    if let (Some(port), true) = (served, same) {
        return Ok(port);
    }
    let (agent, joined) = (agent.clone(), joined.clone());
    blocking(move || {
        let port = match served {
            Some(port) => port,
            None => open(&agent, kept.port)?,
        };
        joined.state().access.told = None;
        keep(&agent, &joined, Kept { port: Some(port), keys })?;
        // Both ends of those that are gone: the inner ones are removed as strangers.
        let outer = agent.backend().devices(port.network);
        for stranger in outer.into_iter().filter(|id| !ids.contains(id)) {
            agent.backend().remove_device(port.network, stranger);
        }
        Ok(port)
    })
    .await
}

fn end_key(kept: &Kept, container: ContainerId) -> EndKey {
    let known = kept.key(container).cloned();
    let private_key = known.unwrap_or_else(|| PrivateKey::generate(&mut rand::rng()));
    EndKey { container, private_key: WirePrivateKey(private_key) }
}

/// Opens the port that was used before, or one that no network of this node tries for itself.
fn open(agent: &Agent, before: Option<Port>) -> Result<Port, AgentError> {
    let first = agent.options.listen_port.saturating_add(PORTS_TRIED);
    let (number, sockets) = socket::bind_port_beyond(before.map_or(first, |port| port.number))?;
    if let Some(before) = before.filter(|before| before.number != number) {
        tracing::warn!(
            before = before.number,
            now = number,
            "the port of the access points is taken: the files of their persons name one where nobody answers"
        );
    }
    let network = before.map_or_else(|| NetworkId::from_bytes(rand::random()), |before| before.network);
    agent.backend().engine_itself().put_network(network, sockets, None)?;
    Ok(Port { number, network })
}

fn keep(agent: &Agent, joined: &Joined, kept: Kept) -> Result<(), AgentError> {
    agent.files.put_access(joined.membership.network, &kept)?;
    joined.state().access.kept = kept;
    Ok(())
}

/// Tells the engine of the persons' devices, when they are not those that it was told of.
async fn admit(agent: &Arc<Agent>, joined: &Arc<Joined>, port: Port) -> Result<(), AgentError> {
    let peers = peers(agent, joined);
    if joined.state().access.told.as_ref() == Some(&peers) {
        return Ok(());
    }
    let (agent, joined) = (agent.clone(), joined.clone());
    blocking(move || {
        agent.backend().replace_peers(port.network, peers.clone())?;
        joined.state().access.told = Some(peers);
        Ok(())
    })
    .await
}

/// Makes both devices of an access point and the way between them.
async fn make(
    agent: &Arc<Agent>,
    joined: &Arc<Joined>,
    port: Port,
    record: AccessRecord,
) -> Result<(), AgentError> {
    let (network, id) = (joined.membership.network, record.id);
    let _guard = joined.lock_name(&record.name).await;
    let held = agent.backend().device(network, id).as_ref().map(Keys::of);
    let inner_keys = match held {
        Some(keys) => keys,
        None => {
            let (given, key, _) = ask_controller(joined, &record.name, (&[], None), Duration::ZERO).await?;
            if given.id != id {
                let why =
                    format!("access point {} became container {} instead of {id}", record.name, given.id);
                return Err(AgentError::Invalid(why));
            }
            key.into()
        }
    };
    let outer_key = joined.state().access.kept.key(id).cloned();
    // Gone in this very moment: the next look knows.
    let Some(outer_key) = outer_key else { return Ok(()) };
    let agent = agent.clone();
    blocking(move || {
        let mtu = agent.mtu();
        let device = |relay: bool, keys: Keys| Device {
            id,
            name: device_name(network, id, relay),
            private_key: WirePrivateKey(keys.key),
            also_private_key: keys.also.map(WirePrivateKey),
            also_is_next: keys.next,
            addresses: if relay { Vec::new() } else { record.addresses().collect() },
            mtu,
            relay,
        };
        let (inner, outer) = tun::pair().map_err(tun::TunError::Io)?;
        let mut backend = agent.backend();
        let engine = backend.engine_itself();
        engine.remove_device(network, id);
        engine.remove_device(port.network, id);
        for (of, device, end) in [
            (network, device(false, inner_keys), inner),
            (port.network, device(true, outer_key.into()), outer),
        ] {
            let listener = socket::wg_listener(&device.name)?;
            engine.put_device(of, device, vec![end, listener.into()])?;
        }
        tracing::info!(name = %record.name, port = port.number, "serving an access point");
        Ok(())
    })
    .await
}

/// Follows the MTU of the underlay.
async fn mend(
    agent: &Arc<Agent>,
    joined: &Arc<Joined>,
    port: Port,
    id: ContainerId,
) -> Result<(), AgentError> {
    let (agent, network) = (agent.clone(), joined.membership.network);
    blocking(move || {
        let mtu = agent.mtu();
        for of in [network, port.network] {
            // In one go, as its keys may be changed at the same time.
            let mut backend = agent.backend();
            let device = backend.device(of, id).filter(|device| device.mtu != mtu);
            if let Some(device) = device {
                backend.put_device(of, Device { mtu, ..device }, None)?;
            }
        }
        Ok(())
    })
    .await
}

/// Tells the controller where an access point is served, once.
async fn offer(joined: &Arc<Joined>, port: Port, id: ContainerId, name: &Name) -> Result<(), AgentError> {
    let public_key: Option<PublicKey> = joined.state().access.kept.key(id).map(PrivateKey::public_key);
    let Some(public_key) = public_key else { return Ok(()) };
    let point = AccessPoint { public_key, port: port.number };
    if joined.state().access.offered.get(&id) == Some(&point) {
        return Ok(());
    }
    // It is told when it is back.
    let Ok(mut client) = joined.controller() else { return Ok(()) };
    let request = v1::OfferAccessRequest {
        network: network_bytes(joined),
        name: name.to_string(),
        public_key: public_key.as_bytes().to_vec(),
        port: port.number.into(),
    };
    bounded(joined, client.offer_access(request)).await?;
    joined.state().access.offered.insert(id, point);
    Ok(())
}

/// What there is to say of this node's access points.
pub(crate) fn status(agent: &Agent, joined: &Joined, stats: &EngineStats) -> Vec<ServedAccess> {
    let network = joined.membership.network;
    let port = joined.state().access.kept.port;
    let figures = |of: NetworkId, id: ContainerId| {
        stats.devices.iter().find(|(n, c, ..)| (*n, *c) == (of, id)).map(|(.., stats)| *stats)
    };
    let describe = |record: AccessRecord| {
        let outer = port.and_then(|port| figures(port.network, record.id));
        ServedAccess {
            name: record.name.to_string(),
            container: record.id.get(),
            addresses: record.addresses().collect(),
            port: port.filter(|_| outer.is_some()).map(|port| port.number),
            inner_device: device_name(network, record.id, false),
            outer_device: device_name(network, record.id, true),
            inner: figures(network, record.id),
            outer,
        }
    };
    wanted(agent, joined).into_iter().flatten().map(describe).collect()
}

/// The name under which `wg(8)` finds a device of an access point. No hexadecimal digit is an x, so that the outer one has
/// no container's name.
fn device_name(network: NetworkId, id: ContainerId, outer: bool) -> String {
    let network = network.to_string();
    let mut name = match outer {
        false => format!("{DEVICE_PREFIX}{}{:x}", network.get(..6).unwrap_or_default(), id.get()),
        true => format!("{DEVICE_PREFIX}x{}{:x}", network.get(..5).unwrap_or_default(), id.get()),
    };
    name.truncate(MAX_IFNAME);
    name
}
