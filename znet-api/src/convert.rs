//! Strict conversions between the wire's types and the core's. What is not well formed is refused with the name of
//! the field, never mended.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;

use znet_core::id::{ContainerId, Epoch, NetworkId, NodeId, Pin, Revision};
use znet_core::key::{PublicKey, Signature, VerifyingKey};
use znet_core::map::{
    AccessRecord, Change, ContainerRecord, ControllerRecord, Delta, Digest, Head, MAX_CONTROLLERS,
    MAX_ENDPOINTS, MAX_PINS, NetworkRecord, NodeRecord, Record, RecordKey, SignedHead, Succession,
    is_host_and_port,
};
use znet_core::name::Name;

use crate::v1;

/// A message that says something its receiver cannot mean.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("field {field}: {why}")]
pub struct ConvertError {
    /// The field of the message.
    pub field: &'static str,
    /// What is wrong with it.
    pub why: String,
}

/// Makes an error that names its field.
pub fn invalid(field: &'static str, why: impl ToString) -> ConvertError {
    ConvertError { field, why: why.to_string() }
}

/// Reads a network's identifier.
///
/// # Errors
/// [`ConvertError`] when it is not 16 bytes.
pub fn network_id(bytes: &[u8]) -> Result<NetworkId, ConvertError> {
    NetworkId::try_from(bytes).map_err(|error| invalid("network", error))
}

/// Reads a name.
///
/// # Errors
/// [`ConvertError`] when it is no DNS label.
pub fn name(text: &str) -> Result<Name, ConvertError> {
    text.parse().map_err(|error| invalid("name", error))
}

/// Reads a node's endpoints.
///
/// # Errors
/// [`ConvertError`] when there are too many or one is not `ADDRESS:PORT`.
pub fn endpoints(texts: &[String]) -> Result<Vec<SocketAddr>, ConvertError> {
    if texts.len() > MAX_ENDPOINTS {
        return Err(invalid(
            "endpoints",
            format!("{} were given, at most {MAX_ENDPOINTS} are taken", texts.len()),
        ));
    }
    let parse = |text: &String| {
        text.parse().map_err(|_| invalid("endpoints", format!("{text:?} is not ADDRESS:PORT")))
    };
    texts.iter().map(parse).collect()
}

/// Reads a few addresses.
///
/// # Errors
/// [`ConvertError`] when one is no IP address or there are more than two.
pub fn addresses(texts: &[String]) -> Result<Vec<IpAddr>, ConvertError> {
    if texts.len() > 2 {
        return Err(invalid("addresses", "at most one of each family is taken"));
    }
    let parse =
        |text: &String| text.parse().map_err(|_| invalid("addresses", format!("{text:?} is no IP address")));
    texts.iter().map(parse).collect()
}

fn sized<const N: usize>(field: &'static str, bytes: &[u8]) -> Result<[u8; N], ConvertError> {
    bytes.try_into().map_err(|_| invalid(field, format!("{N} bytes expected, {} given", bytes.len())))
}

impl From<&SignedHead> for v1::SignedHead {
    fn from(signed: &SignedHead) -> Self {
        let head = &signed.head;
        Self {
            network: head.network.as_bytes().to_vec(),
            epoch: head.epoch.get(),
            revision: head.revision.get(),
            digest: head.digest.as_bytes().to_vec(),
            signature: signed.signature.as_bytes().to_vec(),
        }
    }
}

impl TryFrom<&v1::SignedHead> for SignedHead {
    type Error = ConvertError;

    fn try_from(wire: &v1::SignedHead) -> Result<Self, ConvertError> {
        let head = Head {
            network: network_id(&wire.network)?,
            epoch: Epoch::new(wire.epoch),
            revision: Revision::new(wire.revision),
            digest: Digest::from_bytes(sized("digest", &wire.digest)?),
        };
        Ok(Self { head, signature: Signature::from_bytes(sized("signature", &wire.signature)?) })
    }
}

/// Reads the signing key that a node says it believes; `None` from a version that does not say so.
///
/// # Errors
/// [`ConvertError`] when it is no key.
pub fn verifying_key(bytes: &[u8]) -> Result<Option<VerifyingKey>, ConvertError> {
    let read = |bytes| VerifyingKey::from_slice(bytes).map_err(|error| invalid("verifying_key", error));
    (!bytes.is_empty()).then(|| read(bytes)).transpose()
}

impl From<&Succession> for v1::Succession {
    fn from(statement: &Succession) -> Self {
        Self {
            network: statement.network.as_bytes().to_vec(),
            from: statement.from.as_bytes().to_vec(),
            to: statement.to.as_bytes().to_vec(),
            signature: statement.signature.as_bytes().to_vec(),
        }
    }
}

impl TryFrom<&v1::Succession> for Succession {
    type Error = ConvertError;

