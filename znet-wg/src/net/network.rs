//! One network: its directory, its devices, its sessions. Any number of threads move packets through it.
//!
//! What all packets need is in [`Tables`], behind one lock that is taken for reading once a batch and for writing only
//! while a peer, a device or a session is added or removed. Each session has a lock of its own, taken once for a run of
//! packets. Whoever holds a session's lock never waits for the tables.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use znet_core::id::ContainerId;
use znet_core::key::PublicKey;

use super::device::{Device, count};
use super::directory::{Directory, DirectoryEntry, PeerId, PeerUpdate};
use super::gate::Gate;
use super::lane::Lane;
use super::local::Local;
use super::outbox::Outbox;
use super::schedule::Schedule;
use super::session::{PeerState, Session};
use crate::control::{DeviceStats, NetworkStats, Peer};

/// Most sessions that one device holds: each takes about 12 KiB.
pub const MAX_SESSIONS_PER_DEVICE: usize = 10_000;
/// Receiver indices have 24 bits; the lower 8 of the field are boringtun's.
const INDEX_MASK: u32 = 0x00ff_ffff;

/// Where a network's datagrams go, and who is told of its sessions: sockets in the engine, a queue in a test.
pub trait Underlay: Send + Sync {
    /// Sends datagrams. What cannot be sent is dropped: a tunnel is a network and not a queue.
    fn send(&self, outbox: &Outbox);
    /// Notes that a device begins a session with a peer.
    fn began(&self, _device: ContainerId, _peer: &PublicKey) {}
    /// A look at a session was scheduled for an earlier time than any before.
    fn due_earlier(&self, _at: Instant) {}
}

/// Between whom a link is, and by which of their keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ends {
    pub(super) device: ContainerId,
    pub(super) peer: PeerId,
    /// The device's key.
    pub(super) own: PublicKey,
    /// The peer's key.
    pub(super) key: PublicKey,
}

/// The encrypted path between a local container and a peer, while it is used.
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) ends: Ends,
    session: Mutex<Session>,
}

impl Link {
    pub(super) fn lock(&self) -> MutexGuard<'_, Session> {
        // A thread that panics ends the process, so a poisoned lock is never seen.
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a session was ever confirmed on it.
    pub(super) fn is_confirmed(&self) -> bool {
        self.lock().handshakes() > 0
    }
}

/// What every packet needs.
#[derive(Default)]
pub(super) struct Tables {
    pub(super) directory: Directory,
    pub(super) devices: HashMap<ContainerId, Local>,
    /// Whose session a receiver index is.
    pub(super) links: HashMap<u32, Arc<Link>, hashbrown::DefaultHashBuilder>,
    next_index: u32,
    /// When the next session is renewed, so that they come one after the other.
    pub(super) next_renewal: Option<Instant>,
    keepalive: Option<u16>,
}

/// One network as one node sees it.
pub struct Network {
    pub(super) tables: RwLock<Tables>,
    pub(super) underlay: Arc<dyn Underlay>,
    pub(super) gate: Gate,
    pub(super) schedule: Schedule,
}

impl Tables {
    fn free_index(&mut self) -> u32 {
        // Sessions are far fewer than indices, so this ends after a few steps.
        loop {
            self.next_index = self.next_index.wrapping_add(1) & INDEX_MASK;
            if !self.links.contains_key(&self.next_index) {
                return self.next_index;
            }
        }
    }

    pub(super) fn link(&self, device: ContainerId, peer: PeerId) -> Option<&Arc<Link>> {
        self.devices.get(&device)?.links.get(&peer)
    }

    /// The link that these keys make, whether it is the one in use or not.
    pub(super) fn link_between(&self, ends: &Ends) -> Option<&Arc<Link>> {
        self.devices.get(&ends.device)?.all_with(ends.peer).find(|link| link.ends == *ends)
    }

    /// Ends the links with a peer that are not to be kept.
    fn prune(&mut self, peer: PeerId, keep: impl Fn(&Link) -> bool) {
        for local in self.devices.values_mut() {
            for index in local.prune(peer, &keep) {
                self.links.remove(&index);
            }
        }
    }

    fn end_links(&mut self, peer: PeerId) {
        self.prune(peer, |_| false);
    }

    /// A session was confirmed: if it is one that is to take the place of another, it does so now.
    fn confirmed(&mut self, index: u32) {
        let Some(link) = self.links.get(&index) else { return };
        if let Some(local) = self.devices.get_mut(&link.ends.device) {
            local.confirmed(&self.directory, link);
        }
    }

