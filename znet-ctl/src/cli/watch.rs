//! `status` and `audit`: what is seen once, and what is followed.

use std::io::IsTerminal as _;
use std::time::Duration;

use serde::Serialize;
use znet_api::rest::{AuditRecord, Health, Network, NetworkStatus};
use znet_cli::output::{self, Format};

use super::Result;
use super::ask::{Asker, failed};
use super::held_up;
use super::members::{NODE_HEADINGS, node_row};
use super::networks::{NETWORK_HEADINGS, network_row, print_ahead};

/// How often something that is watched is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Most audit records of one answer.
const PAGE: u32 = 1000;

/// Everything in short.
#[derive(PartialEq, Serialize)]
struct Overview {
    controller: Health,
    networks: Vec<Network>,
}

impl Asker {
    pub(super) async fn status(&self, network: Option<&str>, watch: bool) -> Result {
        if !watch {
            return match network {
                None => self.print_overview(&self.overview().await?),
                Some(network) => self.print_status(&self.client.status(network).await.map_err(failed)?),
            };
        }
        let (mut overview, mut status) = (None, None);
        loop {
            match network {
                None => {
                    let seen = self.overview().await?;
                    if overview.as_ref() != Some(&seen) {
                        self.clear();
                        self.print_overview(&seen)?;
                        overview = Some(seen);
                    }
                }
                Some(network) => {
                    let seen = self.client.status(network).await.map_err(failed)?;
                    if status.as_ref() != Some(&seen) {
                        self.clear();
                        self.print_status(&seen)?;
                        status = Some(seen);
                    }
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Begins a screen anew where there is one.
    fn clear(&self) {
        if self.format == Format::Table && std::io::stdout().is_terminal() {
            output::write_bytes(b"\x1b[2J\x1b[H");
        }
    }

    async fn overview(&self) -> Result<Overview> {
        Ok(Overview {
            controller: self.client.health().await.map_err(failed)?,
            networks: self.client.networks().await.map_err(failed)?,
        })
    }

    fn print_overview(&self, seen: &Overview) -> Result {
        if self.format == Format::Json {
            output::json(seen);
            return Ok(());
        }
        let health = &seen.controller;
        output::line(&format!(
            "controller {}, version {}, pin {}\n",
            health.status, health.version, health.pin
        ));
        output::table(&NETWORK_HEADINGS, seen.networks.iter().map(network_row));
        seen.networks.iter().for_each(print_ahead);
        Ok(())
    }

    fn print_status(&self, seen: &NetworkStatus) -> Result {
        if self.format == Format::Json {
            output::json(seen);
            return Ok(());
        }
        let network = &seen.network;
        let writable =
            if seen.writable { "takes changes" } else { "takes no changes: see the controller's log" };
        output::line(&format!("network {} ({}), {writable}", network.name, network.id));
        output::line(&format!(
            "epoch {}, revision {}, digest {}",
            network.epoch, network.revision, seen.digest
        ));
        let live: Vec<_> = seen.nodes.iter().filter(|node| node.live).collect();
        let current = live.iter().filter(|node| node.applied == Some(network.revision)).count();
        output::line(&format!(
            "{} containers; {} nodes, {} of them live, {current} of these with the current map\n",
            network.containers,
            seen.nodes.len(),
            live.len()
        ));
        output::table(&NODE_HEADINGS, seen.nodes.iter().map(node_row));
        print_ahead(network);
        print_keys(seen);
        Ok(())
    }

    pub(super) async fn audit(&self, network: Option<&str>, after: u64, limit: u32, follow: bool) -> Result {
        let headings = ["SEQ", "AT", "ACTOR", "ACTION", "SUBJECT", "REVISION"];
        let first = self.records(network, after, limit).await?;
        if !follow {
            output::print(self.format, &first, &headings, first.iter().map(audit_row));
            return Ok(());
        }
        let (mut records, mut last) = (first, after);
        loop {
            for record in &records {
                match self.format {
                    Format::Json => output::line(&serde_json::to_string(record).unwrap_or_default()),
                    Format::Table => output::line(&audit_row(record).join("  ")),
                }
                last = record.seq;
            }
            if records.is_empty() {
                tokio::time::sleep(LOOK).await;
            }
            records = self.records(network, last, PAGE).await?;
        }
    }

    async fn records(&self, network: Option<&str>, after: u64, limit: u32) -> Result<Vec<AuditRecord>> {
        let records = match network {
            Some(network) => self.client.audit(network, after, limit).await,
            None => self.client.audit_all(after, limit).await,
        };
        records.map_err(failed)
    }
}

/// Tells of keys that are being changed or cannot be, because of whom, and what helps.
fn print_keys(seen: &NetworkStatus) {
    let name = &seen.network.name;
    let unable = held_up::unable(name, &seen.nodes);
    if !unable.is_empty() {
        output::line(
            "\nno key of a container can be changed, as some nodes cannot do with one that has two keys meanwhile:",
        );
        unable.iter().for_each(|help| output::line(&format!("  {help}")));
    }
    if seen.keys_changing > 0 {
        output::line(&format!("\nkey pairs that are being changed: {}", seen.keys_changing));
        if let Some(waiting) = held_up::waiting(name, &seen.nodes) {
            output::line(&format!("  {waiting}"));
        }
    }
}

fn audit_row(record: &AuditRecord) -> Vec<String> {
    vec![
        record.seq.to_string(),
        record.at.clone(),
        short(&record.actor),
        record.action.clone(),
        record.subject.clone(),
        record.revision.to_string(),
    ]
}

/// A node's identifier is long; its begin tells it apart. JSON has the whole.
fn short(actor: &str) -> String {
    match actor.split_once(':') {
        Some((kind @ "node", id)) => format!("{kind}:{}", id.chars().take(16).collect::<String>()),
        _ => actor.to_owned(),
    }
}
