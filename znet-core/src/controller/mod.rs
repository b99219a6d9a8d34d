//! The controller of one network as a pure function: `command + state -> changes + reply`.
//!
//! [`Network::decide`] looks at the state, the command, the time and the randomness it is handed and answers with a
//! [`Decision`] or a [`Rejection`]; it changes nothing. Whoever owns the store commits the decision's changes under
//! the next revision and only then calls [`Network::apply`] and sends the reply. So what was acknowledged is in the
//! store, and a state can always be rebuilt from the rows that were committed.

mod access;
mod command;
mod decide;
mod elsewhere;
pub mod liveness;
mod membership;
mod network;
mod rejection;
mod rotation;
mod rows;
mod trust;

pub use access::MAX_ACCESSES;
pub use command::{Command, NewNetwork, Reply, Rotate, Settings};
pub use decide::Decision;
pub use elsewhere::Elsewhere;
pub use network::{Corrupt, MAX_CONTAINERS, MAX_NODES, MAX_RESERVATIONS, MAX_TOKENS, Network};
pub use rejection::Rejection;
pub use rotation::{
    AWAY_PATIENCE, MAX_NAMED, MAX_ROTATIONS, MIN_KEY_LIFETIME, MemberView, OTHERS_HEAR_WITHIN, Rotations,
    SETTLE_AFTER,
};
pub use rows::{
    Access, AccessPoint, Container, DEFAULT_EPHEMERAL_TTL, DEFAULT_REST, NetworkConf, Node, NodeLifetime,
    Reservation, Resting, Row, RowKey, Signing, StateChange, Succeeded, Token, TokenSecret,
};
