//! The change of a container's pair: whatever members apply when, no key comes into use before all that count know it, none
//! goes out of use while one needs it, and every change comes to its end.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;
use znet_core::controller::{
    AWAY_PATIENCE, Command, Elsewhere, MAX_NAMED, MAX_ROTATIONS, MemberView, Network, NewNetwork,
    NodeLifetime, OTHERS_HEAR_WITHIN, Rejection, Reply, Rotate, Rotations, SETTLE_AFTER, Settings,
};
use znet_core::id::{NetworkId, NodeId, Revision};
use znet_core::key::{PrivateKey, PublicKey};
use znet_core::map::{ContainerRecord, Record};
use znet_core::name::Name;
use znet_core::pair::{Held, PairStep, step};
use znet_core::time::Timestamp;

const NODES: u8 = 3;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn node(n: u8) -> NodeId {
    NodeId::from_bytes([n + 1; 32])
}

fn key(n: u32) -> PublicKey {
    let mut bytes = [9; 32];
    bytes[..4].copy_from_slice(&n.to_be_bytes());
    PrivateKey::from_bytes(bytes).public_key()
}

/// A network of three nodes, its rotations, and what members have applied.
struct World {
    network: Network,
    rotations: Rotations,
    rng: ChaCha20Rng,
    now: Timestamp,
    members: BTreeMap<NodeId, MemberView>,
    elsewhere: Elsewhere,
}

impl World {
    fn new(containers: usize, key_lifetime: Option<Duration>) -> Self {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let now = Timestamp::from_millis(1_000_000);
        let new = NewNetwork {
            name: name("acme"),
            prefixes: vec!["10.77.0.0/16".parse().unwrap()],
            settings: Settings { key_lifetime: Some(key_lifetime), ..Settings::default() },
        };
        let changes = Network::create(NetworkId::from_bytes([7; 16]), &new, now, &mut rng).unwrap();
        let rows = changes.into_iter().filter_map(|change| match change {
            znet_core::controller::StateChange::Put(row) => Some(row),
            znet_core::controller::StateChange::Remove(_) => None,
        });
        let network = Network::from_rows(Revision::new(1), rows).unwrap();
        let rotations = Rotations::new(now);
        let (members, elsewhere) = (BTreeMap::new(), Elsewhere::default());
        let mut world = Self { network, rotations, rng, now, members, elsewhere };
        let token =
            Command::CreateToken { label: None, uses: None, expires: None, lifetime: NodeLifetime::Lasting };
        let Reply::Token { secret, .. } = world.decide(&token).unwrap() else { panic!("no token") };
        for n in 0..NODES {
            let join = Command::Join {
                secret: Some(secret.clone()),
                node: node(n),
                name: name(&format!("node-{n}")),
                endpoints: vec![],
                two_keys: true,
            };
            world.decide(&join).unwrap();
        }
        for n in 0..containers {
            world.attach(n, None);
        }
        (0..NODES).for_each(|n| world.applies(n));
        world
    }

    fn decide(&mut self, command: &Command) -> Result<Reply, Rejection> {
        let decision = self.network.decide(command, self.now, &mut self.rng)?;
        if !decision.changes.is_empty() {
            self.network.apply(&decision.changes);
            let rows: Vec<_> = self.network.rows().collect();
            let again = Network::from_rows(self.network.revision(), rows).unwrap();
            assert!(again == self.network, "the state follows from its rows");
        }
        Ok(decision.reply)
    }

    fn attach(&mut self, n: usize, public_key: Option<PublicKey>) {
        let attach = Command::Attach {
            node: node((n % usize::from(NODES)) as u8),
            name: name(&format!("c{n}")),
            addresses: vec![],
            public_key,
            port: None,
        };
        self.decide(&attach).unwrap();
    }

    fn record(&self, n: usize) -> ContainerRecord {
        self.network.container_by_name(&name(&format!("c{n}"))).unwrap().record.clone()
    }

    fn rotate(&mut self, which: Rotate) -> Result<Reply, Rejection> {
        self.decide(&Command::RotateKeys { which })
    }

    fn offer(&mut self, n: usize, public_key: PublicKey) -> Result<Reply, Rejection> {
        let on = node((n % usize::from(NODES)) as u8);
        self.decide(&Command::OfferKey { node: on, name: name(&format!("c{n}")), public_key })
    }

