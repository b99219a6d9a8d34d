//! Several controllers on one store in etcd, and the way there and back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;
#[path = "common/etcd.rs"]
mod server;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use server::Etcd;
use znet_core::controller::{Command, NewNetwork, NodeLifetime, Rejection, Reply, Settings};
use znet_core::id::{NetworkId, NodeId};
use znet_core::map::Head;
use znet_core::time::Timestamp;
use znet_ctl::actor::{Actor, Role, Scope};
use znet_ctl::clock::Clock;
use znet_ctl::hub::{Hub, NetworkError};
use znet_ctl::keyring::Keyring;
use znet_ctl::keys::{DataDir, KeysError};
use znet_ctl::migrate::{MigrateError, Side, migrate};
use znet_ctl::network::{CommandError, Hosted};
use znet_ctl::store::{Location, Store};

const SOON: Duration = Duration::from_secs(20);
/// Within which time a node that stays away is collected: members have a while to answer.
const COLLECTED: Duration = Duration::from_secs(45);
const WHO: Actor = Actor::Local { uid: 0 };
const A: NodeId = NodeId::from_bytes([1; 32]);
const B: NodeId = NodeId::from_bytes([2; 32]);
const C: NodeId = NodeId::from_bytes([3; 32]);

/// A controller without its sockets, whose clock can be set.
struct Controller {
    hub: Arc<Hub>,
    now: Arc<AtomicU64>,
}

impl Controller {
    async fn on_etcd(etcd: &Etcd, data: &Path, key: &Path) -> Result<Self, KeysError> {
        let store: Arc<dyn Store> = Arc::new(etcd.store("znet").await);
        let keys = Keyring::open(DataDir::open(data).unwrap(), &store, Some(key)).await?;
        Ok(Self::start(keys, store).await)
    }

    async fn two_on_etcd(etcd: &Etcd, dir: &Path, key: &Path) -> [Self; 2] {
        let one = Self::on_etcd(etcd, &dir.join("1"), key).await.unwrap();
        [one, Self::on_etcd(etcd, &dir.join("2"), key).await.unwrap()]
    }

    async fn start(keys: Keyring, store: Arc<dyn Store>) -> Self {
        let now = Arc::new(AtomicU64::new(1_800_000_000_000));
        let told = now.clone();
        let clock = Clock::new(move || Timestamp::from_millis(told.load(Ordering::Relaxed)));
        let hub = Hub::start(keys, store, clock, vec!["192.0.2.1:7443".to_owned()]).await.unwrap();
        Self { hub, now }
    }

    async fn create(&self, name: &str) -> Arc<Hosted> {
        let new = NewNetwork { name: name.parse().unwrap(), prefixes: vec![], settings: Settings::default() };
        self.hub.create(&new, WHO).await.unwrap()
    }

    async fn find(&self, name: &str) -> Arc<Hosted> {
        let hosted = until("the network to be known", || self.hub.find(name).ok()).await;
        // It is known before it is loaded.
        tokio::time::timeout(SOON, hosted.started()).await.expect("the network to be loaded");
        hosted
    }
}

async fn until<T>(what: &str, ask: impl Fn() -> Option<T>) -> T {
    within(SOON, what, ask).await
}

async fn within<T>(patience: Duration, what: &str, ask: impl Fn() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "gave up waiting for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn join(hosted: &Hosted, node: NodeId, lifetime: NodeLifetime) {
    let token = Command::CreateToken { label: None, uses: None, expires: None, lifetime };
    let Reply::Token { secret, .. } = hosted.execute(token, WHO).await.unwrap().reply else { panic!() };
    let name = format!("n{}", node.as_bytes()[0]).parse().unwrap();
    let join = Command::Join { secret: Some(secret), node, name, endpoints: vec![], two_keys: true };
    hosted.execute(join, Actor::Node(node)).await.unwrap();
}

async fn attach(hosted: &Hosted, node: NodeId, name: &str) {
    let command = Command::Attach {
        node,
        name: name.parse().unwrap(),
        addresses: vec![],
        public_key: None,
        port: None,
    };
    hosted.execute(command, Actor::Node(node)).await.unwrap();
}

fn head(hosted: &Hosted) -> Option<Head> {
    hosted.read(|_, signed| signed.head).ok()
}

