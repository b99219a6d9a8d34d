//! Datagrams for a network that has a session with another: strangers' bytes, and true messages that were changed, cut,
//! repeated, delayed or came from elsewhere.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use znet_core::id::ContainerId;
use znet_wg::net::{Addresses, Arrival, MAX_PACKET, OwnAddresses, Path, PeerUpdate};

use crate::input::Input;
use crate::packets::{Spec, cut, lasting};
use crate::world::{Node, addresses, at, establish, key, offloads, ordinary, peer};

/// The container that may use any address, and the one that is listened for.
const NEAR: u8 = 1;
const FAR: u8 = 2;
/// Most things that an input does: handshakes take their time.
const STEPS: usize = 96;
/// Payload of a large packet; large ones go on where the last ended.
const LARGE: usize = 1_380;
/// Most bytes of a batch.
const BATCH: usize = 256 << 10;

struct World {
    near: Node,
    far: Node,
    now: Instant,
    /// Messages that the near node sent, and those that were taken out of there.
    pending: VecDeque<Vec<u8>>,
    past: Vec<Vec<u8>>,
    /// What the near container sent and the far one did not get yet, and how often.
    said: HashMap<Vec<u8>, u32>,
    turn: u32,
    batch: Vec<u8>,
    arrivals: Vec<Arrival>,
}

/// Where a datagram comes from and to: every kind of address that a socket may tell.
fn sender(number: u8) -> Path {
    let v6 = |address, flow, scope| SocketAddr::V6(SocketAddrV6::new(address, 51820, flow, scope));
    let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    let remote = match number % 8 {
        0..=2 => at(NEAR),
        3 => v6(Ipv6Addr::LOCALHOST, 0, 0),
        4 => v6(Ipv4Addr::new(192, 0, 2, NEAR).to_ipv6_mapped(), 0, 0),
        5 => v6(link_local, 9, 7),
        6 => SocketAddr::from(([0, 0, 0, 0], 0)),
        _ => at(FAR),
    };
    let local = (number & 0x20 != 0).then(|| addresses(number)[usize::from(number >> 4 & 1)]);
    Path { remote, local }
}

impl World {
    fn new(settings: u8) -> Self {
        let now = Instant::now();
        let (mut near, far) = (Node::new(NEAR, offloads(0), now), Node::new(FAR, offloads(settings), now));
        near.put_device(NEAR, OwnAddresses::Any, 1420);
        far.put_device(FAR, OwnAddresses::Only(addresses(FAR).to_vec()), 1420);
        for node in [&near, &far] {
            node.network.put_peers(vec![peer(NEAR, vec![at(NEAR)]), peer(FAR, vec![at(FAR)])]);
        }
        let everything: Vec<IpNet> = ["0.0.0.0/0", "::/0"].map(|net| net.parse().unwrap()).to_vec();
        let update = PeerUpdate { allow: everything, ..PeerUpdate::default() };
        near.network.update_peer(&key(FAR).public_key(), update, &mut near.lane, now);
        let mut world = Self {
            near,
            far,
            now,
            pending: VecDeque::new(),
            past: Vec::new(),
            said: HashMap::new(),
            turn: 0,
            batch: Vec::new(),
            arrivals: Vec::new(),
        };
        if settings & 8 == 0 {
            establish((&mut world.near, NEAR), (&mut world.far, FAR), now);
        }
        world
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let what = input.u8();
        let glue = what & 0x80 != 0;
        match what % 16 {
            0 => {
                let from = input.u8();
                let datagram = input.string();
                self.arrive(from, datagram, glue);
            }
            1 | 2 => self.say(input),
            3 | 4 => {
                let message = self.next();
                self.arrive(0, &message, glue);
            }
            5 | 6 => {
                let from = input.u8();
                let mut message = self.next();
                input.edit(&mut message);
                if what & 0x40 != 0 {
                    message.resize(input.u16().into(), 0);
                }
                self.arrive(from, &message, glue);
            }
            7 => {
                let (from, which) = (input.u8(), usize::from(input.u8()));
                if !self.past.is_empty() {
                    let message = self.past[which % self.past.len()].clone();
                    self.arrive(from, &message, glue);
                }
            }
            8 => {
                let size = input.u16();
                if let Some(arrival) = self.arrivals.last_mut() {
                    arrival.size = size.into();
                }
            }
            9 | 10 => self.hear(),
            11 => {
                for (_, datagram) in self.far.sent() {
                    self.near.hear(self.far.at, &datagram, self.now);
                }
                self.near.delivered();
                self.collect();
            }
            12 => {
                self.now += Duration::from_millis(u64::from(input.u16()) * 8);
                self.near.network.run_due(&mut self.near.lane, self.now);
                self.far.network.run_due(&mut self.far.lane, self.now);
                self.collect();
            }
            13 => {
                let [to, from] = [addresses(NEAR), addresses(FAR)].map(|both| both[usize::from(glue)]);
                self.far.say(FAR, &ordinary(&Spec::new(true, from, to), input.string()), self.now);
            }
            14 => self.change(input.u8()),
            _ => {
                let keys = [key(NEAR).public_key()];
                self.far.network.welcome(&keys, &mut self.far.lane, self.now);
            }
        }
    }

