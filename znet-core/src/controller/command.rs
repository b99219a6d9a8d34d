//! What a controller can be told to do, and what it answers.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use ipnet::IpNet;

use super::rows::{Access, AccessPoint, NodeLifetime, Reservation, TokenSecret};
use crate::id::{ContainerId, NodeId, Pin, TokenId};
use crate::key::{PrivateKey, PublicKey};
use crate::map::{ContainerRecord, Succession};
use crate::name::Name;
use crate::time::Timestamp;

/// What an operator says when a network is created; `Network::create` turns it into the first decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewNetwork {
    /// Its name, unique at the controller.
    pub name: Name,
    /// Prefixes asked for: at most one IPv6 (a ULA /48 is drawn when there is none) and at most one IPv4.
    pub prefixes: Vec<IpNet>,
    /// What may change later.
    pub settings: Settings,
}

/// The settings of a network that may change while it lives. What is `None` stays as it is, or as the default is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Ranges inside the prefixes out of which nothing is allocated unless asked for by address; none by default.
    pub reserved: Option<Vec<IpNet>>,
    /// How long a released address rests before it is given again.
    pub rest: Option<Duration>,
    /// How long an ephemeral node may stay away before it is collected.
    pub ephemeral_ttl: Option<Duration>,
    /// For how long a container's pair is used; the inner `None` for ever, which is the default.
    pub key_lifetime: Option<Option<Duration>>,
}

