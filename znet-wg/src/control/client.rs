//! The agent's side of the control connection. Blocking, with timeouts: an agent calls it from a thread of its own.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use znet_core::id::{ContainerId, NetworkId};
use znet_core::key::PublicKey;

use super::frame::{FrameError, recv_frame, send_frame};
use super::sessions::{SessionKey, read_sessions};
use super::{
    Batch, Device, DeviceStats, MAX_PEERS_PER_MESSAGE, NetworkStats, PROTOCOL, Peer, Reply, Request,
};

/// How long an engine may take for one answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Why an engine did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The connection failed; the engine may be gone.
    #[error("the engine does not answer: {0}")]
    Connection(#[from] FrameError),
    /// The engine refused.
    #[error("the engine refused: {0}")]
    Refused(String),
    /// It speaks another version of the protocol.
    #[error(
        "the engine speaks protocol {got}, this agent {PROTOCOL}; stop the old engine with `znet-agent run --replace-engine`"
    )]
    Protocol {
        /// What it speaks.
        got: u32,
    },
    /// It answered something else than what was asked.
    #[error("the engine gave an answer that does not belong to the request")]
    Confused,
}

/// What an engine told of a network.
#[derive(Debug)]
pub struct DumpedNetwork {
    /// The network.
    pub network: NetworkId,
    /// Its UDP sockets.
    pub sockets: Vec<OwnedFd>,
}

/// What an engine told of a device.
#[derive(Debug)]
pub struct DumpedDevice {
    /// The network.
    pub network: NetworkId,
    /// The device, with its private key.
    pub device: Device,
    /// Whether its TUN device has gone away with its namespace.
    pub gone: bool,
    /// Its TUN device and its `wg(8)` socket.
    pub fds: Vec<OwnedFd>,
}

/// Everything that an engine serves.
#[derive(Debug, Default)]
pub struct EngineDump {
    /// The networks.
    pub networks: Vec<DumpedNetwork>,
    /// The devices.
    pub devices: Vec<DumpedDevice>,
}

/// The figures of an engine.
#[derive(Debug, Default)]
pub struct EngineStats {
    /// Of each device, and whether its TUN device has gone.
    pub devices: Vec<(NetworkId, ContainerId, bool, DeviceStats)>,
    /// Of what came in on each network's port and is no device's.
    pub networks: Vec<(NetworkId, NetworkStats)>,
}

/// A connection to an engine.
#[derive(Debug)]
pub struct EngineClient {
    stream: UnixStream,
    sessions: Option<OwnedFd>,
    /// The engine's process.
    pub pid: u32,
    /// The engine's version of znet.
    pub version: String,
    /// Whether it knows that devices and peers may have two keys.
    pub two_keys: bool,
    hears: bool,
}

impl EngineClient {
    /// Connects to the engine that listens at `path` and asks who it is.
    ///
    /// # Errors
    /// [`EngineError`]: nobody listens there, or it speaks another protocol.
    pub fn connect(path: &Path) -> Result<Self, EngineError> {
        let stream = UnixStream::connect(path).map_err(FrameError::from)?;
        stream.set_read_timeout(Some(TIMEOUT)).map_err(FrameError::from)?;
        stream.set_write_timeout(Some(TIMEOUT)).map_err(FrameError::from)?;
        send_frame(&stream, &Request::Hello { protocol: PROTOCOL }, &[])?;
        let (reply, fds) = recv_frame::<Reply>(&stream)?;
        match reply {
            Reply::Hello { protocol: PROTOCOL, pid, version, two_keys, hears } => {
                Ok(Self { stream, sessions: fds.into_iter().next(), pid, version, two_keys, hears })
            }
            Reply::Hello { protocol, .. } => Err(EngineError::Protocol { got: protocol }),
            Reply::Error { message } => Err(EngineError::Refused(message)),
            _ => Err(EngineError::Confused),
        }
    }

