//! What the end-to-end tests, the demo and the benchmarks share: a deployment of real processes on virtual hosts.
//!
//! A [`World`] is a lab with a switch as its underlay. On its hosts run the programs that users run, out of the same
//! build: [`Controller`] is `znet-ctl serve`, [`Node`] is `znet-agent run`, and [`Member`] is a container that a node
//! attached. Everything is told by command lines, as a user would. A [`Cluster`] has several controllers over etcd instead of one. A
//! [`FleetNode`] is what a node is to its controller and nothing more, so that there can be hundreds.
//!
//! A [`runtime::Runtimes`] makes a host one on which containerd, podman, runc and Docker start containers.
//!
//! A [`Served`] is a controller without a lab, for what comes from strangers and operators. [`wireguard`] is a world of its own: the stand-alone `znet-wg` against other programs.

mod cluster;
mod controller;
mod fleet;
mod laptop;
mod member;
mod node;
mod ping;
mod programs;
pub mod runtime;
mod served;
pub mod wireguard;
mod world;

pub use cluster::Cluster;
pub use controller::{Controller, ControllerOptions, NetworkSpec};
pub use fleet::{Acknowledged, FleetNode, Watcher};
pub use laptop::Laptop;
pub use member::Member;
pub use node::{Node, NodeOptions};
pub use programs::program;
pub use served::Served;
pub use world::{FIRST_PACKET, World};

/// What a test returns: any error, with what led to it.
pub type Result<T = ()> = anyhow::Result<T>;
