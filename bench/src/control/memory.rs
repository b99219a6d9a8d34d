//! What agent and engine keep in memory in a large network.

use std::time::Duration;

use anyhow::Result;
use netns_harness::probe;
use serde::{Deserialize, Serialize};
use znet_api::token::JoinToken;
use znet_tests::{FleetNode, NetworkSpec, World};

use super::part;
use crate::figures::{Bound, Figure};
use crate::process::resident;

/// Nodes of the network beside the one that is measured.
const NODES: usize = 100;
/// Containers on each of them.
const EACH: usize = 100;
/// Containers on the node that is measured.
const LOCAL: usize = 10;
/// How long its agent may take to have the whole map.
const PATIENCE: Duration = Duration::from_secs(60);

/// How large a network is made.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    token: JoinToken,
    #[arg(long)]
    nodes: usize,
    #[arg(long)]
    each: usize,
}

/// What was made.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Populated {
    containers: usize,
    revision: u64,
}

pub(super) fn measure() -> Result<Vec<Figure>> {
    let mut world = World::new("bench-memory")?;
    let spec = NetworkSpec { name: "bench", prefixes: &["10.64.0.0/10"], rest: None };
    let token = world.controller.create_network(&spec)?;
    let (nodes, each) = (NODES.to_string(), EACH.to_string());
    let args = ["--token", &token, "--nodes", &nodes, "--each", &each];
    let made: Populated = part(world.controller.host(), "populate", &args)?;
    let node = world.node("n1", &[&token])?;
    let mut members = Vec::new();
    for number in 0..LOCAL {
        members.push(node.attach_with("bench", &format!("local-{number}"), &[])?);
    }
    let current = || node.revision("bench").ok().filter(|revision| *revision >= made.revision);
    probe::until("the agent to have the whole map", PATIENCE, current)?;
    for member in &members {
        member.reaches_all(&members, Duration::from_secs(10))?;
    }
    let (agent, engine) = (resident(node.agent()?.pid())?, resident(node.engine_pid()?)?);
    world.passed();
    let what = format!("with {LOCAL} local containers in a network of {}", made.containers + LOCAL);
    Ok(vec![
        Figure::new(format!("agent {what}"), agent, "MiB").wanted(Bound::AtMost(40.0)),
        Figure::new(format!("engine {what}"), engine, "MiB").wanted(Bound::AtMost(30.0)),
        Figure::new("controller with this network", resident(world.controller.process()?.pid())?, "MiB"),
    ])
}

pub(super) async fn populate(args: &Args) -> Result<Populated> {
    let fleet = FleetNode::join_all(&args.token, "crowd", args.nodes).await?;
    let each = args.each;
    let working = fleet.into_iter().map(|mut node| async move {
        let mut last = 0;
        for number in 0..each {
            last = node.attach(number).await?.revision.get();
        }
        Ok::<_, anyhow::Error>(last)
    });
    let revisions = futures_util::future::try_join_all(working).await?;
    Ok(Populated { containers: args.nodes * each, revision: revisions.into_iter().max().unwrap_or_default() })
}
