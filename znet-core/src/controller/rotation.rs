//! How the pair of a container is changed while packets flow.
//!
//! The record tells the stage, and whoever sees any of them converges:
//!
//! 1. *asked*: `rekey` is set. The node makes a new pair and offers the public half.
//! 2. *offered*: `also_key` is the next key. Everybody learns to accept it; nobody uses it yet.
//! 3. *promoted*: `rekey` is cleared, the next key is `public_key` and the former one `also_key`. New handshakes are made
//!    with the new key, and the container's engine makes one with everybody it has a session with.
//! 4. *settled*: `also_key` is gone, and with it the former pair.
//!
//! A stage ends when every member that counts has applied it: [`Rotations`] knows from when on that is so. Who stays away
//! holds it up for [`AWAY_PATIENCE`] only. As long as a member cannot do with two keys of one container, no change is begun.

use std::collections::BTreeMap;
use std::time::Duration;

use super::command::{Command, Reply, Rotate};
use super::decide::Decision;
use super::network::Network;
use super::rejection::Rejection;
use super::rows::{Container, NetworkConf, Row, StateChange};
use crate::id::{ContainerId, NodeId, Revision};
use crate::key::PublicKey;
use crate::map::ContainerRecord;
use crate::name::Name;
use crate::time::Timestamp;

/// Most containers that one request may name.
pub const MAX_NAMED: usize = 256;
/// Most nodes that are named as unable.
const MAX_UNABLE: usize = 10;
/// Most pairs that are changed at once of those that nobody named: each costs a handshake with everybody it speaks to.
pub const MAX_ROTATIONS: usize = 256;
/// The shortest lifetime of a pair: several times as long as its change takes.
pub const MIN_KEY_LIFETIME: Duration = Duration::from_secs(60);
/// For how long the former key is accepted after everybody has learned of the new one: handshakes are begun at once, and
/// again every five seconds while no answer comes.
pub const SETTLE_AFTER: Duration = Duration::from_secs(15);
/// For how long after its last sign of life a member with containers holds a change up.
pub const AWAY_PATIENCE: Duration = Duration::from_secs(600);

/// How long a stage takes at least where other controllers serve the same network and some member is connected neither here nor,
/// as far as they tell, to one of them: it may be on its way from one to another, and has heard of the stage by then.
pub const OTHERS_HEAR_WITHIN: Duration = Duration::from_secs(30);

/// What is known of a member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemberView {
    /// Whether it gave a sign of life lately.
    pub live: bool,
    /// When it last did, if it ever did.
    pub seen: Option<Timestamp>,
    /// What it has applied, as far as it said.
    pub applied: Option<Revision>,
}

/// Since when a container is at a stage, as far as this controller knows: it may have been so for longer.
#[derive(Clone, Debug)]
struct Stage {
    key: PublicKey,
    also: PublicKey,
    /// Whether that is the next key.
    rekey: bool,
    /// Who has applied this revision has applied the stage.
    revision: Revision,
    at: Timestamp,
}

/// The changes of pairs that are under way, as one controller sees them. Not stored: one that is started anew counts from
/// then on, which costs time and nothing else.
#[derive(Clone, Debug)]
pub struct Rotations {
    started: Timestamp,
    /// How long a stage takes at least.
    least: Duration,
    stages: BTreeMap<ContainerId, Stage>,
    held_up_by: Vec<Name>,
}

impl Rotations {
    /// Nothing is known before `now`.
    pub fn new(now: Timestamp) -> Self {
        Self { started: now, least: Duration::ZERO, stages: BTreeMap::new(), held_up_by: Vec::new() }
    }

    /// Other controllers serve the network as well. What they tell of their own agents is in what is asked of a member.
    #[must_use]
    pub fn among_others(self) -> Self {
        Self { least: OTHERS_HEAR_WITHIN, ..self }
    }

