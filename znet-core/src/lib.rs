//! The rules of znet, and nothing else.
//!
//! This crate decides; others do. It knows what a network, a node, a container and a map are, which commands a
//! controller accepts, which maps an agent believes and which steps lead a host from what it is to what it should
//! be. It performs no I/O, reads no clock and draws no randomness of its own: callers hand all three in, so that
//! every rule can be replayed, simulated and property-tested. It must never learn of sockets, stores or wire formats.
//!
//! | module | holds |
//! | --- | --- |
//! | [`key`] | WireGuard keys and the network's signing keys |
//! | [`id`] | typed identifiers and revisions |
//! | [`name`] | names that are DNS labels |
//! | [`time`] | wall-clock instants handed in by callers |
//! | [`addr`] | prefixes, address pairs, the allocator |
//! | [`map`] | records, maps, deltas, digests, signed heads, the agent's [`map::Member`] |
//! | [`controller`] | `command + state -> changes + reply` |
//! | [`feed`] | what leads a member's stream on from where it stands |
//! | [`pair`] | which pairs a container's device should have |
//! | [`plan`] | `desired + observed -> plan` for a node agent |

pub mod addr;
pub mod controller;
pub mod feed;
pub mod id;
pub mod key;
pub mod map;
pub mod name;
pub mod pair;
pub mod plan;
pub mod time;
