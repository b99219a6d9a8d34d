//! All that there is in one run, and the loop that lets it happen.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use znet_core::controller::liveness::Liveness;
use znet_core::controller::{
    Command, Network, NewNetwork, NodeLifetime, Reply, Row, Settings, StateChange, TokenSecret,
};
use znet_core::feed::Logged;
use znet_core::id::{NetworkId, NodeId};
use znet_core::key::SigningKey;
use znet_core::map::Head;
use znet_core::time::Timestamp;

use crate::agent::Agent;
use crate::controller::Up;
use crate::disk::{Disk, Frame};
use crate::exchange::Told;
use crate::model::{Effect, Model, Op};
use crate::net::Conn;
use crate::planted::Bug;
use crate::queue::{Event, Queue, Serial, Site, Who};
use crate::scenario::Scenario;
use crate::{Report, alarm};

/// Where the network's IPv4 prefix begins, whatever its length.
pub(crate) const PREFIX4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 0);
/// When virtual time begins: some time in 2026.
const BEGIN: Timestamp = Timestamp::from_millis(1_790_000_000_000);
/// Within this time after the last fault everybody must have come to the full mesh: a keepalive and a call that nobody
/// answers, the longest pause before an agent connects again, and one more of each, as a collected node joins anew.
pub(crate) const CONVERGED_WITHIN: Duration = Duration::from_secs(90);
/// Changes of keys that were under way may take so much longer.
const CHANGED_WITHIN: Duration = Duration::from_secs(60);
/// And for so long nothing may change then.
const STAYS: Duration = Duration::from_secs(20);
/// Most events of a run: more are a loop.
const MAX_EVENTS: u64 = 20_000_000;
/// Lines of the trace that are kept.
const TRACED: usize = 80;

/// The last events in words, if anybody wants them.
pub(crate) struct Trace(Option<VecDeque<String>>);

impl Trace {
    pub(crate) fn into_lines(self) -> Vec<String> {
        self.0.unwrap_or_default().into()
    }
}

pub(crate) struct World {
    pub(crate) scenario: Scenario,
    pub(crate) rng: ChaCha8Rng,
    pub(crate) queue: Queue,
    pub(crate) bug: Option<Bug>,
    pub(crate) network: NetworkId,
    pub(crate) key: SigningKey,
    pub(crate) lasting: TokenSecret,
    pub(crate) ephemeral: TokenSecret,
    pub(crate) disk: Disk,
    pub(crate) model: Model,
    /// The controllers' processes, `None` while one does not run, and how often each was started or ended.
    pub(crate) sites: Vec<Option<Up>>,
    pub(crate) lives: Vec<Serial>,
    /// What each controller told the others last of its members.
    pub(crate) told: Vec<Option<Told>>,
    /// The one at which the event in hand happens.
    pub(crate) here: Site,
    /// When ephemeral nodes were seen, by any of them.
    pub(crate) absences: Liveness,
    pub(crate) agents: Vec<Agent>,
    pub(crate) node_of: BTreeMap<NodeId, Who>,
    pub(crate) conns: BTreeMap<Serial, Conn>,
    pub(crate) last_conn: Serial,
    pub(crate) last_call: Serial,
    /// The nodes that the network does not carry anything from or to.
    pub(crate) cut: BTreeSet<Who>,
    /// Whether faults and wishes are over.
    pub(crate) calm: bool,
    calm_since: Option<Timestamp>,
    whole: Option<(Timestamp, Head)>,
    pub(crate) applied: u64,
    pub(crate) events: u64,
    fingerprint: u64,
    broken: Option<String>,
    pub(crate) trace: Trace,
}

