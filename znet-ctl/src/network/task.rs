//! The task of one network: it alone decides.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, mpsc, oneshot};
use znet_api::error::Problem;
use znet_core::controller::{Command, Network, Rejection, Rotations, Row, RowKey, StateChange};
use znet_core::id::NodeId;
use znet_core::map::Delta;
use znet_core::name::Name;

use super::others::Others;
use super::suspects::{Step, Suspects};
use super::{CommandError, Committed, Condition, Done, Hosted, Job, MAX_BATCH, audit};
use crate::actor::Actor;
use crate::store::{Commit, StoreError};

/// How often a batch is decided anew because somebody else committed in between.
const MAX_CONFLICTS: usize = 30;
/// How often a store that failed is tried, and how often a network that could not be loaded is.
const RETRY: Duration = Duration::from_millis(500);
/// How often absent nodes are looked for.
const TICK: Duration = Duration::from_secs(1);
/// And when time alone can change nothing.
const IDLE_TICK: Duration = Duration::from_secs(3600);

type Answer = oneshot::Sender<Result<Done, CommandError>>;

/// A command and whoever waits for it.
struct Request {
    command: Command,
    actor: Actor,
    answer: Answer,
}

/// What a batch of requests comes to before it is committed.
#[derive(Default)]
struct Draft {
    /// For each request: the answer, or nothing when nobody waits for it any more.
    answers: Vec<Option<Result<Done, Rejection>>>,
    commits: Vec<Commit>,
    deltas: Vec<Delta>,
}

pub(super) struct Task {
    pub(super) hosted: Arc<Hosted>,
    /// The committed state, with the batch in hand applied.
    pub(super) working: Network,
    /// The store's error since it failed.
    failed: Option<StoreError>,
    suspects: Suspects,
    /// The changes of key pairs that are under way.
    rotations: Rotations,
    /// The nodes of which was told last that they hold changes up.
    unable: Vec<Name>,
}

/// Runs until the network is stopped, and then finishes what waits.
pub(super) async fn run(hosted: Arc<Hosted>, jobs: Arc<Mutex<mpsc::Receiver<Job>>>) {
    let mut jobs = jobs.lock().await;
    // Before the network is loaded: what is committed from then on is heard of.
    let mut others = Others::of(&hosted);
    let Some(mut task) = Task::load(&hosted, &mut jobs).await else { return };
    let mut taken = Vec::with_capacity(MAX_BATCH);
    let mut last_tick = tokio::time::Instant::now();
    loop {
        // Counted from the last tick and looked at before the commands: however many come, time goes on.
        let tick = last_tick + task.tick_after();
        tokio::select! {
            biased;
            () = hosted.stop.cancelled() => break,
            () = tokio::time::sleep_until(tick) => {
                task.tick(&mut others).await;
                last_tick = tokio::time::Instant::now();
            }
            () = others.heard() => task.follow(&others).await,
            _ = jobs.recv_many(&mut taken, MAX_BATCH) => task.jobs(&mut taken).await,
            () = hosted.wake.notified() => {}
        }
    }
    jobs.close();
    while jobs.recv_many(&mut taken, MAX_BATCH).await > 0 {
        task.jobs(&mut taken).await;
    }
}

impl Task {
    /// Loads the network, however long it takes; `None` when it was stopped before.
    async fn load(hosted: &Arc<Hosted>, jobs: &mut mpsc::Receiver<Job>) -> Option<Self> {
        loop {
            let why = match load(hosted).await {
                Ok(working) => {
                    install(hosted, &working);
                    hosted.set_condition(Condition::Serving);
                    let rotations = Rotations::new(hosted.common.clock.steady());
                    let alone = hosted.common.store.shared().is_none();
                    let rotations = if alone { rotations } else { rotations.among_others() };
                    let suspects = Suspects::default();
                    return Some(Self {
                        hosted: hosted.clone(),
                        working,
                        failed: None,
                        suspects,
                        rotations,
                        unable: Vec::new(),
                    });
                }
                Err(StoreError::UnknownNetwork { .. }) => {
                    hosted.deleted();
                    return None;
                }
                Err(error) => error.to_string(),
            };
            hosted.set_condition(Condition::Broken(why.clone()));
            let retry = tokio::time::sleep(RETRY);
            tokio::pin!(retry);
            loop {
                tokio::select! {
                    () = hosted.stop.cancelled() => return None,
                    () = &mut retry => break,
                    job = jobs.recv() => {
                        if let Some(Job::Execute { answer, .. }) = job {
                            let _ = answer.send(Err(CommandError::Broken { why: why.clone() }));
                        }
                    }
                }
            }
        }
    }

