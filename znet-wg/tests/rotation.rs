//! A container's pair is changed while packets flow: over an underlay that is a queue, with every order in which nodes may
//! learn of the stages.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod queue;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use znet_core::id::ContainerId;
use znet_core::key::PrivateKey;
use znet_wg::control::Peer;
use znet_wg::net::{Arrival, Device, Lane, Network, OwnAddresses, Path, Read};
use znet_wg::offload::{PADDING, VnetHeader};

use queue::Queue;

struct Node {
    network: Network,
    at: SocketAddr,
    out: Arc<Queue>,
    lane: Lane,
}

fn at(n: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n], 51820))
}

fn address(n: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, n))
}

/// The `version`-th key of container `n`.
fn key(n: u8, version: u8) -> PrivateKey {
    let mut bytes = [n; 32];
    bytes[31] = version;
    PrivateKey::from_bytes(bytes)
}

/// The stages of a change from the first to the second key: which is in use, and which is accepted as well.
const STAGES: [(u8, Option<u8>); 4] = [(1, None), (1, Some(2)), (2, Some(1)), (2, None)];

impl Node {
    fn new(n: u8) -> Self {
        let out = Arc::new(Queue::default());
        let network = Network::new(out.clone(), None, u32::from(n) * 1000, Instant::now());
        Self { network, at: at(n), out, lane: Lane::default() }
    }

    /// The own container, or another one's peer, is at this stage.
    fn has_pair(&mut self, n: u8, stage: usize, now: Instant) {
        let (current, also) = STAGES[stage];
        let own = OwnAddresses::Only(vec![address(n)]);
        let id = ContainerId::new(n.into());
        let device = Device::new(id, format!("zn{n}"), key(n, current), own, 1420, self.out.clone());
        self.network.put_device(device.accepting(also.map(|version| key(n, version)), stage == 1));
        self.network.renew(&mut self.lane, now);
    }

    fn knows(&mut self, n: u8, stage: usize, now: Instant) {
        let (current, also) = STAGES[stage];
        let public = |version| key(n, version).public_key();
        let peer = Peer {
            public_key: public(current),
            also_key: also.map(public),
            addresses: vec![address(n)],
            endpoints: vec![at(n)],
            preshared_key: None,
        };
        let keys: Vec<_> = std::iter::once(peer.public_key).chain(peer.also_key).collect();
        self.network.put_peers(vec![peer]);
        self.network.welcome(&keys, &mut self.lane, now);
        self.network.renew(&mut self.lane, now);
    }

    fn send(&mut self, from: u8, to: u8, body: &[u8], now: Instant) {
        let mut buffer = packet(from, to, body);
        let len = buffer.len();
        buffer.resize(len + PADDING, 0xff);
        let read = Read { header: VnetHeader::default(), at: 0..len, congested: false };
        self.network.from_tun(ContainerId::new(from.into()), &mut buffer, &[read], &mut self.lane, now);
    }

    fn hear(&mut self, from: SocketAddr, datagram: &[u8], now: Instant) {
        let arrival = Arrival { path: Path::to(from), tos: 0, at: 0..datagram.len(), size: datagram.len() };
        self.network.from_udp(datagram, &[arrival], &mut self.lane, now);
    }

