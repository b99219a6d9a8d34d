//! What the rules cost: allocation, deltas and decisions, at growing sizes. Run with `cargo bench -p znet-core`.
//!
//! The columns of one benchmark show how its price grows: by a factor of ten in size it should grow like a logarithm.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::cell::RefCell;
use std::net::{IpAddr, Ipv6Addr};

use divan::Bencher;
use ipnet::{IpNet, Ipv6Net};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use znet_core::addr::Allocator;
use znet_core::controller::{
    Command, Container, Network, NetworkConf, Node, NodeLifetime, Reply, Resting, Row,
};
use znet_core::id::{ContainerId, Epoch, NetworkId, NodeId, Revision, TokenId};
use znet_core::key::{PublicKey, SigningKey};
use znet_core::map::{
    Change, ContainerRecord, Delta, Head, Map, Member, NetworkRecord, NodeRecord, Record, SetHash, SignedHead,
};
use znet_core::time::Timestamp;

/// Addresses that are allocated and released in the benchmark that has a goal: less than two seconds.
const MILLION: u32 = 1_000_000;
/// How many addresses stand in an allocator whose single operations are measured.
const TAKEN: [u32; 4] = [1_000, 10_000, 100_000, MILLION];
/// How many containers a network has when one more comes.
const CONTAINERS: [u64; 3] = [1_000, 10_000, 100_000];
const NODES: u64 = 100;
const NETWORK: NetworkId = NetworkId::from_bytes([7; 16]);
const NOW: Timestamp = Timestamp::from_millis(1_000_000);
const LATER: Timestamp = Timestamp::from_millis(2_000_000);

fn main() {
    divan::main();
}

fn prefix6() -> Ipv6Net {
    "fd00:a:b::/48".parse().unwrap()
}

fn address6(n: u64) -> Ipv6Addr {
    (u128::from(prefix6().network()) + u128::from(n)).into()
}

/// An allocator with so many addresses taken, one after the other or every other one.
fn taken(count: u32, every: u32) -> Allocator {
    let mut allocator = Allocator::new(IpNet::V6(prefix6()), &[]);
    (1..=count).for_each(|n| assert!(allocator.take(address6(u64::from(n * every)).into())));
    allocator
}

mod allocator {
    use super::*;

    /// One million addresses of one prefix, each the lowest free one, and all given back to rest.
    #[divan::bench(sample_count = 5, sample_size = 1)]
    fn a_million_allocations_and_releases(bencher: Bencher<'_, '_>) {
        let prefix: IpNet = "10.0.0.0/8".parse().unwrap();
        bencher.counter(divan::counter::ItemsCount::new(MILLION)).bench_local(|| {
            let mut allocator = Allocator::new(prefix, &[]);
            let mut held = Vec::with_capacity(MILLION as usize);
            for _ in 0..MILLION {
                let address = allocator.lowest_free(NOW).unwrap();
                assert!(allocator.take(address));
                held.push(address);
            }
            for address in held {
                assert!(allocator.release(address, LATER));
            }
            allocator
        });
    }

    /// The same in the order of chance: every operation then meets another part of the trees.
    #[divan::bench(sample_count = 5, sample_size = 1)]
    fn a_million_in_random_order(bencher: Bencher<'_, '_>) {
        let prefix: IpNet = "10.0.0.0/8".parse().unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut order: Vec<IpAddr> = (1..=MILLION).map(|n| IpAddr::V4((0x0a00_0000 + n).into())).collect();
        for n in (1..order.len()).rev() {
            order.swap(n, rng.random_range(0..=n));
        }
        bencher.counter(divan::counter::ItemsCount::new(MILLION)).bench_local(|| {
            let mut allocator = Allocator::new(prefix, &[]);
            assert!(order.iter().all(|address| allocator.take(*address)));
            assert!(order.iter().all(|address| allocator.release(*address, LATER)));
            allocator
        });
    }

    /// One allocation and one release, the taken addresses standing side by side.
    #[divan::bench(args = TAKEN)]
    fn one_of_neighbours(bencher: Bencher<'_, '_>, count: u32) {
        one(bencher, taken(count, 1));
    }

