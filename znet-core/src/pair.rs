//! Which pairs a container's device should have, by its record in the map and by what it has.
//!
//! The private halves are on the container's node alone. The record tells which key the others use, and while a pair is
//! changed which other one they accept (`controller`'s rotation tells the stages); the node follows it, whatever stage it sees
//! first and however often it looks.

use crate::key::PublicKey;
use crate::map::ContainerRecord;

/// The public halves of the pairs that a device has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Of the one with which it makes handshakes.
    pub key: PublicKey,
    /// Of another one that it accepts handshakes for.
    pub also: Option<PublicKey>,
    /// Whether that is a next one, and not a former one.
    pub next: bool,
}

/// What a node has to do about a device's pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairStep {
    /// Nothing.
    Keep,
    /// Make a pair, have the device accept it as well, in place of a former one, and only then offer it to the controller.
    Make,
    /// Offer the controller the pair that the device accepts as well.
    Offer(PublicKey),
    /// Make handshakes with the other pair from now on; the former one is still accepted, or not any more.
    Swap {
        /// Whether it is.
        keep: bool,
    },
    /// Wipe the other pair.
    Drop,
    /// The others use a key whose private half is not here: tell the controller which one is.
    Reclaim,
}

/// What is to be done so that a device has the pairs that its record tells of.
pub fn step(record: &ContainerRecord, held: Held) -> PairStep {
    if record.public_key == held.key {
        return match (record.rekey, record.also_key, held.also) {
            (true, offered, Some(also)) if offered == Some(also) => PairStep::Keep,
            (true, _, Some(also)) if held.next => PairStep::Offer(also),
            // A former key that went out of use is never used again.
            (true, _, _) => PairStep::Make,
            (false, None, Some(_)) => PairStep::Drop,
            _ => PairStep::Keep,
        };
    }
    // Never back to a former key: an agent that starts from an older map sees it in use, and the new one is.
    if held.next && Some(record.public_key) == held.also {
        return PairStep::Swap { keep: record.also_key == Some(held.key) };
    }
    PairStep::Reclaim
}
