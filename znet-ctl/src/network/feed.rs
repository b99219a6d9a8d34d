//! What agents are told, encoded once for all of them.
//!
//! A stream keeps nothing but the head that it has sent last, and asks the feed what leads on from there. So a slow
//! stream costs no memory: when it is ready again it gets one delta for all that happened meanwhile, or a snapshot
//! when that is too much. Published batches are kept in a ring of bounded length.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message as _;
use tokio::sync::watch;
use znet_api::convert::delta_to_wire;
use znet_api::v1;
use znet_core::id::Revision;
use znet_core::map::{Delta, Head, Record, SignedHead};

use crate::store::{CHANGES_KEPT, Logged};

/// Most batches in the ring.
const MAX_BATCHES: usize = CHANGES_KEPT as usize;
/// Most changes in all batches of the ring.
const MAX_RING_CHANGES: usize = 16_384;
/// Most changes of one delta; what is more is sent as a snapshot, in parts.
pub(super) const MAX_DELTA_CHANGES: usize = 2_000;
/// Most records in one part of a snapshot.
pub const SNAPSHOT_PART: usize = 2_000;
/// Most encoded deltas that are kept for the current head, one for each place from which streams come.
const MAX_ENCODED: usize = 16;
/// How long a snapshot is kept for the next one who needs it.
const SNAPSHOT_KEPT: Duration = Duration::from_secs(30);

/// A whole map, encoded.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) head: Head,
    pub(super) parts: Vec<Bytes>,
    made: Instant,
}

impl Snapshot {
    /// Encodes the records in parts; the last one carries the head.
    pub(super) fn encode(records: &[Record], head: &SignedHead) -> Self {
        let mut chunks: Vec<&[Record]> = records.chunks(SNAPSHOT_PART).collect();
        let last = chunks.pop().unwrap_or_default();
        let part = |records: &[Record], head: Option<&SignedHead>| {
            event(v1::watch_event::Event::Snapshot(v1::SnapshotPart {
                records: records.iter().map(Into::into).collect(),
                head: head.map(Into::into),
            }))
        };
        let parts =
            chunks.into_iter().map(|chunk| part(chunk, None)).chain([part(last, Some(head))]).collect();
        Self { head: head.head, parts, made: Instant::now() }
    }
}

/// What leads on from a head.
#[derive(Debug)]
pub(super) enum Next {
    /// Nothing: it is the current one. Here it is signed.
    Current(SignedHead),
    /// An encoded delta to the current head; `batches` tells for how many published ones it stands.
    Delta { event: Bytes, head: Head, batches: usize },
    /// The ring does not reach back, or too much has happened since.
    Missing,
}

#[derive(Debug)]
struct Batch {
    before: Head,
    after: Head,
    delta: Delta,
}

/// The published batches of one network.
#[derive(Debug)]
pub(super) struct Feed {
    ring: Mutex<Ring>,
    newest: watch::Sender<Revision>,
}

#[derive(Debug, Default)]
struct Ring {
    head: Option<SignedHead>,
    batches: VecDeque<Batch>,
    changes: usize,
    /// Deltas to the current head by the revision from which they lead.
    encoded: Vec<(Revision, Bytes)>,
    snapshot: Option<Arc<Snapshot>>,
}