fn members(hosted: &Hosted) -> Vec<NodeId> {
    hosted.read(|network, _| network.nodes().map(|node| node.id).collect()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_controllers_decide_on_one_state_and_sign_with_one_key() {
    let (etcd, dir) = (Etcd::start(), common::directory());
    let key = dir.path().join("store.key");
    let [one, two] = Controller::two_on_etcd(&etcd, dir.path(), &key).await;
    assert_eq!(one.hub.pin(), two.hub.pin());
    let acme = one.create("acme").await;
    let other = two.find("acme").await;
    assert_eq!(acme.verifying_key(), other.verifying_key());
    join(&acme, A, NodeLifetime::Lasting).await;
    until("the join to be heard of", || members(&other).contains(&A).then_some(())).await;
    // Both at the same time, many times: each is decided on what the other committed.
    let attaching = |hosted: Arc<Hosted>, of: &'static str| async move {
        for n in 0..40 {
            attach(&hosted, A, &format!("{of}-{n}")).await;
        }
    };
    tokio::join!(attaching(acme.clone(), "one"), attaching(other.clone(), "two"));
    until("both to be at the same revision", || (head(&acme)? == head(&other)?).then_some(())).await;
    let containers = acme.read(|network, _| network.containers().len()).unwrap();
    assert_eq!(containers, 80);
    // An operator that one makes may act at the other, until that revokes it.
    let (operator, token) =
        one.hub.create_operator(String::new(), Role::Admin, Scope::All, WHO).await.unwrap();
    until("the operator to be known", || two.hub.operator(&token)).await;
    assert!(two.hub.revoke_operator(operator.id, WHO).await.unwrap());
    until("the operator to be gone", || one.hub.operator(&token).is_none().then_some(())).await;
    two.hub.delete(&other, WHO).await.unwrap();
    until("the network to be gone", || one.hub.find("acme").is_err().then_some(())).await;
    // Without the key file nobody joins them.
    let stranger = Controller::on_etcd(&etcd, &dir.path().join("3"), &dir.path().join("other.key")).await;
    assert!(matches!(stranger.err(), Some(KeysError::StoreKey { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_no_change_is_said_of_what_another_controller_committed_a_moment_ago() {
    let (etcd, dir) = (Etcd::start(), common::directory());
    let key = dir.path().join("store.key");
    let [one, two] = Controller::two_on_etcd(&etcd, dir.path(), &key).await;
    let acme = one.create("acme").await;
    let other = two.find("acme").await;
    join(&acme, A, NodeLifetime::Lasting).await;
    // As an agent does whose controller dies between the two calls.
    for n in 0..60 {
        let name = format!("c{n}");
        attach(&acme, A, &name).await;
        let detach = Command::Detach { node: A, name: name.parse().unwrap() };
        assert!(other.execute(detach, Actor::Node(A)).await.unwrap().changed, "{name} is left behind");
    }
    until("both to be at the same revision", || (head(&acme)? == head(&other)?).then_some(())).await;
    assert_eq!(acme.read(|network, _| network.containers().len()).unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_member_is_told_that_it_is_none_by_a_controller_that_has_not_heard_of_it() {
    let (mut etcd, dir) = (Etcd::start(), common::directory());
    let key = dir.path().join("store.key");
    let [one, two] = Controller::two_on_etcd(&etcd, dir.path(), &key).await;
    let resume = |node: NodeId| Command::Join {
        secret: None,
        node,
        name: "n1".parse().unwrap(),
        endpoints: vec![],
        two_keys: true,
    };
    let mut last = None;
    for n in 0..20 {
        // At the other controller in the same moment: sooner than anything could be heard of it.
        let created = one.create(&format!("net{n}")).await;
        let there = two.hub.network_of_agent(created.id()).await.unwrap();
        join(&created, A, NodeLifetime::Lasting).await;
        there.execute(resume(A), Actor::Node(A)).await.unwrap();
        last = Some(there);
    }
    let there = last.unwrap();
    let stranger = there.execute(resume(B), Actor::Node(B)).await;
    assert!(matches!(stranger, Err(CommandError::Rejected(Rejection::UnknownNode { .. }))), "{stranger:?}");
    let nowhere = two.hub.network_of_agent(NetworkId::from_bytes([9; 16])).await;
    assert!(matches!(nowhere, Err(NetworkError::Unknown { .. })));
    // And not at all while nobody can be asked.
    etcd.kill();
    let stranger = there.execute(resume(B), Actor::Node(B)).await;
    assert!(matches!(stranger, Err(CommandError::Store(_))), "{stranger:?}");
    let stranger = there.execute(resume(B), Actor::Node(B)).await;
    assert!(matches!(stranger, Err(CommandError::Store(_))), "{stranger:?}");
    let nowhere = two.hub.network_of_agent(NetworkId::from_bytes([9; 16])).await;
    assert!(matches!(nowhere, Err(NetworkError::Command(CommandError::Store(_)))));
    // A member that only comes back is served all the same.
    there.execute(resume(A), Actor::Node(A)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ephemeral_node_that_another_controller_has_is_not_collected() {
    let (etcd, dir) = (Etcd::start(), common::directory());
    let key = dir.path().join("store.key");
    let [one, two] = Controller::two_on_etcd(&etcd, dir.path(), &key).await;
    let acme = one.create("acme").await;
    let other = two.find("acme").await;
    for node in [A, B] {
        join(&acme, node, NodeLifetime::Ephemeral).await;
    }
    until("the nodes to be known", || (members(&other).len() == 2).then_some(())).await;
    // A is connected to the first, nobody has seen B. The second sees neither, and its clock runs ahead.
    acme.seen(A);
    let probe = etcd.store("znet").await;
    let deadline = tokio::time::Instant::now() + SOON;
    while probe.shared().unwrap().present_elsewhere(acme.id()).await.unwrap() != [A] {
        assert!(tokio::time::Instant::now() < deadline, "nobody reported the node");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    two.now.fetch_add(400_000, Ordering::Relaxed);
    // Somebody whom it could ask for them is connected to it.
    join(&other, C, NodeLifetime::Lasting).await;
    other.seen(C);
    let collected = || (members(&other) == [A, C]).then_some(());
    within(COLLECTED, "the node that nobody has to be collected", collected).await;
    until("the first to hear of it", || (members(&acme) == [A, C]).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_moves_to_etcd_and_back_and_is_what_it_was() {
    let (etcd, dir) = (Etcd::start(), common::directory());
    let (old, new, key) = (dir.path().join("old"), dir.path().join("new"), dir.path().join("store.key"));
    let data = DataDir::open(&old).unwrap();
    let store = Location::Sqlite.open(data.store_file()).await.unwrap();
    let before = Controller::start(data.into(), store).await;
    let (mut heads, mut signing) = (Vec::new(), Vec::new());
    for name in ["acme", "blue"] {
        let hosted = before.create(name).await;
        join(&hosted, A, NodeLifetime::Lasting).await;
        for n in 0..150 {
            attach(&hosted, A, &format!("c{n}")).await;
        }
        signing.push(before.hub.rotate_key(&hosted, WHO).await.unwrap());
        heads.push(head(&hosted).unwrap());
    }
    let (_, token) = before.hub.create_operator(String::new(), Role::Admin, Scope::All, WHO).await.unwrap();
    let pin = before.hub.pin();
    let from = Side::Sqlite(old.clone());
    let to = Side::Etcd(etcd.url("znet"));
    let running = migrate(&from, &to, &key).await;
    assert!(matches!(running, Err(MigrateError::Keys(KeysError::InUse { .. }))), "{running:?}");
    before.hub.close().await;
    drop(before);
    let mut moved = migrate(&from, &to, &key).await.unwrap();
    moved.networks.sort_by(|one, other| one.name.cmp(&other.name));
    assert_eq!(moved.networks.iter().map(|network| network.head).collect::<Vec<_>>(), heads);
    assert_eq!((moved.operators, moved.audit), (1, 2 * (1 + 2 + 150 + 1) + 1));
    let again = migrate(&from, &to, &key).await;
    assert!(matches!(again, Err(MigrateError::NotEmpty { .. })), "{again:?}");
    // A controller goes on there, with the same keys.
    let there = Controller::on_etcd(&etcd, &dir.path().join("there"), &key).await.unwrap();
    assert_eq!(there.hub.pin(), pin);
    assert!(there.hub.operator(&token).is_some());
    // It puts itself into the maps.
    for name in ["acme", "blue"] {
        let hosted = there.find(name).await;
        let listed = || hosted.read(|network, _| !network.conf().controllers.is_empty()).ok()?.then_some(());
        until("the controller to be in the map", listed).await;
    }
    let acme = there.find("acme").await;
    assert_eq!(acme.verifying_key().ok(), signing.first().copied());
    attach(&acme, A, "later").await;
    let head_there = head(&acme).unwrap();
    assert_eq!(head_there.revision.get(), heads[0].revision.get() + 2);
    there.hub.close().await;
    drop((acme, there));
    // And back, into another directory.
    migrate(&to, &Side::Sqlite(new.clone()), &key).await.unwrap();
    let data = DataDir::open(&new).unwrap();
    let store = Location::Sqlite.open(data.store_file()).await.unwrap();
    let back = Controller::start(data.into(), store).await;
    assert_eq!(back.hub.pin(), pin);
    let acme = back.find("acme").await;
    assert_eq!(head(&acme), Some(head_there));
    assert_eq!(acme.verifying_key().ok(), signing.first().copied());
    let trail = back.hub.audit(None, 0, 1000).await.unwrap();
    assert_eq!((trail.len(), trail.last().unwrap().action.as_str()), (moved.audit + 3, "container.attach"));
}