    fn applies(&mut self, n: u8) {
        let view = MemberView { live: true, seen: Some(self.now), applied: Some(self.network.revision()) };
        self.members.insert(node(n), view);
    }

    fn goes_away(&mut self, n: u8) {
        self.members.get_mut(&node(n)).unwrap().live = false;
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now.plus(time);
    }

    /// Another controller tells of its members.
    fn told(&mut self, members: &[(u8, Revision)]) {
        let members = members.iter().map(|(n, applied)| (node(*n), *applied));
        self.elsewhere.hear(&self.network, members, self.now);
    }

    /// What a tick of the controller does; whether that was anything.
    fn tick(&mut self) -> bool {
        let (members, elsewhere) = (self.members.clone(), self.elsewhere.clone());
        let view = |node: &NodeId| elsewhere.view(node, members.get(node).copied().unwrap_or_default());
        let Some(command) = self.rotations.next(&self.network, view, self.now) else { return false };
        self.decide(&command).unwrap();
        true
    }
}

#[test]
fn a_pair_is_changed_in_stages_and_each_waits_for_those_who_live() {
    let mut world = World::new(3, None);
    let first = world.record(0);
    world.rotate(Rotate::Named(vec![name("c0")])).unwrap();
    assert_eq!(world.record(0), ContainerRecord { rekey: true, ..first.clone() });
    assert!(!world.tick(), "there is no key that could come into use");
    world.offer(0, key(1)).unwrap();
    world.tick();
    let offered = ContainerRecord { also_key: Some(key(1)), rekey: true, ..first.clone() };
    assert_eq!(world.record(0), offered, "nobody knows it yet");
    world.applies(0);
    world.applies(1);
    assert!(!world.tick(), "one does not know it yet");
    world.applies(2);
    world.pass(Duration::from_secs(5));
    world.tick();
    let promoted = ContainerRecord { public_key: key(1), also_key: Some(first.public_key), ..first.clone() };
    assert_eq!(world.record(0), promoted);
    let container = world.network.container_by_name(&name("c0")).unwrap();
    assert_eq!(container.keyed(), world.now);
    world.tick();
    (0..NODES).for_each(|n| world.applies(n));
    world.pass(SETTLE_AFTER - Duration::from_millis(1));
    assert!(!world.tick(), "handshakes may still be under way");
    world.pass(Duration::from_millis(1));
    assert!(world.tick());
    assert_eq!(world.record(0), ContainerRecord { public_key: key(1), ..first });
    assert!(!world.tick() && world.network.rotations() == 0);
}

#[test]
fn who_stays_away_holds_a_change_up_for_a_time_only() {
    let mut world = World::new(3, None);
    world.goes_away(2);
    world.rotate(Rotate::Named(vec![name("c0")])).unwrap();
    world.offer(0, key(1)).unwrap();
    world.tick();
    world.applies(0);
    world.applies(1);
    world.pass(AWAY_PATIENCE - Duration::from_millis(1));
    assert!(!world.tick(), "it may come back");
    world.pass(Duration::from_millis(1));
    assert!(world.tick());
    assert_eq!(world.record(0).public_key, key(1));
    // A node without containers has no links that could break.
    let mut world = World::new(2, None);
    world.goes_away(2);
    world.rotate(Rotate::Named(vec![name("c0")])).unwrap();
    world.offer(0, key(1)).unwrap();
    world.tick();
    world.applies(0);
    world.applies(1);
    assert!(world.tick());
    assert_eq!(world.record(0).public_key, key(1));
}

#[test]
fn a_controller_that_is_started_anew_waits_for_members_that_it_has_not_heard_of() {
    let mut world = World::new(3, None);
    world.rotate(Rotate::Named(vec![name("c0")])).unwrap();
    world.offer(0, key(1)).unwrap();
    world.members.clear();
    world.rotations = Rotations::new(world.now);
    assert!(!world.tick());
    (0..NODES).for_each(|n| world.applies(n));
    assert!(world.tick());
    assert_eq!(world.record(0).public_key, key(1));
}

