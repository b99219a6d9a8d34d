//! Networks in a hub over a store in memory: what streams carry, and what a failure does and does not touch.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use prost::Message as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use znet_api::convert::delta_from_wire;
use znet_api::error::CODE_KEY;
use znet_api::v1;
use znet_api::v1::watch_event::Event;
use znet_api::v1::watch_request::Say;
use znet_core::controller::{NewNetwork, NodeLifetime, Settings};
use znet_core::map::{Member, Record};

use super::*;
use crate::hub::Hub;
use crate::keys::DataDir;
use crate::store::MemoryStore;

const TIMEOUT: Duration = Duration::from_secs(10);
/// Within which time a node that stays away is collected once its time is over: members have a while to answer.
const COLLECTED: Duration = Duration::from_secs(40);
const WHO: Actor = Actor::Local { uid: 0 };

struct World {
    hub: Arc<Hub>,
    store: Arc<MemoryStore>,
    now: Arc<AtomicU64>,
    _dir: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let now = Arc::new(AtomicU64::new(1_000_000));
        let told = now.clone();
        let clock = Clock::new(move || Timestamp::from_millis(told.load(Ordering::Relaxed)));
        Self { now, ..Self::with_clock(clock).await }
    }

    async fn with_clock(clock: Clock) -> Self {
        let dir = tempfile::Builder::new().prefix("zt-hub-").tempdir().unwrap();
        let store = Arc::new(MemoryStore::new());
        let data = DataDir::open(dir.path()).unwrap();
        let hub = Hub::start(data, store.clone(), clock, vec!["192.0.2.1:7443".to_owned()]).await.unwrap();
        Self { hub, store, now: Arc::default(), _dir: dir }
    }

    async fn network(&self, name: &str) -> Arc<Hosted> {
        let new = NewNetwork { name: name.parse().unwrap(), prefixes: vec![], settings: Settings::default() };
        self.hub.create(&new, WHO).await.unwrap()
    }
}

async fn join(hosted: &Hosted, node: NodeId, lifetime: NodeLifetime) {
    let token = Command::CreateToken { label: None, uses: None, expires: None, lifetime };
    let Reply::Token { secret, .. } = hosted.execute(token, WHO).await.unwrap().reply else { panic!() };
    let name = format!("n{}", node.as_bytes()[0]).parse().unwrap();
    let join = Command::Join { secret: Some(secret), node, name, endpoints: vec![], two_keys: true };
    hosted.execute(join, Actor::Node(node)).await.unwrap();
}

fn attach(node: NodeId, name: &str) -> Command {
    Command::Attach { node, name: name.parse().unwrap(), addresses: vec![], public_key: None, port: None }
}

/// An agent's end of a stream.
struct Agent {
    member: Member,
    say: mpsc::Sender<Result<v1::WatchRequest, Status>>,
    events: mpsc::Receiver<Result<Bytes, Status>>,
    parts: Vec<Record>,
}

/// What an event was.
#[derive(Debug, PartialEq)]
enum Got {
    Delta(usize),
    Part(usize),
    Snapshot(usize),
    Head,
    Ask(Vec<Vec<u8>>),
    End(String),
}

impl Agent {
    fn open(hosted: &Arc<Hosted>, node: NodeId, member: Member, resume: bool) -> Self {
        let (say, said) = mpsc::channel(8);
        let (out, events) = mpsc::channel(STREAM_BUFFER);
        let resume = member.head().filter(|_| resume).map(|signed| Resume {
            epoch: signed.head.epoch,
            revision: signed.head.revision,
            digest: signed.head.digest,
        });
        tokio::spawn(hosted.clone().serve_stream(node, resume, None, ReceiverStream::new(said), out));
        Self { member, say, events, parts: Vec::new() }
    }

    fn new(hosted: &Arc<Hosted>, node: NodeId) -> Self {
        Self::open(hosted, node, Member::new(hosted.id(), hosted.verifying_key().unwrap()), false)
    }

