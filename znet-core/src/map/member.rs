//! The agent's side of the map: believe only what verifies, never go back, ask for a snapshot when in doubt.

use std::cmp::Ordering;

use super::digest::SetHash;
use super::head::{Head, SignedHead};
use super::record::Record;
use super::succession::{LineRefusal, Succession, follow};
use super::{Change, Delta, Map};
use crate::id::{Epoch, NetworkId, Revision};
use crate::key::VerifyingKey;

/// Why a map or a delta was not applied. Nothing changed when one of these is returned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The head is not signed by the network's key.
    #[error(
        "the head of revision {revision} is not signed by the network's key; the controller is not the one that issued the join token"
    )]
    Signature {
        /// The revision claimed.
        revision: Revision,
    },
    /// The head is of another network.
    #[error("the head belongs to network {got}, not to {expected}")]
    ForeignNetwork {
        /// The network of this member.
        expected: NetworkId,
        /// The network of the head.
        got: NetworkId,
    },
    /// The head is older than the last one applied.
    #[error(
        "revision {revision} of epoch {epoch} is older than revision {applied} of epoch {applied_epoch}, which was applied already"
    )]
    Older {
        /// The epoch offered.
        epoch: Epoch,
        /// The revision offered.
        revision: Revision,
        /// The epoch applied.
        applied_epoch: Epoch,
        /// The revision applied.
        applied: Revision,
    },
    /// The head is of the position that was applied last, but signs another map.
    #[error(
        "the network's key signed two different maps as revision {revision} of epoch {epoch}; if the controller was restored from a backup, an operator has to start a new epoch"
    )]
    Equivocation {
        /// The epoch of both heads.
        epoch: Epoch,
        /// The revision of both heads.
        revision: Revision,
    },
    /// The delta does not start where this member stands.
    #[error("the delta leads from revision {from} to {to}, but revision {applied} is applied here")]
    Gap {
        /// Where the delta starts.
        from: Revision,
        /// Where it ends.
        to: Revision,
        /// Where this member stands.
        applied: Revision,
    },
    /// The head is for another revision than the delta's end.
    #[error("the delta ends at revision {to}, its head is of revision {head}")]
    HeadMismatch {
        /// Where the delta ends.
        to: Revision,
        /// The revision of the head.
        head: Revision,
    },
    /// The records do not have the digest that the head signs.
    #[error("the records of revision {revision} do not have the digest that its head signs")]
    Digest {
        /// The revision claimed.
        revision: Revision,
    },
}

impl Refusal {
    /// Whether a snapshot from the same controller can mend this. A bad signature, a foreign network, an older head and
    /// a second map of one revision cannot be mended by more data from whoever sent them.
    pub fn wants_snapshot(&self) -> bool {
        matches!(self, Self::Gap { .. } | Self::HeadMismatch { .. } | Self::Digest { .. })
    }
}

/// The last map of a network that an agent could verify.
#[derive(Clone, Debug)]
pub struct Member {
    network: NetworkId,
    key: VerifyingKey,
    map: Map,
    hash: SetHash,
    head: Option<SignedHead>,
}

impl Member {
    /// A member that has seen no map yet and believes heads of `network` signed by `key`.
    pub fn new(network: NetworkId, key: VerifyingKey) -> Self {
        Self { network, key, map: Map::default(), hash: SetHash::empty(network), head: None }
    }

    /// The network.
    pub fn network(&self) -> NetworkId {
        self.network
    }

    /// The key whose heads are believed.
    pub fn key(&self) -> &VerifyingKey {
        &self.key
    }

    /// Follows a line of statements to the network's present key, whose heads alone are believed from then on. The map that
    /// stands stays. Returns whether the key is another one now.
    ///
    /// # Errors
    /// A [`LineRefusal`]: the key stays as well.
    pub fn follow(&mut self, line: &[Succession]) -> Result<bool, LineRefusal> {
        let key = follow(self.network, &self.key, line)?;
        Ok(std::mem::replace(&mut self.key, key) != key)
    }

    /// Believes heads of this key alone from now on, as somebody says who is believed in any case: an operator by a token, or
    /// the node's own files.
    pub fn believe(&mut self, key: VerifyingKey) {
        self.key = key;
    }

