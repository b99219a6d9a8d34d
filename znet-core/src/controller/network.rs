//! The state of one network: its rows, the indexes over them, and the map that follows from them.

mod check;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use rand_core::CryptoRng;

use super::command::NewNetwork;
use super::rejection::Rejection;
use super::rows::{
    Access, Container, DEFAULT_EPHEMERAL_TTL, DEFAULT_REST, NetworkConf, Node, Reservation, Resting, Row,
    RowKey, StateChange, Token,
};
use crate::addr::{Allocator, check_prefixes, draw_ula_prefix};
use crate::id::{ContainerId, Epoch, NetworkId, NodeId, Revision, TokenId};
use crate::key::PublicKey;
use crate::map::{Delta, Head, Map, SetHash};
use crate::name::Name;
use crate::time::Timestamp;

/// Most nodes of one network.
pub const MAX_NODES: usize = 100_000;
/// Most containers of one network.
pub const MAX_CONTAINERS: usize = 1_000_000;
/// Most join tokens of one network. Revoked, expired and used-up ones are kept as long as there is room.
pub const MAX_TOKENS: usize = 10_000;
/// Most reservations of one network.
pub const MAX_RESERVATIONS: usize = 100_000;
/// Most reserved ranges of one network.
pub(super) const MAX_RESERVED_RANGES: usize = 256;

/// Stored rows that no sequence of decisions can have made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stored rows of the network contradict each other: {what}")]
pub struct Corrupt {
    /// What does not fit.
    pub what: String,
}

/// One network at one revision.
#[derive(Clone, Debug)]
pub struct Network {
    revision: Revision,
    conf: NetworkConf,
    tokens: BTreeMap<TokenId, Token>,
    token_by_hash: BTreeMap<[u8; 32], TokenId>,
    nodes: BTreeMap<NodeId, Node>,
    node_by_name: BTreeMap<Name, NodeId>,
    containers: BTreeMap<ContainerId, Container>,
    container_by_name: BTreeMap<Name, ContainerId>,
    container_by_key: BTreeMap<PublicKey, ContainerId>,
    containers_of_node: BTreeSet<(NodeId, ContainerId)>,
    /// Containers by the time since which their key is in use, but for those whose key is being changed.
    by_key_age: BTreeSet<(Timestamp, ContainerId)>,
    /// Containers whose key is being changed.
    rotating: BTreeSet<ContainerId>,
    reservations: BTreeMap<Name, Reservation>,
    accesses: BTreeMap<ContainerId, Access>,
    access_by_name: BTreeMap<Name, ContainerId>,
    resting: BTreeMap<IpAddr, Timestamp>,
    /// Who has an address: the container, the reservation or the access point of that name.
    holders: BTreeMap<IpAddr, Name>,
    pools: Vec<Allocator>,
    map: Map,
    hash: SetHash,
}

impl Network {
    /// Decides the first changes of a new network: its prefixes are checked, or drawn as RFC 4193 says (section 3.2).
    ///
    /// # Errors
    /// A [`Rejection`] about the prefixes or the reserved ranges.
    pub fn create<R: CryptoRng + ?Sized>(
        id: NetworkId,
        new: &NewNetwork,
        now: Timestamp,
        rng: &mut R,
    ) -> Result<Vec<StateChange>, Rejection> {
        let (prefix6, prefix4) = check_prefixes(&new.prefixes)?;
        let mut conf = NetworkConf {
            id,
            name: new.name.clone(),
            prefix6: prefix6.unwrap_or_else(|| draw_ula_prefix(rng)),
            prefix4,
            reserved: Vec::new(),
            rest_millis: millis(DEFAULT_REST),
            ephemeral_ttl_millis: millis(DEFAULT_EPHEMERAL_TTL),
            epoch: Epoch::default(),
            created: now,
            next_container: ContainerId::new(1),
            controllers: Vec::new(),
            signing: None,
            key_lifetime_millis: None,
            keys_since: None,
        };
        super::rotation::check_lifetime(new.settings.key_lifetime.flatten())?;
        conf.set(&new.settings);
        super::decide::check_reserved(&conf)?;
        Ok(vec![StateChange::Put(Row::Network(conf))])
    }

