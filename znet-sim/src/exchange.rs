//! What controllers over one store tell each other while keys are being changed: which members each has, and what all of these
//! have applied.

use std::time::Duration;

use znet_core::id::{Epoch, NodeId, Revision};
use znet_core::time::Timestamp;

use crate::streams::LIVE_TERM;
use crate::world::World;

/// For how long a report holds, as in the controller.
const PRESENT_FOR: Duration = Duration::from_secs(45);

/// What a controller told last. It outlives its process.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    at: Timestamp,
    epoch: Epoch,
    applied: Revision,
    members: Vec<NodeId>,
}

impl World {
    /// Tells and hears, where there is anybody else. The store may refuse what is told.
    pub(crate) fn exchange_applied(&mut self) {
        let (now, here, several) = (self.now(), self.here, self.sites.len() > 1);
        let refused = self.disk.full || (several && self.chance(self.scenario.commit_refused));
        let Some(up) = self.sites[here].as_mut().filter(|up| several && !up.failed) else { return };
        if up.committed.rotations() == 0 {
            return up.elsewhere.forget();
        }
        let epoch = up.committed.head().epoch;
        let live = || up.members.iter().filter(|(_, (seen, _))| seen.plus(LIVE_TERM) > now);
        let applied = live().map(|(_, (_, applied))| applied.unwrap_or(Revision::ZERO)).min();
        if let Some(applied) = applied.filter(|_| !refused) {
            let members = live().map(|(node, _)| *node).collect();
            self.told[here] = Some(Told { at: now, epoch, applied, members });
        }
        let told = self.told.iter().enumerate().filter(|(site, _)| *site != here);
        let told = told.filter_map(|(_, told)| told.as_ref());
        let told = told.filter(|told| told.at.plus(PRESENT_FOR) > now && told.epoch == epoch);
        let members = told.flat_map(|told| told.members.iter().map(|node| (*node, told.applied)));
        up.elsewhere.hear(&up.committed, members, now);
    }
}
