//! `netns-harness`: look at the labs of this machine, and remove those that killed owners left behind.

use clap::{Parser, Subcommand};

/// Look at the virtual labs of this machine, and remove what killed owners left behind.
#[derive(Debug, Parser)]
#[command(version, after_help = "Examples:\n  netns-harness list\n  netns-harness sweep")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List all labs
    List,
    /// Remove the labs whose owner is dead
    Sweep,
}

fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        Command::List => {
            for (lab, alive) in netns_harness::list()? {
                let owner = if alive { "lives" } else { "dead" };
                println!("{}  owner {} {owner}  {}  {}", lab.prefix, lab.pid, lab.purpose, lab.dir.display());
            }
        }
        Command::Sweep => {
            netns_harness::require_root()?;
            let swept = netns_harness::sweep()?;
            println!("removed {} labs and {} processes", swept.labs, swept.processes);
        }
    }
    Ok(())
}