    /// Rebuilds a network from its stored rows.
    ///
    /// # Errors
    /// [`Corrupt`] when the rows contradict each other.
    pub fn from_rows(revision: Revision, rows: impl IntoIterator<Item = Row>) -> Result<Self, Corrupt> {
        let rows: Vec<Row> = rows.into_iter().collect();
        let count = rows.len();
        let conf = rows.iter().find_map(|row| match row {
            Row::Network(conf) => Some(conf.clone()),
            _ => None,
        });
        let conf =
            conf.ok_or_else(|| Corrupt { what: "the row of the network itself is missing".to_owned() })?;
        let mut network = Self {
            revision,
            tokens: BTreeMap::new(),
            token_by_hash: BTreeMap::new(),
            nodes: BTreeMap::new(),
            node_by_name: BTreeMap::new(),
            containers: BTreeMap::new(),
            container_by_name: BTreeMap::new(),
            container_by_key: BTreeMap::new(),
            containers_of_node: BTreeSet::new(),
            by_key_age: BTreeSet::new(),
            rotating: BTreeSet::new(),
            reservations: BTreeMap::new(),
            accesses: BTreeMap::new(),
            access_by_name: BTreeMap::new(),
            resting: BTreeMap::new(),
            holders: BTreeMap::new(),
            pools: pools(&conf),
            map: Map::default(),
            hash: SetHash::empty(conf.id),
            conf,
        };
        // Reservations before containers: a container of a reserved name takes its addresses over.
        let (reservations, others): (Vec<_>, Vec<_>) =
            rows.into_iter().partition(|row| matches!(row, Row::Reservation(_) | Row::Access(_)));
        for row in reservations.into_iter().chain(others) {
            network.put(row);
        }
        if network.rows().count() != count {
            return Err(Corrupt { what: "a row is there twice, or an address is held and rests".to_owned() });
        }
        network.check()?;
        Ok(network)
    }

    /// Applies the changes of one decision, advances the revision by one and returns what members have to learn.
    pub fn apply(&mut self, changes: &[StateChange]) -> Delta {
        let from = self.revision;
        self.revision = from.next();
        for change in changes {
            match change {
                StateChange::Put(row) => self.put(row.clone()),
                StateChange::Remove(key) => self.remove(key),
            }
        }
        let steps = Delta {
            from,
            to: self.revision,
            changes: changes.iter().filter_map(StateChange::map_change).collect(),
        };
        // A decision may touch a record twice; members get the last word only.
        Delta::squash([&steps]).unwrap_or(steps)
    }

