//! A controller's process: what the task of a network does, in virtual time. Of several over one store each takes over what
//! the others have committed before it says anything.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use rand::RngExt as _;
use znet_core::controller::{
    Command, Elsewhere, MemberView, Network, NodeLifetime, Rotations, Row, RowKey, StateChange,
};
use znet_core::feed::{Logged, Ring};
use znet_core::id::{NodeId, Revision};
use znet_core::map::{Delta, SignedHead};
use znet_core::time::Timestamp;

use crate::calls::Answer;
use crate::disk::Frame;
use crate::model::{Effect, Op};
use crate::planted::{self, Bug};
use crate::queue::{Event, Serial, Who};
use crate::streams::{LIVE_TERM, Shared, Stream};
use crate::world::World;

/// As in the controller: commands that may wait, commands of one commit, pauses.
const COMMAND_QUEUE: usize = 1024;
const MAX_BATCH: usize = 256;
const RETRY: Duration = Duration::from_millis(500);
const MAX_CONFLICTS: usize = 5;
const NOTICED_AGAIN: Duration = Duration::from_millis(5);
const TICK: Duration = Duration::from_secs(1);

/// A command and who waits for it; nobody for the controller's own and the operator's.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub(crate) from: Option<(Who, Serial)>,
    pub(crate) command: Rc<Command>,
}

/// What a batch of commands comes to before it is committed.
struct Batch {
    requests: Vec<Waiting>,
    answers: Vec<Answer>,
    frame: Frame,
    deltas: Vec<Delta>,
    expected: Revision,
    /// How often it was decided anew because somebody else was faster.
    conflicts: usize,
}

/// The controller while it runs.
pub(crate) struct Up {
    /// The committed state, with the batch in hand applied.
    working: Network,
    pub(crate) committed: Network,
    pub(crate) head: SignedHead,
    pub(crate) ring: Ring<Shared>,
    waiting: VecDeque<Waiting>,
    batch: Option<Batch>,
    /// Whether the store takes no writes.
    pub(crate) failed: bool,
    /// What a planted bug remembers of a commit that failed.
    unfinished: Option<Batch>,
    pub(crate) streams: BTreeMap<Who, Stream>,
    /// When members gave a sign of life, and what they have applied.
    pub(crate) members: BTreeMap<NodeId, (Timestamp, Option<Revision>)>,
    rotations: Rotations,
    /// What other controllers tell of their members.
    pub(crate) elsewhere: Elsewhere,
}

impl Up {
    pub(crate) fn committed(&self) -> &Network {
        &self.committed
    }

    /// What is to be done about keys that are being changed.
    pub(crate) fn next_change(&mut self, bug: Option<Bug>, now: Timestamp) -> Option<Command> {
        if self.failed || self.batch.is_some() {
            return None;
        }
        let (members, published) = (&self.members, self.committed.revision());
        let here = |node: &NodeId| match members.get(node) {
            Some((seen, applied)) => {
                let applied = if bug == Some(Bug::KeysUnheard) { Some(published) } else { *applied };
                MemberView { live: seen.plus(LIVE_TERM) > now, seen: Some(*seen), applied }
            }
            None => MemberView::default(),
        };
        let view = |node: &NodeId| self.elsewhere.view(node, here(node));
        self.rotations.next(&self.committed, view, now)
    }

    /// Whether it waits for nothing.
    pub(crate) fn idle(&self) -> Result<(), String> {
        match (self.failed, self.batch.is_some() || !self.waiting.is_empty()) {
            (true, _) => Err("the store takes no writes".to_owned()),
            (_, true) => Err("the controller has commands waiting".to_owned()),
            _ => Ok(()),
        }
    }
}

impl World {
    pub(crate) fn controller_start(&mut self) {
        if self.sites[self.here].is_some() {
            return;
        }
        let Some(network) = self.load() else { return };
        self.lives[self.here] += 1;
        let rotations = Rotations::new(self.queue.now());
        let rotations = if self.sites.len() > 1 { rotations.among_others() } else { rotations };
        let head = network.head().sign(&self.key);
        self.sites[self.here] = Some(Up {
            working: network.clone(),
            committed: network.clone(),
            head,
            ring: Ring::default(),
            waiting: VecDeque::new(),
            batch: None,
            failed: false,
            unfinished: None,
            streams: BTreeMap::new(),
            members: BTreeMap::new(),
            rotations,
            elsewhere: Elsewhere::default(),
        });
        // While there was no controller nobody could be seen: a full term for everybody.
        let now = self.now();
        for node in network.nodes() {
            if self.absences.last_seen(&node.id).is_some() {
                self.absences.seen(node.id, now);
            }
        }
        self.install(network);
        self.queue.after(TICK, Event::ControllerTick { site: self.here, life: self.lives[self.here] });
    }

