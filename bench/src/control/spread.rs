//! From a change until every agent has verified and applied it.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use znet_api::token::JoinToken;
use znet_core::id::Revision;
use znet_tests::{FleetNode, NetworkSpec, World};

use super::part;
use crate::figures::{Bound, Figure, Samples};

/// Agents that listen.
const NODES: usize = 100;
/// Changes, one after the other.
const CHANGES: usize = 300;
/// How long one change may take before the run is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// How it is done.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    token: JoinToken,
    #[arg(long)]
    nodes: usize,
    #[arg(long)]
    changes: usize,
}

/// What came of it: milliseconds from the call until the last of all had applied.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Seen {
    p50_ms: f64,
    p99_ms: f64,
}

pub(super) fn measure() -> Result<Vec<Figure>> {
    let world = World::new("bench-spread")?;
    let token = world.controller.create_network(&NetworkSpec { name: "bench", ..NetworkSpec::default() })?;
    let (nodes, changes) = (NODES.to_string(), CHANGES.to_string());
    let args = ["--token", &token, "--nodes", &nodes, "--changes", &changes];
    let seen: Seen = part(world.controller.host(), "spread", &args)?;
    world.passed();
    Ok(vec![
        Figure::new(format!("a change to the applied maps of {NODES} agents, p50"), seen.p50_ms, "ms"),
        Figure::new(format!("a change to the applied maps of {NODES} agents, p99"), seen.p99_ms, "ms")
            .wanted(Bound::AtMost(50.0)),
    ])
}

pub(super) async fn run(args: &Args) -> Result<Seen> {
    let mut fleet = FleetNode::join_all(&args.token, "spread", args.nodes).await?;
    let mut applied = Vec::new();
    for node in &mut fleet {
        let mut watcher = node.watch().await?;
        let (told, seen) = watch::channel(Revision::ZERO);
        applied.push(seen);
        tokio::spawn(async move {
            while let Ok(revision) = watcher.next().await {
                told.send_replace(revision);
            }
        });
    }
    let mut took = Vec::with_capacity(args.changes);
    let mut author = FleetNode::join(&args.token, "author", 0).await?;
    for number in 0..args.changes {
        let begun = Instant::now();
        let revision = author.attach(number).await?.revision;
        let all = applied.iter_mut().map(|seen| seen.wait_for(|at| *at >= revision));
        tokio::time::timeout(PATIENCE, futures_util::future::try_join_all(all)).await??;
        took.push(begun.elapsed());
    }
    let samples = Samples::new(took);
    Ok(Seen { p50_ms: samples.percentile(50.0), p99_ms: samples.percentile(99.0) })
}
