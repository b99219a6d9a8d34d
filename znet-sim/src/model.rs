//! The reference: what was committed and acknowledged, in maps that a beginner would use, and the rules for it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use znet_core::controller::{Command, Reply, Reservation, Row};
use znet_core::id::{ContainerId, NodeId, Revision};
use znet_core::key::PublicKey;
use znet_core::map::{ContainerRecord, Head};
use znet_core::name::Name;
use znet_core::time::Timestamp;

/// What one revision did, by the answer that it gave.
#[derive(Clone, Debug)]
pub(crate) struct Op {
    pub(crate) at: Timestamp,
    pub(crate) head: Head,
    pub(crate) effect: Effect,
}

#[derive(Clone, Debug)]
pub(crate) enum Effect {
    Attached(ContainerRecord),
    Removed {
        containers: Vec<ContainerId>,
        nodes: Vec<NodeId>,
    },
    Joined(NodeId),
    Reserved(Reservation),
    Unreserved(Name),
    /// The keys of these are to be changed.
    Asked(Vec<Name>),
    Offered(Name, PublicKey),
    /// Other keys are asked for, the next keys of these come into use, the former ones of those go.
    Advanced(Vec<ContainerId>, Keyed, Keyed),
    Other,
}

/// Containers, each with the key that is meant.
type Keyed = Vec<(ContainerId, PublicKey)>;

impl Effect {
    pub(crate) fn of(command: &Command, reply: &Reply) -> Self {
        match (command, reply) {
            (Command::Join { node, .. }, _) => Self::Joined(*node),
            (_, Reply::Rotating { containers }) => Self::Asked(containers.clone()),
            (Command::OfferKey { name, public_key, .. }, _) => Self::Offered(name.clone(), *public_key),
            (Command::AdvanceKeys { ask, promote, settle }, _) => {
                Self::Advanced(ask.clone(), promote.clone(), settle.clone())
            }
            (_, Reply::Reserved(reservation)) => Self::Reserved(reservation.clone()),
            (Command::Unreserve { name }, _) => Self::Unreserved(name.clone()),
            (_, Reply::Attached { container, .. }) => Self::Attached(container.clone()),
            (Command::RemoveNode { node }, Reply::Removed { containers, .. }) => {
                Self::Removed { containers: containers.clone(), nodes: vec![*node] }
            }
            (Command::Collect { absent }, Reply::Removed { containers, .. }) => {
                Self::Removed { containers: containers.clone(), nodes: absent.clone() }
            }
            (_, Reply::Removed { containers, .. }) => {
                Self::Removed { containers: containers.clone(), nodes: Vec::new() }
            }
            _ => Self::Other,
        }
    }
}

/// What is durable.
pub(crate) struct Model {
    rest: Duration,
    /// The head of every revision, from the first one on.
    history: Vec<Head>,
    /// The newest revision that somebody was told of.
    told: Revision,
    nodes: BTreeSet<NodeId>,
    containers: BTreeMap<ContainerId, ContainerRecord>,
    reserved: BTreeMap<Name, Vec<IpAddr>>,
    /// What each name had when it got or lost something last.
    had: BTreeMap<Name, BTreeSet<IpAddr>>,
    released: BTreeMap<IpAddr, Timestamp>,
}

type Checked = Result<(), String>;

impl Model {
    pub(crate) fn new(rest: Duration) -> Self {
        Self {
            rest,
            history: Vec::new(),
            told: Revision::ZERO,
            nodes: BTreeSet::new(),
            containers: BTreeMap::new(),
            reserved: BTreeMap::new(),
            had: BTreeMap::new(),
            released: BTreeMap::new(),
        }
    }

    pub(crate) fn revisions(&self) -> u64 {
        self.history.len() as u64
    }

    fn head(&self, revision: Revision) -> Option<&Head> {
        let at = usize::try_from(revision.get()).ok()?.checked_sub(1)?;
        self.history.get(at)
    }