    fn try_from(wire: &v1::Succession) -> Result<Self, ConvertError> {
        let key =
            |field, bytes: &[u8]| VerifyingKey::from_slice(bytes).map_err(|error| invalid(field, error));
        Ok(Self {
            network: network_id(&wire.network)?,
            from: key("from", &wire.from)?,
            to: key("to", &wire.to)?,
            signature: Signature::from_bytes(sized("signature", &wire.signature)?),
        })
    }
}

/// The IPv4 address, where there is one.
fn address4(bytes: &[u8]) -> Result<Option<Ipv4Addr>, ConvertError> {
    if bytes.is_empty() { Ok(None) } else { Ok(Some(sized::<4>("address4", bytes)?.into())) }
}

/// A port that may be left out, but not be something else than a port.
///
/// # Errors
/// [`ConvertError`].
pub fn port(wire: Option<u32>) -> Result<Option<NonZeroU16>, ConvertError> {
    let port = |port| u16::try_from(port).ok().and_then(NonZeroU16::new).ok_or_else(|| invalid("port", port));
    wire.map(port).transpose()
}

impl From<&ContainerRecord> for v1::ContainerRecord {
    fn from(record: &ContainerRecord) -> Self {
        Self {
            id: record.id.get(),
            name: record.name.to_string(),
            node: record.node.as_bytes().to_vec(),
            public_key: record.public_key.as_bytes().to_vec(),
            address6: record.address6.octets().to_vec(),
            address4: record.address4.map(|a| a.octets().to_vec()).unwrap_or_default(),
            also_key: record.also_key.map(|key| key.as_bytes().to_vec()).unwrap_or_default(),
            rekey: record.rekey,
            port: record.port.map(|port| port.get().into()),
        }
    }
}

impl TryFrom<&v1::ContainerRecord> for ContainerRecord {
    type Error = ConvertError;

    fn try_from(wire: &v1::ContainerRecord) -> Result<Self, ConvertError> {
        let also_key = match wire.also_key.as_slice() {
            [] => None,
            bytes => Some(PublicKey::from_bytes(sized("also_key", bytes)?)),
        };
        Ok(Self {
            id: ContainerId::new(wire.id),
            name: name(&wire.name)?,
            node: NodeId::try_from(wire.node.as_slice()).map_err(|error| invalid("node", error))?,
            public_key: PublicKey::from_bytes(sized("public_key", &wire.public_key)?),
            address6: sized::<16>("address6", &wire.address6)?.into(),
            address4: address4(&wire.address4)?,
            also_key,
            rekey: wire.rekey,
            port: port(wire.port)?,
        })
    }
}

impl From<&AccessRecord> for v1::AccessRecord {
    fn from(record: &AccessRecord) -> Self {
        Self {
            id: record.id.get(),
            name: record.name.to_string(),
            node: record.node.as_bytes().to_vec(),
            public_key: record.public_key.as_bytes().to_vec(),
            address6: record.address6.octets().to_vec(),
            address4: record.address4.map(|a| a.octets().to_vec()).unwrap_or_default(),
        }
    }
}

impl TryFrom<&v1::AccessRecord> for AccessRecord {
    type Error = ConvertError;

    fn try_from(wire: &v1::AccessRecord) -> Result<Self, ConvertError> {
        Ok(Self {
            id: ContainerId::new(wire.id),
            name: name(&wire.name)?,
            node: NodeId::try_from(wire.node.as_slice()).map_err(|error| invalid("node", error))?,
            public_key: PublicKey::from_bytes(sized("public_key", &wire.public_key)?),
            address6: sized::<16>("address6", &wire.address6)?.into(),
            address4: address4(&wire.address4)?,
        })
    }
}

impl From<&ControllerRecord> for v1::ControllerRecord {
    fn from(record: &ControllerRecord) -> Self {
        let pins = record.pins.iter().map(|pin| pin.as_bytes().to_vec()).collect();
        Self { address: record.address.clone(), pins }
    }
}

/// Reads where controllers are.
fn controllers(wire: &[v1::ControllerRecord]) -> Result<Vec<ControllerRecord>, ConvertError> {
    if wire.len() > MAX_CONTROLLERS {
        return Err(invalid(
            "controllers",
            format!("{} were given, at most {MAX_CONTROLLERS} are taken", wire.len()),
        ));
    }
    let read = |wire: &v1::ControllerRecord| {
        if !is_host_and_port(&wire.address) {
            return Err(invalid("controllers", "an address is not HOST:PORT"));
        }
        if wire.pins.len() > MAX_PINS {
            return Err(invalid("controllers", format!("more than {MAX_PINS} pins of one controller")));
        }
        let pin = |bytes: &Vec<u8>| Pin::try_from(bytes.as_slice()).map_err(|error| invalid("pins", error));
        let pins = wire.pins.iter().map(pin).collect::<Result<_, _>>()?;
        Ok(ControllerRecord { address: wire.address.clone(), pins })
    };
    wire.iter().map(read).collect()
}

