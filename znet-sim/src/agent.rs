//! An agent: what it keeps on its disk, what it believes, and its end of the control stream.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;
use znet_core::id::{ContainerId, Epoch, NetworkId, NodeId, Revision};
use znet_core::key::VerifyingKey;
use znet_core::map::{
    Change, ContainerRecord, Delta, Head, Map, Member, Record, RecordKey, Refusal, SignedHead,
};
use znet_core::name::Name;
use znet_core::pair::Held;
use znet_core::plan::{DeviceKey, Observed, plan};
use znet_core::time::Timestamp;

use crate::calls::What;
use crate::queue::{Event, Say, Serial, Site, Told, Who};
use crate::scenario::Scenario;
use crate::world::{World, name};

/// As in the agent: signs of life, pauses between attempts to connect, deltas kept before the whole map is written anew.
const HEARTBEAT: Duration = Duration::from_secs(5);
const FIRST_PAUSE: u64 = 100;
const LONGEST_PAUSE: u64 = 10_000;
const SOUND_AFTER: Duration = Duration::from_secs(30);
const MAX_DELTAS: usize = 256;
/// One applied map in so many is hashed anew as a whole.
const HASHED_ANEW: u64 = 61;

/// The map on an agent's disk: one as a whole, and what came after it.
#[derive(Default)]
struct Kept {
    base: Option<(Vec<Record>, SignedHead)>,
    deltas: Vec<(Delta, SignedHead)>,
    /// Whether something could not be written, so that nothing leads on from what is there.
    behind: bool,
}

/// One node.
pub(crate) struct Agent {
    pub(crate) id: NodeId,
    pub(crate) name: Name,
    pub(crate) names: Vec<Name>,
    pub(crate) lasts: bool,
    pub(crate) port: u16,
    /// The controller that it talks to.
    pub(crate) site: Site,
    key: VerifyingKey,
    pub(crate) up: bool,
    pub(crate) life: Serial,
    // On its disk.
    pub(crate) member_of: bool,
    kept: Kept,
    /// What is attached, and the revision at which the controller said so.
    pub(crate) attachments: BTreeMap<Name, (ContainerRecord, Revision)>,
    /// Containers of which the controller has to be told yet that they are gone.
    pub(crate) owed: BTreeSet<Name>,
    // In its memory.
    pub(crate) member: Member,
    pub(crate) conn: Option<Serial>,
    connected: Timestamp,
    /// The position of the map that it had last in this life and membership.
    had: Option<(Epoch, Revision)>,
    /// Whether it has a map from this stream.
    pub(crate) ready: bool,
    parts: Vec<Record>,
    pause: u64,
    pub(crate) calls: BTreeMap<Serial, What>,
    // On its host.
    pub(crate) host: BTreeMap<DeviceKey, Observed>,
    /// In its engine, which outlives it.
    pub(crate) pairs: BTreeMap<ContainerId, Held>,
    /// Whether it started from a map older than one that it had applied, and has no newer one yet.
    pub(crate) fell_back: bool,
}

impl Agent {
    pub(crate) fn new(
        who: Who,
        scenario: &Scenario,
        network: NetworkId,
        key: VerifyingKey,
        rng: &mut ChaCha8Rng,
    ) -> Self {
        Self {
            id: NodeId::from_bytes(rng.random()),
            name: name(&format!("n{who}")),
            names: (0..scenario.names).map(|n| name(&format!("n{who}-c{n}"))).collect(),
            lasts: rng.random_range(0..10) >= scenario.ephemeral,
            port: 51_820,
            site: rng.random_range(0..scenario.controllers),
            key,
            up: false,
            life: 0,
            member_of: false,
            kept: Kept::default(),
            attachments: BTreeMap::new(),
            owed: BTreeSet::new(),
            member: Member::new(network, key),
            conn: None,
            connected: Timestamp::default(),
            had: None,
            ready: false,
            parts: Vec::new(),
            pause: FIRST_PAUSE,
            calls: BTreeMap::new(),
            host: BTreeMap::new(),
            pairs: BTreeMap::new(),
            fell_back: false,
        }
    }