#[test]
fn where_others_serve_the_network_their_agents_get_time_to_hear_of_a_stage() {
    let mut world = World::new(3, None);
    world.pass(AWAY_PATIENCE);
    world.rotations = Rotations::new(world.now).among_others();
    // The third is connected to another controller, and was never seen here.
    world.members.remove(&node(2));
    world.pass(AWAY_PATIENCE);
    world.rotate(Rotate::Named(vec![name("c0")])).unwrap();
    world.offer(0, key(1)).unwrap();
    for n in [0, 1] {
        world.applies(n);
    }
    assert!(!world.tick());
    world.pass(OTHERS_HEAR_WITHIN - Duration::from_millis(1));
    assert!(!world.tick());
    world.pass(Duration::from_millis(1));
    assert!(world.tick());
    assert_eq!(world.record(0).public_key, key(1));
}

#[test]
fn what_another_controller_tells_of_its_members_ends_a_stage_at_once() {
    let mut world = World::new(3, None);
    let before = world.network.revision();
    // Just started, and never seen by the third, which is connected to another controller.
    world.rotations = Rotations::new(world.now).among_others();
    world.members.remove(&node(2));
    world.rotate(Rotate::Named(vec![name("c0")])).unwrap();
    world.offer(0, key(1)).unwrap();
    for n in [0, 1] {
        world.applies(n);
    }
    assert!(!world.tick(), "nobody knows anything of the third");
    world.told(&[(2, before)]);
    world.pass(OTHERS_HEAR_WITHIN);
    assert!(!world.tick(), "it does not know the next key");
    world.told(&[(2, world.network.revision())]);
    assert!(world.tick());
    assert_eq!(world.record(0).public_key, key(1));
    for n in [0, 1] {
        world.applies(n);
    }
    world.tick();
    world.told(&[(2, world.network.revision())]);
    world.pass(SETTLE_AFTER);
    assert!(world.tick() && world.network.rotations() == 0);
}

#[test]
fn a_member_that_no_controller_has_any_more_counts_from_when_one_told_of_it_last() {
    let mut world = World::new(3, None);
    world.rotations = Rotations::new(world.now).among_others();
    world.members.remove(&node(2));
    world.pass(AWAY_PATIENCE);
    for n in [0, 1] {
        world.applies(n);
    }
    world.told(&[(2, world.network.revision())]);
    world.rotate(Rotate::Named(vec![name("c0")])).unwrap();
    world.offer(0, key(1)).unwrap();
    world.tick();
    for n in [0, 1] {
        world.applies(n);
    }
    world.pass(AWAY_PATIENCE - Duration::from_millis(1));
    world.told(&[]);
    assert!(!world.tick(), "it may come back");
    world.pass(Duration::from_millis(1));
    assert!(world.tick());
    assert_eq!(world.record(0).public_key, key(1));
    // What it says itself when it has come here counts, whatever was told of it.
    let mut world = World::new(3, None);
    world.rotate(Rotate::Named(vec![name("c0")])).unwrap();
    world.offer(0, key(1)).unwrap();
    world.tick();
    for n in [0, 1] {
        world.applies(n);
    }
    world.told(&[(2, Revision::new(1_000))]);
    assert!(!world.tick(), "it has said here what it has applied");
}

#[test]
fn both_keys_are_the_containers_and_nobody_elses() {
    let mut world = World::new(3, None);
    world.rotate(Rotate::Node(node(0))).unwrap();
    world.rotate(Rotate::Node(node(1))).unwrap();
    world.offer(0, key(1)).unwrap();
    let taken = Rejection::KeyTaken { holder: name("c0") };
    assert_eq!(world.offer(1, key(1)).unwrap_err(), taken, "the next key");
    assert_eq!(world.offer(1, world.record(0).public_key).unwrap_err(), taken, "the key in use");
    let attach = Command::Attach {
        node: node(2),
        name: name("d"),
        addresses: vec![],
        public_key: Some(key(1)),
        port: None,
    };
    assert_eq!(world.decide(&attach).unwrap_err(), taken);
    let detach = Command::Detach { node: node(0), name: name("c0") };
    world.decide(&detach).unwrap();
    assert!(world.network.container_by_key(&key(1)).is_none());
    world.offer(1, key(1)).unwrap();
}

