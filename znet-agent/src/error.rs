//! Why the agent did not do what it was asked to.

use std::net::IpAddr;
use std::path::PathBuf;

use znet_api::agent_client::ConnectError;
use znet_api::error::Problem;
use znet_api::token::TokenError;
use znet_core::name::Name;
use znet_local::Owner;
use znet_wg::control::EngineError;
use znet_wg::engine::SpawnError;

use crate::backend::kernel::wg::WgError;
use crate::host::netns::NetnsError;
use crate::host::socket::SocketError;
use znet_wg::io::tun::TunError;

/// Why the agent did not do what it was asked to. Nothing is left half done.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The controller refused.
    #[error("{0}")]
    Controller(Problem),
    /// The controller is away.
    #[error(
        "the controller of network {network} cannot be reached now: {why}; existing links go on, try again later"
    )]
    ControllerAway {
        /// The network.
        network: Name,
        /// What happened.
        why: String,
    },
    /// It is no member of this network.
    #[error("this node is no member of a network {network}; join it with `znet-agent run --join TOKEN`")]
    UnknownNetwork {
        /// The name given.
        network: String,
    },
    /// The container is attached with another namespace or interface.
    #[error(
        "container {name} is attached already, to {netns} as {ifname}; detach it first or choose another name"
    )]
    AttachedElsewhere {
        /// The container.
        name: Name,
        /// Its namespace.
        netns: PathBuf,
        /// Its interface.
        ifname: String,
    },
    /// The controller gave it an address of a container that it has removed, of which this node has not heard yet.
    #[error(
        "{address} was {holder}'s, which the controller has removed while this node was not told; try again when \
         `znet-agent status` shows the network as connected"
    )]
    Behind {
        /// The address.
        address: IpAddr,
        /// The container that is still here.
        holder: Name,
    },
    /// Its owner has attached it already.
    #[error("container {name} is attached already on behalf of {owner}; detach it first")]
    OwnedAlready {
        /// The owner.
        owner: Box<Owner>,
        /// The container.
        name: Name,
    },
    /// Nothing is attached on behalf of this owner.
    #[error("nothing is attached on behalf of {owner}")]
    UnknownOwner {
        /// The owner.
        owner: Box<Owner>,
    },
    /// The namespace is another container's.
    #[error("the network namespace {netns} belongs to another container, which {owner} attached as {name}")]
    NetnsInUse {
        /// The path given.
        netns: PathBuf,
        /// The other container.
        name: Name,
        /// Its owner.
        owner: Box<Owner>,
    },
    /// The name is an access point's.
    #[error(
        "{name} is an access point of the network; choose another name, or have an operator revoke it first"
    )]
    AccessPoint {
        /// The name.
        name: Name,
    },
    /// The interface's name cannot be one.
    #[error("{name:?} is no name for an interface: use 1 to 15 characters without / and white space")]
    Ifname {
        /// The name given.
        name: String,
    },
    /// The join token is none.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Another agent works on the same state.
    #[error(
        "another agent (process {pid}) uses {dir} already; stop it, or give this one a --state-dir of its own"
    )]
    Busy {
        /// The directory.
        dir: PathBuf,
        /// Its process.
        pid: String,
    },
    /// Something given is malformed.
    #[error("{0}")]
    Invalid(String),
    /// A namespace.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// A device of the kernel's WireGuard.
    #[error(transparent)]
    Wg(#[from] WgError),
    /// Something else of the operating system.
    #[error("{doing}: {source}")]
    Host {
        /// What was tried.
        doing: &'static str,
        /// What it said.
        source: std::io::Error,
    },
    /// A TUN device.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// A socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The engine could not be started.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// The controller could not be connected to.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A file of the agent.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// Not all live agents applied the change in time.
    #[error("not every live node has applied the change within the time allowed; still behind: {}", lagging.join(", "))]
    NotApplied {
        /// The nodes that are behind.
        lagging: Vec<String>,
    },
}

impl AgentError {
    /// The error as a problem of the local API: HTTP status and a stable code.
    pub fn problem(&self) -> Problem {
        let (status, code) = match self {
            Self::Controller(problem) => return problem.clone(),
            Self::Connect(ConnectError::PinMismatch { .. }) => (403, "pin_mismatch"),
            Self::ControllerAway { .. } | Self::Connect(_) => (503, "controller_away"),
            Self::UnknownNetwork { .. } => (404, "unknown_network"),
            Self::AttachedElsewhere { .. } => (409, "attached_elsewhere"),
            Self::Behind { .. } => (503, "behind"),
            Self::OwnedAlready { .. } => (409, "owned_already"),
            Self::UnknownOwner { .. } => (404, "unknown_owner"),
            Self::NetnsInUse { .. } => (409, "netns_in_use"),
            Self::AccessPoint { .. } => (409, "access_point"),
            Self::Ifname { .. } => (422, "invalid_ifname"),
            Self::Token(_) => (422, "invalid_token"),
            Self::Busy { .. } => (409, "busy"),
            Self::Invalid(_) => (400, "invalid_argument"),
            Self::Netns(NetnsError::Missing { .. }) => (404, "netns_missing"),
            Self::Netns(NetnsError::NotANamespace { .. }) => (422, "not_a_namespace"),
            Self::Netns(NetnsError::Host { .. }) => (422, "host_namespace"),
            Self::Netns(NetnsError::NameTaken { .. }) => (409, "ifname_taken"),
            Self::Tun(TunError::NotPermitted(_)) => (403, "not_permitted"),
            Self::Tun(TunError::NoDevice(_)) => (500, "no_tun"),
            Self::NotApplied { .. } => (504, "not_applied"),
            Self::Netns(_)
            | Self::Wg(_)
            | Self::Host { .. }
            | Self::Tun(_)
            | Self::Socket(_)
            | Self::Engine(_)
            | Self::Spawn(_)
            | Self::File { .. } => (500, "host"),
        };
        Problem::new(status, code, self)
    }
}
