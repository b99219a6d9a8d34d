//! One network: a task that decides, a state that everybody may read, and the streams of its agents.
//!
//! Commands wait in a bounded queue. The task takes all that wait, decides each on a working copy of the state on
//! which the ones before it are applied already, commits the whole batch at once and only then carries the changes
//! over to the state that readers see, publishes one delta under one signature, and answers. So readers and agents
//! never see what is not durable, and a flush to the disk is paid once for all that waited.
//!
//! When the store fails the working copy is thrown away, commands are refused with the store's own words, and reading
//! goes on; the task tries the store until it takes writes again. When the task panics its supervisor starts a new
//! one from the store; other networks do not notice.

mod audit;
mod error;
mod feed;
mod others;
mod presence;
mod signers;
mod streams;
mod supervisor;
mod suspects;
mod task;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use znet_api::error::Problem;
use znet_core::controller::{Command, Network, Reply};
use znet_core::id::{Epoch, NetworkId, NodeId, Revision};
use znet_core::key::SigningKey;
use znet_core::map::SignedHead;
use znet_core::name::Name;
use znet_core::time::Timestamp;

use crate::actor::Actor;
use crate::clock::Clock;
use crate::keyring::Keyring;
use crate::metrics::{Metrics, NetworkFigures};
use crate::store::{Store, StoreError};
use feed::Feed;
use presence::Presence;
use signers::Signers;
use streams::Streams;
use suspects::Questions;

pub use error::CommandError;
pub use presence::{HEARTBEAT, LIVE_TERM};
pub use watch::{Resume, STREAM_BUFFER};
pub use znet_core::feed::SNAPSHOT_PART;

/// Commands that may wait for one network's task; more callers wait for a place.
pub const COMMAND_QUEUE: usize = 1024;
/// Most commands of one commit.
pub const MAX_BATCH: usize = 256;
/// How long a caller waits for a place in a full queue.
const QUEUE_PATIENCE: Duration = Duration::from_secs(2);
/// Most lagging nodes that are named.
pub const MAX_LAGGING: usize = 100;

/// A command that was carried out.
#[derive(Debug)]
pub struct Done {
    /// What to answer.
    pub reply: Reply,
    /// The revision at which it is so.
    pub revision: Revision,
    /// Whether anything had to be changed for it.
    pub changed: bool,
}

/// Whether a network takes commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Its task is being started.
    Starting,
    /// It does.
    Serving,
    /// The store takes no writes; reading goes on.
    ReadOnly(StoreError),
    /// Its stored state cannot be used.
    Broken(String),
}

/// What is committed, as readers see it.
#[derive(Debug)]
struct Committed {
    network: Network,
    head: SignedHead,
}

/// One thing for the task to do.
#[derive(Debug)]
enum Job {
    Execute {
        command: Command,
        actor: Actor,
        answer: oneshot::Sender<Result<Done, CommandError>>,
    },
    /// Makes the task panic, so that a test sees what becomes of the others.
    #[cfg(test)]
    Panic,
}

/// One network of this controller.
pub struct Hosted {
    id: NetworkId,
    name: Name,
    signers: Signers,
    common: Common,
    jobs: mpsc::Sender<Job>,
    committed: RwLock<Option<Committed>>,
    condition: Mutex<Condition>,
    feed: Feed,
    presence: Presence,
    streams: Streams,
    questions: Questions,
    /// Held by whoever makes a snapshot or reads the log, so that many streams share one result.
    history: tokio::sync::Mutex<()>,
    wake: Notify,
    stop: CancellationToken,
}

/// What all networks of a controller have in common.
#[derive(Clone)]
pub struct Common {
    /// Where they are kept.
    pub store: Arc<dyn Store>,
    /// The time.
    pub clock: Clock,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// Knows all tasks, so that somebody can wait for them.
    pub tasks: TaskTracker,
}

