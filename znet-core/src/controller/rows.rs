//! The entities of a network as they are stored: one row each, under a key of their own.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rand_core::CryptoRng;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::{ZeroizeOnDrop, Zeroizing};

use super::command::Settings;
use super::network::millis;
use crate::id::{ContainerId, Epoch, NetworkId, NodeId, Revision, TokenId};
use crate::key::{PublicKey, VerifyingKey};
use crate::map::{
    self, AccessRecord, ContainerRecord, ControllerRecord, NetworkRecord, NodeRecord, Record, RecordKey,
    Succession,
};
use crate::name::Name;
use crate::time::Timestamp;

/// How long a released address rests before it is given again, unless the network says otherwise.
pub const DEFAULT_REST: Duration = Duration::from_secs(600);

/// How long an ephemeral node may stay away before it is collected.
pub const DEFAULT_EPHEMERAL_TTL: Duration = Duration::from_secs(300);

/// The network itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkConf {
    /// The network.
    pub id: NetworkId,
    /// Its name.
    pub name: Name,
    /// The ULA /48.
    pub prefix6: Ipv6Net,
    /// The IPv4 prefix, where it has one.
    pub prefix4: Option<Ipv4Net>,
    /// Ranges out of which nothing is allocated unless asked for by address.
    pub reserved: Vec<IpNet>,
    /// How long a released address rests, in milliseconds.
    pub rest_millis: u64,
    /// How long an ephemeral node may stay away, in milliseconds.
    pub ephemeral_ttl_millis: u64,
    /// The current epoch.
    pub epoch: Epoch,
    /// When it was created.
    pub created: Timestamp,
    /// The identifier that the next new container gets; never reused.
    pub next_container: ContainerId,
    /// For how long a container's pair is used, in milliseconds; for ever when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_lifetime_millis: Option<u64>,
    /// Pairs that came into use before are to be changed, whatever their age.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys_since: Option<Timestamp>,
    /// Where its controllers are, for members; empty where join tokens alone tell.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub controllers: Vec<ControllerRecord>,
    /// Its signing key, once that is another than the one with which it was created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signing: Option<Box<Signing>>,
}

/// The signing key of a network, and how it came to be that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signing {
    /// The key that signs heads now.
    pub key: VerifyingKey,
    /// The revision from which on it does.
    pub since: Revision,
    /// The statements that lead to it; empty once earlier keys were retired. At most [`MAX_LINE`](map::MAX_LINE).
    pub line: Vec<Succeeded>,
}

/// One step of the line of a network's signing keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Succeeded {
    /// What the key that went said.
    pub statement: Succession,
    /// The first revision whose head the key that came signs.
    pub since: Revision,
}

impl Signing {
    /// The key that signs the head of a revision.
    pub fn key_at(&self, revision: Revision) -> VerifyingKey {
        let after = self.line.iter().rev().find(|step| step.since <= revision);
        let before = self.line.first().map(|step| step.statement.from);
        after.map(|step| step.statement.to).or(before).unwrap_or(self.key)
    }

    /// The statements that lead from one key to another; `None` when they do not.
    pub fn line(&self, from: &VerifyingKey, to: &VerifyingKey) -> Option<Vec<Succession>> {
        let begin = self.line.iter().position(|step| step.statement.from == *from)?;
        let end = self.line.iter().position(|step| step.statement.to == *to)?;
        let steps = self.line.get(begin..=end)?;
        Some(steps.iter().map(|step| step.statement).collect())
    }
}

impl NetworkConf {
    /// How long a released address rests.
    pub fn rest(&self) -> Duration {
        Duration::from_millis(self.rest_millis)
    }

    /// How long an ephemeral node may stay away.
    pub fn ephemeral_ttl(&self) -> Duration {
        Duration::from_millis(self.ephemeral_ttl_millis)
    }

