//! What the engine learns when a map changes: containers as peers, with their nodes' endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};

use znet_core::id::{ContainerId, NodeId};
use znet_core::key::PublicKey;
use znet_core::map::{Change, ContainerRecord, Map, Record, RecordKey};
use znet_wg::control::Peer;

/// Peers to put and to remove.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerChanges {
    /// New and changed ones.
    pub put: Vec<Peer>,
    /// Keys that are no peer's any more.
    pub remove: Vec<PublicKey>,
}

/// How this node looks at the others.
#[derive(Clone, Copy, Debug)]
pub struct Viewpoint {
    /// This node.
    pub node: NodeId,
    /// Its own port of the network: its own containers reach each other there.
    pub port: u16,
}

impl Viewpoint {
    /// A container as a peer.
    pub fn peer(&self, map: &Map, container: &ContainerRecord) -> Peer {
        let mut endpoints = if container.node == self.node {
            vec![SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))]
        } else {
            map.node(&container.node).map(|node| node.endpoints.clone()).unwrap_or_default()
        };
        if let Some(port) = container.port {
            endpoints.iter_mut().for_each(|endpoint| endpoint.set_port(port.get()));
        }
        Peer {
            public_key: container.public_key,
            also_key: container.also_key,
            addresses: container.addresses().collect(),
            endpoints,
            preshared_key: None,
        }
    }

    /// All containers of a map as peers.
    pub fn peers<'a>(&'a self, map: &'a Map) -> impl Iterator<Item = Peer> + 'a {
        map.containers().map(move |container| self.peer(map, container))
    }

    /// What changes between two maps, told by the steps between them: looking at the steps alone costs what they do,
    /// but for a node whose endpoints changed.
    pub fn changes(&self, touched: &Touched, new: &Map) -> PeerChanges {
        let mut changes = PeerChanges::default();
        let mut ids: BTreeSet<ContainerId> = touched.containers.iter().map(|(id, _)| *id).collect();
        if !touched.nodes.is_empty() {
            let moved = new.containers().filter(|container| touched.nodes.contains(&container.node));
            ids.extend(moved.map(|container| container.id));
        }
        let kept: BTreeSet<PublicKey> =
            ids.iter().filter_map(|id| new.container(*id)).flat_map(ContainerRecord::keys).collect();
        // Who keeps one of its keys goes on as the same peer.
        let gone = touched.containers.iter().filter(|(_, old)| !old.iter().any(|key| kept.contains(key)));
        changes.remove.extend(gone.filter_map(|(_, old)| old.first().copied()));
        changes.put.extend(
            ids.iter().filter_map(|id| new.container(*id)).map(|container| self.peer(new, container)),
        );
        changes
    }
}

/// The keys of these nodes' containers, and whose each is.
pub fn keys_of(map: &Map, nodes: &BTreeSet<NodeId>) -> BTreeMap<PublicKey, NodeId> {
    let theirs = map.containers().filter(|container| nodes.contains(&container.node));
    theirs.map(|container| (container.public_key, container.node)).collect()
}

/// What a list of steps touches, read off the map before they are applied.
#[derive(Clone, Debug, Default)]
pub struct Touched {
    containers: Vec<(ContainerId, Vec<PublicKey>)>,
    nodes: BTreeSet<NodeId>,
}

impl Touched {
    /// The containers.
    pub fn containers(&self) -> impl Iterator<Item = ContainerId> + '_ {
        self.containers.iter().map(|(id, _)| *id)
    }

    /// What the steps touch in this map.
    pub fn by(changes: &[Change], old: &Map) -> Self {
        let mut touched = Self::default();
        for change in changes {
            match change.key() {
                RecordKey::Container(id) => {
                    let keys = old.container(id).into_iter().flat_map(ContainerRecord::keys).collect();
                    touched.containers.push((id, keys));
                }
                RecordKey::Node(id) => {
                    let before = old.node(&id).map(|node| &node.endpoints);
                    let after = match change {
                        Change::Put(Record::Node(node)) => Some(&node.endpoints),
                        _ => None,
                    };
                    if before != after {
                        touched.nodes.insert(id);
                    }
                }
                RecordKey::Network | RecordKey::Access(_) => {}
            }
        }
        touched
    }
}