    fn tick_after(&self) -> Duration {
        if self.failed.is_some() {
            RETRY
        } else if self.hosted.presence.depends_on_time()
            || self.hosted.feed.tidy(self.hosted.common.clock.now())
        {
            TICK
        } else {
            IDLE_TICK
        }
    }

    async fn tick(&mut self, others: &mut Others) {
        if self.failed.is_some() {
            self.resume().await;
        }
        let hosted = self.hosted.clone();
        let now = hosted.common.clock.steady();
        hosted.presence.expire(now);
        others.report(&hosted, &self.working).await;
        others.pass_on_questions(&hosted).await;
        let absent = hosted.overdue().await;
        let Step { ask, collect: absent } = self.suspects.step_for(&hosted, &absent);
        others.ask(&hosted, &ask).await;
        if !absent.is_empty() {
            self.command(Command::Collect { absent }).await;
        }
        if self.failed.is_none() {
            others.exchange_applied(&hosted, &self.working, now).await;
        }
        let view = |node: &NodeId| others.view(node, hosted.presence.view(node, now));
        let next = self.rotations.next(&self.working, view, now);
        self.tell_held_up();
        if let Some(next) = next {
            self.command(next).await;
        }
    }

    /// Says, once, that keys are not changed by age, and because of whom.
    fn tell_held_up(&mut self) {
        let unable = self.rotations.held_up_by();
        if unable == self.unable {
            return;
        }
        self.unable = unable.to_vec();
        if !unable.is_empty() {
            let nodes: Vec<String> = unable.iter().map(ToString::to_string).collect();
            tracing::warn!(
                network = %self.hosted.name, nodes = nodes.join(", "),
                "keys are due to be changed and are not, as these nodes cannot do with a container that has two keys meanwhile; \
                 `znet-ctl status` tells what helps"
            );
        }
    }

    /// Has a command of the controller's own decided.
    async fn command(&mut self, command: Command) {
        if self.failed.is_none() {
            let (answer, _) = oneshot::channel();
            self.batch(vec![Request { command, actor: Actor::Controller, answer }]).await;
        }
    }

    async fn jobs(&mut self, jobs: &mut Vec<Job>) {
        let mut requests = Vec::with_capacity(jobs.len());
        for job in jobs.drain(..) {
            match job {
                Job::Execute { command, actor, answer } => requests.push(Request { command, actor, answer }),
                #[cfg(test)]
                Job::Panic => {
                    #[allow(clippy::panic)]
                    {
                        panic!("injected by a test")
                    }
                }
            }
        }
        match self.failed.clone() {
            None => self.batch(requests).await,
            Some(error) => self.refuse(requests, &error),
        }
    }

    /// Decides, commits, publishes and answers.
    async fn batch(&mut self, requests: Vec<Request>) {
        let hosted = self.hosted.clone();
        for _ in 0..MAX_CONFLICTS {
            let expected = self.working.revision();
            let draft = self.draft(&requests);
            if draft.commits.is_empty() {
                // A commit fails where another controller was faster. What needs none, a refusal too, is only right of what is
                // committed now: a member that is told that it is none takes its containers down.
                if let Err(error) = self.catch_up_with_others().await {
                    return self.fail_all(requests, error);
                }
                if self.working.revision() == expected {
                    return answer(requests, draft.answers);
                }
                continue;
            }
            if let Err(error) = hosted.signers.ready(&self.working).await {
                return self.fail_all(requests, error);
            }
            let changes: Vec<Vec<StateChange>> =
                draft.commits.iter().map(|commit| commit.changes.clone()).collect();
            let begun = Instant::now();
            let committed = hosted.common.store.commit(hosted.id, expected, draft.commits).await;
            hosted.common.metrics.commit(begun.elapsed(), changes.len());
            match committed {
                Ok(()) => {
                    self.publish(&changes, &draft.deltas);
                    return answer(requests, draft.answers);
                }
                Err(StoreError::Conflict { .. }) => {
                    let took_back = hosted.read(|before, _| {
                        self.working.revert(before, changes.iter().flatten());
                    });
                    if took_back.is_err() {
                        return refuse_all(requests, &CommandError::Starting);
                    }
                    if let Err(error) = self.catch_up().await {
                        return self.fail_all(requests, error);
                    }
                }
                Err(error) => return self.fail_all(requests, error),
            }
        }
        let busy = StoreError::Unavailable { why: "other writers are faster all the time".to_owned() };
        self.roll_back();
        refuse_all(requests, &CommandError::Store(busy));
    }

