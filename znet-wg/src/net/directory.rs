//! All peers of a network: who they are, which addresses are theirs and where they were last reached.
//!
//! One directory serves all containers of a node, so that ten thousand peers cost ten thousand entries and not that
//! times the containers. Sessions are not in here: they are made by the first packet. Looking an address up and changing
//! a peer cost the same at any size; an idle peer costs its entry, and the tables hold numbers instead of copies.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use hashbrown::{DefaultHashBuilder, HashTable};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;
use slab::Slab;
use std::hash::BuildHasher as _;
use znet_core::key::{PresharedKey, PublicKey};

use super::allowed::{Singles, single};
use crate::control::Peer;

/// A peer's number in its directory. It is given again after the peer was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId(u32);

/// A peer as the directory keeps it.
#[derive(Debug)]
pub struct DirectoryEntry {
    key: PublicKey,
    /// Seconds between keepalives; 0 for the network's.
    keepalive: u16,
    singles: Singles,
    #[expect(clippy::box_collection, reason = "few peers have any, and every entry has the field")]
    ranges: Option<Box<Vec<IpNet>>>,
    endpoints: Box<[SocketAddr]>,
    preshared: Option<Box<PresharedKey>>,
    learned: Option<Box<SocketAddr>>,
    /// Another key that is the peer's while its pair is changed.
    also: Option<Box<PublicKey>>,
}

impl DirectoryEntry {
    fn new(key: PublicKey) -> Self {
        Self {
            key,
            keepalive: 0,
            singles: Singles::None,
            ranges: None,
            endpoints: Box::default(),
            preshared: None,
            learned: None,
            also: None,
        }
    }

    /// The peer's public key.
    pub fn key(&self) -> &PublicKey {
        &self.key
    }

    /// Another public key that is the peer's while its pair is changed.
    pub fn also(&self) -> Option<&PublicKey> {
        self.also.as_deref()
    }

    /// Whether a public key is the peer's.
    pub fn has_key(&self, key: &PublicKey) -> bool {
        self.key == *key || self.also.as_deref() == Some(key)
    }

    /// A key that both ends mix into their handshake.
    pub fn preshared(&self) -> Option<&PresharedKey> {
        self.preshared.as_deref()
    }

    /// Seconds between keepalives to this peer, if it has its own interval.
    pub fn keepalive(&self) -> Option<u16> {
        (self.keepalive != 0).then_some(self.keepalive)
    }

    /// The prefixes that are the peer's.
    pub fn allowed(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.singles
            .iter()
            .map(IpNet::from)
            .chain(self.ranges.iter().flat_map(|ranges| ranges.iter().copied()))
    }

    /// The underlay address from which the peer last proved itself. It outlives sessions and every update of the
    /// peer that does not change the configured endpoints.
    pub fn learned(&self) -> Option<SocketAddr> {
        self.learned.as_deref().copied()
    }

    /// Where to send to: what was learned, else the configured endpoint of the given attempt, in turn.
    pub fn endpoint(&self, attempt: usize) -> Option<SocketAddr> {
        let count = self.endpoints.len();
        match (self.learned(), attempt) {
            (Some(learned), 0) => Some(learned),
            (Some(learned), _) if count == 0 => Some(learned),
            (Some(_), attempt) => self.endpoints.get((attempt - 1) % count).copied(),
            (None, _) if count == 0 => None,
            (None, attempt) => self.endpoints.get(attempt % count).copied(),
        }
    }

    fn places(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.endpoints.iter().chain(self.learned.as_deref()).map(SocketAddr::ip)
    }
}

/// A change of one peer, as `wg set` says it: what is not named stays as it is.
#[derive(Debug, Default)]
pub struct PeerUpdate {
    /// Take all prefixes from it first.
    pub replace_allowed: bool,
    /// Give it these prefixes, and take them from whoever had them.
    pub allow: Vec<IpNet>,
    /// Take these prefixes from it.
    pub disallow: Vec<IpNet>,
    /// Send there from now on; what was learned is forgotten if that is news.
    pub endpoints: Option<Vec<SocketAddr>>,
    /// Mix this key into handshakes, or none.
    pub preshared: Option<Option<PresharedKey>>,
    /// Seconds between keepalives; 0 for none of its own.
    pub keepalive: Option<u16>,
}

/// What a change means for sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed {
    /// The peer's number.
    pub id: PeerId,
    /// Sessions must end, as their preshared key is another now.
    pub rekeyed: bool,
    /// Packets go elsewhere now.
    pub moved: bool,
    /// Its keys are others now; sessions with one that it has no more must end.
    pub renamed: bool,
}

