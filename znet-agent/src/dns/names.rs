//! The names and addresses of one network, by which questions find them: an index of the last verified map.
//!
//! It is beside the map and behind a lock of its own, as the map is copied and compared under its lock, and answers do
//! not wait for that. It costs some 300 bytes a container, once for all containers of a node.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use ipnet::IpNet;
use znet_core::id::{ContainerId, Revision};
use znet_core::map::{Change, ContainerRecord, Map, Record, RecordKey};
use znet_core::name::Name;

/// What is known of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The container's name.
    pub name: Name,
    /// Its IPv6 address.
    pub address6: Ipv6Addr,
    /// Its IPv4 address, where the network has an IPv4 prefix.
    pub address4: Option<Ipv4Addr>,
}

impl Entry {
    fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        std::iter::once(IpAddr::V6(self.address6)).chain(self.address4.map(IpAddr::V4))
    }
}

impl From<&ContainerRecord> for Entry {
    fn from(record: &ContainerRecord) -> Self {
        Self { name: record.name.clone(), address6: record.address6, address4: record.address4 }
    }
}

/// All names of a network at one revision.
#[derive(Debug, Default)]
pub struct Names {
    prefixes: Vec<IpNet>,
    revision: Revision,
    entries: HashMap<ContainerId, Entry>,
    by_name: HashMap<Name, ContainerId>,
    by_address: HashMap<IpAddr, ContainerId>,
}

impl Names {
    /// The network's prefixes. None as long as no map of it is known.
    pub fn prefixes(&self) -> &[IpNet] {
        &self.prefixes
    }

    /// The revision of the map that these names are of.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The container of this name.
    pub fn named(&self, name: &Name) -> Option<&Entry> {
        self.entries.get(self.by_name.get(name)?)
    }

    /// The container that has this address.
    pub fn at(&self, address: IpAddr) -> Option<&Entry> {
        self.entries.get(self.by_address.get(&address)?)
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::Put(Record::Network(record)) => {
                let six = std::iter::once(IpNet::V6(record.prefix6));
                self.prefixes = six.chain(record.prefix4.map(IpNet::V4)).collect();
            }
            Change::Remove(RecordKey::Network) => self.prefixes.clear(),
            Change::Put(Record::Container(record)) => {
                self.forget(record.id);
                let entry = Entry::from(record);
                self.by_name.insert(entry.name.clone(), record.id);
                self.by_address.extend(entry.addresses().map(|address| (address, record.id)));
                self.entries.insert(record.id, entry);
            }
            Change::Remove(RecordKey::Container(id)) => self.forget(*id),
            // A person's device is a container as well, under a record of that kind.
            Change::Put(Record::Node(_) | Record::Access(_))
            | Change::Remove(RecordKey::Node(_) | RecordKey::Access(_)) => {}
        }
    }

    /// Only what still is this container's: steps come in any order, and a name may have been given on by an earlier one.
    fn forget(&mut self, id: ContainerId) {
        let Some(old) = self.entries.remove(&id) else { return };
        if self.by_name.get(&old.name) == Some(&id) {
            self.by_name.remove(&old.name);
        }
        for address in old.addresses() {
            if self.by_address.get(&address) == Some(&id) {
                self.by_address.remove(&address);
            }
        }
    }
}

/// The names of a network as they are now, for all that answer questions about it.
#[derive(Debug, Default)]
pub struct Directory(RwLock<Names>);

impl Directory {
    /// The names in a map.
    pub fn of(map: &Map, revision: Revision) -> Self {
        let directory = Self::default();
        let all: Vec<Change> = map.records().map(Change::Put).collect();
        directory.apply(&all, revision);
        directory
    }

    /// Follows the steps between two maps.
    pub fn apply(&self, changes: &[Change], revision: Revision) {
        let mut names = self.write();
        changes.iter().for_each(|change| names.apply(change));
        names.revision = revision;
    }

    /// The names as they are now; held for one lookup.
    pub fn read(&self) -> RwLockReadGuard<'_, Names> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Names> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use znet_core::id::NodeId;
    use znet_core::key::PublicKey;

    use super::*;

    fn container(id: u64, name: &str, host: u16) -> Record {
        Record::Container(ContainerRecord {
            id: ContainerId::new(id),
            name: name.parse().unwrap(),
            node: NodeId::from_bytes([1; 32]),
            public_key: PublicKey::from_bytes([2; 32]),
            address6: Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, host),
            address4: Some(Ipv4Addr::new(10, 77, 0, host as u8)),
            also_key: None,
            rekey: false,
            port: None,
        })
    }

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn a_name_that_passes_to_another_container_in_one_change_is_found_in_whatever_order_the_steps_come() {
        let put = Change::Put(container(2, "web", 2));
        let remove = Change::Remove(RecordKey::Container(ContainerId::new(1)));
        for steps in [[put.clone(), remove.clone()], [remove, put]] {
            let directory = Directory::default();
            directory.apply(&[Change::Put(container(1, "web", 1))], Revision::new(1));
            directory.apply(&steps, Revision::new(2));
            let names = directory.read();
            assert_eq!(names.named(&name("web")).unwrap().address4, Some(Ipv4Addr::new(10, 77, 0, 2)));
            assert_eq!(names.at("10.77.0.1".parse().unwrap()), None);
            assert_eq!(names.at("fd77::2".parse().unwrap()).unwrap().name, name("web"));
            assert_eq!((names.entries.len(), names.by_name.len(), names.by_address.len()), (1, 1, 2));
        }
    }

    #[test]
    fn a_container_that_is_put_again_leaves_nothing_of_what_it_was() {
        let directory = Directory::default();
        directory.apply(&[Change::Put(container(1, "old", 1))], Revision::new(1));
        directory.apply(&[Change::Put(container(1, "new", 9))], Revision::new(2));
        let names = directory.read();
        assert_eq!(names.named(&name("old")), None);
        assert_eq!(names.at("10.77.0.1".parse().unwrap()), None);
        assert_eq!(names.named(&name("new")).unwrap().address6, "fd77::9".parse::<Ipv6Addr>().unwrap());
        assert_eq!((names.entries.len(), names.by_name.len(), names.by_address.len()), (1, 1, 2));
    }
}
