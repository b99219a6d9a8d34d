//! The packet logic of one network, without any I/O: time, datagrams and packets are handed in, and what is to be
//! sent goes to a [`Sink`].
//!
//! A packet's way out: [`Network::from_tun`] checks its source, looks its destination up in the [`Directory`], and hands it to
//! the [`session`] with that peer, which is made by the first packet. Its way in: [`Network::from_udp`] finds the
//! session by receiver index, or the device by the keyed MAC of a handshake, and checks that what comes out of a
//! tunnel bears an address of the peer that sent it.

mod device;
mod directory;
mod early;
mod network;
mod packet;
mod session;

use std::net::SocketAddr;

use znet_core::id::ContainerId;
use znet_core::key::PublicKey;

pub use device::{Device, MAX_SESSIONS_PER_DEVICE};
pub use directory::{Directory, DirectoryEntry};
pub use network::{INITIATIONS_PER_SECOND, Network};
pub use packet::{Addresses, MAX_PACKET};
pub use session::{PeerState, Session};

/// Where packets go: sockets in the engine, queues in a test.
pub trait Sink {
    /// Sends a datagram on the underlay. `false` when it had to be dropped.
    fn send(&mut self, to: SocketAddr, datagram: &[u8]) -> bool;
    /// Hands a packet to a container. `false` when it had to be dropped.
    fn deliver(&mut self, device: ContainerId, packet: &[u8]) -> bool;
    /// Notes that a device begins a session with a peer.
    fn began(&mut self, _device: ContainerId, _peer: &PublicKey) {}
}
