//! A packet's way out: from a container's TUN device into a tunnel.

use std::net::IpAddr;
use std::ops::Range;
use std::sync::{Arc, MutexGuard};
use std::time::Instant;

use znet_core::id::ContainerId;

use super::Network;
use super::device::{Device, count};
use super::directory::PeerId;
use super::lane::Lane;
use super::local::Local;
use super::network::{Link, Tables};
use super::packet::{Addresses, CE, note_congestion};
use super::session::{Look, Session, room_for};
use crate::offload::{PADDING, VnetHeader, split};

/// How often one packet may have the tables changed for it.
const MAX_STOPS: u32 = 2;

/// What was read from a TUN device: a packet, or many of one flow that are still one.
#[derive(Clone, Debug)]
pub struct Read {
    /// What the kernel said of it.
    pub header: VnetHeader,
    /// Where it lies in the batch's buffer. As many bytes as [`PADDING`] behind it are free to use.
    pub at: Range<usize>,
    /// Its sender is to slow down: it is marked, or its first part is dropped.
    pub congested: bool,
}

/// Figures of a burst, added up at its end.
#[derive(Default)]
struct Sums {
    packets: u64,
    bytes: u64,
    malformed: u64,
    source: u64,
    destination: u64,
    endpoint: u64,
    full: u64,
}

impl Sums {
    fn add_to(&self, device: &Device) {
        let counters = &device.counters;
        count(&counters.tx_packets, self.packets);
        count(&counters.tx_bytes, self.bytes);
        count(&counters.drop_malformed, self.malformed);
        count(&counters.drop_source, self.source);
        count(&counters.drop_destination, self.destination);
        count(&counters.drop_endpoint, self.endpoint);
        count(&counters.drop_full, self.full);
    }
}

/// Why a burst ended before its batch.
enum Stop {
    /// There is no session with this peer.
    NoLink(PeerId),
    /// The session with this peer is of no more use.
    Expired(Arc<Link>),
}

/// The session of the packets before, which is likely that of the next.
struct Held<'t> {
    link: &'t Arc<Link>,
    session: MutexGuard<'t, Session>,
    destination: IpAddr,
}

impl Network {
    /// A container sent packets, which lie in `buffer`.
    pub fn from_tun(
        &self,
        id: ContainerId,
        buffer: &mut [u8],
        batch: &[Read],
        lane: &mut Lane,
        now: Instant,
    ) {
        let mut rest = batch;
        // A packet stops a burst when its session has ended, and again when there is none yet; more often, it is passed over.
        let (mut stopped_at, mut stops) = (None, 0);
        loop {
            let outcome = {
                let tables = self.read();
                let Some(local) = tables.devices.get(&id) else { return };
                self.burst(&tables, local, buffer, &mut rest, lane, now)
            };
            self.flush(lane);
            let Some(stop) = outcome else { return };
            stops = if stopped_at == Some(rest.len()) { stops + 1 } else { 0 };
            stopped_at = Some(rest.len());
            if stops == MAX_STOPS {
                if let Some(device) = self.device(id) {
                    count(&device.counters.drop_sessions, 1);
                }
                rest = rest.get(1..).unwrap_or_default();
                continue;
            }
            match stop {
                Stop::NoLink(peer) => {
                    if self.make_link(id, peer, now).is_none() {
                        rest = rest.get(1..).unwrap_or_default();
                    }
                }
                Stop::Expired(link) => self.end_link(&link),
            }
        }
    }

    /// Encrypts packets until one needs the tables changed.
    fn burst<'t>(
        &self,
        tables: &'t Tables,
        local: &'t Local,
        buffer: &mut [u8],
        rest: &mut &[Read],
        lane: &mut Lane,
        now: Instant,
    ) -> Option<Stop> {
        let device = &local.device;
        let mut sums = Sums::default();
        let mut held: Option<Held<'t>> = None;
        let mut stop = None;
        while let Some((read, after)) = rest.split_first() {
            let Some(packet) = buffer.get_mut(read.at.start..read.at.end + PADDING) else {
                *rest = after;
                continue;
            };
            let Some(addresses) = Addresses::in_header(packet) else {
                sums.malformed += 1;
                *rest = after;
                continue;
            };
            if !device.addresses.contains(&addresses.source) {
                sums.source += 1;
                *rest = after;
                continue;
            }
            if held.as_ref().is_none_or(|held| held.destination != addresses.destination) {
                match find(tables, local, &addresses.destination) {
                    Ok(link) => {
                        if held.as_ref().is_none_or(|held| held.link.index != link.index) {
                            release(held.take(), lane, now);
                            let mut session = link.lock();
                            if session.look_if_due(&mut lane.outbox, now) == Look::Expired {
                                stop = Some(Stop::Expired(link.clone()));
                                break;
                            }
                            if session.endpoint().is_none() {
                                let entry = tables.directory.peer(link.ends.peer);
                                session.set_endpoint(entry.and_then(|entry| entry.endpoint(0)));
                            }
                            held = Some(Held { link, session, destination: addresses.destination });
                        } else if let Some(held) = &mut held {
                            held.destination = addresses.destination;
                        }
                    }
                    Err(None) => {
                        sums.destination += 1;
                        *rest = after;
                        continue;
                    }
                    Err(Some(peer)) => {
                        stop = Some(Stop::NoLink(peer));
                        break;
                    }
                }
            }
            if let Some(held) = &mut held {
                self.encrypt(&mut held.session, device, packet, read, lane, &mut sums, now);
            }
            *rest = after;
        }
        release(held, lane, now);
        sums.add_to(device);
        stop
    }

    #[expect(clippy::too_many_arguments, reason = "the hot path's state, which has no other home")]
    fn encrypt(
        &self,
        session: &mut Session,
        device: &Device,
        packet: &mut [u8],
        read: &Read,
        lane: &mut Lane,
        sums: &mut Sums,
        now: Instant,
    ) {
        if session.endpoint().is_none() {
            sums.endpoint += 1;
            return;
        }
        let mtu = device.mtu() as usize;
        // One lost packet tells a sender as much as all of a big one would.
        let mut drop_next = read.congested && !note_congestion(CE, packet);
        let outcome = split(&read.header, packet, read.at.len(), mtu, |segment| {
            if std::mem::take(&mut drop_next) {
                sums.full += 1;
                return;
            }
            if lane.outbox.free() < room_for(segment.padded.len()) {
                // More than a whole buffer out of one batch: rare enough to send with the session locked.
                self.underlay.send(&lane.outbox);
                lane.outbox.clear();
            }
            if session.send(segment.padded, &mut lane.outbox, now) {
                sums.packets += 1;
                sums.bytes += segment.len as u64;
            } else {
                sums.full += 1;
            }
        });
        if outcome.is_err() {
            sums.malformed += 1;
        }
    }
}

/// The link to whoever has an address; if there is none, the peer to make one with.
fn find<'t>(tables: &'t Tables, local: &'t Local, address: &IpAddr) -> Result<&'t Arc<Link>, Option<PeerId>> {
    let peer = tables.directory.owner(address).ok_or(None)?;
    if let Some(link) = local.links.get(&peer) {
        return Ok(link);
    }
    let own = tables.directory.peer(peer).is_some_and(|entry| local.is(entry));
    Err((!own).then_some(peer))
}

fn release(held: Option<Held<'_>>, lane: &mut Lane, now: Instant) {
    if let Some(mut held) = held {
        lane.schedule(held.link, &mut held.session, now);
    }
}
