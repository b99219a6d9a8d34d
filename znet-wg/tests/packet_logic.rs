//! The packet logic of two nodes over an underlay that is a queue: what arrives, what is refused, what is counted.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod queue;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::{Rng as _, RngExt as _, SeedableRng as _};
use znet_core::id::ContainerId;
use znet_core::key::PrivateKey;
use znet_wg::control::{DeviceStats, Peer};
use znet_wg::net::{Arrival, Device, Lane, Network, OwnAddresses, Path, Read};
use znet_wg::offload::{PADDING, VnetHeader};

use queue::Queue;

impl Queue {
    fn delivered(&self) -> Vec<Vec<u8>> {
        self.delivered.lock().unwrap().clone()
    }

    fn next(&self) -> Option<(SocketAddr, Vec<u8>)> {
        self.datagrams.lock().unwrap().pop_front()
    }

    fn first(&self) -> Vec<u8> {
        self.datagrams.lock().unwrap().front().unwrap().1.clone()
    }

    fn clear(&self) {
        self.datagrams.lock().unwrap().clear();
    }
}

struct Node {
    network: Network,
    at: SocketAddr,
    out: Arc<Queue>,
    lane: Lane,
}

impl Node {
    fn read(&mut self, device: u8, packet: &[u8]) {
        self.read_at(device, packet, Instant::now());
    }

    fn read_at(&mut self, device: u8, packet: &[u8], now: Instant) {
        self.read_all(device, &[packet.to_vec()], now);
    }

    /// Packets that were read in one batch.
    fn read_all(&mut self, device: u8, packets: &[Vec<u8>], now: Instant) {
        let (mut buffer, mut reads) = (Vec::new(), Vec::new());
        for packet in packets {
            let at = buffer.len()..buffer.len() + packet.len();
            buffer.extend_from_slice(packet);
            buffer.resize(at.end + PADDING, 0xff);
            reads.push(Read { header: VnetHeader::default(), at, congested: false });
        }
        let device = ContainerId::new(device.into());
        self.network.from_tun(device, &mut buffer, &reads, &mut self.lane, now);
    }

    fn hear(&mut self, from: SocketAddr, datagram: &[u8]) {
        let arrival = Arrival { path: Path::to(from), tos: 0, at: 0..datagram.len(), size: datagram.len() };
        self.network.from_udp(datagram, &[arrival], &mut self.lane, Instant::now());
    }

    fn stats(&self, device: u8) -> DeviceStats {
        self.network.device_stats(ContainerId::new(device.into())).unwrap()
    }
}

fn at(n: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n], 51820))
}

fn address(n: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, n))
}

fn key(n: u8) -> PrivateKey {
    PrivateKey::from_bytes([n; 32])
}

fn device(n: u8, addresses: Vec<IpAddr>, out: &Arc<Queue>) -> Device {
    let own = OwnAddresses::Only(addresses);
    Device::new(ContainerId::new(n.into()), format!("zn{n}"), key(n), own, 1420, out.clone())
}

fn node(n: u8) -> Node {
    let out = Arc::new(Queue::default());
    let network = Network::new(out.clone(), None, u32::from(n) * 1000, Instant::now());
    network.put_device(device(n, vec![address(n)], &out));
    Node { network, at: at(n), out, lane: Lane::default() }
}

fn peer(n: u8) -> Peer {
    Peer {
        public_key: key(n).public_key(),
        addresses: vec![address(n)],
        endpoints: vec![at(n)],
        preshared_key: None,
        also_key: None,
    }
}

fn packet(from: u8, to: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![0u8; 20];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&((20 + body.len()) as u16).to_be_bytes());
    packet[12..16].copy_from_slice(&[10, 0, 0, from]);
    packet[16..20].copy_from_slice(&[10, 0, 0, to]);
    packet.extend_from_slice(body);
    packet
}

fn pair() -> [Node; 2] {
    let (a, b) = (node(1), node(2));
    for n in [1, 2] {
        a.network.put_peers(vec![peer(n)]);
        b.network.put_peers(vec![peer(n)]);
    }
    [a, b]
}

/// Carries datagrams until nobody has any more; `lose` says which are lost.
fn run(nodes: &mut [Node], mut lose: impl FnMut(&[u8]) -> bool) {
    for _ in 0..1_000 {
        let mut moved = false;
        for from in 0..nodes.len() {
            while let Some((to, datagram)) = nodes[from].out.next() {
                moved = true;
                let source = nodes[from].at;
                if lose(&datagram) {
                    continue;
                }
                if let Some(node) = nodes.iter_mut().find(|node| node.at == to) {
                    node.hear(source, &datagram);
                }
            }
        }
        if !moved {
            return;
        }
    }
    panic!("the nodes never fall silent");
}

