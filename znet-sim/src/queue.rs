//! What will happen, in the order in which it will.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use znet_core::controller::Command;
use znet_core::id::Revision;
use znet_core::map::{Delta, Head, Record, SignedHead};
use znet_core::time::Timestamp;

use crate::calls::Answer;

/// A node by its number in the simulation.
pub(crate) type Who = usize;
/// A controller's process by its number.
pub(crate) type Site = usize;
/// The number of a connection, a call, or of a life of a process: whatever is for an earlier one comes too late.
pub(crate) type Serial = u64;

/// One thing that an agent is told over its stream.
#[derive(Clone, Debug)]
pub(crate) enum Told {
    Delta(Delta, SignedHead),
    Part(Vec<Record>, Option<SignedHead>),
    Head(SignedHead),
    /// The controller ends the stream; whether as the node is no member.
    End {
        unknown_node: bool,
    },
}

/// One thing that an agent says over its stream.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Say {
    Open(Option<Head>),
    Applied(Revision),
    Heartbeat,
    WantSnapshot,
}

/// Something that happens.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A command reaches the controller.
    Call {
        site: Site,
        who: Who,
        call: Serial,
        command: Rc<Command>,
    },
    /// Its answer reaches the agent.
    Answered {
        who: Who,
        call: Serial,
        answer: Answer,
    },
    /// The agent waits for it no longer.
    CallOver {
        who: Who,
        call: Serial,
    },
    /// A message reaches the controller.
    Said {
        conn: Serial,
        say: Say,
    },
    /// A message reaches the agent; whether it makes room for the next one.
    Told {
        conn: Serial,
        told: Arc<Told>,
        frees: bool,
    },
    /// The agent notices that nothing comes through.
    Broken {
        conn: Serial,
    },
    /// A stream may go on.
    Pump {
        site: Site,
        who: Who,
    },
    /// A controller's process is started.
    ControllerStart {
        site: Site,
    },
    /// Its clock ticks.
    ControllerTick {
        site: Site,
        life: Serial,
    },
    /// Its commit is written, and then durable.
    CommitWrite {
        site: Site,
        life: Serial,
    },
    CommitSync {
        site: Site,
        life: Serial,
    },
    /// It hears that another one has committed.
    Noticed {
        site: Site,
    },
    /// An agent's process is started.
    AgentStart {
        who: Who,
    },
    /// An agent connects, says that it is alive, compares its host with what should be.
    Connect {
        who: Who,
        life: Serial,
    },
    Beat {
        who: Who,
        life: Serial,
    },
    Reconcile {
        who: Who,
        life: Serial,
    },
    /// Somebody wants something of a node, or of the controller.
    Work {
        who: Who,
    },
    Operate,
    /// A fault begins or ends.
    Partition,
    Rejoin {
        who: Who,
    },
    CrashAgent,
    CrashController,
    DiskFull,
    DiskFree,
    /// Faults and wishes end here.
    Calm,
    /// Looks whether the mesh is whole, and at the model as a whole.
    Look,
}

impl Event {
    /// The controller at which it happens, if it says so itself.
    pub(crate) fn site(&self) -> Option<Site> {
        match self {
            Self::Call { site, .. }
            | Self::Pump { site, .. }
            | Self::ControllerStart { site }
            | Self::ControllerTick { site, .. }
            | Self::CommitWrite { site, .. }
            | Self::CommitSync { site, .. }
            | Self::Noticed { site } => Some(*site),
            _ => None,
        }
    }

    /// Whether it tells anything to whoever reads the trace.
    pub(crate) fn is_telling(&self) -> bool {
        !matches!(
            self,
            Self::Look
                | Self::ControllerTick { .. }
                | Self::Beat { .. }
                | Self::Said { say: Say::Heartbeat, .. }
        )
    }

    /// The connection on which it happens.
    pub(crate) fn conn(&self) -> Option<Serial> {
        match self {
            Self::Said { conn, .. } | Self::Told { conn, .. } | Self::Broken { conn } => Some(*conn),
            _ => None,
        }
    }
}

struct Entry {
    at: Timestamp,
    serial: Serial,
    event: Event,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.serial) == (other.at, other.serial)
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.serial).cmp(&(other.at, other.serial))
    }
}

/// The events to come, and the time.
pub(crate) struct Queue {
    entries: BinaryHeap<Reverse<Entry>>,
    serial: Serial,
    now: Timestamp,
}

impl Queue {
    pub(crate) fn new(now: Timestamp) -> Self {
        Self { entries: BinaryHeap::new(), serial: 0, now }
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.now
    }

    pub(crate) fn after(&mut self, delay: Duration, event: Event) {
        self.at(self.now.plus(delay), event);
    }

    /// What is due at one instant happens in the order in which it was put here.
    pub(crate) fn at(&mut self, at: Timestamp, event: Event) {
        self.serial += 1;
        self.entries.push(Reverse(Entry { at: at.max(self.now), serial: self.serial, event }));
    }

    pub(crate) fn pop(&mut self) -> Option<Event> {
        let Reverse(Entry { at, event, .. }) = self.entries.pop()?;
        self.now = at;
        Some(event)
    }
}
