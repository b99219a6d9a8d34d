//! The controller against its model, its own rows, and an agent that follows every delta.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use proptest::prelude::*;
use rand::SeedableRng as _;
use rand_chacha::ChaCha20Rng;
use znet_core::controller::{
    AccessPoint, Command, Decision, Network, NewNetwork, NodeLifetime, Rejection, Reply, Row, RowKey,
    Settings, StateChange, TokenSecret,
};
use znet_core::id::{NodeId, Revision, TokenId};
use znet_core::key::{PrivateKey, PublicKey};
use znet_core::map::{ContainerRecord, Member};
use znet_core::name::Name;
use znet_core::time::Timestamp;

use crate::controller_model::{Code, Model, ModelToken};
use crate::generate::{NETWORK, signing_key};

const PREFIX6: &str = "fd00:a:b::/48";
/// Six addresses for containers: random ones exhaust it often.
pub(crate) const PREFIX4: &str = "10.0.0.0/29";

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(crate) fn node(n: u8) -> NodeId {
    NodeId::from_bytes([n; 32])
}

/// A key that a node could have made; zero is one that none could.
pub(crate) fn key(n: u8) -> PublicKey {
    match n {
        0 => PublicKey::from_bytes([0; 32]),
        n => PrivateKey::from_bytes([n; 32]).public_key(),
    }
}

pub(crate) fn at(secs: u64) -> Timestamp {
    Timestamp::from_millis(secs * 1000)
}

pub(crate) fn new_network(rng: &mut ChaCha20Rng) -> Vec<StateChange> {
    let new = NewNetwork {
        name: name("acme"),
        prefixes: vec![PREFIX6.parse().unwrap(), PREFIX4.parse().unwrap()],
        settings: Settings::default(),
    };
    Network::create(NETWORK, &new, at(0), rng).unwrap()
}

/// A command, with tokens by the order in which they were made.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    Wait(u64),
    CreateToken { label: Option<Name>, uses: Option<u32>, expires_in: Option<u64>, lifetime: NodeLifetime },
    Revoke(Option<usize>),
    Join { token: Option<Option<usize>>, node: u8, name: Name, endpoints: Vec<SocketAddr> },
    SetEndpoints { node: u8, endpoints: Vec<SocketAddr> },
    Attach { node: u8, name: Name, addresses: Vec<IpAddr>, key: Option<u8> },
    Detach { node: u8, name: Name },
    RemoveNode(u8),
    RemoveContainer(Name),
    Reserve { name: Name, addresses: Vec<IpAddr> },
    Unreserve(Name),
    CreateAccess { name: Name, node: u8, key: u8, addresses: Vec<IpAddr> },
    OfferAccess { name: Name, node: u8, key: u8, port: u16 },
    RevokeAccess(Name),
    Configure { reserved: Option<Vec<IpNet>>, rest_secs: Option<u64> },
    Collect(Vec<u8>),
    NewEpoch,
}