    /// The near container sends one packet, no two alike.
    fn say(&mut self, input: &mut Input<'_>) {
        let kind = input.u8();
        self.turn += 1;
        let [from, to] = [NEAR + (kind >> 2 & 2), FAR].map(|n| addresses(n)[usize::from(kind & 1)]);
        let spec = Spec {
            sequence: self.turn * LARGE as u32,
            id: self.turn as u16,
            ..Spec::new(kind & 2 == 0, from, to)
        };
        let mut body = self.turn.to_le_bytes().to_vec();
        body.extend(input.bytes(usize::from(kind >> 4) * 8));
        if kind & 4 != 0 {
            body.resize(LARGE, 1);
        }
        let mut packet = ordinary(&spec, &body);
        if kind & 0xc0 == 0xc0 {
            let headers = packet.len().min(64);
            input.edit(&mut packet[..headers]);
        }
        self.near.say(NEAR, &packet, self.now);
        *self.said.entry(lasting(&packet)).or_default() += 1;
        self.collect();
    }

    fn collect(&mut self) {
        self.pending.extend(self.near.sent().into_iter().map(|(_, datagram)| datagram));
    }

    /// The next message on its way to the far node.
    fn next(&mut self) -> Vec<u8> {
        let Some(message) = self.pending.pop_front() else { return Vec::new() };
        self.past.push(message.clone());
        message
    }

    /// Lays a datagram in the batch: an arrival of its own, or one more of the arrival before.
    fn arrive(&mut self, from: u8, datagram: &[u8], glue: bool) {
        if self.batch.len() + datagram.len() > BATCH {
            return;
        }
        let start = self.batch.len();
        self.batch.extend(datagram);
        let end = self.batch.len();
        match self.arrivals.last_mut() {
            Some(arrival) if glue && end - arrival.at.start <= MAX_PACKET => arrival.at.end = end,
            _ => {
                let arrival =
                    Arrival { path: sender(from), tos: from >> 6, at: start..end, size: datagram.len() };
                self.arrivals.push(arrival);
            }
        }
    }

    /// The far node gets the batch. Whatever its container gets was sent by the other, and comes once.
    fn hear(&mut self) {
        self.far.network.from_udp(&self.batch, &self.arrivals, &mut self.far.lane, self.now);
        self.batch.clear();
        self.arrivals.clear();
        for (vnet, packet) in self.far.delivered() {
            let segments = cut(&vnet, &packet, 0).unwrap_or_else(|| vec![packet]);
            for segment in segments {
                let Addresses { source, destination } = Addresses::of(&segment).expect("it is an IP packet");
                assert!(addresses(NEAR).contains(&source), "nobody speaks for another's address");
                assert!(addresses(FAR).contains(&destination));
                let left = self.said.get_mut(&lasting(&segment)).expect("it is what was sent");
                *left = left.checked_sub(1).expect("it comes once");
            }
        }
    }

    fn change(&mut self, how: u8) {
        let far = &mut self.far;
        let near = key(NEAR).public_key();
        match how % 6 {
            0 => far.network.remove_peer(&near),
            1 => far.network.put_peers(vec![peer(NEAR, vec![at(NEAR)])]),
            2 => far.network.put_peers(vec![peer(NEAR, vec![])]),
            3 => far.network.wake(ContainerId::new(FAR.into()), [&near], &mut far.lane, self.now),
            4 => far.network.set_keepalive(Some(how.into()), &mut far.lane, self.now),
            _ => far.put_device(FAR, OwnAddresses::Only(addresses(FAR).to_vec()), 1280),
        }
    }
}

/// The first byte tells what the far container takes joined, and whether there is a session already; the rest are steps.
pub fn udp_input(data: &[u8]) {
    let mut input = Input::new(data);
    let mut world = World::new(input.u8());
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        world.step(&mut input);
    }
    world.hear();
    assert!(world.far.network.sessions() <= 1, "what is sent by one peer makes no more than one session");
}