    /// The peer of this number is no more.
    fn forget(&mut self, peer: PeerId) {
        self.end_links(peer);
        self.devices.values_mut().for_each(|local| local.forget(peer));
    }

    fn end_all(&mut self, device: ContainerId) {
        let Some(local) = self.devices.remove(&device) else { return };
        for link in local.all() {
            self.links.remove(&link.index);
        }
    }

    fn keepalive_of(&self, entry: &DirectoryEntry) -> Option<u16> {
        entry.keepalive().or(self.keepalive)
    }
}

impl Network {
    /// A network without peers and devices. `first_index` should be random: receiver indices count on from it.
    pub fn new(underlay: Arc<dyn Underlay>, keepalive: Option<u16>, first_index: u32, now: Instant) -> Self {
        let tables = Tables { next_index: first_index & INDEX_MASK, keepalive, ..Tables::default() };
        Self { tables: RwLock::new(tables), underlay, gate: Gate::new(now), schedule: Schedule::default() }
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seconds between keepalives to active peers that have no interval of their own.
    pub fn keepalive(&self) -> Option<u16> {
        self.read().keepalive
    }

    /// Sends keepalives this often from now on.
    pub fn set_keepalive(&self, keepalive: Option<u16>, lane: &mut Lane, now: Instant) {
        let links: Vec<(Arc<Link>, Option<u16>)> = {
            let mut tables = self.write();
            tables.keepalive = keepalive;
            let tables = &*tables;
            let interval = |link: &Link| tables.keepalive_of(tables.directory.peer(link.ends.peer)?);
            tables.links.values().map(|link| (link.clone(), interval(link))).collect()
        };
        for (link, interval) in links {
            self.follow_keepalive(&link, interval, lane, now);
        }
    }

    /// A link's interval may be another now. One that had none begins at once.
    fn follow_keepalive(&self, link: &Link, interval: Option<u16>, lane: &mut Lane, now: Instant) {
        let mut session = link.lock();
        if session.set_keepalive(interval) {
            session.send_keepalive(&mut lane.outbox, now);
        }
        lane.schedule(link, &mut session, now);
        drop(session);
        self.flush(lane);
    }

    /// The device of a container.
    pub fn device(&self, id: ContainerId) -> Option<Arc<Device>> {
        self.read().devices.get(&id).map(|local| local.device.clone())
    }

    /// All devices, in no order.
    pub fn devices(&self) -> Vec<Arc<Device>> {
        self.read().devices.values().map(|local| local.device.clone()).collect()
    }

    /// The figures of a device.
    pub fn device_stats(&self, id: ContainerId) -> Option<DeviceStats> {
        let tables = self.read();
        let local = tables.devices.get(&id)?;
        Some(local.device.stats(local.links.len() as u64))
    }

    /// The figures of what could not be assigned to a device.
    pub fn stats(&self) -> NetworkStats {
        self.gate.stats()
    }

    /// Number of sessions, those that are being made included.
    pub fn sessions(&self) -> usize {
        self.read().links.len()
    }

    /// All sessions: which device has one with whom.
    pub fn session_keys(&self) -> Vec<(ContainerId, PublicKey)> {
        self.read().links.values().map(|link| (link.ends.device, link.ends.key)).collect()
    }

    /// Those of these peers from which an authenticated packet came within this time, to whichever device.
    pub fn heard<'a>(
        &self,
        peers: impl IntoIterator<Item = &'a PublicKey>,
        within: Duration,
        now: Instant,
    ) -> Vec<PublicKey> {
        let tables = self.read();
        let heard = |key: &PublicKey| {
            let Some(id) = tables.directory.id(key) else { return false };
            let mut links = tables.devices.values().flat_map(|local| local.all_with(id));
            links.any(|link| link.lock().heard_within(within, now))
        };
        peers.into_iter().filter(|key| heard(key)).copied().collect()
    }

    /// Number of peers.
    pub fn peers(&self) -> usize {
        self.read().directory.len()
    }

    /// Shows every peer to `see`, with the state of its session with the device, if there is one. Packets that need the
    /// directory changed wait meanwhile; others do not.
    pub fn for_each_peer(
        &self,
        device: ContainerId,
        mut see: impl FnMut(&DirectoryEntry, Option<PeerState>),
    ) {
        let tables = self.read();
        let local = tables.devices.get(&device);
        for (id, entry) in tables.directory.iter() {
            see(entry, local.and_then(|local| local.state(id)));
        }
    }

