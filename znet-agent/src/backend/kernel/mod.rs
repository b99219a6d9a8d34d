//! The kernel's WireGuard as what moves the packets: one device a container, with a UDP socket and a port of its own.
//!
//! A device is told its network's peers, all of them while they are few. Beyond [`EAGER_PEERS`] it is told a peer when
//! somebody wants it: a container by sending it a packet, which then comes out of a second device and is handed on when the
//! peer is told ([`waker`]), or the peer itself by knocking ([`attendant`]). What a device should be like is compared with
//! what it is every few seconds, and only what differs is set ([`look`]). Nothing is kept outside the kernel: an agent that
//! starts finds its devices by their marks and goes on.
//!
//! | module | holds |
//! | --- | --- |
//! | [`wg`] | a device over generic netlink |
//! | `directory` | a network's peers |
//! | `look` | what of a device is not as it should be |
//! | `state` | the devices, and what is done to them |
//! | `waker` | the device out of which packets to peers come that are not told yet |
//! | `attendant` | the thread that hears who wants whom |

mod attendant;
mod directory;
mod look;
mod state;
mod waker;
pub mod wg;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use znet_core::id::{ContainerId, NetworkId};
use znet_core::key::PublicKey;
use znet_wg::control::{Device, EngineStats, Peer};

use crate::error::AgentError;
use crate::files::Attachment;
use crate::host::netns::Netns;
use crate::host::{socket, wireguard};

pub use look::EAGER_PEERS;
use state::{Local, Served, State};

/// A port that was found free is kept so until its device is made, but not longer than this.
const RESERVED: Duration = Duration::from_secs(60);
/// Ports from the first one on among which devices choose.
const PORT_RANGE: u16 = 8_192;

/// The hold on the kernel's devices. Its methods block.
#[derive(Debug)]
pub struct Kernel {
    state: Arc<Mutex<State>>,
    wake: Arc<EventFd>,
    first_port: u16,
    next_port: u16,
    reserved: BTreeMap<u16, (Instant, Vec<OwnedFd>)>,
}