    /// A revision is durable from now on.
    pub(crate) fn commit(&mut self, op: &Op) -> Checked {
        let revision = op.head.revision;
        if revision.get() != self.revisions() + 1 {
            return Err(format!("revision {revision} was committed after revision {}", self.revisions()));
        }
        self.history.push(op.head);
        match &op.effect {
            Effect::Attached(record) => self.attached(record, op.at),
            Effect::Removed { containers, nodes } => self.removed(containers, nodes, op.at),
            Effect::Joined(node) => {
                self.nodes.insert(*node);
                Ok(())
            }
            Effect::Reserved(reservation) => self.reserved(reservation, op.at),
            Effect::Unreserved(name) => {
                self.reserved.remove(name);
                self.release(name, op.at);
                Ok(())
            }
            Effect::Asked(names) => {
                let asked = |record: &&mut ContainerRecord| names.contains(&record.name);
                self.containers.values_mut().filter(asked).for_each(ask);
                Ok(())
            }
            Effect::Offered(name, key) => self.offered(name, *key),
            Effect::Advanced(asked, promoted, settled) => {
                self.advanced(asked, promoted, settled);
                Ok(())
            }
            Effect::Other => Ok(()),
        }
    }

    /// A node's new key is a container's second one, and nobody else's.
    fn offered(&mut self, name: &Name, key: PublicKey) -> Checked {
        if let Some(other) = self.containers.values().find(|other| other.keys().any(|taken| taken == key)) {
            return Err(format!("{name} was promised a key of {}", other.name));
        }
        match self.containers.values_mut().find(|record| record.name == *name && record.rekey) {
            Some(record) => {
                record.also_key = Some(key);
                Ok(())
            }
            None => Err(format!("{name} was promised another key, and nobody had asked for it")),
        }
    }

    fn advanced(&mut self, asked: &[ContainerId], promoted: &Keyed, settled: &Keyed) {
        for id in asked {
            self.containers.get_mut(id).into_iter().for_each(ask);
        }
        let at = |record: &ContainerRecord, also: PublicKey, rekey: bool| {
            record.also_key == Some(also) && record.rekey == rekey
        };
        for (id, next) in promoted {
            if let Some(record) = self.containers.get_mut(id).filter(|record| at(record, *next, true)) {
                record.also_key = Some(std::mem::replace(&mut record.public_key, *next));
                record.rekey = false;
            }
        }
        for (id, former) in settled {
            if let Some(record) = self.containers.get_mut(id).filter(|record| at(record, *former, false)) {
                record.also_key = None;
            }
        }
    }

    /// All addresses that are held, each with the name that holds it, be it by a container or by a reservation.
    fn held(&self) -> BTreeMap<IpAddr, &Name> {
        let containers =
            self.containers.values().flat_map(|c| c.addresses().map(|address| (address, &c.name)));
        let reserved = self.reserved.iter().flat_map(|(name, all)| all.iter().map(move |a| (*a, name)));
        containers.chain(reserved).collect()
    }

    /// What a name has let go of rests from now on.
    fn release(&mut self, name: &Name, at: Timestamp) {
        let held: BTreeSet<IpAddr> = self.held().into_keys().collect();
        let had = self.had.remove(name).unwrap_or_default();
        self.released.extend(had.difference(&held).map(|address| (*address, at)));
        let has = self.held().into_iter().filter(|(_, holder)| *holder == name).map(|(address, _)| address);
        let has: BTreeSet<IpAddr> = has.collect();
        self.had.insert(name.clone(), has);
    }

    /// An address is given to a name.
    fn give(&mut self, name: &Name, address: IpAddr, at: Timestamp) -> Checked {
        if let Some(holder) = self.held().get(&address).filter(|holder| **holder != name) {
            return Err(format!("{name} was given {address}, which {holder} has"));
        }
        let rested = self.released.remove(&address).map(|released| released.plus(self.rest));
        match rested.filter(|until| *until > at) {
            Some(until) => {
                let early = until.since(at).as_millis();
                Err(format!("{name} was given {address}, which rests for {early} ms more"))
            }
            None => Ok(()),
        }
    }

