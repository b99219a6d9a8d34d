//! Who acts on a controller, and what they may do.

use std::fmt;
use std::str::FromStr;

use znet_core::id::{NetworkId, NodeId, TokenId};

/// Who asked for a change, as it is written into the audit trail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Actor {
    /// A user of the controller's machine, over the Unix socket.
    Local {
        /// The user's number.
        uid: u32,
    },
    /// The holder of an operator's bearer token.
    Operator(TokenId),
    /// A node's agent.
    Node(NodeId),
    /// The controller on its own account: it collects absent nodes.
    Controller,
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local { uid } => write!(f, "local:{uid}"),
            Self::Operator(id) => write!(f, "operator:{id}"),
            Self::Node(id) => write!(f, "node:{id}"),
            Self::Controller => f.write_str("controller"),
        }
    }
}

/// What an operator may do, within the scope. Each role may do what those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Look.
    Read,
    /// And change what a deployment changes: tokens, containers, reservations.
    Deploy,
    /// And everything else.
    Admin,
}

/// A text that names no role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no role; use admin, deploy or read")]
pub struct UnknownRole(pub String);

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Deploy => "deploy",
            Self::Admin => "admin",
        })
    }
}

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        match text {
            "read" => Ok(Self::Read),
            "deploy" => Ok(Self::Deploy),
            "admin" => Ok(Self::Admin),
            other => Err(UnknownRole(other.to_owned())),
        }
    }
}

/// Where an operator may act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// In every network, and on the controller itself.
    All,
    /// In one network.
    Network(NetworkId),
}

impl Scope {
    /// Whether the network is inside.
    pub fn contains(self, network: NetworkId) -> bool {
        match self {
            Self::All => true,
            Self::Network(only) => only == network,
        }
    }
}
