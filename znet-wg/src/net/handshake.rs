//! Handshake messages: whose they are, and what they may cost. A key agreement takes a quarter of a millisecond, so no
//! lock that packets of others need is held meanwhile.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::{Packet, Tunn};
use boringtun::x25519;
use znet_core::key::PublicKey;

use super::Network;
use super::device::{Device, count};
use super::early::INITIATION_LEN;
use super::lane::Lane;
use super::network::{Link, news};
use super::session::Received;

impl Network {
    /// Processes what peers sent before they were put. To be called once they are.
    pub fn welcome(&self, keys: &[PublicKey], lane: &mut Lane, now: Instant) {
        for initiation in self.gate.take(keys, now) {
            self.handshake(initiation.from, &initiation.datagram, lane, now);
        }
    }

    /// A datagram that carries no packet came in.
    pub(super) fn handshake(&self, from: SocketAddr, datagram: &[u8], lane: &mut Lane, now: Instant) {
        let link = match Tunn::parse_incoming_packet(datagram) {
            Ok(Packet::HandshakeInit(_)) => self.initiator(from, datagram, now),
            Ok(
                Packet::HandshakeResponse(boringtun::noise::HandshakeResponse { receiver_idx, .. })
                | Packet::PacketCookieReply(boringtun::noise::PacketCookieReply { receiver_idx, .. })
                | Packet::PacketData(boringtun::noise::PacketData { receiver_idx, .. }),
            ) => {
                let found = self.read().links.get(&(receiver_idx >> 8)).cloned();
                if found.is_none() {
                    count(&self.gate.drop_no_session, 1);
                }
                found
            }
            Err(_) => {
                count(&self.gate.drop_malformed, 1);
                None
            }
        };
        let Some(link) = link else { return };
        let Some(device) = self.device(link.device) else { return };
        device.renew_limit();
        self.answer(&link, &device, from, datagram, lane, now);
    }

    fn answer(
        &self,
        link: &Arc<Link>,
        device: &Device,
        from: SocketAddr,
        datagram: &[u8],
        lane: &mut Lane,
        now: Instant,
    ) {
        let mut session = link.lock();
        let (handshakes, before) = (session.handshakes(), session.endpoint());
        session.look_if_due(&mut lane.outbox, now);
        let Lane { arena, outbox, .. } = &mut *lane;
        // The arena is empty between bursts.
        if session.receive(from, datagram, arena, outbox, now) == Received::Refused {
            count(&device.counters.drop_crypto, 1);
        }
        session.flush(&mut lane.outbox, now);
        lane.schedule(link, &mut session, now);
        count(&device.counters.handshakes, session.handshakes() - handshakes);
        if let Some(endpoint) = news(before, &session, handshakes) {
            lane.learned.push((link.peer, endpoint));
        }
        drop(session);
        self.flush(lane);
    }

    /// Finds the session that an initiation is for, or makes it. Costs one keyed MAC a device, within the budget; nothing
    /// is kept of a stranger.
    fn initiator(&self, from: SocketAddr, datagram: &[u8], now: Instant) -> Option<Arc<Link>> {
        let known = self.read().directory.knows_endpoint(&from);
        if datagram.len() != INITIATION_LEN || !self.gate.admits(known, now) {
            count(&self.gate.drop_budget, 1);
            return None;
        }
        let (message, macs) = datagram.split_at_checked(INITIATION_LEN - 32)?;
        let mac1 = macs.get(..16)?;
        let device = {
            let tables = self.read();
            let mut devices = tables.devices.values().map(|local| &local.device);
            devices.find(|device| device.mac1(message).as_slice() == mac1).cloned()
        };
        let Some(device) = device else {
            count(&self.gate.drop_stranger, 1);
            return None;
        };
        let Ok(Packet::HandshakeInit(initiation)) = Tunn::parse_incoming_packet(datagram) else {
            return None;
        };
        let secret = device.static_secret();
        let public = x25519::PublicKey::from(*device.public_key().as_bytes());
        let peer = parse_handshake_anon(&secret, &public, &initiation).ok()?;
        let key = PublicKey::from_bytes(peer.peer_static_public);
        let (id, link) = {
            let tables = self.read();
            let id = tables.directory.id(&key).filter(|_| key != *device.public_key());
            (id, id.and_then(|id| tables.link(device.id, id).cloned()))
        };
        let Some(id) = id else {
            count(&self.gate.drop_stranger, 1);
            if known {
                self.gate.keep(key, from, datagram, now);
            }
            return None;
        };
        match link {
            Some(link) if !link.lock().admits_initiation(now) => {
                count(&self.gate.drop_budget, 1);
                None
            }
            Some(link) => Some(link),
            None => self.make_link(device.id, id, now),
        }
    }
}
