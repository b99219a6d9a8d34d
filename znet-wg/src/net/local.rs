//! A device with its links. There is one link with a peer, but for the time in which a key of either is changed: then one is in
//! use for what is sent, and the others are spare. A spare one takes over when its session is confirmed, and the one that was
//! in use goes on to receive what is on its way.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::{Duration, Instant};

use znet_core::id::ContainerId;

use super::Network;
use super::device::{Device, OwnAddresses};
use super::directory::{Directory, DirectoryEntry, PeerId};
use super::lane::Lane;
use super::network::{Ends, Link, Tables};
use super::session::PeerState;

/// Renewed sessions are begun so long after each other: a handshake costs its receiver a quarter of a millisecond and more,
/// and meanwhile there are packets to be moved.
const RENEW_PACE: Duration = Duration::from_millis(4);
/// But all of them within this time: the former keys are not accepted for ever.
const RENEW_WITHIN: Duration = Duration::from_secs(8);
/// How long the one whose turn it is not leaves it to the other to begin, where the keys of both are changed.
const LEAVE_IT_TO_THE_OTHER: Duration = Duration::from_secs(3);

/// A device and its links.
pub(super) struct Local {
    pub(super) device: Arc<Device>,
    /// The links in use.
    pub(super) links: HashMap<PeerId, Arc<Link>>,
    /// The others: at most three with a peer, as each end has two keys at most and each two keys make one link.
    spare: HashMap<PeerId, Vec<Arc<Link>>>,
    /// What `wg(8)` goes on to show of sessions that ended: of a stand-alone device, which is its user's own.
    past: HashMap<PeerId, PeerState>,
}

impl Local {
    pub(super) fn new(device: Arc<Device>) -> Self {
        Self { device, links: HashMap::new(), spare: HashMap::new(), past: HashMap::new() }
    }

    /// Whether an entry of the directory is the device itself.
    pub(super) fn is(&self, entry: &DirectoryEntry) -> bool {
        self.device.pairs().any(|pair| entry.has_key(pair.public_key()))
    }

    /// All links.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Link>> {
        self.links.values().chain(self.spare.values().flatten())
    }

    /// All links with a peer.
    pub(super) fn all_with(&self, peer: PeerId) -> impl Iterator<Item = &Arc<Link>> {
        self.links.get(&peer).into_iter().chain(self.spare.get(&peer).into_iter().flatten())
    }

    /// What is shown of a peer: its session, and those before.
    pub(super) fn state(&self, peer: PeerId) -> Option<PeerState> {
        let now = self.links.get(&peer).map(|link| link.lock().state());
        match (now, self.past.get(&peer)) {
            (Some(now), Some(past)) => Some(now.after(past)),
            (now, past) => now.or_else(|| past.copied()),
        }
    }

    /// The peer is no more.
    pub(super) fn forget(&mut self, peer: PeerId) {
        self.past.remove(&peer);
    }

    /// The device has other settings now. Ends the links that none of its keys makes, and tells their indices.
    pub(super) fn replace(&mut self, device: Arc<Device>) -> Vec<u32> {
        self.device = device.clone();
        let peers: Vec<PeerId> = self.all().map(|link| link.ends.peer).collect();
        let keep = |link: &Link| device.pair(&link.ends.own).is_some();
        peers.into_iter().flat_map(|peer| self.prune(peer, keep)).collect()
    }

    /// The peers of [`Local::is_outdated`].
    pub(super) fn outdated<'a>(&'a self, directory: &'a Directory) -> impl Iterator<Item = PeerId> + 'a {
        self.links.keys().copied().filter(|peer| self.is_outdated(directory, *peer))
    }

    /// Whether the device's pair is changed, there is a link with a peer, and none by the keys that both use now.
    pub(super) fn is_outdated(&self, directory: &Directory, peer: PeerId) -> bool {
        self.device.pairs().count() > 1
            && self.links.contains_key(&peer)
            && !self.all_with(peer).any(|link| self.is_current(directory, link))
    }

    /// Adds a link; the first with a peer is the one in use.
    pub(super) fn add(&mut self, link: Arc<Link>) {
        let peer = link.ends.peer;
        match self.links.entry(peer) {
            Entry::Occupied(_) => self.spare.entry(peer).or_default().push(link),
            Entry::Vacant(none) => {
                none.insert(link);
            }
        }
    }

    /// Whether a link is by the keys that both use now.
    fn is_current(&self, directory: &Directory, link: &Link) -> bool {
        let key = directory.peer(link.ends.peer).map(DirectoryEntry::key);
        link.ends.own == *self.device.public_key() && Some(&link.ends.key) == key
    }

    /// The session of a link was confirmed. A spare one is in use from now on, if it was not before or is by the keys that both
    /// use now; so both ends come to use the same, and by the time at which a former key goes out of use nothing is sent by it.
    pub(super) fn confirmed(&mut self, directory: &Directory, link: &Arc<Link>) {
        let peer = link.ends.peer;
        let in_use = self.links.get(&peer);
        let spare = self.spare.get(&peer).is_some_and(|all| all.iter().any(|held| held.index == link.index));
        if !spare {
            return;
        }
        if !self.is_current(directory, link) {
            let beaten = in_use.is_some_and(|held| self.is_current(directory, held) && held.is_confirmed());
            if beaten || link.lock().is_retired() {
                link.lock().retire();
                return;
            }
        }
        self.put_in_use(link);
    }

    /// Keys are others now: a link by those that are used now is in use, if its session was confirmed.
    pub(super) fn prefer_current(&mut self, directory: &Directory, peer: PeerId) {
        let in_use = self.links.get(&peer);
        if in_use.is_none_or(|held| self.is_current(directory, held)) {
            return;
        }
        let usable = |link: &&Arc<Link>| self.is_current(directory, link) && link.is_confirmed();
        let better = self.spare.get(&peer).and_then(|spare| spare.iter().find(usable)).cloned();
        if let Some(better) = better {
            self.put_in_use(&better);
        }
    }

    /// The peers with more than one link.
    pub(super) fn changing(&self) -> impl Iterator<Item = PeerId> {
        self.spare.keys().copied()
    }

    fn put_in_use(&mut self, link: &Arc<Link>) {
        let peer = link.ends.peer;
        let spare = self.spare.entry(peer).or_default();
        spare.retain(|held| held.index != link.index);
        link.lock().revive();
        if let Some(former) = self.links.insert(peer, link.clone()) {
            let state = {
                let mut session = former.lock();
                session.retire();
                session.state()
            };
            link.lock().succeed(&state);
            spare.push(former);
        }
    }

    /// Ends the links with a peer that are not to be kept, and tells their indices. If the one in use is among them, another
    /// one takes its place, if there is one whose session was confirmed that one.
    pub(super) fn prune(&mut self, peer: PeerId, keep: impl Fn(&Link) -> bool) -> Vec<u32> {
        let mut ended = Vec::new();
        if let Some(spare) = self.spare.get_mut(&peer) {
            ended.extend(spare.iter().filter(|link| !keep(link)).map(|link| link.index));
            spare.retain(|link| keep(link));
        }
        if let Some(link) = self.links.get(&peer).filter(|link| !keep(link)).cloned() {
            let state = (self.device.addresses == OwnAddresses::Any).then(|| self.state(peer)).flatten();
            if let Some(state) = state {
                self.past.insert(peer, state);
            }
            self.links.remove(&peer);
            ended.push(link.index);
            if let Some(spare) = self.spare.get_mut(&peer)
                && !spare.is_empty()
            {
                let next = spare.iter().position(|link| link.is_confirmed());
                let next = spare.swap_remove(next.unwrap_or_default());
                next.lock().revive();
                self.links.insert(peer, next);
            }
        }
        if self.spare.get(&peer).is_some_and(Vec::is_empty) {
            self.spare.remove(&peer);
        }
        ended
    }
}