    /// Takes changes back that led here from `before`. Costs what they cost, and not a copy of the network.
    pub fn revert<'a>(&mut self, before: &Self, changes: impl IntoIterator<Item = &'a StateChange>) {
        let key = |change: &StateChange| match change {
            StateChange::Put(row) => row.key(),
            StateChange::Remove(key) => key.clone(),
        };
        let touched: BTreeSet<RowKey> = changes.into_iter().map(key).collect();
        // All of it first: what comes back finds its names and addresses free. Resting addresses come last in the order of
        // keys, when nobody holds them any more.
        touched.iter().for_each(|key| self.remove(key));
        touched.iter().filter_map(|key| before.row(key)).for_each(|row| self.put(row));
        self.revision = before.revision;
    }

    fn row(&self, key: &RowKey) -> Option<Row> {
        match key {
            RowKey::Network => Some(Row::Network(self.conf.clone())),
            RowKey::Token(id) => self.tokens.get(id).cloned().map(Row::Token),
            RowKey::Node(id) => self.nodes.get(id).cloned().map(Row::Node),
            RowKey::Container(id) => self.containers.get(id).cloned().map(Row::Container),
            RowKey::Reservation(name) => self.reservations.get(name).cloned().map(Row::Reservation),
            RowKey::Access(id) => self.accesses.get(id).cloned().map(Row::Access),
            RowKey::Resting(address) => {
                let until = self.resting.get(address).copied();
                until.map(|until| Row::Resting(Resting { address: *address, until }))
            }
        }
    }

    /// The revision.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The network's own row.
    pub fn conf(&self) -> &NetworkConf {
        &self.conf
    }

    /// The map at this revision.
    pub fn map(&self) -> &Map {
        &self.map
    }

    /// The head to be signed for this revision.
    pub fn head(&self) -> Head {
        Head {
            network: self.conf.id,
            epoch: self.conf.epoch,
            revision: self.revision,
            digest: self.hash.digest(),
        }
    }

    /// All join tokens.
    pub fn tokens(&self) -> impl ExactSizeIterator<Item = &Token> {
        self.tokens.values()
    }

    /// The token of this handle.
    pub fn token(&self, id: &TokenId) -> Option<&Token> {
        self.tokens.get(id)
    }

    /// The token whose secret has this hash.
    pub(super) fn token_by_hash(&self, hash: &[u8; 32]) -> Option<&Token> {
        self.token_by_hash.get(hash).and_then(|id| self.tokens.get(id))
    }

    /// All nodes.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = &Node> {
        self.nodes.values()
    }

    /// The node of this identifier.
    pub fn node(&self, id: &NodeId) -> Option<&Node> {
        self.nodes.get(id)
    }

    /// The node of this name.
    pub fn node_by_name(&self, name: &Name) -> Option<&Node> {
        self.node_by_name.get(name).and_then(|id| self.nodes.get(id))
    }

    /// All containers.
    pub fn containers(&self) -> impl ExactSizeIterator<Item = &Container> {
        self.containers.values()
    }

    /// The container of this identifier.
    pub fn container(&self, id: ContainerId) -> Option<&Container> {
        self.containers.get(&id)
    }

    /// The container of this name.
    pub fn container_by_name(&self, name: &Name) -> Option<&Container> {
        self.container_by_name.get(name).and_then(|id| self.containers.get(id))
    }

    /// The container whose public key this is, or was a moment ago, or is about to be.
    pub fn container_by_key(&self, key: &PublicKey) -> Option<&Container> {
        self.container_by_key.get(key).and_then(|id| self.containers.get(id))
    }

    /// The containers whose key is being changed.
    pub fn rotating(&self) -> impl Iterator<Item = &Container> {
        self.rotating.iter().filter_map(|id| self.containers.get(id))
    }

    /// How many they are.
    pub fn rotations(&self) -> usize {
        self.rotating.len()
    }

    /// The other containers whose key came into use at this time or before, the oldest first.
    pub(super) fn keyed_until(&self, time: Timestamp) -> impl Iterator<Item = &Container> {
        let range = ..=(time, ContainerId::new(u64::MAX));
        self.by_key_age.range(range).filter_map(|(_, id)| self.containers.get(id))
    }

    /// The containers on a node.
    pub fn containers_of(&self, node: NodeId) -> impl Iterator<Item = &Container> {
        let range = (node, ContainerId::new(0))..=(node, ContainerId::new(u64::MAX));
        self.containers_of_node.range(range).filter_map(|(_, id)| self.containers.get(id))
    }

    /// All reservations.
    pub fn reservations(&self) -> impl ExactSizeIterator<Item = &Reservation> {
        self.reservations.values()
    }

    /// The reservation of this name.
    pub fn reservation(&self, name: &Name) -> Option<&Reservation> {
        self.reservations.get(name)
    }

    /// All access points.
    pub fn accesses(&self) -> impl ExactSizeIterator<Item = &Access> {
        self.accesses.values()
    }

    /// The access point that is seen as this container.
    pub fn access(&self, id: ContainerId) -> Option<&Access> {
        self.accesses.get(&id)
    }

    /// The access point of this name.
    pub fn access_by_name(&self, name: &Name) -> Option<&Access> {
        self.access_by_name.get(name).and_then(|id| self.accesses.get(id))
    }

    /// All addresses that rest, with the time until which they do.
    pub fn resting(&self) -> impl ExactSizeIterator<Item = Resting> + '_ {
        self.resting.iter().map(|(address, until)| Resting { address: *address, until: *until })
    }

    /// Every stored entity: what [`Network::from_rows`] rebuilds this state from.
    pub fn rows(&self) -> impl Iterator<Item = Row> + '_ {
        std::iter::once(Row::Network(self.conf.clone()))
            .chain(self.tokens.values().cloned().map(Row::Token))
            .chain(self.nodes.values().cloned().map(Row::Node))
            .chain(self.reservations.values().cloned().map(Row::Reservation))
            .chain(self.accesses.values().cloned().map(Row::Access))
            .chain(self.containers.values().cloned().map(Row::Container))
            .chain(self.resting().map(Row::Resting))
    }

    pub(super) fn pools(&self) -> &[Allocator] {
        &self.pools
    }

    pub(super) fn rests(&self, address: &IpAddr) -> bool {
        self.resting.contains_key(address)
    }

    pub(super) fn holder(&self, address: &IpAddr) -> Option<&Name> {
        self.holders.get(address)
    }

    fn put(&mut self, row: Row) {
        self.put_record(&StateChange::Put(row.clone()));
        match row {
            Row::Network(conf) => {
                if conf.reserved != self.conf.reserved {
                    self.conf = conf;
                    self.rebuild_pools();
                } else {
                    self.conf = conf;
                }
            }
            Row::Token(token) => {
                self.token_by_hash.insert(token.secret_hash, token.id);
                self.tokens.insert(token.id, token);
            }
            Row::Node(node) => {
                if let Some(old) = self.nodes.get(&node.id) {
                    self.node_by_name.remove(&old.name);
                }
                self.node_by_name.insert(node.name.clone(), node.id);
                self.nodes.insert(node.id, node);
            }
            Row::Container(container) => self.put_container(container),
            Row::Reservation(reservation) => {
                self.remove(&RowKey::Reservation(reservation.name.clone()));
                for address in &reservation.addresses {
                    self.hold(*address, &reservation.name);
                }
                self.reservations.insert(reservation.name.clone(), reservation);
            }
            Row::Access(access) => {
                self.forget_access(access.record.id);
                for address in access.record.addresses() {
                    self.hold(address, &access.record.name);
                }
                self.access_by_name.insert(access.record.name.clone(), access.record.id);
                self.accesses.insert(access.record.id, access);
            }
            Row::Resting(Resting { address, until }) => {
                self.resting.insert(address, until);
                self.pools.iter_mut().for_each(|pool| pool.rest(address, until));
            }
        }
    }

    fn put_container(&mut self, container: Container) {
        let record = &container.record;
        self.forget_container(record.id);
        for address in record.addresses() {
            self.hold(address, &record.name);
        }
        self.container_by_name.insert(record.name.clone(), record.id);
        for key in record.keys() {
            self.container_by_key.insert(key, record.id);
        }
        if record.is_rotating() {
            self.rotating.insert(record.id);
        } else {
            self.by_key_age.insert((container.keyed(), record.id));
        }
        self.containers_of_node.insert((record.node, record.id));
        self.containers.insert(record.id, container);
    }

    fn remove(&mut self, key: &RowKey) {
        self.put_record(&StateChange::Remove(key.clone()));
        match key {
            RowKey::Network => {}
            RowKey::Token(id) => {
                if let Some(old) = self.tokens.remove(id) {
                    self.token_by_hash.remove(&old.secret_hash);
                }
            }
            RowKey::Node(id) => {
                if let Some(old) = self.nodes.remove(id) {
                    self.node_by_name.remove(&old.name);
                }
            }
            RowKey::Container(id) => self.forget_container(*id),
            RowKey::Reservation(name) => {
                if let Some(old) = self.reservations.remove(name) {
                    self.drop_holds(name, old.addresses);
                }
            }
            RowKey::Access(id) => self.forget_access(*id),
            RowKey::Resting(address) => {
                self.resting.remove(address);
                self.pools.iter_mut().for_each(|pool| pool.end_rest(*address));
            }
        }
    }

    fn forget_container(&mut self, id: ContainerId) {
        let Some(old) = self.containers.remove(&id) else { return };
        self.rotating.remove(&id);
        self.by_key_age.remove(&(old.keyed(), id));
        let record = old.record;
        self.container_by_name.remove(&record.name);
        for key in record.keys() {
            self.container_by_key.remove(&key);
        }
        self.containers_of_node.remove(&(record.node, id));
        self.drop_holds(&record.name, record.addresses());
    }

    fn forget_access(&mut self, id: ContainerId) {
        let Some(old) = self.accesses.remove(&id) else { return };
        self.access_by_name.remove(&old.record.name);
        self.drop_holds(&old.record.name, old.record.addresses());
    }

    /// What a name has besides its reservation: as a container, and as an access point, which is to become one.
    pub(super) fn in_use(&self, name: &Name) -> Vec<IpAddr> {
        let container = self.container_by_name(name).into_iter().flat_map(|c| c.record.addresses());
        container.chain(self.access_by_name(name).into_iter().flat_map(|a| a.record.addresses())).collect()
    }

    /// Lets go of addresses, but for those that the name has in another role.
    fn drop_holds(&mut self, name: &Name, addresses: impl IntoIterator<Item = IpAddr>) {
        let mut kept = self.in_use(name);
        kept.extend(self.reservations.get(name).into_iter().flat_map(|r| r.addresses.iter().copied()));
        addresses.into_iter().filter(|a| !kept.contains(a)).for_each(|a| self.drop_hold(a));
    }

    fn hold(&mut self, address: IpAddr, name: &Name) {
        self.holders.insert(address, name.clone());
        self.resting.remove(&address);
        for pool in &mut self.pools {
            pool.take(address);
        }
    }

    fn drop_hold(&mut self, address: IpAddr) {
        self.holders.remove(&address);
        for pool in &mut self.pools {
            pool.free(address);
        }
    }

    fn rebuild_pools(&mut self) {
        self.pools = pools(&self.conf);
        for pool in &mut self.pools {
            for address in self.holders.keys() {
                pool.take(*address);
            }
            self.resting.iter().for_each(|(address, until)| pool.rest(*address, *until));
        }
    }

    /// Carries a change over to the map and its hash.
    fn put_record(&mut self, change: &StateChange) {
        let Some(change) = change.map_change() else { return };
        if let Some(old) = self.map.get(change.key()) {
            self.hash.remove(&old);
        }
        if let crate::map::Change::Put(record) = &change {
            self.hash.add(record);
        }
        self.map.apply(&change);
    }
}

/// Two states are equal when they were made of equal rows at the same revision.
impl PartialEq for Network {
    fn eq(&self, other: &Self) -> bool {
        self.revision == other.revision && self.rows().eq(other.rows()) && self.head() == other.head()
    }
}

impl Eq for Network {}

pub(super) fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn pools(conf: &NetworkConf) -> Vec<Allocator> {
    let prefixes = std::iter::once(ipnet::IpNet::V6(conf.prefix6)).chain(conf.prefix4.map(ipnet::IpNet::V4));
    prefixes.map(|prefix| Allocator::new(prefix, &conf.reserved)).collect()
}
