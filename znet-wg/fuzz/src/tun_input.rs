//! Reads of a TUN device.
//!
//! A reference that is slow and plain tells which packets have to come out of which reads. Every packet is found again:
//! among the sent, or in the counter of the reason why it was dropped.

use std::cell::RefCell;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use znet_core::id::ContainerId;
use znet_wg::control::DeviceStats;
use znet_wg::net::{Addresses, OwnAddresses, Read};
use znet_wg::offload::{Offloads, PADDING, VNET_LEN, VnetHeader};

use crate::input::Input;
use crate::packets::{Spec, cut, finish_ipv4};
use crate::world::{Node, OVERHEAD, addresses, at, establish, offloads, peer};

/// The device whose addresses are its own alone, and the one that may use any.
const BOUND: u8 = 1;
const FREE: u8 = 3;
/// Where both send to, and a peer of which nobody knows where it is.
const FAR: u8 = 2;
const LOST: u8 = 4;
/// Most reads in a batch.
const READS: usize = 8;
/// Inputs after which the sessions are made anew: far fewer than make them old.
const INPUTS: u32 = 256;
/// The age at which they are made anew anyhow: before anything falls due.
const FRESH: Duration = Duration::from_secs(4);

/// Two nodes with sessions.
struct World {
    near: Node,
    far: Node,
    made: Instant,
    inputs: u32,
}

thread_local! {
    /// Making sessions takes a hundred times as long as sending packets through them, and an input leaves nothing behind
    /// but counters.
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        let all = Offloads { tcp4: true, tcp6: true, udp: true };
        let (mut near, mut far) = (Node::new(BOUND, all, now), Node::new(FAR, all, now));
        near.put_device(BOUND, OwnAddresses::Only(addresses(BOUND).to_vec()), 1420);
        near.put_device(FREE, OwnAddresses::Any, 1420);
        far.put_device(FAR, OwnAddresses::Only(addresses(FAR).to_vec()), 1420);
        near.network.put_peers(vec![
            peer(BOUND, Vec::new()),
            peer(FAR, vec![at(FAR)]),
            peer(FREE, Vec::new()),
            peer(LOST, Vec::new()),
        ]);
        far.network.put_peers(vec![
            peer(BOUND, vec![at(BOUND)]),
            peer(FAR, Vec::new()),
            peer(FREE, vec![at(BOUND)]),
        ]);
        establish((&mut near, BOUND), (&mut far, FAR), now);
        establish((&mut near, FREE), (&mut far, FAR), now);
        Self { near, far, made: now, inputs: 0 }
    }

    fn of_use(&self) -> bool {
        self.inputs < INPUTS && self.made.elapsed() < FRESH
    }
}

/// What a batch of reads has to become.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    /// Sent, or dropped to slow the sender down.
    passed: u64,
    malformed: u64,
    source: u64,
    destination: u64,
    endpoint: u64,
}

impl Outcome {
    fn between(before: &DeviceStats, after: &DeviceStats) -> Self {
        Self {
            passed: after.tx_packets + after.drop_full - before.tx_packets - before.drop_full,
            malformed: after.drop_malformed - before.drop_malformed,
            source: after.drop_source - before.drop_source,
            destination: after.drop_destination - before.drop_destination,
            endpoint: after.drop_endpoint - before.drop_endpoint,
        }
    }

    /// Adds what a read has to become; says how long the longest datagram may be.
    fn add(&mut self, device: u8, read: &Read, buffer: &[u8], mtu: usize) -> usize {
        let padded = &buffer[read.at.start..read.at.end + PADDING];
        let Some(Addresses { source, destination }) = Addresses::in_header(padded) else {
            self.malformed += 1;
            return 0;
        };
        if device == BOUND && !addresses(BOUND).contains(&source) {
            self.source += 1;
            return 0;
        }
        let is = |n: u8| addresses(n).contains(&destination);
        if ![BOUND, FAR, FREE, LOST].into_iter().any(is) || is(device) {
            self.destination += 1;
            return 0;
        }
        if !is(FAR) {
            self.endpoint += 1;
            return 0;
        }
        match cut(&read.header, &buffer[read.at.clone()], mtu) {
            Some(segments) => {
                self.passed += segments.len() as u64;
                let longest = segments.iter().map(Vec::len).max().unwrap_or_default();
                longest.next_multiple_of(PADDING).min(mtu.max(longest)) + OVERHEAD
            }
            None => {
                self.malformed += 1;
                0
            }
        }
    }
}