fn send(node: &mut Node, from: u8, to: u8, body: &[u8]) {
    node.read(from, &packet(from, to, body));
}

#[test]
fn the_first_packet_makes_the_handshake_and_arrives() {
    let mut nodes = pair();
    send(&mut nodes[0], 1, 2, b"hello");
    run(&mut nodes, |_| false);
    assert_eq!(nodes[1].out.delivered(), vec![packet(1, 2, b"hello")]);
    send(&mut nodes[1], 2, 1, b"back");
    run(&mut nodes, |_| false);
    assert_eq!(nodes[0].out.delivered(), vec![packet(2, 1, b"back")]);
    let stats = nodes[0].stats(1);
    assert_eq!((stats.tx_packets, stats.rx_packets, stats.handshakes), (1, 1, 1));
}

#[test]
fn a_packet_that_waited_at_the_responder_goes_out_with_the_confirmation() {
    let mut nodes = pair();
    // Both begin at once; the second's initiation is lost, so its packet waits in its queue for the first's session.
    send(&mut nodes[0], 1, 2, b"from one");
    send(&mut nodes[1], 2, 1, b"from two");
    nodes[1].out.clear();
    run(&mut nodes, |_| false);
    assert_eq!(nodes[0].out.delivered(), vec![packet(2, 1, b"from two")]);
    assert_eq!(nodes[1].out.delivered(), vec![packet(1, 2, b"from one")]);
}

#[test]
fn the_packet_that_finds_its_session_expired_makes_the_next_one() {
    let mut nodes = pair();
    send(&mut nodes[0], 1, 2, b"a");
    run(&mut nodes, |_| false);
    let (before, later) = (nodes[0].stats(1), Instant::now() + Duration::from_secs(300));
    nodes[0].read_at(1, &packet(1, 2, b"b"), later);
    assert_eq!(nodes[0].out.first().len(), 148, "a handshake begins");
    assert_eq!(nodes[0].stats(1).tx_packets, before.tx_packets + 1);
}

#[test]
fn a_small_packet_at_the_end_of_a_large_batch_is_sent() {
    let mut nodes = pair();
    send(&mut nodes[0], 1, 2, b"a");
    run(&mut nodes, |_| false);
    // An outbox of 256 KiB has room for a small packet behind these, but not for a handshake.
    let mut batch = vec![packet(1, 2, &[0; 1_400]); 180];
    batch.extend([packet(1, 2, &[0; 620]), packet(1, 2, b"small")]);
    nodes[0].read_all(1, &batch, Instant::now());
    assert_eq!(nodes[0].stats(1).drop_full, 0);
    run(&mut nodes, |_| false);
    assert_eq!(nodes[1].out.delivered().last(), Some(&packet(1, 2, b"small")));
}

#[test]
fn packets_with_foreign_sources_or_unknown_destinations_stay_inside() {
    let mut nodes = pair();
    nodes[0].read(1, &packet(2, 2, b"forged"));
    send(&mut nodes[0], 1, 77, b"to nobody");
    nodes[0].read(1, &[0x45, 0, 0]);
    let stats = nodes[0].stats(1);
    assert_eq!((stats.drop_source, stats.drop_destination, stats.drop_malformed), (1, 1, 1));
    assert!(nodes[0].out.next().is_none());
}

#[test]
fn a_peer_cannot_speak_for_anothers_address() {
    let mut nodes = pair();
    // Node 1 believes that address 3 is its own; node 2 knows better.
    let forging = device(1, vec![address(1), address(3)], &nodes[0].out);
    nodes[0].network.put_device(forging);
    nodes[0].read(1, &packet(3, 2, b"forged"));
    run(&mut nodes, |_| false);
    assert!(nodes[1].out.delivered().is_empty());
    assert_eq!(nodes[1].stats(2).drop_source, 1);
}

#[test]
fn the_length_of_a_packet_shows_only_in_steps_and_the_receiver_gets_it_as_it_was() {
    let mut nodes = pair();
    send(&mut nodes[0], 1, 2, b"hello");
    run(&mut nodes, |_| false);
    for length in [0, 1, 12, 13, 700, 1_380, 1_390, 1_400] {
        let body = vec![7; length];
        send(&mut nodes[0], 1, 2, &body);
        // 32 bytes are WireGuard's own (white paper, section 5.4.6).
        let sent = nodes[0].out.first().len() - 32;
        assert_eq!(sent, (20 + length).next_multiple_of(16).min(1_420), "a packet of {}", 20 + length);
        run(&mut nodes, |_| false);
        assert_eq!(nodes[1].out.delivered().last().unwrap(), &packet(1, 2, &body));
    }
}