fn act() -> impl Strategy<Value = Act> {
    let names = || prop::sample::select(vec!["a", "b", "c", "d", "e"]).prop_map(name);
    let nodes = || 0u8..3;
    let endpoints = || {
        let endpoint = prop_oneof![
            9 => (0u8..2).prop_map(|n| SocketAddr::from(([192, 0, 2, n], 51820))),
            1 => Just(SocketAddr::from(([192, 0, 2, 1], 0))),
        ];
        prop_oneof![
            9 => prop::collection::vec(endpoint, 0..2),
            1 => Just(vec![SocketAddr::from(([192, 0, 2, 1], 1)); 9]),
        ]
    };
    let address = prop_oneof![
        6 => (0u8..8).prop_map(|n| IpAddr::from([10, 0, 0, n])),
        3 => (0u16..6).prop_map(|n| IpAddr::from([0xfd00, 0xa, 0xb, 0, 0, 0, 0, n])),
        1 => Just(IpAddr::from([10, 9, 9, 9])),
    ];
    let addresses = prop_oneof![
        3 => Just(Vec::new()),
        2 => prop::collection::vec(address, 1..3),
    ];
    let lifetimes = prop_oneof![Just(NodeLifetime::Lasting), Just(NodeLifetime::Ephemeral)];
    let reserved = prop::sample::subsequence(
        vec!["10.0.0.2/31", "10.0.0.0/30", "10.0.0.5/32", "fd00:a:b::/126", "10.8.0.0/24"],
        0..3,
    );
    let reserved =
        reserved.prop_map(|texts| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpNet>>());
    let index = any::<usize>;
    let tokens =
        prop_oneof![1 => Just(None), 1 => Just(Some(None)), 12 => index().prop_map(|i| Some(Some(i)))];
    let attach = (nodes(), names(), addresses.clone(), prop::option::of(0u8..5));
    prop_oneof![
        4 => (1u64..400).prop_map(Act::Wait),
        2 => (prop::option::of(names()), prop::option::of(0u32..3), prop::option::of(0u64..900), lifetimes).prop_map(
            |(label, uses, expires_in, lifetime)| Act::CreateToken { label, uses, expires_in, lifetime }
        ),
        1 => prop::option::of(index()).prop_map(Act::Revoke),
        5 => (tokens, nodes(), names(), endpoints()).prop_map(
            |(token, node, name, endpoints)| Act::Join { token, node, name, endpoints }
        ),
        1 => (nodes(), endpoints()).prop_map(|(node, endpoints)| Act::SetEndpoints { node, endpoints }),
        12 => attach.prop_map(
            |(node, name, addresses, key)| Act::Attach { node, name, addresses, key }
        ),
        5 => (nodes(), names()).prop_map(|(node, name)| Act::Detach { node, name }),
        1 => nodes().prop_map(Act::RemoveNode),
        2 => names().prop_map(Act::RemoveContainer),
        3 => (names(), addresses.clone()).prop_map(|(name, addresses)| Act::Reserve { name, addresses }),
        5 => (names(), nodes(), 0u8..7, addresses).prop_map(
            |(name, node, key, addresses)| Act::CreateAccess { name, node, key, addresses }
        ),
        2 => (names(), nodes(), 0u8..3, 0u16..3).prop_map(
            |(name, node, key, port)| Act::OfferAccess { name, node, key, port }
        ),
        2 => names().prop_map(Act::RevokeAccess),
        2 => names().prop_map(Act::Unreserve),
        1 => (
            prop::option::weighted(0.8, reserved),
            prop::option::weighted(0.8, prop::sample::select(vec![0u64, 100, 600])),
        )
            .prop_map(|(reserved, rest_secs)| Act::Configure { reserved, rest_secs }),
        1 => prop::collection::vec(nodes(), 0..4).prop_map(Act::Collect),
        1 => Just(Act::NewEpoch),
    ]
}

/// The real thing, its model, a store that keeps rows as a database would, and an agent.
pub(crate) struct World {
    pub(crate) rng: ChaCha20Rng,
    pub(crate) now: Timestamp,
    pub(crate) network: Network,
    model: Model,
    pub(crate) store: BTreeMap<RowKey, Row>,
    member: Member,
    pub(crate) tokens: Vec<(TokenId, TokenSecret)>,
}

impl World {
    pub(crate) fn new() -> Self {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let changes = new_network(&mut rng);
        let rows = changes.iter().map(|change| match change {
            StateChange::Put(row) => (row.key(), row.clone()),
            StateChange::Remove(_) => panic!("a new network has nothing to remove"),
        });
        let store: BTreeMap<_, _> = rows.collect();
        let network = Network::from_rows(Revision::new(1), store.values().cloned()).unwrap();
        let model = Model {
            prefixes: vec![PREFIX6.parse().unwrap(), PREFIX4.parse().unwrap()],
            rest_millis: 600_000,
            ..Model::default()
        };
        let mut member = Member::new(NETWORK, signing_key().verifying_key());
        member.apply_snapshot(network.map().records(), &network.head().sign(&signing_key())).unwrap();
        Self { rng, now: at(1_000), network, model, store, member, tokens: Vec::new() }
    }

    pub(crate) fn token(&self, index: Option<usize>) -> (TokenId, TokenSecret) {
        let foreign = (TokenId::from_bytes([9; 8]), TokenSecret::from_bytes([9; 32]));
        match index {
            Some(index) if !self.tokens.is_empty() => self.tokens[index % self.tokens.len()].clone(),
            _ => foreign,
        }
    }

