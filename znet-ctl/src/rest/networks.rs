//! Networks: the unit of isolation.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use znet_api::rest::{Ahead, ChangeNetwork, CreateNetwork, Network, NetworkStatus, Removed, rfc3339};
use znet_core::controller::{Command, NewNetwork, Settings};

use super::auth::Caller;
use super::nodes;
use super::problem::{Answer, Content, Failed, name, seconds};
use crate::actor::Role;
use crate::hub::Hub;
use crate::network::{Condition, Hosted};

fn settings_of(asked: ChangeNetwork) -> Result<Settings, Failed> {
    let time = |field, given: Option<u64>| given.map(|n| seconds(field, n)).transpose();
    Ok(Settings {
        reserved: asked.reserved,
        rest: time("rest_seconds", asked.rest_seconds)?,
        ephemeral_ttl: time("ephemeral_ttl_seconds", asked.ephemeral_ttl_seconds)?,
        key_lifetime: lifetime(asked.key_lifetime_seconds)?,
    })
}

/// What is told of a network.
pub(super) fn describe(hosted: &Hosted) -> Result<Network, Failed> {
    let ahead = hosted.ahead();
    let latest = ahead.values().max().map(|revision| Ahead { nodes: ahead.len(), revision: revision.get() });
    let described = hosted.read(|network, head| {
        let conf = network.conf();
        Network {
            id: conf.id.to_string(),
            name: conf.name.to_string(),
            prefix6: conf.prefix6.into(),
            prefix4: conf.prefix4.map(Into::into),
            reserved: conf.reserved.clone(),
            rest_seconds: conf.rest().as_secs(),
            ephemeral_ttl_seconds: conf.ephemeral_ttl().as_secs(),
            key_lifetime_seconds: conf.key_lifetime().map(|lifetime| lifetime.as_secs()),
            created: rfc3339(conf.created),
            epoch: conf.epoch.get(),
            revision: head.head.revision.get(),
            nodes: network.nodes().len(),
            containers: network.containers().len(),
            ahead: latest,
        }
    });
    Ok(described?)
}

/// A lifetime of keys; 0 stands for ever.
fn lifetime(asked: Option<u64>) -> Result<Option<Option<Duration>>, Failed> {
    let read = |n: u64| match n {
        0 => Ok(None),
        n => seconds("key_lifetime_seconds", n).map(Some),
    };
    asked.map(read).transpose()
}

/// All networks within the token's scope, by name.
#[utoipa::path(
    get, path = "/v1/networks", tag = "networks",
    operation_id = "list_networks", security(("operator" = [])),
    responses((status = 200, description = "The networks", body = Vec<Network>), Failed)
)]
pub(super) async fn list(caller: Caller, State(hub): State<Arc<Hub>>) -> Answer<Vec<Network>> {
    let mut all = Vec::new();
    for hosted in hub.networks().iter().filter(|hosted| caller.scope().contains(hosted.id())) {
        // One that cannot be read must not hide the others; its status tells what is wrong.
        all.extend(describe(hosted));
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Json(all))
}

/// Creates a network. Takes the role admin in all networks.
#[utoipa::path(
    post, path = "/v1/networks", tag = "networks",
    operation_id = "create_network", security(("operator" = [])), request_body = CreateNetwork,
    responses((status = 201, description = "The network that was made", body = Network), Failed)
)]
pub(super) async fn create(
    caller: Caller,
    State(hub): State<Arc<Hub>>,
    Content(asked): Content<CreateNetwork>,
) -> Result<(StatusCode, Json<Network>), Failed> {
    caller.everywhere(Role::Admin)?;
    let settings = ChangeNetwork {
        reserved: Some(asked.reserved),
        rest_seconds: asked.rest_seconds,
        ephemeral_ttl_seconds: asked.ephemeral_ttl_seconds,
        key_lifetime_seconds: asked.key_lifetime_seconds,
    };
    let settings = settings_of(settings)?;
    let new = NewNetwork { name: name(&asked.name)?, prefixes: asked.prefixes, settings };
    let hosted = hub.create(&new, caller.actor()).await?;
    Ok((StatusCode::CREATED, Json(describe(&hosted)?)))
}