    /// For how long a container's pair is used; for ever when there is no such time.
    pub fn key_lifetime(&self) -> Option<Duration> {
        self.key_lifetime_millis.map(Duration::from_millis)
    }

    /// Takes over the settings that are given.
    pub(super) fn set(&mut self, settings: &Settings) {
        if let Some(reserved) = &settings.reserved {
            self.reserved = reserved.iter().map(IpNet::trunc).collect();
        }
        if let Some(rest) = settings.rest {
            self.rest_millis = millis(rest);
        }
        if let Some(ttl) = settings.ephemeral_ttl {
            self.ephemeral_ttl_millis = millis(ttl);
        }
        if let Some(lifetime) = settings.key_lifetime {
            self.key_lifetime_millis = lifetime.map(millis);
        }
    }

    /// What members see of it.
    pub fn record(&self) -> NetworkRecord {
        NetworkRecord {
            id: self.id,
            name: self.name.clone(),
            prefix6: self.prefix6,
            prefix4: self.prefix4,
            controllers: self.controllers.clone(),
        }
    }
}

/// Whether a node that stays away is collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeLifetime {
    /// Stays a member until it leaves or is removed.
    Lasting,
    /// Is removed when it was not seen for the network's time to live.
    Ephemeral,
}

/// The secret of a join token: 32 random bytes. Wiped when dropped and never stored, only its hash is.
#[derive(Clone, ZeroizeOnDrop)]
pub struct TokenSecret(Zeroizing<[u8; 32]>);

impl TokenSecret {
    /// A fresh secret out of the caller's randomness.
    pub fn generate<R: CryptoRng + ?Sized>(rng: &mut R) -> Self {
        let mut bytes = Zeroizing::new([0; 32]);
        rng.fill_bytes(bytes.as_mut());
        Self(bytes)
    }

    /// The secret of these bytes. The caller's copy stays the caller's to wipe.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The secret bytes, wiped when the returned value is dropped.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        self.0.clone()
    }

    /// What is stored in place of the secret: its SHA-256. The secret has 256 bits of entropy, so no slow hash is needed.
    pub fn hash(&self) -> [u8; 32] {
        Sha256::new().chain_update(b"znet join token v1\0").chain_update(*self.0).finalize().into()
    }
}

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSecret(..)")
    }
}

/// A join token as the controller keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Its handle.
    pub id: TokenId,
    /// A name that tooling gave it, so that it can find it again; unique among the tokens that were not revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<Name>,
    /// [`TokenSecret::hash`] of its secret.
    pub secret_hash: [u8; 32],
    /// How often it may be used in all; `None` for any number of times.
    pub max_uses: Option<u32>,
    /// How often it was used.
    pub used: u32,
    /// When it stops being accepted.
    pub expires: Option<Timestamp>,
    /// What becomes of the nodes that join by it.
    pub lifetime: NodeLifetime,
    /// Whether it was revoked.
    pub revoked: bool,
    /// When it was made.
    pub created: Timestamp,
}

/// A node as the controller keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// The node.
    pub id: NodeId,
    /// Its name.
    pub name: Name,
    /// Where its WireGuard port can be reached.
    pub endpoints: Vec<SocketAddr>,
    /// Whether it is collected when it stays away.
    pub lifetime: NodeLifetime,
    /// The token by which it joined.
    pub token: TokenId,
    /// When it joined.
    pub joined: Timestamp,
    /// Whether it said that it can serve, and reach, a container that has two keys.
    #[serde(default)]
    pub two_keys: bool,
}

impl Node {
    /// What members see of it.
    pub fn record(&self) -> NodeRecord {
        NodeRecord { id: self.id, name: self.name.clone(), endpoints: self.endpoints.clone() }
    }
}

/// A container as the controller keeps it. There is no private key in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// What members see of it.
    #[serde(flatten)]
    pub record: ContainerRecord,
    /// When it was attached first.
    pub attached: Timestamp,
    /// When its key came into use; absent while it has the one that it was attached with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keyed: Option<Timestamp>,
}