    /// The map; empty until the first snapshot.
    pub fn map(&self) -> &Map {
        &self.map
    }

    /// The head of the map; `None` until the first snapshot.
    pub fn head(&self) -> Option<&SignedHead> {
        self.head.as_ref()
    }

    /// The revision applied; zero until the first snapshot.
    pub fn revision(&self) -> Revision {
        self.head.map_or(Revision::ZERO, |signed| signed.head.revision)
    }

    /// Replaces the map and returns what changed by it.
    ///
    /// # Errors
    /// A [`Refusal`]: the head does not verify, is of another network or older, or does not fit the records.
    pub fn apply_snapshot(
        &mut self,
        records: impl IntoIterator<Item = Record>,
        signed: &SignedHead,
    ) -> Result<Vec<Change>, Refusal> {
        self.check_head(signed)?;
        let map: Map = records.into_iter().collect();
        let hash = map.set_hash(self.network);
        if hash.digest() != signed.head.digest {
            return Err(Refusal::Digest { revision: signed.head.revision });
        }
        let changes = self.map.diff(&map);
        (self.map, self.hash, self.head) = (map, hash, Some(*signed));
        Ok(changes)
    }

    /// Applies a delta. Its price is that of its records, not of the map. Delivered again it is not even looked at: the
    /// map that its head signs is the one that stands here.
    ///
    /// A delta never leads into a new epoch, because the revisions of two epochs do not count from one history: the first
    /// map of an epoch comes as a snapshot.
    ///
    /// # Errors
    /// A [`Refusal`]: as for a snapshot, or the delta does not start at the revision applied here.
    pub fn apply_delta(&mut self, delta: &Delta, signed: &SignedHead) -> Result<(), Refusal> {
        self.check_head(signed)?;
        if self.head.is_some_and(|applied| applied.head == signed.head) {
            return Ok(());
        }
        if delta.to != signed.head.revision {
            return Err(Refusal::HeadMismatch { to: delta.to, head: signed.head.revision });
        }
        let applied = self.position();
        if applied != Some((signed.head.epoch, delta.from)) {
            return Err(Refusal::Gap { from: delta.from, to: delta.to, applied: self.revision() });
        }
        // An undo list instead of a copy of the map: a refused delta costs what an accepted one does.
        let mut hash = self.hash.clone();
        let mut undo = Vec::with_capacity(delta.changes.len());
        for change in &delta.changes {
            let old = match change {
                Change::Put(record) => {
                    hash.add(record);
                    self.map.put(record.clone())
                }
                Change::Remove(key) => self.map.remove(*key),
            };
            if let Some(old) = &old {
                hash.remove(old);
            }
            undo.push((change.key(), old));
        }
        if hash.digest() != signed.head.digest {
            for (key, old) in undo.into_iter().rev() {
                match old {
                    Some(record) => drop(self.map.put(record)),
                    None => drop(self.map.remove(key)),
                }
            }
            return Err(Refusal::Digest { revision: signed.head.revision });
        }
        (self.hash, self.head) = (hash, Some(*signed));
        Ok(())
    }

    /// The epoch and the revision applied; `None` until the first snapshot.
    pub fn position(&self) -> Option<(Epoch, Revision)> {
        self.head.map(|signed| signed.head.position())
    }

    fn check_head(&self, signed: &SignedHead) -> Result<(), Refusal> {
        let Head { network, epoch, revision, digest } = signed.head;
        if network != self.network {
            return Err(Refusal::ForeignNetwork { expected: self.network, got: network });
        }
        if !signed.verifies(&self.key) {
            return Err(Refusal::Signature { revision });
        }
        let Some(Head { epoch: applied_epoch, revision: applied, digest: applied_digest, .. }) =
            self.head.map(|signed| signed.head)
        else {
            return Ok(());
        };
        match (epoch, revision).cmp(&(applied_epoch, applied)) {
            Ordering::Less => Err(Refusal::Older { epoch, revision, applied_epoch, applied }),
            Ordering::Equal if digest != applied_digest => Err(Refusal::Equivocation { epoch, revision }),
            Ordering::Equal | Ordering::Greater => Ok(()),
        }
    }
}
