//! The key that signs a network's map.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use znet_api::rest::SigningKeys;
use znet_core::controller::Command;

use super::auth::Caller;
use super::problem::{Answer, Failed};
use crate::actor::Role;
use crate::hub::Hub;
use crate::network::Hosted;

fn describe(hosted: &Hosted) -> Answer<SigningKeys> {
    let key = hosted.verifying_key()?;
    let described = hosted.read(|network, _| {
        let signing = network.conf().signing.as_ref();
        let since = signing.map(|signing| signing.since);
        let line = signing.map(|signing| signing.line.as_slice()).unwrap_or_default();
        let behind = |node: &znet_core::id::NodeId| since > hosted.presence_of(node).2;
        let nodes = network.nodes().filter(|node| since.is_some() && behind(&node.id));
        let mut not_followed: Vec<String> = nodes.map(|node| node.name.to_string()).collect();
        not_followed.sort();
        SigningKeys {
            current: format!("{key:?}"),
            since: since.map(znet_core::id::Revision::get),
            former: line.iter().map(|step| format!("{:?}", step.statement.from)).collect(),
            not_followed,
        }
    })?;
    Ok(Json(described))
}

/// The key that signs the network's map, those that it followed, and the nodes that are not known to have followed.
#[utoipa::path(
    get, path = "/v1/networks/{network}/key", tag = "networks",
    operation_id = "show_key", security(("operator" = [])),
    params(("network" = String, Path, description = "Name or identifier")),
    responses((status = 200, description = "The key", body = SigningKeys), Failed)
)]
pub(super) async fn show(
    caller: Caller,
    State(hub): State<Arc<Hub>>,
    Path(network): Path<String>,
) -> Answer<SigningKeys> {
    describe(&*caller.network(&hub, &network, Role::Read)?)
}

/// Puts a new key in the place of the one that signs the network's map; agents follow by themselves. Takes the role admin.
#[utoipa::path(
    post, path = "/v1/networks/{network}/key", tag = "networks",
    operation_id = "rotate_key", security(("operator" = [])),
    params(("network" = String, Path, description = "Name or identifier")),
    responses((status = 200, description = "The key as it is now", body = SigningKeys), Failed)
)]
pub(super) async fn rotate(
    caller: Caller,
    State(hub): State<Arc<Hub>>,
    Path(network): Path<String>,
) -> Answer<SigningKeys> {
    let hosted = caller.network(&hub, &network, Role::Admin)?;
    hub.rotate_key(&hosted, caller.actor()).await?;
    describe(&hosted)
}

/// Gives up the statements that lead from earlier keys: whoever believes one of those needs a new token. Takes the role admin.
#[utoipa::path(
    post, path = "/v1/networks/{network}/key/retire", tag = "networks",
    operation_id = "retire_keys", security(("operator" = [])),
    params(("network" = String, Path, description = "Name or identifier")),
    responses((status = 200, description = "The key, without those that it followed", body = SigningKeys), Failed)
)]
pub(super) async fn retire(
    caller: Caller,
    State(hub): State<Arc<Hub>>,
    Path(network): Path<String>,
) -> Answer<SigningKeys> {
    let hosted = caller.network(&hub, &network, Role::Admin)?;
    hosted.execute(Command::RetireKeys, caller.actor()).await?;
    describe(&hosted)
}
