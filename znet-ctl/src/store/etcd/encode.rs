//! What is written under the keys: JSON, as in the embedded store.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use znet_core::controller::StateChange;
use znet_core::id::{NetworkId, Revision, TokenId};
use znet_core::map::Head;
use znet_core::time::Timestamp;

use crate::actor::Scope;
use crate::store::{AuditNote, AuditRecord, Commit, Logged, Operator, StoreError};

/// One revision of the log.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Step {
    pub(super) head: Head,
    pub(super) changes: Vec<StateChange>,
}

impl From<Step> for Logged {
    fn from(step: Step) -> Self {
        Self { head: step.head, changes: step.changes }
    }
}

/// One commit in the log: its revisions, or the number of the pieces that hold them.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Drawn for this commit, so that a writer who got no answer can tell whether it was its own that happened.
    pub(super) tag: String,
    /// The last number of the audit trail that the commit used: later ones of the network are above it.
    pub(super) seq: u64,
    #[serde(default)]
    pub(super) parts: usize,
    #[serde(default)]
    pub(super) steps: Vec<Step>,
}

/// Up to where rows are folded.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Base {
    pub(super) revision: Revision,
    /// Whose folding goes on; whoever sets another one takes over.
    #[serde(default)]
    pub(super) claim: String,
}

/// An audit record without what its key says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Note {
    revision: Option<Revision>,
    at: Timestamp,
    actor: String,
    action: String,
    detail: String,
}

impl Note {
    pub(super) fn new(revision: Option<Revision>, note: AuditNote) -> Self {
        let AuditNote { at, actor, action, detail } = note;
        Self { revision, at, actor: actor.to_string(), action: action.to_owned(), detail }
    }

    pub(super) fn record(self, network: Option<NetworkId>, seq: u64) -> AuditRecord {
        let Self { revision, at, actor, action, detail } = self;
        AuditRecord { seq, network, revision, at, actor, action, detail }
    }
}

impl From<AuditRecord> for Note {
    fn from(record: AuditRecord) -> Self {
        let AuditRecord { revision, at, actor, action, detail, .. } = record;
        Self { revision, at, actor, action, detail }
    }
}

/// Commits in the form in which they are written.
#[derive(Debug)]
pub(super) struct Encoded {
    pub(super) steps: Vec<Step>,
    pub(super) notes: Vec<Note>,
    /// When the last of them was decided.
    pub(super) at: Timestamp,
}

impl Encoded {
    pub(super) fn new(commits: Vec<Commit>) -> Self {
        let at = commits.iter().map(|commit| commit.audit.at).max().unwrap_or_default();
        let (steps, notes) = commits
            .into_iter()
            .map(|commit| {
                let note = Note::new(Some(commit.head.revision), commit.audit);
                (Step { head: commit.head, changes: commit.changes }, note)
            })
            .unzip();
        Self { steps, notes, at }
    }
}

/// An operator's token.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct OperatorForm {
    id: TokenId,
    note: String,
    secret_hash: [u8; 32],
    network: Option<NetworkId>,
    role: String,
    created: Timestamp,
}

impl From<Operator> for OperatorForm {
    fn from(operator: Operator) -> Self {
        let network = match operator.scope {
            Scope::All => None,
            Scope::Network(network) => Some(network),
        };
        let Operator { id, note, secret_hash, role, created, .. } = operator;
        Self { id, note, secret_hash, network, role: role.to_string(), created }
    }
}

impl TryFrom<OperatorForm> for Operator {
    type Error = StoreError;

    fn try_from(form: OperatorForm) -> Result<Self, StoreError> {
        let OperatorForm { id, note, secret_hash, network, role, created } = form;
        let role = role.parse().map_err(|error| StoreError::Corrupt { what: format!("{error}") })?;
        let scope = network.map_or(Scope::All, Scope::Network);
        Ok(Self { id, note, secret_hash, scope, role, created })
    }
}

/// Writes JSON.
pub(super) fn to_json<T: Serialize>(value: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value)
        .map_err(|error| StoreError::Corrupt { what: format!("a value cannot be encoded: {error}") })
}

/// Reads JSON.
pub(super) fn from_json<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(bytes)
        .map_err(|error| StoreError::Corrupt { what: format!("{what} cannot be read: {error}") })
}

/// Reads a key, which is always text.
pub(super) fn text<'a>(what: &str, bytes: &'a [u8]) -> Result<&'a str, StoreError> {
    std::str::from_utf8(bytes).map_err(|_| StoreError::Corrupt { what: format!("{what} is no text") })
}

/// Reads a head.
pub(super) fn revision(bytes: &[u8]) -> Result<Revision, StoreError> {
    let number = text("a revision", bytes)?.parse().map(Revision::new);
    number.map_err(|error| StoreError::Corrupt { what: format!("a revision cannot be read: {error}") })
}
