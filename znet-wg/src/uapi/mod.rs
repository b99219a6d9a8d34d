//! The configuration protocol of user-space WireGuard, as `wg(8)` speaks it
//! (<https://www.wireguard.com/xplatform/>).
//!
//! A request is lines of `key=value` that a blank line ends; so is its answer, whose last line tells an error
//! number. Everything here but [`socket`] is text in and values out, so that the whole protocol is tested
//! without a device. What a request means for peers and sockets is for the caller: the order of
//! [`SetDevice::peers`] is the request's.
//!
//! Requests and answers carry private keys. The buffers that hold them are wiped, also when they grow.

mod describe;
mod parse;
mod read;
pub mod socket;

use std::net::SocketAddr;

use ipnet::IpNet;
use zeroize::Zeroizing;
use znet_core::key::{PresharedKey, PrivateKey, PublicKey};

pub use describe::{Description, DeviceView, PeerView, errno_reply};
pub use parse::{Flaw, UapiError, parse, parse_with};
pub use read::{MAX_REQUEST, RequestReader};

/// What a client asks.
#[derive(Debug)]
pub enum Request {
    /// `get=1`: tell everything.
    Get,
    /// `set=1`: change this.
    Set(SetDevice),
}

/// A change of a device. `None` leaves a thing as it is.
#[derive(Debug, Default)]
pub struct SetDevice {
    /// The private key; `Some(None)` removes it, and with it the ability to make sessions.
    pub private_key: Option<Option<PrivateKey>>,
    /// The UDP port; 0 lets the system choose.
    pub listen_port: Option<u16>,
    /// The mark on outgoing datagrams; `Some(None)` removes it.
    pub fwmark: Option<Option<u32>>,
    /// Remove all peers before those of [`Self::peers`] are looked at.
    pub replace_peers: bool,
    /// Changes of peers, to be made in this order. A key may come more than once.
    pub peers: Vec<SetPeer>,
}

/// A change of a peer, which is made unless it exists. `None` leaves a thing as it is.
#[derive(Debug, PartialEq, Eq)]
pub struct SetPeer {
    /// Which peer.
    pub public_key: PublicKey,
    /// Remove it; the rest of the change is void.
    pub remove: bool,
    /// Do nothing unless it exists.
    pub update_only: bool,
    /// The preshared key; `Some(None)` removes it.
    pub preshared_key: Option<Option<PresharedKey>>,
    /// Where it is.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between keepalives; 0 switches them off.
    pub persistent_keepalive: Option<u16>,
    /// Remove all its allowed addresses before those of [`Self::allowed_ips`] are looked at.
    pub replace_allowed_ips: bool,
    /// Changes of its allowed addresses, to be made in this order.
    pub allowed_ips: Vec<AllowedIp>,
}

impl SetPeer {
    /// A change of this peer that changes nothing yet.
    pub fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            remove: false,
            update_only: false,
            preshared_key: None,
            endpoint: None,
            persistent_keepalive: None,
            replace_allowed_ips: false,
            allowed_ips: vec![],
        }
    }
}

/// A range of addresses that a peer gets, taking it from any other, or loses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllowedIp {
    /// The range; bits beyond its prefix are zero.
    pub net: IpNet,
    /// Take it from this peer instead; nothing happens when it is another's.
    pub remove: bool,
}

/// Makes room for `more` bytes. A growing `Vec` would leave its former memory behind as it is; this wipes it.
fn reserve_wiping(buffer: &mut Zeroizing<Vec<u8>>, more: usize) {
    if buffer.capacity() - buffer.len() >= more {
        return;
    }
    let capacity = buffer.capacity().saturating_mul(2).max(buffer.len().saturating_add(more));
    let mut larger = Zeroizing::new(Vec::with_capacity(capacity));
    larger.extend_from_slice(buffer);
    // The old one is wiped as it is dropped.
    *buffer = larger;
}