    /// The process ends; with a power cut some of what is not durable is lost.
    pub(crate) fn controller_crash(&mut self, power_cut: bool) {
        if self.sites[self.here].take().is_none() {
            return;
        }
        self.lives[self.here] += 1;
        if power_cut {
            let left = self.rng.random_range(0..=self.disk.cached());
            self.disk.power_cut(left);
        }
        let ours = self.conns.iter().filter(|(_, conn)| conn.site == self.here);
        let conns: Vec<Serial> = ours.map(|(serial, _)| *serial).collect();
        for conn in conns {
            if power_cut { self.kill_conn(conn) } else { self.reset_conn(conn) }
        }
    }

    /// Loads what the store has; reading makes durable what was written and not yet so.
    fn load(&mut self) -> Option<Network> {
        self.sync();
        let stored = self.model.stored(self.disk.durable(), self.disk.rows());
        self.check(stored);
        match Network::from_rows(self.disk.durable(), self.disk.rows().cloned()) {
            Ok(network) => Some(network),
            Err(corrupt) => {
                tracing::error!(%corrupt, "the network cannot be served");
                None
            }
        }
    }

    fn sync(&mut self) {
        let frames = self.disk.sync();
        for op in frames.iter().flat_map(|frame| &frame.ops) {
            let checked = self.model.commit(op);
            self.check(checked);
        }
        if !frames.is_empty() {
            self.notify_others();
        }
    }

    /// Makes a loaded state the one that agents see.
    fn install(&mut self, network: Network) {
        let now = self.now();
        let Some(up) = &mut self.sites[self.here] else { return };
        up.head = network.head().sign(&self.key);
        let gone: Vec<NodeId> =
            up.committed.nodes().map(|node| node.id).filter(|node| network.node(node).is_none()).collect();
        for node in network.nodes().filter(|node| node.lifetime == NodeLifetime::Ephemeral) {
            if self.absences.last_seen(&node.id).is_none() {
                self.absences.seen(node.id, now);
            }
        }
        up.ring.reset(up.head);
        (up.working, up.committed) = (network.clone(), network);
        let told = self.model.tell(&up.head.head, self.disk.durable());
        self.check(told);
        gone.iter().for_each(|node| self.dismiss(node));
        self.pump_all();
    }

    pub(crate) fn controller_tick(&mut self) {
        let now = self.now();
        if self.sites[self.here].as_ref().is_some_and(|up| up.failed) {
            self.resume();
        }
        self.end_silent_streams();
        let Some(up) = &mut self.sites[self.here] else { return };
        up.ring.tidy(now);
        let after = if up.failed { RETRY } else { TICK };
        self.queue.after(after, Event::ControllerTick { site: self.here, life: self.lives[self.here] });
        let absent: Vec<NodeId> = self.absences.absent(up.committed.conf().ephemeral_ttl(), now).collect();
        if !absent.is_empty() && !up.failed && up.batch.is_none() {
            self.submit(Waiting { from: None, command: Rc::new(Command::Collect { absent }) });
        }
        self.lead_changes();
    }

    /// A command came in.
    pub(crate) fn submit(&mut self, waiting: Waiting) {
        let Some(up) = &mut self.sites[self.here] else { return };
        if up.failed {
            return self.refuse(vec![waiting]);
        }
        if up.waiting.len() >= COMMAND_QUEUE {
            return self.answer_one(&waiting, Answer::Unavailable);
        }
        up.waiting.push_back(waiting);
        self.start_batch();
    }

    fn start_batch(&mut self) {
        let Some(up) = &mut self.sites[self.here] else { return };
        if up.batch.is_some() || up.waiting.is_empty() {
            return;
        }
        let most = up.waiting.len().min(MAX_BATCH);
        let requests: Vec<Waiting> = up.waiting.drain(..most).collect();
        self.commit(requests, 0);
    }

