//! Where networks are kept: the only place that must survive a power cut.
//!
//! A [`Store`] holds the rows of every network under a revision, a bounded log of the changes between revisions, the
//! audit trail and the operators' tokens. It promises that a commit which returned `Ok` is durable and whole, that
//! one which returned an error left nothing behind that a later [`Store::load`] would not show, and that two writers
//! cannot commit the same revision. It must never know what a change means; it only keeps it.
//!
//! Every implementation passes [`conformance`].

pub mod conformance;
pub mod etcd;
mod location;
mod memory;
mod revisions;
pub mod sqlite;

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use znet_core::controller::{Row, StateChange};
use znet_core::id::{Epoch, NetworkId, NodeId, Revision, TokenId};
use znet_core::map::Head;
use znet_core::name::Name;
use znet_core::time::Timestamp;

use crate::actor::{Actor, Role, Scope};

pub use etcd::EtcdStore;
pub use location::Location;
pub use memory::MemoryStore;
pub use sqlite::SqliteStore;
pub use znet_core::feed::Logged;

/// How many revisions of each network's change log are kept at least, so that agents resume without a snapshot.
pub const CHANGES_KEPT: u64 = 4096;
/// How many audit records are kept at least, over all networks; the oldest go first.
pub const AUDIT_KEPT: u64 = 1_000_000;
/// Most networks of one store.
pub const MAX_NETWORKS: usize = 10_000;
/// Most operator tokens of one store.
pub const MAX_OPERATORS: usize = 10_000;
/// Most audit records in one answer.
pub const MAX_AUDIT_PAGE: usize = 1_000;
/// For how long a controller's report of its nodes holds.
pub const PRESENT_FOR: Duration = Duration::from_secs(45);

/// Why a store did not do what it was asked to. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Somebody else committed first.
    #[error("network {network} is at revision {found} and not at {expected}: another writer was faster")]
    Conflict {
        /// The network.
        network: NetworkId,
        /// The revision that the writer knew.
        expected: Revision,
        /// The revision that is stored.
        found: Revision,
    },
    /// There is no such network.
    #[error("there is no network {network} in the store")]
    UnknownNetwork {
        /// The network.
        network: NetworkId,
    },
    /// Another network has the name.
    #[error("the name {name} is taken by another network; choose another name or delete that one")]
    NameTaken {
        /// The name.
        name: Name,
    },
    /// The log does not reach back that far.
    #[error("changes are kept from revision {oldest} on; load the network instead")]
    Compacted {
        /// The oldest revision from which changes can be listed.
        oldest: Revision,
    },
    /// A bound of the store was reached.
    #[error("the store has {bound} {what} already, which is its bound")]
    TooMany {
        /// What there are too many of.
        what: &'static str,
        /// The bound.
        bound: usize,
    },
    /// No space is left.
    #[error("no space is left for the controller's state ({why}); free some, writing resumes by itself")]
    Full {
        /// What the storage said.
        why: String,
    },
    /// It cannot be reached or fails.
    #[error("the controller's state cannot be read or written ({why})")]
    Unavailable {
        /// What the storage said.
        why: String,
    },
    /// What is stored contradicts itself.
    #[error("the controller's state is damaged ({what}); restore a backup with `znet-ctl restore`")]
    Corrupt {
        /// What does not fit.
        what: String,
    },
    /// A newer version wrote it.
    #[error("the controller's state has format {found}, this version knows {known}; run a newer znet-ctl")]
    TooNew {
        /// The format found.
        found: i64,
        /// The newest format that this version knows.
        known: i64,
    },
    /// This kind of store has no such operation.
    #[error("this store cannot {what}")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
    },
}

impl StoreError {
    /// Whether the storage failed, as opposed to the request being wrong.
    pub fn is_failure(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::Unavailable { .. } | Self::Corrupt { .. })
    }
}

/// Who did what, and when; the revision and the network come from the commit that carries it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditNote {
    /// When.
    pub at: Timestamp,
    /// Who.
    pub actor: Actor,
    /// What, in one word: `attach`, `token.create`.
    pub action: &'static str,
    /// To what, for a human.
    pub detail: String,
}

/// One entry of the audit trail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// Its place in the trail of the whole store; grows, with gaps.
    pub seq: u64,
    /// The network that was changed; `None` when the change was to the controller itself.
    pub network: Option<NetworkId>,
    /// The revision that the change made.
    pub revision: Option<Revision>,
    /// When.
    pub at: Timestamp,
    /// Who, as text: `local:0`, `operator:ID`, `node:ID`, `controller`.
    pub actor: String,
    /// What.
    pub action: String,
    /// To what.
    pub detail: String,
}

