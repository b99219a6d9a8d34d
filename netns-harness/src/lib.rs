//! Virtual hosts for tests, the demo and benchmarks: network namespaces joined by virtual cables.
//!
//! A [`Lab`] owns everything it makes. Each [`Host`] is a network, mount and host-name namespace of its own with a private
//! `/run`; a [`Switch`] is a bridge in a namespace of its own, so that nothing ever appears in the machine's own network;
//! a [`Port`] says how a host is plugged into a switch, with MTU, loss and delay; a [`Container`] is one more network
//! namespace on a host. Programs run on hosts and in containers by [`HostCommand`], and what runs on is a [`Process`].
//!
//! When a lab is dropped all its processes are killed and its namespaces end. Unless [`Lab::passed`] was said before, that
//! was a failure: logs and captures stay, and the end of each log is printed. What a killed owner leaves behind is
//! removed by the next lab on the machine, or by `netns-harness sweep`; labs of living owners are left alone.
//!
//! | module | holds |
//! | --- | --- |
//! | `lab` | the lab: making things, taking all of it down |
//! | `host` | hosts and containers |
//! | `switch` | switches, ports, cables |
//! | `impair` | loss and delay |
//! | `nat` | NAT routers |
//! | `command` | running programs, and processes with their logs |
//! | `capture` | packet captures |
//! | [`probe`] | waiting for something to become true |
//! | `owner`, `census`, `sweep` | who owns which lab, who lives in it, removing the dead ones |
//! | `sys`, `tap` | system calls |

mod capture;
mod census;
mod command;
mod error;
mod host;
mod impair;
mod lab;
mod nat;
mod owner;
pub mod probe;
mod spawner;
mod sweep;
mod switch;
mod sys;
mod tap;

pub use capture::Capture;
pub use command::{HostCommand, Output, Process};
pub use error::{LabError, Result};
pub use host::{Container, Host};
pub use lab::{Lab, require_root};
pub use nat::NatKind;
pub use nix::sys::signal::Signal;
pub use owner::LabRecord;
pub use sweep::{Swept, list, sweep};
pub use switch::{Port, Switch};
