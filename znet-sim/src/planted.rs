//! Mistakes that can be planted, so that tests show that the simulation finds their like.
//!
//! They sit where the real programs could make them: in what stands around the core. The core itself has no switch, and
//! no shipped program depends on this crate, so none can have one.

use znet_core::controller::{Row, StateChange};
use znet_core::map::{Change, Delta};

/// A planted mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// The controller forgets to write down that released addresses rest, so they are given again at once.
    ReuseBeforeRest,
    /// A commit that failed and yet happened is applied again by the controller, on top of the state that has it.
    DeltaTwice,
    /// What is removed is left out where several deltas are made one.
    LostTombstone,
    /// The controller answers when its commit is written, and not when it is durable.
    AcknowledgedBeforeSync,
    /// The controller takes it that members have applied whatever was published, when it leads a change of keys on.
    KeysUnheard,
}

/// The changes of a decision as they are committed.
pub(crate) fn decided(bug: Option<Bug>, changes: &mut Vec<StateChange>) {
    if bug == Some(Bug::ReuseBeforeRest) {
        changes.retain(|change| !matches!(change, StateChange::Put(Row::Resting(_))));
    }
}

/// The deltas of a batch as they are published.
pub(crate) fn published(bug: Option<Bug>, deltas: &mut [Delta]) {
    if bug == Some(Bug::LostTombstone) && deltas.len() > 1 {
        for delta in deltas {
            delta.changes.retain(|change| !matches!(change, Change::Remove(_)));
        }
    }
}