    /// Decides each request on the state that the ones before it lead to.
    fn draft(&mut self, requests: &[Request]) -> Draft {
        let mut draft = Draft::default();
        let now = self.hosted.common.clock.now();
        for Request { command, actor, answer } in requests {
            // Nobody waits for it any more: then it need not happen. The controller's own have no listener.
            if answer.is_closed() && *actor != Actor::Controller {
                draft.answers.push(None);
                continue;
            }
            let decision = match self.working.decide(command, now, &mut rand::rng()) {
                Ok(decision) => decision,
                Err(rejection) => {
                    draft.answers.push(Some(Err(rejection)));
                    continue;
                }
            };
            let changed = !decision.changes.is_empty();
            if changed {
                let audit = audit::note(command, &decision.reply, actor, &self.working, now);
                draft.deltas.push(self.working.apply(&decision.changes));
                draft.commits.push(Commit { head: self.working.head(), changes: decision.changes, audit });
            }
            let done = Done { reply: decision.reply, revision: self.working.revision(), changed };
            draft.answers.push(Some(Ok(done)));
        }
        draft
    }

    /// Shows readers and agents what was committed.
    fn publish(&self, changes: &[Vec<StateChange>], deltas: &[Delta]) {
        let hosted = &self.hosted;
        let Some(head) = hosted.signers.sign(&self.working) else {
            return tracing::error!(network = %hosted.name, "what was committed cannot be signed");
        };
        let before = {
            let mut committed = hosted.committed.write().unwrap_or_else(PoisonError::into_inner);
            let Some(committed) = &mut *committed else { return };
            let before = committed.network.conf().record();
            for step in changes {
                committed.network.apply(step);
            }
            committed.head = head;
            before
        };
        let now = hosted.common.clock.steady();
        let mut gone = Vec::new();
        for change in changes.iter().flatten() {
            match change {
                StateChange::Put(Row::Node(node)) => hosted.presence.admit(node.id, node.lifetime, now),
                StateChange::Remove(RowKey::Node(node)) => gone.push(*node),
                _ => {}
            }
        }
        hosted.feed.publish(&before, deltas, head);
        for node in gone.into_iter().filter(|node| self.working.node(node).is_none()) {
            self.dismiss(node);
        }
    }

    fn dismiss(&self, node: NodeId) {
        self.hosted.presence.forget(&node);
        self.hosted.streams.end(&node, &Problem::from(&Rejection::UnknownNode { node }));
    }

    /// Answers while the store takes no writes: what needs none is done, everything else is refused.
    fn refuse(&self, requests: Vec<Request>, error: &StoreError) {
        for request in requests {
            let now = self.hosted.common.clock.now();
            let result = match self.working.decide(&request.command, now, &mut rand::rng()) {
                Ok(decision) if decision.changes.is_empty() => {
                    Ok(Done { reply: decision.reply, revision: self.working.revision(), changed: false })
                }
                Ok(_) => Err(CommandError::Store(error.clone())),
                // Others may have changed what it is rejected for.
                Err(_) if self.hosted.common.store.shared().is_some() => {
                    Err(CommandError::Store(error.clone()))
                }
                Err(rejection) => Err(CommandError::Rejected(rejection)),
            };
            let _ = request.answer.send(result);
        }
    }

    /// Takes no writes from now on, until [`Task::resume`] succeeds.
    fn fail(&mut self, error: StoreError) {
        self.roll_back();
        self.hosted.set_condition(Condition::ReadOnly(error.clone()));
        self.failed = Some(error);
    }

    /// Back to what is committed, as far as this process knows.
    fn roll_back(&mut self) {
        if let Ok(network) = self.hosted.read(|network, _| network.clone()) {
            self.working = network;
        }
    }

    /// Tries the store. What it holds counts: a commit that it reported as failed may have happened.
    async fn resume(&mut self) {
        let tried = match self.hosted.common.store.probe().await {
            Ok(()) => self.catch_up().await,
            Err(error) => Err(error),
        };
        match tried {
            Ok(()) => {
                self.failed = None;
                self.hosted.set_condition(Condition::Serving);
            }
            Err(error) => {
                self.hosted.set_condition(Condition::ReadOnly(error.clone()));
                self.failed = Some(error);
            }
        }
    }