impl World {
    pub(crate) fn new(seed: u64, bug: Option<Bug>, traced: bool) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let scenario = Scenario::draw(&mut rng);
        let network = NetworkId::generate(&mut rng);
        let key = SigningKey::generate(&mut rng);
        let mut disk = Disk::new(scenario.log_kept);
        let mut model = Model::new(scenario.rest);
        let (frame, secrets) = first_commits(&scenario, network, &mut rng);
        let ops = frame.ops.clone();
        disk.write(disk.written(), frame);
        disk.sync();
        let broken = ops.iter().find_map(|op| model.commit(op).err());
        let agents: Vec<Agent> = (0..scenario.nodes)
            .map(|who| Agent::new(who, &scenario, network, key.verifying_key(), &mut rng))
            .collect();
        let node_of = agents.iter().enumerate().map(|(who, agent)| (agent.id, who)).collect();
        let [lasting, ephemeral] = secrets;
        let sites: Vec<Option<Up>> = (0..scenario.controllers).map(|_| None).collect();
        let (lives, told) = (vec![0; sites.len()], vec![None; sites.len()]);
        Self {
            scenario,
            rng,
            queue: Queue::new(BEGIN),
            bug,
            network,
            key,
            lasting,
            ephemeral,
            disk,
            model,
            sites,
            lives,
            told,
            here: 0,
            absences: Liveness::default(),
            agents,
            node_of,
            conns: BTreeMap::new(),
            last_conn: 0,
            last_call: 0,
            cut: BTreeSet::new(),
            calm: false,
            calm_since: None,
            whole: None,
            applied: 0,
            events: 0,
            fingerprint: 0,
            broken,
            trace: Trace(traced.then(VecDeque::new)),
        }
    }

    /// Lets everything happen.
    pub(crate) fn run(&mut self) -> Result<Report, String> {
        self.begin();
        while let Some(event) = self.queue.pop() {
            self.events += 1;
            if event.is_telling() {
                self.note(|| format!("{event:?}").chars().take(220).collect());
            }
            self.happen(event);
            let state = self.queue.now().as_millis() ^ self.disk.written().get().rotate_left(40);
            let state = state ^ self.applied.rotate_left(20);
            self.fingerprint = (self.fingerprint ^ state).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
            if let Some(error) = alarm::take() {
                return Err(format!("an error was logged:{error}"));
            }
            if let Some(broken) = self.broken.take() {
                return Err(broken);
            }
            if self.events > MAX_EVENTS {
                return Err(format!("{MAX_EVENTS} events and no end"));
            }
            if let Some((since, _)) = self.whole
                && self.queue.now() >= since.plus(STAYS)
            {
                return Ok(self.report(since));
            }
        }
        Err("nothing happens any more".to_owned())
    }

    fn report(&self, whole_since: Timestamp) -> Report {
        Report {
            events: self.events,
            millis: u64::try_from(self.queue.now().since(BEGIN).as_millis()).unwrap_or(u64::MAX),
            revisions: self.model.revisions(),
            applied: self.applied,
            nodes: self.scenario.nodes,
            converged_in: u64::try_from(
                whole_since.since(self.calm_since.unwrap_or(whole_since)).as_millis(),
            )
            .unwrap_or(u64::MAX),
            fingerprint: self.fingerprint,
        }
    }

    fn begin(&mut self) {
        self.start_controllers();
        for who in 0..self.scenario.nodes {
            let start = Duration::from_millis(self.rng.random_range(0..=500));
            self.queue.after(start, Event::AgentStart { who });
            self.later(self.scenario.work_every, Event::Work { who });
        }
        self.later(5_000, Event::Operate);
        let faults = [
            (self.scenario.partition_every, Event::Partition),
            (self.scenario.agent_crash_every, Event::CrashAgent),
            (self.scenario.controller_crash_every, Event::CrashController),
            (self.scenario.disk_full_every, Event::DiskFull),
        ];
        for (every, event) in faults {
            if let Some(every) = every {
                self.later(every, event);
            }
        }
        self.queue.after(self.scenario.troubled, Event::Calm);
        self.queue.after(Duration::from_secs(2), Event::Look);
    }

    fn start_controllers(&mut self) {
        for site in 0..self.sites.len() {
            self.queue.after(Duration::ZERO, Event::ControllerStart { site });
        }
    }

    /// Has an event happen after up to twice as many milliseconds.
    pub(crate) fn later(&mut self, mean: u64, event: Event) {
        let after = self.rng.random_range(0..=2 * mean);
        self.queue.after(Duration::from_millis(after), event);
    }

    fn happen(&mut self, event: Event) {
        let of_conn = event.conn().and_then(|conn| self.conns.get(&conn)).map(|conn| conn.site);
        self.here = event.site().or(of_conn).unwrap_or(self.here);
        match event {
            Event::Call { who, call, command, .. } => self.called(who, call, command),
            Event::Answered { who, call, answer } => self.answered(who, call, answer),
            Event::CallOver { who, call } => self.call_over(who, call),
            Event::Said { conn, say } => self.said(conn, say),
            Event::Told { conn, told, frees } => self.told(conn, &told, frees),
            Event::Broken { conn } => self.conn_broken(conn),
            Event::Pump { who, .. } => self.pump_due(who),
            Event::ControllerStart { .. } => self.controller_start(),
            Event::ControllerTick { life, .. } if life == self.lives[self.here] => self.controller_tick(),
            Event::CommitWrite { life, .. } if life == self.lives[self.here] => self.commit_write(),
            Event::Noticed { .. } => self.noticed(),
            Event::CommitSync { life, .. } if life == self.lives[self.here] => self.commit_sync(),
            Event::AgentStart { who } => self.agent_start(who),
            Event::Connect { who, life } if self.lives(who, life) => self.join(who),
            Event::Beat { who, life } if self.lives(who, life) => self.beat(who),
            Event::Reconcile { who, life } if self.lives(who, life) => self.reconcile(who),
            Event::Look => self.look(),
            Event::ControllerTick { .. }
            | Event::CommitWrite { .. }
            | Event::CommitSync { .. }
            | Event::Connect { .. }
            | Event::Beat { .. }
            | Event::Reconcile { .. } => {}
            chaos => self.chaos(chaos),
        }
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.queue.now()
    }

    /// Something is as it must never be.
    pub(crate) fn breach(&mut self, what: String) {
        self.broken.get_or_insert(what);
    }

    pub(crate) fn check(&mut self, checked: Result<(), String>) {
        if let Err(what) = checked {
            self.breach(what);
        }
    }

    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        let at = self.queue.now().since(BEGIN).as_millis();
        if let Some(lines) = &mut self.trace.0 {
            if lines.len() >= TRACED {
                lines.pop_front();
            }
            lines.push_back(format!("{:>4}.{:03} s  {}", at / 1000, at % 1000, line()));
        }
    }

    /// Faults and wishes are over, and everything works.
    pub(crate) fn calm_down(&mut self) {
        self.calm = true;
        self.calm_since = Some(self.now());
        self.cut.clear();
        self.disk.full = false;
        self.start_controllers();
        for who in 0..self.agents.len() {
            self.queue.after(Duration::ZERO, Event::AgentStart { who });
        }
    }

    fn look(&mut self) {
        if self.sites.iter().any(Option::is_some) {
            let stored = self.model.stored(self.disk.durable(), self.disk.rows());
            self.check(stored);
        }
        let Some(since) = self.calm_since else {
            self.queue.after(Duration::from_secs(2), Event::Look);
            return;
        };
        self.queue.after(Duration::from_millis(250), Event::Look);
        let head = match self.whole_at() {
            Ok(head) => head,
            Err(why) => {
                self.whole = None;
                let bound =
                    CONVERGED_WITHIN + if self.changes_keys() { CHANGED_WITHIN } else { Duration::ZERO };
                if self.now() > since.plus(bound) {
                    let bound = bound.as_secs();
                    self.breach(format!("{bound} s after the last fault the mesh is not whole: {why}"));
                }
                return;
            }
        };
        if self.whole.is_none_or(|(_, old)| old != head) {
            self.whole = Some((self.now(), head));
        }
    }

    fn changes_keys(&self) -> bool {
        self.sites.iter().flatten().any(|up| up.committed().rotations() > 0)
    }

    /// The head at which the mesh is whole: every agent has the controller's map, all that is attached is in it and nothing
    /// else, and every host is as it should be.
    fn whole_at(&self) -> Result<Head, String> {
        let up = self.sites[0].as_ref().ok_or("there is no controller")?;
        for other in &self.sites {
            let other = other.as_ref().ok_or("a controller is missing")?;
            other.idle()?;
            if other.committed().head() != up.committed().head() {
                return Err("the controllers do not have the same revision".to_owned());
            }
        }
        if self.changes_keys() {
            return Err("keys are being changed".to_owned());
        }
        let map = up.committed().map();
        let attached: usize = self.agents.iter().map(|agent| agent.attachments.len()).sum();
        if let Some(agent) = self.agents.iter().find(|agent| map.node(&agent.id).is_none()) {
            return Err(format!("{} is not in the map; {}", agent.name, agent.state()));
        }
        if map.containers().len() != attached || map.nodes().len() != self.agents.len() {
            let (containers, nodes) = (map.containers().len(), map.nodes().len());
            return Err(format!(
                "the map has {containers} containers, {nodes} nodes; attached are {attached}"
            ));
        }
        if !map.containers().eq(self.model.containers().values()) {
            return Err("the controller's map is not what was committed".to_owned());
        }
        let head = up.committed().head();
        let seen = self.whole.is_some_and(|(_, whole)| whole == head);
        for agent in &self.agents {
            agent.settled(&head, map, seen).map_err(|why| format!("{}: {why}", agent.name))?;
        }
        Ok(head)
    }
}

