//! The records of all revisions that some agent stands at, once for all agents of this process.
//!
//! Ten thousand maps of sixty thousand records do not fit into one machine. Each agent has its own head and its own set
//! hash, and verifies what it is sent by itself; only the records lie here, and an agent's map is what was put at its
//! revision or before.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use znet_core::id::Revision;
use znet_core::map::{Record, RecordKey};

/// A record as it was from a revision on; `None` when it was gone.
type Version = (Revision, Option<Arc<Record>>);

/// Records by key, and for each key by revision.
#[derive(Debug, Default)]
pub(super) struct History(RwLock<HashMap<RecordKey, Vec<Version>>>);

impl History {
    /// A record as an agent knows it that stands at this revision.
    pub(super) fn at(&self, key: RecordKey, revision: Revision) -> Option<Arc<Record>> {
        let records = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let versions = records.get(&key)?;
        let last = versions.partition_point(|(since, _)| *since <= revision).checked_sub(1)?;
        versions.get(last)?.1.clone()
    }

    /// What an agent was told to be so from this revision on. Others may have said it before.
    pub(super) fn put(&self, key: RecordKey, revision: Revision, record: Option<Record>) {
        {
            let records = self.0.read().unwrap_or_else(PoisonError::into_inner);
            let known = records
                .get(&key)
                .map(|versions| versions.binary_search_by_key(&revision, |(since, _)| *since));
            if known.is_some_and(|at| at.is_ok()) {
                return;
            }
        }
        let mut records = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let versions = records.entry(key).or_default();
        if let Err(at) = versions.binary_search_by_key(&revision, |(since, _)| *since) {
            versions.insert(at, (revision, record.map(Arc::new)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use znet_core::id::NodeId;
    use znet_core::map::NodeRecord;

    #[test]
    fn each_sees_what_was_so_at_its_own_revision() -> anyhow::Result<()> {
        let history = History::default();
        let record = |name: &str| -> anyhow::Result<Record> {
            Ok(Record::Node(NodeRecord {
                id: NodeId::from_bytes([1; 32]),
                name: name.parse()?,
                endpoints: vec![],
            }))
        };
        let key = record("a")?.key();
        let at = |revision| history.at(key, Revision::new(revision)).map(|record| (*record).clone());
        history.put(key, Revision::new(5), Some(record("a")?));
        history.put(key, Revision::new(9), None);
        history.put(key, Revision::new(7), Some(record("b")?));
        // Said again by another.
        history.put(key, Revision::new(7), Some(record("b")?));
        assert_eq!([at(4), at(5), at(6)], [None, Some(record("a")?), Some(record("a")?)]);
        assert_eq!([at(7), at(8), at(9), at(10)], [Some(record("b")?), Some(record("b")?), None, None]);
        Ok(())
    }
}
