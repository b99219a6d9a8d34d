//! The controller of znet and the operator's command line.
//!
//! The controller hosts any number of networks. Each has a task of its own ([`network`]) that decides commands on the
//! state in memory, commits them through a [`store::Store`] and only then answers and publishes. Around the tasks
//! stand two doors: gRPC for agents ([`grpc`]) and REST for operators ([`rest`]), on one TLS port.
//!
//! | module | holds |
//! | --- | --- |
//! | [`actor`] | who acts, and what they may do |
//! | [`cli`] | the command line |
//! | [`clock`] | the time, as a value |
//! | [`store`] | what must survive: SQLite, and in memory for tests |
//! | [`identities`] | the TLS keys, while one takes the place of another |
//! | [`keys`] | the data directory: its lock and its keys |
//! | [`network`] | one network's task, its streams and its supervisor |
//! | [`hub`] | all networks of a controller |
//! | [`grpc`] | the agents' door |
//! | [`rest`] | the operators' door |
//! | [`backup`] | copies of everything, and the way back |
//! | [`metrics`] | counters for Prometheus |
//! | [`timely`] | bodies that have to come within a time |
//! | [`serve`] | the process: sockets, signals, draining |

pub mod actor;
pub mod backup;
pub mod cli;
pub mod clock;
pub mod grpc;
pub mod hub;
pub mod identities;
pub mod keyring;
pub mod keys;
pub mod metrics;
pub mod migrate;
pub mod network;
pub mod rest;
pub mod serve;
pub mod store;
pub mod timely;
