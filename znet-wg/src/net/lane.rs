//! What one thread needs to move packets: buffers that are used again for every batch.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::device::Device;
use super::directory::PeerId;
use super::outbox::Outbox;
use crate::offload::Coalescer;
use std::net::SocketAddr;

/// Room for the packets out of several aggregates of 64 KiB.
const ARENA: usize = 192 << 10;

/// Packets for one device that lie in the arena.
pub(super) struct Delivery {
    pub(super) device: Arc<Device>,
    pub(super) packets: Range<usize>,
    pub(super) bytes: u64,
}

/// What one thread needs to move packets.
pub struct Lane {
    /// What is to be sent.
    pub(super) outbox: Outbox,
    /// Packets that came out of tunnels.
    pub(super) arena: Box<[u8]>,
    pub(super) filled: usize,
    /// Where each of them lies in the arena.
    pub(super) packets: Vec<Range<usize>>,
    pub(super) deliveries: Vec<Delivery>,
    pub(super) coalescer: Coalescer,
    /// Looks at sessions that are to be scheduled.
    pub(super) due: Vec<(Instant, u32)>,
    /// From where peers proved themselves, when that is news, and the receiver index of the session by which they did.
    pub(super) learned: Vec<(PeerId, SocketAddr, u32)>,
}

impl Default for Lane {
    fn default() -> Self {
        Self {
            outbox: Outbox::default(),
            arena: vec![0; ARENA].into_boxed_slice(),
            filled: 0,
            packets: Vec::new(),
            deliveries: Vec::new(),
            coalescer: Coalescer::default(),
            due: Vec::new(),
            learned: Vec::new(),
        }
    }
}