impl Container {
    /// When its key came into use.
    pub fn keyed(&self) -> Timestamp {
        self.keyed.unwrap_or(self.attached)
    }
}

/// A name and addresses kept for a container that may come and go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// The container's name.
    pub name: Name,
    /// The addresses kept: one of each family that the network has.
    pub addresses: Vec<IpAddr>,
}

/// An access point as the controller keeps it. No private key is in it, neither the person's nor the node's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// What members see of it.
    #[serde(flatten)]
    pub record: AccessRecord,
    /// Where its node serves it; `None` until the node says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub point: Option<AccessPoint>,
    /// When it was made.
    pub created: Timestamp,
}

/// Where a node serves an access point: what the person's device needs to know of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessPoint {
    /// The public key of the node's end.
    pub public_key: PublicKey,
    /// The UDP port of the node's end.
    pub port: u16,
}

/// An address that was released and is not given again before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resting {
    /// The address.
    pub address: IpAddr,
    /// When it may be given again.
    pub until: Timestamp,
}

/// One stored entity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Row {
    /// The network itself.
    Network(NetworkConf),
    /// A join token.
    Token(Token),
    /// A node.
    Node(Node),
    /// A container.
    Container(Container),
    /// A reservation.
    Reservation(Reservation),
    /// An access point.
    Access(Access),
    /// A resting address.
    Resting(Resting),
}

/// The key under which an entity is stored.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RowKey {
    /// The network itself.
    Network,
    /// A join token.
    Token(TokenId),
    /// A node.
    Node(NodeId),
    /// A container.
    Container(ContainerId),
    /// A reservation, by the container's name.
    Reservation(Name),
    /// An access point, by the container as which it is seen.
    Access(ContainerId),
    /// A resting address.
    Resting(IpAddr),
}

impl Row {
    /// The key under which this row is stored.
    pub fn key(&self) -> RowKey {
        match self {
            Self::Network(_) => RowKey::Network,
            Self::Token(token) => RowKey::Token(token.id),
            Self::Node(node) => RowKey::Node(node.id),
            Self::Container(container) => RowKey::Container(container.record.id),
            Self::Reservation(reservation) => RowKey::Reservation(reservation.name.clone()),
            Self::Access(access) => RowKey::Access(access.record.id),
            Self::Resting(resting) => RowKey::Resting(resting.address),
        }
    }
}

/// One step from a state to the next: what a store writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StateChange {
    /// The row is new, or replaces the one under its key.
    Put(Row),
    /// The row under this key is gone.
    Remove(RowKey),
}

impl StateChange {
    /// What the members of the network learn of this step; `None` when it is none of their business.
    pub fn map_change(&self) -> Option<map::Change> {
        match self {
            Self::Put(Row::Network(conf)) => Some(map::Change::Put(Record::Network(conf.record()))),
            Self::Put(Row::Node(node)) => Some(map::Change::Put(Record::Node(node.record()))),
            Self::Put(Row::Container(c)) => Some(map::Change::Put(Record::Container(c.record.clone()))),
            Self::Put(Row::Access(a)) => Some(map::Change::Put(Record::Access(a.record.clone()))),
            Self::Remove(RowKey::Access(id)) => Some(map::Change::Remove(RecordKey::Access(*id))),
            Self::Remove(RowKey::Network) => Some(map::Change::Remove(RecordKey::Network)),
            Self::Remove(RowKey::Node(id)) => Some(map::Change::Remove(RecordKey::Node(*id))),
            Self::Remove(RowKey::Container(id)) => Some(map::Change::Remove(RecordKey::Container(*id))),
            Self::Put(Row::Token(_) | Row::Reservation(_) | Row::Resting(_))
            | Self::Remove(RowKey::Token(_) | RowKey::Reservation(_) | RowKey::Resting(_)) => None,
        }
    }
}