#[test]
fn what_is_asked_for_again_changes_nothing_and_what_nobody_asked_for_is_refused() {
    let mut world = World::new(3, None);
    assert_eq!(world.offer(0, key(1)).unwrap_err().code(), "not_rotating");
    assert_eq!(world.rotate(Rotate::Named(vec![name("x")])).unwrap_err().code(), "unknown_container");
    assert_eq!(world.rotate(Rotate::Node(node(9))).unwrap_err().code(), "unknown_node");
    let many = vec![name("c0"); MAX_NAMED + 1];
    assert_eq!(world.rotate(Rotate::Named(many)).unwrap_err().code(), "too_many_named");
    let short = Settings { key_lifetime: Some(Some(Duration::from_secs(59))), ..Settings::default() };
    let short = Command::Configure(short);
    assert_eq!(world.decide(&short).unwrap_err().code(), "lifetime_too_short");
    world.rotate(Rotate::Named(vec![name("c0"), name("c0")])).unwrap();
    let asked = world.network.revision();
    world.rotate(Rotate::Named(vec![name("c0")])).unwrap();
    assert_eq!(world.network.revision(), asked);
    world.offer(0, key(1)).unwrap();
    let offered = world.network.revision();
    world.offer(0, key(1)).unwrap();
    world.rotate(Rotate::Node(node(0))).unwrap();
    assert_eq!(world.network.revision(), offered);
    // A node that lost the new pair before it came into use makes another one.
    world.offer(0, key(2)).unwrap();
    assert_eq!(world.record(0).also_key, Some(key(2)));
    // And one that lost everything is given a new pair at once.
    world.attach(0, None);
    assert!(!world.record(0).is_rotating());
}

#[test]
fn an_attach_that_is_repeated_with_the_same_key_lets_a_change_go_on() {
    let mut world = World::new(0, None);
    world.attach(0, Some(key(1)));
    world.rotate(Rotate::Named(vec![name("c0")])).unwrap();
    world.offer(0, key(2)).unwrap();
    let before = world.record(0);
    world.attach(0, Some(key(1)));
    assert_eq!(world.record(0), before);
    world.attach(0, Some(key(2)));
    assert_eq!((world.record(0).public_key, world.record(0).is_rotating()), (key(2), false));
}

#[test]
fn all_and_the_aged_are_changed_some_at_a_time_and_only_where_somebody_lives() {
    let lifetime = Duration::from_secs(3_600);
    let mut world = World::new(MAX_ROTATIONS + 44, Some(lifetime));
    world.goes_away(2);
    world.pass(lifetime - Duration::from_millis(1));
    assert!(!world.tick(), "they are not old enough");
    world.pass(Duration::from_millis(1));
    for n in [0, 1] {
        world.applies(n);
    }
    assert!(world.tick());
    // A third of them is on the node that is away.
    assert_eq!(world.network.rotations(), (0..MAX_ROTATIONS + 44).filter(|n| n % 3 != 2).count());
    let mut world = World::new(MAX_ROTATIONS + 44, None);
    world.pass(Duration::from_secs(1));
    world.rotate(Rotate::All).unwrap();
    let mut next = 0;
    for _ in 0..40 {
        world.tick();
        let rotating: Vec<(NodeId, ContainerRecord)> =
            world.network.rotating().map(|c| (c.record.node, c.record.clone())).collect();
        assert!(rotating.len() <= MAX_ROTATIONS);
        for (node, record) in rotating.into_iter().filter(|(_, record)| record.also_key.is_none()) {
            next += 1;
            let offer = Command::OfferKey { node, name: record.name, public_key: key(next) };
            world.decide(&offer).unwrap();
        }
        (0..NODES).for_each(|n| world.applies(n));
        world.pass(SETTLE_AFTER);
    }
    assert_eq!((world.network.rotations(), next as usize), (0, MAX_ROTATIONS + 44), "each once");
}

#[test]
fn a_record_that_is_not_changed_has_the_bytes_and_the_text_that_it_always_had() {
    let world = World::new(1, None);
    let record = world.record(0);
    let json = serde_json::to_value(&record).unwrap();
    assert!(json.get("also_key").is_none() && json.get("rekey").is_none(), "{json}");
    assert_eq!(serde_json::from_value::<ContainerRecord>(json).unwrap(), record);
    let bytes = |record: &ContainerRecord| Record::Container(record.clone()).canonical_bytes();
    // Kind, number, name with its length, node, key, addresses.
    assert_eq!(bytes(&record).len(), 1 + 8 + (8 + 2) + 32 + 32 + 16 + 1 + 4);
    let asked = ContainerRecord { rekey: true, ..record.clone() };
    let offered = ContainerRecord { also_key: Some(key(1)), ..asked.clone() };
    let promoted = ContainerRecord { rekey: false, ..offered.clone() };
    let all = [record, asked, offered, promoted].map(|record| bytes(&record));
    let distinct: std::collections::BTreeSet<_> = all.iter().collect();
    assert_eq!(distinct.len(), 4);
}

