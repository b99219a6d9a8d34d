//! What the engine serves: networks with their sockets, devices with their descriptors.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Instant;

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use znet_core::id::{ContainerId, NetworkId};
use znet_core::key::PublicKey;

use crate::control::SessionList;
use crate::net::{Network, Sink};

/// Most networks that one engine serves.
pub(super) const MAX_NETWORKS: usize = 64;
/// Most devices of one network that one engine serves.
pub(super) const MAX_DEVICES: usize = 4_096;

/// Which descriptor became readable.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source {
    Udp4(NetworkId),
    Udp6(NetworkId),
    Tun(NetworkId, ContainerId),
}

/// A device's descriptors.
pub(super) struct Ports {
    pub(super) tun: OwnedFd,
    pub(super) uapi: Arc<UnixListener>,
    /// The TUN device went away with its namespace.
    pub(super) gone: bool,
    token: u64,
}

/// A network and its descriptors.
pub(super) struct Served {
    id: NetworkId,
    pub(super) network: Network,
    pub(super) udp4: Option<UdpSocket>,
    pub(super) udp6: Option<UdpSocket>,
    pub(super) ports: HashMap<ContainerId, Ports>,
}

/// Everything that the engine serves.
pub(super) struct State {
    pub(super) networks: HashMap<NetworkId, Served>,
    pub(super) sources: HashMap<u64, Source>,
    /// What the next engine should begin anew.
    pub(super) sessions: SessionList,
    epoll: Arc<Epoll>,
    next_token: u64,
}

impl State {
    pub(super) fn new(epoll: Arc<Epoll>, sessions: SessionList) -> Self {
        Self { networks: HashMap::new(), sources: HashMap::new(), sessions, epoll, next_token: 1 }
    }

    /// Throws out what is noted of sessions that ended, when that is most of it.
    pub(super) fn tidy_sessions(&mut self) {
        let live = || {
            self.networks.iter().flat_map(|(id, served)| {
                let of = |device: &crate::net::Device| {
                    let (device_id, peers) = (device.id, device.peers().copied().collect::<Vec<_>>());
                    peers.into_iter().map(move |peer| (*id, device_id, peer))
                };
                served.network.devices().flat_map(of).collect::<Vec<_>>()
            })
        };
        let count = self.networks.values().map(|served| served.network.sessions()).sum();
        if self.sessions.is_stale(count) {
            self.sessions.rewrite(live());
        }
    }

    /// Serves a network, or changes what may change of one that is served.
    pub(super) fn put_network(
        &mut self,
        id: NetworkId,
        keepalive: Option<u16>,
        sockets: Vec<OwnedFd>,
    ) -> Result<(), String> {
        if let Some(served) = self.networks.get_mut(&id) {
            served.network.set_keepalive(keepalive);
            return Ok(());
        }
        if self.networks.len() >= MAX_NETWORKS {
            return Err(format!("an engine serves at most {MAX_NETWORKS} networks"));
        }
        let (mut udp4, mut udp6) = (None, None);
        for socket in sockets.into_iter().map(UdpSocket::from) {
            socket.set_nonblocking(true).map_err(|error| format!("UDP socket: {error}"))?;
            match socket.local_addr() {
                Ok(SocketAddr::V4(_)) => udp4 = Some(socket),
                Ok(SocketAddr::V6(_)) => udp6 = Some(socket),
                Err(error) => return Err(format!("not a bound UDP socket: {error}")),
            }
        }
        if udp4.is_none() && udp6.is_none() {
            return Err("a network needs at least one UDP socket".to_owned());
        }
        if let Some(socket) = &udp4 {
            self.watch(socket, Source::Udp4(id))?;
        }
        if let Some(socket) = &udp6 {
            self.watch(socket, Source::Udp6(id))?;
        }
        let network = Network::new(keepalive, rand::random(), Instant::now());
        self.networks.insert(id, Served { id, network, udp4, udp6, ports: HashMap::new() });
        Ok(())
    }

    pub(super) fn remove_network(&mut self, id: NetworkId) {
        let Some(served) = self.networks.remove(&id) else { return };
        self.sources.retain(|_, source| match source {
            Source::Udp4(network) | Source::Udp6(network) | Source::Tun(network, _) => *network != id,
        });
        // A descriptor of which the agent holds a copy stays in the poll set until it is taken out.
        for socket in served.udp4.iter().chain(&served.udp6) {
            let _ = self.epoll.delete(socket);
        }
        for ports in served.ports.values() {
            let _ = self.epoll.delete(&ports.tun);
        }
    }

