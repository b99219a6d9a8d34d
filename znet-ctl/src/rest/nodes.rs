//! Nodes: machines that run an agent.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use znet_api::rest::{Node, Removed, rfc3339};
use znet_core::controller::{self as core, Command, Network, Reply};
use znet_core::id::{NodeId, Revision};

use super::auth::Caller;
use super::problem::{Answer, Failed, beginning, unknown};
use crate::actor::Role;
use crate::hub::Hub;
use crate::network::Hosted;

fn describe(
    hosted: &Hosted,
    network: &Network,
    node: &core::Node,
    ahead: &BTreeMap<NodeId, Revision>,
) -> Node {
    let (live, last_seen, applied) = hosted.presence_of(&node.id);
    Node {
        id: node.id.to_string(),
        name: node.name.to_string(),
        endpoints: node.endpoints.iter().map(ToString::to_string).collect(),
        lifetime: node.lifetime.into(),
        token: node.token.to_string(),
        joined: rfc3339(node.joined),
        live,
        last_seen: last_seen.map(rfc3339),
        applied: applied.map(|revision| revision.get()),
        ahead: ahead.get(&node.id).map(|revision| revision.get()),
        one_key_only: !node.two_keys,
        containers: network.containers_of(node.id).count(),
    }
}

/// All nodes of a network, by name.
pub(super) fn all(hosted: &Hosted) -> Result<Vec<Node>, Failed> {
    let ahead = hosted.ahead();
    let mut nodes: Vec<Node> = hosted
        .read(|network, _| network.nodes().map(|node| describe(hosted, network, node, &ahead)).collect())?;
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(nodes)
}

/// A node by name or identifier.
pub(super) fn find<'a>(network: &'a Network, wanted: &str) -> Option<&'a core::Node> {
    let by_name = wanted.parse().ok().and_then(|name| network.node_by_name(&name));
    by_name.or_else(|| wanted.parse::<NodeId>().ok().and_then(|id| network.node(&id)))
}

pub(super) fn no_such_node(hosted: &Hosted, wanted: &str) -> Failed {
    unknown("unknown_node", format!("there is no node {} in network {}", beginning(wanted), hosted.name()))
}

/// All nodes of a network, by name.
#[utoipa::path(
    get, path = "/v1/networks/{network}/nodes", tag = "nodes",
    operation_id = "list_nodes", security(("operator" = [])),
    params(("network" = String, Path, description = "Name or identifier")),
    responses((status = 200, description = "The nodes", body = Vec<Node>), Failed)
)]
pub(super) async fn list(
    caller: Caller,
    State(hub): State<Arc<Hub>>,
    Path(network): Path<String>,
) -> Answer<Vec<Node>> {
    Ok(Json(all(&*caller.network(&hub, &network, Role::Read)?)?))
}

/// One node, by name or identifier.
#[utoipa::path(
    get, path = "/v1/networks/{network}/nodes/{node}", tag = "nodes",
    operation_id = "show_node", security(("operator" = [])),
    params(
        ("network" = String, Path, description = "Name or identifier"),
        ("node" = String, Path, description = "Name or identifier"),
    ),
    responses((status = 200, description = "The node", body = Node), Failed)
)]
pub(super) async fn show(
    caller: Caller,
    State(hub): State<Arc<Hub>>,
    Path((network, wanted)): Path<(String, String)>,
) -> Answer<Node> {
    let hosted = caller.network(&hub, &network, Role::Read)?;
    let ahead = hosted.ahead();
    let found = hosted
        .read(|network, _| find(network, &wanted).map(|node| describe(&hosted, network, node, &ahead)))?;
    found.map(Json).ok_or_else(|| no_such_node(&hosted, &wanted))
}

/// Removes a node with all its containers; it needs a token to come back. Takes the role admin.
#[utoipa::path(
    delete, path = "/v1/networks/{network}/nodes/{node}", tag = "nodes",
    operation_id = "remove_node", security(("operator" = [])),
    params(
        ("network" = String, Path, description = "Name or identifier"),
        ("node" = String, Path, description = "Name or identifier"),
    ),
    responses((status = 200, description = "What went away", body = Removed), Failed)
)]
pub(super) async fn remove(
    caller: Caller,
    State(hub): State<Arc<Hub>>,
    Path((network, wanted)): Path<(String, String)>,
) -> Answer<Removed> {
    let hosted = caller.network(&hub, &network, Role::Admin)?;
    let node = hosted.read(|network, _| find(network, &wanted).map(|node| node.id))?;
    let node = node.ok_or_else(|| no_such_node(&hosted, &wanted))?;
    let done = hosted.execute(Command::RemoveNode { node }, caller.actor()).await?;
    Ok(Json(removed(&done.reply)))
}

/// How many went away.
pub(super) fn removed(reply: &Reply) -> Removed {
    match reply {
        Reply::Removed { containers, nodes } => Removed { nodes: *nodes, containers: containers.len() },
        _ => Removed { nodes: 0, containers: 0 },
    }
}
