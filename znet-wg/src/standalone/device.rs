//! The device of a stand-alone process: what `wg(8)` may change and see of it.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;
use nix::errno::Errno;
use nix::sys::eventfd::EventFd;
use zeroize::Zeroizing;
use znet_core::id::ContainerId;
use znet_core::key::PrivateKey;

use crate::io::tun::{self, Tun};
use crate::io::udp::{self, Options, Udp};
use crate::net::{Device, Lane, Network, OwnAddresses, PeerUpdate};
use crate::plane::{Plane, Sockets, Token, TunSource};
use crate::uapi::{Description, DeviceView, PeerView, SetDevice, SetPeer};

/// There is one device, so its number does not matter.
const DEVICE: ContainerId = ContainerId::new(1);
/// What a TUN device has until somebody changes it.
const DEFAULT_MTU: u32 = 1_500;

/// The device of a stand-alone process.
pub struct Standalone {
    plane: Plane,
    network: Arc<Network>,
    sockets: Arc<Sockets>,
    watched: Vec<Token>,
    tun: Arc<Tun>,
    private_key: Option<PrivateKey>,
    fwmark: Option<u32>,
    mtu: u32,
    lane: Lane,
}

impl Standalone {
    /// Begins to move packets between the queues of a TUN device and peers, of which there are none yet, on a port that
    /// the system chooses. `gone` is written to when the device goes away.
    ///
    /// # Errors
    /// The operating system's.
    pub fn start(queues: Vec<Tun>, threads: usize, gone: &Arc<EventFd>) -> std::io::Result<Self> {
        let plane = Plane::start(threads)?;
        let sockets = Arc::new(Sockets::new(Vec::new(), plane.clock().clone(), None));
        let network = Arc::new(Network::new(sockets.clone(), None, rand::random(), Instant::now()));
        plane.clock().add(network.clone());
        let queues: Vec<Arc<Tun>> = queues.into_iter().map(Arc::new).collect();
        for tun in &queues {
            let source = TunSource::new(tun.clone(), network.clone(), DEVICE, Some(gone.clone()));
            plane.watch_tun(Arc::new(source))?;
        }
        let tun = queues.into_iter().next().ok_or(std::io::ErrorKind::InvalidInput)?;
        let watched = Vec::new();
        let (private_key, fwmark, lane) = (None, None, Lane::default());
        let mut started =
            Self { plane, network, sockets, watched, tun, private_key, fwmark, mtu: DEFAULT_MTU, lane };
        started.bind(0)?;
        started.follow_mtu();
        Ok(started)
    }

    /// Changes what a request names, in its order. What came before a failure stays changed.
    ///
    /// # Errors
    /// What `wg(8)` is to be told: the port is taken, a mark is not permitted.
    pub fn set(&mut self, request: SetDevice) -> Result<(), Errno> {
        if let Some(key) = request.private_key {
            self.set_private_key(key);
        }
        if let Some(mark) = request.fwmark {
            for udp in self.sockets.bound() {
                udp.set_mark(mark.unwrap_or_default()).map_err(|error| errno(&error))?;
            }
            self.fwmark = mark;
        }
        if let Some(port) = request.listen_port
            && (port == 0 || port != self.sockets.port())
        {
            self.bind(port).map_err(|error| errno(&error))?;
        }
        if request.replace_peers {
            self.network.remove_peers();
        }
        for peer in request.peers {
            self.set_peer(peer);
        }
        self.network.keep_up(DEVICE, &mut self.lane, Instant::now());
        Ok(())
    }

    /// All that `wg(8)` may see.
    pub fn describe(&self) -> Zeroizing<String> {
        let mut text = Description::new(&DeviceView {
            private_key: self.private_key.as_ref(),
            listen_port: self.sockets.port(),
            fwmark: self.fwmark,
        });
        self.network.for_each_peer(DEVICE, |entry, state| {
            let state = state.unwrap_or_default();
            let view = PeerView {
                public_key: entry.key(),
                preshared_key: entry.preshared(),
                endpoint: state.endpoint.or_else(|| entry.endpoint(0)),
                last_handshake: state.last_handshake,
                tx_bytes: state.tx_bytes,
                rx_bytes: state.rx_bytes,
                persistent_keepalive: entry.keepalive().unwrap_or_default(),
            };
            text.peer(&view, entry.allowed());
        });
        text.finish()
    }

