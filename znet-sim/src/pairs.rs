//! The key pairs of containers, and their change while links are used: what each node's engine has, as its agent leads it, and
//! whether all can make sessions with each other at every moment.
//!
//! There are no packets here. A session can be made when the key that one end uses is one that the other end's engine
//! knows, and that is what is looked at.

use std::rc::Rc;

use rand::RngExt as _;
use rand::seq::IndexedRandom as _;
use znet_core::controller::{Command, Rotate};
use znet_core::id::{ContainerId, Revision};
use znet_core::key::{PrivateKey, PublicKey};
use znet_core::map::{Change, ContainerRecord, Record};
use znet_core::name::Name;
use znet_core::pair::{Held, PairStep, step};
use znet_core::plan::DeviceKey;

use crate::agent::Agent;
use crate::calls::What;
use crate::controller::Waiting;
use crate::queue::Who;
use crate::world::World;

impl Agent {
    /// The controller gave a container a pair.
    pub(crate) fn given(&mut self, record: &ContainerRecord) {
        let pair = Held { key: record.public_key, also: None, next: false };
        self.pairs.insert(record.id, pair);
    }

    /// Whatever is not attached has no device, and no pair.
    pub(crate) fn forget_pairs(&mut self) {
        let Self { pairs, attachments, .. } = self;
        if pairs.len() > attachments.len() {
            pairs.retain(|id, _| attachments.values().any(|(record, _)| record.id == *id));
        }
    }

    /// What is to be done about a container's pair, once the map has what the controller said about it last.
    fn pair_step(&self, record: &ContainerRecord, since: Revision) -> Option<(PairStep, Held)> {
        let held = *self.pairs.get(&record.id)?;
        let known = self.member.head().is_some() && self.member.revision() >= since;
        let now = self.member.map().container(record.id).filter(|_| known)?;
        Some((step(now, held), held))
    }

    /// Has the devices use and accept the keys that the others use. Tells which it changed.
    fn settle(&mut self) -> Vec<ContainerId> {
        let network = self.member.network();
        let mut changed = Vec::new();
        for (record, since) in self.attachments.values() {
            let Some((step, held)) = self.pair_step(record, *since) else { continue };
            let now = match (step, held.also) {
                (PairStep::Swap { keep }, Some(next)) => {
                    Held { key: next, also: keep.then_some(held.key), next: false }
                }
                (PairStep::Drop, _) => Held { also: None, next: false, ..held },
                _ => continue,
            };
            changed.push((record.id, now));
        }
        for (id, now) in &changed {
            self.pairs.insert(*id, *now);
            let device = self.host.get_mut(&DeviceKey { network, container: *id });
            if let Some(service) = device.and_then(|device| device.service.as_mut()) {
                service.public_key = now.key;
            }
        }
        changed.into_iter().map(|(id, _)| id).collect()
    }

    /// Whether the pairs of all that is attached are those of this map, and none is being changed.
    pub(crate) fn pairs_settled(&self) -> Result<(), String> {
        for (record, since) in self.attachments.values() {
            let rotating = self.member.map().container(record.id).is_some_and(ContainerRecord::is_rotating);
            let step = self.pair_step(record, *since).map(|(step, _)| step);
            if rotating || step != Some(PairStep::Keep) {
                return Err(format!("the key of {} is being changed: {step:?}", record.name));
            }
        }
        Ok(())
    }

    /// Whether what it has attached is what the map says, whatever its keys are by now.
    pub(crate) fn is_same(attached: &ContainerRecord, mapped: &ContainerRecord) -> bool {
        let keys = (mapped.public_key, mapped.also_key, mapped.rekey);
        let (public_key, also_key, rekey) = keys;
        ContainerRecord { public_key, also_key, rekey, ..attached.clone() } == *mapped
    }
}

impl World {
    /// An agent has another map: before it says so its engine follows.
    pub(crate) fn settle_pairs(&mut self, who: Who, changes: Option<&[Change]>) {
        let agent = &mut self.agents[who];
        agent.forget_pairs();
        let changed = agent.settle();
        for id in changed {
            for other in 0..self.agents.len() {
                self.can_speak(other, who, id);
            }
        }
        match changes {
            Some(changes) => {
                for change in changes {
                    if let Change::Put(Record::Container(record)) = change {
                        self.can_speak_with(who, record);
                    }
                }
            }
            None => {
                let all: Vec<ContainerRecord> = self.agents[who].member.map().containers().cloned().collect();
                all.iter().for_each(|record| self.can_speak_with(who, record));
            }
        }
        self.offer_pairs(who);
    }