    /// What is to be done now, if anything is. To be asked from time to time, on what is committed.
    pub fn next(
        &mut self,
        network: &Network,
        member: impl Fn(&NodeId) -> MemberView,
        now: Timestamp,
    ) -> Option<Command> {
        let (mut promote, mut settle) = (Vec::new(), Vec::new());
        self.note_stages(network, now);
        if !self.stages.is_empty() {
            let heard = self.heard_by_all(network, &member, now);
            let least =
                if network.nodes().all(|node| member(&node.id).live) { Duration::ZERO } else { self.least };
            for container in network.rotating() {
                let record = &container.record;
                let (Some(also), Some(stage)) = (record.also_key, self.stages.get(&record.id)) else {
                    continue;
                };
                if stage.revision > heard || now < stage.at.plus(least) {
                    continue;
                }
                if record.rekey {
                    promote.push((record.id, also));
                } else if now >= stage.at.plus(SETTLE_AFTER) {
                    settle.push((record.id, also));
                }
            }
        }
        promote.truncate(MAX_ROTATIONS);
        settle.truncate(MAX_ROTATIONS);
        let mut ask = due(network, &member, now);
        self.held_up_by = if ask.is_empty() { Vec::new() } else { network.one_key_only() };
        if !self.held_up_by.is_empty() {
            ask.clear();
        }
        let idle = promote.is_empty() && settle.is_empty() && ask.is_empty();
        (!idle).then_some(Command::AdvanceKeys { ask, promote, settle })
    }

    /// The nodes, some of them if they are many, because of which pairs that are due were left alone when this was asked last.
    pub fn held_up_by(&self) -> &[Name] {
        &self.held_up_by
    }

    fn note_stages(&mut self, network: &Network, now: Timestamp) {
        let mut stages = BTreeMap::new();
        for Container { record, .. } in network.rotating() {
            let Some(also) = record.also_key else { continue };
            let known = self.stages.remove(&record.id);
            let this = (record.public_key, also, record.rekey);
            let known = known.filter(|stage| (stage.key, stage.also, stage.rekey) == this);
            let (key, also, rekey) = this;
            let new = || Stage { key, also, rekey, revision: network.revision(), at: now };
            stages.insert(record.id, known.unwrap_or_else(new));
        }
        self.stages = stages;
    }

    /// The revision that every member has applied that counts: those that live, and those with containers that were here
    /// a short time ago.
    fn heard_by_all(
        &self,
        network: &Network,
        member: impl Fn(&NodeId) -> MemberView,
        now: Timestamp,
    ) -> Revision {
        let counts = |node: &NodeId, view: &MemberView| {
            let waited = view.seen.unwrap_or(self.started).max(self.started).plus(AWAY_PATIENCE);
            view.live || (now < waited && network.containers_of(*node).next().is_some())
        };
        let views = network.nodes().map(|node| (node.id, member(&node.id)));
        let counting = views.filter(|(node, view)| counts(node, view));
        let applied = counting.map(|(_, view)| view.applied.unwrap_or(Revision::ZERO));
        applied.min().unwrap_or(Revision::new(u64::MAX))
    }
}

/// Containers on live nodes whose pair has been used for long enough, as many as may be changed beside those that are.
fn due(network: &Network, member: impl Fn(&NodeId) -> MemberView, now: Timestamp) -> Vec<ContainerId> {
    let conf = network.conf();
    let too_old = conf.key_lifetime_millis.map(|lifetime| now.as_millis().saturating_sub(lifetime));
    let unwanted = conf.keys_since.map(|since| since.as_millis().saturating_sub(1));
    let Some(until) = too_old.max(unwanted) else { return Vec::new() };
    let live = |container: &&Container| member(&container.record.node).live;
    let mut waiting = network.keyed_until(Timestamp::from_millis(until)).filter(live).peekable();
    if waiting.peek().is_none() {
        return Vec::new();
    }
    let under_way = network.rotating().filter(live).take(MAX_ROTATIONS).count();
    waiting.take(MAX_ROTATIONS - under_way).map(|container| container.record.id).collect()
}

/// Refuses a lifetime in which a pair could not be changed in peace.
pub(super) fn check_lifetime(lifetime: Option<Duration>) -> Result<(), Rejection> {
    match lifetime {
        Some(got) if got < MIN_KEY_LIFETIME => {
            Err(Rejection::LifetimeTooShort { got, least: MIN_KEY_LIFETIME })
        }
        _ => Ok(()),
    }
}

fn put(container: &Container, record: ContainerRecord) -> StateChange {
    StateChange::Put(Row::Container(Container { record, ..container.clone() }))
}

/// The change that asks for a new pair, unless one is being made.
fn ask(container: &Container) -> Option<StateChange> {
    let record = &container.record;
    (!record.is_rotating()).then(|| put(container, ContainerRecord { rekey: true, ..record.clone() }))
}

