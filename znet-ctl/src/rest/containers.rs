//! Containers: namespaces that nodes attached.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use znet_api::rest::{Container, Removed, rfc3339};
use znet_core::controller::{self as core, Command, Network};

use super::auth::Caller;
use super::keys::change_of;
use super::nodes::removed;
use super::problem::{Answer, Failed, name, unknown};
use crate::actor::Role;
use crate::hub::Hub;

fn describe(network: &Network, container: &core::Container) -> Container {
    let record = &container.record;
    Container {
        id: record.id.get(),
        name: record.name.to_string(),
        node: network.node(&record.node).map(|node| node.name.to_string()).unwrap_or_default(),
        public_key: record.public_key.to_string(),
        addresses: record.addresses().collect(),
        attached: rfc3339(container.attached),
        key_since: rfc3339(container.keyed()),
        key_change: change_of(network, container),
    }
}

/// All containers of a network, by name.
#[utoipa::path(
    get, path = "/v1/networks/{network}/containers", tag = "containers",
    operation_id = "list_containers", security(("operator" = [])),
    params(("network" = String, Path, description = "Name or identifier")),
    responses((status = 200, description = "The containers", body = Vec<Container>), Failed)
)]
pub(super) async fn list(
    caller: Caller,
    State(hub): State<Arc<Hub>>,
    Path(network): Path<String>,
) -> Answer<Vec<Container>> {
    let hosted = caller.network(&hub, &network, Role::Read)?;
    let mut all = hosted.read(|network, _| {
        network.containers().map(|container| describe(network, container)).collect::<Vec<_>>()
    })?;
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Json(all))
}

/// One container, by name.
#[utoipa::path(
    get, path = "/v1/networks/{network}/containers/{name}", tag = "containers",
    operation_id = "show_container", security(("operator" = [])),
    params(
        ("network" = String, Path, description = "Name or identifier"),
        ("name" = String, Path, description = "The container's name", pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"),
    ),
    responses((status = 200, description = "The container", body = Container), Failed)
)]
pub(super) async fn show(
    caller: Caller,
    State(hub): State<Arc<Hub>>,
    Path((network, wanted)): Path<(String, String)>,
) -> Answer<Container> {
    let hosted = caller.network(&hub, &network, Role::Read)?;
    let wanted = name(&wanted)?;
    let found =
        hosted.read(|network, _| network.container_by_name(&wanted).map(|found| describe(network, found)))?;
    let missing = || {
        let why = format!("there is no container {wanted} in network {}", hosted.name());
        unknown("unknown_container", why)
    };
    found.map(Json).ok_or_else(missing)
}

/// Removes a container wherever it runs; its node takes the interface away. Takes the role deploy.
#[utoipa::path(
    delete, path = "/v1/networks/{network}/containers/{name}", tag = "containers",
    operation_id = "remove_container", security(("operator" = [])),
    params(
        ("network" = String, Path, description = "Name or identifier"),
        ("name" = String, Path, description = "The container's name", pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"),
    ),
    responses((status = 200, description = "What went away", body = Removed), Failed)
)]
pub(super) async fn remove(
    caller: Caller,
    State(hub): State<Arc<Hub>>,
    Path((network, wanted)): Path<(String, String)>,
) -> Answer<Removed> {
    let hosted = caller.network(&hub, &network, Role::Deploy)?;
    let command = Command::RemoveContainer { name: name(&wanted)? };
    let done = hosted.execute(command, caller.actor()).await?;
    Ok(Json(removed(&done.reply)))
}
