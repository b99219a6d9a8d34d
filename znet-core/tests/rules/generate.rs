//! Records, maps and heads out of few names and numbers, so that random ones meet often.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use ipnet::{Ipv4Net, Ipv6Net};
use proptest::prelude::*;
use znet_core::id::{ContainerId, NetworkId, NodeId, Pin};
use znet_core::key::{PublicKey, SigningKey};
use znet_core::map::{
    AccessRecord, ContainerRecord, ControllerRecord, Map, NetworkRecord, NodeRecord, Record,
};
use znet_core::name::Name;

pub(crate) const NETWORK: NetworkId = NetworkId::from_bytes([7; 16]);

pub(crate) fn signing_key() -> SigningKey {
    SigningKey::from_seed(&[3; 32])
}

pub(crate) fn name() -> impl Strategy<Value = Name> {
    prop::sample::select(vec!["a", "b", "aa", "web", "web-2", "0"]).prop_map(|text| text.parse().unwrap())
}

fn endpoint() -> impl Strategy<Value = SocketAddr> {
    let v4 = (0u8..3, 0u16..3).prop_map(|(n, port)| SocketAddr::from(([192, 0, 2, n], port)));
    let v6 = (0u16..2, 0u16..3, 0u32..2, 0u32..2).prop_map(|(n, port, flow, zone)| {
        SocketAddrV6::new(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n), port, flow, zone).into()
    });
    prop_oneof![v4, v6]
}

fn controllers() -> impl Strategy<Value = Vec<ControllerRecord>> {
    let pins = prop::collection::vec((0u8..2).prop_map(|n| Pin::from_bytes([n; 32])), 0..3);
    let one = ("[ab]{0,2}", pins).prop_map(|(address, pins)| ControllerRecord { address, pins });
    prop::collection::vec(one, 0..3)
}

fn network() -> impl Strategy<Value = Record> {
    let prefix4 = prop::option::of((0u8..2, 24u8..26));
    (0u8..2, name(), 0u16..2, prefix4, controllers()).prop_map(|(id, name, third, prefix4, controllers)| {
        Record::Network(NetworkRecord {
            id: NetworkId::from_bytes([id; 16]),
            name,
            prefix6: Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 1, third, 0, 0, 0, 0, 0), 48),
            prefix4: prefix4.map(|(n, len)| Ipv4Net::new_assert(Ipv4Addr::new(10, n, 0, 0), len)),
            controllers,
        })
    })
}

fn node() -> impl Strategy<Value = Record> {
    (0u8..3, name(), prop::collection::vec(endpoint(), 0..3)).prop_map(|(id, name, endpoints)| {
        Record::Node(NodeRecord { id: NodeId::from_bytes([id; 32]), name, endpoints })
    })
}

fn container() -> impl Strategy<Value = Record> {
    let address4 = prop::option::of(0u8..3);
    let keys = (0u8..3, prop::option::of(0u8..3), any::<bool>());
    let port = prop::option::of(1u16..3);
    let parts = (0u64..5, name(), 0u8..3, keys, 0u16..3, address4, port);
    parts.prop_map(|(id, name, node, keys, six, four, port)| {
        let (key, also, rekey) = keys;
        Record::Container(ContainerRecord {
            id: ContainerId::new(id),
            name,
            node: NodeId::from_bytes([node; 32]),
            public_key: PublicKey::from_bytes([key; 32]),
            address6: Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, six),
            address4: four.map(|n| Ipv4Addr::new(10, 0, 0, n)),
            also_key: also.map(|key| PublicKey::from_bytes([key; 32])),
            rekey,
            port: port.and_then(std::num::NonZeroU16::new),
        })
    })
}

fn access() -> impl Strategy<Value = Record> {
    let address4 = prop::option::of(0u8..3);
    (0u64..5, name(), 0u8..3, 0u8..3, 0u16..3, address4).prop_map(|(id, name, node, key, six, four)| {
        Record::Access(AccessRecord {
            id: ContainerId::new(id),
            name,
            node: NodeId::from_bytes([node; 32]),
            public_key: PublicKey::from_bytes([key; 32]),
            address6: Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, six),
            address4: four.map(|n| Ipv4Addr::new(10, 0, 0, n)),
        })
    })
}

pub(crate) fn record() -> impl Strategy<Value = Record> {
    prop_oneof![1 => network(), 3 => node(), 5 => container(), 3 => access()]
}

pub(crate) fn map() -> impl Strategy<Value = Map> {
    prop::collection::vec(record(), 0..10).prop_map(|records| records.into_iter().collect())
}