impl Hosted {
    /// Starts the task of a network that is in the store.
    pub fn start(
        id: NetworkId,
        name: Name,
        keys: Vec<SigningKey>,
        keyring: &Arc<Keyring>,
        common: &Common,
    ) -> Arc<Self> {
        let (sender, receiver) = mpsc::channel(COMMAND_QUEUE);
        let hosted = Arc::new(Self {
            id,
            name,
            signers: Signers::new(id, keys, keyring.clone()),
            common: common.clone(),
            jobs: sender,
            committed: RwLock::new(None),
            condition: Mutex::new(Condition::Starting),
            feed: Feed::new(),
            presence: Presence::new(),
            streams: Streams::default(),
            questions: Questions::new(),
            history: tokio::sync::Mutex::new(()),
            wake: Notify::new(),
            stop: CancellationToken::new(),
        });
        common.tasks.spawn(supervisor::run(hosted.clone(), receiver));
        hosted
    }

    /// The network's identifier.
    pub fn id(&self) -> NetworkId {
        self.id
    }

    /// Its name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Whether it takes commands.
    pub fn condition(&self) -> Condition {
        self.condition.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until it was loaded or could not be.
    pub async fn started(&self) {
        let mut pause = Duration::from_millis(1);
        while self.condition() == Condition::Starting && !self.stop.is_cancelled() {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// Has a command decided and committed.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn execute(&self, command: Command, actor: Actor) -> Result<Done, CommandError> {
        let kind = audit::action(&command, &actor);
        let result = self.enqueue(command, actor).await;
        let word = match &result {
            Ok(done) if !done.changed => "unchanged",
            Ok(_) => "ok",
            Err(error) => error.code(),
        };
        self.common.metrics.command(kind, word);
        result
    }

    async fn enqueue(&self, command: Command, actor: Actor) -> Result<Done, CommandError> {
        if self.stop.is_cancelled() {
            return Err(self.stopped());
        }
        let (answer, result) = oneshot::channel();
        match self.jobs.try_send(Job::Execute { command, actor, answer }) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(job)) => {
                self.common.metrics.bound_hit("command_queue");
                match self.jobs.send_timeout(job, QUEUE_PATIENCE).await {
                    Ok(()) => {}
                    Err(mpsc::error::SendTimeoutError::Timeout(_)) => return Err(CommandError::Overloaded),
                    Err(mpsc::error::SendTimeoutError::Closed(_)) => return Err(self.stopped()),
                }
            }
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(self.stopped()),
        }
        result.await.unwrap_or(Err(CommandError::Interrupted))
    }

    /// Looks at what is committed.
    ///
    /// # Errors
    /// [`CommandError::Starting`] or [`CommandError::Broken`] while there is no state to look at.
    pub fn read<T>(&self, look: impl FnOnce(&Network, &SignedHead) -> T) -> Result<T, CommandError> {
        // Poisoned means that the task panicked while it changed the state: as good as none until it is loaded anew.
        if let Ok(committed) = self.committed.read()
            && let Some(committed) = &*committed
        {
            return Ok(look(&committed.network, &committed.head));
        }
        Err(match self.condition() {
            Condition::Broken(why) => CommandError::Broken { why },
            _ => CommandError::Starting,
        })
    }

    /// Whether a node may be a member. Where others commit too, only the task can say that it is none.
    ///
    /// # Errors
    /// As [`Hosted::read`].
    pub fn may_know(&self, node: NodeId) -> Result<bool, CommandError> {
        let known = self.read(|network, _| network.node(&node).is_some())?;
        Ok(known || self.common.store.shared().is_some())
    }

    /// Whether a node is alive, when it was seen last, and what it has applied as far as it said.
    pub fn presence_of(&self, node: &NodeId) -> (bool, Option<Timestamp>, Option<Revision>) {
        let clock = &self.common.clock;
        let (live, seen, applied) = self.presence.of(node, clock.steady());
        (live, seen.map(|seen| clock.was(seen)), applied)
    }

