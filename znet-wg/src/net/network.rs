//! One network: its port, its directory, its devices, and the way of a packet between them.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::{Packet, Tunn};
use boringtun::x25519;
use znet_core::id::ContainerId;
use znet_core::key::PublicKey;

use super::Sink;
use super::device::{Device, MAX_SESSIONS_PER_DEVICE};
use super::directory::Directory;
use super::early::{Early, INITIATION_LEN};
use super::packet::Addresses;
use super::session::{Received, Session, Tick};
use crate::control::{NetworkStats, Peer};

/// Handshake initiations a second that one network looks at: each costs a keyed MAC for every local key, and a
/// quarter of a millisecond when it is for one of them. A part is kept for endpoints that the directory knows.
pub const INITIATIONS_PER_SECOND: u32 = 2_000;
/// Of these, what strangers' endpoints may use.
const INITIATIONS_FROM_STRANGERS: u32 = 500;
/// Receiver indices have 24 bits; the lower 8 of the field are boringtun's.
const INDEX_MASK: u32 = 0x00ff_ffff;

/// One network as one node sees it.
pub struct Network {
    /// All peers.
    pub directory: Directory,
    /// Figures of what could not be assigned to a device.
    pub stats: NetworkStats,
    keepalive: Option<u16>,
    devices: HashMap<ContainerId, Device>,
    /// Whose session a receiver index is.
    indices: HashMap<u32, (ContainerId, PublicKey)>,
    next_index: u32,
    scratch: Box<[u8]>,
    /// A packet and the zeroes behind it.
    padded: Box<[u8]>,
    budget: Budget,
    expired: Vec<(ContainerId, PublicKey)>,
    early: Early,
    /// Quick retries by the time at which they are due; those of sessions that were answered are passed over then.
    retries: BinaryHeap<Reverse<(Instant, ContainerId, PublicKey)>>,
}

/// What initiations may still cost within the current second.
struct Budget {
    since: Instant,
    all: u32,
    strangers: u32,
}

/// The length of what is sent shows only in steps of this many bytes (white paper, section 5.4.6).
const PADDING: usize = 16;

/// Puts zeroes behind a packet, up to the next step, but never beyond what the link carries. The receiver cuts them off by
/// the length in the packet's header.
fn pad<'a>(packet: &'a [u8], mtu: u32, room: &'a mut [u8]) -> &'a [u8] {
    let most = usize::try_from(mtu).unwrap_or(usize::MAX).max(packet.len());
    let length = packet.len().next_multiple_of(PADDING).min(most);
    match room.get_mut(..length) {
        Some(room) if length != packet.len() => {
            let (start, rest) = room.split_at_mut(packet.len());
            start.copy_from_slice(packet);
            rest.fill(0);
            room
        }
        _ => packet,
    }
}

impl Budget {
    fn admits(&mut self, known: bool, now: Instant) -> bool {
        if now.duration_since(self.since) >= Duration::from_secs(1) {
            *self = Self { since: now, all: 0, strangers: 0 };
        }
        if self.all >= INITIATIONS_PER_SECOND || (!known && self.strangers >= INITIATIONS_FROM_STRANGERS) {
            return false;
        }
        self.all += 1;
        self.strangers += u32::from(!known);
        true
    }
}

impl Network {
    /// A network without peers and devices. `first_index` should be random: receiver indices count on from it.
    pub fn new(keepalive: Option<u16>, first_index: u32, now: Instant) -> Self {
        Self {
            directory: Directory::default(),
            stats: NetworkStats::default(),
            keepalive,
            devices: HashMap::new(),
            indices: HashMap::new(),
            next_index: first_index & INDEX_MASK,
            scratch: vec![0; super::MAX_PACKET + 64].into_boxed_slice(),
            padded: vec![0; super::MAX_PACKET + PADDING].into_boxed_slice(),
            budget: Budget { since: now, all: 0, strangers: 0 },
            expired: Vec::new(),
            early: Early::new(),
            retries: BinaryHeap::new(),
        }
    }

    /// Seconds between keepalives to active peers.
    pub fn keepalive(&self) -> Option<u16> {
        self.keepalive
    }

