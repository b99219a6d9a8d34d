//! The kernel's devices, and an engine beside them for what the kernel cannot do: people's devices, whose packets go from
//! tunnel to tunnel, and devices that a runtime moves by itself, which a descriptor has to find again.
//!
//! A container with a port of its own has a device of the kernel's. One without has the engine's, and all of those share the
//! node's port of the network. So what the map says of a container says whose it is, and others need to know nothing
//! of it. The engine is started when there is something for it; until then the ports are held that it will have. What an
//! engine serves when an agent with the kernel as backend starts stays with it: no link ends for the change.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use znet_core::id::{ContainerId, NetworkId};
use znet_core::key::PublicKey;
use znet_wg::control::{Device, EngineStats, Peer};
use znet_wg::io::udp;

use super::kernel::Kernel;
use crate::engine::{Engine, Peers};
use crate::error::AgentError;
use crate::files::Attachment;
use crate::host::netns::Netns;
use crate::host::socket;

/// Both holds. The methods are those of [`super::Backend`], and block.
#[derive(Debug)]
pub(super) struct Both {
    kernel: Kernel,
    engine: Engine,
    /// The ports of networks that the engine does not serve.
    held: BTreeMap<NetworkId, Held>,
}

/// A port that the engine gets when it has a device of the network.
#[derive(Debug)]
struct Held {
    port: u16,
    sockets: Vec<OwnedFd>,
    keepalive: Option<u16>,
}

impl Held {
    fn new(port: u16, sockets: Vec<OwnedFd>, keepalive: Option<u16>) -> Self {
        // Nobody reads what strangers send there.
        for socket in &sockets {
            let _ = socket2::SockRef::from(socket).set_recv_buffer_size(0);
        }
        Self { port, sockets, keepalive }
    }
}

impl Both {
    /// An engine that serves no device is ended.
    pub(super) fn new(kernel: Kernel, mut engine: Engine) -> Self {
        let idle = engine.networks().values().all(|network| network.devices.is_empty());
        let ports = if idle { engine.give_up() } else { BTreeMap::new() };
        let held =
            ports.into_iter().map(|(network, (port, sockets))| (network, Held::new(port, sockets, None)));
        Self { kernel, engine, held: held.collect() }
    }

    /// The engine. What it is to serve needs [`Both::have_engine_serve`] first.
    pub(super) fn engine(&mut self) -> &mut Engine {
        &mut self.engine
    }

    /// Has the engine serve a network as well; there may be no device of it yet.
    ///
    /// # Errors
    /// [`AgentError`]: no engine can be started, or the network is none of this node's.
    pub(super) fn have_engine_serve(
        &mut self,
        network: NetworkId,
        peers: Peers<'_>,
    ) -> Result<(), AgentError> {
        if self.engine.networks().contains_key(&network) {
            return Ok(());
        }
        let Some(held) = self.held.get(&network) else {
            return Err(AgentError::Invalid(format!("network {network} is not served")));
        };
        let copy = |socket: &OwnedFd| socket.try_clone();
        let sockets: Result<Vec<OwnedFd>, _> = held.sockets.iter().map(copy).collect();
        let sockets =
            sockets.map_err(|source| AgentError::Host { doing: "handing a port to the engine", source })?;
        sockets.iter().for_each(|socket| udp::set_buffers(socket.as_fd()));
        let keepalive = held.keepalive;
        self.engine.ensure(peers)?;
        self.engine.put_network(network, sockets, keepalive)?;
        self.held.remove(&network);
        tracing::info!(%network, "the engine serves containers of this network beside the kernel");
        self.engine.replace_peers(network, peers(network))
    }

    pub(super) fn dismiss(&mut self) {
        self.engine.dismiss();
    }

    /// Makes sure that an engine runs, if there is something for it. Returns whether it is new.
    pub(super) fn ensure(&mut self, peers: Peers<'_>) -> Result<bool, AgentError> {
        if self.engine.networks().is_empty() { Ok(false) } else { self.engine.ensure(peers) }
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.engine.pid()
    }

    pub(super) fn take_up(
        &mut self,
        network: NetworkId,
        wanted: u16,
        keepalive: Option<u16>,
        attachments: &[Attachment],
    ) -> Result<(u16, bool), AgentError> {
        self.kernel.put_network(network, keepalive);
        let own = attachments.iter().filter(|attachment| attachment.port.is_some());
        let adopted = self.kernel.adopt(network, &own.cloned().collect::<Vec<_>>()) > 0;
        if let Some(port) = self.engine.port(network) {
            self.engine.set_keepalive(network, keepalive)?;
            return Ok((port, true));
        }
        if let Some(held) = self.held.get_mut(&network) {
            held.keepalive = keepalive;
            return Ok((held.port, adopted));
        }
        let (port, sockets) = socket::bind_port_beyond(wanted)?;
        self.held.insert(network, Held::new(port, sockets, keepalive));
        Ok((port, adopted))
    }

