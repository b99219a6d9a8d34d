//! What waits in a TUN queue: how long it waits, and who goes first.
//!
//! A TUN queue holds packets by number, and 64 KiB count as one, so a TCP stream that is faster than the tunnel would keep
//! many megabytes waiting, which costs every other packet milliseconds and the processor its caches. So all that waits is read at
//! once; flows that have little in it go first, as in fq_codel (RFC 8290); and if packets have waited too long for some time,
//! one is marked or dropped now and then, as in CoDel (RFC 8289), until their senders slow down.

use std::time::{Duration, Instant};

use crate::net::Read;

/// How long packets may wait (CoDel's target). The RFC's five milliseconds are for links; this is a processor.
const TARGET: Duration = Duration::from_millis(1);
/// For how long they may wait longer before something is done (CoDel's interval): some round trips between neighbours.
const INTERVAL: Duration = Duration::from_millis(20);
/// What is no more than this is no queue, however long the processor had other things to do, in bytes.
const STANDING: usize = 64 << 10;
/// A flow with no more bytes than this in what waits goes first.
const SPARSE: usize = 4_096;
/// Classes that flows are sorted into; two flows in one class share a fate, and keep their order.
const CLASSES: usize = 64;

/// How long packets of one TUN queue wait, as CoDel looks at it: in the queue, and then for those before them.
#[derive(Debug)]
pub(super) struct Backlog {
    /// Since when what is read now may have waited.
    since: Instant,
    /// When nothing waited any more.
    empty_at: Instant,
    /// When something will be done, as packets wait too long now.
    act_at: Option<Instant>,
    /// Marks and drops since waits became too long.
    acts: u32,
    act_next: bool,
}

impl Backlog {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, empty_at: now, act_at: None, acts: 0, act_next: false }
    }

    /// A read of all that waits begins; none of it came before `earliest`, when the worker last looked.
    pub(super) fn begin(&mut self, earliest: Instant) {
        self.since = self.empty_at.max(earliest);
    }

    /// Whether one of the packets that were read, so many bytes, is to be marked or dropped. What comes once the queue
    /// is gone does not pay for it.
    pub(super) fn acts_on(&mut self, bytes: usize) -> bool {
        std::mem::take(&mut self.act_next) && bytes >= STANDING
    }

    /// Everything that waited was read.
    pub(super) fn emptied(&mut self, now: Instant) {
        self.empty_at = now;
    }

    /// Everything that was read, so many bytes, is sent.
    pub(super) fn done(&mut self, bytes: usize, now: Instant) {
        if bytes < STANDING || now.duration_since(self.since) < TARGET {
            self.act_at = None;
            self.acts = self.acts.saturating_sub(self.acts / 4 + 1);
            return;
        }
        match self.act_at {
            None => self.act_at = Some(now + self.pause()),
            Some(at) if now < at => {}
            Some(_) => {
                self.acts += 1;
                self.act_next = true;
                self.act_at = Some(now + self.pause());
            }
        }
    }

    /// The more often it had to be done, the sooner again: CoDel's control law.
    fn pause(&self) -> Duration {
        INTERVAL.div_f64(f64::from(self.acts.max(1)).sqrt())
    }
}

/// Puts flows that have little in a batch before the others. The order within a flow stays.
pub(super) fn sparse_first(buffer: &[u8], reads: &mut Vec<Read>, spare: &mut Vec<Read>) {
    let mut bytes = [0usize; CLASSES];
    for read in reads.iter() {
        if let Some(sum) = bytes.get_mut(class(buffer, read)) {
            *sum += read.at.len();
        }
    }
    let is_sparse = |read: &Read| bytes.get(class(buffer, read)).is_some_and(|sum| *sum <= SPARSE);
    let sparse = reads.iter().filter(|read| is_sparse(read)).count();
    if sparse == 0 || sparse == reads.len() {
        return;
    }
    spare.clear();
    spare.extend(reads.iter().filter(|read| is_sparse(read)).cloned());
    spare.extend(reads.iter().filter(|read| !is_sparse(read)).cloned());
    std::mem::swap(reads, spare);
}

/// The class of a packet's flow: by its addresses and, in what is likely to be them, its ports.
fn class(buffer: &[u8], read: &Read) -> usize {
    let packet = buffer.get(read.at.clone()).unwrap_or_default();
    let key = match packet.first().map(|first| first >> 4) {
        Some(4) => [packet.get(9..10), packet.get(12..24)],
        Some(6) => [packet.get(6..7), packet.get(8..44)],
        _ => [None, None],
    };
    // FNV-1a: a container that makes its own flows collide hurts nobody else.
    let hash = key
        .iter()
        .flatten()
        .flat_map(|bytes| bytes.iter())
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    (hash as usize ^ (hash as usize >> 16)) % CLASSES
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing)]
    use super::*;
    use crate::offload::VnetHeader;

    #[test]
    fn nothing_is_done_about_a_burst_and_something_about_a_queue_that_stays() {
        let start = Instant::now();
        let mut backlog = Backlog::new(start);
        let at = |millis: u64| start + Duration::from_millis(millis);
        // Every two milliseconds there is something for the next two.
        let acts = |backlog: &mut Backlog, from: u64, to: u64| {
            let turn = |millis: &u64| {
                backlog.begin(at(*millis));
                let act = backlog.acts_on(STANDING);
                backlog.emptied(at(*millis));
                backlog.done(STANDING, at(*millis + 2));
                act
            };
            (from..to).step_by(2).filter(turn).count()
        };
        assert_eq!(acts(&mut backlog, 0, 20), 0, "a burst");
        let first = acts(&mut backlog, 20, 120);
        let second = acts(&mut backlog, 120, 220);
        assert!(first >= 3 && second > first, "{first} {second}");
        backlog.begin(at(230));
        backlog.done(STANDING, at(230));
        assert_eq!(acts(&mut backlog, 232, 238), 0, "a new burst");
        // Packets that came while others were encrypted waited for those.
        backlog.emptied(at(300));
        backlog.begin(at(280));
        backlog.done(STANDING, at(302));
        assert!(backlog.act_at.is_some());
        // What comes when the queue is gone is left alone.
        backlog.act_next = true;
        assert!(!backlog.acts_on(1_000) && !backlog.acts_on(STANDING));
        // And a few packets are no queue, even where the processor is busy with something else.
        backlog.begin(at(280));
        backlog.done(1_000, at(400));
        assert!(backlog.act_at.is_none());
    }

    #[test]
    fn flows_with_little_go_first_and_keep_their_order() {
        let packet = |port: u8, len: usize| {
            let mut packet = vec![0u8; len];
            (packet[0], packet[9], packet[21]) = (0x45, 6, port);
            packet
        };
        let (mut buffer, mut reads) = (Vec::new(), Vec::new());
        for (port, len) in [(1, 60_000), (2, 60), (1, 60), (2, 80), (1, 60_000), (3, 40)] {
            let start = buffer.len();
            buffer.extend(packet(port, len));
            reads.push(Read { header: VnetHeader::default(), at: start..buffer.len(), congested: false });
        }
        sparse_first(&buffer, &mut reads, &mut Vec::new());
        let order: Vec<(u8, usize)> =
            reads.iter().map(|read| (buffer[read.at.start + 21], read.at.len())).collect();
        assert_eq!(order, [(2, 60), (2, 80), (3, 40), (1, 60_000), (1, 60), (1, 60_000)]);
    }
}