#[test]
fn nothing_is_kept_of_a_stranger() {
    let [_, two] = pair();
    let stranger = node(9);
    stranger.network.put_peers(vec![peer(2)]);
    stranger.network.put_peers(vec![peer(9)]);
    let mut nodes = [stranger, two];
    send(&mut nodes[0], 9, 2, b"let me in");
    run(&mut nodes, |_| false);
    assert!(nodes[1].out.delivered().is_empty());
    assert_eq!(nodes[1].network.stats().drop_stranger, 1);
    assert_eq!(nodes[1].stats(2).sessions, 0);
}

#[test]
fn a_removed_peer_is_cut_off_at_once_and_an_updated_one_is_not() {
    let mut nodes = pair();
    send(&mut nodes[0], 1, 2, b"a");
    run(&mut nodes, |_| false);
    nodes[1].network.put_peers(vec![Peer { endpoints: vec![at(7), at(1)], ..peer(1) }]);
    send(&mut nodes[0], 1, 2, b"b");
    run(&mut nodes, |_| false);
    assert_eq!(nodes[1].out.delivered().len(), 2, "an update keeps the session");
    nodes[1].network.remove_peer(&key(1).public_key());
    send(&mut nodes[0], 1, 2, b"c");
    run(&mut nodes, |_| false);
    assert_eq!(nodes[1].out.delivered().len(), 2, "a removed peer is not heard");
}

#[test]
fn lost_responses_do_not_break_a_session_that_works() {
    let mut nodes = pair();
    send(&mut nodes[0], 1, 2, b"first");
    run(&mut nodes, |_| false);
    send(&mut nodes[1], 2, 1, b"confirmed");
    run(&mut nodes, |_| false);
    // A second network object with the same key plays the peer that initiates again and again and hears no answer.
    for _ in 0..12 {
        let mut again = node(1);
        again.network.put_peers(vec![peer(2)]);
        again.network.put_peers(vec![peer(1)]);
        send(&mut again, 1, 2, b"x");
        let (_, initiation) = again.out.next().unwrap();
        nodes[1].hear(at(1), &initiation);
    }
    let before = nodes[1].out.delivered().len();
    send(&mut nodes[0], 1, 2, b"still here");
    run(&mut nodes, |_| false);
    assert_eq!(nodes[1].out.delivered().len(), before + 1);
}

#[test]
fn a_peer_is_followed_to_where_it_proves_itself_and_not_where_a_replay_says() {
    let mut nodes = pair();
    send(&mut nodes[0], 1, 2, b"a");
    let initiation = nodes[0].out.first();
    run(&mut nodes, |_| false);
    nodes[1].hear(at(66), &initiation);
    let learned = |node: &Node| {
        let mut learned = None;
        node.network.for_each_peer(ContainerId::new(2), |entry, _| {
            if *entry.key() == key(1).public_key() {
                learned = entry.learned();
            }
        });
        learned
    };
    assert_eq!(learned(&nodes[1]), Some(at(1)));
    nodes[0].at = at(5);
    send(&mut nodes[0], 1, 2, b"b");
    run(&mut nodes, |_| false);
    assert_eq!(learned(&nodes[1]), Some(at(5)), "authenticated data moves the endpoint");
    send(&mut nodes[1], 2, 1, b"c");
    run(&mut nodes, |_| false);
    assert_eq!(nodes[0].out.delivered().last().unwrap(), &packet(2, 1, b"c"));
}

#[test]
fn random_and_mutated_datagrams_are_dropped_and_traffic_goes_on() {
    let mut nodes = pair();
    send(&mut nodes[0], 1, 2, b"a");
    let real = nodes[0].out.first();
    run(&mut nodes, |_| false);
    let mut rng = rand::rngs::StdRng::seed_from_u64(7);
    for round in 0..20_000u32 {
        let mut datagram = if round % 2 == 0 { real.clone() } else { vec![0; rng.random_range(0..200)] };
        match round % 2 {
            0 => {
                let index = rng.random_range(0..datagram.len());
                datagram[index] ^= 1 << rng.random_range(0..8);
            }
            _ => rng.fill_bytes(&mut datagram),
        }
        nodes[1].hear(at(1), &datagram);
    }
    assert!(nodes[1].stats(2).sessions <= 1);
    send(&mut nodes[0], 1, 2, b"b");
    run(&mut nodes, |_| false);
    assert_eq!(nodes[1].out.delivered().last().unwrap(), &packet(1, 2, b"b"));
}
