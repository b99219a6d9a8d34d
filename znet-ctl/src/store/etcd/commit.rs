//! Writing: creating and deleting networks, and committing to them.
//!
//! A commit is one transaction, whatever its size: it compares the network's head, sets it, and adds one entry to the
//! log. The rows follow later (see [`super::fold`]), so that etcd's limit on the number of operations of a transaction
//! does not bound a commit. Its limit on the size of a request does not either: what is too big for one is written in
//! pieces first, which mean nothing until an entry of the log names them.

use znet_core::id::{NetworkId, Revision};
use znet_core::name::Name;

use super::encode::{Base, Encoded, Entry, Note, Step, from_json, revision, text, to_json};
use super::inner::{Inner, PAGE, absent, delete, delete_under, get, get_under, is, put, tag, unchanged};
use super::names::number;
use crate::store::{AuditNote, Commit, MAX_NETWORKS, StoreError};

/// Most bytes of a commit that are written together with the head: etcd takes requests of 1.5 MiB.
const INLINE: usize = 512 * 1024;
/// Size of a piece of a commit that is too big for that.
const PIECE: usize = 512 * 1024;
/// Most bytes of one commit.
const MAX_COMMIT: usize = 64 << 20;
/// Most bytes of the audit records of one commit.
const MAX_NOTES: usize = 512 * 1024;
/// How often something is tried while others change networks or operators at the same time.
pub(super) const MAX_RACES: usize = 20;

impl Inner {
    /// Commits revisions after `expected`.
    pub(super) async fn commit(
        &self,
        network: NetworkId,
        expected: Revision,
        commits: Vec<Commit>,
    ) -> Result<(), StoreError> {
        let head = self.names.head(network);
        let conflict = |found| StoreError::Conflict { network, expected, found };
        let Some(last) = commits.last().map(|commit| commit.head.revision) else {
            let said = self.ask(vec![get(head)]).await?;
            let pair = said.only(0)?.ok_or(StoreError::UnknownNetwork { network })?;
            let found = revision(&pair.value)?;
            return if found == expected { Ok(()) } else { Err(conflict(found)) };
        };
        let encoded = Encoded::new(commits);
        let (tag, key) = (tag(), self.names.log_entry(network, expected.next(), last));
        let seq = self.next_seq(encoded.at, encoded.notes.len());
        let entry = self.entry(network, expected, last, &tag, seq, encoded.steps).await?;
        let mut writes = vec![put(head.clone(), last.to_string()), put(key.clone(), entry)];
        writes.extend(self.notes(Some(network), seq, &encoded.notes)?);
        let same = vec![is(head.clone(), expected.to_string())];
        let said = self.txn(same, writes, vec![get(head)]).await?;
        if !said.held {
            let found = said.only(0)?.map(|pair| revision(&pair.value)).transpose()?;
            // An attempt whose answer got lost may have been the one that moved the head.
            if !(said.repeated && self.is_own(key, &tag).await?) {
                // Nothing names them, so nobody misses them; a crash leaves them to whoever folds.
                let _ = self.ask(vec![delete_under(self.names.parts_of(network, last, &tag))]).await;
                return Err(found.map_or(StoreError::UnknownNetwork { network }, conflict));
            }
        }
        self.announce(network, last);
        Ok(())
    }

    /// Whether the log has this entry under this tag.
    async fn is_own(&self, key: String, tag: &str) -> Result<bool, StoreError> {
        let Some(pair) = self.ask(vec![get(key)]).await?.only(0)? else { return Ok(false) };
        Ok(from_json::<Entry>("an entry of the change log", &pair.value)?.tag == tag)
    }

    /// The entry of the log for these revisions; their pieces are written if they need any.
    async fn entry(
        &self,
        network: NetworkId,
        expected: Revision,
        last: Revision,
        tag: &str,
        seq: u64,
        steps: Vec<Step>,
    ) -> Result<Vec<u8>, StoreError> {
        let whole = to_json(&Entry { tag: tag.to_owned(), seq, parts: 0, steps })?;
        if whole.len() <= INLINE {
            return Ok(whole);
        }
        if whole.len() > MAX_COMMIT {
            return Err(StoreError::Unsupported { what: "take a change of more than 64 MiB at once" });
        }
        let prefix = self.names.parts_of(network, last, tag);
        let pieces = whole.chunks(PIECE);
        let parts = pieces.len();
        for (at, piece) in (0..).zip(pieces) {
            let same = vec![is(self.names.head(network), expected.to_string())];
            let key = format!("{prefix}{}", number(at));
            if !self.txn(same, vec![put(key, piece)], Vec::new()).await?.held {
                // Somebody was faster, which the commit itself will find out and tell.
                break;
            }
        }
        to_json(&Entry { tag: tag.to_owned(), seq, parts, steps: Vec::new() })
    }

