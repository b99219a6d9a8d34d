//! The records of a map and their canonical bytes, over which digests are computed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::ControllerRecord;
use crate::id::{ContainerId, NetworkId, NodeId};
use crate::key::PublicKey;
use crate::name::Name;

/// Most endpoints that a node may have in the map: enough for two address families on a few links.
pub const MAX_ENDPOINTS: usize = 8;

/// What every member must know of the network itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// The network.
    pub id: NetworkId,
    /// Its name at the controller.
    pub name: Name,
    /// The ULA /48 (RFC 4193) out of which every container has an address.
    pub prefix6: Ipv6Net,
    /// The IPv4 prefix, where the network has one.
    pub prefix4: Option<Ipv4Net>,
    /// Where its controllers are, in the order in which they are tried; at most [`MAX_CONTROLLERS`](super::MAX_CONTROLLERS).
    /// Empty where join tokens alone tell.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub controllers: Vec<ControllerRecord>,
}

/// What every member must know of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// The node.
    pub id: NodeId,
    /// Its name, unique within the network.
    pub name: Name,
    /// Where its WireGuard port of this network can be reached, best first; at most [`MAX_ENDPOINTS`]. Empty when
    /// nobody can reach it first: then its own packets tell the others.
    pub endpoints: Vec<SocketAddr>,
}

/// IPv6, then IPv4 where there is one.
fn both(six: Ipv6Addr, four: Option<Ipv4Addr>) -> impl Iterator<Item = IpAddr> + use<> {
    std::iter::once(IpAddr::V6(six)).chain(four.map(IpAddr::V4))
}

/// What every member must know of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// The container.
    pub id: ContainerId,
    /// Its name, unique within the network.
    pub name: Name,
    /// The node on which it runs.
    pub node: NodeId,
    /// Its WireGuard public key.
    pub public_key: PublicKey,
    /// Its IPv6 address.
    pub address6: Ipv6Addr,
    /// Its IPv4 address, where the network has an IPv4 prefix.
    pub address4: Option<Ipv4Addr>,
    /// Another public key that is the container's while its pair is changed: the next one while `rekey` is set, else the
    /// one before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub also_key: Option<PublicKey>,
    /// Its node is to make a new pair.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rekey: bool,
    /// The UDP port at which it is reached at the addresses of its node's endpoints, where it has one of its own instead
    /// of sharing its node's: a device of the kernel's does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<NonZeroU16>,
}

impl ContainerRecord {
    /// The public keys that are the container's: the one in use, and while it is changed another one.
    pub fn keys(&self) -> impl Iterator<Item = PublicKey> + use<> {
        std::iter::once(self.public_key).chain(self.also_key)
    }

    /// Whether its pair is being changed.
    pub fn is_rotating(&self) -> bool {
        self.rekey || self.also_key.is_some()
    }

    /// Its addresses: IPv6, then IPv4 where it has one.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        both(self.address6, self.address4)
    }
}

/// An access point: a device of a person, which the node lets into the network under a container's name and addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessRecord {
    /// The container as which the others see the device.
    pub id: ContainerId,
    /// That container's name.
    pub name: Name,
    /// The node through which the device reaches the network.
    pub node: NodeId,
    /// The device's own WireGuard public key.
    pub public_key: PublicKey,
    /// Its IPv6 address.
    pub address6: Ipv6Addr,
    /// Its IPv4 address, where the network has an IPv4 prefix.
    pub address4: Option<Ipv4Addr>,
}

impl AccessRecord {
    /// Its addresses: IPv6, then IPv4 where it has one.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        both(self.address6, self.address4)
    }
}

/// One entry of a map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Record {
    /// The network itself.
    Network(NetworkRecord),
    /// A node.
    Node(NodeRecord),
    /// A container.
    Container(ContainerRecord),
    /// An access point.
    Access(AccessRecord),
}

/// The key under which a record stands in its map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecordKey {
    /// The network's own record.
    Network,
    /// A node's record.
    Node(NodeId),
    /// A container's record.
    Container(ContainerId),
    /// An access point's record, by the container as which it is seen.
    Access(ContainerId),
}