/// The network and its two tokens.
fn first_commits(scenario: &Scenario, id: NetworkId, rng: &mut ChaCha8Rng) -> (Frame, [TokenSecret; 2]) {
    let prefix4 = Ipv4Net::new_assert(PREFIX4, scenario.prefix4);
    let new = NewNetwork {
        name: name("sim"),
        prefixes: vec![IpNet::V4(prefix4)],
        settings: Settings {
            rest: Some(scenario.rest),
            ephemeral_ttl: Some(scenario.ephemeral_ttl),
            ..Settings::default()
        },
    };
    let mut changes = Network::create(id, &new, BEGIN, rng).unwrap_or_default();
    let mut rows = Vec::new();
    for change in &mut changes {
        if let StateChange::Put(Row::Network(conf)) = change {
            rows.push(Row::Network(conf.clone()));
        }
    }
    // A network at revision zero does not exist; its first revision is the one that its row makes.
    let mut frame = Frame { logged: Vec::new(), ops: Vec::new() };
    let mut network = match Network::from_rows(znet_core::id::Revision::new(1), rows) {
        Ok(network) => network,
        Err(corrupt) => unreachable!("{corrupt}"),
    };
    let push = |frame: &mut Frame, head: Head, changes| {
        frame.ops.push(Op { at: BEGIN, head, effect: Effect::Other });
        frame.logged.push(Logged { head, changes });
    };
    push(&mut frame, network.head(), changes);
    let secrets = [NodeLifetime::Lasting, NodeLifetime::Ephemeral].map(|lifetime| {
        let command = Command::CreateToken { label: None, uses: None, expires: None, lifetime };
        match network.decide(&command, BEGIN, rng).map(|decision| (decision.changes, decision.reply)) {
            Ok((changes, Reply::Token { secret, .. })) => {
                network.apply(&changes);
                push(&mut frame, network.head(), changes);
                secret
            }
            other => unreachable!("{other:?}"),
        }
    });
    (frame, secrets)
}

/// A name that is known to be one.
pub(crate) fn name(text: &str) -> znet_core::name::Name {
    text.parse().unwrap_or_else(|_| unreachable!("{text}"))
}