    /// The next event, verified and applied as a real agent does.
    async fn next(&mut self) -> Got {
        let event = tokio::time::timeout(TIMEOUT, self.events.recv()).await.expect("an event in time");
        let bytes = match event {
            Some(Ok(bytes)) => bytes,
            Some(Err(status)) => {
                let code = status.metadata().get(CODE_KEY).unwrap();
                return Got::End(code.to_str().unwrap().to_owned());
            }
            None => return Got::End(String::new()),
        };
        match v1::WatchEvent::decode(bytes).unwrap().event.unwrap() {
            Event::Delta(wire) => {
                let (delta, head) = delta_from_wire(&wire).unwrap();
                self.member.apply_delta(&delta, &head).unwrap();
                Got::Delta(delta.changes.len())
            }
            Event::Snapshot(part) => {
                self.parts.extend(part.records.iter().map(|record| Record::try_from(record).unwrap()));
                let Some(head) = part.head else { return Got::Part(part.records.len()) };
                let records = std::mem::take(&mut self.parts);
                let whole = records.len();
                self.member.apply_snapshot(records, &SignedHead::try_from(&head).unwrap()).unwrap();
                Got::Snapshot(whole)
            }
            Event::Head(_) => Got::Head,
            Event::Ask(ask) => Got::Ask(ask.nodes),
            Event::Keys(_) => panic!("nobody changed a key"),
        }
    }

    async fn until(&mut self, revision: Revision) {
        while self.member.revision() < revision {
            let got = self.next().await;
            assert!(!matches!(got, Got::End(_)), "{got:?}");
        }
    }

    async fn beats(&self) {
        let say = Some(Say::Heartbeat(v1::Heartbeat {}));
        self.say.send(Ok(v1::WatchRequest { say })).await.unwrap();
    }

    async fn applied(&self) {
        let revision = self.member.revision().get();
        let say = Some(Say::Applied(v1::Applied { revision }));
        self.say.send(Ok(v1::WatchRequest { say })).await.unwrap();
    }
}

const A: NodeId = NodeId::from_bytes([1; 32]);
const B: NodeId = NodeId::from_bytes([2; 32]);

#[tokio::test]
async fn a_panic_in_one_network_leaves_the_others_serving_and_loses_nothing() {
    let world = World::new().await;
    let (red, blue) = (world.network("red").await, world.network("blue").await);
    join(&red, A, NodeLifetime::Lasting).await;
    join(&blue, A, NodeLifetime::Lasting).await;
    let first = red.execute(attach(A, "web"), Actor::Node(A)).await.unwrap();
    red.inject_panic().await;
    // The other one does not notice.
    blue.execute(attach(A, "web"), Actor::Node(A)).await.unwrap();
    // This one is back from the store, with all that it acknowledged, and takes commands that waited meanwhile.
    let again = tokio::time::timeout(TIMEOUT, red.execute(attach(A, "db"), Actor::Node(A))).await.unwrap();
    let again = again.unwrap();
    assert!(again.revision > first.revision);
    let names =
        red.read(|network, _| network.containers().map(|c| c.record.name.to_string()).collect::<Vec<_>>());
    let mut names = names.unwrap();
    names.sort();
    assert_eq!(names, ["db", "web"]);
    assert!(world.hub.metrics().text(&[]).contains("znet_task_restarts_total 1"));
    world.hub.close().await;
}

