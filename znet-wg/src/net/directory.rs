//! All peers of a network: who they are, which addresses are theirs and where they were last reached.
//!
//! One directory serves all containers of a node, so that ten thousand peers cost ten thousand entries and not that
//! times the containers. Sessions are not in here: they are made by the first packet.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use znet_core::key::PublicKey;

use crate::control::Peer;

/// A peer as the directory keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// What the agent said.
    pub peer: Peer,
    /// The underlay address from which the peer last proved itself. It outlives sessions and every update of the
    /// peer that does not change the configured endpoints.
    pub learned: Option<SocketAddr>,
}

impl DirectoryEntry {
    /// Where to send to: what was learned, else the configured endpoint of the given attempt, in turn.
    pub fn endpoint(&self, attempt: usize) -> Option<SocketAddr> {
        let count = self.peer.endpoints.len();
        match (self.learned, attempt) {
            (Some(learned), 0) => Some(learned),
            (Some(learned), _) if count == 0 => Some(learned),
            (Some(_), attempt) => self.peer.endpoints.get((attempt - 1) % count).copied(),
            (None, _) if count == 0 => None,
            (None, attempt) => self.peer.endpoints.get(attempt % count).copied(),
        }
    }
}

impl DirectoryEntry {
    fn places(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.peer.endpoints.iter().chain(&self.learned).map(SocketAddr::ip)
    }
}

fn leave(places: &mut HashMap<IpAddr, u32>, place: IpAddr) {
    if let Some(count) = places.get_mut(&place) {
        *count -= 1;
        if *count == 0 {
            places.remove(&place);
        }
    }
}

/// All peers of a network. Changing one costs the same at any size.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    entries: HashMap<PublicKey, DirectoryEntry>,
    owners: HashMap<IpAddr, PublicKey>,
    /// Number of peers that are, or were seen, at an underlay address: those are served first.
    places: HashMap<IpAddr, u32>,
    /// Keys that a replacement under way has not named yet.
    unnamed: Option<HashSet<PublicKey>>,
}

impl Directory {
    /// Number of peers.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no peer.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The peer of this key.
    pub fn get(&self, key: &PublicKey) -> Option<&DirectoryEntry> {
        self.entries.get(key)
    }