    /// Decides, and commits as a controller would: the store, then the state, then the members.
    pub(crate) fn decide(&mut self, command: &Command) -> Result<Reply, Rejection> {
        let before = self.network.clone();
        let Decision { changes, reply } = self.network.decide(command, self.now, &mut self.rng)?;
        assert_eq!(self.network, before, "a decision changes nothing");
        if changes.is_empty() {
            return Ok(reply);
        }
        for change in &changes {
            match change {
                StateChange::Put(row) => drop(self.store.insert(row.key(), row.clone())),
                StateChange::Remove(key) => drop(self.store.remove(key)),
            }
        }
        let delta = self.network.apply(&changes);
        assert_eq!((delta.from, delta.to), (before.revision(), before.revision().next()));
        assert_eq!(self.network.revision(), delta.to, "one revision for each decision");
        // Taken back and done again it is the same, and goes on as such.
        let mut again = self.network.clone();
        again.revert(&before, &changes);
        assert_eq!(again, before, "a change that was taken back left something behind");
        assert_eq!(again.apply(&changes), delta);
        assert_eq!(again, self.network);
        self.network = again;
        let head = self.network.head().sign(&signing_key());
        match self.member.apply_delta(&delta, &head) {
            Ok(()) => {}
            Err(refusal) if matches!(command, Command::NewEpoch) && refusal.wants_snapshot() => {
                let records = self.network.map().records();
                assert_eq!(
                    self.member.apply_snapshot(records, &head),
                    Ok(vec![]),
                    "the same map, a new epoch"
                );
            }
            Err(refusal) => panic!("an agent refused what the controller sent: {refusal}"),
        }
        Ok(reply)
    }

    pub(crate) fn act(&mut self, act: &Act) {
        let now = self.now;
        match act.clone() {
            Act::Wait(secs) => self.now = now.plus(Duration::from_secs(secs)),
            Act::CreateToken { label, uses, expires_in, lifetime } => {
                let expires = expires_in.map(|secs| now.plus(Duration::from_secs(secs)));
                let expected = self.model.create_token(label.as_ref());
                let command = Command::CreateToken { label: label.clone(), uses, expires, lifetime };
                let reply = self.decide(&command);
                if let Some(Reply::Token { id, secret }) = same(reply, expected.map(drop)) {
                    let token = ModelToken {
                        secret: secret.clone(),
                        label,
                        uses_left: uses,
                        expires,
                        lifetime,
                        revoked: false,
                    };
                    self.model.tokens.insert(id, token);
                    self.tokens.push((id, secret));
                }
            }
            Act::Revoke(index) => {
                let (token, _) = self.token(index);
                let expected = self.model.revoke(&token);
                same(self.decide(&Command::RevokeToken { token, with_nodes: false }), expected);
            }
            Act::Join { token, node: n, name, endpoints } => {
                let secret = token.map(|index| self.token(index).1);
                let expected = self.model.join(secret.as_ref(), node(n), &name, &endpoints, now);
                let reply =
                    self.decide(&Command::Join { secret, node: node(n), name, endpoints, two_keys: true });
                if let Some(Reply::Joined { name }) = same(reply, expected.clone().map(drop)) {
                    assert_eq!(Ok(name), expected);
                }
            }
            Act::SetEndpoints { node: n, endpoints } => {
                let expected = self.model.set_endpoints(node(n), &endpoints);
                same(self.decide(&Command::SetEndpoints { node: node(n), endpoints }), expected);
            }
            Act::Attach { node: n, name, addresses, key: k } => {
                self.attach(node(n), name, addresses, k.map(key));
            }
            Act::Detach { node: n, name } => {
                let command = Command::Detach { node: node(n), name: name.clone() };
                let access = self.model.accesses.contains_key(&name);
                let container = self.model.containers.get(&name);
                if !access && container.is_some_and(|container| container.node == node(n)) {
                    self.model.remove_container(&name, now);
                }
                same(self.decide(&command), Ok(()));
                let again = self.network.decide(&command, now, &mut self.rng).unwrap();
                assert_eq!(again.changes, vec![], "detach is idempotent");
            }
            Act::RemoveNode(n) => {
                let expected = self.model.remove_node(&node(n), now);
                same(self.decide(&Command::RemoveNode { node: node(n) }), expected);
            }
            Act::RemoveContainer(name) => {
                let known = self.model.containers.contains_key(&name);
                self.model.remove_container(&name, now);
                let expected = if known { Ok(()) } else { Err("unknown_container") };
                same(self.decide(&Command::RemoveContainer { name }), expected);
            }
            Act::Reserve { name, addresses } => {
                let expected = self.model.reserve(&name, &addresses, now);
                let command = Command::Reserve { name, addresses };
                let reply = self.decide(&command);
                if let Some(Reply::Reserved(reservation)) = same(reply, expected.clone().map(drop)) {
                    assert_eq!(Ok(reservation.addresses), expected);
                    let again = self.network.decide(&command, now, &mut self.rng).unwrap();
                    assert_eq!(again.changes, vec![], "reserve is idempotent");
                }
            }
            Act::Unreserve(name) => {
                self.model.unreserve(&name, now);
                same(self.decide(&Command::Unreserve { name }), Ok(()));
            }
            Act::CreateAccess { name, node: n, key: k, addresses } => {
                self.create_access(node(n), name, key(k), addresses);
            }
            Act::OfferAccess { name, node: n, key: k, port } => {
                let expected = self.model.offer_access(node(n), &name, (key(k), port));
                let point = AccessPoint { public_key: key(k), port };
                let command = Command::OfferAccess { node: node(n), name, point };
                if same(self.decide(&command), expected).is_some() {
                    let again = self.network.decide(&command, now, &mut self.rng).unwrap();
                    assert_eq!(again.changes, vec![], "an offer is idempotent");
                }
            }
            Act::RevokeAccess(name) => {
                let expected = self.model.revoke_access(&name, now);
                same(self.decide(&Command::RevokeAccess { name }), expected);
            }
            Act::Configure { reserved, rest_secs } => {
                let expected = self.model.configure(reserved.as_deref(), rest_secs.map(|secs| secs * 1000));
                let rest = rest_secs.map(Duration::from_secs);
                let settings = Settings { reserved, rest, ..Settings::default() };
                same(self.decide(&Command::Configure(settings)), expected);
            }
            Act::Collect(nodes) => {
                let absent: Vec<NodeId> = nodes.into_iter().map(node).collect();
                self.model.collect(&absent, now);
                same(self.decide(&Command::Collect { absent }), Ok(()));
            }
            Act::NewEpoch => {
                let before = self.network.head().position();
                same(self.decide(&Command::NewEpoch), Ok(()));
                assert!(self.network.head().position() > before);
            }
        }
    }