/// A node that follows its container's record, with what it has on its device.
fn follow(held: &mut Held, record: &ContainerRecord, fresh: &mut u32) -> Option<PublicKey> {
    match step(record, *held) {
        PairStep::Keep => None,
        PairStep::Make => {
            *fresh += 1;
            (held.also, held.next) = (Some(key(*fresh)), true);
            held.also
        }
        PairStep::Offer(also) => Some(also),
        PairStep::Swap { keep } => {
            let former = held.key;
            held.key = held.also.unwrap();
            (held.also, held.next) = (keep.then_some(former), false);
            None
        }
        PairStep::Drop => {
            (held.also, held.next) = (None, false);
            None
        }
        PairStep::Reclaim => panic!("the pair that others use is lost"),
    }
}

#[derive(Clone, Debug)]
enum Event {
    Tick,
    Pass(u64),
    Apply(u8),
    Away(u8),
    Rotate,
    Restart,
    /// The node looks at an older revision of the record than is current, and again.
    Look,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => Just(Event::Tick),
        3 => (0u64..20).prop_map(Event::Pass),
        6 => (0u8..NODES).prop_map(Event::Apply),
        1 => (0u8..NODES).prop_map(Event::Away),
        1 => Just(Event::Rotate),
        1 => Just(Event::Restart),
        6 => Just(Event::Look),
    ]
}

proptest! {
    /// Members apply maps late, stay away and come back, the controller is started anew: at every moment any two live members
    /// that apply what they are sent have keys with which each accepts what the other uses.
    #[test]
    fn whatever_is_applied_when_the_keys_in_use_are_keys_that_all_accept(
        events in prop::collection::vec(event(), 0..120)
    ) {
        let mut world = World::new(3, None);
        let mut fresh = 100;
        let mut held = Held { key: world.record(0).public_key, also: None, next: false };
        // What each member believes of container 0; its own node is the first.
        let mut seen = vec![world.record(0); usize::from(NODES)];
        let mut away = [false; NODES as usize];
        for event in events {
            match event {
                Event::Tick => { world.tick(); }
                Event::Pass(seconds) => world.pass(Duration::from_secs(seconds)),
                Event::Apply(n) => {
                    seen[usize::from(n)] = world.record(0);
                    world.applies(n);
                    // Followed before the acknowledgement, which is of this revision, goes out.
                    if n == 0 && let Some(offer) = follow(&mut held, &seen[0], &mut fresh) {
                        // The record that it looked at may be an older one.
                        let _ = world.offer(0, offer);
                    }
                    away[usize::from(n)] = false;
                }
                Event::Away(n) => {
                    // Shorter than the patience in all: 120 events of 20 seconds are longer, so they are seen now.
                    away[usize::from(n)] = true;
                    world.members.get_mut(&node(n)).unwrap().seen = Some(world.now);
                    world.goes_away(n);
                }
                Event::Rotate => { world.rotate(Rotate::Named(vec![name("c0")])).unwrap(); }
                Event::Restart => world.rotations = Rotations::new(world.now),
                Event::Look => {
                    if let Some(offer) = follow(&mut held, &seen[0], &mut fresh) {
                        let _ = world.offer(0, offer);
                    }
                }
            }
            for (n, believed) in seen.iter().enumerate() {
                let long_away = away[n] && {
                    let view = world.members[&node(n as u8)];
                    world.now >= view.seen.unwrap().plus(AWAY_PATIENCE)
                };
                let own_long_away = away[0] && {
                    let view = world.members[&node(0)];
                    world.now >= view.seen.unwrap().plus(AWAY_PATIENCE)
                };
                if long_away || own_long_away {
                    continue;
                }
                prop_assert!(
                    believed.keys().any(|key| key == held.key),
                    "node {} accepts {:?}, the container uses {:?}", n, believed, held
                );
                prop_assert!(
                    held.key == believed.public_key || held.also == Some(believed.public_key),
                    "node {} uses {:?}, the container accepts {:?}", n, believed, held
                );
            }
        }
        // Everybody is back: a change that is under way comes to its end.
        for _ in 0..6 {
            for n in 0..NODES {
                seen[usize::from(n)] = world.record(0);
                if n == 0 && let Some(offer) = follow(&mut held, &seen[0], &mut fresh) {
                    world.offer(0, offer).unwrap();
                }
                world.applies(n);
            }
            world.tick();
            world.pass(SETTLE_AFTER);
            (0..NODES).for_each(|n| world.applies(n));
        }
        let record = world.record(0);
        follow(&mut held, &record, &mut fresh);
        prop_assert!(!record.is_rotating());
        prop_assert_eq!(held, Held { key: record.public_key, also: None, next: false });
    }
}