    /// All peers, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &DirectoryEntry> {
        self.entries.values()
    }

    /// Who has an address.
    pub fn owner(&self, address: &IpAddr) -> Option<&PublicKey> {
        self.owners.get(address)
    }

    /// Whether some peer is configured at, or was seen at, this underlay address.
    pub fn knows_endpoint(&self, endpoint: &SocketAddr) -> bool {
        self.places.contains_key(&endpoint.ip())
    }

    /// Adds a peer or replaces the one of its key. Returns whether sessions with it have to end, because their
    /// preshared key is another now.
    pub fn put(&mut self, peer: Peer) -> bool {
        let key = peer.public_key;
        if let Some(unnamed) = &mut self.unnamed {
            unnamed.remove(&key);
        }
        let old = self.entries.remove(&key);
        if let Some(old) = &old {
            self.disown(old);
        }
        for address in &peer.addresses {
            self.owners.insert(*address, key);
        }
        let rekeyed = old.as_ref().is_some_and(|old| old.peer.preshared_key != peer.preshared_key);
        let learned = old.filter(|old| old.peer.endpoints == peer.endpoints).and_then(|old| old.learned);
        let entry = DirectoryEntry { peer, learned };
        entry.places().for_each(|place| *self.places.entry(place).or_default() += 1);
        self.entries.insert(key, entry);
        rekeyed
    }

    /// Removes a peer; `false` when there was none.
    pub fn remove(&mut self, key: &PublicKey) -> bool {
        match self.entries.remove(key) {
            Some(old) => {
                self.disown(&old);
                true
            }
            None => false,
        }
    }

    /// Notes from where a peer proved itself.
    pub fn learn(&mut self, key: &PublicKey, endpoint: SocketAddr) {
        if let Some(entry) = self.entries.get_mut(key) {
            if let Some(old) = entry.learned.replace(endpoint) {
                leave(&mut self.places, old.ip());
            }
            *self.places.entry(endpoint.ip()).or_default() += 1;
        }
    }

    /// Begins to replace the directory: whoever is not put until the end is removed then.
    pub fn begin_replace(&mut self) {
        self.unnamed = Some(self.entries.keys().copied().collect());
    }

    /// Ends a replacement and returns whom it removed.
    pub fn end_replace(&mut self) -> Vec<PublicKey> {
        let gone: Vec<PublicKey> = self.unnamed.take().unwrap_or_default().into_iter().collect();
        for key in &gone {
            self.remove(key);
        }
        gone
    }

    fn disown(&mut self, old: &DirectoryEntry) {
        old.places().for_each(|place| leave(&mut self.places, place));
        for address in &old.peer.addresses {
            // Another peer may have taken the address over in the meantime.
            if self.owners.get(address) == Some(&old.peer.public_key) {
                self.owners.remove(address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn peer(key: u8, address: &str, endpoints: &[&str]) -> Peer {
        Peer {
            public_key: PublicKey::from_bytes([key; 32]),
            addresses: vec![address.parse().unwrap()],
            endpoints: endpoints.iter().map(|e| e.parse().unwrap()).collect(),
            preshared_key: None,
        }
    }

    #[test]
    fn a_learned_endpoint_survives_an_update_that_does_not_change_the_configured_ones() {
        let mut directory = Directory::default();
        directory.put(peer(1, "10.0.0.1", &["192.0.2.1:1"]));
        let key = PublicKey::from_bytes([1; 32]);
        directory.learn(&key, "192.0.2.9:9".parse().unwrap());
        directory.put(peer(1, "10.0.0.2", &["192.0.2.1:1"]));
        assert_eq!(directory.get(&key).unwrap().endpoint(0), Some("192.0.2.9:9".parse().unwrap()));
        assert_eq!(directory.owner(&"10.0.0.1".parse().unwrap()), None);
        directory.put(peer(1, "10.0.0.2", &["192.0.2.2:2"]));
        assert_eq!(directory.get(&key).unwrap().endpoint(0), Some("192.0.2.2:2".parse().unwrap()));
    }

    #[test]
    fn an_address_that_moved_stays_with_its_new_owner_when_the_old_one_goes() {
        let mut directory = Directory::default();
        directory.put(peer(1, "10.0.0.1", &[]));
        directory.put(peer(2, "10.0.0.1", &[]));
        directory.remove(&PublicKey::from_bytes([1; 32]));
        assert_eq!(directory.owner(&"10.0.0.1".parse().unwrap()), Some(&PublicKey::from_bytes([2; 32])));
    }

    #[test]
    fn a_replacement_removes_only_whom_it_does_not_name() {
        let mut directory = Directory::default();
        directory.put(peer(1, "10.0.0.1", &[]));
        directory.put(peer(2, "10.0.0.2", &[]));
        directory.begin_replace();
        directory.put(peer(2, "10.0.0.2", &[]));
        directory.put(peer(3, "10.0.0.3", &[]));
        assert_eq!(directory.end_replace(), vec![PublicKey::from_bytes([1; 32])]);
        assert_eq!(directory.len(), 2);
    }

    #[test]
    fn attempts_take_the_endpoints_in_turn() {
        let mut directory = Directory::default();
        directory.put(peer(1, "10.0.0.1", &["192.0.2.1:1", "192.0.2.2:2"]));
        let key = PublicKey::from_bytes([1; 32]);
        let at = |directory: &Directory, n| directory.get(&key).unwrap().endpoint(n).unwrap().port();
        assert_eq!([0, 1, 2].map(|n| at(&directory, n)), [1, 2, 1]);
        directory.learn(&key, "192.0.2.9:9".parse().unwrap());
        assert_eq!([0, 1, 2, 3].map(|n| at(&directory, n)), [9, 1, 2, 1]);
    }
}