/// What a controller tells the others of nodes that are connected to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The epoch of the revision.
    pub epoch: Epoch,
    /// What all of them have applied.
    pub revision: Revision,
    /// The nodes.
    pub nodes: Vec<NodeId>,
}

/// One revision to be committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The head at the revision that results.
    pub head: Head,
    /// What changes.
    pub changes: Vec<StateChange>,
    /// Who did it.
    pub audit: AuditNote,
}

/// A network as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkEntry {
    /// The network.
    pub id: NetworkId,
    /// Its name.
    pub name: Name,
    /// Its revision.
    pub revision: Revision,
}

/// A network as it is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Its revision.
    pub revision: Revision,
    /// Its rows, in no particular order.
    pub rows: Vec<Row>,
}

/// A network with its history, on its way from one store to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The head at its revision.
    pub head: Head,
    /// Its name.
    pub name: Name,
    /// Its rows.
    pub rows: Vec<Row>,
    /// The end of its change log, up to the head.
    pub log: Vec<Logged>,
}

/// An operator's bearer token as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operator {
    /// Its handle.
    pub id: TokenId,
    /// For whom or what it is, for humans.
    pub note: String,
    /// The hash of its secret.
    pub secret_hash: [u8; 32],
    /// Where it may act.
    pub scope: Scope,
    /// What it may do.
    pub role: Role,
    /// When it was made.
    pub created: Timestamp,
}

/// Refuses commits that do not follow `expected` and each other, or that are of another network.
fn check_sequence(network: NetworkId, expected: Revision, commits: &[Commit]) -> Result<(), StoreError> {
    let mut before = expected;
    for commit in commits {
        let Head { network: of, revision, .. } = commit.head;
        if of != network || revision != before.next() {
            return Err(StoreError::Unsupported { what: "commit revisions that do not follow each other" });
        }
        before = revision;
    }
    Ok(())
}

/// Keeps networks. See the module for what an implementation promises.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// All networks.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] or [`StoreError::Corrupt`].
    async fn networks(&self) -> Result<Vec<NetworkEntry>, StoreError>;

    /// Creates a network by its first commit, which must be of revision 1.
    ///
    /// # Errors
    /// [`StoreError::NameTaken`], [`StoreError::Conflict`] when the network exists, [`StoreError::TooMany`], or a failure.
    async fn create_network(&self, name: &Name, first: Commit) -> Result<(), StoreError>;

    /// Deletes a network with everything but its audit trail.
    ///
    /// # Errors
    /// [`StoreError::UnknownNetwork`] or a failure.
    async fn delete_network(&self, network: NetworkId, audit: AuditNote) -> Result<(), StoreError>;

    /// All rows of a network.
    ///
    /// # Errors
    /// [`StoreError::UnknownNetwork`] or a failure.
    async fn load(&self, network: NetworkId) -> Result<Loaded, StoreError>;

    /// Commits revisions that follow each other and `expected`, all of them or none, together with their audit
    /// records. When it returns `Ok` they are durable.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when the network is at another revision, [`StoreError::UnknownNetwork`], or a failure.
    async fn commit(
        &self,
        network: NetworkId,
        expected: Revision,
        commits: Vec<Commit>,
    ) -> Result<(), StoreError>;

    /// The revisions after `revision`, in order; empty when it is the current one or above it.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] when the log does not reach back, [`StoreError::UnknownNetwork`], or a failure.
    async fn changes_since(&self, network: NetworkId, revision: Revision) -> Result<Vec<Logged>, StoreError>;

    /// The newest committed revision that this process knows of, for whoever wants to learn of others' commits.
    fn revisions(&self, network: NetworkId) -> watch::Receiver<Revision>;

    /// Audit records with a sequence number above `after`, oldest first, at most `limit` (and [`MAX_AUDIT_PAGE`]).
    /// `None` lists all networks' and the controller's own.
    ///
    /// # Errors
    /// A failure.
    async fn audit(
        &self,
        network: Option<NetworkId>,
        after: u64,
        limit: usize,
    ) -> Result<Vec<AuditRecord>, StoreError>;

    /// All operators' tokens.
    ///
    /// # Errors
    /// A failure.
    async fn operators(&self) -> Result<Vec<Operator>, StoreError>;

    /// Adds an operator's token.
    ///
    /// # Errors
    /// [`StoreError::TooMany`] or a failure.
    async fn add_operator(&self, operator: Operator, audit: AuditNote) -> Result<(), StoreError>;

    /// Removes an operator's token; `false` when there was none.
    ///
    /// # Errors
    /// A failure.
    async fn remove_operator(&self, id: TokenId, audit: AuditNote) -> Result<bool, StoreError>;

    /// Adds an audit record of what was done to the controller itself.
    ///
    /// # Errors
    /// A failure.
    async fn note(&self, audit: AuditNote) -> Result<(), StoreError>;

    /// Writes a little and takes it back: `Ok` when the store takes commits.
    ///
    /// # Errors
    /// The failure that a commit would meet.
    async fn probe(&self) -> Result<(), StoreError>;

    /// Writes a consistent copy of everything to a file that does not exist or is empty.
    ///
    /// # Errors
    /// [`StoreError::Unsupported`] where there is no such file form, or a failure.
    async fn copy_to(&self, path: &Path) -> Result<(), StoreError>;

    /// Takes over a network out of another store, as it was there. It is there whole or not at all.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when the network exists, [`StoreError::NameTaken`], or a failure.
    async fn adopt(&self, network: Moved) -> Result<(), StoreError> {
        let _ = network;
        Err(StoreError::Unsupported { what: "take networks over" })
    }

    /// Takes over what belongs to no network's state: operators, and the audit trail, whose records get new numbers in
    /// the same order.
    ///
    /// # Errors
    /// A failure. Part of it may be there then.
    async fn adopt_rest(&self, operators: Vec<Operator>, audit: Vec<AuditRecord>) -> Result<(), StoreError> {
        let _ = (operators, audit);
        Err(StoreError::Unsupported { what: "take operators over" })
    }

    /// Finishes what was accepted and lets go of all files. Later calls fail with [`StoreError::Unavailable`].
    async fn close(&self);
    /// What controllers tell each other, where several of them may use the store at the same time.
    fn shared(&self) -> Option<&dyn SharedStore> {
        None
    }
}

