//! What an agent tells an engine, over a Unix socket: length-prefixed JSON, descriptors beside it.
//!
//! All requests are harmless to repeat. Unknown fields are ignored, so that an agent and an engine of neighbouring
//! versions understand each other across an upgrade; [`PROTOCOL`] is raised when that does not hold.

mod client;
mod frame;
mod sessions;

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use znet_core::id::{ContainerId, NetworkId};
use znet_core::key::{PresharedKey, PrivateKey, PublicKey};

pub use client::{DumpedDevice, DumpedNetwork, EngineClient, EngineDump, EngineError, EngineStats};
pub use frame::{FrameError, MAX_FRAME, recv_frame, send_frame};
pub use sessions::{SessionKey, SessionList, read_sessions};

/// The version of this protocol.
pub const PROTOCOL: u32 = 1;
/// Most peers in one message; more come in several.
pub const MAX_PEERS_PER_MESSAGE: usize = 500;

/// A private key on its way between agent and engine; as JSON it is WireGuard's base64.
#[derive(Clone, Debug)]
pub struct WirePrivateKey(pub PrivateKey);

impl Serialize for WirePrivateKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.to_base64())
    }
}

impl<'de> Deserialize<'de> for WirePrivateKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = zeroize::Zeroizing::new(String::deserialize(deserializer)?);
        PrivateKey::from_base64(&text).map(Self).map_err(serde::de::Error::custom)
    }
}

/// A preshared key on its way between agent and engine; as JSON it is WireGuard's base64.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WirePresharedKey(pub PresharedKey);

impl Serialize for WirePresharedKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.to_base64())
    }
}

impl<'de> Deserialize<'de> for WirePresharedKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = zeroize::Zeroizing::new(String::deserialize(deserializer)?);
        PresharedKey::from_base64(&text).map(Self).map_err(serde::de::Error::custom)
    }
}

/// One entry of a network's peer directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// The container's public key.
    pub public_key: PublicKey,
    /// Another public key that is the container's while its pair is changed: the next one, or the one before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub also_key: Option<PublicKey>,
    /// The addresses that belong to it, and to nobody else in the network.
    pub addresses: Vec<IpAddr>,
    /// Where it can be reached, best first; empty when only its own packets can tell.
    pub endpoints: Vec<SocketAddr>,
    /// A key that both ends mix into their handshake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preshared_key: Option<WirePresharedKey>,
}

/// A container's device, but for its descriptors.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Device {
    /// The container.
    pub id: ContainerId,
    /// The name under which `wg(8)` finds it: at most 15 bytes.
    pub name: String,
    /// Its private key.
    pub private_key: WirePrivateKey,
    /// Another one, for which it accepts handshakes while its pair is changed: the next one, or the one before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub also_private_key: Option<WirePrivateKey>,
    /// Whether that is the next one. Kept for the agent.
    #[serde(default)]
    pub also_is_next: bool,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// It passes on what others send and get, so that no address is more its own than another: the outer device of an
    /// access point. An engine of a version that does not know this takes it for a device without any address.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub relay: bool,
}

/// How a batch of peers relates to the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Batch {
    /// Add or replace these and leave the others alone.
    Update,
    /// The first of several messages that together replace the directory.
    ReplaceBegin,
    /// One more of them.
    ReplaceContinue,
    /// The last of them: what none of them named is removed now. Sessions of unchanged peers live on.
    ReplaceEnd,
}

