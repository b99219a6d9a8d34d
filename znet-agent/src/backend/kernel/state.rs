//! The kernel's devices and what is done to them. Behind one lock, which is held for some netlink calls and no longer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use znet_core::id::{ContainerId, NetworkId};
use znet_core::key::PublicKey;
use znet_core::plan::DeviceKey;
use znet_wg::control::{Device, DeviceStats, EngineStats, Peer};
use znet_wg::knock;

use super::directory::Directory;
use super::look::{self, EAGER_PEERS, SESSION, Told, Wanted, whole};
use super::waker::Waker;
use super::wg::{Put, Wg, WgError};
use crate::error::AgentError;
use crate::host::netns::Netns;
use crate::host::packet::Knock;
use crate::host::wireguard::route_beside;

/// How often each device is looked at.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Most peers that one device is told, however many are wanted.
const MAX_TOLD: usize = 8_192;
/// Knocks that are looked at in a second: a keyed MAC each, and a key agreement for those that are for us.
const KNOCKS_PER_SECOND: u32 = 500;
/// Knocks of peers that no map named yet that are remembered.
const MAX_EARLY: usize = 64;
/// For so long: a map comes within moments, or the peer knocks again.
const EARLY: Duration = Duration::from_secs(5);
/// The errno of a device that is not there.
const ENODEV: i32 = 19;

/// A container's device.
#[derive(Debug)]
pub(super) struct Local {
    pub(super) device: Device,
    pub(super) port: u16,
    pub(super) wg: Wg,
    pub(super) netns: Netns,
    /// Its addresses are set: it is told peers.
    pub(super) served: bool,
    /// Its link was not there any more.
    pub(super) gone: bool,
    pub(super) waker: Option<Arc<Waker>>,
    told: BTreeMap<PublicKey, Told>,
    /// Peers that had a session with the device that was in its place, with whom it began another one.
    sought: Vec<PublicKey>,
    look_at: Instant,
    drop_destination: u64,
}

impl Local {
    pub(super) fn new(device: Device, port: u16, wg: Wg, netns: Netns) -> Self {
        let told = BTreeMap::new();
        let look_at = Instant::now();
        Self {
            device,
            port,
            wg,
            netns,
            served: false,
            gone: false,
            waker: None,
            told,
            sought: Vec::new(),
            look_at,
            drop_destination: 0,
        }
    }

    /// A device that an earlier agent made and told these peers.
    pub(super) fn adopted(device: Device, port: u16, wg: Wg, netns: Netns, told: &[PublicKey]) -> Self {
        let now = Instant::now();
        let told = told.iter().map(|key| (*key, Told::now(now))).collect();
        Self { served: true, told, ..Self::new(device, port, wg, netns) }
    }

    /// Tells the device peers that it was not told, and routes them into it where packets to others go elsewhere.
    fn tell(&mut self, peers: &[(&Peer, Option<SocketAddr>)], now: Instant) -> Result<(), AgentError> {
        let own = self.device.private_key.0.public_key();
        let peers: Vec<_> = peers.iter().filter(|(peer, _)| peer.public_key != own).collect();
        let puts: Vec<Put> = peers.iter().map(|(peer, endpoint)| whole(peer, *endpoint)).collect();
        self.wg.put(&puts)?;
        self.told.extend(puts.iter().map(|put| (put.public_key, Told::now(now))));
        let prefixes: Vec<IpNet> = peers.iter().flat_map(|(peer, _)| look::prefixes(peer)).collect();
        self.route(&prefixes, true)
    }

    /// Forgets peers; packets to them come out of the waker again, if there is one.
    fn forget(&mut self, keys: &[PublicKey], prefixes: &[IpNet]) -> Result<(), AgentError> {
        self.told.retain(|key, _| !keys.contains(key));
        self.route(prefixes, false)?;
        Ok(self.wg.remove(keys)?)
    }

    fn route(&self, prefixes: &[IpNet], add: bool) -> Result<(), AgentError> {
        if self.waker.is_none() || prefixes.is_empty() {
            return Ok(());
        }
        let (index, sources) = (self.wg.index(), self.device.addresses.as_slice());
        Ok(self
            .netns
            .run(|handle| async move { route_beside(&handle, index, prefixes, sources, add).await })?)
    }
}

