//! What moves the packets of this node's containers: the engine, or the kernel's WireGuard, with an engine beside it for what
//! only that can do ([`both`]).
//!
//! Both do the same for the agent, which is what the conformance tests in `tests/backend` hold them to. A plan's steps on
//! links, addresses and routes are carried out by [`crate::reconcile`] and are the same for both; here is what differs.

mod both;
pub mod kernel;

use std::fmt;
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use znet_core::id::{ContainerId, NetworkId};
use znet_core::key::PublicKey;
use znet_wg::control::{Device, EngineStats, Peer};

use crate::engine::{Engine, Peers};
use crate::error::AgentError;
use crate::files::Attachment;
use crate::host::netns::Netns;
use crate::host::{socket, wireguard};
use both::Both;
use kernel::Kernel;

/// What is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Choice {
    /// The kernel where it has WireGuard; else the engine
    #[default]
    Auto,
    /// The kernel's WireGuard; the engine for access points and Docker's containers, and for those that it serves already
    Kernel,
    /// The engine, in user space
    Engine,
}

/// Which one it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The kernel's WireGuard.
    Kernel,
    /// The engine.
    Engine,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Engine => "engine",
        })
    }
}

/// The hold on what moves the packets. Its methods block.
#[derive(Debug)]
pub struct Backend {
    /// Why it is this one.
    pub why: String,
    mover: Mover,
}

#[derive(Debug)]
enum Mover {
    Engine(Box<Engine>),
    Kernel(Box<Both>),
}

impl Backend {
    /// Chooses, and adopts the engine that runs or remembers that one has to be started. Ports of the kernel's devices are
    /// chosen from `first_port` on.
    ///
    /// # Errors
    /// [`AgentError`]: the kernel is asked for and has no WireGuard.
    pub fn choose(choice: Choice, run_dir: &Path, first_port: u16) -> Result<Self, AgentError> {
        let engine = Engine::adopt(run_dir);
        let try_kernel = || {
            // Asking for the family loads the module where there is one; who has none is spared the attempt.
            kernel::wg::Wg::open(0)?;
            Ok::<(), AgentError>(wireguard::check(&format!("znc{}", std::process::id()))?)
        };
        let (kind, why) = match choice {
            Choice::Engine => (Kind::Engine, "it was asked for".to_owned()),
            Choice::Kernel => {
                try_kernel()?;
                (Kind::Kernel, "it was asked for".to_owned())
            }
            Choice::Auto => match try_kernel() {
                Ok(()) => (Kind::Kernel, "this kernel has WireGuard".to_owned()),
                Err(error) => (Kind::Engine, error.to_string()),
            },
        };
        tracing::info!(backend = %kind, %why, "chose what moves the packets");
        let mover = match kind {
            Kind::Engine => {
                znet_wg::io::tun::check()?;
                Mover::Engine(Box::new(engine))
            }
            Kind::Kernel => Mover::Kernel(Box::new(Both::new(Kernel::new(first_port)?, engine))),
        };
        Ok(Self { why, mover })
    }

    /// The engine as it is, or the kernel: for tests that know which one they want.
    pub fn engine(engine: Engine) -> Self {
        Self { why: "it was asked for".to_owned(), mover: Mover::Engine(Box::new(engine)) }
    }

    /// Which one it is.
    pub fn kind(&self) -> Kind {
        match &self.mover {
            Mover::Engine(_) => Kind::Engine,
            Mover::Kernel(_) => Kind::Kernel,
        }
    }

    /// The engine, for what it alone can do; a network that it is to serve needs [`Backend::have_engine_serve`] first.
    pub fn engine_itself(&mut self) -> &mut Engine {
        match &mut self.mover {
            Mover::Engine(engine) => engine,
            Mover::Kernel(kernel) => kernel.engine(),
        }
    }

    /// Has the engine serve a network that was taken up, where it does not anyway.
    ///
    /// # Errors
    /// [`AgentError`]: no engine can be started.
    pub fn have_engine_serve(&mut self, network: NetworkId, peers: Peers<'_>) -> Result<(), AgentError> {
        match &mut self.mover {
            Mover::Engine(_) => Ok(()),
            Mover::Kernel(kernel) => kernel.have_engine_serve(network, peers),
        }
    }