    /// One allocation and one release, every taken address standing alone: as many runs as there are addresses.
    #[divan::bench(args = TAKEN)]
    fn one_of_scattered(bencher: Bencher<'_, '_>, count: u32) {
        one(bencher, taken(count, 2));
    }

    /// One allocation and one release, with as many addresses at rest.
    #[divan::bench(args = TAKEN)]
    fn one_among_resting(bencher: Bencher<'_, '_>, count: u32) {
        let mut allocator = taken(count, 1);
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for n in 1..=count {
            let until = Timestamp::from_millis(rng.random_range(0..2_000_000));
            assert!(allocator.release(address6(n.into()).into(), until));
        }
        one(bencher, allocator);
    }

    fn one(bencher: Bencher<'_, '_>, mut allocator: Allocator) {
        bencher.bench_local(|| {
            let address = allocator.lowest_free(NOW).unwrap();
            assert!(allocator.take(address) && allocator.release(address, NOW));
        });
    }
}

fn container(n: u64) -> ContainerRecord {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&n.to_le_bytes());
    ContainerRecord {
        id: ContainerId::new(n),
        name: format!("container-{n}").parse().unwrap(),
        node: node(n % NODES).id,
        public_key: PublicKey::from_bytes(key),
        address6: address6(n),
        address4: Some((0x0a00_0000 + n as u32).into()),
        also_key: None,
        rekey: false,
        port: None,
    }
}

fn node(n: u64) -> NodeRecord {
    NodeRecord {
        id: NodeId::from_bytes([n as u8; 32]),
        name: format!("node-{n}").parse().unwrap(),
        endpoints: vec!["192.0.2.1:51820".parse().unwrap()],
    }
}

fn map(containers: u64) -> Map {
    let network = NetworkRecord {
        id: NETWORK,
        name: "acme".parse().unwrap(),
        prefix6: prefix6(),
        prefix4: Some("10.0.0.0/8".parse().unwrap()),
        controllers: Vec::new(),
    };
    let nodes = (0..NODES).map(|n| Record::Node(node(n)));
    let containers = (1..=containers).map(|n| Record::Container(container(n)));
    std::iter::once(Record::Network(network)).chain(nodes).chain(containers).collect()
}

fn sign(hash: &SetHash, revision: Revision) -> SignedHead {
    let head = Head { network: NETWORK, epoch: Epoch::default(), revision, digest: hash.digest() };
    head.sign(&SigningKey::from_seed(&[3; 32]))
}

/// A controller's side of a stream: one container more, one container fewer, and so on.
struct Publisher {
    hash: SetHash,
    revision: Revision,
    extra: Record,
    there: bool,
}

impl Publisher {
    fn next(&mut self) -> (Delta, SignedHead) {
        let change = if self.there {
            self.hash.remove(&self.extra);
            Change::Remove(self.extra.key())
        } else {
            self.hash.add(&self.extra);
            Change::Put(self.extra.clone())
        };
        self.there = !self.there;
        let from = self.revision;
        self.revision = from.next();
        (Delta { from, to: self.revision, changes: vec![change] }, sign(&self.hash, self.revision))
    }
}

mod map_of {
    use super::*;

    /// An agent applies a delta of one container: check the signature, change the map, check the digest.
    #[divan::bench(args = CONTAINERS, sample_count = 200, sample_size = 20)]
    fn apply_delta(bencher: Bencher<'_, '_>, containers: u64) {
        let map = map(containers);
        let hash = map.set_hash(NETWORK);
        let mut member = Member::new(NETWORK, SigningKey::from_seed(&[3; 32]).verifying_key());
        member.apply_snapshot(map.records(), &sign(&hash, Revision::new(1))).unwrap();
        let extra = Record::Container(container(containers / 2 + 1_000_000));
        let publisher = RefCell::new(Publisher { hash, revision: Revision::new(1), extra, there: false });
        bencher
            .with_inputs(|| publisher.borrow_mut().next())
            .bench_local_values(|(delta, head)| member.apply_delta(&delta, &head).unwrap());
    }