impl Feed {
    pub(super) fn new() -> Self {
        Self { ring: Mutex::default(), newest: watch::Sender::new(Revision::ZERO) }
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of every change of the current head.
    pub(super) fn subscribe(&self) -> watch::Receiver<Revision> {
        self.newest.subscribe()
    }

    /// The current revision.
    pub(super) fn revision(&self) -> Revision {
        self.lock().head.map_or(Revision::ZERO, |signed| signed.head.revision)
    }

    /// Starts anew from a head; whoever stands at another one gets a snapshot.
    pub(super) fn reset(&self, head: SignedHead) {
        let mut ring = self.lock();
        if ring.head.is_some_and(|current| current.head == head.head) {
            return;
        }
        *ring = Ring { head: Some(head), ..Ring::default() };
        drop(ring);
        self.newest.send_replace(head.head.revision);
    }

    /// Publishes a committed batch.
    pub(super) fn push(&self, delta: Delta, head: SignedHead) {
        let mut ring = self.lock();
        if let Some(current) = ring.head {
            ring.changes += delta.changes.len();
            ring.batches.push_back(Batch { before: current.head, after: head.head, delta });
        }
        ring.head = Some(head);
        ring.encoded.clear();
        ring.trim();
        drop(ring);
        self.newest.send_replace(head.head.revision);
    }

    /// Puts revisions out of the store's log before those of the ring. `log` begins with the head at which a stream
    /// stands; entries that the ring has already are passed over.
    pub(super) fn prepend(&self, log: &[Logged]) {
        let mut ring = self.lock();
        let first = ring.batches.front().map(|batch| batch.before).or(ring.head.map(|signed| signed.head));
        let Some(first) = first else { return };
        let known = log.iter().position(|logged| logged.head.revision >= first.revision);
        // The log must lead to where the ring begins, or they are not of one history.
        let Some(log) =
            known.and_then(|at| log.get(..=at)).filter(|log| log.last().map(|l| l.head) == Some(first))
        else {
            return;
        };
        for pair in log.windows(2).rev() {
            let [before, after] = pair else { continue };
            let delta = Delta {
                from: before.head.revision,
                to: after.head.revision,
                changes: after.changes.iter().filter_map(|change| change.map_change()).collect(),
            };
            if ring.batches.len() >= MAX_BATCHES || ring.changes + delta.changes.len() > MAX_RING_CHANGES {
                break;
            }
            ring.changes += delta.changes.len();
            ring.batches.push_front(Batch { before: before.head, after: after.head, delta });
        }
    }

    /// The oldest revision from which the ring leads on.
    pub(super) fn oldest(&self) -> Revision {
        let ring = self.lock();
        let newest = ring.head.map_or(Revision::ZERO, |signed| signed.head.revision);
        ring.batches.front().map_or(newest, |batch| batch.before.revision)
    }

    /// What leads on from a head.
    pub(super) fn next(&self, from: &Head) -> Next {
        let mut ring = self.lock();
        let Some(signed) = ring.head else { return Next::Missing };
        if signed.head == *from {
            return Next::Current(signed);
        }
        let Some(at) = ring.find(from) else { return Next::Missing };
        let batches = ring.batches.len() - at;
        if let Some((_, event)) = ring.encoded.iter().find(|(revision, _)| *revision == from.revision) {
            return Next::Delta { event: event.clone(), head: signed.head, batches };
        }
        let tail = || ring.batches.range(at..).map(|batch| &batch.delta);
        if tail().map(|delta| delta.changes.len()).sum::<usize>() > MAX_DELTA_CHANGES {
            return Next::Missing;
        }
        let Some(delta) = Delta::squash(tail()) else { return Next::Missing };
        let event = event(v1::watch_event::Event::Delta(delta_to_wire(&delta, &signed)));
        if ring.encoded.len() < MAX_ENCODED {
            ring.encoded.push((from.revision, event.clone()));
        }
        Next::Delta { event, head: signed.head, batches }
    }

    /// The snapshot that is kept, if a delta leads on from it.
    pub(super) fn snapshot(&self) -> Option<Arc<Snapshot>> {
        let snapshot = self.lock().snapshot.clone()?;
        (!matches!(self.next(&snapshot.head), Next::Missing)).then_some(snapshot)
    }

    /// Keeps a snapshot for a while.
    pub(super) fn keep(&self, snapshot: Arc<Snapshot>) {
        self.lock().snapshot = Some(snapshot);
    }

    /// Lets go of a snapshot that nobody needed for a while; whether one is still kept.
    pub(super) fn tidy(&self) -> bool {
        let mut ring = self.lock();
        if ring.snapshot.as_ref().is_some_and(|snapshot| snapshot.made.elapsed() > SNAPSHOT_KEPT) {
            ring.snapshot = None;
        }
        ring.snapshot.is_some()
    }
}

impl Ring {
    /// The index of the batch that begins at this very head, if all from there on is of one epoch.
    fn find(&self, from: &Head) -> Option<usize> {
        // An agent takes no delta across a change of the epoch.
        if self.head.is_none_or(|signed| signed.head.epoch != from.epoch) {
            return None;
        }
        let at = self.batches.binary_search_by_key(&from.revision, |batch| batch.before.revision).ok()?;
        self.batches.get(at).filter(|batch| batch.before == *from).map(|_| at)
    }

    fn trim(&mut self) {
        while self.batches.len() > MAX_BATCHES || self.changes > MAX_RING_CHANGES {
            let Some(gone) = self.batches.pop_front() else { break };
            self.changes -= gone.delta.changes.len();
        }
        debug_assert!(self.batches.back().is_none_or(|last| Some(last.after) == self.head.map(|h| h.head)));
    }
}

/// The event that tells a stream that it is up to date.
pub(super) fn head_event(head: &SignedHead) -> Bytes {
    event(v1::watch_event::Event::Head(head.into()))
}

fn event(event: v1::watch_event::Event) -> Bytes {
    v1::WatchEvent { event: Some(event) }.encode_to_vec().into()
}
