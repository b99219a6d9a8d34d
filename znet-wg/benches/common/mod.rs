//! Two nodes with a session and nothing between them, for what measures the packet logic alone.

use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use znet_core::id::ContainerId;
use znet_core::key::{PrivateKey, PublicKey};
use znet_wg::control::Peer;
use znet_wg::net::{
    Arrival, Device, Lane, Network, Outbox, OwnAddresses, Path, PeerUpdate, Port, Read, Underlay,
};
use znet_wg::offload::vnet::{GSO_TCPV4, NEEDS_CSUM};
use znet_wg::offload::{Offloads, PADDING, VnetHeader};

/// The MTU of a container, and so the length of each packet of a bulk transfer.
pub(crate) const MTU: usize = 1_420;
/// Bytes of the headers of IPv4 and TCP.
pub(crate) const HEADERS: usize = 40;
/// Payload of each of those packets.
pub(crate) const PAYLOAD: usize = MTU - HEADERS;
/// Most packets that one of at most 64 KiB becomes.
pub(crate) const SEGMENTS: usize = 47;
/// Datagrams that come in as one: as many as fit into 64 KiB.
pub(crate) const DATAGRAMS: usize = 45;
/// What a datagram has more than the packet in it (white paper, section 5.4.6).
const OVERHEAD: usize = 32;
/// All joined that can be.
pub(crate) const EVERYTHING: Offloads = Offloads { tcp4: true, tcp6: true, udp: true };

/// Keeps what is sent while it is asked to, and else forgets it; swallows what is delivered.
#[derive(Default)]
struct Ends {
    kept: Mutex<Option<Vec<Vec<u8>>>>,
}

impl Underlay for Ends {
    fn send(&self, outbox: &Outbox) {
        if let Some(kept) = &mut *self.kept.lock().unwrap() {
            kept.extend(outbox.datagrams().map(|(_, datagram)| datagram.to_vec()));
        }
    }
}

impl Port for Ends {
    fn deliver(&self, _slices: &[IoSlice<'_>]) -> bool {
        true
    }

    fn offloads(&self) -> Offloads {
        EVERYTHING
    }
}

/// A node and the buffers of its one thread. Its time stands still, so that nothing ever falls due.
pub(crate) struct Node {
    pub(crate) network: Network,
    number: u8,
    ends: Arc<Ends>,
    lane: Lane,
    now: Instant,
}

/// Where node `n` is.
pub(crate) fn at(n: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n], 51820))
}

/// The IPv4 address of container `n`.
pub(crate) fn address(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 255, 255, n)
}

fn key(n: u8) -> PrivateKey {
    PrivateKey::from_bytes([n; 32])
}

fn peer(n: u8) -> Peer {
    Peer {
        public_key: key(n).public_key(),
        addresses: vec![address(n).into()],
        endpoints: vec![at(n)],
        preshared_key: None,
        also_key: None,
    }
}

impl Node {
    /// A node with one container and no peers.
    pub(crate) fn new(number: u8) -> Self {
        let ends = Arc::new(Ends::default());
        let now = Instant::now();
        let network = Network::new(ends.clone(), None, u32::from(number) * 1000, now);
        let own = OwnAddresses::Only(vec![address(number).into()]);
        let id = ContainerId::new(number.into());
        network.put_device(Device::new(
            id,
            format!("zn{number}"),
            key(number),
            own,
            MTU as u32,
            ends.clone(),
        ));
        Self { network, number, ends, lane: Lane::default(), now }
    }

    /// The container sends what lies in a buffer, with [`PADDING`] bytes behind it.
    pub(crate) fn read(&mut self, header: VnetHeader, buffer: &mut [u8]) {
        let read = Read { header, at: 0..buffer.len() - PADDING, congested: false };
        let id = ContainerId::new(self.number.into());
        self.network.from_tun(id, buffer, &[read], &mut self.lane, self.now);
    }

    /// Datagrams of one length come in from node `from`, as one.
    pub(crate) fn hear(&mut self, from: u8, datagrams: &[u8], size: usize) {
        let arrival = Arrival { path: Path::to(at(from)), tos: 0, at: 0..datagrams.len(), size };
        self.network.from_udp(datagrams, &[arrival], &mut self.lane, self.now);
    }

