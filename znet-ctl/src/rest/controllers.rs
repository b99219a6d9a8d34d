//! Where a network's agents look for its controllers.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use znet_api::rest::{ChangeControllers, Controller, SetControllers};
use znet_core::controller::Command;

use super::auth::Caller;
use super::problem::{Answer, Content, Failed};
use crate::actor::Role;
use crate::hub::Hub;
use crate::network::Hosted;

fn describe(hosted: &Hosted) -> Answer<Vec<Controller>> {
    let all = hosted.read(|network, _| {
        network.conf().controllers.iter().map(Controller::from).collect::<Vec<Controller>>()
    })?;
    Ok(Json(all))
}

/// Where agents look for the network's controllers, in this order; empty where join tokens alone tell.
#[utoipa::path(
    get, path = "/v1/networks/{network}/controllers", tag = "controllers",
    operation_id = "list_controllers", security(("operator" = [])),
    params(("network" = String, Path, description = "Name or identifier")),
    responses((status = 200, description = "The controllers", body = Vec<Controller>), Failed)
)]
pub(super) async fn list(
    caller: Caller,
    State(hub): State<Arc<Hub>>,
    Path(network): Path<String>,
) -> Answer<Vec<Controller>> {
    describe(&*caller.network(&hub, &network, Role::Read)?)
}

/// Replaces the list; an empty one leaves it to join tokens. Takes the role admin.
#[utoipa::path(
    put, path = "/v1/networks/{network}/controllers", tag = "controllers",
    operation_id = "set_controllers", security(("operator" = [])),
    params(("network" = String, Path, description = "Name or identifier")), request_body = SetControllers,
    responses((status = 200, description = "The controllers as they are now", body = Vec<Controller>), Failed)
)]
pub(super) async fn set(
    caller: Caller,
    State(hub): State<Arc<Hub>>,
    Path(network): Path<String>,
    Content(asked): Content<SetControllers>,
) -> Answer<Vec<Controller>> {
    let hosted = caller.network(&hub, &network, Role::Admin)?;
    let pins = hub.pins();
    let command = Command::ChangeControllers { add: asked.addresses, remove: Vec::new(), only: true, pins };
    hosted.execute(command, caller.actor()).await?;
    describe(&hosted)
}

/// Adds addresses at the end of the list and takes others out. Takes the role admin.
#[utoipa::path(
    patch, path = "/v1/networks/{network}/controllers", tag = "controllers",
    operation_id = "change_controllers", security(("operator" = [])),
    params(("network" = String, Path, description = "Name or identifier")), request_body = ChangeControllers,
    responses((status = 200, description = "The controllers as they are now", body = Vec<Controller>), Failed)
)]
pub(super) async fn change(
    caller: Caller,
    State(hub): State<Arc<Hub>>,
    Path(network): Path<String>,
    Content(asked): Content<ChangeControllers>,
) -> Answer<Vec<Controller>> {
    let hosted = caller.network(&hub, &network, Role::Admin)?;
    let command =
        Command::ChangeControllers { add: asked.add, remove: asked.remove, only: false, pins: hub.pins() };
    hosted.execute(command, caller.actor()).await?;
    describe(&hosted)
}