/// A controller of several, with the members that are connected to it and what it told last of them.
struct Site {
    rotations: Rotations,
    members: BTreeMap<NodeId, MemberView>,
    elsewhere: Elsewhere,
    tells: Vec<(NodeId, Revision)>,
}

/// A network that two controllers serve.
struct Shared {
    world: World,
    sites: [Site; 2],
    /// To which of them each member is connected.
    at: [usize; NODES as usize],
    /// What each has applied, and what it believes of container 0 then.
    applied: [(Revision, ContainerRecord); NODES as usize],
}

impl Shared {
    fn new() -> Self {
        let world = World::new(3, None);
        let site = || Site {
            rotations: Rotations::new(world.now).among_others(),
            members: BTreeMap::new(),
            elsewhere: Elsewhere::default(),
            tells: Vec::new(),
        };
        let (sites, applied) = ([site(), site()], (world.network.revision(), world.record(0)));
        let mut shared = Self { world, sites, at: [0, 1, 1], applied: [0; 3].map(|_: u8| applied.clone()) };
        (0..NODES).for_each(|n| shared.says(n));
        shared
    }

    /// A member says to its controller what it has applied.
    fn says(&mut self, n: u8) {
        let applied = Some(self.applied[usize::from(n)].0);
        let view = MemberView { live: true, seen: Some(self.world.now), applied };
        self.sites[self.at[usize::from(n)]].members.insert(node(n), view);
    }

    fn applies(&mut self, n: u8) {
        self.applied[usize::from(n)] = (self.world.network.revision(), self.world.record(0));
        self.says(n);
    }

    /// It goes to the other controller, which may not be noticed at once where it was.
    fn moves(&mut self, n: u8, noticed: bool) {
        let view = self.sites[self.at[usize::from(n)]].members.get_mut(&node(n)).unwrap();
        view.live = !noticed;
        self.at[usize::from(n)] = 1 - self.at[usize::from(n)];
        self.says(n);
    }

    fn tell(&mut self) {
        for site in &mut self.sites {
            let live = site.members.iter().filter(|(_, view)| view.live);
            let floor = live.clone().filter_map(|(_, view)| view.applied).min();
            site.tells = live.filter_map(|(node, _)| Some((*node, floor?))).collect();
        }
    }

    /// As ticks do that come every second.
    fn pass(&mut self, time: Duration) {
        self.tell();
        self.world.pass(time);
        for site in &mut self.sites {
            // Who went away is noticed by then.
            site.members.retain(|_, view| view.live);
        }
        for n in 0..NODES {
            let elsewhere = 1 - self.at[usize::from(n)];
            if let Some(view) = self.sites[elsewhere].members.get_mut(&node(n)) {
                view.live = false;
            }
            self.says(n);
        }
    }

    fn tick(&mut self, at: usize) {
        self.tell();
        let tells = self.sites[1 - at].tells.clone();
        let (site, world) = (&mut self.sites[at], &mut self.world);
        site.elsewhere.hear(&world.network, tells, world.now);
        let (members, elsewhere) = (&site.members, &site.elsewhere);
        let view = |node: &NodeId| elsewhere.view(node, members.get(node).copied().unwrap_or_default());
        if let Some(command) = site.rotations.next(&world.network, view, world.now) {
            world.decide(&command).unwrap();
        }
    }
}