    /// Adds a device, or replaces the settings of the one of the same container. Its sessions live on as long as the key that
    /// made them is one of its own; see also [`Network::renew`].
    pub fn put_device(&self, mut device: Device) {
        let mut tables = self.write();
        let id = device.id;
        let local = match tables.devices.remove(&id) {
            Some(mut old) => {
                device.succeed(&old.device);
                for index in old.replace(Arc::new(device)) {
                    tables.links.remove(&index);
                }
                old
            }
            None => Local::new(Arc::new(device)),
        };
        tables.devices.insert(id, local);
    }

    /// Removes a device with its sessions; its keys are wiped.
    pub fn remove_device(&self, id: ContainerId) {
        self.write().end_all(id);
    }

    /// Adds or replaces peers. Their sessions live on, but for those whose preshared key changed.
    pub fn put_peers(&self, peers: Vec<Peer>) {
        for peer in peers {
            let mut tables = self.write();
            let changed = tables.directory.put(peer);
            tables.follow(changed);
        }
    }

    /// Changes a peer, or adds it. Its sessions live on, unless its preshared key changed.
    pub fn update_peer(&self, key: &PublicKey, update: PeerUpdate, lane: &mut Lane, now: Instant) {
        let links: Vec<(Arc<Link>, Option<u16>)> = {
            let mut tables = self.write();
            let changed = tables.directory.update(key, update);
            tables.follow(changed);
            let entry = tables.directory.peer(changed.id);
            let interval = entry.and_then(|entry| tables.keepalive_of(entry));
            let of = |local: &Local| local.links.get(&changed.id).map(|link| (link.clone(), interval));
            tables.devices.values().filter_map(of).collect()
        };
        for (link, interval) in links {
            self.follow_keepalive(&link, interval, lane, now);
        }
    }

    /// Whether the directory has a peer.
    pub fn has_peer(&self, key: &PublicKey) -> bool {
        self.read().directory.id(key).is_some()
    }

    /// Removes a peer; its sessions end at once.
    pub fn remove_peer(&self, key: &PublicKey) {
        let mut tables = self.write();
        if let Some(id) = tables.directory.remove(key) {
            tables.forget(id);
        }
    }

    /// Removes all peers.
    pub fn remove_peers(&self) {
        self.begin_replace();
        self.end_replace();
    }

    /// Begins a replacement of the directory: whoever is not put until its end is removed then.
    pub fn begin_replace(&self) {
        self.write().directory.begin_replace();
    }

    /// Ends a replacement of the directory.
    pub fn end_replace(&self) {
        let mut tables = self.write();
        for id in tables.directory.end_replace() {
            tables.forget(id);
        }
    }

