//! Thousands of agents in this process, on threads that are in the controller's network namespace, and what is seen of them.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns};
use tokio::runtime::Runtime;
use znet_api::token::JoinToken;
use znet_core::id::Revision;

use super::history::History;
use crate::figures::Samples;

/// Characters of a reason that are told.
const REASON: usize = 90;
/// How often it is looked whether all have arrived.
const LOOK: Duration = Duration::from_millis(2);

/// A delta that an agent applied.
#[derive(Clone, Copy, Debug)]
struct Applied {
    agent: usize,
    from: Revision,
    to: Revision,
    at: Instant,
}

/// What all agents share.
pub(super) struct Crowd {
    pub(super) token: JoinToken,
    pub(super) history: History,
    /// The revision at which each agent stands.
    revisions: Vec<AtomicU64>,
    /// How many streams each agent has had that told it something.
    streams: Vec<AtomicU64>,
    /// Why agents had to try again, and how often.
    failures: Mutex<BTreeMap<String, usize>>,
    log: Mutex<Vec<Applied>>,
}

impl Crowd {
    pub(super) fn new(token: JoinToken, agents: usize) -> Self {
        let zeros = || (0..agents).map(|_| AtomicU64::new(0)).collect();
        Self {
            token,
            history: History::default(),
            revisions: zeros(),
            streams: zeros(),
            failures: Mutex::default(),
            log: Mutex::default(),
        }
    }

    pub(super) fn network(&self) -> Vec<u8> {
        self.token.network.as_bytes().to_vec()
    }

    fn log(&self) -> MutexGuard<'_, Vec<Applied>> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An attempt to connect failed, or a stream ended.
    pub(super) fn failed(&self, error: &anyhow::Error) {
        let why = error.root_cause().to_string().chars().take(REASON).collect();
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        *failures.entry(why).or_default() += 1;
    }

    /// How often agents had to try again since this was asked last; the reasons are printed.
    pub(super) fn take_failures(&self) -> usize {
        let failures = std::mem::take(&mut *self.failures.lock().unwrap_or_else(PoisonError::into_inner));
        for (why, count) in &failures {
            println!("   ({count} times: {why})");
        }
        failures.values().sum()
    }

    /// An agent applied what it was sent; `first` on a new stream.
    pub(super) fn applied(&self, agent: usize, from: Revision, to: Revision, first: bool) {
        if let Some(revision) = self.revisions.get(agent) {
            revision.store(to.get(), Ordering::Release);
        }
        if first && let Some(streams) = self.streams.get(agent) {
            streams.fetch_add(1, Ordering::Release);
        }
        if to > from {
            self.log().push(Applied { agent, from, to, at: Instant::now() });
        }
    }

    /// How many streams each agent has had.
    pub(super) fn streams(&self) -> Vec<u64> {
        self.streams.iter().map(|count| count.load(Ordering::Acquire)).collect()
    }

    /// Waits until each of the first `agents` has had one stream more than `before`.
    pub(super) fn await_streams(&self, agents: usize, before: &[u64], patience: Duration) -> Result<()> {
        let missing = || {
            let pairs = self.streams.iter().zip(before).take(agents);
            pairs.filter(|(now, before)| now.load(Ordering::Acquire) <= **before).count()
        };
        wait(patience, missing).with_context(|| format!("not all of {agents} agents have a stream"))
    }

    /// Waits until each of the first `agents` has applied a revision.
    pub(super) fn await_revision(&self, agents: usize, revision: Revision, patience: Duration) -> Result<()> {
        let missing = || {
            let revisions = self.revisions.iter().take(agents);
            revisions.filter(|at| at.load(Ordering::Acquire) < revision.get()).count()
        };
        wait(patience, missing)
            .with_context(|| format!("not all of {agents} agents reach revision {revision}"))
    }

    /// Forgets what was seen so far.
    pub(super) fn forget(&self) {
        self.log().clear();
    }

    /// From `begun` until each agent had applied the revision; one sample for each agent.
    pub(super) fn spread(&self, revision: Revision, begun: Instant) -> Vec<Duration> {
        let reached = |applied: &&Applied| applied.from < revision && revision <= applied.to;
        self.log().iter().filter(reached).map(|applied| applied.at.duration_since(begun)).collect()
    }

    /// For each delta that was applied, the age of the oldest change in it.
    pub(super) fn ages(&self, begun: &BTreeMap<Revision, Instant>) -> Samples {
        let age = |applied: &Applied| {
            let first =
                begun.range((std::ops::Bound::Excluded(applied.from), std::ops::Bound::Included(applied.to)));
            first.map(|(_, begun)| applied.at.duration_since(*begun)).max()
        };
        Samples::new(self.log().iter().filter_map(age).collect())
    }

    /// Deltas that were applied, and by how many agents.
    pub(super) fn deltas(&self) -> (usize, usize) {
        let log = self.log();
        let agents: std::collections::BTreeSet<usize> = log.iter().map(|applied| applied.agent).collect();
        (log.len(), agents.len())
    }
}

/// A runtime whose threads are in a network namespace.
pub(super) fn runtime(namespace: &str, threads: usize) -> Result<Runtime> {
    let namespace = Arc::new(File::open(namespace).with_context(|| format!("opening {namespace}"))?);
    let enter = move || {
        // A thread that stayed outside would find no controller, which every agent would report.
        if let Err(error) = setns(&*namespace, CloneFlags::CLONE_NEWNET) {
            println!("   (a thread cannot enter the namespace: {error})");
        }
    };
    Ok(tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .on_thread_start(enter)
        .build()?)
}

fn wait(patience: Duration, missing: impl Fn() -> usize) -> Result<()> {
    let until = Instant::now() + patience;
    loop {
        match missing() {
            0 => return Ok(()),
            left if Instant::now() > until => bail!("{left} are missing after {} s", patience.as_secs()),
            _ => std::thread::sleep(LOOK),
        }
    }
}