/// One thing to decide.
#[derive(Clone, Debug)]
pub enum Command {
    /// Makes a join token.
    CreateToken {
        /// A name by which tooling finds it again.
        label: Option<Name>,
        /// How often it can be used; `None` for any number of times.
        uses: Option<u32>,
        /// When it stops being accepted; `None` for never.
        expires: Option<Timestamp>,
        /// Whether nodes that join by it are collected when they stay away.
        lifetime: NodeLifetime,
    },
    /// Makes a join token invalid from now on.
    RevokeToken {
        /// The token.
        token: TokenId,
        /// Whether the nodes that joined by it are removed with all their containers; else they stay.
        with_nodes: bool,
    },
    /// Removes join tokens that admit nobody any more. Valid ones in the list are left alone.
    RemoveTokens {
        /// The tokens.
        tokens: Vec<TokenId>,
    },
    /// Admits a node, or confirms one that is admitted already (then the token's uses are not touched).
    Join {
        /// The secret that the token carries; `None` from a node that only resumes its membership.
        secret: Option<TokenSecret>,
        /// The node, by its own key.
        node: NodeId,
        /// The name it asks for; when another node has it, a number is appended.
        name: Name,
        /// Where its WireGuard port can be reached.
        endpoints: Vec<SocketAddr>,
        /// Whether it can serve, and reach, a container that has two keys.
        two_keys: bool,
    },
    /// Tells where a node's WireGuard port can be reached now.
    SetEndpoints {
        /// The node.
        node: NodeId,
        /// All of its endpoints, best first.
        endpoints: Vec<SocketAddr>,
    },
    /// Gives a container its addresses and keys. Repeated by the same node for the same name it is idempotent, but
    /// for the key pair: a private key that was handed out is not stored, so without `public_key` a new pair is made.
    Attach {
        /// The node on which the container runs.
        node: NodeId,
        /// The container's name.
        name: Name,
        /// Explicit addresses, at most one of each family; the others are allocated.
        addresses: Vec<IpAddr>,
        /// The public half of a pair that the node made; `None` lets the controller make the pair.
        public_key: Option<PublicKey>,
        /// The UDP port at which the container is reached, if it has one of its own instead of sharing its node's.
        port: Option<NonZeroU16>,
    },
    /// Takes a container's addresses and keys back. Of a name that the node does not have it is a no-op.
    Detach {
        /// The node on which the container runs.
        node: NodeId,
        /// The container's name.
        name: Name,
    },
    /// Removes a node with all its containers; it needs a token to come back.
    RemoveNode {
        /// The node.
        node: NodeId,
    },
    /// Removes a container wherever it runs.
    RemoveContainer {
        /// The container's name.
        name: Name,
    },
    /// Keeps a name and addresses for a container that will be attached later; replaces an earlier reservation of
    /// the name. Missing addresses are allocated.
    Reserve {
        /// The container's name.
        name: Name,
        /// Explicit addresses, at most one of each family.
        addresses: Vec<IpAddr>,
    },
    /// Gives a reservation up. Of a name that is not reserved it is a no-op.
    Unreserve {
        /// The container's name.
        name: Name,
    },
    /// Has the pairs of containers changed. Of one whose pair is being changed already it is a no-op.
    RotateKeys {
        /// Of which.
        which: Rotate,
    },
    /// A node made a new pair for a container whose pair is to be changed.
    OfferKey {
        /// The node on which the container runs.
        node: NodeId,
        /// The container's name.
        name: Name,
        /// The public half.
        public_key: PublicKey,
    },
    /// Leads changes of pairs on: the caller knows what every member has applied. Those in the lists that are at another
    /// stage meanwhile are left alone.
    AdvanceKeys {
        /// The pairs of these are to be changed.
        ask: Vec<ContainerId>,
        /// All know the next key of these: it comes into use now.
        promote: Vec<(ContainerId, PublicKey)>,
        /// Nobody needs the former key of these any more.
        settle: Vec<(ContainerId, PublicKey)>,
    },
    /// Lets a person's device into the network through a node, as a container of this name. Repeated for the same node
    /// and key it is idempotent.
    CreateAccess {
        /// The name as which the others see the device.
        name: Name,
        /// The node through which it comes.
        node: NodeId,
        /// The device's own public key.
        public_key: PublicKey,
        /// Explicit addresses, at most one of each family; the others are allocated.
        addresses: Vec<IpAddr>,
    },
    /// Tells where a node serves an access point.
    OfferAccess {
        /// The node.
        node: NodeId,
        /// The access point's name.
        name: Name,
        /// Where it is.
        point: AccessPoint,
    },
    /// Takes an access point away, and with it the container as which it was seen.
    RevokeAccess {
        /// Its name.
        name: Name,
    },
    /// Changes settings of the network.
    Configure(Settings),
    /// Changes where members look for the network's controllers. All of them are known by the same keys, so whoever changes
    /// the list says which those are now; an empty list stays empty.
    ChangeControllers {
        /// Addresses to add at the end, or with `only` the whole list.
        add: Vec<String>,
        /// Addresses to take out.
        remove: Vec<String>,
        /// Whether all others are taken out.
        only: bool,
        /// The pins of the controllers' TLS keys, the one to ask for first.
        pins: Vec<Pin>,
    },
    /// Puts another signing key in the place of the present one, which says so itself.
    RotateKey {
        /// What it says.
        statement: Box<Succession>,
    },
    /// Gives up the statements that lead from earlier signing keys: whoever believes one of those needs a new token.
    RetireKeys,
    /// Removes ephemeral nodes that stayed away beyond their time. The caller knows who was seen when; lasting nodes
    /// in the list are left alone.
    Collect {
        /// Nodes not seen for the network's time to live.
        absent: Vec<NodeId>,
    },
    /// Starts a new epoch, so that agents accept a history that was restored from a backup.
    NewEpoch,
}

/// The containers whose pairs are to be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rotate {
    /// These, at most [`MAX_NAMED`](super::MAX_NAMED).
    Named(Vec<Name>),
    /// All of a node.
    Node(NodeId),
    /// All of the network: at once as many as [`MAX_ROTATIONS`](super::MAX_ROTATIONS), then the others by and by.
    All,
}

/// What a controller answers.
#[derive(Debug)]
pub enum Reply {
    /// It is done, or was so already.
    Done,
    /// A token was made. The secret is shown this once; only its hash is stored.
    Token {
        /// The token's handle.
        id: TokenId,
        /// What the joining node has to present.
        secret: TokenSecret,
    },
    /// The node is a member.
    Joined {
        /// The name that it got.
        name: Name,
    },
    /// The container is a member.
    Attached {
        /// Its record in the map.
        container: ContainerRecord,
        /// The private half, if the controller made the pair.
        private_key: Option<PrivateKey>,
    },
    /// What is kept for the name.
    Reserved(Reservation),
    /// The pairs of these containers are to be changed, or are being changed already.
    Rotating {
        /// Their names; empty where all of the network are.
        containers: Vec<Name>,
    },
    /// The access point.
    Access(Access),
    /// The containers that went away.
    Removed {
        /// Their identifiers.
        containers: Vec<ContainerId>,
        /// Number of nodes that went away.
        nodes: usize,
    },
}
