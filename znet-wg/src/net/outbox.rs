//! Datagrams that wait to be sent: sealed straight into one buffer, in runs that the kernel takes by one call each.
//!
//! Datagrams of one destination that have the same length (the last may be shorter) lie behind each other, which is what
//! `UDP_SEGMENT` (udp(7)) asks for.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

/// Most datagrams in a run: the kernel's own bound before Linux 6.1 (UDP_MAX_SEGMENTS).
pub const MAX_SEGMENTS: usize = 64;
/// Most bytes in a run: what one IPv4 datagram can carry.
pub const MAX_RUN: usize = 65_507;
/// Room for what one read of a TUN device becomes, several times over.
const CAPACITY: usize = 256 << 10;

/// The way of a datagram on the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// Where it goes to, or came from: an endpoint of a peer.
    pub remote: SocketAddr,
    /// The address of this host that it leaves from, or came to; without it, the kernel chooses. A peer that asked at one
    /// address of several is answered from there, as another would not pass its NAT.
    pub local: Option<IpAddr>,
}

impl Path {
    /// To an endpoint, from whatever address the kernel chooses.
    pub fn to(remote: SocketAddr) -> Self {
        Self { remote, local: None }
    }
}

/// Datagrams on one path, all of one length but for the last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where they go.
    pub path: Path,
    /// The type of service, or traffic class, of the outer header.
    pub tos: u8,
    /// The length of each but the last, in bytes.
    pub size: usize,
    /// How many there are.
    pub count: usize,
    range: Range<usize>,
    /// A shorter datagram was the last.
    closed: bool,
}

/// Datagrams that wait to be sent.
pub struct Outbox {
    buffer: Box<[u8]>,
    used: usize,
    runs: Vec<Run>,
}

impl Default for Outbox {
    fn default() -> Self {
        Self { buffer: vec![0; CAPACITY].into_boxed_slice(), used: 0, runs: Vec::new() }
    }
}

impl Outbox {
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Bytes that are free.
    pub fn free(&self) -> usize {
        self.buffer.len() - self.used
    }

    /// Where the next datagram is written, before [`Self::push`].
    pub fn room(&mut self) -> &mut [u8] {
        self.buffer.get_mut(self.used..).unwrap_or_default()
    }

    /// The first `len` bytes of [`Self::room`] are a datagram.
    pub fn push(&mut self, path: Path, tos: u8, len: usize) {
        let end = self.used + len;
        if end > self.buffer.len() {
            return;
        }
        match self.runs.last_mut() {
            Some(run) if run.takes(path, tos, len) => {
                run.count += 1;
                run.closed = len < run.size;
                run.range.end = end;
            }
            _ => self.runs.push(Run { path, tos, size: len, count: 1, range: self.used..end, closed: false }),
        }
        self.used = end;
    }

    /// The runs and their bytes, in order.
    pub fn runs(&self) -> impl Iterator<Item = (&Run, &[u8])> {
        self.runs.iter().map(|run| (run, self.buffer.get(run.range.clone()).unwrap_or_default()))
    }

    /// The datagrams, in order.
    pub fn datagrams(&self) -> impl Iterator<Item = (SocketAddr, &[u8])> {
        self.runs().flat_map(|(run, bytes)| {
            bytes.chunks(run.size.max(1)).map(|datagram| (run.path.remote, datagram))
        })
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.used = 0;
        self.runs.clear();
    }
}

impl Run {
    /// One datagram alone.
    pub fn single(path: Path, tos: u8, len: usize) -> Self {
        Self { path, tos, size: len, count: 1, range: 0..len, closed: true }
    }

    fn takes(&self, path: Path, tos: u8, len: usize) -> bool {
        !self.closed
            && self.path == path
            && self.tos == tos
            && len <= self.size
            && self.count < MAX_SEGMENTS
            && self.range.len() + len <= MAX_RUN
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn runs_are_what_the_kernel_takes_and_hold_every_datagram_in_order(
            datagrams in proptest::collection::vec((0u16..3, 0u8..2, prop_oneof![1usize..4, Just(1_452), Just(9_000)]), 0..200)
        ) {
            let mut outbox = Outbox::default();
            let mut pushed = Vec::new();
            for (number, (port, tos, len)) in datagrams.into_iter().enumerate() {
                if outbox.free() < len {
                    break;
                }
                let to = SocketAddr::from(([192, 0, 2, 1], port));
                outbox.room()[..len].fill(number as u8);
                outbox.push(Path::to(to), tos, len);
                pushed.push((to, vec![number as u8; len]));
            }
            for (run, bytes) in outbox.runs() {
                prop_assert!(run.count <= MAX_SEGMENTS && bytes.len() <= MAX_RUN.max(run.size));
                prop_assert_eq!(bytes.len().div_ceil(run.size), run.count);
            }
            let held: Vec<_> = outbox.datagrams().map(|(to, bytes)| (to, bytes.to_vec())).collect();
            prop_assert_eq!(held, pushed);
        }
    }
}