    fn can_speak_with(&mut self, who: Who, record: &ContainerRecord) {
        if let Some(owner) = self.node_of.get(&record.node).copied() {
            self.can_speak(who, owner, record.id);
        }
    }

    /// By what a node knows of a container its own containers can make a session with it, and it with them.
    fn can_speak(&mut self, who: Who, owner: Who, id: ContainerId) {
        let (agent, theirs) = (&self.agents[who], &self.agents[owner]);
        let attached = theirs.attachments.values().find(|(record, _)| record.id == id);
        let (Some((_, since)), Some(held)) = (attached, theirs.pairs.get(&id)) else { return };
        let Some(record) = agent.member.map().container(id) else { return };
        // Who has nothing that could speak, was removed without having heard of it, is behind what the controller told it of its
        // own, or started from an older map is not counted, nor is what was attached after its map was made.
        let committed = self.model.containers();
        let counted = agent.attachments.values().any(|(own, _)| committed.contains_key(&own.id));
        let current = agent.attachments.values().all(|(_, since)| agent.member.revision() >= *since);
        let fresh = agent.member.revision() >= *since && committed.contains_key(&id);
        if !counted || !current || !fresh || agent.fell_back || who == owner {
            return;
        }
        let knows = |key: PublicKey| record.keys().any(|known| known == key);
        let accepts = |key: PublicKey| held.key == key || held.also == Some(key);
        if !accepts(record.public_key) || !knows(held.key) {
            let (name, revision) = (record.name.clone(), agent.member.revision());
            self.breach(format!(
                "node {who} with revision {revision} and {name} of node {owner} do not know each other's keys"
            ));
        }
    }

    /// Makes new pairs for containers that are asked for one, and offers them.
    pub(crate) fn offer_pairs(&mut self, who: Who) {
        if !self.agents[who].ready {
            return;
        }
        let waiting: Vec<(Name, ContainerId, PairStep)> = {
            let agent = &self.agents[who];
            let step_of = |(record, since): &(ContainerRecord, Revision)| {
                let (step, _) = agent.pair_step(record, *since)?;
                Some((record.name.clone(), record.id, step))
            };
            agent.attachments.values().filter_map(step_of).collect()
        };
        for (name, id, step) in waiting {
            if self.agents[who].busy(&name) {
                continue;
            }
            match step {
                PairStep::Make => {
                    let key = PrivateKey::generate(&mut self.rng).public_key();
                    if let Some(held) = self.agents[who].pairs.get_mut(&id) {
                        (held.also, held.next) = (Some(key), true);
                    }
                    self.call(who, What::Offer(name, key));
                }
                PairStep::Offer(key) => self.call(who, What::Offer(name, key)),
                PairStep::Reclaim => {
                    self.breach(format!("nobody has the private half of the key of {name} that is in use"));
                }
                PairStep::Keep | PairStep::Swap { .. } | PairStep::Drop => {}
            }
        }
    }

    /// An operator has keys changed.
    pub(crate) fn rotate(&mut self) {
        let who = self.rng.random_range(0..self.agents.len());
        let agent = &self.agents[who];
        let which = match self.rng.random_range(0..4) {
            0 => Rotate::All,
            1 => Rotate::Node(agent.id),
            _ => Rotate::Named(agent.names.choose(&mut self.rng).cloned().into_iter().collect()),
        };
        self.note(|| format!("the operator has keys changed: {which:?}"));
        self.here = self.rng.random_range(0..self.sites.len());
        self.submit(Waiting { from: None, command: Rc::new(Command::RotateKeys { which }) });
    }

    /// What the controller does about changes that are under way.
    pub(crate) fn lead_changes(&mut self) {
        self.exchange_applied();
        let now = self.now();
        let bug = self.bug;
        let Some(up) = self.sites[self.here].as_mut() else { return };
        if let Some(next) = up.next_change(bug, now) {
            self.submit(Waiting { from: None, command: Rc::new(next) });
        }
    }
}