/// A single address: the peer that has it and which of its addresses it is.
#[derive(Clone, Copy, Debug)]
struct Place {
    peer: u32,
    number: u32,
}

/// All peers of a network. Changing one costs the same at any size.
#[derive(Debug, Default)]
pub struct Directory {
    peers: Slab<DirectoryEntry>,
    hasher: DefaultHashBuilder,
    keys: HashTable<u32>,
    /// By the other key, those that have one.
    also_keys: HashTable<u32>,
    singles: HashTable<Place>,
    ranges4: PrefixMap<Ipv4Net, u32>,
    ranges6: PrefixMap<Ipv6Net, u32>,
    /// Number of peers that are, or were seen, at an underlay address: those are served first.
    places: HashMap<IpAddr, u32>,
    /// Peers that a replacement under way has not named yet.
    unnamed: Option<HashSet<PeerId>>,
}

fn leave(places: &mut HashMap<IpAddr, u32>, place: IpAddr) {
    if let Some(count) = places.get_mut(&place) {
        *count -= 1;
        if *count == 0 {
            places.remove(&place);
        }
    }
}

/// What is at a place of the slab; every number in the tables is that of a peer that is there.
fn at(peers: &Slab<DirectoryEntry>, place: Place) -> Option<IpAddr> {
    peers.get(place.peer as usize)?.singles.get(place.number as usize)
}

impl Directory {
    /// Number of peers.
    pub fn len(&self) -> usize {
        self.peers.len()
    }

    /// Whether there is no peer.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// The number of the peer of this key.
    pub fn id(&self, key: &PublicKey) -> Option<PeerId> {
        let hash = self.hasher.hash_one(key);
        let is = |id: &u32| self.peers.get(*id as usize).is_some_and(|peer| peer.has_key(key));
        let found = self.keys.find(hash, is).or_else(|| self.also_keys.find(hash, is));
        found.map(|id| PeerId(*id))
    }

    /// The peer of this number.
    pub fn peer(&self, id: PeerId) -> Option<&DirectoryEntry> {
        self.peers.get(id.0 as usize)
    }

    /// The peer of this key.
    pub fn get(&self, key: &PublicKey) -> Option<&DirectoryEntry> {
        self.peer(self.id(key)?)
    }

