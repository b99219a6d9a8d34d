//! The node agent of znet: it joins networks, follows their maps, and gives containers their links.
//!
//! What should be is decided by the map and the attachments, what is is asked of the kernel and the engine, and
//! [`reconcile`] leads from one to the other by the plans of `znet_core::plan`. The agent may be killed at any point and
//! started again; its engine moves packets meanwhile.
//!
//! | module | holds |
//! | --- | --- |
//! | [`access`] | access points: people's devices that this node lets in |
//! | [`agent`] | the agent as a whole, and what it knows of each network |
//! | [`contact`] | whether the controller can be asked, and waiting until it can |
//! | [`control`] | the control stream of one network: join, watch, apply, acknowledge |
//! | [`peers`] | what the engine learns when a map changes |
//! | `pairs` | changing the key pairs of containers |
//! | [`attach`] | attaching and detaching containers |
//! | [`lent`] | devices that a runtime moves into its containers by itself |
//! | [`owned`] | attachments on behalf of runtimes: detaching, checking and collecting by owner |
//! | [`reconcile`] | making and carrying out plans |
//! | [`backend`] | what moves the packets: the engine, or the kernel |
//! | [`dns`] | the resolvers of containers |
//! | [`engine`] | the hold on the engine process |
//! | [`host`] | namespaces, links, TUN devices and sockets |
//! | [`files`] | what is kept on disk |
//! | `trust` | where controllers are looked for, and by which keys they are known |
//! | [`local`] | the socket on which runtimes and people talk to the agent |
//! | [`client`] | a client of that socket |
//! | [`cli`] | the command line |

pub mod access;
pub mod agent;
pub mod attach;
pub mod backend;
pub mod cli;
pub mod client;
pub mod contact;
pub mod control;
pub mod dns;
pub mod engine;
pub mod error;
pub mod files;
pub mod host;
pub mod lent;
pub mod local;
pub mod owned;
mod pairs;
pub mod peers;
pub mod reconcile;
mod trust;