impl Kernel {
    /// Begins to attend to devices, of which there are none yet. Ports are chosen from `first_port` on.
    ///
    /// # Errors
    /// [`AgentError::Host`]: the operating system refuses what is needed to hear who knocks.
    pub fn new(first_port: u16) -> Result<Self, AgentError> {
        let refused = |source| AgentError::Host { doing: "listening for who knocks at devices", source };
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC);
        let wake = Arc::new(wake.map_err(|error| refused(error.into()))?);
        let state = Arc::new(Mutex::new(State::default()));
        attendant::start(&state, &wake).map_err(refused)?;
        Ok(Self { state, wake, first_port, next_port: first_port, reserved: BTreeMap::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over the devices of these attachments that are there. Returns how many they are.
    pub fn adopt(&mut self, network: NetworkId, attachments: &[Attachment]) -> usize {
        let found = attachments.iter().filter_map(|attachment| match adopted(network, attachment) {
            Ok(local) => local,
            Err(error) => {
                tracing::warn!(name = %attachment.name, %error, "the container's device is not taken over");
                None
            }
        });
        let found: Vec<Local> = found.collect();
        let count = found.len();
        found.into_iter().for_each(|local| self.state().insert(network, local));
        self.attend();
        count
    }

    /// Serves a network; of one that is served already only the keepalive is changed.
    pub fn put_network(&mut self, network: NetworkId, keepalive: Option<u16>) {
        self.state().networks.entry(network).or_default().keepalive = keepalive;
        self.attend();
    }

    /// The networks that are served.
    pub fn networks(&self) -> Vec<NetworkId> {
        self.state().networks.keys().copied().collect()
    }

    /// The devices of a network.
    pub fn devices(&self, network: NetworkId) -> Vec<ContainerId> {
        let state = self.state();
        state
            .networks
            .get(&network)
            .map(|served| served.devices.keys().copied().collect())
            .unwrap_or_default()
    }

    /// A device of a network.
    pub fn device(&self, network: NetworkId, container: ContainerId) -> Option<Device> {
        self.state().local(network, container).map(|local| local.device.clone())
    }

    /// Removes a network with all its devices.
    pub fn remove_network(&mut self, network: NetworkId) {
        let removed = self.state().networks.remove(&network);
        removed
            .into_iter()
            .flat_map(|served| served.devices.into_values())
            .for_each(|local| remove(network, local));
        self.attend();
    }

    /// Finds a port for a container's device, the wanted one if it is free, and keeps it until the device is made.
    ///
    /// # Errors
    /// [`AgentError::Socket`]: none is free.
    pub fn reserve_port(&mut self, wanted: Option<u16>) -> Result<u16, AgentError> {
        self.reserved.retain(|_, (since, _)| since.elapsed() < RESERVED);
        if let Some(kept) = wanted.filter(|port| self.reserved.contains_key(port)) {
            return Ok(kept);
        }
        if self.next_port < self.first_port || self.next_port - self.first_port >= PORT_RANGE {
            self.next_port = self.first_port;
        }
        let own =
            wanted.and_then(|port| socket::bind_port(port).ok()).filter(|(port, _)| Some(*port) == wanted);
        let (port, sockets) = match own {
            Some(own) => own,
            None => socket::bind_port(self.next_port).or_else(|_| socket::bind_port(self.first_port))?,
        };
        self.next_port = port.checked_add(1).unwrap_or(self.first_port);
        self.reserved.insert(port, (Instant::now(), sockets));
        Ok(port)
    }

    /// Makes a container's device and moves it into its namespace. It is served by [`Kernel::put_device`], once its
    /// addresses are set.
    ///
    /// # Errors
    /// [`AgentError`]; a link of that name that is not ours is left alone.
    pub fn make_link(
        &mut self,
        network: NetworkId,
        netns: Netns,
        ifname: &str,
        device: Device,
        port: u16,
    ) -> Result<(), AgentError> {
        let mark = mark(network, device.id);
        wireguard::remove(&netns, &mark)?;
        let index = wireguard::make(&netns, &device.name, ifname, &mark)?;
        let made = open(&netns, index).and_then(|wg| {
            self.reserved.remove(&port);
            wg.set(Some(&device.private_key.0), Some(port))?;
            Ok(wg)
        });
        match made {
            Ok(wg) => {
                self.state().insert(network, Local::new(device, port, wg, netns));
                Ok(())
            }
            Err(error) => {
                let _ = wireguard::remove(&netns, &mark);
                Err(error)
            }
        }
    }

    /// Serves a device that was made, or changes its settings.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn put_device(&mut self, network: NetworkId, device: Device) -> Result<(), AgentError> {
        self.state().serve(network, device)?;
        self.attend();
        Ok(())
    }

    /// Removes a container's device.
    pub fn remove_device(&mut self, network: NetworkId, container: ContainerId) {
        let removed = self.state().take(network, container);
        if let Some(local) = removed {
            remove(network, local);
            self.attend();
        }
    }

    /// Changes the peers of a network.
    ///
    /// # Errors
    /// [`AgentError::Wg`] of the last device that did not take the change; the next look at it mends it.
    pub fn change_peers(
        &mut self,
        network: NetworkId,
        put: &[Peer],
        remove: &[PublicKey],
    ) -> Result<(), AgentError> {
        let changed = self.state().change_peers(network, put, remove);
        self.attend();
        changed
    }

    /// Makes the peers of a network these and no others.
    ///
    /// # Errors
    /// As for [`Kernel::change_peers`].
    pub fn replace_peers(&mut self, network: NetworkId, peers: Vec<Peer>) -> Result<(), AgentError> {
        let mut state = self.state();
        let served = state.networks.entry(network).or_default();
        served.known = true;
        let wanted: BTreeSet<PublicKey> = peers.iter().map(|peer| peer.public_key).collect();
        let had = served.directory.peers().map(|peer| peer.public_key);
        let gone: Vec<PublicKey> = had.filter(|key| !wanted.contains(key)).collect();
        let changed = state.change_peers(network, &peers, &gone);
        drop(state);
        self.attend();
        changed
    }

    /// What a device is like, as the kernel tells it.
    ///
    /// # Errors
    /// [`AgentError::Wg`].
    pub fn read_back(
        &self,
        network: NetworkId,
        container: ContainerId,
    ) -> Result<Option<wg::Seen>, AgentError> {
        Ok(self.state().local(network, container).map(|local| local.wg.read()).transpose()?)
    }

    /// The UDP port of a device.
    pub fn port(&self, network: NetworkId, container: ContainerId) -> Option<u16> {
        self.state().local(network, container).map(|local| local.port)
    }

    /// From which of these peers something has come within this time, as far as the looks at the devices tell.
    pub fn heard(&self, network: NetworkId, peers: &[PublicKey], within: Duration) -> Vec<PublicKey> {
        let state = self.state();
        peers.iter().filter(|peer| state.heard(network, peer, within)).copied().collect()
    }

    /// The devices whose links are gone.
    pub fn gone(&self) -> Vec<(NetworkId, ContainerId)> {
        self.state().gone()
    }

    /// All figures.
    pub fn stats(&self) -> EngineStats {
        self.state().stats()
    }

    /// Has the attendant look again at what there is.
    fn attend(&self) {
        let _ = self.wake.write(1);
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        // The attendant finds that nobody holds the state any more, and ends.
        self.state = Arc::default();
        self.attend();
    }
}

/// What marks a container's link as znet's: an interface's alias, which wg(8) and ip(8) show.
pub fn mark(network: NetworkId, container: ContainerId) -> String {
    format!("znet {network} {container}")
}

/// Removes the link that a kernel backend left of an attachment, where the engine is to serve it now.
pub fn remove_left(network: NetworkId, attachment: &Attachment) {
    let Ok(netns) = Netns::open(&attachment.netns) else { return };
    if netns.id() == attachment.netns_id
        && let Err(error) = wireguard::remove(&netns, &mark(network, attachment.container))
    {
        tracing::warn!(name = %attachment.name, %error, "the kernel's device of this container is left");
    }
}

fn remove(network: NetworkId, local: Local) {
    let mark = mark(network, local.device.id);
    if let Err(error) = wireguard::remove(&local.netns, &mark) {
        tracing::warn!(%mark, %error, "a device is left");
    }
}

fn open(netns: &Netns, index: u32) -> Result<wg::Wg, AgentError> {
    Ok(netns.run(|_| async move { Ok(wg::Wg::open(index)) })??)
}

/// The device that an earlier agent made for an attachment, if it is still there.
fn adopted(network: NetworkId, attachment: &Attachment) -> Result<Option<Local>, AgentError> {
    let netns = Netns::open(&attachment.netns)?;
    let found = wireguard::find(&netns, &mark(network, attachment.container))?;
    // One that a container renamed is made anew, by the plan.
    let Some(found) = found.filter(|found| {
        netns.id() == attachment.netns_id && found.name == attachment.ifname && attachment.port.is_some()
    }) else {
        return Ok(None);
    };
    let wg = open(&netns, found.index)?;
    let seen = wg.read()?;
    let Some(private_key) = &seen.private_key else { return Ok(None) };
    let device = crate::attach::device(attachment, &private_key.clone().into(), 0);
    let port = attachment.port.map_or(0, std::num::NonZeroU16::get);
    let told: Vec<PublicKey> = seen.peers.into_keys().collect();
    Ok(Some(Local::adopted(device, port, wg, netns, &told)))
}

impl Served {
    /// Whether devices are told all peers at once.
    fn eager(&self) -> bool {
        self.directory.len() <= EAGER_PEERS
    }
}