/// A network that is served.
#[derive(Debug, Default)]
pub(super) struct Served {
    pub(super) keepalive: Option<u16>,
    pub(super) directory: Directory,
    /// The directory is what a map said.
    pub(super) known: bool,
    pub(super) devices: BTreeMap<ContainerId, Local>,
}

/// Everything.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) networks: BTreeMap<NetworkId, Served>,
    early: Vec<(Instant, DeviceKey, PublicKey, SocketAddr)>,
    knocks: Option<(Instant, u32)>,
    /// Peers that spoke with a device whose link somebody removed: they go on sending to sessions that it no longer has.
    ended: BTreeMap<DeviceKey, Vec<PublicKey>>,
}

impl State {
    pub(super) fn local(&self, network: NetworkId, container: ContainerId) -> Option<&Local> {
        self.networks.get(&network)?.devices.get(&container)
    }

    pub(super) fn insert(&mut self, network: NetworkId, local: Local) {
        self.networks.entry(network).or_default().devices.insert(local.device.id, local);
    }

    pub(super) fn take(&mut self, network: NetworkId, container: ContainerId) -> Option<Local> {
        let key = DeviceKey { network, container };
        let local = self.networks.get_mut(&network)?.devices.remove(&container)?;
        self.ended.remove(&key);
        if local.gone {
            // Whom the last look did not hear yet the device itself may have sought since, after an earlier end.
            let heard = local.told.iter().filter(|(_, told)| told.heard()).map(|(peer, _)| *peer);
            let spoken: BTreeSet<PublicKey> = heard.chain(local.sought.iter().copied()).collect();
            self.ended.insert(key, spoken.into_iter().collect());
        }
        Some(local)
    }

    pub(super) fn gone(&self) -> Vec<(NetworkId, ContainerId)> {
        let all =
            self.networks.iter().flat_map(|(id, served)| served.devices.values().map(move |l| (*id, l)));
        all.filter(|(_, local)| local.gone).map(|(id, local)| (id, local.device.id)).collect()
    }

    pub(super) fn heard(&self, network: NetworkId, peer: &PublicKey, within: Duration) -> bool {
        let devices = self.networks.get(&network).into_iter().flat_map(|served| served.devices.values());
        devices.filter_map(|local| local.told.get(peer)).any(|told| told.heard_within(within))
    }

    /// The devices out of which packets to peers come that are not told yet.
    pub(super) fn wakers(&self) -> Vec<(DeviceKey, Arc<Waker>)> {
        let all = self.networks.iter().flat_map(|(network, served)| {
            served.devices.iter().map(|(container, local)| (*network, *container, local))
        });
        let with = all.filter_map(|(network, container, local)| {
            Some((DeviceKey { network, container }, local.waker.clone()?))
        });
        with.collect()
    }

    /// Serves a device that was made, or changes its settings.
    pub(super) fn serve(&mut self, network: NetworkId, device: Device) -> Result<(), AgentError> {
        let Some(served) = self.networks.get_mut(&network) else { return Ok(()) };
        let (eager, container) = (served.eager(), device.id);
        let Served { directory, devices, .. } = served;
        let Some(local) = devices.get_mut(&container) else { return Ok(()) };
        local.wg.set(Some(&device.private_key.0), Some(local.port))?;
        let first = !std::mem::replace(&mut local.served, true);
        local.device = device;
        if eager && first {
            let peers: Vec<_> = directory.peers().map(|peer| (peer, reachable(peer))).collect();
            local.tell(&peers, Instant::now())?;
        }
        local.look_at = Instant::now();
        let key = DeviceKey { network, container };
        if !eager {
            self.ensure_waker(key)?;
        }
        let ended = self.ended.remove(&key).unwrap_or_default();
        for peer in &ended {
            self.open_door(key, peer, None)?;
        }
        let local = self.networks.get_mut(&network).and_then(|served| served.devices.get_mut(&container));
        if let Some(local) = local.filter(|_| first) {
            local.sought = ended;
        }
        Ok(())
    }

