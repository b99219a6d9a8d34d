//! `gc`: what is of no use any more is listed, and then removed.

use std::collections::BTreeMap;
use std::time::Duration;

use znet_api::rest::Garbage;
use znet_cli::output::{self, Format};

use super::ask::{Asker, failed};
use super::members::{NODE_HEADINGS, node_row};
use super::networks::{TOKEN_HEADINGS, token_row};
use super::{Result, agree};

/// How long nothing is said of what takes its time.
const SILENT_FOR: Duration = Duration::from_secs(1);

impl Asker {
    pub(super) async fn gc(&self, network: Option<String>, dry_run: bool, yes: bool) -> Result {
        let networks = match network {
            Some(network) => vec![network],
            None => {
                let all = self.client.networks().await.map_err(failed)?;
                all.into_iter().map(|network| network.name).collect()
            }
        };
        let mut found = BTreeMap::new();
        for network in networks {
            let garbage = patiently(&network, self.client.garbage(&network)).await.map_err(failed)?;
            if !garbage.nodes.is_empty() || !garbage.tokens.is_empty() {
                found.insert(network, garbage);
            }
        }
        if self.format == Format::Table {
            print(&found);
        }
        if !dry_run && !found.is_empty() {
            let sum = |count: fn(&Garbage) -> usize| found.values().map(count).sum::<usize>();
            let (nodes, tokens) = (sum(|garbage| garbage.nodes.len()), sum(|garbage| garbage.tokens.len()));
            agree(yes, &format!("Removes {nodes} nodes and {tokens} tokens"))?;
            for (network, garbage) in &mut found {
                *garbage = patiently(network, self.client.collect_garbage(network)).await.map_err(failed)?;
            }
        }
        match self.format {
            Format::Json => output::json(&found),
            Format::Table if found.is_empty() => output::line("there is nothing to remove"),
            Format::Table if !dry_run => output::line("removed"),
            Format::Table => {}
        }
        Ok(())
    }
}

/// Waits for an answer, and says after a second what is waited for: where controllers share a store, the others' nodes are
/// given time to say that they hear one that stayed away.
async fn patiently<T>(network: &str, answer: impl Future<Output = T>) -> T {
    let mut answer = std::pin::pin!(answer);
    match tokio::time::timeout(SILENT_FOR, &mut answer).await {
        Ok(answer) => answer,
        Err(_) => {
            eprintln!(
                "asking whether anybody hears the nodes of network {network} that stayed away; some 25 s …"
            );
            answer.await
        }
    }
}

fn print(found: &BTreeMap<String, Garbage>) {
    for (network, garbage) in found {
        output::line(&format!("network {network}"));
        if !garbage.nodes.is_empty() {
            output::table(&NODE_HEADINGS, garbage.nodes.iter().map(node_row));
        }
        if !garbage.tokens.is_empty() {
            output::table(&TOKEN_HEADINGS, garbage.tokens.iter().map(token_row));
        }
        output::line("");
    }
}