/// A request of an agent. What comes beside it as descriptors is said with each.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Request {
    /// Who are you?
    Hello {
        /// The agent's [`PROTOCOL`].
        protocol: u32,
    },
    /// Serve a network. Beside it: its UDP sockets, one or two, unless the network is served already.
    PutNetwork {
        /// The network.
        network: NetworkId,
        /// Send keepalives to active peers this often, in seconds; for nodes behind a NAT.
        persistent_keepalive: Option<u16>,
    },
    /// Serve a network no longer.
    RemoveNetwork {
        /// The network.
        network: NetworkId,
    },
    /// Serve a container. Beside it: its TUN device and its listening `wg(8)` socket, unless it is served already.
    PutDevice {
        /// The network.
        network: NetworkId,
        /// The device.
        device: Device,
    },
    /// Serve a container no longer; its keys are wiped.
    RemoveDevice {
        /// The network.
        network: NetworkId,
        /// The container.
        device: ContainerId,
    },
    /// Change the peer directory.
    PutPeers {
        /// The network.
        network: NetworkId,
        /// At most [`MAX_PEERS_PER_MESSAGE`].
        peers: Vec<Peer>,
        /// How they relate to what is there.
        batch: Batch,
    },
    /// Remove peers from the directory; their sessions end at once.
    RemovePeers {
        /// The network.
        network: NetworkId,
        /// Their keys.
        keys: Vec<PublicKey>,
    },
    /// Begin handshakes with peers at once, whether there is a packet for them or not.
    Wake {
        /// The network.
        network: NetworkId,
        /// The container.
        device: ContainerId,
        /// At most [`MAX_PEERS_PER_MESSAGE`] keys.
        peers: Vec<PublicKey>,
    },
    /// From which of these peers has an authenticated packet come within this time? Answered by [`Reply::Heard`].
    Heard {
        /// The network.
        network: NetworkId,
        /// At most [`MAX_PEERS_PER_MESSAGE`] keys.
        peers: Vec<PublicKey>,
        /// The time, in milliseconds.
        within_millis: u64,
    },
    /// Tell everything, descriptors included. Answered by one reply a network and a device, then [`Reply::End`].
    Dump,
    /// Tell all figures. Answered by one reply a network and a device, then [`Reply::End`].
    Stats,
    /// Stop.
    Shutdown,
}

/// An engine's answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Reply {
    /// It is so now.
    Done,
    /// Who answers; beside it the list of its sessions (see [`SessionList`]).
    Hello {
        /// The engine's [`PROTOCOL`].
        protocol: u32,
        /// Its process.
        pid: u32,
        /// Its version of znet.
        version: String,
        /// Whether it knows that devices and peers may have two keys.
        #[serde(default)]
        two_keys: bool,
        /// Whether it answers [`Request::Heard`], which earlier versions do not know.
        #[serde(default)]
        hears: bool,
    },
    /// The peers that were heard.
    Heard {
        /// Their keys.
        peers: Vec<PublicKey>,
    },
    /// A network; beside it its UDP sockets.
    Network {
        /// The network.
        network: NetworkId,
    },
    /// A device; beside it its TUN device and its listening `wg(8)` socket.
    Device {
        /// The network.
        network: NetworkId,
        /// The device.
        device: Device,
        /// Whether its TUN device has gone away with its namespace.
        gone: bool,
    },
    /// The figures of a device.
    Stats {
        /// The network.
        network: NetworkId,
        /// The container.
        device: ContainerId,
        /// Whether its TUN device has gone away with its namespace.
        gone: bool,
        /// The figures.
        stats: DeviceStats,
    },
    /// The figures of what came in on a network's port and is no device's.
    NetworkStats {
        /// The network.
        network: NetworkId,
        /// The figures.
        stats: NetworkStats,
    },
    /// No more replies to this request follow.
    End,
    /// The request was not carried out.
    Error {
        /// What is wrong.
        message: String,
    },
}

/// Figures of one device since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceStats {
    /// Packets from the container into tunnels.
    pub tx_packets: u64,
    /// Their bytes, before encryption.
    pub tx_bytes: u64,
    /// Packets out of tunnels to the container.
    pub rx_packets: u64,
    /// Their bytes, after decryption.
    pub rx_bytes: u64,
    /// Sessions held now.
    pub sessions: u64,
    /// Handshakes completed.
    pub handshakes: u64,
    /// Packets of the container that are no IP packets.
    pub drop_malformed: u64,
    /// Packets of the container from an address that is not its own, or out of a tunnel from one that is not the peer's.
    pub drop_source: u64,
    /// Packets of the container to an address that no peer has.
    pub drop_destination: u64,
    /// Packets to a peer of which no endpoint is known.
    pub drop_endpoint: u64,
    /// Datagrams that did not authenticate or could not be decrypted.
    pub drop_crypto: u64,
    /// Packets that a full queue or socket refused.
    pub drop_full: u64,
    /// Sessions refused because the bound was reached.
    pub drop_sessions: u64,
}

/// Figures of what could not be assigned to a device, since the engine serves the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkStats {
    /// Datagrams that are no WireGuard messages.
    pub drop_malformed: u64,
    /// Messages for a session that does not exist.
    pub drop_no_session: u64,
    /// Initiations for none of the local keys, or from a key that the directory does not have.
    pub drop_stranger: u64,
    /// Initiations beyond the budget.
    pub drop_budget: u64,
}

impl fmt::Display for DeviceStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} packets out, {} in, {} sessions", self.tx_packets, self.rx_packets, self.sessions)
    }
}