impl Record {
    /// The key under which this record stands.
    pub fn key(&self) -> RecordKey {
        match self {
            Self::Network(_) => RecordKey::Network,
            Self::Node(record) => RecordKey::Node(record.id),
            Self::Container(record) => RecordKey::Container(record.id),
            Self::Access(record) => RecordKey::Access(record.id),
        }
    }

    /// The canonical bytes: equal records give equal bytes and different records different ones, on every machine
    /// and in every version that knows the same fields. Each field is fixed in length or preceded by its length.
    pub fn canonical_bytes(&self) -> Vec<u8> {
        let mut out = Canonical(Vec::with_capacity(160));
        match self {
            Self::Network(r) => {
                out.byte(1).bytes(r.id.as_bytes()).text(r.name.as_str());
                out.bytes(&r.prefix6.addr().octets()).byte(r.prefix6.prefix_len());
                match r.prefix4 {
                    None => out.byte(0),
                    Some(p) => out.byte(1).bytes(&p.addr().octets()).byte(p.prefix_len()),
                };
                // Nothing at all for none, as in versions that do not know the list.
                if !r.controllers.is_empty() {
                    out.controllers(&r.controllers);
                }
            }
            Self::Node(r) => {
                out.byte(2).bytes(r.id.as_bytes()).text(r.name.as_str()).length(r.endpoints.len());
                for endpoint in &r.endpoints {
                    out.endpoint(endpoint);
                }
            }
            Self::Container(r) => {
                out.byte(3).bytes(&r.id.get().to_be_bytes()).text(r.name.as_str());
                out.bytes(r.node.as_bytes()).bytes(r.public_key.as_bytes()).bytes(&r.address6.octets());
                match r.address4 {
                    None => out.byte(0),
                    Some(a) => out.byte(1).bytes(&a.octets()),
                };
                // Nothing at all where nothing is changed, so that such a record has the bytes that it always had.
                if let Some(key) = r.also_key {
                    out.byte(1).bytes(key.as_bytes());
                }
                if r.rekey {
                    out.byte(2);
                }
                // Likewise, under a mark of its own.
                if let Some(port) = r.port {
                    out.byte(9).bytes(&port.get().to_be_bytes());
                }
            }
            Self::Access(r) => {
                out.byte(4).bytes(&r.id.get().to_be_bytes()).text(r.name.as_str());
                out.bytes(r.node.as_bytes()).bytes(r.public_key.as_bytes()).bytes(&r.address6.octets());
                match r.address4 {
                    None => out.byte(0),
                    Some(a) => out.byte(1).bytes(&a.octets()),
                };
            }
        }
        out.0
    }
}

struct Canonical(Vec<u8>);

impl Canonical {
    fn byte(&mut self, byte: u8) -> &mut Self {
        self.0.push(byte);
        self
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn length(&mut self, length: usize) -> &mut Self {
        self.bytes(&(length as u64).to_be_bytes())
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.length(text.len()).bytes(text.as_bytes())
    }

    fn controllers(&mut self, controllers: &[ControllerRecord]) {
        self.length(controllers.len());
        for controller in controllers {
            self.text(&controller.address).length(controller.pins.len());
            for pin in &controller.pins {
                self.bytes(pin.as_bytes());
            }
        }
    }

    fn endpoint(&mut self, endpoint: &SocketAddr) -> &mut Self {
        match endpoint {
            SocketAddr::V4(v4) => self.byte(4).bytes(&v4.ip().octets()),
            // No controller admits a flow label or a zone, but a head must tell apart whatever a record can hold.
            SocketAddr::V6(v6) => self
                .byte(6)
                .bytes(&v6.ip().octets())
                .bytes(&v6.flowinfo().to_be_bytes())
                .bytes(&v6.scope_id().to_be_bytes()),
        };
        self.bytes(&endpoint.port().to_be_bytes())
    }
}