    /// Serves a device over new descriptors, or changes the settings of one that is served.
    pub(super) fn put_device(
        &mut self,
        network: NetworkId,
        device: crate::net::Device,
        fds: Vec<OwnedFd>,
    ) -> Result<(), String> {
        let id = device.id;
        let served = self.networks.get(&network).ok_or("this network is not served")?;
        if !served.ports.contains_key(&id) || !fds.is_empty() {
            if served.ports.len() >= MAX_DEVICES {
                return Err(format!("an engine serves at most {MAX_DEVICES} devices of a network"));
            }
            let mut fds = fds.into_iter();
            let (Some(tun), Some(uapi)) = (fds.next(), fds.next()) else {
                return Err("a new device needs its TUN device and its listening socket".to_owned());
            };
            self.remove_ports(network, id);
            let token = self.watch(&tun, Source::Tun(network, id))?;
            let ports = Ports { tun, uapi: Arc::new(UnixListener::from(uapi)), gone: false, token };
            if let Some(served) = self.networks.get_mut(&network) {
                served.ports.insert(id, ports);
            }
        }
        if let Some(served) = self.networks.get_mut(&network) {
            served.network.put_device(device);
        }
        Ok(())
    }

    pub(super) fn remove_device(&mut self, network: NetworkId, id: ContainerId) {
        self.remove_ports(network, id);
        if let Some(served) = self.networks.get_mut(&network) {
            served.network.remove_device(id);
        }
    }

    /// Notes that a device's TUN device went away, and looks at it no more.
    pub(super) fn device_gone(&mut self, network: NetworkId, id: ContainerId) {
        let ports = self.networks.get_mut(&network).and_then(|served| served.ports.get_mut(&id));
        if let Some(ports) = ports {
            ports.gone = true;
            self.sources.remove(&ports.token);
            let _ = self.epoll.delete(&ports.tun);
        }
    }

    fn remove_ports(&mut self, network: NetworkId, id: ContainerId) {
        let ports = self.networks.get_mut(&network).and_then(|served| served.ports.remove(&id));
        if let Some(ports) = ports {
            self.sources.remove(&ports.token);
            let _ = self.epoll.delete(&ports.tun);
        }
    }

    fn watch(&mut self, fd: &impl std::os::fd::AsFd, source: Source) -> Result<u64, String> {
        let token = self.next_token;
        self.next_token += 1;
        let event = EpollEvent::new(EpollFlags::EPOLLIN, token);
        self.epoll.add(fd, event).map_err(|error| format!("the descriptor cannot be watched: {error}"))?;
        self.sources.insert(token, source);
        Ok(token)
    }
}

/// Sockets and TUN devices as the packet logic sees them. What the kernel does not take at once is dropped: a tunnel is
/// a network and not a queue.
pub(super) struct IoSink<'a> {
    id: NetworkId,
    udp4: Option<&'a UdpSocket>,
    udp6: Option<&'a UdpSocket>,
    ports: &'a HashMap<ContainerId, Ports>,
    sessions: &'a mut SessionList,
}

impl Sink for IoSink<'_> {
    fn send(&mut self, to: SocketAddr, datagram: &[u8]) -> bool {
        let socket = if to.is_ipv4() { self.udp4 } else { self.udp6 };
        socket.is_some_and(|socket| socket.send_to(datagram, to).is_ok())
    }

    fn deliver(&mut self, device: ContainerId, packet: &[u8]) -> bool {
        let ports = self.ports.get(&device);
        ports.is_some_and(|ports| nix::unistd::write(ports.tun.as_fd(), packet).is_ok())
    }

    fn began(&mut self, device: ContainerId, peer: &PublicKey) {
        self.sessions.push(&(self.id, device, *peer));
    }
}

impl Served {
    /// The packet logic and where its packets go, to be used together.
    pub(super) fn split<'a>(&'a mut self, sessions: &'a mut SessionList) -> (&'a mut Network, IoSink<'a>) {
        let (udp4, udp6) = (self.udp4.as_ref(), self.udp6.as_ref());
        (&mut self.network, IoSink { id: self.id, udp4, udp6, ports: &self.ports, sessions })
    }

    /// The port that peers send to.
    pub(super) fn port(&self) -> u16 {
        let socket = self.udp4.as_ref().or(self.udp6.as_ref());
        socket.and_then(|socket| socket.local_addr().ok()).map_or(0, |address| address.port())
    }

    /// The descriptors of the network's sockets.
    pub(super) fn sockets(&self) -> Vec<std::os::fd::BorrowedFd<'_>> {
        self.udp4.iter().chain(&self.udp6).map(|socket| socket.as_fd()).collect()
    }
}

/// The raw number of a TUN descriptor, for messages.
pub(super) fn describe(ports: &Ports) -> i32 {
    ports.tun.as_raw_fd()
}