    fn position(&self) -> Option<(Epoch, Revision)> {
        self.member.head().map(|signed| signed.head.position())
    }

    /// Whether a call about this container is under way.
    pub(crate) fn busy(&self, name: &Name) -> bool {
        self.calls.values().any(|what| what.name() == Some(name))
    }

    /// Whether it has this map and its host is as it should be. Whoever has looked at the map of this head already is content
    /// with the head.
    pub(crate) fn settled(&self, head: &Head, map: &Map, seen: bool) -> Result<(), String> {
        let has = self.member.head().map(|signed| signed.head);
        if has != Some(*head) || (!seen && self.member.map() != map) {
            return Err(format!("has revision {} and not {}", self.member.revision(), head.revision));
        }
        if !self.calls.is_empty() || !self.owed.is_empty() || self.conn.is_none() {
            return Err(self.state());
        }
        for (record, _) in self.attachments.values() {
            if !map.container(record.id).is_some_and(|mapped| Self::is_same(record, mapped)) {
                return Err(format!("{} is attached and not so in the map", record.name));
            }
        }
        self.pairs_settled()?;
        match plan(&self.desired(), &self.host).first() {
            Some(step) => Err(format!("its host is not as it should be: {step}")),
            None => Ok(()),
        }
    }

    /// In words, for whoever looks for what holds it up.
    pub(crate) fn state(&self) -> String {
        let Self { up, life, member_of, conn, ready, calls, owed, .. } = self;
        format!(
            "up {up}, life {life}, member {member_of}, connection {conn:?}, ready {ready}, calls {calls:?}, owed {owed:?}"
        )
    }

    fn keep_all(&mut self) {
        let records = self.member.map().records().collect();
        self.kept = Kept::default();
        self.kept.base = self.member.head().map(|head| (records, *head));
    }

    /// Reads what is on the disk into a new memory.
    fn wake(&mut self) -> Result<(), Refusal> {
        let had = self.position();
        self.member = Member::new(self.member.network(), self.key);
        (self.conn, self.ready, self.pause, self.had) = (None, false, FIRST_PAUSE, None);
        self.parts.clear();
        self.calls.clear();
        if let Some((records, head)) = &self.kept.base {
            self.member.apply_snapshot(records.iter().cloned(), head)?;
        }
        let read = self.kept.deltas.iter().try_for_each(|(delta, head)| self.member.apply_delta(delta, head));
        self.fell_back |= self.position() < had;
        read
    }

    /// Is no member any more.
    fn forget(&mut self) {
        self.member_of = false;
        self.kept = Kept::default();
        self.attachments.clear();
        self.owed.clear();
        self.member = Member::new(self.member.network(), self.key);
        self.had = None;
    }

    /// Attached containers that the map says are gone.
    fn withdrawn(&self) -> Vec<Name> {
        let gone = |(record, since): &(ContainerRecord, Revision)| {
            *since <= self.member.revision() && self.member.map().container(record.id).is_none()
        };
        self.attachments.iter().filter(|(_, held)| gone(held)).map(|(name, _)| name.clone()).collect()
    }
}

impl World {
    pub(crate) fn lives(&self, who: Who, life: Serial) -> bool {
        let agent = &self.agents[who];
        agent.up && agent.life == life
    }

    pub(crate) fn agent_start(&mut self, who: Who) {
        let agent = &mut self.agents[who];
        if std::mem::replace(&mut agent.up, true) {
            return;
        }
        agent.life += 1;
        let life = agent.life;
        if let Err(refusal) = agent.wake() {
            tracing::error!(who, %refusal, "what an agent kept on its disk is not believed");
        }
        self.believed(who, None);
        self.queue.after(Duration::ZERO, Event::Connect { who, life });
        self.queue.after(Duration::ZERO, Event::Reconcile { who, life });
        self.queue.after(HEARTBEAT, Event::Beat { who, life });
    }

    pub(crate) fn agent_crash(&mut self, who: Who) {
        let agent = &mut self.agents[who];
        if !std::mem::replace(&mut agent.up, false) {
            return;
        }
        agent.calls.clear();
        if let Some(conn) = agent.conn.take() {
            self.reset_conn(conn);
        }
    }