    /// Begins handshakes of a device with peers at once.
    pub fn wake<'a>(
        &self,
        device: ContainerId,
        peers: impl IntoIterator<Item = &'a PublicKey>,
        lane: &mut Lane,
        now: Instant,
    ) {
        for key in peers {
            let found = {
                let tables = self.read();
                let id = tables.directory.id(key);
                id.map(|id| (id, tables.link(device, id).cloned()))
            };
            let Some((id, link)) = found else { continue };
            let Some(link) = link.or_else(|| self.make_link(device, id, now)) else { continue };
            {
                let mut session = link.lock();
                session.initiate(&mut lane.outbox, now);
                lane.schedule(&link, &mut session, now);
            }
            self.flush(lane);
        }
    }

    /// Makes sure that the device keeps up a session with every peer that has an interval for keepalives of its own.
    pub fn keep_up(&self, device: ContainerId, lane: &mut Lane, now: Instant) {
        let missing: Vec<(PeerId, Option<u16>)> = {
            let tables = self.read();
            let kept = tables.directory.iter().filter(|(_, entry)| entry.keepalive().is_some());
            kept.filter(|(id, _)| tables.link(device, *id).is_none())
                .map(|(id, e)| (id, e.keepalive()))
                .collect()
        };
        for (id, _) in missing {
            let Some(link) = self.make_link(device, id, now) else { continue };
            {
                let mut session = link.lock();
                session.send_keepalive(&mut lane.outbox, now);
                lane.schedule(&link, &mut session, now);
            }
            self.flush(lane);
        }
    }

    /// The link of a device with a peer that is in use, made if there is none.
    pub(super) fn make_link(&self, device: ContainerId, peer: PeerId, now: Instant) -> Option<Arc<Link>> {
        let ends = {
            let tables = self.read();
            if let Some(link) = tables.link(device, peer) {
                return Some(link.clone());
            }
            let own = *tables.devices.get(&device)?.device.public_key();
            Ends { device, peer, own, key: *tables.directory.peer(peer)?.key() }
        };
        self.make(ends, now)
    }

    /// The link that these keys make, made if there is none. The first with a peer is the one in use.
    pub(super) fn make(&self, ends: Ends, now: Instant) -> Option<Arc<Link>> {
        let (pair, preshared, index) = {
            let mut tables = self.write();
            if let Some(link) = tables.link_between(&ends) {
                return Some(link.clone());
            }
            let index = tables.free_index();
            let local = tables.devices.get(&ends.device)?;
            if local.links.len() >= MAX_SESSIONS_PER_DEVICE {
                count(&local.device.counters.drop_sessions, 1);
                return None;
            }
            let entry = tables.directory.peer(ends.peer).filter(|entry| entry.has_key(&ends.key))?;
            if local.is(entry) {
                return None;
            }
            (local.device.pair(&ends.own)?.clone(), entry.preshared().cloned(), index)
        };
        // A key agreement, which the others need not wait for.
        let tunn = pair.tunn(&ends.key, preshared.as_ref(), index);
        let mut tables = self.write();
        if let Some(link) = tables.link_between(&ends) {
            return Some(link.clone());
        }
        let index = if tables.links.contains_key(&index) { return None } else { index };
        let entry = tables.directory.peer(ends.peer).filter(|entry| entry.has_key(&ends.key))?;
        let session = Session::new(tunn, entry.endpoint(0), tables.keepalive_of(entry), now);
        let link = Arc::new(Link { index, ends, session: Mutex::new(session) });
        let local = tables.devices.get_mut(&ends.device)?;
        local.device.pair(&ends.own)?;
        local.add(link.clone());
        tables.links.insert(index, link.clone());
        drop(tables);
        self.underlay.began(ends.device, &ends.key);
        Some(link)
    }

    /// Ends a link that is of no more use.
    pub(super) fn end_link(&self, link: &Link) {
        let mut tables = self.write();
        if tables.links.get(&link.index).is_some_and(|held| held.ends == link.ends) {
            tables.links.remove(&link.index);
            if let Some(local) = tables.devices.get_mut(&link.ends.device) {
                local.prune(link.ends.peer, |held| held.index != link.index);
            }
        }
    }

    /// Sends what waits.
    pub(super) fn send(&self, lane: &mut Lane) {
        if !lane.outbox.is_empty() {
            self.underlay.send(&lane.outbox);
            lane.outbox.clear();
        }
    }

    /// Sends what waits, schedules what is due, and notes what was learned. To be called without any lock.
    pub(super) fn flush(&self, lane: &mut Lane) {
        self.send(lane);
        if !lane.due.is_empty()
            && let Some(earliest) = self.schedule.add(&mut lane.due)
        {
            self.underlay.due_earlier(earliest);
        }
        if !lane.learned.is_empty() {
            let mut tables = self.write();
            for (peer, endpoint, index) in lane.learned.drain(..) {
                tables.directory.learn(peer, endpoint);
                tables.confirmed(index);
            }
        }
    }
}

impl Tables {
    /// Makes sessions follow a change of their peer.
    fn follow(&mut self, changed: super::directory::Changed) {
        if changed.rekeyed {
            self.end_links(changed.id);
        }
        if changed.renamed {
            let Some(entry) = self.directory.peer(changed.id) else { return };
            let keys: Vec<PublicKey> = std::iter::once(entry.key()).chain(entry.also()).copied().collect();
            self.prune(changed.id, |link| keys.contains(&link.ends.key));
        }
        let Some(entry) = self.directory.peer(changed.id) else { return };
        for link in self.devices.values().flat_map(|local| local.all_with(changed.id)) {
            if changed.moved {
                link.lock().set_endpoint(entry.endpoint(0));
            }
        }
    }
}

/// Where a peer is, once it was proved anew.
pub(super) fn news(before: Option<SocketAddr>, session: &Session, handshakes: u64) -> Option<SocketAddr> {
    let after = session.endpoint();
    after.filter(|_| after != before || session.handshakes() != handshakes)
}