    /// Decides a batch and has it committed, if there is anything to commit.
    fn commit(&mut self, requests: Vec<Waiting>, conflicts: usize) {
        let Some(batch) = self.draft(requests, conflicts) else { return };
        if batch.frame.logged.is_empty() {
            self.answer_all(batch.requests, batch.answers);
            return self.start_batch();
        }
        if let Some(up) = &mut self.sites[self.here] {
            up.batch = Some(batch);
        }
        let write = Duration::from_millis(self.rng.random_range(0..=3));
        self.queue.after(write, Event::CommitWrite { site: self.here, life: self.lives[self.here] });
    }

    /// Decides each command on the state that the ones before it lead to.
    fn draft(&mut self, requests: Vec<Waiting>, conflicts: usize) -> Option<Batch> {
        self.catch_up();
        let now = self.now();
        let up = self.sites[self.here].as_mut()?;
        let mut batch = Batch {
            answers: Vec::with_capacity(requests.len()),
            frame: Frame { logged: Vec::new(), ops: Vec::new() },
            deltas: Vec::new(),
            expected: up.working.revision(),
            conflicts,
            requests,
        };
        for Waiting { command, .. } in &batch.requests {
            let mut decision = match up.working.decide(command, now, &mut self.rng) {
                Ok(decision) => decision,
                Err(rejection) => {
                    batch.answers.push(Answer::Rejected(rejection.code()));
                    continue;
                }
            };
            planted::decided(self.bug, &mut decision.changes);
            if !decision.changes.is_empty() {
                batch.deltas.push(up.working.apply(&decision.changes));
                let head = up.working.head();
                let effect = Effect::of(command, &decision.reply);
                batch.frame.ops.push(Op { at: now, head, effect });
                batch.frame.logged.push(Logged { head, changes: decision.changes });
            }
            batch.answers.push(Answer::of(decision.reply, up.working.revision()));
        }
        Some(batch)
    }

    pub(crate) fn commit_write(&mut self) {
        let refused = self.disk.full || self.chance(self.scenario.commit_refused);
        let flush_fails = self.chance(self.scenario.flush_fails);
        let Some(batch) = self.sites[self.here].as_ref().and_then(|up| up.batch.as_ref()) else { return };
        if refused {
            self.note(|| "the disk refuses the commit".to_owned());
            return self.fail();
        }
        let frame = batch.frame.clone();
        if !self.disk.write(batch.expected, frame) {
            return self.conflict();
        }
        if flush_fails {
            self.note(|| "the commit is written and its flush fails".to_owned());
            return self.fail();
        }
        if self.bug == Some(Bug::AcknowledgedBeforeSync) {
            self.finish();
        }
        let sync = Duration::from_millis(self.rng.random_range(0..=8));
        self.queue.after(sync, Event::CommitSync { site: self.here, life: self.lives[self.here] });
    }

    pub(crate) fn commit_sync(&mut self) {
        self.sync();
        if self.chance(self.scenario.commit_lies) {
            self.note(|| "the commit is durable and reported as failed".to_owned());
            return self.fail();
        }
        if self.bug != Some(Bug::AcknowledgedBeforeSync) {
            self.finish();
        }
    }

    /// The batch in hand is committed: shows it and answers.
    fn finish(&mut self) {
        let Some(batch) = self.sites[self.here].as_mut().and_then(|up| up.batch.take()) else { return };
        self.publish(&batch);
        self.answer_all(batch.requests, batch.answers);
        self.start_batch();
    }

    fn publish(&mut self, batch: &Batch) {
        let now = self.now();
        let Some(up) = &mut self.sites[self.here] else { return };
        let before = up.committed.conf().record();
        let mut gone = Vec::new();
        for logged in &batch.frame.logged {
            up.committed.apply(&logged.changes);
            for change in &logged.changes {
                match change {
                    StateChange::Put(Row::Node(node)) if node.lifetime == NodeLifetime::Ephemeral => {
                        self.absences.seen(node.id, now);
                    }
                    StateChange::Remove(RowKey::Node(node)) => gone.push(*node),
                    _ => {}
                }
            }
        }
        up.head = up.committed.head().sign(&self.key);
        let mut deltas = batch.deltas.clone();
        planted::published(self.bug, &mut deltas);
        up.ring.publish(&before, &deltas, up.head);
        gone.retain(|node| up.committed.node(node).is_none());
        let same = up.committed == up.working;
        let told = self.model.tell(&up.head.head, self.disk.durable());
        self.check(told);
        if !same {
            self.breach("what readers see is not what was decided".to_owned());
        }
        gone.iter().for_each(|node| self.dismiss(node));
        self.pump_all();
    }