impl Network {
    /// Makes sessions with the keys that are used now beside those that former ones made, of all devices whose pair is
    /// changed: to be called when a key of a device or of a peer is another. The old ones go on until the new ones are
    /// confirmed. They are begun one after the other, so that what a device with many peers asks of them can be borne.
    pub fn renew(&self, lane: &mut Lane, now: Instant) {
        let outdated: Vec<(ContainerId, PeerId)> = {
            let mut tables = self.write();
            let Tables { directory, devices, .. } = &mut *tables;
            for local in devices.values_mut() {
                let changing: Vec<PeerId> = local.changing().collect();
                changing.into_iter().for_each(|peer| local.prefer_current(directory, peer));
            }
            let of = |(id, local): (&ContainerId, &Local)| {
                let id = *id;
                local.outdated(&tables.directory).map(move |peer| (id, peer)).collect::<Vec<_>>()
            };
            tables.devices.iter().flat_map(of).collect()
        };
        let count = u32::try_from(outdated.len()).unwrap_or(u32::MAX).max(1);
        let pace = RENEW_PACE.min(RENEW_WITHIN / count);
        for (device, peer) in outdated {
            let at = {
                let mut tables = self.write();
                // Behind those of other devices, unless these are very many.
                let at = tables.next_renewal.map_or(now, |next| next.clamp(now, now + RENEW_WITHIN));
                tables.next_renewal = Some(at + pace);
                at
            };
            self.renew_link(device, peer, at, lane, now);
        }
    }

    /// Whether a session with a peer is to be made beside one that former keys made.
    pub(super) fn is_outdated(&self, device: ContainerId, peer: PeerId) -> bool {
        let tables = self.read();
        tables.devices.get(&device).is_some_and(|local| local.is_outdated(&tables.directory, peer))
    }

    /// Makes a session with a peer that takes the place of the one in use when it is confirmed.
    pub(super) fn renew_link(
        &self,
        device: ContainerId,
        peer: PeerId,
        at: Instant,
        lane: &mut Lane,
        now: Instant,
    ) {
        let ends = {
            let tables = self.read();
            let keys = tables.devices.get(&device).zip(tables.directory.peer(peer));
            keys.map(|(local, entry)| {
                let (own, key) = (*local.device.public_key(), *entry.key());
                (Ends { device, peer, own, key }, entry.also().is_some() && own > key)
            })
        };
        let Some((ends, others_turn)) = ends else { return };
        let at = if others_turn { at + LEAVE_IT_TO_THE_OTHER } else { at };
        let Some(link) = self.make(ends, now) else { return };
        {
            let mut session = link.lock();
            session.initiate_at(at);
            lane.schedule(&link, &mut session, now);
        }
        self.flush(lane);
    }
}
