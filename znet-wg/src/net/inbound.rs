//! A packet's way in: from the underlay out of a tunnel into a container's TUN device.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::time::Instant;

use super::Network;
use super::device::{Device, count};
use super::lane::{Delivery, Lane};
use super::network::{Link, Tables, news};
use super::outbox::Path;
use super::packet::{Addresses, note_congestion};
use super::session::{Look, Received, Session};

/// Type of a message that carries a packet (white paper, section 5.4.6), with the reserved bytes.
const DATA: [u8; 4] = [4, 0, 0, 0];
/// Shortest of them: header and tag around nothing.
const DATA_LEN: usize = 32;

/// What one receive call brought from one sender: a datagram, or several of one length (the last may be shorter).
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Who sent it, and to which address of this host.
    pub path: Path,
    /// The type of service, or traffic class, of the outer header.
    pub tos: u8,
    /// Where it lies in the batch's buffer.
    pub at: Range<usize>,
    /// The length of each datagram but the last.
    pub size: usize,
}

/// A place in a batch: an arrival, and an offset in its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Place {
    arrival: usize,
    offset: usize,
}

/// Why a burst ended.
enum Stop {
    /// The batch is done.
    Done,
    /// The arena is full: deliver, and go on.
    Full,
    /// A message that is no packet: to be processed on its own.
    Handshake(Range<usize>, Path),
}

/// The session of the datagrams before, which is likely that of the next.
struct Held<'t> {
    link: &'t Arc<Link>,
    device: &'t Arc<Device>,
    session: MutexGuard<'t, Session>,
    before: Option<SocketAddr>,
    handshakes: u64,
    /// An address that was found to be the peer's.
    source: Option<IpAddr>,
    first_packet: usize,
    sums: Sums,
}

#[derive(Default)]
struct Sums {
    bytes: u64,
    malformed: u64,
    source: u64,
    destination: u64,
    crypto: u64,
}

impl Network {
    /// Datagrams came in on the network's port; they lie in `buffer`.
    pub fn from_udp(&self, buffer: &[u8], batch: &[Arrival], lane: &mut Lane, now: Instant) {
        let mut place = Place::default();
        loop {
            let stop = {
                let tables = self.read();
                self.decrypt(&tables, buffer, batch, &mut place, lane, now)
            };
            self.flush(lane);
            self.deliver(lane);
            match stop {
                Stop::Done => return,
                Stop::Full => {}
                Stop::Handshake(at, path) => {
                    self.handshake(path, buffer.get(at).unwrap_or_default(), lane, now);
                }
            }
        }
    }