#[tokio::test]
async fn a_store_that_fails_makes_a_network_read_only_until_it_is_back() {
    let world = World::new().await;
    let red = world.network("red").await;
    join(&red, A, NodeLifetime::Lasting).await;
    red.execute(attach(A, "web"), Actor::Node(A)).await.unwrap();
    let full = StoreError::Full { why: "no space left on device".to_owned() };
    world.store.fail_writes(Some(full.clone()));
    let refused = red.execute(attach(A, "db"), Actor::Node(A)).await.unwrap_err();
    assert_eq!(refused, CommandError::Store(full));
    assert_eq!(Problem::from(&refused).status, 507);
    // What needs no write is answered, and what is there can be read.
    let rejoin = Command::Join {
        secret: None,
        node: A,
        name: "n1".parse().unwrap(),
        endpoints: vec![],
        two_keys: true,
    };
    assert!(!red.execute(rejoin, Actor::Node(A)).await.unwrap().changed);
    assert_eq!(red.read(|network, _| network.containers().len()).unwrap(), 1);
    let mut agent = Agent::new(&red, A);
    assert_eq!(agent.next().await, Got::Snapshot(3));
    world.store.fail_writes(None);
    let back = async {
        while red.execute(attach(A, "db"), Actor::Node(A)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(TIMEOUT, back).await.unwrap();
    assert_eq!(red.read(|network, _| network.containers().len()).unwrap(), 2);
    world.hub.close().await;
}

#[tokio::test]
async fn a_stream_goes_on_from_where_it_stood_and_starts_over_from_anywhere_else() {
    let world = World::new().await;
    let red = world.network("red").await;
    join(&red, A, NodeLifetime::Lasting).await;
    let mut agent = Agent::new(&red, A);
    assert_eq!(agent.next().await, Got::Snapshot(2));
    let done = red.execute(attach(A, "web"), Actor::Node(A)).await.unwrap();
    agent.until(done.revision).await;
    assert_eq!(agent.member.map().records().count(), 3);
    // Away while two things happen: one delta stands for both.
    let member = agent.member.clone();
    drop(agent);
    red.execute(attach(A, "db"), Actor::Node(A)).await.unwrap();
    let done = red.execute(attach(A, "app"), Actor::Node(A)).await.unwrap();
    let mut back = Agent::open(&red, A, member.clone(), true);
    assert_eq!(back.next().await, Got::Delta(2));
    assert_eq!(back.member.revision(), done.revision);
    // Nothing new: the head says so.
    let mut idle = Agent::open(&red, A, back.member.clone(), true);
    assert_eq!(idle.next().await, Got::Head);
    // A history that this controller does not know is answered by a snapshot.
    let mut stranger = Agent::new(&red, A);
    let (say, said) = mpsc::channel(1);
    let (out, events) = mpsc::channel(STREAM_BUFFER);
    let resume = Resume {
        epoch: member.head().unwrap().head.epoch,
        revision: member.revision(),
        digest: znet_core::map::Digest::from_bytes([9; 32]),
    };
    tokio::spawn(red.clone().serve_stream(A, Some(resume), None, ReceiverStream::new(said), out));
    (stranger.say, stranger.events) = (say, events);
    assert!(matches!(stranger.next().await, Got::Snapshot(_)));
    stranger.until(done.revision).await;
    assert_eq!(stranger.member.map(), back.member.map());
    // And so is one that asks for it.
    let why = "test".to_owned();
    let want = v1::WatchRequest { say: Some(Say::WantSnapshot(v1::WantSnapshot { why })) };
    stranger.say.send(Ok(want)).await.unwrap();
    // The snapshot is not the one that was kept for others: that would be older than what stands here.
    assert_eq!(stranger.next().await, Got::Snapshot(5));
    world.hub.close().await;
}

#[tokio::test]
async fn a_large_map_comes_in_parts() {
    let world = World::new().await;
    let red = world.network("red").await;
    join(&red, A, NodeLifetime::Lasting).await;
    let attaching = (0..SNAPSHOT_PART).map(|n| {
        let red = red.clone();
        async move { red.execute(attach(A, &format!("c{n}")), Actor::Node(A)).await.unwrap() }
    });
    futures_util::future::join_all(attaching).await;
    let mut agent = Agent::new(&red, A);
    assert_eq!(agent.next().await, Got::Part(SNAPSHOT_PART));
    assert_eq!(agent.next().await, Got::Snapshot(SNAPSHOT_PART + 2));
    world.hub.close().await;
}

#[tokio::test]
async fn a_slow_stream_gets_one_delta_for_all_that_it_missed() {
    let world = World::new().await;
    let red = world.network("red").await;
    join(&red, A, NodeLifetime::Lasting).await;
    let mut agent = Agent::new(&red, A);
    assert_eq!(agent.next().await, Got::Snapshot(2));
    // It reads nothing while a hundred containers come: what is kept for it does not grow with that.
    let mut last = Revision::ZERO;
    for n in 0..100 {
        last = red.execute(attach(A, &format!("c{n}")), Actor::Node(A)).await.unwrap().revision;
    }
    assert!(agent.events.len() <= STREAM_BUFFER);
    let mut deltas = 0;
    while agent.member.revision() < last {
        assert!(matches!(agent.next().await, Got::Delta(_)));
        deltas += 1;
    }
    assert!(deltas <= STREAM_BUFFER + 2, "{deltas} deltas");
    assert_eq!(agent.member.map().records().count(), 102);
    world.hub.close().await;
}

#[tokio::test]
async fn streams_end_at_once_with_the_reason() {
    let world = World::new().await;
    let red = world.network("red").await;
    join(&red, A, NodeLifetime::Lasting).await;
    join(&red, B, NodeLifetime::Lasting).await;
    let (mut a, mut b) = (Agent::new(&red, A), Agent::new(&red, B));
    a.next().await;
    b.next().await;
    // One stream a node: the newer one stays.
    let mut newer = Agent::new(&red, A);
    assert_eq!(a.next().await, Got::End("replaced".to_owned()));
    assert!(matches!(newer.next().await, Got::Snapshot(_)));
    // A removed node hears nothing any more, the others hear of the removal.
    let done = red.execute(Command::RemoveNode { node: A }, WHO).await.unwrap();
    assert_eq!(newer.next().await, Got::End("unknown_node".to_owned()));
    b.until(done.revision).await;
    let mut never = Agent::new(&red, A);
    assert_eq!(never.next().await, Got::End("unknown_node".to_owned()));
    world.hub.delete(&red, WHO).await.unwrap();
    assert_eq!(b.next().await, Got::End("unknown_network".to_owned()));
    let refused = red.execute(attach(B, "web"), Actor::Node(B)).await.unwrap_err();
    assert_eq!(refused.code(), "unknown_network");
    world.hub.close().await;
}

#[tokio::test]
async fn waiting_ends_when_all_live_nodes_have_applied_and_names_those_that_lag() {
    let world = World::new().await;
    let red = world.network("red").await;
    join(&red, A, NodeLifetime::Lasting).await;
    join(&red, B, NodeLifetime::Lasting).await;
    let (mut a, mut b) = (Agent::new(&red, A), Agent::new(&red, B));
    let done = red.execute(attach(A, "web"), Actor::Node(A)).await.unwrap();
    a.until(done.revision).await;
    b.until(done.revision).await;
    a.applied().await;
    let soon = tokio::time::Instant::now() + Duration::from_millis(300);
    assert_eq!(red.wait_applied(done.revision, soon).await.unwrap_err(), ["n2".parse().unwrap()]);
    let waiting = red.wait_applied(done.revision, tokio::time::Instant::now() + TIMEOUT);
    let (waited, ()) = tokio::join!(waiting, b.applied());
    waited.unwrap();
    world.hub.close().await;
}

#[tokio::test]
async fn more_commands_than_the_queue_holds_wait_their_turn_and_are_counted() {
    let world = World::new().await;
    let red = world.network("red").await;
    join(&red, A, NodeLifetime::Lasting).await;
    let all = (0..COMMAND_QUEUE + 200).map(|n| {
        let red = red.clone();
        async move { red.execute(attach(A, &format!("c{n}")), Actor::Node(A)).await }
    });
    let done = futures_util::future::join_all(all).await;
    assert!(done.iter().all(Result::is_ok));
    let metrics = world.hub.metrics().text(&[]);
    assert!(metrics.contains("znet_bound_hit_total{bound=\"command_queue\"}"), "{metrics}");
    world.hub.close().await;
}

#[tokio::test(start_paused = true)]
async fn ephemeral_nodes_that_stay_away_are_collected_and_lasting_ones_are_not() {
    let world = World::new().await;
    let red = world.network("red").await;
    join(&red, A, NodeLifetime::Ephemeral).await;
    join(&red, B, NodeLifetime::Lasting).await;
    red.execute(attach(A, "web"), Actor::Node(A)).await.unwrap();
    let ttl = red.read(|network, _| network.conf().ephemeral_ttl()).unwrap();
    let nodes = || red.read(|network, _| network.nodes().map(|node| node.id).collect::<Vec<_>>()).unwrap();
    world.now.fetch_add(u64::try_from(ttl.as_millis()).unwrap() - 1, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(nodes().len(), 2);
    world.now.fetch_add(1, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(nodes().len(), 2, "no member is there that could say whether it hears the node");
    red.seen(B);
    let collected = async {
        while nodes() != [B] {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(COLLECTED, collected).await.unwrap();
    assert_eq!(red.read(|network, _| network.containers().len()).unwrap(), 0);
    let trail = world.hub.audit(Some(red.id()), 0, 100).await.unwrap();
    assert!(trail.iter().any(|record| record.action == "node.collect"));
    world.hub.close().await;
}

#[tokio::test(start_paused = true)]
async fn an_ephemeral_node_that_members_hear_is_not_collected() {
    let world = World::new().await;
    let red = world.network("red").await;
    join(&red, A, NodeLifetime::Ephemeral).await;
    join(&red, B, NodeLifetime::Lasting).await;
    let ttl = red.read(|network, _| network.conf().ephemeral_ttl()).unwrap();
    let mut agent = Agent::new(&red, B);
    assert_eq!(agent.next().await, Got::Snapshot(3));
    let asked = Got::Ask(vec![A.as_bytes().to_vec()]);
    for _ in 0..3 {
        world.now.fetch_add(u64::try_from(ttl.as_millis()).unwrap(), Ordering::Relaxed);
        agent.beats().await;
        assert_eq!(agent.next().await, asked);
        let heard = v1::Heard { nodes: vec![A.as_bytes().to_vec(), vec![1, 2, 3]] };
        agent.say.send(Ok(v1::WatchRequest { say: Some(Say::Heard(heard)) })).await.unwrap();
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(red.read(|network, _| network.node(&A).is_some()).unwrap());
        assert!(!red.presence_of(&A).0, "its agent was not seen");
    }
    // It is not heard any more.
    world.now.fetch_add(u64::try_from(ttl.as_millis()).unwrap(), Ordering::Relaxed);
    agent.beats().await;
    assert_eq!(agent.next().await, asked);
    let collected = async {
        while red.read(|network, _| network.node(&A).is_some()).unwrap() {
            agent.beats().await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::time::timeout(COLLECTED, collected).await.unwrap();
    world.hub.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_jump_of_the_wall_clock_makes_nobody_gone_and_nobody_live() {
    const HOUR: u64 = 3_600_000;
    let wall = Arc::new(AtomicU64::new(10 * HOUR));
    let told = wall.clone();
    let clock = Clock::on_wall(move || Timestamp::from_millis(told.load(Ordering::Relaxed)));
    let world = World::with_clock(clock).await;
    let red = world.network("red").await;
    join(&red, A, NodeLifetime::Ephemeral).await;
    join(&red, B, NodeLifetime::Lasting).await;
    let live = || (red.presence_of(&A).0, red.presence_of(&B).0);
    for jump in [HOUR, 5 * HOUR, 10 * HOUR] {
        red.seen(A);
        red.seen(B);
        wall.store(jump, Ordering::Relaxed);
        tokio::time::sleep(LIVE_TERM - Duration::from_millis(1)).await;
        assert_eq!(live(), (true, true));
        let seen = red.presence_of(&B).1.unwrap().as_millis();
        assert_eq!(seen, jump - u64::try_from(LIVE_TERM.as_millis()).unwrap() + 1, "told in the time of day");
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(live(), (false, false));
    }
    assert_eq!(red.read(|network, _| network.nodes().len()).unwrap(), 2);
    world.hub.close().await;
}
