//! `./x bench`: runs real parts, prints what it saw beside the figures that were to be reached, and writes JSON.

mod containers;
mod control;
mod dataplane;
mod dns;
mod figures;
mod inside;
mod process;
mod rotation;
mod scale;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "znet-bench", about = "Measures znet; needs root")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Attach latency, calls per second, propagation, memory.
    #[command(
        after_help = "Examples:\n  ./x bench control\n  ./x bench control --only attach --json attach.json"
    )]
    Control(control::Args),
    /// From a container runtime's ADD until the container reaches another host; a hundred of them at once.
    #[command(
        after_help = "Examples:\n  ./x bench containers\n  ./x bench containers --json containers.json"
    )]
    Containers(containers::Args),
    /// Our user-space WireGuard beside others: throughput, packets, CPU, latency, memory.
    #[command(
        after_help = "Examples:\n  ./x bench dataplane\n  ./x bench dataplane --quick --rounds 1 --only znet-wg,boringtun-1"
    )]
    Dataplane(dataplane::Args),
    /// The resolver of a container: how long it takes over an answer, alone and beside a flood.
    #[command(after_help = "Examples:\n  ./x bench dns\n  ./x bench dns --seconds 3 --rate 1000")]
    Dns(dns::Args),
    /// All keys of thirty containers changed again and again, while all pairs of them in turn ping each other at 1 ms.
    #[command(after_help = "Examples:\n  ./x bench rotation\n  ./x bench rotation --quick")]
    Rotation(rotation::Args),
    /// One controller with thousands of agents: join storm, propagation, churn, return after a crash.
    #[command(after_help = "Examples:\n  ./x bench scale\n  ./x bench scale --agents 1000 --containers 5000")]
    Scale(scale::Args),
    /// One part of a benchmark, run inside a lab's host.
    #[command(hide = true)]
    Part {
        #[command(subcommand)]
        part: Box<control::Part>,
    },
}

fn main() -> Result<()> {
    znet_api::tls::install_provider();
    match Args::parse().command {
        Command::Containers(args) => containers::run(&args),
        Command::Control(args) => control::run(&args),
        Command::Dataplane(args) => dataplane::run(&args),
        Command::Dns(args) => dns::run(&args),
        Command::Rotation(args) => rotation::run(&args),
        Command::Scale(args) => scale::run(&args),
        Command::Part { part } => control::run_part(*part),
    }
}

/// Where results go when nothing else is said.
fn default_json(name: &str) -> PathBuf {
    PathBuf::from("target/bench").join(format!("{name}.json"))
}
