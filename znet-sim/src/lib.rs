//! A deterministic simulation of one network: its controllers, their store and its agents.
//!
//! Everything that decides is the real thing out of `znet-core`: allocation and membership, the incremental digest and
//! the signed heads, the feed, what an agent believes, who is alive, and the plan for a host. What stands around it in the
//! programs, sockets, threads, files and clocks, is replaced by a queue of events in virtual time on one thread, by a
//! network that delays, drops, duplicates, reorders and partitions, by a disk that fails, and by processes that crash. One
//! number seeds all of it, so that whatever happened happens again.
//!
//! A small reference model is told what was committed and what was acknowledged; it knows the rules and none of the ways in
//! which the core keeps them. [`run`] checks it after every event, and at the end that everybody has come to the full
//! mesh. No program that is shipped may depend on this crate: it has [`Bug`]s to switch on.

// The simulation gets no input from outside; a wrong index is a mistake here and ends the run as a failure.
#![allow(clippy::indexing_slicing)]

mod agent;
mod alarm;
mod calls;
mod chaos;
mod controller;
mod disk;
mod exchange;
mod host;
mod model;
mod net;
mod pairs;
mod planted;
mod queue;
mod scenario;
mod streams;
mod world;

pub use planted::Bug;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use world::World;

/// What a run that broke nothing came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Events that happened.
    pub events: u64,
    /// Virtual milliseconds that passed.
    pub millis: u64,
    /// Revisions that were committed.
    pub revisions: u64,
    /// Maps and deltas that agents applied.
    pub applied: u64,
    /// Nodes.
    pub nodes: usize,
    /// Virtual milliseconds from the last fault to the full mesh.
    pub converged_in: u64,
    /// A hash over every event and when it happened: equal for equal runs.
    pub fingerprint: u64,
}

/// What was broken, and how it came about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The seed that shows it again.
    pub seed: u64,
    /// The event at which it showed.
    pub event: u64,
    /// What is wrong.
    pub what: String,
    /// What was drawn for the seed.
    pub scenario: String,
    /// The last events before it.
    pub trace: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {} broke at event {}: {}", self.seed, self.event, self.what)?;
        writeln!(f, "  {}", self.scenario)?;
        self.trace.iter().try_for_each(|line| writeln!(f, "  {line}"))?;
        write!(f, "replay it: ./x sim --seed {}", self.seed)
    }
}

impl std::error::Error for Failure {}

/// Runs a seed, with a bug planted if there is to be one.
///
/// # Errors
/// The first [`Failure`]. The seed is run a second time for its trace, so that runs without a fault pay nothing for it.
pub fn run(seed: u64, bug: Option<Bug>) -> Result<Report, Box<Failure>> {
    alarm::install();
    once(seed, bug, false).map_err(|first| match once(seed, bug, true) {
        Err(second) if (second.event, &second.what) == (first.event, &first.what) => second,
        _ => Box::new(Failure { what: format!("{} (and not when it was repeated)", first.what), ..*first }),
    })
}

fn once(seed: u64, bug: Option<Bug>, traced: bool) -> Result<Report, Box<Failure>> {
    let _ = alarm::take();
    let mut world = World::new(seed, bug, traced);
    let result = catch_unwind(AssertUnwindSafe(|| world.run()));
    let what = match result {
        Ok(Ok(report)) => return Ok(report),
        Ok(Err(what)) => what,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            format!("panic: {}", text.unwrap_or_default())
        }
    };
    let scenario = format!("{:?}", world.scenario);
    Err(Box::new(Failure { seed, event: world.events, what, scenario, trace: world.trace.into_lines() }))
}