    /// Another controller was faster: everything is decided anew on what it left.
    fn conflict(&mut self) {
        let Some(batch) = self.sites[self.here].as_mut().and_then(|up| up.batch.take()) else { return };
        if self.sites.len() == 1 {
            return self.breach("another writer was faster, and there is none".to_owned());
        }
        self.note(|| "another controller was faster".to_owned());
        let Some(network) = self.load() else { return };
        self.install(network);
        if batch.conflicts < MAX_CONFLICTS {
            return self.commit(batch.requests, batch.conflicts + 1);
        }
        let refused = vec![Answer::Unavailable; batch.requests.len()];
        self.answer_all(batch.requests, refused);
        self.start_batch();
    }

    /// What a controller says must be so in the store: whatever another one has committed is taken over first.
    pub(crate) fn catch_up(&mut self) {
        let durable = self.disk.durable();
        let Some(up) = &self.sites[self.here] else { return };
        if up.batch.is_none() && up.committed.revision() < durable {
            let Some(network) = self.load() else { return };
            self.install(network);
        }
    }

    /// Hears of what another controller has committed; while a commit is under way that will tell.
    pub(crate) fn noticed(&mut self) {
        if self.sites[self.here].as_ref().is_some_and(|up| up.batch.is_some()) {
            self.queue.after(NOTICED_AGAIN, Event::Noticed { site: self.here });
        }
        self.catch_up();
    }

    fn notify_others(&mut self) {
        let here = self.here;
        for site in (0..self.sites.len()).filter(|site| *site != here) {
            let delay = self.delay();
            self.queue.after(delay, Event::Noticed { site });
        }
    }

    /// The store failed. Whether it did what it was asked to is not known.
    fn fail(&mut self) {
        let Some(up) = &mut self.sites[self.here] else { return };
        up.failed = true;
        up.working = up.committed.clone();
        let mut requests: Vec<Waiting> = Vec::new();
        if let Some(mut batch) = up.batch.take() {
            requests = std::mem::take(&mut batch.requests);
            up.unfinished = Some(batch);
        }
        requests.extend(up.waiting.drain(..));
        self.refuse(requests);
    }

    /// What needs no commit is answered, everything else is refused.
    fn refuse(&mut self, requests: Vec<Waiting>) {
        let now = self.now();
        self.catch_up();
        for waiting in requests {
            let Some(up) = &self.sites[self.here] else { return };
            let answer = match up.working.decide(&waiting.command, now, &mut self.rng) {
                Ok(decision) if decision.changes.is_empty() => {
                    Answer::of(decision.reply, up.working.revision())
                }
                Ok(_) => Answer::Unavailable,
                Err(rejection) => Answer::Rejected(rejection.code()),
            };
            self.answer_one(&waiting, answer);
        }
    }

    /// Tries the store. What it holds counts: a commit that was reported as failed may have happened.
    fn resume(&mut self) {
        if self.disk.full || self.chance(self.scenario.commit_refused) {
            return;
        }
        let Some(network) = self.load() else { return };
        self.install(network);
        let happened = self.disk.written();
        let Some(up) = &mut self.sites[self.here] else { return };
        up.failed = false;
        let unfinished = up.unfinished.take().filter(|batch| happened > batch.expected);
        if let Some(batch) = unfinished
            && self.bug == Some(Bug::DeltaTwice)
        {
            batch.frame.logged.iter().for_each(|logged| drop(up.working.apply(&logged.changes)));
            self.publish(&batch);
        }
    }

    fn answer_all(&mut self, requests: Vec<Waiting>, answers: Vec<Answer>) {
        for (waiting, answer) in requests.iter().zip(answers) {
            self.answer_one(waiting, answer);
        }
    }
}