    fn decrypt<'t>(
        &self,
        tables: &'t Tables,
        buffer: &[u8],
        batch: &[Arrival],
        place: &mut Place,
        lane: &mut Lane,
        now: Instant,
    ) -> Stop {
        let mut held: Option<Held<'t>> = None;
        while let Some(arrival) = batch.get(place.arrival) {
            let start = arrival.at.start + place.offset;
            let end = (start + arrival.size.max(1)).min(arrival.at.end);
            if start >= end {
                *place = Place { arrival: place.arrival + 1, offset: 0 };
                continue;
            }
            let datagram = buffer.get(start..end).unwrap_or_default();
            if lane.arena.len() - lane.filled < datagram.len().max(256) {
                self.release(held, lane, now);
                return Stop::Full;
            }
            place.offset += end - start;
            let Some(index) = data_index(datagram) else {
                self.release(held, lane, now);
                return Stop::Handshake(start..end, arrival.path);
            };
            if held.as_ref().is_none_or(|held| held.link.index != index) {
                self.release(held.take(), lane, now);
                held = hold(tables, index, lane);
            }
            match &mut held {
                Some(held) => held.receive(tables, arrival, datagram, lane, now),
                None => count(&self.gate.drop_no_session, 1),
            }
        }
        self.release(held, lane, now);
        Stop::Done
    }

    /// Lets go of a session after a run of datagrams.
    fn release(&self, held: Option<Held<'_>>, lane: &mut Lane, now: Instant) {
        let Some(mut held) = held else { return };
        if held.session.wants_flush() {
            held.session.flush(&mut lane.outbox, now);
            // Before anybody else may use the session, so that what waited is not overtaken by what comes now.
            self.send(lane);
        }
        // It received something just now, so it is not the time to find that it expired.
        let _: Look = held.session.look_if_due(&mut lane.outbox, now);
        lane.schedule(held.link, &mut held.session, now);
        if let Some(endpoint) = news(held.before, &held.session, held.handshakes) {
            lane.learned.push((held.link.ends.peer, endpoint, held.link.index));
        }
        let counters = &held.device.counters;
        count(&counters.handshakes, held.session.handshakes() - held.handshakes);
        count(&counters.drop_malformed, held.sums.malformed);
        count(&counters.drop_source, held.sums.source);
        count(&counters.drop_destination, held.sums.destination);
        count(&counters.drop_crypto, held.sums.crypto);
        let packets = held.first_packet..lane.packets.len();
        if !packets.is_empty() {
            lane.deliveries.push(Delivery { device: held.device.clone(), packets, bytes: held.sums.bytes });
        }
    }

    /// Hands to the devices what lies in the arena.
    fn deliver(&self, lane: &mut Lane) {
        let Lane { arena, packets, deliveries, coalescer, .. } = lane;
        for delivery in deliveries.drain(..) {
            let counters = &delivery.device.counters;
            coalescer.set_offloads(delivery.device.port.offloads());
            for packet in packets.get(delivery.packets).unwrap_or_default() {
                coalescer.push(arena, packet.clone());
            }
            let (mut delivered, mut dropped) = (0, 0);
            coalescer.drain(arena, |slices, packets| {
                let counter =
                    if delivery.device.port.deliver(slices) { &mut delivered } else { &mut dropped };
                *counter += packets as u64;
            });
            count(&counters.rx_packets, delivered);
            count(&counters.drop_full, dropped);
            if dropped == 0 {
                counters.rx_bytes.fetch_add(delivery.bytes, Ordering::Relaxed);
            }
        }
        packets.clear();
        lane.filled = 0;
    }
}

impl Held<'_> {
    fn receive(
        &mut self,
        tables: &Tables,
        arrival: &Arrival,
        datagram: &[u8],
        lane: &mut Lane,
        now: Instant,
    ) {
        let start = lane.filled;
        let Some(into) = lane.arena.get_mut(start..) else { return };
        let len = match self.session.receive(arrival.path, datagram, into, &mut lane.outbox, now) {
            Received::Packet(len) => len,
            Received::Nothing => return,
            Received::Refused => {
                self.sums.crypto += 1;
                return;
            }
        };
        let Some(packet) = into.get_mut(..len) else { return };
        let Some(addresses) = Addresses::of(packet) else {
            self.sums.malformed += 1;
            return;
        };
        // The owner of an address is the same for all devices of the network.
        if self.source != Some(addresses.source) {
            if tables.directory.owner(&addresses.source) != Some(self.link.ends.peer) {
                self.sums.source += 1;
                return;
            }
            self.source = Some(addresses.source);
        }
        if !self.device.addresses.contains(&addresses.destination) {
            self.sums.destination += 1;
            return;
        }
        note_congestion(arrival.tos, packet);
        self.sums.bytes += len as u64;
        lane.packets.push(start..start + len);
        lane.filled = start + len;
    }
}

fn hold<'t>(tables: &'t Tables, index: u32, lane: &Lane) -> Option<Held<'t>> {
    let link = tables.links.get(&index)?;
    let device = &tables.devices.get(&link.ends.device)?.device;
    let session = link.lock();
    Some(Held {
        link,
        device,
        before: session.endpoint(),
        handshakes: session.handshakes(),
        session,
        source: None,
        first_packet: lane.packets.len(),
        sums: Sums::default(),
    })
}

/// The number of the session that a datagram with a packet in it is for; boringtun's eight bits of the index are left out.
fn data_index(datagram: &[u8]) -> Option<u32> {
    let (kind, rest) = datagram.split_first_chunk::<4>()?;
    let index = rest.first_chunk::<4>()?;
    (*kind == DATA && datagram.len() >= DATA_LEN).then(|| u32::from_le_bytes(*index) >> 8)
}