    fn attach(&mut self, node: NodeId, name: Name, addresses: Vec<IpAddr>, public_key: Option<PublicKey>) {
        let expected = self.model.attach(node, &name, &addresses, public_key, self.now);
        let command = Command::Attach { node, name: name.clone(), addresses, public_key, port: None };
        let Some(reply) = same(self.decide(&command), expected.clone().map(drop)) else { return };
        let Reply::Attached { container, private_key } = reply else { panic!("another reply: {reply:?}") };
        assert_eq!(Ok(container.addresses().collect()), expected);
        let of_pair = private_key.as_ref().map(PrivateKey::public_key).or(public_key);
        assert_eq!(Some(container.public_key), of_pair, "the private half belongs to the public one");
        assert_eq!(private_key.is_some(), public_key.is_none());
        let again = self.network.decide(&command, self.now, &mut self.rng).unwrap();
        let Reply::Attached { container: same, .. } = again.reply else { panic!("another reply") };
        assert_eq!(
            (same.id, same.address6, same.address4),
            (container.id, container.address6, container.address4)
        );
        if public_key.is_some() {
            assert_eq!(again.changes, vec![], "attach is idempotent");
        }
    }

    fn create_access(&mut self, node: NodeId, name: Name, public_key: PublicKey, addresses: Vec<IpAddr>) {
        let expected = self.model.create_access(&name, node, public_key, &addresses, self.now);
        let command = Command::CreateAccess { name, node, public_key, addresses };
        let Some(reply) = same(self.decide(&command), expected.clone().map(drop)) else { return };
        let Reply::Access(access) = reply else { panic!("another reply: {reply:?}") };
        assert_eq!(Ok(access.record.addresses().collect()), expected);
        let again = self.network.decide(&command, self.now, &mut self.rng).unwrap();
        assert_eq!(again.changes, vec![], "an access point is made once");
    }

    pub(crate) fn check(&mut self) {
        self.check_model();
        self.check_invariants();
        // What a restart finds in the store is the state, down to what it would decide next.
        let rows: Vec<Row> = self.network.rows().collect();
        assert_eq!(rows.iter().map(|row| (row.key(), row.clone())).collect::<BTreeMap<_, _>>(), self.store);
        let restarted = Network::from_rows(self.network.revision(), self.store.values().cloned()).unwrap();
        assert_eq!(restarted, self.network);
        let probe = Command::Reserve { name: name("probe"), addresses: vec![] };
        let next = |network: &Network| {
            let decision = network.decide(&probe, self.now, &mut ChaCha20Rng::seed_from_u64(1));
            decision.map(|decision| decision.changes)
        };
        assert_eq!(next(&restarted), next(&self.network));
        // What members were told is the map, and the hash that was kept up is the one computed anew.
        assert_eq!(self.member.map(), self.network.map());
        assert_eq!(self.network.map().set_hash(NETWORK).digest(), self.network.head().digest);
    }