    fn received(&self) -> Vec<Vec<u8>> {
        self.out.delivered.lock().unwrap().clone()
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

/// Two nodes with a container each that have spoken with each other.
fn pair() -> ([Node; 2], Instant) {
    let mut nodes = [Node::new(1), Node::new(2)];
    let now = Instant::now();
    for (node, n) in nodes.iter_mut().zip([1, 2]) {
        node.has_pair(n, 0, now);
        node.knows(1, 0, now);
        node.knows(2, 0, now);
    }
    nodes[0].send(1, 2, b"hello", now);
    run(&mut nodes, now, |_| false);
    nodes[1].send(2, 1, b"hello", now);
    run(&mut nodes, now, |_| false);
    (nodes, now)
}

/// Lets what is due happen, and carries datagrams until nobody has any more; `lose` says which are lost.
fn run(nodes: &mut [Node], now: Instant, mut lose: impl FnMut(&[u8]) -> bool) {
    for node in &mut *nodes {
        node.network.run_due(&mut node.lane, now);
    }
    for _ in 0..1_000 {
        let mut moved = false;
        for from in 0..nodes.len() {
            loop {
                let Some((to, datagram)) = nodes[from].out.datagrams.lock().unwrap().pop_front() else {
                    break;
                };
                moved = true;
                let source = nodes[from].at;
                if !lose(&datagram)
                    && let Some(node) = nodes.iter_mut().find(|node| node.at == to)
                {
                    node.hear(source, &datagram, now);
                }
            }
        }
        if !moved {
            return;
        }
    }
    panic!("the nodes never fall silent");
}

fn is_handshake(datagram: &[u8]) -> bool {
    matches!(datagram.first(), Some(1..=3))
}

/// Handshakes that a node's container has made.
fn handshakes(node: &Node, n: u8) -> u64 {
    node.network.device_stats(ContainerId::new(n.into())).unwrap().handshakes
}

#[test]
fn the_former_session_carries_packets_until_the_new_one_is_confirmed() {
    let ([mut one, mut two], mut now) = pair();
    for stage in [1, 2] {
        two.knows(1, stage, now);
        one.knows(1, stage, now);
        one.has_pair(1, stage, now);
    }
    let mut nodes = [one, two];
    let before = (handshakes(&nodes[0], 1), handshakes(&nodes[1], 2));
    // No handshake gets through for two seconds.
    for round in 0..20u8 {
        now += Duration::from_millis(100);
        nodes[0].send(1, 2, &[round], now);
        nodes[1].send(2, 1, &[round], now);
        run(&mut nodes, now, is_handshake);
        assert_eq!(nodes[1].received().last().unwrap(), &packet(1, 2, &[round]));
        assert_eq!(nodes[0].received().last().unwrap(), &packet(2, 1, &[round]));
    }
    assert_eq!((handshakes(&nodes[0], 1), handshakes(&nodes[1], 2)), before);
    // And then one does, by itself.
    for _ in 0..60 {
        now += Duration::from_millis(100);
        run(&mut nodes, now, |_| false);
    }
    assert_eq!((handshakes(&nodes[0], 1), handshakes(&nodes[1], 2)), (before.0 + 1, before.1 + 1));
    // So that the former key can go out of use.
    nodes[1].knows(1, 3, now);
    nodes[0].knows(1, 3, now);
    nodes[0].has_pair(1, 3, now);
    let count = nodes.each_ref().map(|node| node.received().len());
    nodes[0].send(1, 2, b"x", now);
    nodes[1].send(2, 1, b"y", now);
    run(&mut nodes, now, is_handshake);
    assert_eq!(nodes.each_ref().map(|node| node.received().len()), count.map(|count| count + 1));
    assert_eq!((handshakes(&nodes[0], 1), handshakes(&nodes[1], 2)), (before.0 + 1, before.1 + 1));
    assert_eq!(nodes.each_ref().map(|node| node.network.sessions()), [1, 1], "the former one has ended");
}

#[test]
fn a_packet_on_its_way_in_the_former_session_arrives() {
    let (mut nodes, now) = pair();
    for stage in [1, 2] {
        nodes.iter_mut().for_each(|node| node.knows(1, stage, now));
    }
    // The other one's packet is on its way when the sessions change.
    nodes[1].send(2, 1, b"slow", now);
    let slow = nodes[1].out.datagrams.lock().unwrap().pop_front().unwrap().1;
    nodes[0].has_pair(1, 1, now);
    nodes[0].has_pair(1, 2, now);
    run(&mut nodes, now, |_| false);
    nodes[0].send(1, 2, b"new", now);
    run(&mut nodes, now, |_| false);
    nodes[0].hear(at(2), &slow, now);
    assert_eq!(nodes[0].received().last().unwrap(), &packet(2, 1, b"slow"));
}

#[test]
fn the_new_session_goes_to_where_the_peer_was_heard_of_last() {
    let ([one, mut two], now) = pair();
    // A NAT has given it another port.
    two.at = SocketAddr::from(([192, 0, 2, 77], 4077));
    let mut nodes = [one, two];
    nodes[1].send(2, 1, b"from elsewhere", now);
    run(&mut nodes, now, |_| false);
    let before = handshakes(&nodes[1], 2);
    for stage in [1, 2] {
        nodes.iter_mut().for_each(|node| node.knows(1, stage, now));
        nodes[0].has_pair(1, stage, now);
    }
    run(&mut nodes, now + Duration::from_millis(300), |_| false);
    assert_eq!(handshakes(&nodes[1], 2), before + 1);
}

#[test]
fn containers_of_one_node_change_their_pairs_as_those_of_two_do() {
    let now = Instant::now();
    let mut node = Node::new(1);
    for n in [1, 2] {
        node.has_pair(n, 0, now);
    }
    let knows = |node: &mut Node, n: u8, stage: usize| {
        node.knows(n, stage, now);
        let (current, also) = STAGES[stage];
        let public = |version| key(n, version).public_key();
        node.network.put_peers(vec![Peer {
            public_key: public(current),
            also_key: also.map(public),
            addresses: vec![address(n)],
            endpoints: vec![at(1)],
            preshared_key: None,
        }]);
    };
    knows(&mut node, 1, 0);
    knows(&mut node, 2, 0);
    let mut nodes = [node];
    nodes[0].send(1, 2, b"a", now);
    run(&mut nodes, now, |_| false);
    for stage in 1..4 {
        for n in [1, 2] {
            knows(&mut nodes[0], n, stage);
        }
        for n in [1, 2] {
            nodes[0].has_pair(n, stage, now);
        }
        run(&mut nodes, now, |_| false);
        let count = nodes[0].received().len();
        nodes[0].send(1, 2, b"b", now);
        nodes[0].send(2, 1, b"c", now);
        run(&mut nodes, now, |_| false);
        assert_eq!(nodes[0].received().len(), count + 2, "stage {stage}");
    }
    assert_eq!(nodes[0].network.sessions(), 2);
}

#[test]
fn a_key_that_was_not_announced_before_its_use_ends_the_session_as_ever() {
    let (mut nodes, now) = pair();
    nodes[1].knows(1, 3, now);
    nodes[0].knows(1, 3, now);
    nodes[0].has_pair(1, 3, now);
    assert_eq!(nodes.each_ref().map(|node| node.network.sessions()), [0, 1]);
    nodes[0].send(1, 2, b"a", now);
    run(&mut nodes, now, |_| false);
    assert_eq!(nodes[1].received().last().unwrap(), &packet(1, 2, b"a"));
}

/// Something that happens at one of the two nodes.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// A node learns the next stage of a container, its own or the other's.
    Learn {
        node: usize,
        container: u8,
    },
    Send {
        node: usize,
    },
    Pass {
        millis: u64,
    },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0usize..2, 1u8..3).prop_map(|(node, container)| Event::Learn { node, container }),
        6 => (0usize..2).prop_map(|node| Event::Send { node }),
        4 => (1u64..2_000).prop_map(|millis| Event::Pass { millis }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// Both change their pairs at once, and each learns of each stage at any time at which the controller allows it: nobody is
    /// at a stage before all are at the one before, and the last one comes when handshakes had time. No packet is lost.
    #[test]
    fn no_packet_is_lost_whoever_learns_what_when(events in prop::collection::vec(event(), 0..60), lossy in any::<bool>()) {
        let (mut nodes, mut now) = pair();
        // By node and container.
        let mut stages = [[0usize; 2]; 2];
        let mut sent = 0u32;
        let mut number = 0u32;
        let mut promoted_at = [now; 2];
        let mut expected = nodes.each_ref().map(|node| node.received().len());
        let finish = (0..40).flat_map(|_| {
            let learn = [(0, 1), (0, 2), (1, 1), (1, 2)].map(|(node, container)| Event::Learn { node, container });
            let send = [Event::Send { node: 0 }, Event::Send { node: 1 }];
            let each = learn.into_iter().flat_map(move |learn| [learn].into_iter().chain(send));
            each.chain([Event::Pass { millis: 1_000 }]).chain(send)
        });
        for event in events.into_iter().chain(finish) {
            match event {
                Event::Learn { node, container } => {
                    let of = usize::from(container) - 1;
                    let stage = stages[node][of] + 1;
                    // As the controller has it: all are at the stage before, the owner's engine first accepts its new key.
                    let all = stages.iter().map(|seen| seen[of]).min().unwrap();
                    let owner_first = stage == 1 && node != of && stages[of][of] == 0;
                    let settling = now < promoted_at[of] + Duration::from_secs(15);
                    if stage > 3 || stage > all + 1 || owner_first || (stage == 3 && settling) {
                        continue;
                    }
                    stages[node][of] = stage;
                    if stages.iter().all(|seen| seen[of] == 2) {
                        promoted_at[of] = promoted_at[of].max(now);
                    }
                    nodes[node].knows(container, stage, now);
                    if node == of {
                        nodes[node].has_pair(container, stage, now);
                    }
                }
                Event::Send { node } => {
                    let (from, to) = if node == 0 { (1, 2) } else { (2, 1) };
                    nodes[node].send(from, to, &sent.to_be_bytes(), now);
                    sent += 1;
                    expected[1 - node] += 1;
                }
                Event::Pass { millis } => now += Duration::from_millis(millis),
            }
            // Of handshakes, every third is lost.
            run(&mut nodes, now, |datagram| {
                number += u32::from(is_handshake(datagram));
                lossy && is_handshake(datagram) && number.is_multiple_of(3)
            });
            let received = nodes.each_ref().map(|node| node.received().len());
            prop_assert_eq!(received, expected, "after {:?}, {:?}", event, stages);
        }
        prop_assert_eq!(stages, [[3; 2]; 2]);
        prop_assert_eq!(nodes.each_ref().map(|node| node.network.sessions()), [1, 1]);
    }
}