/// One read; its packet is written to the end of the buffer.
fn read(input: &mut Input<'_>, buffer: &mut Vec<u8>) -> Read {
    let kind = input.u8();
    let (header, packet) = if kind & 7 == 7 {
        let header = VnetHeader::parse(input.bytes(VNET_LEN)).unwrap_or_default();
        (header, input.string().to_vec())
    } else {
        let places = input.u8();
        let address = |bits: u8| -> IpAddr { addresses(bits & 7)[usize::from(kind & 1)] };
        let spec = Spec {
            flags: input.u8(),
            fragment: if kind & 4 == 0 { 0x4000 } else { 0 },
            ..Spec::new(kind & 2 == 0, address(places), address(places >> 4))
        };
        let (length, size) = (usize::from(input.u16()).min(65_400), input.u16());
        let payload: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
        let mut packet = spec.build(&payload);
        finish_ipv4(&mut packet);
        (spec.vnet(size), packet)
    };
    let mut header = header.encode();
    let mut packet = packet;
    if kind & 8 != 0 {
        input.edit(&mut header);
    }
    if kind & 16 != 0 {
        let headers = packet.len().min(80);
        input.edit(&mut packet[..headers]);
    }
    if kind & 32 != 0 {
        packet.truncate(input.u16().into());
    }
    let start = buffer.len();
    buffer.extend(packet);
    let at = start..buffer.len();
    buffer.extend([0; PADDING]);
    Read { header: VnetHeader::parse(&header).unwrap(), at, congested: kind & 64 != 0 }
}

/// Batches of reads. What is too much for one input is left out.
pub fn tun_input(data: &[u8]) {
    let mut input = Input::new(data);
    let settings = input.u8();
    let device = if settings & 1 == 0 { BOUND } else { FREE };
    let mtu = match settings >> 1 & 3 {
        0 => 1_420,
        1 => 1_280,
        2 => 65_535,
        _ => input.u16().into(),
    };
    let joined = offloads(settings >> 3);
    let late = settings & 0xc0 == 0xc0;
    WORLD.with_borrow_mut(|kept| {
        let mut world = kept.take().filter(World::of_use).unwrap_or_else(World::new);
        world.inputs += 1;
        batch(&mut world, &mut input, device, mtu, late);
        if !late && joined.udp {
            batch(&mut world, &mut input, device, mtu, late);
        }
        if !late {
            *kept = Some(world);
        }
    });
}

fn batch(world: &mut World, input: &mut Input<'_>, device: u8, mtu: u32, late: bool) {
    let World { near, far, .. } = world;
    let id = ContainerId::new(device.into());
    near.network.device(id).unwrap().set_mtu(mtu);
    let (mut buffer, mut reads) = (Vec::new(), Vec::new());
    while !input.is_empty() && reads.len() < READS {
        reads.push(read(input, &mut buffer));
    }
    let mut expected = Outcome::default();
    let mut longest = 0;
    for read in &reads {
        longest = longest.max(expected.add(device, read, &buffer, mtu as usize));
    }
    let (before, far_before) = (near.stats(device), far.stats(FAR));
    // A session that rested for minutes is of no more use: the first packet has to make another.
    let now = Instant::now() + if late { Duration::from_secs(300) } else { Duration::ZERO };
    near.network.from_tun(id, &mut buffer, &reads, &mut near.lane, now);
    let after = near.stats(device);
    assert_eq!(Outcome::between(&before, &after), expected, "every packet is sent or counted as dropped");
    let congested = reads.iter().filter(|read| read.congested).count() as u64;
    assert!(after.drop_full - before.drop_full <= congested, "nothing else is a reason to drop");
    let sent = near.sent();
    for (to, datagram) in &sent {
        assert_eq!(*to, at(FAR));
        assert!(datagram[0] == 1 || datagram.len() <= longest, "{} bytes of {longest}", datagram.len());
    }
    if late {
        return;
    }
    sent.into_iter().for_each(|(_, datagram)| far.hear(near.at, &datagram, now));
    let (mut came, mut figures) = (0, far.stats(FAR));
    for (vnet, packet) in far.delivered() {
        came += cut(&vnet, &packet, 0).map_or(1, |segments| segments.len() as u64);
    }
    assert_eq!(came, figures.rx_packets - far_before.rx_packets);
    for (after, before) in [
        (&mut figures.drop_malformed, far_before.drop_malformed),
        (&mut figures.drop_source, far_before.drop_source),
        (&mut figures.drop_destination, far_before.drop_destination),
        (&mut figures.drop_crypto, far_before.drop_crypto),
    ] {
        came += *after - before;
    }
    assert_eq!(came, after.tx_packets - before.tx_packets, "what was sent arrives, or is counted as dropped");
    far.sent().into_iter().for_each(|(_, datagram)| near.hear(far.at, &datagram, now));
}
