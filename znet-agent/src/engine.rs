//! The agent's hold on its engine: adopt the one that runs, start one where none does, and give a new one everything
//! that the old one had.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use znet_core::id::{ContainerId, NetworkId};
use znet_core::key::PublicKey;
use znet_wg::control::{Device, EngineClient, EngineError, EngineStats, Peer, SessionKey};

use crate::error::AgentError;
use crate::host::socket::remove_wg_socket;

/// The engine's log is begun anew when it is larger than this, in bytes, as an engine starts.
const MAX_LOG: u64 = 1 << 20;

/// A device with copies of the descriptors that its engine has, so that a new engine can have them.
#[derive(Debug)]
pub struct HeldDevice {
    /// The device, with its private key.
    pub device: Device,
    fds: Vec<OwnedFd>,
}

/// A network as the engine serves it.
#[derive(Debug)]
pub struct HeldNetwork {
    sockets: Vec<OwnedFd>,
    keepalive: Option<u16>,
    /// Its devices.
    pub devices: BTreeMap<ContainerId, HeldDevice>,
}

/// The engine and everything that it should serve. Its methods block.
#[derive(Debug)]
pub struct Engine {
    run_dir: PathBuf,
    client: Option<EngineClient>,
    networks: BTreeMap<NetworkId, HeldNetwork>,
    /// The sessions that the last engine had when it ended.
    ended: BTreeSet<SessionKey>,
}

/// What a restarted engine is told about its networks' peers.
pub type Peers<'a> = &'a dyn Fn(NetworkId) -> Vec<Peer>;

impl Engine {
    /// Adopts the engine that runs, with all it serves, or remembers that one has to be started.
    pub fn adopt(run_dir: &Path) -> Self {
        let mut engine = Self {
            run_dir: run_dir.to_owned(),
            client: None,
            networks: BTreeMap::new(),
            ended: BTreeSet::new(),
        };
        if let Ok(mut client) = EngineClient::connect(&engine.socket()) {
            match client.dump() {
                Ok(dump) => {
                    for network in dump.networks {
                        let held = HeldNetwork {
                            sockets: network.sockets,
                            keepalive: None,
                            devices: BTreeMap::new(),
                        };
                        engine.networks.insert(network.network, held);
                    }
                    for device in dump.devices.into_iter().filter(|device| !device.gone) {
                        if let Some(network) = engine.networks.get_mut(&device.network) {
                            let id = device.device.id;
                            network.devices.insert(id, HeldDevice { device: device.device, fds: device.fds });
                        }
                    }
                    tracing::info!(
                        pid = client.pid,
                        networks = engine.networks.len(),
                        "adopted the running engine"
                    );
                    engine.client = Some(client);
                }
                Err(error) => {
                    tracing::warn!(%error, "the running engine cannot be adopted; starting a new one");
                }
            }
        }
        engine
    }

    fn socket(&self) -> PathBuf {
        self.run_dir.join("engine.sock")
    }

    /// Stops the engine that runs, so that a new one gets everything that it had.
    pub fn dismiss(&mut self) {
        if let Some(mut client) = self.client.take() {
            self.ended = client.sessions();
            if let Err(error) = client.shutdown() {
                tracing::warn!(%error, "the old engine did not confirm its end");
            }
        }
    }

    /// Makes sure that an engine runs. A new one gets every network, device and peer. Returns whether it is new.
    ///
    /// # Errors
    /// [`AgentError`] when none can be started.
    pub fn ensure(&mut self, peers: Peers<'_>) -> Result<bool, AgentError> {
        if let Some(client) = &mut self.client
            && client.stats().is_ok()
        {
            return Ok(false);
        }
        if let Some(dead) = self.client.take() {
            self.ended = dead.sessions();
        }
        let file = self.log()?;
        let exe = Path::new("/proc/self/exe");
        let exe =
            std::fs::read_link(exe).map_err(|source| AgentError::File { path: exe.to_owned(), source })?;
        let (mut client, mut child) = znet_wg::engine::spawn(&exe, &["engine"], &self.socket(), Some(file))?;
        tracing::info!(pid = client.pid, "started an engine");
        // Somebody has to take note of its end, or it stays a zombie.
        std::thread::spawn(move || child.wait());
        for (id, network) in &self.networks {
            client.put_network(*id, network.keepalive, &network.sockets)?;
            for held in network.devices.values() {
                client.put_device(*id, held.device.clone(), &held.fds)?;
            }
            client.replace_peers(*id, peers(*id))?;
        }
        // The others may go on sending to sessions that ended with the old engine, and would notice only after a while.
        for ((network, device), peers) in by_device(std::mem::take(&mut self.ended)) {
            if self.networks.get(&network).is_some_and(|held| held.devices.contains_key(&device)) {
                client.wake(network, device, &peers)?;
            }
        }
        self.client = Some(client);
        Ok(true)
    }

