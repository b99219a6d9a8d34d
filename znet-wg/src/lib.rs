//! The engine of znet: WireGuard in user space, on the Noise implementation of boringtun.
//!
//! One engine process serves all containers of a node. It was handed its TUN devices and UDP sockets by the agent,
//! gave up every privilege, and outlives the agent. It knows keys, addresses and endpoints; it knows nothing of
//! controllers, maps or namespaces.
//!
//! | module | holds |
//! | --- | --- |
//! | [`control`] | what an agent tells an engine, and the agent's client |
//! | [`net`] | the packet logic of one network, without any I/O: directory, devices, sessions |
//! | [`offload`] | big packets of one flow: cut up on their way out, joined on their way in |
//! | [`io`] | the system calls that move packets: TUN devices, UDP sockets |
//! | [`plane`] | the threads that move packets |
//! | [`knock`] | whose an initiation is, for who hears it without being the one to answer |
//! | [`uapi`] | the cross-platform configuration protocol in full: its text, and the socket that `wg(8)` looks for |
//! | [`standalone`] | a device of its own, `znet-wg NAME`: what it takes beside a data plane to be a program |
//! | [`engine`] | the process that an agent starts: control connection, `wg(8)`'s socket |
//! | [`sandbox`] | privileges and system calls, given up before the first byte of a stranger is read |

pub mod control;
pub mod engine;
pub mod io;
pub mod knock;
pub mod net;
pub mod offload;
pub mod plane;
pub mod sandbox;
pub mod standalone;
pub mod uapi;