    /// A peer changes.
    pub(crate) fn update(&mut self, key: &PublicKey, update: PeerUpdate) {
        self.network.update_peer(key, update, &mut self.lane, self.now);
    }

    /// What the node sends while something is done.
    pub(crate) fn sent(&mut self, what: impl FnOnce(&mut Self)) -> Vec<Vec<u8>> {
        *self.ends.kept.lock().unwrap() = Some(Vec::new());
        what(self);
        self.ends.kept.lock().unwrap().take().unwrap()
    }

    /// How many packets the container sent and got.
    pub(crate) fn packets(&self) -> (u64, u64) {
        let stats = self.network.device_stats(ContainerId::new(self.number.into())).unwrap();
        (stats.tx_packets, stats.rx_packets)
    }
}

/// Nodes 1 and 2 with a session between their containers that both have used.
pub(crate) fn pair() -> [Node; 2] {
    let [mut a, mut b] = [1, 2].map(Node::new);
    for node in [&a, &b] {
        node.network.put_peers(vec![peer(1), peer(2)]);
    }
    let mut sent = a.sent(|a| a.read(VnetHeader::default(), &mut packet(address(1), address(2), 0)));
    for turn in 0..4 {
        let (from, to, number) = if turn % 2 == 0 { (1, &mut b, 2) } else { (2, &mut a, 1) };
        assert_eq!(to.number, number);
        sent = to.sent(|to| sent.iter().for_each(|datagram| to.hear(from, datagram, datagram.len())));
    }
    b.read(VnetHeader::default(), &mut packet(address(2), address(1), 0));
    assert_eq!((a.packets().0, b.packets().1), (1, 1), "the first packet made a session and arrived");
    [a, b]
}

/// A TCP packet with so many bytes of payload, its sums of no meaning, and [`PADDING`] bytes behind it.
pub(crate) fn packet(from: Ipv4Addr, to: Ipv4Addr, payload: usize) -> Vec<u8> {
    let length = HEADERS + payload;
    let mut packet = vec![0x45, 0];
    packet.extend((length as u16).to_be_bytes());
    packet.extend([0, 1, 0x40, 0, 64, 6, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend([0x30, 0x39, 0x14, 0x51, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    packet.extend((0..payload).map(|n| (n % 251) as u8));
    packet.resize(length + PADDING, 0);
    packet
}

/// How a large packet is to be cut.
pub(crate) fn gso() -> VnetHeader {
    VnetHeader {
        flags: NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: HEADERS as u16,
        gso_size: PAYLOAD as u16,
        csum_start: 20,
        csum_offset: 16,
    }
}

/// A large packet from container 1 to container 2 that is to be cut into so many.
pub(crate) fn large(segments: usize) -> Vec<u8> {
    packet(address(1), address(2), segments * PAYLOAD)
}

/// [`DATAGRAMS`] fresh datagrams for node 2 as they come in as one, and the length of each.
pub(crate) fn aggregate(sender: &mut Node) -> (Vec<u8>, usize) {
    let sent = sender.sent(|sender| sender.read(gso(), &mut large(DATAGRAMS)));
    assert_eq!(sent.len(), DATAGRAMS);
    (sent.concat(), MTU + OVERHEAD)
}

/// Address and key of a peer as an idle one of many is: its key is nobody's.
pub(crate) fn stranger(n: u32) -> Peer {
    let mut key = [0xa5; 32];
    key[..4].copy_from_slice(&n.to_le_bytes());
    let v6 = Ipv6Addr::from_bits(0xfd00_u128 << 112 | u128::from(n));
    let v4: IpAddr = Ipv4Addr::from_bits(0x0a00_0000 | n).into();
    Peer {
        public_key: PublicKey::from_bytes(key),
        addresses: vec![v6.into(), v4],
        // A hundred nodes.
        endpoints: vec![SocketAddr::from(([198, 51, 100, (n % 100) as u8], 51820))],
        preshared_key: None,
        also_key: None,
    }
}