    fn reserved(&mut self, reservation: &Reservation, at: Timestamp) -> Checked {
        let Reservation { name, addresses } = reservation;
        addresses.iter().try_for_each(|address| self.give(name, *address, at))?;
        self.reserved.insert(name.clone(), addresses.clone());
        self.release(name, at);
        Ok(())
    }

    fn attached(&mut self, record: &ContainerRecord, at: Timestamp) -> Checked {
        record.addresses().try_for_each(|address| self.give(&record.name, address, at))?;
        let others = || self.containers.values().filter(|other| other.id != record.id);
        if let Some(other) = others().find(|other| other.keys().any(|key| key == record.public_key)) {
            return Err(format!("{} has the public key of {}", record.name, other.name));
        }
        if let Some(other) = others().find(|other| other.name == record.name) {
            return Err(format!("{} was attached as {} and as {}", record.name, other.id, record.id));
        }
        let old = self.containers.insert(record.id, record.clone());
        if old.as_ref() == Some(record) {
            return Err(format!("{} was attached a second time as it is already", record.name));
        }
        self.release(&record.name, at);
        Ok(())
    }

    fn removed(&mut self, containers: &[ContainerId], nodes: &[NodeId], at: Timestamp) -> Checked {
        for id in containers {
            let Some(gone) = self.containers.remove(id) else {
                return Err(format!("container {id} was removed and was not there"));
            };
            self.release(&gone.name, at);
        }
        self.nodes.retain(|node| !nodes.contains(node));
        match self.containers.values().find(|left| nodes.contains(&left.node)) {
            Some(left) => Err(format!("the node of {} was removed and the container was not", left.name)),
            None => Ok(()),
        }
    }

    /// Agents or somebody who asked are told of this head: it must be durable, and the one of its revision.
    pub(crate) fn tell(&mut self, head: &Head, durable: Revision) -> Checked {
        if head.revision > durable {
            return Err(format!(
                "revision {} was told of, and {durable} is the last durable one",
                head.revision
            ));
        }
        if self.head(head.revision) != Some(head) {
            return Err(format!(
                "the head told of revision {} is not the one that was committed",
                head.revision
            ));
        }
        self.told = self.told.max(head.revision);
        Ok(())
    }

    /// An agent has a map of this head.
    pub(crate) fn applied(&self, head: &Head) -> Checked {
        if head.revision > self.told || self.head(head.revision) != Some(head) {
            return Err(format!("a map of revision {} was applied that was never published", head.revision));
        }
        Ok(())
    }

    /// What is stored is what was committed, and nothing that was acknowledged is missing.
    pub(crate) fn stored<'a>(&self, revision: Revision, rows: impl Iterator<Item = &'a Row>) -> Checked {
        if revision < self.told || revision.get() != self.revisions() {
            let (told, last) = (self.told, self.revisions());
            return Err(format!("revision {revision} is stored, {told} was acknowledged and {last} durable"));
        }
        let mut stored = rows.filter_map(|row| match row {
            Row::Container(container) => Some(&container.record),
            _ => None,
        });
        let mut known = self.containers.values();
        loop {
            match (stored.next(), known.next()) {
                (None, None) => return Ok(()),
                (is, should) if is == should => {}
                (is, should) => return Err(format!("stored is {is:?}, committed was {should:?}")),
            }
        }
    }

    pub(crate) fn is_member(&self, node: &NodeId) -> bool {
        self.nodes.contains(node)
    }

    pub(crate) fn containers(&self) -> &BTreeMap<ContainerId, ContainerRecord> {
        &self.containers
    }
}

/// Asks for another key of a container, unless one is on its way.
fn ask(record: &mut ContainerRecord) {
    record.rekey |= record.also_key.is_none();
}
