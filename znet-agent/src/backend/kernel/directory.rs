//! A network's peers, as the map tells them: found by key, and by address when a packet wants one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use znet_core::key::PublicKey;
use znet_wg::control::Peer;

/// The peers of a network.
#[derive(Debug, Default)]
pub(super) struct Directory {
    peers: BTreeMap<PublicKey, Peer>,
    owners: BTreeMap<IpAddr, PublicKey>,
}

impl Directory {
    pub(super) fn len(&self) -> usize {
        self.peers.len()
    }

    pub(super) fn get(&self, key: &PublicKey) -> Option<&Peer> {
        self.peers.get(key)
    }

    /// The peer that owns an address.
    pub(super) fn owner(&self, address: &IpAddr) -> Option<&Peer> {
        self.owners.get(address).and_then(|key| self.peers.get(key))
    }

    pub(super) fn peers(&self) -> impl Iterator<Item = &Peer> {
        self.peers.values()
    }

    /// Puts a peer; `false` when it is there already, exactly so.
    pub(super) fn put(&mut self, peer: Peer) -> bool {
        if self.peers.get(&peer.public_key) == Some(&peer) {
            return false;
        }
        self.remove(&peer.public_key);
        self.owners.extend(peer.addresses.iter().map(|address| (*address, peer.public_key)));
        self.peers.insert(peer.public_key, peer);
        true
    }

    /// The peers that this change supersedes without removing them, each with what takes its place: a container goes on under
    /// another of its keys, with the addresses that it had.
    pub(super) fn superseded(&self, put: &[Peer]) -> BTreeMap<PublicKey, PublicKey> {
        let kept: BTreeSet<&PublicKey> = put.iter().map(|peer| &peer.public_key).collect();
        let taken = put.iter().flat_map(|peer| peer.addresses.iter().map(move |address| (peer, address)));
        let owned = taken.filter_map(|(peer, address)| Some((*self.owners.get(address)?, peer.public_key)));
        owned.filter(|(before, _)| !kept.contains(before)).collect()
    }

    pub(super) fn remove(&mut self, key: &PublicKey) -> Option<Peer> {
        let peer = self.peers.remove(key)?;
        for address in &peer.addresses {
            // Somebody else may have got it in the same change.
            if self.owners.get(address) == Some(key) {
                self.owners.remove(address);
            }
        }
        Some(peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(key: u8, address: u8) -> Peer {
        Peer {
            public_key: PublicKey::from_bytes([key; 32]),
            also_key: None,
            addresses: vec![IpAddr::from([10, 0, 0, address])],
            endpoints: Vec::new(),
            preshared_key: None,
        }
    }

    #[test]
    fn an_address_belongs_to_who_got_it_last_and_to_nobody_when_that_one_is_gone() {
        let mut directory = Directory::default();
        let address = IpAddr::from([10, 0, 0, 7]);
        assert!(directory.put(peer(1, 7)));
        assert!(!directory.put(peer(1, 7)), "nothing changed");
        assert!(directory.put(peer(2, 7)));
        directory.remove(&PublicKey::from_bytes([1; 32]));
        assert_eq!(directory.owner(&address), Some(&peer(2, 7)));
        assert!(directory.put(peer(2, 8)));
        assert_eq!(directory.owner(&address), None);
        assert_eq!(directory.len(), 1);
    }

    #[test]
    fn who_goes_on_under_another_key_is_superseded_and_who_exchanges_addresses_is_not() {
        let mut directory = Directory::default();
        let key = |n: u8| PublicKey::from_bytes([n; 32]);
        directory.put(peer(1, 7));
        directory.put(peer(2, 8));
        assert_eq!(directory.superseded(&[peer(3, 7)]), BTreeMap::from([(key(1), key(3))]));
        assert_eq!(directory.superseded(&[peer(1, 8), peer(2, 7)]), BTreeMap::new());
        assert_eq!(directory.superseded(&[peer(1, 7), peer(3, 9)]), BTreeMap::new());
    }
}
