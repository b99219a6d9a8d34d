//! The map: all that a network's members must know, how it changes, and why an agent believes it.
//!
//! A map is a set of [`Record`]s. Two revisions differ by a [`Delta`]; a [`Digest`] over the records is kept up to
//! date at the price of the records that changed and not of the map; a [`SignedHead`] binds network, epoch, revision
//! and digest under the network's signing key. The agent's side is [`Member`]: it holds the last map that it could
//! verify and refuses everything else.

mod controllers;
mod digest;
mod head;
mod member;
mod record;
mod succession;

pub use controllers::{ControllerRecord, MAX_CONTROLLERS, MAX_PINS, is_host_and_port};
pub use digest::{Digest, SetHash};
pub use head::{Head, SignedHead};
pub use member::{Member, Refusal};
pub use record::{
    AccessRecord, ContainerRecord, MAX_ENDPOINTS, NetworkRecord, NodeRecord, Record, RecordKey,
};
pub use succession::{LineRefusal, MAX_LINE, Succession, follow};

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::id::{ContainerId, NetworkId, NodeId, Revision};

/// One step between two maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The record is new, or replaces the one under the same key.
    Put(Record),
    /// The record under this key is gone.
    Remove(RecordKey),
}

impl Change {
    /// The key of the record that this step touches.
    pub fn key(&self) -> RecordKey {
        match self {
            Self::Put(record) => record.key(),
            Self::Remove(key) => *key,
        }
    }
}

/// What changed between two revisions. A key appears at most once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta {
    /// The revision that the changes apply to.
    pub from: Revision,
    /// The revision that results.
    pub to: Revision,
    /// The steps, in any order.
    pub changes: Vec<Change>,
}

impl Delta {
    /// One delta for several in a row: the last word on each record wins. `None` for none at all.
    pub fn squash<'a>(deltas: impl IntoIterator<Item = &'a Self>) -> Option<Self> {
        let mut deltas = deltas.into_iter();
        let first = deltas.next()?;
        let mut last_word: BTreeMap<RecordKey, Change> = BTreeMap::new();
        let mut to = first.to;
        for change in &first.changes {
            last_word.insert(change.key(), change.clone());
        }
        for delta in deltas {
            to = delta.to;
            for change in &delta.changes {
                last_word.insert(change.key(), change.clone());
            }
        }
        Some(Self { from: first.from, to, changes: last_word.into_values().collect() })
    }
}

/// The records of one network at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Map {
    network: Option<NetworkRecord>,
    nodes: BTreeMap<NodeId, NodeRecord>,
    containers: BTreeMap<ContainerId, ContainerRecord>,
    accesses: BTreeMap<ContainerId, AccessRecord>,
}

impl Map {
    /// The network's own record; `None` only in the empty map.
    pub fn network(&self) -> Option<&NetworkRecord> {
        self.network.as_ref()
    }

    /// The node of this identifier.
    pub fn node(&self, id: &NodeId) -> Option<&NodeRecord> {
        self.nodes.get(id)
    }

    /// The container of this identifier.
    pub fn container(&self, id: ContainerId) -> Option<&ContainerRecord> {
        self.containers.get(&id)
    }

