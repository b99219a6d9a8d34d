//! Names and addresses kept for containers that will come.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use znet_api::error::Problem;
use znet_api::rest::{Reservation, Reserve};
use znet_core::controller::{self as core, Command, Network, Reply};

use super::auth::Caller;
use super::problem::{Answer, Content, Failed, name};
use crate::actor::Role;
use crate::hub::Hub;

fn describe(network: &Network, kept: &core::Reservation) -> Reservation {
    Reservation {
        name: kept.name.to_string(),
        addresses: kept.addresses.clone(),
        attached: network.container_by_name(&kept.name).is_some(),
    }
}

/// All reservations of a network, by name.
#[utoipa::path(
    get, path = "/v1/networks/{network}/reservations", tag = "reservations",
    operation_id = "list_reservations", security(("operator" = [])),
    params(("network" = String, Path, description = "Name or identifier")),
    responses((status = 200, description = "The reservations", body = Vec<Reservation>), Failed)
)]
pub(super) async fn list(
    caller: Caller,
    State(hub): State<Arc<Hub>>,
    Path(network): Path<String>,
) -> Answer<Vec<Reservation>> {
    let hosted = caller.network(&hub, &network, Role::Read)?;
    let mut all = hosted
        .read(|network, _| network.reservations().map(|kept| describe(network, kept)).collect::<Vec<_>>())?;
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Json(all))
}

/// Keeps a name and addresses; replaces what was kept for the name. Takes the role deploy.
#[utoipa::path(
    put, path = "/v1/networks/{network}/reservations/{name}", tag = "reservations",
    operation_id = "put_reservation", security(("operator" = [])),
    params(
        ("network" = String, Path, description = "Name or identifier"),
        ("name" = String, Path, description = "The container's name", pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"),
    ),
    request_body = Reserve,
    responses((status = 200, description = "What is kept", body = Reservation), Failed)
)]
pub(super) async fn put(
    caller: Caller,
    State(hub): State<Arc<Hub>>,
    Path((network, wanted)): Path<(String, String)>,
    Content(asked): Content<Reserve>,
) -> Answer<Reservation> {
    let hosted = caller.network(&hub, &network, Role::Deploy)?;
    let command = Command::Reserve { name: name(&wanted)?, addresses: asked.addresses };
    let done = hosted.execute(command, caller.actor()).await?;
    let Reply::Reserved(kept) = done.reply else {
        return Err(Problem::new(500, "internal", "the network answered another question").into());
    };
    Ok(Json(hosted.read(|network, _| describe(network, &kept))?))
}

/// Gives a reservation up. A container that has the addresses keeps them. Takes the role deploy.
#[utoipa::path(
    delete, path = "/v1/networks/{network}/reservations/{name}", tag = "reservations",
    operation_id = "remove_reservation", security(("operator" = [])),
    params(
        ("network" = String, Path, description = "Name or identifier"),
        ("name" = String, Path, description = "The container's name", pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"),
    ),
    responses((status = 204, description = "Nothing is kept for the name"), Failed)
)]
pub(super) async fn remove(
    caller: Caller,
    State(hub): State<Arc<Hub>>,
    Path((network, wanted)): Path<(String, String)>,
) -> Result<StatusCode, Failed> {
    let hosted = caller.network(&hub, &network, Role::Deploy)?;
    let command = Command::Unreserve { name: name(&wanted)? };
    hosted.execute(command, caller.actor()).await?;
    Ok(StatusCode::NO_CONTENT)
}
