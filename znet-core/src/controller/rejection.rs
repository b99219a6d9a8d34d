//! Why a controller says no. Every variant names what was asked for and what helps.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::id::{NodeId, TokenId};
use crate::key::PublicKey;
use crate::map::{MAX_ENDPOINTS, MAX_LINE};
use crate::name::Name;
use crate::time::Timestamp;

/// Why a command was not carried out. The state is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Rejection {
    /// No token has this secret.
    #[error("no join token of this network has this secret; ask the operator for a new one")]
    UnknownToken,
    /// No token has this handle.
    #[error("there is no token {token} in this network")]
    NoSuchToken {
        /// The handle asked for.
        token: TokenId,
    },
    /// The token's time is over.
    #[error("join token {token} has expired; ask the operator for a new one")]
    ExpiredToken {
        /// The token.
        token: TokenId,
        /// When it expired.
        expired: Timestamp,
    },
    /// The token was used as often as it may be.
    #[error(
        "join token {token} was used {uses} times already, which is all it allows; ask the operator for a new one"
    )]
    UsedUpToken {
        /// The token.
        token: TokenId,
        /// The uses that it allows.
        uses: u32,
    },
    /// The token was revoked.
    #[error("join token {token} was revoked; ask the operator for a new one")]
    RevokedToken {
        /// The token.
        token: TokenId,
    },
    /// Another valid token has this label.
    #[error("token {token} has the label {label} already; revoke that one or choose another label")]
    LabelTaken {
        /// The label.
        label: Name,
        /// The token that has it.
        token: TokenId,
    },
    /// The node is no member.
    #[error("node {node} is no member of this network; it has to join with a token first")]
    UnknownNode {
        /// The node.
        node: NodeId,
    },
    /// Too many endpoints for one node.
    #[error("{got} endpoints were given; a node has at most {MAX_ENDPOINTS}")]
    TooManyEndpoints {
        /// Number given.
        got: usize,
    },
    /// An endpoint to which no other node could send.
    #[error("endpoint {endpoint} cannot be reached from other nodes: {why}")]
    UnusableEndpoint {
        /// The endpoint.
        endpoint: SocketAddr,
        /// What is wrong with it and what would do.
        why: &'static str,
    },
    /// Another node has a container of this name.
    #[error("the name {name} is taken by a container on node {node}; detach that one or choose another name")]
    NameTaken {
        /// The name.
        name: Name,
        /// The node that has it.
        node: Name,
    },
    /// No container has this name.
    #[error("there is no container {name} in this network")]
    UnknownContainer {
        /// The name.
        name: Name,
    },
    /// No access point has this name.
    #[error("there is no access point {name} in this network")]
    UnknownAccess {
        /// The name.
        name: Name,
    },
    /// The node said that it serves an access point at no port.
    #[error("an access point is served at a UDP port, and 0 is none")]
    UnusablePort,
    /// The address is not inside the network's prefixes.
    #[error("address {address} is outside the network's prefixes, which `znet-ctl network show` tells")]
    OutsidePrefix {
        /// The address.
        address: IpAddr,
    },
    /// The address can never be a container's (the prefix's own or its broadcast address).
    #[error("address {address} names the prefix itself and cannot be a container's")]
    UnusableAddress {
        /// The address.
        address: IpAddr,
    },
    /// The address belongs to somebody.
    #[error("address {address} is taken by {holder}")]
    AddressTaken {
        /// The address.
        address: IpAddr,
        /// The container or reservation that has it.
        holder: Name,
    },
    /// The address was released a short while ago.
    #[error("address {address} was released lately and rests until {until}; wait or choose another one")]
    AddressResting {
        /// The address.
        address: IpAddr,
        /// When it may be given again.
        until: Timestamp,
    },
    /// More than one address of a family was asked for.
    #[error("more than one {family} address was asked for; a container has one of each family")]
    TooManyAddresses {
        /// `IPv4` or `IPv6`.
        family: &'static str,
    },
    /// Nothing is left to allocate.
    #[error("prefix {prefix} is exhausted: every address is taken, reserved or rests")]
    Exhausted {
        /// The prefix.
        prefix: IpNet,
    },
    /// Another container uses this public key.
    #[error("the public key is in use by container {holder}; make a pair of its own for each container")]
    KeyTaken {
        /// The container that has it.
        holder: Name,
    },
    /// No session can be made with this public key.
    #[error(
        "the public key {public_key} is no usable Curve25519 key; make a pair with a WireGuard tool, or leave the key out"
    )]
    UnusableKey {
        /// The key given.
        public_key: PublicKey,
    },
    /// Nobody asked for another key of this container.
    #[error("the key of container {name} is not being changed; `znet-ctl key rotate` begins that")]
    NotRotating {
        /// The container.
        name: Name,
    },
    /// A container of which the key is changed has two for a while, and not all members can do with that.
    #[error(
        "no key can be changed, as these nodes cannot do with a container that has two keys meanwhile: {}; upgrade their agents, restart them with --replace-engine (or --backend engine, where the kernel moves the packets), or remove the nodes",
        listed(.nodes)
    )]
    OneKeyOnly {
        /// The nodes, some of them if they are many.
        nodes: Vec<Name>,
    },
    /// Pairs would be changed all the time.
    #[error("a key lifetime of {} s is too short; the shortest is {} s", .got.as_secs(), .least.as_secs())]
    LifetimeTooShort {
        /// What was asked for.
        got: std::time::Duration,
        /// The shortest.
        least: std::time::Duration,
    },
    /// More containers were named than one request may.
    #[error("{got} containers were named, at most {most} can be at once; name a node, or all")]
    TooManyNamed {
        /// Number given.
        got: usize,
        /// The bound.
        most: usize,
    },
    /// Two prefixes or ranges of one network overlap.
    #[error("{first} and {second} overlap; the prefixes of one network must not")]
    OverlappingPrefixes {
        /// One of them.
        first: IpNet,
        /// The other.
        second: IpNet,
    },
    /// More prefixes of a family than a network has.
    #[error("more than one {family} prefix was asked for; a network has one of each family")]
    TooManyPrefixes {
        /// `IPv4` or `IPv6`.
        family: &'static str,
    },
    /// The prefix has no room for containers or is not for private use.
    #[error("prefix {prefix} cannot be a network's: {why}")]
    UnusablePrefix {
        /// The prefix.
        prefix: IpNet,
        /// What is wrong with it and what would do.
        why: &'static str,
    },
    /// A reserved range is not inside the network's prefixes.
    #[error("reserved range {range} is outside the network's prefixes")]
    ReservedOutside {
        /// The range.
        range: IpNet,
    },
    /// No agent could connect there.
    #[error("{address:?} is not HOST:PORT, which agents connect to, such as ctl.example.net:7443")]
    UnusableController {
        /// The text given.
        address: String,
    },
    /// The statement is not by the network's present key.
    #[error("the network's signing key was changed meanwhile; look at `znet-ctl network show` and ask again")]
    StaleKey,
    /// More statements than agents follow.
    #[error(
        "{MAX_LINE} signing keys have followed each other, which is all that agents follow; give the earlier ones up with `znet-ctl network rotate-key NETWORK --retire`"
    )]
    LongLine,
    /// A bound of the controller was reached.
    #[error("this network has {bound} {what} already, which is its bound")]
    Full {
        /// What there are too many of.
        what: &'static str,
        /// The bound.
        bound: usize,
    },
}