    /// A member resumes from where this controller has not been yet, which it can know of the controller alone.
    fn is_ahead(&self, node: NodeId, applied: (Epoch, Revision), current: Revision) {
        if self.presence.is_ahead(node, applied) {
            tracing::warn!(
                network = %self.name, %node, applied = %applied.1, %current,
                "the node has applied a later revision than this controller knows, which was restored from an older \
                 backup: the node refuses its map until `znet-ctl network new-epoch {}`", self.name
            );
        }
    }

    /// The members that have applied a later revision than this controller knows, and which: it was restored from an
    /// older backup.
    pub fn ahead(&self) -> BTreeMap<NodeId, Revision> {
        self.read(|_, head| self.presence.beyond(head.head.position())).unwrap_or_default()
    }

    /// A member gave a sign of life.
    pub fn seen(&self, node: NodeId) {
        self.presence.seen(node, self.common.clock.steady());
        self.wake.notify_one();
    }

    /// Whether every live node has applied the revision, as far as this controller knows.
    pub fn all_have_applied(&self, revision: Revision) -> bool {
        *self.presence.floor().borrow() >= revision
    }

    /// Waits until every live node has applied the revision, or until the deadline.
    ///
    /// # Errors
    /// The names of those that have not, at most [`MAX_LAGGING`].
    pub async fn wait_applied(
        &self,
        revision: Revision,
        deadline: tokio::time::Instant,
    ) -> Result<(), Vec<Name>> {
        let mut floor = self.presence.floor();
        let reached = floor.wait_for(|floor| *floor >= revision);
        if matches!(tokio::time::timeout_at(deadline, reached).await, Ok(Ok(_))) {
            return Ok(());
        }
        let lagging = self.presence.lagging(revision, MAX_LAGGING);
        let names = self.read(|network, _| {
            lagging.iter().filter_map(|node| network.node(node)).map(|node| node.name.clone()).collect()
        });
        Err(names.unwrap_or_default())
    }

    /// What the counters tell of it.
    pub fn figures(&self) -> NetworkFigures {
        let counted = self.read(|network, head| {
            (head.head.revision.get(), network.nodes().len(), network.containers().len())
        });
        let (revision, nodes, containers) = counted.unwrap_or_default();
        let rotating = self.read(|network, _| network.rotations()).unwrap_or_default();
        let writable = self.condition() == Condition::Serving;
        NetworkFigures {
            name: self.name.to_string(),
            revision,
            nodes,
            live: self.presence.live(),
            containers,
            ahead: self.ahead().len(),
            rotating,
            writable,
        }
    }

    /// Ends all streams and the task, as the network is deleted.
    pub fn deleted(&self) {
        self.streams.close(&Problem::from(CommandError::Deleted));
        self.stop.cancel();
    }

    /// Ends all streams, as the controller is shutting down. Commands are still taken.
    pub fn end_streams(&self) {
        self.streams.close(&Problem::from(CommandError::Draining));
    }

    /// Ends all streams, as another controller may serve them better now. Agents that find none may come back.
    pub fn send_away(&self, why: &StoreError) {
        self.streams.end_all(&Problem::from(CommandError::Store(why.clone())));
    }

    /// Ends the task when it has done what waits.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    fn stopped(&self) -> CommandError {
        if self.common.tasks.is_closed() { CommandError::Draining } else { CommandError::Deleted }
    }

    fn set_condition(&self, condition: Condition) {
        let mut current = self.condition.lock().unwrap_or_else(PoisonError::into_inner);
        if *current != condition {
            match &condition {
                Condition::ReadOnly(error) => {
                    tracing::error!(network = %self.name, %error, "changes are refused until the store takes writes again");
                }
                Condition::Broken(why) => {
                    tracing::error!(network = %self.name, why, "the network cannot be served");
                }
                Condition::Serving => tracing::info!(network = %self.name, "the network is served"),
                Condition::Starting => {}
            }
            *current = condition;
        }
    }

    /// Makes the task panic.
    #[cfg(test)]
    async fn inject_panic(&self) {
        let _ = self.jobs.send(Job::Panic).await;
    }
}

impl std::fmt::Debug for Hosted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hosted").field("id", &self.id).field("name", &self.name).finish_non_exhaustive()
    }
}
