//! Two networks over an underlay that is a queue.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use znet_core::id::ContainerId;
use znet_core::key::PrivateKey;
use znet_wg::control::{DeviceStats, Peer};
use znet_wg::net::{
    Arrival, Device, Lane, MAX_PACKET, MAX_RUN, MAX_SEGMENTS, Network, Outbox, OwnAddresses, Path, Port,
    Read, Underlay,
};
use znet_wg::offload::{Offloads, PADDING, VNET_LEN, VnetHeader};

use crate::packets::Spec;

/// What a packet's message has more than the packet (white paper, section 5.4.6).
pub(crate) const OVERHEAD: usize = 32;

/// Where a node's datagrams and packets come out.
#[derive(Default)]
pub(crate) struct Ends {
    datagrams: Mutex<VecDeque<(SocketAddr, Vec<u8>)>>,
    delivered: Mutex<Vec<(VnetHeader, Vec<u8>)>>,
    offloads: Offloads,
}

impl Underlay for Ends {
    fn send(&self, outbox: &Outbox) {
        for (run, bytes) in outbox.runs() {
            assert!(run.count <= MAX_SEGMENTS && bytes.len().div_ceil(run.size) == run.count);
            assert!(run.count == 1 || bytes.len() <= MAX_RUN, "the kernel takes no such run");
            assert!(run.size <= MAX_PACKET + OVERHEAD);
        }
        let sent = outbox.datagrams().map(|(to, datagram)| (to, datagram.to_vec()));
        self.datagrams.lock().unwrap().extend(sent);
    }
}

impl Port for Ends {
    fn deliver(&self, slices: &[IoSlice<'_>]) -> bool {
        assert_eq!(slices[0].len(), VNET_LEN);
        let header = VnetHeader::parse(&slices[0]).unwrap();
        let packet = slices[1..].iter().flat_map(|slice| slice.to_vec()).collect();
        self.delivered.lock().unwrap().push((header, packet));
        true
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }
}

/// One of the two nodes.
pub(crate) struct Node {
    pub(crate) network: Network,
    pub(crate) at: SocketAddr,
    ends: Arc<Ends>,
    pub(crate) lane: Lane,
}

/// Which offloads the bits of a number are.
pub(crate) fn offloads(bits: u8) -> Offloads {
    Offloads { tcp4: bits & 1 != 0, tcp6: bits & 2 != 0, udp: bits & 4 != 0 }
}

/// Where node `n` is.
pub(crate) fn at(n: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n], 51820))
}

/// The IPv4 and the IPv6 address of container `n`.
pub(crate) fn addresses(n: u8) -> [IpAddr; 2] {
    let v6 = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n.into());
    [IpAddr::V4(Ipv4Addr::new(10, 0, 0, n)), IpAddr::V6(v6)]
}

pub(crate) fn key(n: u8) -> PrivateKey {
    PrivateKey::from_bytes([n; 32])
}

pub(crate) fn peer(n: u8, endpoints: Vec<SocketAddr>) -> Peer {
    Peer {
        public_key: key(n).public_key(),
        addresses: addresses(n).to_vec(),
        endpoints,
        preshared_key: None,
        also_key: None,
    }
}

impl Node {
    /// A node without peers and devices.
    pub(crate) fn new(n: u8, offloads: Offloads, now: Instant) -> Self {
        let ends = Arc::new(Ends { offloads, ..Ends::default() });
        let network = Network::new(ends.clone(), None, u32::from(n) * 1000, now);
        Self { network, at: at(n), ends, lane: Lane::default() }
    }

    pub(crate) fn put_device(&self, n: u8, own: OwnAddresses, mtu: u32) {
        let id = ContainerId::new(n.into());
        self.network.put_device(Device::new(id, format!("zn{n}"), key(n), own, mtu, self.ends.clone()));
    }

    pub(crate) fn stats(&self, device: u8) -> DeviceStats {
        self.network.device_stats(ContainerId::new(device.into())).unwrap()
    }

    /// A container sends a packet as it is.
    pub(crate) fn say(&mut self, device: u8, packet: &[u8], now: Instant) {
        let mut buffer = packet.to_vec();
        buffer.resize(packet.len() + PADDING, 0xff);
        let read = Read { header: VnetHeader::default(), at: 0..packet.len(), congested: false };
        self.network.from_tun(ContainerId::new(device.into()), &mut buffer, &[read], &mut self.lane, now);
    }

    pub(crate) fn hear(&mut self, from: SocketAddr, datagram: &[u8], now: Instant) {
        let arrival = Arrival { path: Path::to(from), tos: 0, at: 0..datagram.len(), size: datagram.len() };
        self.network.from_udp(datagram, &[arrival], &mut self.lane, now);
    }

    /// What the node sent since the last call.
    pub(crate) fn sent(&self) -> VecDeque<(SocketAddr, Vec<u8>)> {
        std::mem::take(&mut *self.ends.datagrams.lock().unwrap())
    }

    /// What came out for its containers since the last call.
    pub(crate) fn delivered(&self) -> Vec<(VnetHeader, Vec<u8>)> {
        std::mem::take(&mut *self.ends.delivered.lock().unwrap())
    }
}

/// Makes a session between containers of two nodes, used in both directions, and takes away what was sent meanwhile.
pub(crate) fn establish(one: (&mut Node, u8), two: (&mut Node, u8), now: Instant) {
    let ((a, from), (b, to)) = (one, two);
    let [source, _] = addresses(from);
    let [destination, _] = addresses(to);
    a.say(from, &ordinary(&Spec::new(false, source, destination), b"hello"), now);
    let exchange = |a: &mut Node, b: &mut Node| {
        for _ in 0..4 {
            a.sent().into_iter().for_each(|(_, datagram)| b.hear(a.at, &datagram, now));
            b.sent().into_iter().for_each(|(_, datagram)| a.hear(b.at, &datagram, now));
        }
    };
    exchange(a, b);
    b.say(to, &ordinary(&Spec::new(false, destination, source), b"hello"), now);
    exchange(a, b);
    assert_eq!((a.delivered().len(), b.delivered().len()), (1, 1), "the session works");
}

/// A packet with all checksums right.
pub(crate) fn ordinary(spec: &Spec, payload: &[u8]) -> Vec<u8> {
    let mut packet = spec.build(payload);
    crate::packets::finish_ipv4(&mut packet);
    if let Some(layout) = crate::packets::Layout::of(&packet) {
        layout.finish(&mut packet);
    }
    packet
}