    /// Makes the waker of a device that has too many peers to be told all of them.
    fn ensure_waker(&mut self, key: DeviceKey) -> Result<(), AgentError> {
        let Some(served) = self.networks.get_mut(&key.network) else { return Ok(()) };
        let Served { directory, devices, .. } = served;
        let Some(local) = devices.get_mut(&key.container).filter(|local| local.served && !local.gone) else {
            return Ok(());
        };
        if local.waker.is_none() {
            // Those that are told already first, so that none of their packets takes the way through the waker.
            let told = local.told.keys().filter_map(|key| directory.get(key));
            let prefixes: Vec<IpNet> = told.flat_map(look::prefixes).collect();
            let (index, sources) = (local.wg.index(), local.device.addresses.clone());
            local.waker = Some(Arc::new(Waker::make(&local.netns, index, &sources, &prefixes)?));
        }
        Ok(())
    }

    pub(super) fn lost_waker(&mut self, key: DeviceKey) {
        let local =
            self.networks.get_mut(&key.network).and_then(|served| served.devices.get_mut(&key.container));
        if let Some(local) = local {
            local.waker = None;
            local.look_at = Instant::now() + LOOK_EVERY;
        }
    }

    pub(super) fn change_peers(
        &mut self,
        network: NetworkId,
        put: &[Peer],
        remove: &[PublicKey],
    ) -> Result<(), AgentError> {
        let now = Instant::now();
        let served = self.networks.entry(network).or_default();
        let superseded = served.directory.superseded(put);
        let talked = |local: &Local, key: &PublicKey| local.told.get(key).is_some_and(Told::heard);
        let renewed: Vec<(DeviceKey, PublicKey)> = served
            .devices
            .iter()
            .flat_map(|(container, local)| {
                let key = DeviceKey { network, container: *container };
                let of = superseded.iter().filter(|(before, _)| talked(local, before));
                of.map(move |(_, now)| (key, *now))
            })
            .collect();
        let remove: Vec<PublicKey> = remove.iter().chain(superseded.keys()).copied().collect();
        let remove = remove.as_slice();
        let removed: Vec<Peer> = remove.iter().filter_map(|key| served.directory.remove(key)).collect();
        let changed: Vec<&Peer> = put.iter().filter(|peer| served.directory.put((*peer).clone())).collect();
        let eager = served.eager();
        let mut result = Ok(());
        for local in served.devices.values_mut().filter(|local| local.served && !local.gone) {
            let changed = local.change(&changed, &removed, remove, eager, now);
            result = result.and(changed);
        }
        let keys: Vec<DeviceKey> =
            served.devices.keys().map(|container| DeviceKey { network, container: *container }).collect();
        if !eager {
            keys.iter()
                .for_each(|key| result = std::mem::replace(&mut result, Ok(())).and(self.ensure_waker(*key)));
        }
        // The session that it had is gone, and the other end may be the one with something to send.
        for (key, peer) in &renewed {
            result = result.and(self.open_door(*key, peer, None));
        }
        self.welcome(put);
        result
    }

    /// Tells devices of peers that knocked before any map named them.
    fn welcome(&mut self, put: &[Peer]) {
        self.early.retain(|(since, ..)| since.elapsed() < EARLY);
        let known = |key: &PublicKey| put.iter().any(|peer| peer.public_key == *key);
        let (now_known, still_early) =
            std::mem::take(&mut self.early).into_iter().partition(|(_, _, key, _)| known(key));
        self.early = still_early;
        for (_, device, key, from) in now_known {
            if let Err(error) = self.open_door(device, &key, Some(from)) {
                tracing::warn!(%key, %error, "a peer that knocked could not be told");
            }
        }
    }

    /// A packet came out of a device's waker: tells the device the peer to which it goes, and hands it on.
    pub(super) fn wanted(&mut self, key: DeviceKey, packet: &[u8]) -> Result<(), AgentError> {
        let Some(served) = self.networks.get_mut(&key.network) else { return Ok(()) };
        let Served { directory, devices, .. } = served;
        let Some(local) = devices.get_mut(&key.container) else { return Ok(()) };
        let peer = destination(packet).and_then(|address| directory.owner(&address));
        let Some(peer) = peer.filter(|_| local.told.len() < MAX_TOLD) else {
            local.drop_destination += 1;
            return Ok(());
        };
        if !local.told.contains_key(&peer.public_key) {
            local.tell(&[(peer, reachable(peer))], Instant::now())?;
        }
        if let Some(waker) = &local.waker {
            waker.hand_on(packet);
        }
        Ok(())
    }