    /// All peers, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (PeerId, &DirectoryEntry)> {
        self.peers.iter().map(|(id, peer)| (PeerId(number(id)), peer))
    }

    /// Who has an address: the peer of the longest prefix that holds it.
    pub fn owner(&self, address: &IpAddr) -> Option<PeerId> {
        let place = self
            .singles
            .find(self.hasher.hash_one(address), |place| at(&self.peers, *place) == Some(*address));
        if let Some(place) = place {
            return Some(PeerId(place.peer));
        }
        let found = match address {
            IpAddr::V4(_) if self.ranges4.is_empty() => None,
            IpAddr::V6(_) if self.ranges6.is_empty() => None,
            IpAddr::V4(address) => self.ranges4.get_lpm(&Ipv4Net::from(*address)).map(|(_, id)| *id),
            IpAddr::V6(address) => self.ranges6.get_lpm(&Ipv6Net::from(*address)).map(|(_, id)| *id),
        };
        found.map(PeerId)
    }

    /// Whether some peer is configured at, or was seen at, this underlay address.
    pub fn knows_endpoint(&self, endpoint: &SocketAddr) -> bool {
        self.places.contains_key(&endpoint.ip())
    }

    /// Adds a peer or replaces the one of its key.
    /// One that had one of its keys before goes on as the same peer.
    pub fn put(&mut self, peer: Peer) -> Changed {
        let renamed = self.rename(&peer.public_key, peer.also_key.as_ref());
        let update = PeerUpdate {
            replace_allowed: true,
            allow: peer.addresses.into_iter().map(IpNet::from).collect(),
            disallow: Vec::new(),
            endpoints: Some(peer.endpoints),
            preshared: Some(peer.preshared_key.map(|key| key.0)),
            keepalive: None,
        };
        let mut changed = self.update(&peer.public_key, update);
        // One that was just added has its own key alone yet.
        changed.renamed = renamed | self.rename(&peer.public_key, peer.also_key.as_ref());
        changed
    }

    /// Gives the peer that has one of two keys these keys; tells whether they are others now.
    fn rename(&mut self, key: &PublicKey, also: Option<&PublicKey>) -> bool {
        let also = also.filter(|also| *also != key);
        let Some(id) = self.id(key).or_else(|| self.id(also?)) else { return false };
        // Two peers never have one key: the map sees to it, and whoever has it already keeps it.
        let also = also.filter(|also| self.id(also).is_none_or(|holder| holder == id)).copied();
        let Some(entry) = self.peer(id) else { return false };
        if entry.key == *key && entry.also() == also.as_ref() {
            return false;
        }
        self.unlist(id);
        if let Some(entry) = self.peers.get_mut(id.0 as usize) {
            entry.key = *key;
            entry.also = also.map(Box::new);
        }
        self.list(id);
        true
    }

    /// Makes a peer findable by its keys.
    fn list(&mut self, id: PeerId) {
        let Self { peers, hasher, keys, also_keys, .. } = self;
        let key_of = |id: &u32| peers.get(*id as usize).map_or(0, |peer| hasher.hash_one(peer.key));
        keys.insert_unique(key_of(&id.0), id.0, key_of);
        let also_of = |id: &u32| {
            let also = peers.get(*id as usize).and_then(DirectoryEntry::also);
            also.map_or(0, |also| hasher.hash_one(also))
        };
        if peers.get(id.0 as usize).is_some_and(|peer| peer.also.is_some()) {
            also_keys.insert_unique(also_of(&id.0), id.0, also_of);
        }
    }

    /// Takes a peer out of the tables of keys.
    fn unlist(&mut self, id: PeerId) {
        let Some(entry) = self.peers.get(id.0 as usize) else { return };
        if let Ok(found) = self.keys.find_entry(self.hasher.hash_one(entry.key), |found| *found == id.0) {
            found.remove();
        }
        if let Some(also) = entry.also()
            && let Ok(found) = self.also_keys.find_entry(self.hasher.hash_one(also), |found| *found == id.0)
        {
            found.remove();
        }
    }

    /// Changes a peer, or adds it.
    pub fn update(&mut self, key: &PublicKey, update: PeerUpdate) -> Changed {
        let (id, new) = match self.id(key) {
            Some(id) => (id, false),
            None => (self.add(key), true),
        };
        if let Some(unnamed) = &mut self.unnamed {
            unnamed.remove(&id);
        }
        if update.replace_allowed {
            self.disallow_all(id);
        }
        update.disallow.iter().for_each(|net| self.disallow(id, net));
        update.allow.iter().for_each(|net| self.allow(id, net));
        let mut changed = Changed { id, rekeyed: false, moved: false, renamed: false };
        if let Some(endpoints) = update.endpoints {
            changed.moved = self.configure(id, endpoints);
        }
        if let Some(entry) = self.peers.get_mut(id.0 as usize) {
            entry.keepalive = update.keepalive.unwrap_or(entry.keepalive);
            if let Some(preshared) = update.preshared.filter(|key| key.as_ref() != entry.preshared.as_deref())
            {
                entry.preshared = preshared.map(Box::new);
                changed.rekeyed = !new;
            }
        }
        changed
    }

    /// Removes a peer and tells its number; `None` when there was none.
    pub fn remove(&mut self, key: &PublicKey) -> Option<PeerId> {
        let id = self.id(key)?;
        self.disallow_all(id);
        self.unlist(id);
        let old = self.peers.try_remove(id.0 as usize)?;
        old.places().for_each(|place| leave(&mut self.places, place));
        if let Some(unnamed) = &mut self.unnamed {
            unnamed.remove(&id);
        }
        Some(id)
    }

    /// Notes from where a peer proved itself.
    pub fn learn(&mut self, id: PeerId, endpoint: SocketAddr) {
        if let Some(entry) = self.peers.get_mut(id.0 as usize) {
            if let Some(old) = entry.learned.replace(Box::new(endpoint)) {
                leave(&mut self.places, old.ip());
            }
            *self.places.entry(endpoint.ip()).or_default() += 1;
        }
    }

    /// Begins to replace the directory: whoever is not put until the end is removed then.
    pub fn begin_replace(&mut self) {
        self.unnamed = Some(self.iter().map(|(id, _)| id).collect());
    }

    /// Ends a replacement and returns whom it removed.
    pub fn end_replace(&mut self) -> Vec<PeerId> {
        let gone = self.unnamed.take().unwrap_or_default();
        let keys: Vec<PublicKey> = gone.iter().filter_map(|id| Some(self.peer(*id)?.key)).collect();
        keys.iter().filter_map(|key| self.remove(key)).collect()
    }

    fn add(&mut self, key: &PublicKey) -> PeerId {
        let id = PeerId(number(self.peers.insert(DirectoryEntry::new(*key))));
        self.list(id);
        id
    }

    /// Sets the configured endpoints; tells whether they are others now.
    fn configure(&mut self, id: PeerId, endpoints: Vec<SocketAddr>) -> bool {
        let Some(entry) = self.peers.get_mut(id.0 as usize) else { return false };
        if *entry.endpoints == *endpoints {
            return false;
        }
        entry.places().for_each(|place| leave(&mut self.places, place));
        entry.learned = None;
        entry.endpoints = endpoints.into_boxed_slice();
        entry.places().for_each(|place| *self.places.entry(place).or_default() += 1);
        true
    }

    fn allow(&mut self, id: PeerId, net: &IpNet) {
        if let Some(address) = single(net) {
            if let Some(owner) = self.singles_owner(&address) {
                if owner.peer == id.0 {
                    return;
                }
                self.take_single(owner, &address);
            }
            self.give_single(id, address);
            return;
        }
        let old = match net {
            IpNet::V4(net) => self.ranges4.insert(net.trunc(), id.0),
            IpNet::V6(net) => self.ranges6.insert(net.trunc(), id.0),
        };
        if let Some(old) = old {
            self.forget_range(old, net);
        }
        if let Some(entry) = self.peers.get_mut(id.0 as usize) {
            entry.ranges.get_or_insert_default().push(net.trunc());
        }
    }

    fn disallow(&mut self, id: PeerId, net: &IpNet) {
        if let Some(address) = single(net) {
            if let Some(place) = self.singles_owner(&address).filter(|place| place.peer == id.0) {
                self.take_single(place, &address);
            }
            return;
        }
        let held = match net {
            IpNet::V4(net) => self.ranges4.get(&net.trunc()),
            IpNet::V6(net) => self.ranges6.get(&net.trunc()),
        };
        if held == Some(&id.0) {
            self.forget_range(id.0, net);
            match net {
                IpNet::V4(net) => self.ranges4.remove(&net.trunc()),
                IpNet::V6(net) => self.ranges6.remove(&net.trunc()),
            };
        }
    }

    fn disallow_all(&mut self, id: PeerId) {
        while let Some((place, address)) = self.last_single(id) {
            self.take_single(place, &address);
        }
        let ranges = self.peers.get_mut(id.0 as usize).and_then(|entry| entry.ranges.take());
        for net in ranges.iter().flat_map(|ranges| ranges.iter()) {
            match net {
                IpNet::V4(net) => self.ranges4.remove(net),
                IpNet::V6(net) => self.ranges6.remove(net),
            };
        }
    }

    fn last_single(&self, id: PeerId) -> Option<(Place, IpAddr)> {
        let singles = &self.peers.get(id.0 as usize)?.singles;
        let last = singles.len().checked_sub(1)?;
        Some((Place { peer: id.0, number: number(last) }, singles.get(last)?))
    }

    fn singles_owner(&self, address: &IpAddr) -> Option<Place> {
        let hash = self.hasher.hash_one(address);
        self.singles.find(hash, |place| at(&self.peers, *place) == Some(*address)).copied()
    }

    fn give_single(&mut self, id: PeerId, address: IpAddr) {
        let Some(entry) = self.peers.get_mut(id.0 as usize) else { return };
        let place = Place { peer: id.0, number: number(entry.singles.len()) };
        entry.singles.push(address);
        let (hasher, peers) = (&self.hasher, &self.peers);
        let hash_of = |place: &Place| at(peers, *place).map_or(0, |address| hasher.hash_one(address));
        self.singles.insert_unique(hasher.hash_one(address), place, hash_of);
    }

    /// Takes an address from the peer that has it; the peer's last address gets its number.
    fn take_single(&mut self, place: Place, address: &IpAddr) {
        let hash = self.hasher.hash_one(address);
        if let Ok(found) = self.singles.find_entry(hash, |found| at(&self.peers, *found) == Some(*address)) {
            found.remove();
        }
        let Some((last, moved)) = self.last_single(PeerId(place.peer)) else { return };
        if last.number != place.number {
            let hash = self.hasher.hash_one(moved);
            if let Some(found) = self.singles.find_mut(hash, |found| at(&self.peers, *found) == Some(moved)) {
                found.number = place.number;
            }
        }
        if let Some(entry) = self.peers.get_mut(place.peer as usize) {
            entry.singles.swap_remove(place.number as usize);
        }
    }

    fn forget_range(&mut self, id: u32, net: &IpNet) {
        if let Some(entry) = self.peers.get_mut(id as usize)
            && let Some(ranges) = &mut entry.ranges
        {
            ranges.retain(|held| *held != net.trunc());
            if ranges.is_empty() {
                entry.ranges = None;
            }
        }
    }
}

/// Numbers of peers and of their addresses are far below 2^32: memory ends before.
fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[path = "directory_tests.rs"]
mod tests;