    /// Whether its devices and peers may have two keys, without which no container's key can be changed. The controller is
    /// told when the node joins.
    pub fn holds_two_keys(&self) -> bool {
        match &self.mover {
            Mover::Engine(engine) => engine.holds_two_keys(),
            // A device has one private key, and an address belongs to one peer: whoever had it under another key a moment
            // ago would not be believed.
            Mover::Kernel(_) => false,
        }
    }

    /// Stops the engine that runs, so that a new one gets everything that it had.
    pub fn dismiss(&mut self) {
        match &mut self.mover {
            Mover::Engine(engine) => engine.dismiss(),
            Mover::Kernel(kernel) => kernel.dismiss(),
        }
    }

    /// Makes sure that an engine runs, where one is needed. Returns whether it is new.
    ///
    /// # Errors
    /// [`AgentError`] when none can be started.
    pub fn ensure(&mut self, peers: Peers<'_>) -> Result<bool, AgentError> {
        match &mut self.mover {
            Mover::Engine(engine) => engine.ensure(peers),
            Mover::Kernel(kernel) => kernel.ensure(peers),
        }
    }

    /// The engine's process; `None` while there is none.
    pub fn pid(&self) -> Option<u32> {
        match &self.mover {
            Mover::Engine(engine) => engine.pid(),
            Mover::Kernel(kernel) => kernel.pid(),
        }
    }