    /// What writes audit records: `seq` is the number of the last.
    pub(super) fn notes(
        &self,
        network: Option<NetworkId>,
        seq: u64,
        notes: &[Note],
    ) -> Result<Vec<etcd_client::TxnOp>, StoreError> {
        let value = to_json(&notes)?;
        if value.len() > MAX_NOTES {
            return Err(StoreError::Unsupported { what: "take audit records of more than 512 KiB at once" });
        }
        let key = format!("{}{}", self.names.audit(network), number(seq));
        Ok(vec![put(key, value), put(self.names.trail_entry(network, seq), "")])
    }

    /// Creates a network by its first commit.
    pub(super) async fn create(&self, name: &Name, first: Commit) -> Result<(), StoreError> {
        let (network, last) = (first.head.network, first.head.revision);
        let (head, named, changed) =
            (self.names.head(network), self.names.name(name), self.names.networks_changed());
        let encoded = Encoded::new(vec![first]);
        let tag = tag();
        let seq = self.next_seq(encoded.at, encoded.notes.len());
        let key = self.names.log_entry(network, last, last);
        let entry = to_json(&Entry { tag: tag.clone(), seq, parts: 0, steps: encoded.steps })?;
        let base = to_json(&Base { revision: Revision::ZERO, claim: String::new() })?;
        let mut writes = vec![
            put(head.clone(), last.to_string()),
            put(named.clone(), network.to_string()),
            put(self.names.base(network), base),
            put(key.clone(), entry),
            put(changed.clone(), tag.clone()),
        ];
        writes.extend(self.notes(Some(network), seq, &encoded.notes)?);
        for _ in 0..MAX_RACES {
            let questions = vec![
                get(head.clone()),
                get(named.clone()),
                get(changed.clone()),
                get_under(self.names.names()),
            ];
            let said = self.ask(questions).await?;
            if let Some(pair) = said.only(0)? {
                let found = revision(&pair.value)?;
                return Err(StoreError::Conflict { network, expected: Revision::ZERO, found });
            }
            if said.only(1)?.is_some() {
                return Err(StoreError::NameTaken { name: name.clone() });
            }
            if said.all(3)?.len() >= MAX_NETWORKS {
                return Err(StoreError::TooMany { what: "networks", bound: MAX_NETWORKS });
            }
            let since = said.only(2)?.map_or(0, |pair| pair.changed);
            // Nobody else adds a network meanwhile, so that the bound holds.
            let same = vec![absent(head.clone()), absent(named.clone()), unchanged(changed.clone(), since)];
            let said = self.txn(same, writes.clone(), Vec::new()).await?;
            if said.held || said.repeated && self.is_own(key.clone(), &tag).await? {
                self.announce(network, last);
                return Ok(());
            }
        }
        Err(busy())
    }

    /// Deletes a network with everything but its audit trail.
    pub(super) async fn delete(&self, network: NetworkId, audit: AuditNote) -> Result<(), StoreError> {
        let (head, at) = (self.names.head(network), audit.at);
        let mut repeated = false;
        let mut note = Some(audit);
        let mut written = None;
        for _ in 0..MAX_RACES {
            let said = self.ask(vec![get(head.clone())]).await?;
            let Some(pair) = said.only(0)? else {
                return if repeated { Ok(()) } else { Err(StoreError::UnknownNetwork { network }) };
            };
            let found = revision(&pair.value)?;
            let name = self.name_of(network, said.at).await?;
            if let Some(note) = note.take() {
                let seq = self.next_seq(at, 1);
                written = Some(self.notes(Some(network), seq, &[Note::new(Some(found), note)])?);
            }
            let mut writes = vec![
                delete(head.clone()),
                delete_under(self.names.network(network)),
                delete_under(self.names.present(network)),
                put(self.names.networks_changed(), tag()),
            ];
            writes.extend(name.map(delete));
            writes.extend(written.clone().unwrap_or_default());
            let said = self.txn(vec![is(head.clone(), found.to_string())], writes, Vec::new()).await?;
            if said.held {
                return Ok(());
            }
            repeated |= said.repeated;
        }
        Err(busy())
    }

    /// The key of a network's name.
    async fn name_of(&self, network: NetworkId, at: i64) -> Result<Option<String>, StoreError> {
        let wanted = network.to_string();
        let names = self.under(self.names.names(), at, PAGE).await?;
        let own = names.into_iter().find(|pair| text("a name", &pair.value).is_ok_and(|id| id == wanted));
        Ok(own.map(|pair| pair.key))
    }
}

pub(super) fn busy() -> StoreError {
    StoreError::Unavailable { why: "other writers are faster all the time".to_owned() }
}