    /// Joins, or confirms that it is a member, and opens the stream when that is answered.
    pub(crate) fn join(&mut self, who: Who) {
        let agent = &self.agents[who];
        if agent.conn.is_none() && !agent.calls.values().any(|what| matches!(what, What::Join)) {
            self.call(who, What::Join);
        }
    }

    pub(crate) fn joined(&mut self, who: Who) {
        self.agents[who].member_of = true;
        let conn = self.connect(who);
        let now = self.now();
        let agent = &mut self.agents[who];
        (agent.conn, agent.connected, agent.ready) = (Some(conn), now, false);
        agent.parts.clear();
        let resume = agent.member.head().map(|signed| signed.head);
        self.say(conn, Say::Open(resume));
    }

    /// Connects again after a pause, which grows with each attempt.
    pub(crate) fn reconnect(&mut self, who: Who) {
        let now = self.now();
        let agent = &mut self.agents[who];
        if agent.conn.take().is_some() && agent.connected.plus(SOUND_AFTER) < now {
            agent.pause = FIRST_PAUSE;
        }
        agent.ready = false;
        agent.site = self.rng.random_range(0..self.sites.len());
        let pause = agent.pause + self.rng.random_range(0..=agent.pause);
        agent.pause = (agent.pause * 2).min(LONGEST_PAUSE);
        let life = agent.life;
        self.queue.after(Duration::from_millis(pause), Event::Connect { who, life });
    }

    pub(crate) fn expelled(&mut self, who: Who) {
        self.note(|| format!("node {who} is no member any more"));
        if self.agents[who].member_of && self.model.is_member(&self.agents[who].id) {
            self.breach(format!("node {who} was told that it is no member, and nobody removed it"));
        }
        self.agents[who].forget();
        let life = self.agents[who].life;
        self.queue.after(Duration::ZERO, Event::Reconcile { who, life });
    }

    pub(crate) fn beat(&mut self, who: Who) {
        let Agent { conn, life, .. } = self.agents[who];
        if let Some(conn) = conn {
            self.say(conn, Say::Heartbeat);
        }
        self.release_leftovers(who);
        self.offer_pairs(who);
        self.queue.after(HEARTBEAT, Event::Beat { who, life });
    }

    /// Whether a connection is the one that its agent has.
    fn is_current(&self, conn: Serial) -> Option<Who> {
        let found = self.conns.get(&conn)?;
        let agent = &self.agents[found.who];
        (agent.up && agent.life == found.agent_life && agent.conn == Some(conn)).then_some(found.who)
    }

    pub(crate) fn conn_broken(&mut self, conn: Serial) {
        if let Some(who) = self.is_current(conn) {
            self.reconnect(who);
        }
        self.conns.remove(&conn);
    }

    pub(crate) fn told(&mut self, conn: Serial, told: &Arc<Told>, frees: bool) {
        if self.conns.get(&conn).is_none_or(|found| found.dead) {
            return;
        }
        if let Some(who) = self.is_current(conn) {
            self.hear(who, conn, told);
        }
        if frees {
            self.arrived(conn);
        }
    }

    fn hear(&mut self, who: Who, conn: Serial, told: &Told) {
        let agent = &mut self.agents[who];
        let (changes, result) = match told {
            Told::Delta(delta, head) => {
                (Some(delta.changes.as_slice()), agent.member.apply_delta(delta, head))
            }
            Told::Part(records, head) => {
                agent.parts.extend(records.iter().cloned());
                let Some(head) = head else { return };
                let parts = std::mem::take(&mut agent.parts);
                (None, agent.member.apply_snapshot(parts, head).map(drop))
            }
            Told::Head(head) => {
                let (from, to) = (agent.member.revision(), head.head.revision);
                (None, agent.member.apply_delta(&Delta { from, to, changes: Vec::new() }, head))
            }
            Told::End { unknown_node } => {
                if *unknown_node {
                    self.expelled(who);
                }
                return self.reset_conn(conn);
            }
        };
        match result {
            Ok(()) => {
                self.keep(who, told);
                self.believed(who, changes);
                self.say(conn, Say::Applied(self.agents[who].member.revision()));
            }
            Err(refusal) => self.refused(who, conn, &refusal),
        }
    }