    /// The part of that which the signature takes.
    #[divan::bench]
    fn verify_head(bencher: Bencher<'_, '_>) {
        let head = sign(&SetHash::empty(NETWORK), Revision::new(1));
        let key = SigningKey::from_seed(&[3; 32]).verifying_key();
        bencher.bench_local(|| assert!(divan::black_box(&head).verifies(divan::black_box(&key))));
    }

    /// An agent takes a whole map.
    #[divan::bench(args = CONTAINERS, sample_count = 5, sample_size = 1)]
    fn apply_snapshot(bencher: Bencher<'_, '_>, containers: u64) {
        let map = map(containers);
        let head = sign(&map.set_hash(NETWORK), Revision::new(1));
        let key = SigningKey::from_seed(&[3; 32]).verifying_key();
        bencher
            .with_inputs(|| (Member::new(NETWORK, key), map.records().collect::<Vec<_>>()))
            .bench_local_values(|(mut member, records)| {
                member.apply_snapshot(records, &head).unwrap();
                member
            });
    }
}

fn network(containers: u64) -> Network {
    let conf = NetworkConf {
        id: NETWORK,
        name: "acme".parse().unwrap(),
        prefix6: prefix6(),
        prefix4: Some("10.0.0.0/8".parse().unwrap()),
        reserved: Vec::new(),
        rest_millis: 600_000,
        ephemeral_ttl_millis: 300_000,
        epoch: Epoch::default(),
        created: NOW,
        next_container: ContainerId::new(containers + 1),
        key_lifetime_millis: None,
        keys_since: None,
        controllers: Vec::new(),
        signing: None,
    };
    let nodes = (0..NODES).map(|n| {
        let NodeRecord { id, name, endpoints } = node(n);
        let token = TokenId::from_bytes([1; 8]);
        Row::Node(Node {
            id,
            name,
            endpoints,
            lifetime: NodeLifetime::Lasting,
            token,
            joined: NOW,
            two_keys: true,
        })
    });
    let containers = (1..=containers)
        .map(|n| Row::Container(Container { record: container(n), attached: NOW, keyed: None }));
    let resting =
        (1..=1_000).map(|n| Row::Resting(Resting { address: address6((1 << 40) + n).into(), until: LATER }));
    let rows = std::iter::once(Row::Network(conf)).chain(nodes).chain(containers).chain(resting);
    Network::from_rows(Revision::new(1), rows).unwrap()
}

fn attach(public_key: Option<PublicKey>) -> Command {
    Command::Attach {
        node: node(0).id,
        name: "one-more".parse().unwrap(),
        addresses: vec![],
        public_key,
        port: None,
    }
}

mod controller_with {
    use super::*;

    /// Decide an attach whose key pair the controller makes.
    #[divan::bench(args = CONTAINERS)]
    fn decide_attach(bencher: Bencher<'_, '_>, containers: u64) {
        let (network, command) = (network(containers), attach(None));
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        bencher.bench_local(|| network.decide(divan::black_box(&command), NOW, &mut rng).unwrap());
    }

    /// Decide an attach whose key pair the node made: the key is checked.
    #[divan::bench(args = CONTAINERS)]
    fn decide_attach_with_the_nodes_key(bencher: Bencher<'_, '_>, containers: u64) {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let own = znet_core::key::PrivateKey::generate(&mut rng).public_key();
        let (network, command) = (network(containers), attach(Some(own)));
        bencher.bench_local(|| network.decide(divan::black_box(&command), NOW, &mut rng).unwrap());
    }

    /// Decide and apply an attach and the detach that undoes it.
    #[divan::bench(args = CONTAINERS)]
    fn attach_and_detach(bencher: Bencher<'_, '_>, containers: u64) {
        let mut network = network(containers);
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let detach = Command::Detach { node: node(0).id, name: "one-more".parse().unwrap() };
        let mut now = NOW;
        bencher.bench_local(|| {
            // Time goes on, so that what rests does not pile up.
            now = Timestamp::from_millis(now.as_millis() + 100);
            for command in [&attach(None), &detach] {
                let decision = network.decide(command, now, &mut rng).unwrap();
                assert!(matches!(decision.reply, Reply::Attached { .. } | Reply::Removed { .. }));
                network.apply(&decision.changes);
            }
        });
    }
}
