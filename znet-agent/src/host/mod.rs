//! What the agent does to its machine: namespaces, links, TUN devices, sockets. Each verb sets a whole state and is
//! harmless to repeat. Nothing here decides anything, and no other program is started.

pub mod link;
pub mod netns;
pub mod packet;
pub mod socket;
pub mod wireguard;
