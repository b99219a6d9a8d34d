//! What a controller tells the members of its network, encoded once for all of them.
//!
//! A stream keeps nothing but the head that it has sent last (its [`Place`]), and asks the [`Ring`] what leads on from
//! there. So a slow stream costs no memory: when it is ready again it gets one delta for all that happened meanwhile, or
//! a snapshot when that is too much. Published batches are kept in a ring of bounded length.
//!
//! Whoever owns streams, locks and a store stands around this. It must never learn how an event is written down: that
//! is an [`Event`]'s own business.

mod place;

pub use place::{Place, Turn};

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::controller::StateChange;
use crate::id::Revision;
use crate::map::{Change, Delta, Head, NetworkRecord, Record, SignedHead};
use crate::time::Timestamp;

/// Most batches in the ring.
pub const MAX_BATCHES: usize = 4096;
/// Most changes in all batches of the ring.
pub const MAX_RING_CHANGES: usize = 16_384;
/// Most changes of one delta; what is more is sent as a snapshot, in parts.
pub const MAX_DELTA_CHANGES: usize = 2_000;
/// Most records in one part of a snapshot.
pub const SNAPSHOT_PART: usize = 2_000;
/// Most encoded deltas that are kept for the current head, one for each place from which streams come.
const MAX_ENCODED: usize = 16;
/// How long a snapshot is kept for the next one who needs it.
const SNAPSHOT_KEPT: Duration = Duration::from_secs(30);

/// One thing that a member is told, in the form in which it is sent. Cloning shares it.
pub trait Event: Clone {
    /// A delta and the head that it leads to.
    fn delta(delta: &Delta, head: &SignedHead) -> Self;
    /// A part of a snapshot; the last part carries the head.
    fn part(records: &[Record], head: Option<&SignedHead>) -> Self;
    /// That nothing has happened since.
    fn head(head: &SignedHead) -> Self;
}

/// One revision out of a store's log of changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// The head at the revision that resulted.
    pub head: Head,
    /// What changed.
    pub changes: Vec<StateChange>,
}

/// A whole map, encoded.
#[derive(Debug)]
pub struct Snapshot<E> {
    head: Head,
    parts: Vec<E>,
}

impl<E: Event> Snapshot<E> {
    /// Encodes all records of the map at a head.
    pub fn encode(records: &[Record], head: &SignedHead) -> Self {
        let mut chunks: Vec<&[Record]> = records.chunks(SNAPSHOT_PART).collect();
        let last = chunks.pop().unwrap_or_default();
        let parts = chunks.into_iter().map(|chunk| E::part(chunk, None)).chain([E::part(last, Some(head))]);
        Self { head: head.head, parts: parts.collect() }
    }
}

/// What leads on from a head.
#[derive(Debug)]
enum Next<E> {
    /// Nothing: it is the current one. Here it is signed.
    Current(SignedHead),
    /// A delta to the current head; `batches` tells for how many published ones it stands.
    Delta { event: E, head: Head, batches: usize },
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
pub struct Ring<E> {
    head: Option<SignedHead>,
    batches: VecDeque<Batch>,
    changes: usize,
    /// Deltas to the current head by the revision from which they lead.
    encoded: Vec<(Revision, E)>,
    /// A snapshot for the next one who needs it, and when it was made.
    snapshot: Option<(Arc<Snapshot<E>>, Timestamp)>,
}

impl<E> Default for Ring<E> {
    fn default() -> Self {
        Self { head: None, batches: VecDeque::new(), changes: 0, encoded: Vec::new(), snapshot: None }
    }
}

impl<E: Event> Ring<E> {
    /// The current revision; zero before the first head.
    pub fn revision(&self) -> Revision {
        self.head.map_or(Revision::ZERO, |signed| signed.head.revision)
    }

    /// Starts anew from a head; whoever stands at another one gets a snapshot. `false` when it is the current one.
    pub fn reset(&mut self, head: SignedHead) -> bool {
        if self.head.is_some_and(|current| current.head == head.head) {
            return false;
        }
        *self = Self { head: Some(head), ..Self::default() };
        true
    }

    /// Publishes a committed batch: the deltas of its revisions in a row, and the head that they lead to. `before` is the
    /// network's own record ahead of them, which is left out when it says what it said: each attach counts up a number
    /// in the network's row that is none of the members' business.
    pub fn publish(&mut self, before: &NetworkRecord, deltas: &[Delta], head: SignedHead) {
        let Some(mut delta) = Delta::squash(deltas) else { return };
        delta
            .changes
            .retain(|step| !matches!(step, Change::Put(Record::Network(record)) if record == before));
        if let Some(current) = self.head {
            self.changes += delta.changes.len();
            self.batches.push_back(Batch { before: current.head, after: head.head, delta });
        }
        self.head = Some(head);
        self.encoded.clear();
        self.trim();
    }

    /// Puts revisions out of the store's log before those of the ring. `log` begins with the head at which a stream
    /// stands; entries that the ring has already are passed over.
    pub fn prepend(&mut self, log: &[Logged]) {
        let first = self.batches.front().map(|batch| batch.before).or(self.head.map(|signed| signed.head));
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
                changes: after.changes.iter().filter_map(StateChange::map_change).collect(),
            };
            if self.batches.len() >= MAX_BATCHES || self.changes + delta.changes.len() > MAX_RING_CHANGES {
                break;
            }
            self.changes += delta.changes.len();
            self.batches.push_front(Batch { before: before.head, after: after.head, delta });
        }
    }

    /// The oldest revision from which the ring leads on.
    pub fn oldest(&self) -> Revision {
        self.batches.front().map_or(self.revision(), |batch| batch.before.revision)
    }

    /// Keeps a snapshot for a while.
    pub fn keep(&mut self, snapshot: Arc<Snapshot<E>>, now: Timestamp) {
        self.snapshot = Some((snapshot, now));
    }

    /// Lets go of a snapshot that nobody needed for a while; whether one is still kept.
    pub fn tidy(&mut self, now: Timestamp) -> bool {
        if self.snapshot.as_ref().is_some_and(|(_, made)| now.since(*made) > SNAPSHOT_KEPT) {
            self.snapshot = None;
        }
        self.snapshot.is_some()
    }

    /// What leads on from a head.
    fn next(&mut self, from: &Head) -> Next<E> {
        let Some(signed) = self.head else { return Next::Missing };
        if signed.head == *from {
            return Next::Current(signed);
        }
        let Some(at) = self.find(from) else { return Next::Missing };
        let batches = self.batches.len() - at;
        if let Some((_, event)) = self.encoded.iter().find(|(revision, _)| *revision == from.revision) {
            return Next::Delta { event: event.clone(), head: signed.head, batches };
        }
        let tail = || self.batches.range(at..).map(|batch| &batch.delta);
        if tail().map(|delta| delta.changes.len()).sum::<usize>() > MAX_DELTA_CHANGES {
            return Next::Missing;
        }
        let Some(delta) = Delta::squash(tail()) else { return Next::Missing };
        let event = E::delta(&delta, &signed);
        if self.encoded.len() < MAX_ENCODED {
            self.encoded.push((from.revision, event.clone()));
        }
        Next::Delta { event, head: signed.head, batches }
    }

    /// The snapshot that is kept, if a delta leads on from it.
    fn kept(&mut self) -> Option<Arc<Snapshot<E>>> {
        let (snapshot, _) = self.snapshot.clone()?;
        (!matches!(self.next(&snapshot.head), Next::Missing)).then_some(snapshot)
    }

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
