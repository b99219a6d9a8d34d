//! Who is alive, and who has applied what. Nothing of this is stored. All times are those of the steady clock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use znet_core::controller::liveness::Liveness;
use znet_core::controller::{MemberView, NodeLifetime};
use znet_core::id::{Epoch, NodeId, Revision};
use znet_core::time::Timestamp;

/// How often an agent has to say that it is alive.
pub const HEARTBEAT: Duration = Duration::from_secs(5);
/// For how long a node counts as alive after its last sign of life: two heartbeats may get lost.
pub const LIVE_TERM: Duration = Duration::from_secs(16);
/// The floor when nobody is alive: whatever one waits for has happened.
const NOBODY: Revision = Revision::new(u64::MAX);

/// The signs of life of one network's nodes. Every operation takes time logarithmic in their number.
#[derive(Debug)]
pub(super) struct Presence {
    inner: Mutex<Inner>,
    /// The lowest revision that a live node has applied.
    floor: watch::Sender<Revision>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Since the controller was started.
    last_seen: BTreeMap<NodeId, Timestamp>,
    applied: BTreeMap<NodeId, Revision>,
    /// Live nodes alone.
    live: Liveness,
    by_applied: BTreeSet<(Revision, NodeId)>,
    /// Ephemeral nodes alone, with a full term from the start on.
    ephemeral: Liveness,
    /// Ephemeral nodes that members say to have heard.
    vouched: Liveness,
    /// Whether there is one among them since this was asked last.
    vouched_anew: bool,
    /// What members said to have applied and this controller did not know when they said so.
    ahead: BTreeMap<NodeId, (Epoch, Revision)>,
}