    pub(super) fn networks(&self) -> Vec<NetworkId> {
        let mut all = self.kernel.networks();
        let beside = self.engine.networks().keys().filter(|network| !all.contains(network));
        let beside: Vec<NetworkId> = beside.copied().collect();
        all.extend(beside);
        all
    }

    pub(super) fn devices(&self, network: NetworkId) -> Vec<ContainerId> {
        let mut all = self.kernel.devices(network);
        all.extend(self.engine.networks().get(&network).into_iter().flat_map(|held| held.devices.keys()));
        all
    }

    pub(super) fn device(&self, network: NetworkId, container: ContainerId) -> Option<Device> {
        let beside = self.engine.device(network, container).cloned();
        beside.or_else(|| self.kernel.device(network, container))
    }

    pub(super) fn remove_network(&mut self, network: NetworkId) {
        self.kernel.remove_network(network);
        self.held.remove(&network);
        if self.engine.networks().contains_key(&network) {
            self.engine.remove_network(network);
        }
    }

    pub(super) fn reserve_port(
        &mut self,
        wanted: Option<NonZeroU16>,
    ) -> Result<Option<NonZeroU16>, AgentError> {
        Ok(NonZeroU16::new(self.kernel.reserve_port(wanted.map(NonZeroU16::get))?))
    }

    pub(super) fn make_link(
        &mut self,
        network: NetworkId,
        netns: &Netns,
        ifname: &str,
        device: &Device,
        port: Option<NonZeroU16>,
    ) -> Result<bool, AgentError> {
        let Some(port) = port else { return Ok(false) };
        self.kernel.make_link(network, netns.try_clone()?, ifname, device.clone(), port.get())?;
        Ok(true)
    }

    pub(super) fn put_device(
        &mut self,
        network: NetworkId,
        device: Device,
        tun: Option<OwnedFd>,
    ) -> Result<(), AgentError> {
        if tun.is_some() || self.engine.device(network, device.id).is_some() {
            super::put_in_engine(&mut self.engine, network, device, tun)
        } else {
            self.kernel.put_device(network, device)
        }
    }

    pub(super) fn remove_device(&mut self, network: NetworkId, container: ContainerId) {
        self.kernel.remove_device(network, container);
        if self.engine.device(network, container).is_some() {
            self.engine.remove_device(network, container);
        }
    }

    pub(super) fn change_peers(
        &mut self,
        network: NetworkId,
        put: &[Peer],
        remove: &[PublicKey],
    ) -> Result<(), AgentError> {
        let changed = self.kernel.change_peers(network, put, remove);
        if self.engine.networks().contains_key(&network) {
            self.engine.change_peers(network, put, remove)?;
        }
        changed
    }

    pub(super) fn replace_peers(&mut self, network: NetworkId, peers: Vec<Peer>) -> Result<(), AgentError> {
        let beside = self.engine.networks().contains_key(&network);
        // The port of a network's access points is the engine's alone.
        if beside && !self.kernel.networks().contains(&network) {
            return self.engine.replace_peers(network, peers);
        }
        let replaced = self.kernel.replace_peers(network, peers.clone());
        if beside {
            self.engine.replace_peers(network, peers)?;
        }
        replaced
    }

    pub(super) fn works(&self) -> bool {
        self.engine.networks().is_empty() || self.engine.pid().is_some()
    }

    pub(super) fn heard(
        &mut self,
        network: NetworkId,
        peers: &[PublicKey],
        within: Duration,
    ) -> Result<Vec<PublicKey>, AgentError> {
        let mut heard = self.kernel.heard(network, peers, within);
        if self.engine.networks().contains_key(&network) {
            heard.extend(self.engine.heard(network, peers, within)?);
        }
        Ok(heard)
    }

    pub(super) fn gone(&mut self) -> Result<Vec<(NetworkId, ContainerId)>, AgentError> {
        let mut gone = self.kernel.gone();
        if !self.engine.networks().is_empty() {
            gone.extend(super::gone_of(&mut self.engine)?);
        }
        Ok(gone)
    }

    pub(super) fn stats(&mut self) -> Result<EngineStats, AgentError> {
        let mut all = self.kernel.stats();
        if !self.engine.networks().is_empty() {
            let beside = self.engine.stats()?;
            all.devices.extend(beside.devices);
            all.networks.extend(beside.networks);
        }
        Ok(all)
    }
}