/// One network, by name or identifier.
#[utoipa::path(
    get, path = "/v1/networks/{network}", tag = "networks",
    operation_id = "show_network", security(("operator" = [])),
    params(("network" = String, Path, description = "Name or identifier")),
    responses((status = 200, description = "The network", body = Network), Failed)
)]
pub(super) async fn show(
    caller: Caller,
    State(hub): State<Arc<Hub>>,
    Path(network): Path<String>,
) -> Answer<Network> {
    Ok(Json(describe(&*caller.network(&hub, &network, Role::Read)?)?))
}

/// Changes settings of a network; what is absent stays. Takes the role admin.
#[utoipa::path(
    patch, path = "/v1/networks/{network}", tag = "networks",
    operation_id = "change_network", security(("operator" = [])),
    params(("network" = String, Path, description = "Name or identifier")), request_body = ChangeNetwork,
    responses((status = 200, description = "The network as it is now", body = Network), Failed)
)]
pub(super) async fn change(
    caller: Caller,
    State(hub): State<Arc<Hub>>,
    Path(network): Path<String>,
    Content(asked): Content<ChangeNetwork>,
) -> Answer<Network> {
    let hosted = caller.network(&hub, &network, Role::Admin)?;
    hosted.execute(Command::Configure(settings_of(asked)?), caller.actor()).await?;
    Ok(Json(describe(&hosted)?))
}

/// Deletes a network with all that belongs to it. Takes the role admin in all networks.
#[utoipa::path(
    delete, path = "/v1/networks/{network}", tag = "networks",
    operation_id = "delete_network", security(("operator" = [])),
    params(("network" = String, Path, description = "Name or identifier")),
    responses((status = 200, description = "What went away with it", body = Removed), Failed)
)]
pub(super) async fn delete(
    caller: Caller,
    State(hub): State<Arc<Hub>>,
    Path(network): Path<String>,
) -> Answer<Removed> {
    let hosted = caller.network(&hub, &network, Role::Admin)?;
    caller.everywhere(Role::Admin)?;
    let (nodes, containers) = hub.delete(&hosted, caller.actor()).await?;
    Ok(Json(Removed { nodes, containers }))
}

/// How a network fares: its digest, whether it takes changes, its nodes with what they have applied.
#[utoipa::path(
    get, path = "/v1/networks/{network}/status", tag = "networks",
    operation_id = "network_status", security(("operator" = [])),
    params(("network" = String, Path, description = "Name or identifier")),
    responses((status = 200, description = "How it fares", body = NetworkStatus), Failed)
)]
pub(super) async fn status(
    caller: Caller,
    State(hub): State<Arc<Hub>>,
    Path(network): Path<String>,
) -> Answer<NetworkStatus> {
    let hosted = caller.network(&hub, &network, Role::Read)?;
    let (digest, keys_changing) =
        hosted.read(|network, head| (head.head.digest.to_string(), network.rotations()))?;
    let writable = hosted.condition() == Condition::Serving;
    let (network, nodes) = (describe(&hosted)?, nodes::all(&hosted)?);
    Ok(Json(NetworkStatus { network, digest, writable, keys_changing, nodes }))
}

/// Starts a new epoch, after a restore from a backup: agents then accept the older history. Takes the role admin.
#[utoipa::path(
    post, path = "/v1/networks/{network}/epoch", tag = "networks", security(("operator" = [])),
    params(("network" = String, Path, description = "Name or identifier")),
    responses((status = 200, description = "The network as it is now", body = Network), Failed)
)]
pub(super) async fn new_epoch(
    caller: Caller,
    State(hub): State<Arc<Hub>>,
    Path(network): Path<String>,
) -> Answer<Network> {
    let hosted = caller.network(&hub, &network, Role::Admin)?;
    hosted.execute(Command::NewEpoch, caller.actor()).await?;
    Ok(Json(describe(&hosted)?))
}