    /// Somebody knocks. A device that was not told this peer does not answer it, so it is told now, and has the device
    /// knock back: the knock itself is lost, and its repetition would take five seconds.
    pub(super) fn knocked(&mut self, knock: &Knock) -> Result<(), AgentError> {
        let now = Instant::now();
        let (since, count) = self.knocks.get_or_insert((now, 0));
        if now.saturating_duration_since(*since) >= Duration::from_secs(1) {
            (*since, *count) = (now, 0);
        }
        *count += 1;
        if *count > KNOCKS_PER_SECOND {
            return Ok(());
        }
        let found = self.networks.iter().find_map(|(network, served)| {
            let mut here = served.devices.values().filter(|local| local.port == knock.port && local.served);
            here.next().map(|local| (DeviceKey { network: *network, container: local.device.id }, local))
        });
        let Some((device, local)) = found else { return Ok(()) };
        let key = &local.device.private_key.0;
        if !knock::is_for(&key.public_key(), &knock.message) {
            return Ok(());
        }
        let Some(from) = knock::initiator(key, &knock.message) else { return Ok(()) };
        let known =
            self.networks.get(&device.network).is_some_and(|served| served.directory.get(&from).is_some());
        if known {
            return self.open_door(device, &from, Some(knock.from));
        }
        self.early.retain(|(since, ..)| since.elapsed() < EARLY);
        if self.early.len() < MAX_EARLY {
            self.early.push((now, device, from, knock.from));
        }
        Ok(())
    }

    /// Tells a device a peer, which is at `at` if it knocked from there, and begins a handshake with it.
    fn open_door(
        &mut self,
        key: DeviceKey,
        from: &PublicKey,
        at: Option<SocketAddr>,
    ) -> Result<(), AgentError> {
        let Some(served) = self.networks.get_mut(&key.network) else { return Ok(()) };
        let Served { directory, devices, .. } = served;
        let (Some(local), Some(peer)) = (devices.get_mut(&key.container), directory.get(from)) else {
            return Ok(());
        };
        // One that was told is answered by the kernel, unless it was told after it knocked.
        let fresh = local.told.get(from).is_none_or(|told| told.age() < EARLY);
        if local.told.len() >= MAX_TOLD || !fresh {
            return Ok(());
        }
        if !local.told.contains_key(from) {
            local.tell(&[(peer, at.or_else(|| reachable(peer)))], Instant::now())?;
        }
        // A keepalive that is set sends one at once, which takes a handshake.
        let begin = |keepalive| Put { keepalive: Some(keepalive), ..Put::of(*from) };
        local.wg.put(&[begin(1)])?;
        local.wg.put(&[begin(0)])?;
        Ok(())
    }

    /// Looks at the devices whose turn it is.
    pub(super) fn look(&mut self, now: Instant) {
        let mut without_waker = Vec::new();
        for (network, served) in &mut self.networks {
            let eager = served.eager();
            let Served { keepalive, directory, known, devices } = served;
            let due =
                devices.values_mut().filter(|local| local.served && !local.gone && local.look_at <= now);
            for local in due {
                local.look_at = now + LOOK_EVERY;
                let directory = &*directory;
                if let Err(error) = local.mend(directory, *known, *keepalive, eager, now) {
                    local.gone = is_gone(&error);
                    if !local.gone {
                        tracing::warn!(container = %local.device.id, %error, "a device is not as it should be");
                    }
                }
                if !eager && local.waker.is_none() && !local.gone {
                    without_waker.push(DeviceKey { network: *network, container: local.device.id });
                }
            }
        }
        for key in without_waker {
            if let Err(error) = self.ensure_waker(key) {
                tracing::warn!(container = %key.container, %error, "peers that are not told cannot be woken");
            }
        }
    }

    /// When the next look is due.
    pub(super) fn next_look(&self) -> Option<Instant> {
        let all = self.networks.values().flat_map(|served| served.devices.values());
        all.filter(|local| local.served && !local.gone).map(|local| local.look_at).min()
    }