    /// Sends keepalives this often in sessions that begin from now on.
    pub fn set_keepalive(&mut self, keepalive: Option<u16>) {
        self.keepalive = keepalive;
    }

    /// The device of a container.
    pub fn device(&self, id: ContainerId) -> Option<&Device> {
        self.devices.get(&id)
    }

    /// All devices, in no order.
    pub fn devices(&self) -> impl Iterator<Item = &Device> {
        self.devices.values()
    }

    /// Number of sessions, those that are being made included.
    pub fn sessions(&self) -> usize {
        self.indices.len()
    }

    /// Adds a device, or replaces the settings of the one of the same container. Its sessions live on unless its key
    /// is another now.
    pub fn put_device(&mut self, mut device: Device) {
        if let Some(old) = self.devices.remove(&device.id) {
            device.stats = old.stats;
            if old.public_key() == device.public_key() {
                device.sessions = old.sessions;
            } else {
                for (index, _) in old.sessions.values() {
                    self.indices.remove(index);
                }
            }
        }
        self.devices.insert(device.id, device);
    }

    /// Removes a device with its sessions; its keys are wiped.
    pub fn remove_device(&mut self, id: ContainerId) {
        if let Some(old) = self.devices.remove(&id) {
            for (index, _) in old.sessions.values() {
                self.indices.remove(index);
            }
        }
    }

    /// Adds or replaces peers. Their sessions live on, but for those whose preshared key changed.
    pub fn put_peer(&mut self, peer: Peer) {
        let key = peer.public_key;
        if self.directory.put(peer) {
            self.end_sessions(&key);
        }
        let configured = self.directory.get(&key).and_then(|entry| entry.endpoint(0));
        for device in self.devices.values_mut() {
            if let Some((_, session)) = device.sessions.get_mut(&key)
                && self.directory.get(&key).is_some_and(|entry| entry.learned.is_none())
            {
                session.set_endpoint(configured);
            }
        }
    }

    /// Processes what peers sent before they were put. To be called once they are.
    pub fn welcome(&mut self, keys: &[PublicKey], now: Instant, sink: &mut impl Sink) {
        for initiation in self.early.take(keys, now) {
            self.from_udp(initiation.from, &initiation.datagram, now, sink);
        }
    }

    /// Removes a peer; its sessions end at once.
    pub fn remove_peer(&mut self, key: &PublicKey) {
        self.directory.remove(key);
        self.end_sessions(key);
    }

    /// Ends a replacement of the directory that [`Directory::begin_replace`] began.
    pub fn end_replace(&mut self) {
        for key in self.directory.end_replace() {
            self.end_sessions(&key);
        }
    }

    /// A container sent a packet.
    pub fn from_tun(&mut self, id: ContainerId, packet: &[u8], now: Instant, sink: &mut impl Sink) {
        let Some(device) = self.devices.get_mut(&id) else { return };
        let Some(addresses) = Addresses::of(packet) else {
            device.stats.drop_malformed += 1;
            return;
        };
        if !device.addresses.contains(&addresses.source) {
            device.stats.drop_source += 1;
            return;
        }
        let Some(key) = self.directory.owner(&addresses.destination).copied() else {
            device.stats.drop_destination += 1;
            return;
        };
        if !device.sessions.contains_key(&key) && !self.make_session(id, key, now, sink) {
            return;
        }
        let Some(device) = self.devices.get_mut(&id) else { return };
        let Some((_, session)) = device.sessions.get_mut(&key) else { return };
        if session.endpoint().is_none() {
            session.set_endpoint(self.directory.get(&key).and_then(|entry| entry.endpoint(0)));
        }
        if session.endpoint().is_none() {
            device.stats.drop_endpoint += 1;
            return;
        }
        let armed = session.retry_at();
        let padded = pad(packet, device.mtu, &mut self.padded);
        let sent = session.send(padded, &mut self.scratch, now, sink);
        if let Some(at) = session.retry_at().filter(|_| armed.is_none()) {
            self.retries.push(Reverse((at, id, key)));
        }
        if sent {
            device.stats.tx_packets += 1;
            device.stats.tx_bytes += packet.len() as u64;
        } else {
            device.stats.drop_full += 1;
        }
    }

