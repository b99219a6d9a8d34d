//! What is said on the agent's local socket about containers, and a client of it that needs no runtime.
//!
//! The agent and the programs that runtimes start beside it share these types, so that neither guesses what the other
//! means. A program that a runtime starts for every container has to start fast and be small: nothing comes in here that
//! needs an asynchronous runtime, TLS or the network's cryptography. What only the agent's own command line says on the
//! socket is in the agent.

mod client;
mod owner;
mod types;

pub use client::{Client, ClientError, Refusal};
pub use owner::Owner;
pub use types::{
    AttachRequest, AttachedContainer, CheckRequest, Checked, CollectRequest, Collected, DetachOwnedRequest,
    DetachRequest, Detached, DnsConfig, HandOverRequest, Kept, LendRequest, Readiness, ReadyRequest,
};

/// Where the agent's sockets are unless it is said otherwise.
pub const RUN_DIR: &str = "/run/znet-agent";
/// The name of the socket in the agent's run directory.
pub const SOCKET: &str = "agent.sock";