    pub(super) fn stats(&self) -> EngineStats {
        let mut all = EngineStats::default();
        for (network, served) in &self.networks {
            for (container, local) in &served.devices {
                let mut stats =
                    DeviceStats { drop_destination: local.drop_destination, ..DeviceStats::default() };
                for peer in local.wg.read().map(|seen| seen.peers).unwrap_or_default().values() {
                    stats.rx_bytes += peer.rx;
                    stats.tx_bytes += peer.tx;
                    stats.sessions += u64::from(peer.handshake.is_some_and(|age| age < SESSION));
                }
                all.devices.push((*network, *container, local.gone, stats));
            }
        }
        all
    }
}

impl Local {
    /// Brings a change of its network's peers to the device.
    fn change(
        &mut self,
        changed: &[&Peer],
        removed: &[Peer],
        remove: &[PublicKey],
        eager: bool,
        now: Instant,
    ) -> Result<(), AgentError> {
        let told = |local: &Self, key: &PublicKey| local.told.contains_key(key);
        let gone: Vec<PublicKey> = remove.iter().filter(|key| told(self, key)).copied().collect();
        if !gone.is_empty() {
            let prefixes: Vec<IpNet> = removed.iter().flat_map(look::prefixes).collect();
            self.forget(&gone, &prefixes)?;
        }
        // The next look sets what differs of those that it was told: an endpoint at which one was heard is none of that, and
        // addresses that are set anew are not there for a moment.
        if changed.iter().any(|peer| told(self, &peer.public_key)) {
            self.look_at = now;
        }
        let new = changed.iter().filter(|peer| eager && !told(self, &peer.public_key));
        let new: Vec<_> = new.map(|peer| (*peer, reachable(peer))).collect();
        if new.is_empty() { Ok(()) } else { self.tell(&new, now) }
    }

    /// One look at the device, and what follows.
    fn mend(
        &mut self,
        directory: &Directory,
        known: bool,
        keepalive: Option<u16>,
        eager: bool,
        now: Instant,
    ) -> Result<(), AgentError> {
        let seen = self.wg.read()?;
        let wanted = Wanted { device: &self.device, port: self.port, directory, known, keepalive };
        let repair = look::compare(&wanted, &mut self.told, &seen, now);
        if repair.set {
            tracing::info!(container = %self.device.id, "somebody changed the device's key or port; it is set back");
            self.wg.set(Some(&self.device.private_key.0), Some(self.port))?;
        }
        if !repair.remove.is_empty() {
            self.wg.remove(&repair.remove)?;
        }
        self.wg.put(&repair.put)?;
        if eager {
            let new = directory.peers().filter(|peer| !self.told.contains_key(&peer.public_key));
            let new: Vec<_> = new.map(|peer| (peer, reachable(peer))).collect();
            if known && !new.is_empty() {
                self.tell(&new, now)?;
            }
            return Ok(());
        }
        let adopted = repair.adopted.iter().filter_map(|key| directory.get(key));
        self.route(&adopted.flat_map(look::prefixes).collect::<Vec<_>>(), true)?;
        let many = self.told.len().saturating_sub(EAGER_PEERS);
        let idle: Vec<PublicKey> = repair.idle.into_iter().take(many).collect();
        if idle.is_empty() {
            return Ok(());
        }
        let prefixes: Vec<IpNet> =
            idle.iter().filter_map(|key| directory.get(key)).flat_map(look::prefixes).collect();
        self.forget(&idle, &prefixes)
    }
}

/// The first endpoint to which this host has a way at all.
fn reachable(peer: &Peer) -> Option<SocketAddr> {
    let has_way = |endpoint: &&SocketAddr| {
        let any: SocketAddr = match endpoint {
            SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
            SocketAddr::V6(_) => ([0u16; 8], 0).into(),
        };
        UdpSocket::bind(any).and_then(|socket| socket.connect(endpoint)).is_ok()
    };
    if peer.endpoints.len() < 2 {
        return peer.endpoints.first().copied();
    }
    peer.endpoints.iter().find(has_way).or(peer.endpoints.first()).copied()
}

fn is_gone(error: &AgentError) -> bool {
    matches!(error, AgentError::Wg(WgError::Refused { source, .. }) if source.raw_os_error() == Some(ENODEV))
}

/// Where an IP packet goes.
fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(packet.get(16..20)?).ok()?)),
        6 => Some(IpAddr::from(<[u8; 16]>::try_from(packet.get(24..40)?).ok()?)),
        _ => None,
    }
}
