//! `./x bench control`: what the control plane costs.

mod attach;
mod calls;
mod memory;
mod spread;

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Subcommand, ValueEnum};
use netns_harness::Host;
use serde::de::DeserializeOwned;
use znet_tests::program;

use crate::default_json;
use crate::figures::{Figure, save};

pub(crate) use attach::{outside, ping_all};

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Measure only this.
    #[arg(long, value_enum)]
    only: Option<Measure>,
    /// Where the figures are written as JSON [default: target/bench/control.json].
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Measure {
    /// From the call of attach until every other container answers a ping.
    Attach,
    /// Attach and detach calls per second.
    Calls,
    /// From a change until all agents have applied it.
    Spread,
    /// Resident memory of agent and engine in a large network.
    Memory,
}

/// What is run inside a lab's host, for a benchmark outside.
#[derive(Debug, Subcommand)]
pub(crate) enum Part {
    /// Many nodes attach and detach.
    Calls(calls::Args),
    /// Many nodes apply what one changes.
    Spread(spread::Args),
    /// Many nodes attach many containers, once.
    Populate(memory::Args),
}

/// Measures and reports.
pub(crate) fn run(args: &Args) -> Result<()> {
    netns_harness::require_root()?;
    let wanted = |measure| args.only.is_none_or(|only| only == measure);
    let mut figures = Vec::new();
    let mut take = |measure: Measure, run: fn() -> Result<Vec<Figure>>| -> Result<()> {
        if wanted(measure) {
            let title =
                measure.to_possible_value().and_then(|value| value.get_help().map(ToString::to_string));
            println!("\n{}", title.unwrap_or_default());
            let seen = run()?;
            seen.iter().for_each(|figure| println!("{}", figure.line()));
            figures.extend(seen);
        }
        Ok(())
    };
    take(Measure::Attach, attach::measure)?;
    take(Measure::Calls, calls::measure)?;
    take(Measure::Spread, spread::measure)?;
    take(Measure::Memory, memory::measure)?;
    save(&figures, &args.json.clone().unwrap_or_else(|| default_json("control")))
}

/// Runs a part in this process, as a benchmark outside asked for.
pub(crate) fn run_part(part: Part) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let result = match part {
        Part::Calls(args) => serde_json::to_value(runtime.block_on(calls::run(&args))?)?,
        Part::Spread(args) => serde_json::to_value(runtime.block_on(spread::run(&args))?)?,
        Part::Populate(args) => serde_json::to_value(runtime.block_on(memory::populate(&args))?)?,
    };
    println!("{result}");
    Ok(())
}

/// Runs a part inside a host and reads its result.
fn part<T: DeserializeOwned>(host: &Host, name: &str, args: &[&str]) -> Result<T> {
    let output = host
        .command(program("znet-bench")?)
        .args(["part", name])
        .args(args)
        .run_timeout(std::time::Duration::from_secs(180))?;
    serde_json::from_str(&output.stdout).with_context(|| format!("not a result: {}", output.stdout))
}
