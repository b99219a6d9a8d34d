//! The change of containers' key pairs.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use znet_api::rest::{KeyChange, RotateKeys, Rotating};
use znet_core::controller::{self as core, Command, Network, Reply, Rotate};

use super::auth::Caller;
use super::nodes::{find, no_such_node};
use super::problem::{Answer, Content, Failed, at_odds, name};
use crate::actor::Role;
use crate::hub::Hub;
use crate::network::Hosted;

/// How far the change of a container's pair is; `None` when it is not changed.
pub(super) fn change_of(network: &Network, container: &core::Container) -> Option<KeyChange> {
    let record = &container.record;
    match (record.rekey, record.also_key) {
        (true, None) => Some(KeyChange::Asked),
        (true, Some(_)) => Some(KeyChange::Offered),
        (false, Some(_)) => Some(KeyChange::Promoted),
        (false, None) => {
            let due = network.conf().keys_since.is_some_and(|since| container.keyed() < since);
            due.then_some(KeyChange::Due)
        }
    }
}

fn which(hosted: &Hosted, asked: RotateKeys) -> Result<Rotate, Failed> {
    match (asked.containers, asked.node, asked.all) {
        (names, None, false) if !names.is_empty() => {
            Ok(Rotate::Named(names.iter().map(|text| name(text)).collect::<Result<_, _>>()?))
        }
        (names, Some(wanted), false) if names.is_empty() => {
            let found = hosted.read(|network, _| find(network, &wanted).map(|node| node.id))?;
            found.map(Rotate::Node).ok_or_else(|| no_such_node(hosted, &wanted).of_body("unknown_node"))
        }
        (names, None, true) if names.is_empty() => Ok(Rotate::All),
        _ => Err(at_odds("one_of_three", "name containers, or a node, or all: one of the three")),
    }
}

/// Has the key pairs of containers changed, without a packet being lost: their nodes make new ones, and the controller leads
/// all members from the old to the new. What is being changed already is no error. Takes the role deploy.
#[utoipa::path(
    post, path = "/v1/networks/{network}/keys/rotate", tag = "keys",
    operation_id = "rotate_keys", security(("operator" = [])),
    params(("network" = String, Path, description = "Name or identifier")), request_body = RotateKeys,
    responses((status = 200, description = "Whose pairs are changed now", body = Rotating), Failed)
)]
pub(super) async fn rotate(
    caller: Caller,
    State(hub): State<Arc<Hub>>,
    Path(network): Path<String>,
    Content(asked): Content<RotateKeys>,
) -> Answer<Rotating> {
    let hosted = caller.network(&hub, &network, Role::Deploy)?;
    let which = which(&hosted, asked)?;
    let done = hosted.execute(Command::RotateKeys { which }, caller.actor()).await;
    let done =
        done.map_err(|error| Failed::from(error).of_body("unknown_container").of_body("unknown_node"))?;
    let Reply::Rotating { containers } = &done.reply else { return Ok(Json(Rotating::default())) };
    let containers = containers.iter().map(ToString::to_string).collect();
    Ok(Json(Rotating { containers, revision: done.revision.get() }))
}
