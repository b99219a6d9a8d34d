//! `node`, `container` and `reservation`.

use std::net::IpAddr;

use znet_api::rest::{Container, KeyChange, Node, Removed, Reservation, Reserve};
use znet_cli::output::{self, Format};

use super::args::{ContainerCommand, NodeCommand, ReservationCommand};
use super::ask::{Asker, failed};
use super::{Result, agree};

pub(super) const NODE_HEADINGS: [&str; 7] =
    ["NODE", "STATE", "SEEN", "APPLIED", "CONTAINERS", "ENDPOINTS", "ID"];
const CONTAINER_HEADINGS: [&str; 6] =
    ["CONTAINER", "NODE", "ADDRESSES", "PUBLIC KEY", "KEY SINCE", "ATTACHED"];
const RESERVATION_HEADINGS: [&str; 3] = ["CONTAINER", "ADDRESSES", "STATE"];

impl Asker {
    pub(super) async fn node(&self, command: NodeCommand) -> Result {
        match command {
            NodeCommand::List { network } => {
                let all = self.client.nodes(&network).await.map_err(failed)?;
                output::print(self.format, &all, &NODE_HEADINGS, all.iter().map(node_row));
                Ok(())
            }
            NodeCommand::Show { network, node } => {
                let node = self.client.node(&network, &node).await.map_err(failed)?;
                output::print(self.format, &node, &NODE_HEADINGS, [node_row(&node)]);
                Ok(())
            }
            NodeCommand::Remove { network, node, yes } => {
                let found = self.client.node(&network, &node).await.map_err(failed)?;
                let (name, containers) = (&found.name, found.containers);
                agree(
                    yes,
                    &format!("Removes node {name} of network {network} with {containers} containers"),
                )?;
                let removed = self.client.remove_node(&network, &found.id).await.map_err(failed)?;
                self.print_removed(name, &removed)
            }
        }
    }

    pub(super) async fn container(&self, command: ContainerCommand) -> Result {
        match command {
            ContainerCommand::List { network } => {
                let all = self.client.containers(&network).await.map_err(failed)?;
                output::print(self.format, &all, &CONTAINER_HEADINGS, all.iter().map(container_row));
                Ok(())
            }
            ContainerCommand::Show { network, name } => {
                let container = self.client.container(&network, &name).await.map_err(failed)?;
                output::print(self.format, &container, &CONTAINER_HEADINGS, [container_row(&container)]);
                Ok(())
            }
            ContainerCommand::Remove { network, name, yes } => {
                let found = self.client.container(&network, &name).await.map_err(failed)?;
                agree(
                    yes,
                    &format!("Removes container {name} of network {network} from node {}", found.node),
                )?;
                let removed = self.client.remove_container(&network, &name).await.map_err(failed)?;
                self.print_removed(&name, &removed)
            }
        }
    }

    fn print_removed(&self, name: &str, removed: &Removed) -> Result {
        let row = vec![name.to_owned(), removed.nodes.to_string(), removed.containers.to_string()];
        output::print(self.format, removed, &["REMOVED", "NODES", "CONTAINERS"], [row]);
        Ok(())
    }

    pub(super) async fn reservation(&self, command: ReservationCommand) -> Result {
        match command {
            ReservationCommand::List { network } => {
                let all = self.client.reservations(&network).await.map_err(failed)?;
                output::print(self.format, &all, &RESERVATION_HEADINGS, all.iter().map(reservation_row));
            }
            ReservationCommand::Add { network, name, address } => {
                let kept = self
                    .client
                    .reserve(&network, &name, &Reserve { addresses: address })
                    .await
                    .map_err(failed)?;
                output::print(self.format, &kept, &RESERVATION_HEADINGS, [reservation_row(&kept)]);
            }
            ReservationCommand::Remove { network, name } => {
                self.client.unreserve(&network, &name).await.map_err(failed)?;
                match self.format {
                    Format::Json => output::json(&serde_json::json!({ "removed": name })),
                    Format::Table => output::line(&format!("nothing is kept for {name} any more")),
                }
            }
        }
        Ok(())
    }
}

pub(super) fn node_row(node: &Node) -> Vec<String> {
    let state = match (node.ahead, node.live) {
        (Some(_), _) => "refuses",
        (None, true) => "live",
        (None, false) => "away",
    };
    vec![
        node.name.clone(),
        state.to_owned(),
        node.last_seen.as_deref().map_or_else(|| "-".to_owned(), output::ago),
        node.applied.map_or_else(|| "-".to_owned(), |revision| revision.to_string()),
        node.containers.to_string(),
        if node.endpoints.is_empty() { "-".to_owned() } else { node.endpoints.join(" ") },
        node.id.chars().take(16).collect(),
    ]
}

fn container_row(container: &Container) -> Vec<String> {
    vec![
        container.name.clone(),
        container.node.clone(),
        texts(&container.addresses),
        container.public_key.clone(),
        key_since(container),
        output::ago(&container.attached),
    ]
}

/// Since when its key is in use, and how far the change of it is.
fn key_since(container: &Container) -> String {
    let since = output::ago(&container.key_since);
    container.key_change.map_or_else(|| since.clone(), |change| format!("{since}, {}", word(change)))
}

/// How far a change is, in a word.
pub(super) fn word(change: KeyChange) -> &'static str {
    match change {
        KeyChange::Due => "due",
        KeyChange::Asked => "asked",
        KeyChange::Offered => "offered",
        KeyChange::Promoted => "promoted",
    }
}

fn reservation_row(kept: &Reservation) -> Vec<String> {
    let state = if kept.attached { "attached" } else { "kept" };
    vec![kept.name.clone(), texts(&kept.addresses), state.to_owned()]
}

fn texts(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}