    /// Serves a network over these sockets; of a network that is served already the sockets may be left out.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn put_network(
        &mut self,
        network: NetworkId,
        persistent_keepalive: Option<u16>,
        sockets: &[impl AsFd],
    ) -> Result<(), EngineError> {
        let fds: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
        self.done(&Request::PutNetwork { network, persistent_keepalive }, &fds)
    }

    /// Serves a network no longer.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn remove_network(&mut self, network: NetworkId) -> Result<(), EngineError> {
        self.done(&Request::RemoveNetwork { network }, &[])
    }

    /// Serves a container over this TUN device and `wg(8)` socket; of one that is served already they may be left out.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn put_device(
        &mut self,
        network: NetworkId,
        device: Device,
        fds: &[impl AsFd],
    ) -> Result<(), EngineError> {
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        self.done(&Request::PutDevice { network, device }, &fds)
    }

    /// Serves a container no longer.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn remove_device(&mut self, network: NetworkId, device: ContainerId) -> Result<(), EngineError> {
        self.done(&Request::RemoveDevice { network, device }, &[])
    }

    /// Adds peers to the directory, or replaces those of the same key.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn put_peers(&mut self, network: NetworkId, peers: &[Peer]) -> Result<(), EngineError> {
        for peers in peers.chunks(MAX_PEERS_PER_MESSAGE) {
            self.done(&Request::PutPeers { network, peers: peers.to_vec(), batch: Batch::Update }, &[])?;
        }
        Ok(())
    }

    /// Makes the directory hold these peers and no others.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn replace_peers(
        &mut self,
        network: NetworkId,
        peers: impl IntoIterator<Item = Peer>,
    ) -> Result<(), EngineError> {
        let mut peers = peers.into_iter().peekable();
        self.done(&Request::PutPeers { network, peers: Vec::new(), batch: Batch::ReplaceBegin }, &[])?;
        while peers.peek().is_some() {
            let some: Vec<Peer> = peers.by_ref().take(MAX_PEERS_PER_MESSAGE).collect();
            self.done(&Request::PutPeers { network, peers: some, batch: Batch::ReplaceContinue }, &[])?;
        }
        self.done(&Request::PutPeers { network, peers: Vec::new(), batch: Batch::ReplaceEnd }, &[])
    }

    /// Removes peers from the directory.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn remove_peers(&mut self, network: NetworkId, keys: &[PublicKey]) -> Result<(), EngineError> {
        for keys in keys.chunks(MAX_PEERS_PER_MESSAGE) {
            self.done(&Request::RemovePeers { network, keys: keys.to_vec() }, &[])?;
        }
        Ok(())
    }

    /// Has a device begin handshakes with peers at once.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn wake(
        &mut self,
        network: NetworkId,
        device: ContainerId,
        peers: &[PublicKey],
    ) -> Result<(), EngineError> {
        for peers in peers.chunks(MAX_PEERS_PER_MESSAGE) {
            self.done(&Request::Wake { network, device, peers: peers.to_vec() }, &[])?;
        }
        Ok(())
    }

    /// From which of these peers an authenticated packet has come within this time. An engine of an earlier version, which
    /// cannot tell, has heard nobody.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn heard(
        &mut self,
        network: NetworkId,
        peers: &[PublicKey],
        within: Duration,
    ) -> Result<Vec<PublicKey>, EngineError> {
        let within_millis = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        let mut all = Vec::new();
        for peers in peers.chunks(MAX_PEERS_PER_MESSAGE).filter(|_| self.hears) {
            send_frame(&self.stream, &Request::Heard { network, peers: peers.to_vec(), within_millis }, &[])?;
            match recv_frame::<Reply>(&self.stream)?.0 {
                Reply::Heard { peers } => all.extend(peers),
                Reply::Error { message } => return Err(EngineError::Refused(message)),
                _ => return Err(EngineError::Confused),
            }
        }
        Ok(all)
    }

    /// The sessions that the engine began, also when it is dead.
    pub fn sessions(&self) -> BTreeSet<SessionKey> {
        self.sessions.as_ref().map(read_sessions).unwrap_or_default()
    }

    /// Everything that the engine serves, descriptors included.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn dump(&mut self) -> Result<EngineDump, EngineError> {
        send_frame(&self.stream, &Request::Dump, &[])?;
        let mut dump = EngineDump::default();
        loop {
            let (reply, fds) = recv_frame::<Reply>(&self.stream)?;
            match reply {
                Reply::Network { network } => {
                    dump.networks.push(DumpedNetwork { network, sockets: fds });
                }
                Reply::Device { network, device, gone } => {
                    dump.devices.push(DumpedDevice { network, device, gone, fds });
                }
                Reply::End => return Ok(dump),
                Reply::Error { message } => return Err(EngineError::Refused(message)),
                _ => return Err(EngineError::Confused),
            }
        }
    }

    /// All figures.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn stats(&mut self) -> Result<EngineStats, EngineError> {
        send_frame(&self.stream, &Request::Stats, &[])?;
        let mut all = EngineStats::default();
        loop {
            match recv_frame::<Reply>(&self.stream)?.0 {
                Reply::Stats { network, device, gone, stats } => {
                    all.devices.push((network, device, gone, stats));
                }
                Reply::NetworkStats { network, stats } => all.networks.push((network, stats)),
                Reply::End => return Ok(all),
                Reply::Error { message } => return Err(EngineError::Refused(message)),
                _ => return Err(EngineError::Confused),
            }
        }
    }

    /// Stops the engine; all links of the node end.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn shutdown(&mut self) -> Result<(), EngineError> {
        self.done(&Request::Shutdown, &[])
    }

    fn done(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(), EngineError> {
        send_frame(&self.stream, request, fds)?;
        match recv_frame::<Reply>(&self.stream)?.0 {
            Reply::Done => Ok(()),
            Reply::Error { message } => Err(EngineError::Refused(message)),
            _ => Err(EngineError::Confused),
        }
    }
}
