//! Who is alive: a deadline for each node that was seen. Not stored; a restarted controller gives everybody a full term.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::id::NodeId;
use crate::time::Timestamp;

/// Deadlines of nodes. Every operation takes time logarithmic in the number of nodes.
#[derive(Clone, Debug, Default)]
pub struct Liveness {
    seen: BTreeMap<NodeId, Timestamp>,
    by_time: BTreeSet<(Timestamp, NodeId)>,
}

impl Liveness {
    /// Notes that a node gave a sign of life. Time does not run backwards: an older sign changes nothing.
    pub fn seen(&mut self, node: NodeId, now: Timestamp) {
        let old = self.seen.get(&node).copied();
        if old.is_some_and(|old| old >= now) {
            return;
        }
        if let Some(old) = old {
            self.by_time.remove(&(old, node));
        }
        self.seen.insert(node, now);
        self.by_time.insert((now, node));
    }

    /// Forgets a node that is no member any more.
    pub fn forget(&mut self, node: &NodeId) {
        if let Some(old) = self.seen.remove(node) {
            self.by_time.remove(&(old, *node));
        }
    }

    /// When a node was last seen.
    pub fn last_seen(&self, node: &NodeId) -> Option<Timestamp> {
        self.seen.get(node).copied()
    }

    /// Whether a node was seen within `term` before `now`.
    pub fn is_live(&self, node: &NodeId, term: Duration, now: Timestamp) -> bool {
        self.last_seen(node).is_some_and(|seen| seen.plus(term) > now)
    }

    /// The nodes that were not seen within `term` before `now`, the longest absent first.
    pub fn absent(&self, term: Duration, now: Timestamp) -> impl Iterator<Item = NodeId> + '_ {
        self.by_time.iter().take_while(move |(seen, _)| seen.plus(term) <= now).map(|(_, node)| *node)
    }

    /// When the next node becomes absent; `None` when none is known.
    pub fn next_deadline(&self, term: Duration) -> Option<Timestamp> {
        self.by_time.first().map(|(seen, _)| seen.plus(term))
    }
}