impl Presence {
    pub(super) fn new() -> Self {
        Self { inner: Mutex::default(), floor: watch::Sender::new(NOBODY) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to watch over a member's time to live.
    pub(super) fn admit(&self, node: NodeId, lifetime: NodeLifetime, now: Timestamp) {
        if lifetime == NodeLifetime::Ephemeral {
            self.lock().ephemeral.seen(node, now);
        }
    }

    /// A member gave a sign of life.
    pub(super) fn seen(&self, node: NodeId, now: Timestamp) {
        let mut inner = self.lock();
        inner.seen(node, now);
        self.publish_floor(&inner);
    }

    /// A member said what it has applied.
    pub(super) fn applied(&self, node: NodeId, revision: Revision, now: Timestamp) {
        let mut inner = self.lock();
        let old = inner.applied.insert(node, revision);
        inner.by_applied.remove(&(old.unwrap_or(Revision::ZERO), node));
        inner.seen(node, now);
        self.publish_floor(&inner);
    }

    /// A member has heard the containers of an ephemeral node. That is no sign of its agent, but it is not collected.
    /// Returns whether it is one.
    pub(super) fn vouch(&self, node: NodeId, now: Timestamp) -> bool {
        let mut inner = self.lock();
        let known = inner.ephemeral.last_seen(&node).is_some();
        if known {
            inner.ephemeral.seen(node, now);
            inner.vouched.seen(node, now);
            inner.vouched_anew = true;
        }
        known
    }

    /// Whether a member has heard a node within `term`.
    pub(super) fn is_vouched(&self, node: &NodeId, term: Duration, now: Timestamp) -> bool {
        self.lock().vouched.is_live(node, term, now)
    }

    /// Whether a member has heard a node since this was called last.
    pub(super) fn take_vouched_anew(&self) -> bool {
        std::mem::take(&mut self.lock().vouched_anew)
    }

    /// Forgets a node that is no member any more.
    pub(super) fn forget(&self, node: &NodeId) {
        let mut inner = self.lock();
        inner.end_life(node);
        inner.last_seen.remove(node);
        inner.applied.remove(node);
        inner.ephemeral.forget(node);
        inner.vouched.forget(node);
        inner.ahead.remove(node);
        self.publish_floor(&inner);
    }

    /// A member said to have applied what this controller does not know. Returns whether that is news.
    pub(super) fn is_ahead(&self, node: NodeId, applied: (Epoch, Revision)) -> bool {
        self.lock().ahead.insert(node, applied) != Some(applied)
    }

    /// The members that have applied more than this, and what.
    pub(super) fn beyond(&self, current: (Epoch, Revision)) -> BTreeMap<NodeId, Revision> {
        let inner = self.lock();
        let beyond = inner.ahead.iter().filter(|(_, applied)| **applied > current);
        beyond.map(|(node, (_, revision))| (*node, *revision)).collect()
    }

    /// Counts nodes whose term is over as absent.
    pub(super) fn expire(&self, now: Timestamp) {
        let mut inner = self.lock();
        let absent: Vec<NodeId> = inner.live.absent(LIVE_TERM, now).collect();
        for node in &absent {
            inner.end_life(node);
        }
        self.publish_floor(&inner);
    }

    /// Ephemeral nodes that were not seen for `ttl`.
    pub(super) fn overdue(&self, ttl: Duration, now: Timestamp) -> Vec<NodeId> {
        self.lock().ephemeral.absent(ttl, now).collect()
    }

    /// Whether time alone can change anything here.
    pub(super) fn depends_on_time(&self) -> bool {
        let inner = self.lock();
        !inner.by_applied.is_empty() || inner.ephemeral.next_deadline(Duration::ZERO).is_some()
    }

    /// Whether a node is alive, when it was seen, and what it has applied as far as it said.
    pub(super) fn of(&self, node: &NodeId, now: Timestamp) -> (bool, Option<Timestamp>, Option<Revision>) {
        let inner = self.lock();
        let live = inner.live.is_live(node, LIVE_TERM, now);
        (live, inner.last_seen.get(node).copied(), inner.applied.get(node).copied())
    }

    /// As [`Presence::of`], for the rules that depend on it.
    pub(super) fn view(&self, node: &NodeId, now: Timestamp) -> MemberView {
        let (live, seen, applied) = self.of(node, now);
        MemberView { live, seen, applied }
    }

    /// Number of live nodes.
    pub(super) fn live(&self) -> usize {
        self.lock().by_applied.len()
    }

    /// Live nodes that have not applied `revision`, the furthest behind first.
    pub(super) fn lagging(&self, revision: Revision, most: usize) -> Vec<NodeId> {
        let inner = self.lock();
        inner
            .by_applied
            .iter()
            .take_while(|(applied, _)| *applied < revision)
            .take(most)
            .map(|(_, node)| *node)
            .collect()
    }

    /// The live nodes, and what all of them have applied.
    pub(super) fn live_applied(&self) -> (Vec<NodeId>, Revision) {
        let inner = self.lock();
        let floor = inner.by_applied.first().map_or(Revision::ZERO, |(revision, _)| *revision);
        let mut live: Vec<NodeId> = inner.by_applied.iter().map(|(_, node)| *node).collect();
        live.sort();
        (live, floor)
    }

    /// The lowest revision that a live node has applied, and its changes.
    pub(super) fn floor(&self) -> watch::Receiver<Revision> {
        self.floor.subscribe()
    }

    fn publish_floor(&self, inner: &Inner) {
        let floor = inner.by_applied.first().map_or(NOBODY, |(revision, _)| *revision);
        self.floor.send_if_modified(|old| std::mem::replace(old, floor) != floor);
    }
}

impl Inner {
    fn seen(&mut self, node: NodeId, now: Timestamp) {
        self.last_seen.insert(node, now);
        self.live.seen(node, now);
        if self.ephemeral.last_seen(&node).is_some() {
            self.ephemeral.seen(node, now);
        }
        let applied = self.applied.get(&node).copied().unwrap_or(Revision::ZERO);
        self.by_applied.insert((applied, node));
    }

    fn end_life(&mut self, node: &NodeId) {
        self.live.forget(node);
        let applied = self.applied.get(node).copied().unwrap_or(Revision::ZERO);
        self.by_applied.remove(&(applied, *node));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId::from_bytes([1; 32]);
    const B: NodeId = NodeId::from_bytes([2; 32]);

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(1_000_000 + seconds * 1000)
    }

    fn floor(presence: &Presence) -> u64 {
        presence.floor().borrow().get()
    }

    #[test]
    fn the_floor_is_that_of_live_nodes() {
        let presence = Presence::new();
        assert_eq!(floor(&presence), u64::MAX);
        presence.seen(A, at(0));
        assert_eq!(floor(&presence), 0);
        presence.applied(A, Revision::new(5), at(1));
        presence.applied(B, Revision::new(3), at(2));
        assert_eq!(floor(&presence), 3);
        assert_eq!(presence.lagging(Revision::new(5), 10), vec![B]);
        assert_eq!(presence.live_applied(), (vec![A, B], Revision::new(3)));
        presence.applied(B, Revision::new(7), at(3));
        assert_eq!(floor(&presence), 5);
        // A falls silent: it holds nobody up any more, and does again when it is back.
        presence.seen(B, at(17));
        presence.expire(at(17));
        assert_eq!((floor(&presence), presence.live()), (7, 1));
        presence.seen(A, at(18));
        assert_eq!((floor(&presence), presence.live()), (5, 2));
        presence.forget(&A);
        assert_eq!((floor(&presence), presence.live()), (7, 1));
        // A restored controller may hear of a lower revision than before.
        presence.applied(B, Revision::new(2), at(19));
        assert_eq!(floor(&presence), 2);
    }

    #[test]
    fn who_has_applied_more_than_is_known_is_told_until_a_new_epoch_or_its_removal() {
        let presence = Presence::new();
        let at = |epoch, revision| (Epoch::new(epoch), Revision::new(revision));
        assert!(presence.is_ahead(A, at(1, 9)) && presence.is_ahead(B, at(1, 7)));
        assert!(!presence.is_ahead(A, at(1, 9)), "it said so before");
        let nodes = |current| presence.beyond(current).into_iter().collect::<Vec<_>>();
        assert_eq!(nodes(at(1, 5)), [(A, Revision::new(9)), (B, Revision::new(7))]);
        assert_eq!(nodes(at(1, 8)), [(A, Revision::new(9))]);
        assert_eq!(nodes(at(2, 5)), []);
        presence.forget(&A);
        assert_eq!(nodes(at(1, 5)), [(B, Revision::new(7))]);
    }

    #[test]
    fn only_ephemeral_nodes_are_overdue_and_signs_of_life_count() {
        let presence = Presence::new();
        let ttl = Duration::from_secs(30);
        presence.admit(A, NodeLifetime::Ephemeral, at(0));
        presence.admit(B, NodeLifetime::Lasting, at(0));
        presence.seen(B, at(0));
        assert_eq!(presence.overdue(ttl, at(29)), vec![]);
        assert_eq!(presence.overdue(ttl, at(30)), vec![A]);
        presence.seen(A, at(29));
        assert_eq!(presence.overdue(ttl, at(58)), vec![]);
        assert_eq!(presence.overdue(ttl, at(59)), vec![A]);
        assert!(presence.vouch(A, at(59)) && !presence.vouch(B, at(59)));
        assert!(presence.is_vouched(&A, ttl, at(60)) && !presence.is_vouched(&B, ttl, at(60)));
        assert!(presence.take_vouched_anew() && !presence.take_vouched_anew());
        assert_eq!((presence.overdue(ttl, at(88)), presence.overdue(ttl, at(89))), (vec![], vec![A]));
        assert_eq!(presence.of(&A, at(60)).1, Some(at(29)), "its agent was not seen");
        presence.forget(&A);
        assert_eq!(presence.overdue(ttl, at(100)), vec![]);
    }
}