    /// Serves a network, at the wanted port or one after it where containers share one, with the devices of these
    /// attachments that are there. Returns the port, and whether links were there already.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn take_up(
        &mut self,
        network: NetworkId,
        wanted: u16,
        keepalive: Option<u16>,
        attachments: &[Attachment],
    ) -> Result<(u16, bool), AgentError> {
        match &mut self.mover {
            Mover::Kernel(kernel) => kernel.take_up(network, wanted, keepalive, attachments),
            Mover::Engine(engine) => {
                let kernels = attachments.iter().filter(|attachment| attachment.port.is_some());
                kernels.for_each(|attachment| kernel::remove_left(network, attachment));
                if let Some(port) = engine.port(network) {
                    engine.set_keepalive(network, keepalive)?;
                    return Ok((port, true));
                }
                let (port, sockets) = socket::bind_port(wanted)?;
                engine.put_network(network, sockets, keepalive)?;
                Ok((port, false))
            }
        }
    }

    /// The networks that it serves.
    pub fn networks(&self) -> Vec<NetworkId> {
        match &self.mover {
            Mover::Engine(engine) => engine.networks().keys().copied().collect(),
            Mover::Kernel(kernel) => kernel.networks(),
        }
    }

    /// The devices of a network.
    pub fn devices(&self, network: NetworkId) -> Vec<ContainerId> {
        match &self.mover {
            Mover::Engine(engine) => {
                let held = engine.networks().get(&network);
                held.map(|held| held.devices.keys().copied().collect()).unwrap_or_default()
            }
            Mover::Kernel(kernel) => kernel.devices(network),
        }
    }

    /// A device of a network.
    pub fn device(&self, network: NetworkId, container: ContainerId) -> Option<Device> {
        match &self.mover {
            Mover::Engine(engine) => engine.device(network, container).cloned(),
            Mover::Kernel(kernel) => kernel.device(network, container),
        }
    }

    /// Serves a network no longer.
    pub fn remove_network(&mut self, network: NetworkId) {
        match &mut self.mover {
            Mover::Engine(engine) => engine.remove_network(network),
            Mover::Kernel(kernel) => kernel.remove_network(network),
        }
    }

    /// The port that a container's device will have, if it has one of its own: the wanted one if it is free.
    ///
    /// # Errors
    /// [`AgentError::Socket`]: none is free.
    pub fn reserve_port(&mut self, wanted: Option<NonZeroU16>) -> Result<Option<NonZeroU16>, AgentError> {
        match &mut self.mover {
            Mover::Engine(_) => Ok(None),
            Mover::Kernel(kernel) => kernel.reserve_port(wanted),
        }
    }

    /// Makes a container's link from outside its namespace, where that is how it is made; `false` where it is made inside.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn make_link(
        &mut self,
        network: NetworkId,
        netns: &Netns,
        ifname: &str,
        device: &Device,
        port: Option<NonZeroU16>,
    ) -> Result<bool, AgentError> {
        match &mut self.mover {
            Mover::Engine(_) => Ok(false),
            Mover::Kernel(kernel) => kernel.make_link(network, netns, ifname, device, port),
        }
    }

    /// Serves a device. The engine gets the descriptors of one that was made now: its TUN device and its `wg(8)` socket.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn put_device(
        &mut self,
        network: NetworkId,
        device: Device,
        tun: Option<OwnedFd>,
    ) -> Result<(), AgentError> {
        match &mut self.mover {
            Mover::Engine(engine) => put_in_engine(engine, network, device, tun),
            Mover::Kernel(kernel) => kernel.put_device(network, device, tun),
        }
    }

    /// Serves a device no longer; its link ends.
    pub fn remove_device(&mut self, network: NetworkId, container: ContainerId) {
        match &mut self.mover {
            Mover::Engine(engine) => engine.remove_device(network, container),
            Mover::Kernel(kernel) => kernel.remove_device(network, container),
        }
    }

    /// Changes the peers of a network.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn change_peers(
        &mut self,
        network: NetworkId,
        put: &[Peer],
        remove: &[PublicKey],
    ) -> Result<(), AgentError> {
        match &mut self.mover {
            Mover::Engine(engine) => engine.change_peers(network, put, remove),
            Mover::Kernel(kernel) => kernel.change_peers(network, put, remove),
        }
    }

    /// Makes the peers of a network these and no others.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn replace_peers(&mut self, network: NetworkId, peers: Vec<Peer>) -> Result<(), AgentError> {
        match &mut self.mover {
            Mover::Engine(engine) => engine.replace_peers(network, peers),
            Mover::Kernel(kernel) => kernel.replace_peers(network, peers),
        }
    }

    /// Whether packets are moved now.
    pub fn works(&self) -> bool {
        match &self.mover {
            Mover::Engine(engine) => engine.pid().is_some(),
            Mover::Kernel(kernel) => kernel.works(),
        }
    }

    /// From which of these peers something has come within this time.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn heard(
        &mut self,
        network: NetworkId,
        peers: &[PublicKey],
        within: Duration,
    ) -> Result<Vec<PublicKey>, AgentError> {
        match &mut self.mover {
            Mover::Engine(engine) => engine.heard(network, peers, within),
            Mover::Kernel(kernel) => kernel.heard(network, peers, within),
        }
    }

    /// The devices whose links are gone.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn gone(&mut self) -> Result<Vec<(NetworkId, ContainerId)>, AgentError> {
        match &mut self.mover {
            Mover::Engine(engine) => gone_of(engine),
            Mover::Kernel(kernel) => kernel.gone(),
        }
    }

    /// All figures.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn stats(&mut self) -> Result<EngineStats, AgentError> {
        match &mut self.mover {
            Mover::Engine(engine) => engine.stats(),
            Mover::Kernel(kernel) => kernel.stats(),
        }
    }
}

/// Has an engine serve a device: over its descriptors, if it was made now.
fn put_in_engine(
    engine: &mut Engine,
    network: NetworkId,
    device: Device,
    tun: Option<OwnedFd>,
) -> Result<(), AgentError> {
    match tun {
        None => engine.change_device(network, device),
        Some(tun) => {
            let fds = vec![tun, socket::wg_listener(&device.name)?.into()];
            engine.put_device(network, device, fds)
        }
    }
}

/// The devices of an engine whose links are gone.
fn gone_of(engine: &mut Engine) -> Result<Vec<(NetworkId, ContainerId)>, AgentError> {
    let gone = engine.stats()?.devices.into_iter().filter(|(_, _, gone, _)| *gone);
    Ok(gone.map(|(network, container, ..)| (network, container)).collect())
}
