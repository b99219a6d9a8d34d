//! The directory among a hundred thousand peers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rand::{RngExt as _, SeedableRng as _};
use znet_core::key::PublicKey;
use znet_wg::net::{Directory, PeerUpdate};
use znet_wg::offload::VnetHeader;

use crate::common::{Node, address, packet, stranger};

/// How many peers there are.
pub(crate) const PEERS: u32 = 100_000;
/// Lookups that are measured together, each of another peer.
const LOOKUPS: usize = 1_000;

/// Some of the peers, as chance has it.
fn some(count: usize) -> Vec<u32> {
    let mut random = rand::rngs::StdRng::seed_from_u64(7);
    (0..count).map(|_| random.random_range(0..PEERS)).collect()
}

/// A network with all peers.
fn node() -> Node {
    let node = Node::new(1);
    node.network.put_peers((0..PEERS).map(stranger).collect());
    node
}

fn look_up(bencher: Bencher<'_, '_>, directory: &Directory, wanted: &[IpAddr]) {
    assert!(wanted.iter().all(|address| directory.owner(address).is_some()));
    bencher.counter(ItemsCount::new(wanted.len())).bench_local(|| {
        for address in wanted {
            black_box(directory.owner(black_box(address)));
        }
    });
}

/// Whose an address is, when it is one of a container's two: v6 or v4.
#[divan::bench(args = [6, 4])]
fn owner_of_an_address(bencher: Bencher<'_, '_>, version: u8) {
    let mut directory = Directory::default();
    for n in 0..PEERS {
        directory.put(stranger(n));
    }
    let wanted: Vec<IpAddr> =
        some(LOOKUPS).into_iter().map(|n| stranger(n).addresses[usize::from(version == 4)]).collect();
    look_up(bencher, &directory, &wanted);
}

/// Whose an address is, when every peer has a range of each family.
#[divan::bench(args = [6, 4])]
fn owner_of_a_range(bencher: Bencher<'_, '_>, version: u8) {
    let v4 = |n: u32| Ipv4Addr::from_bits(0x0a00_0000 | n << 7);
    let v6 = |n: u32| Ipv6Addr::from_bits(0xfd00_u128 << 112 | u128::from(n) << 64);
    let mut directory = Directory::default();
    for n in 0..PEERS {
        let ranges: [IpNet; 2] =
            [Ipv4Net::new(v4(n), 25).unwrap().into(), Ipv6Net::new(v6(n), 64).unwrap().into()];
        let update = PeerUpdate { allow: ranges.to_vec(), ..PeerUpdate::default() };
        directory.update(&stranger(n).public_key, update);
    }
    let within = |n: u32| -> IpAddr {
        match version {
            4 => Ipv4Addr::from_bits(v4(n).to_bits() | 77).into(),
            _ => Ipv6Addr::from_bits(v6(n).to_bits() | 77).into(),
        }
    };
    let wanted: Vec<IpAddr> = some(LOOKUPS).into_iter().map(within).collect();
    look_up(bencher, &directory, &wanted);
}

/// Where a peer is, or moves to with a change.
fn places(turn: u32) -> Vec<SocketAddr> {
    vec![SocketAddr::from(([203, 0, 113, (turn % 200) as u8], 51820))]
}

/// What an agent tells of a container that moved: both addresses and the endpoint.
#[divan::bench]
fn put_a_peer_that_moved(bencher: Bencher<'_, '_>) {
    let node = node();
    let mut turns = 0..;
    let mut wanted = some(LOOKUPS).into_iter().cycle();
    bencher
        .with_inputs(|| {
            let (n, turn) = (wanted.next().unwrap(), turns.next().unwrap());
            vec![znet_wg::control::Peer { endpoints: places(turn), ..stranger(n) }]
        })
        .bench_local_values(|peers| node.network.put_peers(peers));
}

/// What `wg set` tells of a peer: its endpoint alone.
#[divan::bench]
fn update_the_endpoint_of_a_peer(bencher: Bencher<'_, '_>) {
    let mut node = node();
    let mut turns = 0..;
    let mut wanted = some(LOOKUPS).into_iter().cycle();
    bencher
        .with_inputs(|| -> (PublicKey, PeerUpdate) {
            let (n, turn) = (wanted.next().unwrap(), turns.next().unwrap());
            let update = PeerUpdate { endpoints: Some(places(turn)), ..PeerUpdate::default() };
            (stranger(n).public_key, update)
        })
        .bench_local_values(|(key, update)| node.update(&key, update));
}

/// The first packet to a peer that was never used, until its initiation is sent.
#[divan::bench(sample_count = 100, sample_size = 10)]
fn first_packet_to_a_peer(bencher: Bencher<'_, '_>) {
    let mut node = node();
    // Other peers each time, far fewer than a device may have sessions.
    let mut next = 0..PEERS;
    let before = node.network.sessions();
    bencher
        .with_inputs(|| {
            let IpAddr::V4(to) = stranger(next.next().unwrap()).addresses[1] else { unreachable!() };
            packet(address(1), to, 100)
        })
        .bench_local_refs(|packet| node.read(VnetHeader::default(), packet));
    assert!(node.network.sessions() > before);
}
