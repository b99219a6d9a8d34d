//! Access points: people's devices, which nodes let into a network.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use znet_api::error::Problem;
use znet_api::rest::{Access, AccessPoint, CreateAccess, Removed, rfc3339};
use znet_core::controller::{self as core, Command, Network, Reply};
use znet_core::id::NodeId;
use znet_core::key::PublicKey;

use super::auth::Caller;
use super::nodes::{find, no_such_node, removed};
use super::problem::{Answer, Content, Failed, at_odds, invalid, name, unknown};
use crate::actor::Role;
use crate::hub::Hub;
use crate::network::Hosted;

fn describe(network: &Network, access: &core::Access) -> Access {
    let record = &access.record;
    let node = network.node(&record.node);
    let at = |port: u16| {
        let mut hosts: Vec<_> = node.into_iter().flat_map(|n| &n.endpoints).map(SocketAddr::ip).collect();
        hosts.dedup();
        hosts.into_iter().map(move |host| SocketAddr::new(host, port).to_string()).collect()
    };
    Access {
        name: record.name.to_string(),
        via: node.map(|node| node.name.to_string()).unwrap_or_default(),
        public_key: record.public_key.to_string(),
        addresses: record.addresses().collect(),
        point: access.point.map(|point| AccessPoint {
            public_key: point.public_key.to_string(),
            port: point.port,
            endpoints: at(point.port),
        }),
        created: rfc3339(access.created),
    }
}

/// All access points of a network, by name.
#[utoipa::path(
    get, path = "/v1/networks/{network}/access", tag = "access",
    operation_id = "list_access", security(("operator" = [])),
    params(("network" = String, Path, description = "Name or identifier")),
    responses((status = 200, description = "The access points", body = Vec<Access>), Failed)
)]
pub(super) async fn list(
    caller: Caller,
    State(hub): State<Arc<Hub>>,
    Path(network): Path<String>,
) -> Answer<Vec<Access>> {
    let hosted = caller.network(&hub, &network, Role::Read)?;
    let mut all = hosted
        .read(|network, _| network.accesses().map(|access| describe(network, access)).collect::<Vec<_>>())?;
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Json(all))
}

/// One access point, by name.
#[utoipa::path(
    get, path = "/v1/networks/{network}/access/{name}", tag = "access",
    operation_id = "show_access", security(("operator" = [])),
    params(
        ("network" = String, Path, description = "Name or identifier"),
        ("name" = String, Path, description = "Its name", pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"),
    ),
    responses((status = 200, description = "The access point", body = Access), Failed)
)]
pub(super) async fn show(
    caller: Caller,
    State(hub): State<Arc<Hub>>,
    Path((network, wanted)): Path<(String, String)>,
) -> Answer<Access> {
    let hosted = caller.network(&hub, &network, Role::Read)?;
    let wanted = name(&wanted)?;
    let found =
        hosted.read(|network, _| network.access_by_name(&wanted).map(|found| describe(network, found)))?;
    let missing = || {
        let why = format!("there is no access point {wanted} in network {}", hosted.name());
        unknown("unknown_access", why)
    };
    found.map(Json).ok_or_else(missing)
}

/// Lets a person's device into the network through a node, which says a little later where (`point`). Repeated for
/// the same node and key nothing changes. Takes the role deploy.
#[utoipa::path(
    put, path = "/v1/networks/{network}/access/{name}", tag = "access",
    operation_id = "put_access", security(("operator" = [])),
    params(
        ("network" = String, Path, description = "Name or identifier"),
        ("name" = String, Path, description = "Its name", pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"),
    ),
    request_body = CreateAccess,
    responses((status = 200, description = "The access point", body = Access), Failed)
)]
pub(super) async fn put(
    caller: Caller,
    State(hub): State<Arc<Hub>>,
    Path((network, wanted)): Path<(String, String)>,
    Content(asked): Content<CreateAccess>,
) -> Answer<Access> {
    let hosted = caller.network(&hub, &network, Role::Deploy)?;
    let name = name(&wanted)?;
    let key: PublicKey = asked.public_key.parse().map_err(|error| invalid("public_key", error))?;
    let node = node_of(&hosted, asked.via.as_deref())?;
    let command = Command::CreateAccess { name, node, public_key: key, addresses: asked.addresses };
    let done = hosted.execute(command, caller.actor()).await;
    let done = done.map_err(|error| Failed::from(error).of_body("unknown_node"))?;
    let Reply::Access(access) = done.reply else {
        return Err(Problem::new(500, "internal", "the network answered another question").into());
    };
    Ok(Json(hosted.read(|network, _| describe(network, &access))?))
}

/// The node that was named, or the only one.
fn node_of(hosted: &Hosted, via: Option<&str>) -> Result<NodeId, Failed> {
    if let Some(via) = via {
        let node = hosted.read(|network, _| find(network, via).map(|node| node.id))?;
        return node.ok_or_else(|| no_such_node(hosted, via).of_body("unknown_node"));
    }
    let (first, more) = hosted.read(|network, _| {
        let mut nodes = network.nodes();
        (nodes.next().map(|node| node.id), nodes.next().is_some())
    })?;
    match first {
        Some(only) if !more => Ok(only),
        Some(_) => Err(invalid("via", "the network has several nodes; name the one that people reach")),
        None => Err(at_odds("unknown_node", format!("network {} has no node yet", hosted.name()))),
    }
}

/// Takes an access point away; the device is cut off everywhere at once. Takes the role deploy.
#[utoipa::path(
    delete, path = "/v1/networks/{network}/access/{name}", tag = "access",
    operation_id = "revoke_access", security(("operator" = [])),
    params(
        ("network" = String, Path, description = "Name or identifier"),
        ("name" = String, Path, description = "Its name", pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"),
    ),
    responses((status = 200, description = "What went away", body = Removed), Failed)
)]
pub(super) async fn revoke(
    caller: Caller,
    State(hub): State<Arc<Hub>>,
    Path((network, wanted)): Path<(String, String)>,
) -> Answer<Removed> {
    let hosted = caller.network(&hub, &network, Role::Deploy)?;
    let command = Command::RevokeAccess { name: name(&wanted)? };
    let done = hosted.execute(command, caller.actor()).await?;
    Ok(Json(removed(&done.reply)))
}