impl From<&Record> for v1::Record {
    fn from(record: &Record) -> Self {
        use v1::record::Record as Wire;
        let wire = match record {
            Record::Network(r) => Wire::Network(v1::NetworkRecord {
                id: r.id.as_bytes().to_vec(),
                name: r.name.to_string(),
                prefix6: r.prefix6.to_string(),
                prefix4: r.prefix4.map(|p| p.to_string()).unwrap_or_default(),
                controllers: r.controllers.iter().map(Into::into).collect(),
            }),
            Record::Node(r) => Wire::Node(v1::NodeRecord {
                id: r.id.as_bytes().to_vec(),
                name: r.name.to_string(),
                endpoints: r.endpoints.iter().map(ToString::to_string).collect(),
            }),
            Record::Container(r) => Wire::Container(r.into()),
            Record::Access(r) => Wire::Access(r.into()),
        };
        Self { record: Some(wire) }
    }
}

impl TryFrom<&v1::Record> for Record {
    type Error = ConvertError;

    fn try_from(wire: &v1::Record) -> Result<Self, ConvertError> {
        use v1::record::Record as Wire;
        match wire.record.as_ref().ok_or_else(|| invalid("record", "none of the known kinds"))? {
            Wire::Network(r) => {
                let prefix4 = match r.prefix4.as_str() {
                    "" => None,
                    text => Some(text.parse().map_err(|_| invalid("prefix4", "not an IPv4 prefix"))?),
                };
                let prefix6 = r.prefix6.parse().map_err(|_| invalid("prefix6", "not an IPv6 prefix"))?;
                Ok(Self::Network(NetworkRecord {
                    id: network_id(&r.id)?,
                    name: name(&r.name)?,
                    prefix6,
                    prefix4,
                    controllers: controllers(&r.controllers)?,
                }))
            }
            Wire::Node(r) => Ok(Self::Node(NodeRecord {
                id: NodeId::try_from(r.id.as_slice()).map_err(|error| invalid("id", error))?,
                name: name(&r.name)?,
                endpoints: endpoints(&r.endpoints)?,
            })),
            Wire::Container(r) => ContainerRecord::try_from(r).map(Self::Container),
            Wire::Access(r) => AccessRecord::try_from(r).map(Self::Access),
        }
    }
}

impl From<&RecordKey> for v1::RecordKey {
    fn from(key: &RecordKey) -> Self {
        use v1::record_key::Key;
        let key = match key {
            RecordKey::Network => Key::Network(true),
            RecordKey::Node(id) => Key::Node(id.as_bytes().to_vec()),
            RecordKey::Container(id) => Key::Container(id.get()),
            RecordKey::Access(id) => Key::Access(id.get()),
        };
        Self { key: Some(key) }
    }
}

impl TryFrom<&v1::RecordKey> for RecordKey {
    type Error = ConvertError;

    fn try_from(wire: &v1::RecordKey) -> Result<Self, ConvertError> {
        use v1::record_key::Key;
        match wire.key.as_ref().ok_or_else(|| invalid("key", "none of the known kinds"))? {
            Key::Network(_) => Ok(Self::Network),
            Key::Node(id) => {
                NodeId::try_from(id.as_slice()).map(Self::Node).map_err(|error| invalid("node", error))
            }
            Key::Container(id) => Ok(Self::Container(ContainerId::new(*id))),
            Key::Access(id) => Ok(Self::Access(ContainerId::new(*id))),
        }
    }
}

/// The wire form of a delta under its signed head.
pub fn delta_to_wire(delta: &Delta, head: &SignedHead) -> v1::Delta {
    let change = |change: &Change| v1::Change {
        change: Some(match change {
            Change::Put(record) => v1::change::Change::Put(record.into()),
            Change::Remove(key) => v1::change::Change::Remove(key.into()),
        }),
    };
    v1::Delta {
        from: delta.from.get(),
        changes: delta.changes.iter().map(change).collect(),
        head: Some(head.into()),
    }
}

/// Reads a delta and the head that it comes under.
///
/// # Errors
/// [`ConvertError`] for the first field that is not well formed.
pub fn delta_from_wire(wire: &v1::Delta) -> Result<(Delta, SignedHead), ConvertError> {
    let head = SignedHead::try_from(wire.head.as_ref().ok_or_else(|| invalid("head", "missing"))?)?;
    let change = |wire: &v1::Change| match wire.change.as_ref().ok_or_else(|| invalid("change", "missing"))? {
        v1::change::Change::Put(record) => Record::try_from(record).map(Change::Put),
        v1::change::Change::Remove(key) => RecordKey::try_from(key).map(Change::Remove),
    };
    let changes = wire.changes.iter().map(change).collect::<Result<_, _>>()?;
    Ok((Delta { from: Revision::new(wire.from), to: head.head.revision, changes }, head))
}