    /// A datagram came in on the network's port.
    pub fn from_udp(&mut self, from: SocketAddr, datagram: &[u8], now: Instant, sink: &mut impl Sink) {
        let (device, key) = match Tunn::parse_incoming_packet(datagram) {
            Ok(Packet::HandshakeInit(_)) => match self.initiator(from, datagram, now, sink) {
                Some(found) => found,
                None => return,
            },
            Ok(
                Packet::HandshakeResponse(boringtun::noise::HandshakeResponse { receiver_idx, .. })
                | Packet::PacketCookieReply(boringtun::noise::PacketCookieReply { receiver_idx, .. })
                | Packet::PacketData(boringtun::noise::PacketData { receiver_idx, .. }),
            ) => match self.indices.get(&(receiver_idx >> 8)) {
                Some(found) => *found,
                None => {
                    self.stats.drop_no_session += 1;
                    return;
                }
            },
            Err(_) => {
                self.stats.drop_malformed += 1;
                return;
            }
        };
        self.receive(device, key, from, datagram, now, sink);
    }

    /// Begins handshakes of a device with peers at once.
    pub fn wake<'a>(
        &mut self,
        id: ContainerId,
        peers: impl IntoIterator<Item = &'a PublicKey>,
        now: Instant,
        sink: &mut impl Sink,
    ) {
        for key in peers {
            let Some(device) = self.devices.get(&id) else { return };
            if device.session(key).is_none() && !self.make_session(id, *key, now, sink) {
                continue;
            }
            self.with_session(id, *key, |session, scratch| session.initiate(scratch, now, sink));
        }
    }

    /// When the next quick retry is due, if one is.
    pub fn next_retry(&self) -> Option<Instant> {
        self.retries.peek().map(|Reverse((at, ..))| *at)
    }

    /// Sends again what was not answered, as far as that is due.
    pub fn retry(&mut self, now: Instant, sink: &mut impl Sink) {
        while self.next_retry().is_some_and(|at| at <= now) {
            if let Some(Reverse((_, id, key))) = self.retries.pop() {
                self.with_session(id, key, |session, scratch| session.retry(scratch, now, sink));
            }
        }
    }

    /// Does something with a session that may arm a retry.
    fn with_session(&mut self, id: ContainerId, key: PublicKey, act: impl FnOnce(&mut Session, &mut [u8])) {
        let session = self.devices.get_mut(&id).and_then(|device| device.sessions.get_mut(&key));
        let Some((_, session)) = session else { return };
        let armed = session.retry_at();
        act(session, &mut self.scratch);
        if let Some(at) = session.retry_at().filter(|at| armed != Some(*at)) {
            self.retries.push(Reverse((at, id, key)));
        }
    }

    /// Lets time pass for all sessions that are held.
    pub fn tick(&mut self, now: Instant, sink: &mut impl Sink) {
        for device in self.devices.values_mut() {
            device.limiter().reset_count();
            for (key, (_, session)) in &mut device.sessions {
                let attempt = session.attempt();
                match session.tick(&mut self.scratch, now, sink) {
                    Tick::Expired => self.expired.push((device.id, *key)),
                    Tick::Alive if session.attempt() != attempt => {
                        let entry = self.directory.get(key);
                        session.set_endpoint(entry.and_then(|entry| entry.endpoint(session.attempt())));
                    }
                    Tick::Alive => {}
                }
            }
        }
        while let Some((device, key)) = self.expired.pop() {
            self.end_session(device, &key);
        }
    }

    fn receive(
        &mut self,
        id: ContainerId,
        key: PublicKey,
        from: SocketAddr,
        datagram: &[u8],
        now: Instant,
        sink: &mut impl Sink,
    ) {
        let Some(device) = self.devices.get_mut(&id) else { return };
        let Some((_, session)) = device.sessions.get_mut(&key) else { return };
        let handshakes = session.handshakes();
        let before = session.endpoint();
        match session.receive(from, datagram, &mut self.scratch, now, sink) {
            Received::Refused => device.stats.drop_crypto += 1,
            Received::Nothing => {}
            Received::Packet(packet) => match Addresses::of(packet) {
                // The owner of an address is the same for all devices of the network.
                Some(found) if self.directory.owner(&found.source) == Some(&key) => {
                    if !device.addresses.contains(&found.destination) {
                        device.stats.drop_destination += 1;
                    } else if sink.deliver(id, packet) {
                        device.stats.rx_packets += 1;
                        device.stats.rx_bytes += packet.len() as u64;
                    } else {
                        device.stats.drop_full += 1;
                    }
                }
                Some(_) => device.stats.drop_source += 1,
                None => device.stats.drop_malformed += 1,
            },
        }
        session.flush(&mut self.scratch, now, sink);
        device.stats.handshakes += session.handshakes() - handshakes;
        let after = session.endpoint();
        if let Some(proved) = after.filter(|_| after != before || session.handshakes() != handshakes) {
            self.directory.learn(&key, proved);
        }
    }

    /// Finds the device that an initiation is for and the peer that it is from. Costs one keyed MAC a device, within
    /// the budget; nothing is kept of a stranger.
    fn initiator(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        now: Instant,
        sink: &mut impl Sink,
    ) -> Option<(ContainerId, PublicKey)> {
        let known = self.knows_endpoint(&from);
        if datagram.len() != INITIATION_LEN || !self.budget.admits(known, now) {
            self.stats.drop_budget += 1;
            return None;
        }
        let (message, macs) = datagram.split_at_checked(INITIATION_LEN - 32)?;
        let mac1 = macs.get(..16)?;
        let device = self.devices.values().find(|device| device.mac1(message).as_slice() == mac1);
        let Some(device) = device else {
            self.stats.drop_stranger += 1;
            return None;
        };
        let Ok(Packet::HandshakeInit(initiation)) = Tunn::parse_incoming_packet(datagram) else {
            return None;
        };
        let secret = device.static_secret();
        let public = x25519::PublicKey::from(*device.public_key().as_bytes());
        let peer = parse_handshake_anon(&secret, &public, &initiation).ok()?;
        let key = PublicKey::from_bytes(peer.peer_static_public);
        if self.directory.get(&key).is_none() || key == *device.public_key() {
            self.stats.drop_stranger += 1;
            if known {
                self.early.keep(key, from, datagram, now);
            }
            return None;
        }
        let id = device.id;
        match device.session(&key) {
            Some(session) if !session.admits_initiation(now) => {
                self.stats.drop_budget += 1;
                None
            }
            Some(_) => Some((id, key)),
            None => self.make_session(id, key, now, sink).then_some((id, key)),
        }
    }

    fn make_session(&mut self, id: ContainerId, key: PublicKey, now: Instant, sink: &mut impl Sink) -> bool {
        let index = self.free_index();
        let Some(device) = self.devices.get_mut(&id) else { return false };
        if device.sessions.len() >= MAX_SESSIONS_PER_DEVICE {
            device.stats.drop_sessions += 1;
            return false;
        }
        let Some(entry) = self.directory.get(&key) else { return false };
        let preshared = entry.peer.preshared_key.as_ref().map(|key| *key.0.to_bytes());
        let tunn = device.tunn(&key, preshared, self.keepalive, index);
        device.sessions.insert(key, (index, Session::new(tunn, entry.endpoint(0), now)));
        device.stats.sessions = device.sessions.len() as u64;
        self.indices.insert(index, (id, key));
        sink.began(id, &key);
        true
    }

    fn end_sessions(&mut self, key: &PublicKey) {
        let ids: Vec<ContainerId> = self.devices.keys().copied().collect();
        ids.into_iter().for_each(|id| self.end_session(id, key));
    }

    fn end_session(&mut self, id: ContainerId, key: &PublicKey) {
        if let Some(device) = self.devices.get_mut(&id)
            && let Some((index, _)) = device.sessions.remove(key)
        {
            device.stats.sessions = device.sessions.len() as u64;
            self.indices.remove(&index);
        }
    }

    fn knows_endpoint(&self, from: &SocketAddr) -> bool {
        self.directory.knows_endpoint(from)
    }

    fn free_index(&mut self) -> u32 {
        // Sessions are far fewer than indices, so this ends after a few steps.
        loop {
            self.next_index = self.next_index.wrapping_add(1) & INDEX_MASK;
            if !self.indices.contains_key(&self.next_index) {
                return self.next_index;
            }
        }
    }
}