proptest! {
    /// Two controllers lead one change, each with members of its own that apply late and move over: no key comes into use before
    /// all know it, and it takes no time that nobody needs.
    #[test]
    fn of_two_controllers_neither_leads_a_change_on_before_the_others_members_have_heard_of_it(
        events in prop::collection::vec((0u8..8, 0u8..NODES, 0u64..20), 0..120)
    ) {
        let mut shared = Shared::new();
        let mut fresh = 100;
        let mut held = Held { key: shared.world.record(0).public_key, also: None, next: false };
        for (what, n, seconds) in events {
            match what {
                0 => shared.tick(usize::from(n % 2)),
                1 => shared.pass(Duration::from_secs(seconds)),
                2 => { shared.world.rotate(Rotate::Named(vec![name("c0")])).unwrap(); }
                3 => shared.moves(n, seconds % 2 == 0),
                4 if seconds == 0 => {
                    let rotations = Rotations::new(shared.world.now).among_others();
                    let site = &mut shared.sites[usize::from(n % 2)];
                    (site.rotations, site.elsewhere) = (rotations, Elsewhere::default());
                    site.members.clear();
                    (0..NODES).for_each(|n| shared.says(n));
                }
                _ => {
                    shared.applies(n);
                    if n == 0 && let Some(offer) = follow(&mut held, &shared.applied[0].1, &mut fresh) {
                        let _ = shared.world.offer(0, offer);
                    }
                }
            }
            for (n, (_, believed)) in shared.applied.iter().enumerate() {
                prop_assert!(
                    believed.keys().any(|key| key == held.key),
                    "node {} accepts {:?}, the container uses {:?}", n, believed, held
                );
                prop_assert!(
                    held.key == believed.public_key || held.also == Some(believed.public_key),
                    "node {} uses {:?}, the container accepts {:?}", n, believed, held
                );
            }
        }
        let begun = shared.world.now;
        for _ in 0..10 {
            for n in 0..NODES {
                shared.applies(n);
                if n == 0 && let Some(offer) = follow(&mut held, &shared.applied[0].1, &mut fresh) {
                    shared.world.offer(0, offer).unwrap();
                }
                shared.applies(n);
            }
            shared.pass(Duration::from_secs(5));
            (0..2).for_each(|at| shared.tick(at));
        }
        prop_assert!(!shared.world.record(0).is_rotating());
        prop_assert!(shared.world.now <= begun.plus(Duration::from_secs(50)));
    }
}

#[test]
fn a_former_key_that_is_still_on_the_device_is_not_offered_as_the_next_one() {
    let world = World::new(1, None);
    let record = ContainerRecord { rekey: true, ..world.record(0) };
    let held = |next| Held { key: record.public_key, also: Some(key(1)), next };
    assert_eq!(step(&record, held(false)), PairStep::Make);
    assert_eq!(step(&record, held(true)), PairStep::Offer(key(1)));
    let offered = ContainerRecord { also_key: Some(key(1)), ..record };
    assert_eq!(step(&offered, held(true)), PairStep::Keep);
    let lost = Held { key: key(7), also: None, next: false };
    assert_eq!(step(&offered, lost), PairStep::Reclaim);
    let promoted =
        |public_key, also_key| ContainerRecord { public_key, also_key, rekey: false, ..offered.clone() };
    let next = Held { key: offered.public_key, also: Some(key(1)), next: true };
    assert_eq!(step(&promoted(key(1), Some(offered.public_key)), next), PairStep::Swap { keep: true });
    let swapped = Held { key: key(1), also: Some(offered.public_key), next: false };
    assert_eq!(step(&promoted(offered.public_key, None), swapped), PairStep::Reclaim);
}

#[test]
fn as_long_as_a_member_cannot_do_with_two_keys_no_change_is_begun() {
    let lifetime = Duration::from_secs(3_600);
    let mut world = World::new(3, Some(lifetime));
    let says = |world: &mut World, two_keys: bool| {
        let resumed =
            Command::Join { secret: None, node: node(1), name: name("x"), endpoints: vec![], two_keys };
        world.decide(&resumed).unwrap();
        (0..NODES).for_each(|n| world.applies(n));
    };
    says(&mut world, false);
    for which in [Rotate::All, Rotate::Node(node(0)), Rotate::Named(vec![name("c0")])] {
        let refused = world.rotate(which).unwrap_err();
        assert_eq!(refused, Rejection::OneKeyOnly { nodes: vec![name("node-1")] });
        assert!(refused.to_string().contains("node-1"), "{refused}");
    }
    world.pass(lifetime);
    assert!(!world.tick(), "nor by age");
    assert_eq!(world.rotations.held_up_by(), [name("node-1")]);
    says(&mut world, true);
    assert!(world.tick() && world.record(0).rekey);
}
