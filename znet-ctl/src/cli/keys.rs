//! `key`.

use std::collections::BTreeSet;
use std::io::IsTerminal as _;
use std::time::Duration;

use clap::Subcommand;
use serde::Serialize;
use tokio::time::Instant;
use znet_api::rest::{Container, KeyChange, RotateKeys};
use znet_cli::exit::{Failure, Kind};
use znet_cli::output;

use super::Result;
use super::ask::{Asker, failed};
use super::held_up;
use super::members::word;

/// How often the containers are looked at while somebody waits.
const LOOK: Duration = Duration::from_secs(1);
/// Most containers that are named when time is up.
const MAX_NAMED: usize = 10;

/// What can be done with key pairs.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Have the key pairs of containers changed while their links go on
    #[command(
        after_help = "Examples:\n  znet-ctl key rotate acme web db\n  znet-ctl key rotate acme --node edge-7 --wait 2m\n  znet-ctl key rotate acme --all --wait 10m"
    )]
    Rotate {
        /// The network, by name or identifier
        network: String,
        /// The containers, by name
        #[arg(value_name = "CONTAINER", required_unless_present_any = ["node", "all"])]
        containers: Vec<String>,
        /// All containers of this node, by name or identifier
        #[arg(long, value_name = "NODE", conflicts_with_all = ["containers", "all"])]
        node: Option<String>,
        /// All containers of the network, some at a time
        #[arg(long, conflicts_with = "containers")]
        all: bool,
        /// Wait until the former keys are gone, at most so long
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        wait: Option<Duration>,
    },
}

/// A container whose key pair was to be changed.
#[derive(Serialize)]
struct Changed {
    name: String,
    public_key: String,
    key_since: String,
    /// How far the change is; absent when it is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_change: Option<KeyChange>,
}

impl Asker {
    pub(super) async fn key(&self, command: KeyCommand) -> Result {
        let KeyCommand::Rotate { network, containers, node, all, wait } = command;
        let asked = RotateKeys { containers, node, all };
        let rotating = match self.client.rotate_keys(&network, &asked).await {
            Ok(rotating) => rotating,
            Err(error) => return Err(self.with_way_out(&network, failed(error)).await),
        };
        let names = (!all).then(|| rotating.containers.into_iter().collect::<BTreeSet<String>>());
        let found = match wait {
            Some(patience) => self.wait_changed(&network, names.as_ref(), patience).await?,
            None => self.changed(&network, names.as_ref()).await?,
        };
        let row = |container: &Changed| {
            let change = container.key_change.map_or("changed", word);
            vec![container.name.clone(), change.to_owned(), container.public_key.clone()]
        };
        output::print(self.format, &found, &["CONTAINER", "CHANGE", "PUBLIC KEY"], found.iter().map(row));
        Ok(())
    }

    /// The containers of these names, or all. One that went away meanwhile is not among them.
    async fn changed(&self, network: &str, names: Option<&BTreeSet<String>>) -> Result<Vec<Changed>> {
        let all = self.client.containers(network).await.map_err(failed)?;
        let wanted = |container: &Container| names.is_none_or(|names| names.contains(&container.name));
        let of = |Container { name, public_key, key_since, key_change, .. }| Changed {
            name,
            public_key,
            key_since,
            key_change,
        };
        Ok(all.into_iter().filter(wanted).map(of).collect())
    }

    /// Says as well which nodes are in the way, and what helps, if that is why.
    async fn with_way_out(&self, network: &str, failure: Failure) -> Failure {
        if !matches!(failure.code.as_str(), "one_key_only" | "not_changed") {
            return failure;
        }
        let Ok(nodes) = self.client.nodes(network).await else { return failure };
        let mut help = held_up::unable(network, &nodes);
        if help.is_empty() {
            help.extend(held_up::waiting(network, &nodes));
        }
        if help.is_empty() { failure } else { failure.hint(help.join("; ")) }
    }

    async fn wait_changed(
        &self,
        network: &str,
        names: Option<&BTreeSet<String>>,
        patience: Duration,
    ) -> Result<Vec<Changed>> {
        let deadline = Instant::now() + patience;
        let mut told = None;
        loop {
            let found = self.changed(network, names).await?;
            let waiting: Vec<&Changed> = found.iter().filter(|one| one.key_change.is_some()).collect();
            if waiting.is_empty() {
                return Ok(found);
            }
            if Instant::now() >= deadline {
                let named: Vec<String> = waiting
                    .iter()
                    .take(MAX_NAMED)
                    .map(|one| format!("{} ({})", one.name, one.key_change.map_or("", word)))
                    .collect();
                let why = format!(
                    "{} of {} key pairs are not changed yet, the change goes on: {}",
                    waiting.len(),
                    found.len(),
                    named.join(", ")
                );
                let failure = Failure::new(Kind::TimedOut, "not_changed", why);
                return Err(self.with_way_out(network, failure).await);
            }
            let done = found.len() - waiting.len();
            if told != Some(done) && std::io::stderr().is_terminal() {
                eprintln!("{done} of {} key pairs are changed", found.len());
                told = Some(done);
            }
            tokio::time::sleep(LOOK.min(deadline.saturating_duration_since(Instant::now()))).await;
        }
    }
}