    /// The store fails, or the network is gone.
    fn fail_all(&mut self, requests: Vec<Request>, error: StoreError) {
        if let StoreError::UnknownNetwork { .. } = error {
            self.hosted.deleted();
            return refuse_all(requests, &CommandError::Deleted);
        }
        self.fail(error.clone());
        self.refuse(requests, &error);
    }

    /// To what is committed now, where others may have committed something.
    async fn catch_up_with_others(&mut self) -> Result<(), StoreError> {
        match self.hosted.common.store.shared() {
            Some(_) => self.catch_up().await,
            None => Ok(()),
        }
    }

    /// Takes over what others have committed, as if it had been decided here.
    async fn follow(&mut self, others: &Others) {
        // Its own commits are announced as well.
        if others.is_ahead_of(self.working.revision()) {
            self.catch_up_or_fail().await;
        }
    }

    async fn catch_up_or_fail(&mut self) {
        if self.failed.is_some() {
            return;
        }
        match self.catch_up().await {
            Ok(()) => {}
            Err(StoreError::UnknownNetwork { .. }) => self.hosted.deleted(),
            Err(error) => self.fail(error),
        }
    }

    /// From the last revision that this process knows to the last that is committed. Costs what happened in between,
    /// unless the log does not reach back or leads somewhere else.
    async fn catch_up(&mut self) -> Result<(), StoreError> {
        let since = self.working.revision();
        let log = match self.hosted.common.store.changes_since(self.hosted.id, since).await {
            Ok(log) => log,
            Err(StoreError::Compacted { .. }) => return self.reload().await,
            Err(error) => return Err(error),
        };
        let (mut changes, mut deltas) = (Vec::with_capacity(log.len()), Vec::with_capacity(log.len()));
        for logged in log {
            deltas.push(self.working.apply(&logged.changes));
            if self.working.head() != logged.head {
                tracing::warn!(network = %self.hosted.name, "the change log leads elsewhere; loading the network");
                return self.reload().await;
            }
            changes.push(logged.changes);
        }
        if !changes.is_empty() {
            self.hosted.signers.ready(&self.working).await?;
            self.publish(&changes, &deltas);
        }
        Ok(())
    }

    async fn reload(&mut self) -> Result<(), StoreError> {
        self.working = load(&self.hosted).await?;
        install(&self.hosted, &self.working);
        Ok(())
    }
}

async fn load(hosted: &Hosted) -> Result<Network, StoreError> {
    let loaded = hosted.common.store.load(hosted.id).await?;
    let network = Network::from_rows(loaded.revision, loaded.rows)
        .map_err(|corrupt| StoreError::Corrupt { what: corrupt.what })?;
    hosted.signers.ready(&network).await?;
    Ok(network)
}

/// Makes a loaded state the one that readers and agents see.
fn install(hosted: &Hosted, network: &Network) {
    let Some(head) = hosted.signers.sign(network) else {
        return tracing::error!(network = %hosted.name, "what was loaded cannot be signed");
    };
    let now = hosted.common.clock.steady();
    let old: Vec<NodeId> = {
        let mut committed = hosted.committed.write().unwrap_or_else(PoisonError::into_inner);
        hosted.committed.clear_poison();
        let old = committed.replace(Committed { network: network.clone(), head });
        old.into_iter().flat_map(|old| old.network.nodes().map(|node| node.id).collect::<Vec<_>>()).collect()
    };
    for node in network.nodes() {
        hosted.presence.admit(node.id, node.lifetime, now);
    }
    hosted.feed.reset(head);
    for node in old.into_iter().filter(|node| network.node(node).is_none()) {
        hosted.presence.forget(&node);
        hosted.streams.end(&node, &Problem::from(&Rejection::UnknownNode { node }));
    }
}

fn answer(requests: Vec<Request>, answers: Vec<Option<Result<Done, Rejection>>>) {
    for (request, result) in requests.into_iter().zip(answers) {
        if let Some(result) = result {
            let _ = request.answer.send(result.map_err(CommandError::Rejected));
        }
    }
}

fn refuse_all(requests: Vec<Request>, error: &CommandError) {
    for request in requests {
        let _ = request.answer.send(Err(error.clone()));
    }
}
