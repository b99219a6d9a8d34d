//! Members that are connected to another controller of the same network, as that one tells.
//!
//! Who is alive and has applied what is each controller's own knowledge. A change of keys waits for all members, so while one
//! is under way the controllers tell each other of theirs. What is told here was true when it was written: that some
//! members, all of them connected to the one that tells, have applied a revision.

use std::collections::BTreeMap;

use super::network::Network;
use super::rotation::MemberView;
use crate::id::{NodeId, Revision};
use crate::time::Timestamp;

/// What the others told last of each member, and when.
#[derive(Clone, Debug, Default)]
pub struct Elsewhere {
    told: BTreeMap<NodeId, (Timestamp, Revision)>,
    heard: Option<Timestamp>,
}

impl Elsewhere {
    /// Takes what the others say now: who is connected to them, and what each has applied at least. Of those whom nobody
    /// mentions any more it is remembered when somebody did.
    pub fn hear(
        &mut self,
        network: &Network,
        members: impl IntoIterator<Item = (NodeId, Revision)>,
        now: Timestamp,
    ) {
        self.heard = Some(now);
        for (node, applied) in members {
            let told = self.told.entry(node).or_insert((now, applied));
            // Of a member that went from one to another both may tell. What was applied stays so.
            *told = (now, if told.0 == now { told.1.max(applied) } else { applied });
        }
        self.told.retain(|node, _| network.node(node).is_some());
    }

    /// Forgets everything, as nobody needs it for now.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    /// What is known of a member, here and elsewhere. Of one that is connected here nobody knows better.
    pub fn view(&self, node: &NodeId, here: MemberView) -> MemberView {
        match self.told.get(node) {
            Some(&(at, applied)) if !here.live && here.seen.is_none_or(|seen| seen <= at) => {
                MemberView { live: self.heard == Some(at), seen: Some(at), applied: Some(applied) }
            }
            _ => here,
        }
    }
}
