//! The feed of one network ([`znet_core::feed`]) as its streams share it: behind a lock, in the bytes that are sent.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use prost::Message as _;
use tokio::sync::watch;
use znet_api::convert::delta_to_wire;
use znet_api::v1;
use znet_core::feed::{Event, Logged, MAX_BATCHES, Ring, Snapshot};
use znet_core::id::Revision;
use znet_core::map::{Delta, NetworkRecord, Record, SignedHead};
use znet_core::time::Timestamp;

use crate::store::CHANGES_KEPT;

// The log that the store keeps can fill the whole ring.
const _: () = assert!(MAX_BATCHES as u64 <= CHANGES_KEPT);

/// An event in the bytes of its message.
#[derive(Clone, Debug)]
pub(super) struct Encoded {
    pub(super) bytes: Bytes,
    /// The revision of the head in it, where there is one.
    pub(super) revision: Option<Revision>,
}

impl Encoded {
    pub(super) fn new(event: v1::watch_event::Event, head: Option<&SignedHead>) -> Self {
        let bytes = v1::WatchEvent { event: Some(event) }.encode_to_vec().into();
        Self { bytes, revision: head.map(|signed| signed.head.revision) }
    }
}

impl Event for Encoded {
    fn delta(delta: &Delta, head: &SignedHead) -> Self {
        Self::new(v1::watch_event::Event::Delta(delta_to_wire(delta, head)), Some(head))
    }

    fn part(records: &[Record], head: Option<&SignedHead>) -> Self {
        let part = v1::SnapshotPart {
            records: records.iter().map(Into::into).collect(),
            head: head.map(Into::into),
        };
        Self::new(v1::watch_event::Event::Snapshot(part), head)
    }

    fn head(head: &SignedHead) -> Self {
        Self::new(v1::watch_event::Event::Head(head.into()), Some(head))
    }
}

/// The published batches of one network.
#[derive(Debug)]
pub(super) struct Feed {
    ring: Mutex<Ring<Encoded>>,
    newest: watch::Sender<Revision>,
}

impl Feed {
    pub(super) fn new() -> Self {
        Self { ring: Mutex::default(), newest: watch::Sender::new(Revision::ZERO) }
    }

    /// The ring, for as long as one question takes.
    pub(super) fn ring(&self) -> MutexGuard<'_, Ring<Encoded>> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of every change of the current head.
    pub(super) fn subscribe(&self) -> watch::Receiver<Revision> {
        self.newest.subscribe()
    }

    /// The current revision.
    pub(super) fn revision(&self) -> Revision {
        self.ring().revision()
    }

    /// Starts anew from a head; whoever stands at another one gets a snapshot.
    pub(super) fn reset(&self, head: SignedHead) {
        if self.ring().reset(head) {
            self.newest.send_replace(head.head.revision);
        }
    }

    /// Publishes a committed batch, see [`Ring::publish`].
    pub(super) fn publish(&self, before: &NetworkRecord, deltas: &[Delta], head: SignedHead) {
        self.ring().publish(before, deltas, head);
        self.newest.send_replace(head.head.revision);
    }

    /// Puts revisions out of the store's log before those of the ring.
    pub(super) fn prepend(&self, log: &[Logged]) {
        self.ring().prepend(log);
    }

    /// Keeps a snapshot for a while.
    pub(super) fn keep(&self, snapshot: Arc<Snapshot<Encoded>>, now: Timestamp) {
        self.ring().keep(snapshot, now);
    }

    /// Lets go of a snapshot that nobody needed for a while; whether one is still kept.
    pub(super) fn tidy(&self, now: Timestamp) -> bool {
        self.ring().tidy(now)
    }
}
