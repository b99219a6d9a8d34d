//! What the engine serves: networks with their sockets, devices with their descriptors.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use znet_core::id::{ContainerId, NetworkId};

use crate::control::{Device as WireDevice, SessionList};
use crate::io::tun::Tun;
use crate::io::udp::Udp;
use crate::net::{Device, Lane, Network, OwnAddresses};
use crate::plane::{Plane, Sockets, Token, TunSource};

/// Most networks that one engine serves.
pub(super) const MAX_NETWORKS: usize = 64;
/// Most devices of one network that one engine serves.
pub(super) const MAX_DEVICES: usize = 4_096;

/// A device's descriptors.
pub(super) struct Ports {
    pub(super) source: Arc<TunSource>,
    pub(super) uapi: UnixListener,
    token: Token,
}

/// A network and its descriptors.
pub(super) struct Served {
    pub(super) network: Arc<Network>,
    pub(super) sockets: Arc<Sockets>,
    pub(super) ports: HashMap<ContainerId, Ports>,
    tokens: Vec<Token>,
}

/// Everything that the engine serves. The main thread's alone: the workers hold what they need.
pub(super) struct State {
    pub(super) networks: HashMap<NetworkId, Served>,
    /// The main thread's buffers, for handshakes that the agent asks for.
    pub(super) lane: Lane,
    /// What the next engine should begin anew.
    sessions: Arc<Mutex<SessionList>>,
    plane: Plane,
}

impl State {
    pub(super) fn new(plane: Plane, sessions: SessionList) -> Self {
        let sessions = Arc::new(Mutex::new(sessions));
        Self { networks: HashMap::new(), lane: Lane::default(), sessions, plane }
    }

    /// The list of sessions.
    pub(super) fn sessions(&self) -> MutexGuard<'_, SessionList> {
        lock(&self.sessions)
    }

    /// Throws out what is noted of sessions that ended, when that is most of it.
    pub(super) fn tidy_sessions(&self) {
        let count = self.networks.values().map(|served| served.network.sessions()).sum();
        // Noted under the lock of the list, so that no session that begins meanwhile is forgotten.
        let mut sessions = self.sessions();
        if sessions.is_stale(count) {
            let of = |(id, served): (&NetworkId, &Served)| {
                let keys = served.network.session_keys();
                let id = *id;
                keys.into_iter().map(move |(device, peer)| (id, device, peer)).collect::<Vec<_>>()
            };
            sessions.rewrite(self.networks.iter().flat_map(of));
        }
    }

    /// Serves a network, or changes what may change of one that is served.
    pub(super) fn put_network(
        &mut self,
        id: NetworkId,
        keepalive: Option<u16>,
        sockets: Vec<OwnedFd>,
    ) -> Result<(), String> {
        if let Some(served) = self.networks.get(&id) {
            served.network.set_keepalive(keepalive, &mut self.lane, Instant::now());
            return Ok(());
        }
        if self.networks.len() >= MAX_NETWORKS {
            return Err(format!("an engine serves at most {MAX_NETWORKS} networks"));
        }
        let bound = sockets.into_iter().map(|socket| Udp::adopt(socket).map(Arc::new));
        let bound: Vec<Arc<Udp>> =
            bound.collect::<Result<_, _>>().map_err(|error| format!("not a bound UDP socket: {error}"))?;
        if bound.is_empty() {
            return Err("a network needs at least one UDP socket".to_owned());
        }
        let list = self.sessions.clone();
        let began = Box::new(move |device: ContainerId, peer: &_| lock(&list).push(&(id, device, *peer)));
        let sockets = Arc::new(Sockets::new(bound.clone(), self.plane.clock().clone(), Some(began)));
        let network = Arc::new(Network::new(sockets.clone(), keepalive, rand::random(), Instant::now()));
        let tokens = self.plane.watch_port(&bound, &network);
        let tokens = tokens.map_err(|error| format!("the socket cannot be watched: {error}"))?;
        self.plane.clock().add(network.clone());
        self.networks.insert(id, Served { network, sockets, ports: HashMap::new(), tokens });
        Ok(())
    }

    pub(super) fn remove_network(&mut self, id: NetworkId) {
        let Some(served) = self.networks.remove(&id) else { return };
        self.plane.clock().remove(&served.network);
        for (token, udp) in served.tokens.iter().zip(served.sockets.bound()) {
            self.plane.unwatch(token, &*udp);
        }
        for ports in served.ports.values() {
            self.plane.unwatch(&ports.token, &*ports.source.tun);
        }
    }

    /// Serves a device over new descriptors, or changes the settings of one that is served.
    pub(super) fn put_device(
        &mut self,
        network: NetworkId,
        device: WireDevice,
        fds: Vec<OwnedFd>,
    ) -> Result<(), String> {
        let served = self.networks.get_mut(&network).ok_or("this network is not served")?;
        let id = device.id;
        let mut watched = None;
        if !served.ports.contains_key(&id) || !fds.is_empty() {
            if served.ports.len() >= MAX_DEVICES {
                return Err(format!("an engine serves at most {MAX_DEVICES} devices of a network"));
            }
            let mut fds = fds.into_iter();
            let (Some(tun), Some(uapi)) = (fds.next(), fds.next()) else {
                return Err("a new device needs its TUN device and its listening socket".to_owned());
            };
            let tun = Tun::adopt(tun).map_err(|error| format!("not a TUN device: {error}"))?;
            let source = Arc::new(TunSource::new(Arc::new(tun), served.network.clone(), id, None));
            watched = Some((source, UnixListener::from(uapi)));
        }
        let tun = match (&watched, served.ports.get(&id)) {
            (Some((source, _)), _) => source.tun.clone(),
            (None, Some(ports)) => ports.source.tun.clone(),
            (None, None) => return Err("this device is not served".to_owned()),
        };
        let WireDevice { id, name, private_key, also_private_key, also_is_next, addresses, mtu, relay } =
            device;
        let own = if relay { OwnAddresses::Any } else { OwnAddresses::Only(addresses) };
        let device = Device::new(id, name, private_key.0, own, mtu, tun);
        served.network.put_device(device.accepting(also_private_key.map(|key| key.0), also_is_next));
        served.network.renew(&mut self.lane, Instant::now());
        if let Some((source, uapi)) = watched {
            if let Some(old) = served.ports.remove(&id) {
                self.plane.unwatch(&old.token, &*old.source.tun);
            }
            // Only now, as packets of a device that the network does not have are dropped.
            let token = self.plane.watch_tun(source.clone());
            let token = token.map_err(|error| format!("the TUN device cannot be watched: {error}"))?;
            served.ports.insert(id, Ports { source, uapi, token });
        }
        Ok(())
    }

    pub(super) fn remove_device(&mut self, network: NetworkId, id: ContainerId) {
        let Some(served) = self.networks.get_mut(&network) else { return };
        if let Some(ports) = served.ports.remove(&id) {
            self.plane.unwatch(&ports.token, &*ports.source.tun);
        }
        served.network.remove_device(id);
    }
}

fn lock(list: &Mutex<SessionList>) -> MutexGuard<'_, SessionList> {
    // A thread that panics ends the process, so a poisoned lock is never seen.
    list.lock().unwrap_or_else(PoisonError::into_inner)
}
