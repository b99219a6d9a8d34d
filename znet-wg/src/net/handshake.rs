//! Handshake messages: whose they are, and what they may cost. A key agreement takes a quarter of a millisecond, so no
//! lock that packets of others need is held meanwhile.

use std::sync::Arc;
use std::time::Instant;

use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::{Packet, Tunn};
use boringtun::x25519;
use znet_core::key::PublicKey;

use super::Network;
use super::device::{COOKIE_LEN, Device, Pair, Proof, count};
use super::early::INITIATION_LEN;
use super::gate::Sender;
use super::lane::Lane;
use super::network::{Ends, Link, news};
use super::outbox::Path;
use super::session::Received;

impl Network {
    /// Processes what peers sent before they were put. To be called once they are.
    pub fn welcome(&self, keys: &[PublicKey], lane: &mut Lane, now: Instant) {
        for initiation in self.gate.take(keys, now) {
            self.handshake(Path::to(initiation.from), &initiation.datagram, lane, now);
        }
    }

    /// A datagram that carries no packet came in.
    pub(super) fn handshake(&self, path: Path, datagram: &[u8], lane: &mut Lane, now: Instant) {
        let index = match Tunn::parse_incoming_packet(datagram) {
            Ok(Packet::HandshakeInit(_)) => {
                if let Some((link, device)) = self.initiator(path, datagram, lane, now) {
                    self.answer(&link, &device, path, datagram, lane, now);
                }
                return;
            }
            Ok(
                Packet::HandshakeResponse(boringtun::noise::HandshakeResponse { receiver_idx, .. })
                | Packet::PacketCookieReply(boringtun::noise::PacketCookieReply { receiver_idx, .. })
                | Packet::PacketData(boringtun::noise::PacketData { receiver_idx, .. }),
            ) => receiver_idx >> 8,
            Err(_) => {
                count(&self.gate.drop_malformed, 1);
                return;
            }
        };
        let found = {
            let tables = self.read();
            let link = tables.links.get(&index);
            link.and_then(|link| Some((link.clone(), tables.devices.get(&link.ends.device)?.device.clone())))
        };
        let Some((link, device)) = found else {
            count(&self.gate.drop_no_session, 1);
            return;
        };
        let pair = device.pair(&link.ends.own).unwrap_or_else(|| device.current());
        if self.admits(pair, path, datagram, lane, now) {
            self.answer(&link, &device, path, datagram, lane, now);
        }
    }

    /// Whether a message for this pair of a device may be processed. Beyond the budget only who proves to be where it says is, and
    /// everybody else is asked for that.
    fn admits(&self, pair: &Pair, path: Path, datagram: &[u8], lane: &mut Lane, now: Instant) -> bool {
        let known = self.read().directory.knows_endpoint(&path.remote);
        if self.gate.admits(if known { Sender::Known } else { Sender::Stranger }, now) {
            return true;
        }
        let mut cookie = [0; COOKIE_LEN];
        match pair.proves_address(path.remote.ip(), datagram, &mut cookie) {
            Proof::Given if self.gate.admits(Sender::Proved, now) => return true,
            Proof::Asked(len) => {
                if let Some(room) = lane.outbox.room().get_mut(..len) {
                    room.copy_from_slice(cookie.get(..len).unwrap_or_default());
                    lane.outbox.push(path, 0, len);
                    self.flush(lane);
                }
            }
            Proof::Given | Proof::Refused => {}
        }
        count(&self.gate.drop_budget, 1);
        false
    }

    fn answer(
        &self,
        link: &Arc<Link>,
        device: &Device,
        path: Path,
        datagram: &[u8],
        lane: &mut Lane,
        now: Instant,
    ) {
        let mut session = link.lock();
        let (handshakes, before) = (session.handshakes(), session.endpoint());
        session.look_if_due(&mut lane.outbox, now);
        let Lane { arena, outbox, .. } = &mut *lane;
        // The arena is empty between bursts.
        if session.receive(path, datagram, arena, outbox, now) == Received::Refused {
            count(&device.counters.drop_crypto, 1);
        }
        session.flush(&mut lane.outbox, now);
        // Before anybody else may use the session: a packet that overtook the response would find no session there.
        self.send(lane);
        lane.schedule(link, &mut session, now);
        count(&device.counters.handshakes, session.handshakes() - handshakes);
        if let Some(endpoint) = news(before, &session, handshakes) {
            lane.learned.push((link.ends.peer, endpoint, link.index));
        }
        drop(session);
        self.flush(lane);
    }

    /// Finds the session that an initiation is for, or makes it. Costs one keyed MAC a local key, within the budget; nothing
    /// is kept of a stranger.
    fn initiator(
        &self,
        path: Path,
        datagram: &[u8],
        lane: &mut Lane,
        now: Instant,
    ) -> Option<(Arc<Link>, Arc<Device>)> {
        let (device, pair) = self.addressee(datagram, now)?;
        if !self.admits(&pair, path, datagram, lane, now) {
            return None;
        }
        let Ok(Packet::HandshakeInit(initiation)) = Tunn::parse_incoming_packet(datagram) else {
            return None;
        };
        let secret = pair.static_secret();
        let public = x25519::PublicKey::from(*pair.public_key().as_bytes());
        let peer = parse_handshake_anon(secret, &public, &initiation).ok()?;
        let key = PublicKey::from_bytes(peer.peer_static_public);
        let found = {
            let tables = self.read();
            let peer = tables.directory.id(&key).filter(|_| device.pair(&key).is_none());
            peer.map(|peer| {
                let ends = Ends { device: device.id, peer, own: *pair.public_key(), key };
                (ends, tables.link_between(&ends).cloned())
            })
        };
        let Some((ends, link)) = found else {
            count(&self.gate.drop_stranger, 1);
            if self.read().directory.knows_endpoint(&path.remote) {
                self.gate.keep(key, path.remote, datagram, now);
            }
            return None;
        };
        match link {
            Some(link) if !link.lock().admits_initiation(now) => {
                count(&self.gate.drop_budget, 1);
                None
            }
            Some(link) => Some((link, device)),
            None => self.make(ends, now).map(|link| (link, device)),
        }
    }

    /// The device for whose key an initiation is, and the pair of that key.
    fn addressee(&self, datagram: &[u8], now: Instant) -> Option<(Arc<Device>, Arc<Pair>)> {
        let tables = self.read();
        let devices = || tables.devices.values().map(|local| &local.device);
        let keys = devices().map(|device| device.pairs().count()).sum();
        if datagram.len() != INITIATION_LEN || !self.gate.admits_macs(keys, now) {
            count(&self.gate.drop_budget, 1);
            return None;
        }
        let (message, macs) = datagram.split_at_checked(INITIATION_LEN - 32)?;
        let mac1 = macs.get(..16)?;
        let mut pairs = devices().flat_map(|device| device.pairs().map(move |pair| (device, pair)));
        let found = pairs.find(|(_, pair)| pair.mac1(message).as_slice() == mac1);
        if found.is_none() {
            count(&self.gate.drop_stranger, 1);
        }
        found.map(|(device, pair)| (device.clone(), pair.clone()))
    }
}