    fn refused(&mut self, who: Who, conn: Serial, refusal: &Refusal) {
        // Out of order or twice a good message looks like a bad one; over a sound connection nothing may.
        if self.conns.get(&conn).is_some_and(|found| !found.mangled) {
            tracing::error!(who, %refusal, "what came over a sound connection is refused");
        }
        self.note(|| format!("node {who} refuses: {refusal}"));
        if refusal.wants_snapshot() {
            self.say(conn, Say::WantSnapshot);
        } else {
            self.reset_conn(conn);
        }
    }

    /// Writes down what was applied; where that fails an older map stays.
    fn keep(&mut self, who: Who, told: &Told) {
        let fails = self.chance(self.scenario.keep_fails);
        let agent = &mut self.agents[who];
        match told {
            _ if fails => agent.kept.behind = true,
            Told::Delta(delta, head) if !agent.kept.behind && agent.kept.deltas.len() < MAX_DELTAS => {
                agent.kept.deltas.push((delta.clone(), *head));
            }
            Told::Head(_) if !agent.kept.behind => {}
            _ => agent.keep_all(),
        }
    }

    /// What follows from the map that an agent has now; `changes` are those that led to it, if that is known.
    fn believed(&mut self, who: Who, changes: Option<&[Change]>) {
        let agent = &self.agents[who];
        let Some(head) = agent.member.head().map(|signed| signed.head) else { return };
        let applied = self.model.applied(&head);
        self.check(applied);
        self.applied += 1;
        let agent = &mut self.agents[who];
        let position = agent.position();
        if agent.had.replace(head.position()) > position {
            self.breach(format!("node {who} went back to {position:?}"));
        }
        let agent = &self.agents[who];
        if self.applied.is_multiple_of(HASHED_ANEW)
            && agent.member.map().set_hash(self.network).digest() != head.digest
        {
            self.breach(format!("the map of node {who} does not have the digest that it says"));
        }
        let agent = &mut self.agents[who];
        let withdrawn = match changes {
            Some(changes) if !changes.iter().any(|change| matches!(change, Change::Remove(_))) => Vec::new(),
            _ => agent.withdrawn(),
        };
        for name in &withdrawn {
            agent.attachments.remove(name);
        }
        agent.fell_back &= agent.conn.is_none();
        let (life, first) = (agent.life, agent.conn.is_some() && !std::mem::replace(&mut agent.ready, true));
        if !withdrawn.is_empty() {
            self.queue.after(Duration::ZERO, Event::Reconcile { who, life });
        }
        self.settle_pairs(who, changes);
        match changes {
            Some(changes) if !first => self.release_strangers(who, changes),
            _ => self.release_leftovers(who),
        }
    }

    /// Gives back what the controller gave to this node and nobody here knows.
    fn release_strangers(&mut self, who: Who, changes: &[Change]) {
        let id = self.agents[who].id;
        for change in changes {
            if let Change::Put(Record::Container(record)) = change
                && record.node == id
            {
                self.release_unless_attached(who, record.name.clone());
            }
        }
    }

    pub(crate) fn release_leftovers(&mut self, who: Who) {
        let agent = &self.agents[who];
        if !agent.ready {
            return;
        }
        let ours = agent.member.map().containers().filter(|record| record.node == agent.id);
        let names: BTreeSet<Name> =
            ours.map(|record| record.name.clone()).chain(agent.owed.iter().cloned()).collect();
        names.into_iter().for_each(|name| self.release_unless_attached(who, name));
    }

    /// One container's name at a time is asked about, so an attach under way is left alone.
    pub(crate) fn release_unless_attached(&mut self, who: Who, name: Name) {
        let agent = &mut self.agents[who];
        if agent.busy(&name) || !agent.ready {
            return;
        }
        if agent.attachments.contains_key(&name) {
            agent.owed.remove(&name);
        } else {
            self.call(who, What::Detach(name));
        }
    }

    /// Whether an agent's map has a container.
    pub(crate) fn sees(&self, who: Who, id: ContainerId) -> bool {
        self.agents[who].member.map().get(RecordKey::Container(id)).is_some()
    }
}