    /// The engine's messages go to a file, as it outlives whatever the agent writes to. It is begun anew when it is large.
    fn log(&self) -> Result<std::fs::File, AgentError> {
        let path = self.run_dir.join("engine.log");
        let large = std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() > MAX_LOG);
        let mut options = OpenOptions::new();
        let file = if large { options.write(true).truncate(true) } else { options.create(true).append(true) };
        file.open(&path).map_err(|source| AgentError::File { path, source })
    }

    /// The engine's process; `None` while there is none.
    pub fn pid(&self) -> Option<u32> {
        self.client.as_ref().map(|client| client.pid)
    }

    /// Whether its devices and peers may have two keys, without which no container's key can be changed. This is all that
    /// anybody asks before that: the controller is told when the node joins, and begins no change as long as one node says no.
    pub fn holds_two_keys(&self) -> bool {
        // One that is started anew is of this version.
        self.client.as_ref().is_none_or(|client| client.two_keys)
    }

    /// The networks that it serves.
    pub fn networks(&self) -> &BTreeMap<NetworkId, HeldNetwork> {
        &self.networks
    }

    /// A device of a network.
    pub fn device(&self, network: NetworkId, container: ContainerId) -> Option<&Device> {
        self.networks.get(&network)?.devices.get(&container).map(|held| &held.device)
    }

    /// The name that the link of a device has now and the namespace in which it is; `None` when the device is not served.
    ///
    /// # Errors
    /// The kernel's: the link is gone.
    pub fn whereabouts(
        &self,
        network: NetworkId,
        container: ContainerId,
    ) -> std::io::Result<Option<(String, OwnedFd)>> {
        let held = self.networks.get(&network).and_then(|held| held.devices.get(&container));
        held.and_then(|held| held.fds.first()).map(znet_wg::io::tun::whereabouts).transpose()
    }

    /// Serves a network.
    ///
    /// # Errors
    /// [`AgentError::Engine`].
    pub fn put_network(
        &mut self,
        id: NetworkId,
        sockets: Vec<OwnedFd>,
        keepalive: Option<u16>,
    ) -> Result<(), AgentError> {
        self.client()?.put_network(id, keepalive, &sockets)?;
        self.networks.insert(id, HeldNetwork { sockets, keepalive, devices: BTreeMap::new() });
        Ok(())
    }

    /// Changes how often keepalives are sent in a network that is served.
    ///
    /// # Errors
    /// [`AgentError::Engine`].
    pub fn set_keepalive(&mut self, id: NetworkId, keepalive: Option<u16>) -> Result<(), AgentError> {
        self.client()?.put_network(id, keepalive, &[] as &[OwnedFd])?;
        if let Some(network) = self.networks.get_mut(&id) {
            network.keepalive = keepalive;
        }
        Ok(())
    }

    /// The UDP port of a network that is served.
    pub fn port(&self, id: NetworkId) -> Option<u16> {
        port_of(&self.networks.get(&id)?.sockets)
    }

    /// Stops the engine and hands back the ports of its networks: nobody else gets them meanwhile.
    pub fn give_up(&mut self) -> BTreeMap<NetworkId, (u16, Vec<OwnedFd>)> {
        self.dismiss();
        let networks = std::mem::take(&mut self.networks).into_iter();
        networks.filter_map(|(id, held)| Some((id, (port_of(&held.sockets)?, held.sockets)))).collect()
    }

    /// Serves a network no longer.
    pub fn remove_network(&mut self, id: NetworkId) {
        if let Some(network) = self.networks.remove(&id) {
            network.devices.values().for_each(|held| remove_wg_socket(&held.device.name));
        }
        if let Ok(client) = self.client() {
            let _ = client.remove_network(id);
        }
    }

    /// Serves a device over new descriptors: its TUN device and its `wg(8)` socket.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn put_device(
        &mut self,
        network: NetworkId,
        device: Device,
        fds: Vec<OwnedFd>,
    ) -> Result<(), AgentError> {
        self.client()?.put_device(network, device.clone(), &fds)?;
        if let Some(held) = self.networks.get_mut(&network) {
            held.devices.insert(device.id, HeldDevice { device, fds });
        }
        Ok(())
    }

    /// Changes the settings of a device that is served.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn change_device(&mut self, network: NetworkId, device: Device) -> Result<(), AgentError> {
        self.client()?.put_device(network, device.clone(), &[] as &[OwnedFd])?;
        let held = self.networks.get_mut(&network).and_then(|held| held.devices.get_mut(&device.id));
        if let Some(held) = held {
            held.device = device;
        }
        Ok(())
    }

    /// Serves a device no longer; its link ends with its descriptors.
    pub fn remove_device(&mut self, network: NetworkId, container: ContainerId) {
        if let Ok(client) = self.client() {
            let _ = client.remove_device(network, container);
        }
        let held = self.networks.get_mut(&network).and_then(|held| held.devices.remove(&container));
        if let Some(held) = held {
            remove_wg_socket(&held.device.name);
        }
    }

    /// Changes the peers of a network.
    ///
    /// # Errors
    /// [`AgentError::Engine`].
    pub fn change_peers(
        &mut self,
        network: NetworkId,
        put: &[Peer],
        remove: &[PublicKey],
    ) -> Result<(), AgentError> {
        let client = self.client()?;
        if !remove.is_empty() {
            client.remove_peers(network, remove)?;
        }
        Ok(client.put_peers(network, put)?)
    }

    /// Makes the peers of a network these and no others.
    ///
    /// # Errors
    /// [`AgentError::Engine`].
    pub fn replace_peers(&mut self, network: NetworkId, peers: Vec<Peer>) -> Result<(), AgentError> {
        Ok(self.client()?.replace_peers(network, peers)?)
    }

    /// From which of these peers an authenticated packet has come within this time.
    ///
    /// # Errors
    /// [`AgentError::Engine`].
    pub fn heard(
        &mut self,
        network: NetworkId,
        peers: &[PublicKey],
        within: Duration,
    ) -> Result<Vec<PublicKey>, AgentError> {
        Ok(self.client()?.heard(network, peers, within)?)
    }

    /// All figures, and whether each device is gone.
    ///
    /// # Errors
    /// [`AgentError::Engine`].
    pub fn stats(&mut self) -> Result<EngineStats, AgentError> {
        Ok(self.client()?.stats()?)
    }

    /// Stops the engine; all links of this node end.
    pub fn stop(&mut self) {
        if let Ok(client) = self.client() {
            let _ = client.shutdown();
        }
        let ids: Vec<NetworkId> = self.networks.keys().copied().collect();
        self.client = None;
        ids.into_iter().for_each(|id| self.remove_network(id));
    }

    fn client(&mut self) -> Result<&mut EngineClient, AgentError> {
        self.client.as_mut().ok_or(AgentError::Engine(EngineError::Refused("no engine runs yet".to_owned())))
    }
}

fn port_of(sockets: &[OwnedFd]) -> Option<u16> {
    let address = socket2::SockRef::from(sockets.first()?).local_addr().ok()?;
    address.as_socket().map(|address| address.port())
}

fn by_device(sessions: BTreeSet<SessionKey>) -> BTreeMap<(NetworkId, ContainerId), Vec<PublicKey>> {
    let mut all: BTreeMap<_, Vec<PublicKey>> = BTreeMap::new();
    for (network, device, peer) in sessions {
        all.entry((network, device)).or_default().push(peer);
    }
    all
}

/// The addresses of a device as a set, for comparison.
pub fn address_set(device: &Device) -> BTreeSet<IpAddr> {
    device.addresses.iter().copied().collect()
}