/// A store that several controllers use at the same time.
#[async_trait]
pub trait SharedStore: Send + Sync {
    /// Changes whenever networks or operators came or went, whoever did it.
    fn catalogue(&self) -> watch::Receiver<u64>;

    /// Whether the store answers. Followed all the time, not only when something is written.
    fn reachable(&self) -> watch::Receiver<bool>;

    /// Tells the others which ephemeral nodes this controller has. Holds for [`PRESENT_FOR`].
    ///
    /// # Errors
    /// A failure.
    async fn report_present(&self, network: NetworkId, nodes: &[NodeId]) -> Result<(), StoreError>;

    /// The ephemeral nodes that the others have.
    ///
    /// # Errors
    /// A failure.
    async fn present_elsewhere(&self, network: NetworkId) -> Result<Vec<NodeId>, StoreError>;

    /// Asks the others' members about nodes that seem absent here. Holds for [`PRESENT_FOR`].
    ///
    /// # Errors
    /// A failure.
    async fn report_suspects(&self, network: NetworkId, nodes: &[NodeId]) -> Result<(), StoreError>;

    /// The nodes about which the others want to know.
    ///
    /// # Errors
    /// A failure.
    async fn suspects_elsewhere(&self, network: NetworkId) -> Result<Vec<NodeId>, StoreError>;

    /// Tells the others what this controller's nodes have applied. Holds for [`PRESENT_FOR`].
    ///
    /// # Errors
    /// A failure.
    async fn report_applied(&self, network: NetworkId, applied: &Applied) -> Result<(), StoreError>;

    /// What the others' nodes have applied.
    ///
    /// # Errors
    /// A failure.
    async fn applied_elsewhere(&self, network: NetworkId) -> Result<Vec<Applied>, StoreError>;

    /// A secret, sealed as it was stored.
    ///
    /// # Errors
    /// A failure.
    async fn secret(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError>;

    /// Stores a sealed secret unless there is one of this name, and returns the one that is there now.
    ///
    /// # Errors
    /// A failure.
    async fn put_secret(&self, name: &str, sealed: &[u8]) -> Result<Vec<u8>, StoreError>;

    /// Puts a sealed secret in the place of another one, and has all controllers look; `false` when that one is not there.
    ///
    /// # Errors
    /// A failure.
    async fn replace_secret(&self, name: &str, old: &[u8], new: &[u8]) -> Result<bool, StoreError>;

    /// Removes a secret.
    ///
    /// # Errors
    /// A failure.
    async fn remove_secret(&self, name: &str) -> Result<(), StoreError>;
}
