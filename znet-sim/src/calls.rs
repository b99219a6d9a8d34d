//! Calls of agents to the controller, and what becomes of their answers.

use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use znet_core::controller::{Command, Reply};
use znet_core::id::Revision;
use znet_core::key::PublicKey;
use znet_core::map::ContainerRecord;
use znet_core::name::Name;

use crate::controller::Waiting;
use crate::queue::{Event, Serial, Who};
use crate::world::World;

/// How long an agent waits for an answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// What a call is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Join,
    Endpoints,
    Attach(Name),
    Detach(Name),
    Offer(Name, PublicKey),
}

impl What {
    /// The container that it is about.
    pub(crate) fn name(&self) -> Option<&Name> {
        match self {
            Self::Attach(name) | Self::Detach(name) | Self::Offer(name, _) => Some(name),
            Self::Join | Self::Endpoints => None,
        }
    }
}

/// What the controller answers.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Done,
    Attached(ContainerRecord, Revision),
    Rejected(&'static str),
    /// Not now, and perhaps it was done all the same.
    Unavailable,
}

impl Answer {
    pub(crate) fn of(reply: Reply, revision: Revision) -> Self {
        match reply {
            Reply::Attached { container, .. } => Self::Attached(container, revision),
            _ => Self::Done,
        }
    }
}

impl World {
    pub(crate) fn call(&mut self, who: Who, what: What) {
        self.last_call += 1;
        let (call, site) = (self.last_call, self.agents[who].site);
        let addresses = self.addresses_wanted();
        let command = Rc::new(self.command(who, &what, addresses));
        self.note(|| format!("node {who} calls ({call}): {what:?}"));
        let repeatable = matches!(what, What::Join | What::Endpoints);
        self.agents[who].calls.insert(call, what);
        if let Some(delay) = self.parcel(who) {
            self.queue.after(delay, Event::Call { site, who, call, command: command.clone() });
        }
        // Only what the agent itself would repeat comes twice: a connection repeats no call.
        if repeatable
            && self.chance(self.scenario.duplicate)
            && let Some(delay) = self.parcel(who)
        {
            self.queue.after(delay, Event::Call { site, who, call, command });
        }
        self.queue.after(CALL_TIMEOUT, Event::CallOver { who, call });
    }

    fn command(&self, who: Who, what: &What, addresses: Vec<IpAddr>) -> Command {
        let agent = &self.agents[who];
        let host = 10 + u8::try_from(who % 200).unwrap_or(0);
        let endpoints = vec![([192, 0, 2, host], agent.port).into()];
        let node = agent.id;
        match what {
            What::Join => {
                let secret = if agent.lasts { &self.lasting } else { &self.ephemeral };
                let secret = (!agent.member_of).then(|| secret.clone());
                Command::Join { secret, node, name: agent.name.clone(), endpoints, two_keys: true }
            }
            What::Endpoints => Command::SetEndpoints { node, endpoints },
            What::Attach(name) => {
                Command::Attach { node, name: name.clone(), addresses, public_key: None, port: None }
            }
            What::Detach(name) => Command::Detach { node, name: name.clone() },
            What::Offer(name, public_key) => {
                Command::OfferKey { node, name: name.clone(), public_key: *public_key }
            }
        }
    }

    pub(crate) fn called(&mut self, who: Who, call: Serial, command: Rc<Command>) {
        self.submit(Waiting { from: Some((who, call)), command });
    }

    pub(crate) fn answer_one(&mut self, waiting: &Waiting, answer: Answer) {
        // What somebody is told happened must never be undone.
        let Some(head) = self.sites[self.here].as_ref().map(|up| up.head.head) else { return };
        let told = self.model.tell(&head, self.disk.durable());
        self.check(told);
        // Held against the revision at which it was so: another controller may have removed it since, and then its head, which
        // the model knows, is a later one.
        let here = self.sites[self.here].as_ref();
        if let Answer::Attached(record, _) = &answer
            && matches!(*waiting.command, Command::Attach { .. })
            && here
                .and_then(|up| up.committed.map().container(record.id))
                .is_some_and(|known| known != record)
        {
            self.breach(format!("{} was acknowledged and is not what was committed", record.name));
        }
        if let Some((who, call)) = waiting.from
            && let Some(delay) = self.parcel(who)
        {
            self.queue.after(delay, Event::Answered { who, call, answer });
        }
    }

    pub(crate) fn answered(&mut self, who: Who, call: Serial, answer: Answer) {
        let Some(what) = self.agents[who].calls.remove(&call) else { return };
        match (what, answer) {
            (What::Join, Answer::Done) => self.joined(who),
            (What::Join, answer) => {
                if matches!(answer, Answer::Rejected("unknown_node")) {
                    self.expelled(who);
                }
                self.reconnect(who);
            }
            (What::Attach(name), Answer::Attached(record, revision)) => {
                self.attached(who, name, record, revision);
            }
            // What the controller does not know needs no release.
            (What::Detach(name), Answer::Done | Answer::Rejected(_)) => {
                self.agents[who].owed.remove(&name);
            }
            (What::Attach(name), Answer::Unavailable) => self.attach_failed(who, name),
            _ => {}
        }
    }

    fn attached(&mut self, who: Who, name: Name, record: ContainerRecord, revision: Revision) {
        let agent = &mut self.agents[who];
        if record.node != agent.id || record.name != name {
            return self.breach(format!("node {who} asked for {name} and was given {record:?}"));
        }
        agent.owed.remove(&name);
        // The controller may have been told meanwhile to remove it again, and the map that says so may be here already.
        let gone = agent.member.revision() >= revision && !self.sees(who, record.id);
        let agent = &mut self.agents[who];
        let has = |other: &ContainerRecord| {
            other.name != name && other.addresses().any(|address| record.addresses().any(|a| a == address))
        };
        if agent.attachments.values().any(|(other, _)| has(other)) {
            // As an agent that has not heard yet that the other one was removed: it gives this one back.
            agent.attachments.remove(&name);
            agent.owed.insert(name.clone());
            return self.call(who, What::Detach(name));
        }
        if agent.member_of && !gone {
            agent.given(&record);
            agent.attachments.insert(name, (record, revision));
        }
        let life = agent.life;
        self.queue.after(Duration::ZERO, Event::Reconcile { who, life });
    }

    /// It may have happened all the same: then the map tells, now or later.
    fn attach_failed(&mut self, who: Who, name: Name) {
        let agent = &self.agents[who];
        if agent.member.map().containers().any(|record| record.name == name && record.node == agent.id) {
            self.release_unless_attached(who, name);
        }
    }

    pub(crate) fn call_over(&mut self, who: Who, call: Serial) {
        match self.agents[who].calls.remove(&call) {
            Some(What::Join) => self.reconnect(who),
            Some(What::Attach(name)) => self.attach_failed(who, name),
            _ => {}
        }
    }
}