    fn check_model(&self) {
        let network = &self.network;
        let nodes = network.nodes().map(|n| (n.id, n.name.clone(), n.endpoints.clone(), n.lifetime));
        let expected =
            self.model.nodes.iter().map(|(id, n)| (*id, n.name.clone(), n.endpoints.clone(), n.lifetime));
        assert_eq!(nodes.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
        let containers: BTreeMap<Name, (NodeId, Vec<IpAddr>)> = network
            .containers()
            .map(|c| (c.record.name.clone(), (c.record.node, c.record.addresses().collect())))
            .collect();
        let expected = self.model.containers.iter().map(|(n, c)| (n.clone(), (c.node, c.addresses.clone())));
        assert_eq!(containers, expected.collect());
        let reservations = network.reservations().map(|r| (r.name.clone(), r.addresses.clone()));
        assert_eq!(reservations.collect::<BTreeMap<_, _>>(), self.model.reservations);
        let accesses = network.accesses().map(|access| {
            let record = &access.record;
            let point = access.point.map(|point| (point.public_key, point.port));
            (record.name.clone(), (record.node, record.public_key, record.addresses().collect(), point))
        });
        let expected = self.model.accesses.iter();
        let expected = expected.map(|(n, a)| (n.clone(), (a.node, a.key, a.addresses.clone(), a.point)));
        assert_eq!(
            accesses.collect::<BTreeMap<_, _>>(),
            expected.collect::<BTreeMap<_, (_, _, Vec<_>, _)>>()
        );
        // Those whose rest is over may have been cleared away in the meantime.
        let resting = network.resting().map(|r| (r.address, r.until)).filter(|(_, until)| *until > self.now);
        let expected =
            self.model.resting.iter().map(|(a, u)| (*a, *u)).filter(|(_, until)| *until > self.now);
        assert_eq!(resting.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
        for (id, expected) in &self.model.tokens {
            let token = network.token(id).unwrap();
            let left = token.max_uses.map(|uses| uses - token.used);
            assert_eq!((left, token.revoked), (expected.uses_left, expected.revoked));
            assert_eq!(token.secret_hash, expected.secret.hash());
        }
    }

    fn check_invariants(&self) {
        let records: Vec<&ContainerRecord> = self.network.containers().map(|c| &c.record).collect();
        let distinct = |what: Vec<String>| what.iter().collect::<BTreeSet<_>>().len() == what.len();
        assert!(distinct(records.iter().map(|r| r.public_key.to_string()).collect()));
        assert!(distinct(records.iter().map(|r| r.name.to_string()).collect()));
        let addresses: Vec<IpAddr> = records.iter().flat_map(|r| r.addresses()).collect();
        assert!(distinct(addresses.iter().map(ToString::to_string).collect()));
        assert!(self.network.resting().all(|resting| !addresses.contains(&resting.address)));
        for access in self.network.accesses().map(|access| &access.record) {
            let seen: Vec<_> =
                records.iter().filter(|r| r.id == access.id || r.name == access.name).collect();
            assert!(seen.len() <= 1);
            for seen in seen {
                let (id, node) = (seen.id, seen.node);
                assert_eq!((id, &seen.name, node), (access.id, &access.name, access.node));
                assert_eq!((seen.address6, seen.address4), (access.address6, access.address4));
                assert_ne!(seen.public_key, access.public_key);
            }
        }
        assert!(distinct(self.network.nodes().map(|n| n.name.to_string()).collect()));
        for node in self.network.nodes() {
            let on_it = self.network.containers_of(node.id).map(|c| c.record.id);
            let expected = records.iter().filter(|r| r.node == node.id).map(|r| r.id);
            assert_eq!(on_it.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
        }
    }
}

/// The reply, if both accepted; both have to say the same.
#[track_caller]
fn same(reply: Result<Reply, Rejection>, expected: Result<(), Code>) -> Option<Reply> {
    assert_eq!(reply.as_ref().map(drop).map_err(Rejection::code), expected);
    reply.ok()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn it_decides_as_its_model_does_and_store_state_and_members_agree_after_every_step(
        acts in prop::collection::vec(act(), 1..60),
    ) {
        let mut world = World::new();
        // A token and a node to begin with, so that no run ends before it has begun.
        world.act(&Act::CreateToken { label: None, uses: None, expires_in: None, lifetime: NodeLifetime::Lasting });
        let token = Some(Some(0));
        world.act(&Act::Join { token, node: 0, name: name("n"), endpoints: vec![] });
        for act in &acts {
            world.act(act);
            world.check();
        }
    }
}