fn listed(names: &[Name]) -> String {
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl Rejection {
    /// A stable machine-readable code: lower case words with underscores.
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnknownToken => "unknown_token",
            Self::NoSuchToken { .. } => "no_such_token",
            Self::ExpiredToken { .. } => "expired_token",
            Self::UsedUpToken { .. } => "used_up_token",
            Self::RevokedToken { .. } => "revoked_token",
            Self::LabelTaken { .. } => "label_taken",
            Self::UnknownNode { .. } => "unknown_node",
            Self::TooManyEndpoints { .. } => "too_many_endpoints",
            Self::UnusableEndpoint { .. } => "unusable_endpoint",
            Self::NameTaken { .. } => "name_taken",
            Self::UnknownContainer { .. } => "unknown_container",
            Self::UnknownAccess { .. } => "unknown_access",
            Self::UnusablePort => "unusable_port",
            Self::OutsidePrefix { .. } => "outside_prefix",
            Self::UnusableAddress { .. } => "unusable_address",
            Self::AddressTaken { .. } => "address_taken",
            Self::AddressResting { .. } => "address_resting",
            Self::TooManyAddresses { .. } => "too_many_addresses",
            Self::Exhausted { .. } => "exhausted",
            Self::KeyTaken { .. } => "key_taken",
            Self::UnusableKey { .. } => "unusable_key",
            Self::NotRotating { .. } => "not_rotating",
            Self::OneKeyOnly { .. } => "one_key_only",
            Self::LifetimeTooShort { .. } => "lifetime_too_short",
            Self::TooManyNamed { .. } => "too_many_named",
            Self::OverlappingPrefixes { .. } => "overlapping_prefixes",
            Self::TooManyPrefixes { .. } => "too_many_prefixes",
            Self::UnusablePrefix { .. } => "unusable_prefix",
            Self::ReservedOutside { .. } => "reserved_outside",
            Self::UnusableController { .. } => "unusable_controller",
            Self::StaleKey => "stale_key",
            Self::LongLine => "long_line",
            Self::Full { .. } => "full",
        }
    }
}
