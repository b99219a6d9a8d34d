//! What is kept and of no use any more: listed first, then removed.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use znet_api::rest::{Garbage, Token};
use znet_core::controller::Command;
use znet_core::id::{NodeId, TokenId};

use super::auth::Caller;
use super::nodes;
use super::problem::{Answer, Failed};
use crate::actor::Role;
use crate::hub::Hub;
use crate::network::Hosted;

/// Ephemeral nodes that stayed away beyond their time, and tokens that admit nobody any more.
fn garbage(hub: &Hub, hosted: &Hosted, overdue: &[NodeId]) -> Result<(Garbage, Vec<TokenId>), Failed> {
    let now = hub.clock().now();
    let nodes = if overdue.is_empty() { Vec::new() } else { nodes::all(hosted)? };
    let is_overdue = |id: &str| overdue.iter().any(|node| node.to_string() == id);
    let (ids, mut tokens): (Vec<TokenId>, Vec<Token>) = hosted.read(|network, _| {
        let spent = network.tokens().filter(|token| token.is_spent(now));
        spent.map(|token| (token.id, Token::from(token))).unzip()
    })?;
    tokens.sort_by(|a, b| (&a.created, &a.id).cmp(&(&b.created, &b.id)));
    let nodes = nodes.into_iter().filter(|node| is_overdue(&node.id)).collect();
    Ok((Garbage { nodes, tokens }, ids))
}

/// What would be removed: ephemeral nodes that stayed away beyond their time and that no member hears, and join tokens that
/// were revoked, are used up or expired. Lasting nodes and nodes that were seen lately are never among it. Where several
/// controllers share a store, one that has no members asks the others, which takes some seconds.
#[utoipa::path(
    get, path = "/v1/networks/{network}/garbage", tag = "garbage",
    operation_id = "list_garbage", security(("operator" = [])),
    params(("network" = String, Path, description = "Name or identifier")),
    responses((status = 200, description = "What would be removed", body = Garbage), Failed)
)]
pub(super) async fn list(
    caller: Caller,
    State(hub): State<Arc<Hub>>,
    Path(network): Path<String>,
) -> Answer<Garbage> {
    let hosted = caller.network(&hub, &network, Role::Read)?;
    Ok(Json(garbage(&hub, &hosted, &hosted.unheard().await)?.0))
}

/// Removes what is of no use any more, and tells what that was. Takes the role admin.
#[utoipa::path(
    post, path = "/v1/networks/{network}/garbage", tag = "garbage",
    operation_id = "collect_garbage", security(("operator" = [])),
    params(("network" = String, Path, description = "Name or identifier")),
    responses((status = 200, description = "What was removed", body = Garbage), Failed)
)]
pub(super) async fn collect(
    caller: Caller,
    State(hub): State<Arc<Hub>>,
    Path(network): Path<String>,
) -> Answer<Garbage> {
    let hosted = caller.network(&hub, &network, Role::Admin)?;
    let absent = hosted.unheard().await;
    let (found, tokens) = garbage(&hub, &hosted, &absent)?;
    hosted.execute(Command::Collect { absent }, caller.actor()).await?;
    hosted.execute(Command::RemoveTokens { tokens }, caller.actor()).await?;
    Ok(Json(found))
}