    /// All nodes, by identifier.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = &NodeRecord> {
        self.nodes.values()
    }

    /// All containers, by identifier.
    pub fn containers(&self) -> impl ExactSizeIterator<Item = &ContainerRecord> {
        self.containers.values()
    }

    /// The access point that is seen as this container.
    pub fn access(&self, id: ContainerId) -> Option<&AccessRecord> {
        self.accesses.get(&id)
    }

    /// All access points, by the container as which each is seen.
    pub fn accesses(&self) -> impl ExactSizeIterator<Item = &AccessRecord> {
        self.accesses.values()
    }

    /// Number of records of all kinds.
    pub fn len(&self) -> usize {
        let containers = self.containers.len() + self.accesses.len();
        usize::from(self.network.is_some()) + self.nodes.len() + containers
    }

    /// Whether there is no record at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The record under a key.
    pub fn get(&self, key: RecordKey) -> Option<Record> {
        match key {
            RecordKey::Network => self.network.clone().map(Record::Network),
            RecordKey::Node(id) => self.nodes.get(&id).cloned().map(Record::Node),
            RecordKey::Container(id) => self.containers.get(&id).cloned().map(Record::Container),
            RecordKey::Access(id) => self.accesses.get(&id).cloned().map(Record::Access),
        }
    }

    /// Every record, in the order of their keys.
    pub fn records(&self) -> impl Iterator<Item = Record> + '_ {
        let network = self.network.iter().cloned().map(Record::Network);
        let nodes = self.nodes.values().cloned().map(Record::Node);
        let containers = self.containers.values().cloned().map(Record::Container);
        let accesses = self.accesses.values().cloned().map(Record::Access);
        network.chain(nodes).chain(containers).chain(accesses)
    }

    /// Puts a record under its key and returns the one that it replaced.
    pub fn put(&mut self, record: Record) -> Option<Record> {
        match record {
            Record::Network(record) => self.network.replace(record).map(Record::Network),
            Record::Node(record) => self.nodes.insert(record.id, record).map(Record::Node),
            Record::Container(record) => self.containers.insert(record.id, record).map(Record::Container),
            Record::Access(record) => self.accesses.insert(record.id, record).map(Record::Access),
        }
    }

    /// Removes the record under a key and returns it.
    pub fn remove(&mut self, key: RecordKey) -> Option<Record> {
        match key {
            RecordKey::Network => self.network.take().map(Record::Network),
            RecordKey::Node(id) => self.nodes.remove(&id).map(Record::Node),
            RecordKey::Container(id) => self.containers.remove(&id).map(Record::Container),
            RecordKey::Access(id) => self.accesses.remove(&id).map(Record::Access),
        }
    }

    /// Carries out one step; harmless to repeat.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Put(record) => drop(self.put(record.clone())),
            Change::Remove(key) => drop(self.remove(*key)),
        }
    }

    /// The steps that lead from this map to `new`: `self` with all of them applied equals `new`.
    pub fn diff(&self, new: &Self) -> Vec<Change> {
        let mut changes = Vec::new();
        match (&self.network, &new.network) {
            (Some(_), None) => changes.push(Change::Remove(RecordKey::Network)),
            (old, Some(record)) if old.as_ref() != Some(record) => {
                changes.push(Change::Put(Record::Network(record.clone())));
            }
            _ => {}
        }
        diff_kind(&self.nodes, &new.nodes, RecordKey::Node, Record::Node, &mut changes);
        diff_kind(&self.containers, &new.containers, RecordKey::Container, Record::Container, &mut changes);
        diff_kind(&self.accesses, &new.accesses, RecordKey::Access, Record::Access, &mut changes);
        changes
    }

    /// The set hash over all records, computed anew; its price grows with the map.
    pub fn set_hash(&self, network: NetworkId) -> SetHash {
        let mut hash = SetHash::empty(network);
        self.records().for_each(|record| hash.add(&record));
        hash
    }

    /// The addresses of a container that this map knows: IPv6, then IPv4 where the network has it.
    pub fn addresses(&self, id: ContainerId) -> impl Iterator<Item = IpAddr> + '_ {
        self.container(id).into_iter().flat_map(ContainerRecord::addresses)
    }
}

/// The steps between the records of one kind. Only what differs is cloned.
fn diff_kind<K: Ord + Copy, V: PartialEq + Clone>(
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
    key: fn(K) -> RecordKey,
    record: fn(V) -> Record,
    changes: &mut Vec<Change>,
) {
    let gone = old.keys().filter(|id| !new.contains_key(id));
    changes.extend(gone.map(|id| Change::Remove(key(*id))));
    let put = new.iter().filter(|(id, value)| old.get(id) != Some(value));
    changes.extend(put.map(|(_, value)| Change::Put(record(value.clone()))));
}

impl FromIterator<Record> for Map {
    fn from_iter<I: IntoIterator<Item = Record>>(records: I) -> Self {
        let mut map = Self::default();
        for record in records {
            map.put(record);
        }
        map
    }
}