impl Network {
    /// Some of the nodes, if there are any, because of which no pair can be changed now: their agent or engine is of a version
    /// that does not understand a record with two keys, or they have another backend that cannot do with two.
    pub fn one_key_only(&self) -> Vec<Name> {
        let unable = self.nodes().filter(|node| !node.two_keys);
        unable.take(MAX_UNABLE).map(|node| node.name.clone()).collect()
    }

    pub(super) fn rotate_keys(&self, which: &Rotate, now: Timestamp) -> Result<Decision, Rejection> {
        let nodes = self.one_key_only();
        if !nodes.is_empty() {
            return Err(Rejection::OneKeyOnly { nodes });
        }
        let containers: Vec<&Container> = match which {
            Rotate::All => {
                let conf = NetworkConf { keys_since: Some(now), ..self.conf().clone() };
                let none_before = self.keyed_until(now).next().is_none();
                let changes =
                    if none_before { Vec::new() } else { vec![StateChange::Put(Row::Network(conf))] };
                return Ok(Decision { changes, reply: Reply::Rotating { containers: Vec::new() } });
            }
            Rotate::Node(node) => {
                self.node(node).ok_or(Rejection::UnknownNode { node: *node })?;
                self.containers_of(*node).collect()
            }
            Rotate::Named(names) if names.len() > MAX_NAMED => {
                return Err(Rejection::TooManyNamed { got: names.len(), most: MAX_NAMED });
            }
            Rotate::Named(names) => {
                let unknown = |name: &Name| Rejection::UnknownContainer { name: name.clone() };
                let found =
                    names.iter().map(|name| self.container_by_name(name).ok_or_else(|| unknown(name)));
                found.collect::<Result<_, _>>()?
            }
        };
        let names = containers.iter().map(|container| container.record.name.clone()).collect();
        let by_id: BTreeMap<ContainerId, &Container> =
            containers.into_iter().map(|container| (container.record.id, container)).collect();
        let changes = by_id.into_values().filter_map(ask).collect();
        Ok(Decision { changes, reply: Reply::Rotating { containers: names } })
    }

    pub(super) fn offer_key(
        &self,
        node: NodeId,
        name: &Name,
        public_key: PublicKey,
    ) -> Result<Decision, Rejection> {
        if self.node(&node).is_none() {
            return Err(Rejection::UnknownNode { node });
        }
        let own = self.container_by_name(name).filter(|container| container.record.node == node);
        let container = own.ok_or_else(|| Rejection::UnknownContainer { name: name.clone() })?;
        if !public_key.is_usable() {
            return Err(Rejection::UnusableKey { public_key });
        }
        let record = &container.record;
        if record.keys().any(|key| key == public_key) {
            return Ok(Decision::nothing(Reply::Done));
        }
        if let Some(holder) = self.container_by_key(&public_key) {
            return Err(Rejection::KeyTaken { holder: holder.record.name.clone() });
        }
        if !record.rekey {
            return Err(Rejection::NotRotating { name: name.clone() });
        }
        // In place of an earlier offer too: a node that lost that pair makes another one.
        let record = ContainerRecord { also_key: Some(public_key), ..record.clone() };
        Ok(Decision { changes: vec![put(container, record)], reply: Reply::Done })
    }

    pub(super) fn advance_keys(
        &self,
        asked: &[ContainerId],
        promote: &[(ContainerId, PublicKey)],
        settle: &[(ContainerId, PublicKey)],
        now: Timestamp,
    ) -> Decision {
        let at = |id: &ContainerId, also: &PublicKey, rekey: bool| {
            let found = self.container(*id)?;
            let record = &found.record;
            (record.also_key == Some(*also) && record.rekey == rekey).then_some(found)
        };
        // A clock that was put back must not have it changed for ever.
        let keyed = Some(now.max(self.conf().keys_since.unwrap_or(now)));
        let promoted = promote.iter().filter_map(|(id, next)| {
            let container = at(id, next, true)?;
            let record = ContainerRecord {
                public_key: *next,
                also_key: Some(container.record.public_key),
                rekey: false,
                ..container.record.clone()
            };
            Some(StateChange::Put(Row::Container(Container { record, keyed, ..container.clone() })))
        });
        let settled = settle.iter().filter_map(|(id, former)| {
            let container = at(id, former, false)?;
            Some(put(container, ContainerRecord { also_key: None, ..container.record.clone() }))
        });
        let asked = asked.iter().filter_map(|id| ask(self.container(*id)?));
        Decision { changes: asked.chain(promoted).chain(settled).collect(), reply: Reply::Done }
    }
}
