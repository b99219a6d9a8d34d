//! The packet logic of one network, without any I/O: time, datagrams and packets are handed in, datagrams go to an
//! [`Underlay`] and packets to the [`Port`] of their device.
//!
//! | file | holds |
//! | --- | --- |
//! | `network` | the tables, their lock, and everything that changes them |
//! | `outbound` | a packet's way out: source check, [`Directory`], session, split, encryption |
//! | `inbound` | a packet's way in: session by receiver index, decryption, check that the address is the peer's, joining |
//! | `handshake`, `gate`, `early` | messages of which it is not known yet whose they are, and what strangers may cost |
//! | `session` | one peer's session: boringtun's `Tunn` and what has to be done around it |
//! | `schedule` | when a session has to be looked at though it is not used |
//! | `directory`, `allowed` | all peers: keys, addresses, endpoints |
//! | `device` | a container's keys, addresses, figures |
//! | `local` | a device's links: the ones in use, and while a key is changed others beside them |
//! | `lane`, `outbox` | the buffers of one thread |

mod allowed;
mod device;
mod directory;
mod early;
mod gate;
mod handshake;
mod inbound;
mod lane;
mod local;
mod network;
mod outbound;
mod outbox;
mod packet;
mod schedule;
mod session;

pub use device::{Device, OwnAddresses, Port};
pub use directory::{Changed, Directory, DirectoryEntry, PeerId, PeerUpdate};
pub use gate::INITIATIONS_PER_SECOND;
pub use inbound::Arrival;
pub use lane::Lane;
pub use network::{MAX_SESSIONS_PER_DEVICE, Network, Underlay};
pub use outbound::Read;
pub use outbox::{MAX_RUN, MAX_SEGMENTS, Outbox, Path, Run};
pub use packet::{Addresses, MAX_PACKET};
pub use session::{Look, PeerState, Received, Session};