    /// Looks whether somebody changed the MTU of the interface. To be called now and then.
    pub fn follow_mtu(&mut self) {
        let Some(udp) = self.sockets.bound().into_iter().next() else { return };
        // An interface that was moved to another namespace keeps what it had.
        let Ok(mtu) = self.tun.name().and_then(|name| tun::mtu(&*udp, &name)) else { return };
        if mtu != self.mtu {
            self.mtu = mtu;
            if let Some(device) = self.network.device(DEVICE) {
                device.set_mtu(mtu);
            }
        }
    }

    fn set_private_key(&mut self, key: Option<PrivateKey>) {
        let public = |key: &Option<PrivateKey>| key.as_ref().map(PrivateKey::public_key);
        if public(&key) == public(&self.private_key) {
            return;
        }
        match &key {
            Some(key) => {
                let (own, port) = (OwnAddresses::Any, self.tun.clone());
                let name = self.tun.name().unwrap_or_default();
                self.network.put_device(Device::new(DEVICE, name, key.clone(), own, self.mtu, port));
            }
            None => self.network.remove_device(DEVICE),
        }
        self.private_key = key;
    }

    /// Listens on this port instead. Until the new sockets are there the old ones serve.
    fn bind(&mut self, port: u16) -> std::io::Result<()> {
        let mut bound: Vec<Arc<Udp>> = Vec::new();
        // With several workers for sockets, each has its own; the kernel gives every peer to one of them.
        let shares = (self.plane.workers() / 2).max(1);
        let options = Options { fwmark: self.fwmark.unwrap_or_default(), share: shares > 1 };
        let mut chosen = port;
        if options.share {
            // Somebody else who shares the port in the same way would be let in: it must be free to begin with.
            (chosen, _) = udp::bind(port, Options { share: false, ..options })?;
        }
        let mut ports = Vec::new();
        for _ in 0..shares {
            let (port, sockets) = udp::bind(chosen, options)?;
            chosen = port;
            let sockets: Vec<Arc<Udp>> =
                sockets.into_iter().map(|fd| Udp::adopt(fd).map(Arc::new)).collect::<Result<_, _>>()?;
            bound.extend(sockets.iter().cloned());
            ports.push(sockets);
        }
        let old = self.sockets.exchange(bound);
        for (token, udp) in std::mem::take(&mut self.watched).iter().zip(&old) {
            self.plane.unwatch(token, &udp.as_fd());
        }
        for sockets in ports {
            self.watched.extend(self.plane.watch_port(&sockets, &self.network)?);
        }
        Ok(())
    }

    fn set_peer(&mut self, peer: SetPeer) {
        let key = &peer.public_key;
        if peer.remove {
            self.network.remove_peer(key);
            return;
        }
        if peer.update_only && !self.network.has_peer(key) {
            return;
        }
        let mut update = PeerUpdate {
            replace_allowed: peer.replace_allowed_ips,
            endpoints: peer.endpoint.map(|endpoint| vec![endpoint]),
            preshared: peer.preshared_key,
            keepalive: peer.persistent_keepalive,
            ..PeerUpdate::default()
        };
        // In runs of what is given and what is taken, so that the order of the request holds; the first of them together with
        // the rest, so that no packet finds a peer that has lost its addresses and not yet got the new ones.
        for run in peer.allowed_ips.chunk_by(|a, b| a.remove == b.remove) {
            let nets: Vec<IpNet> = run.iter().map(|allowed| allowed.net).collect();
            match run.first().is_some_and(|first| first.remove) {
                true => update.disallow = nets,
                false => update.allow = nets,
            }
            self.network.update_peer(key, std::mem::take(&mut update), &mut self.lane, Instant::now());
        }
        self.network.update_peer(key, update, &mut self.lane, Instant::now());
    }
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}
