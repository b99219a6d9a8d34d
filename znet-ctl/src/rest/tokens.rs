//! Join tokens.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use serde::Deserialize;
use utoipa::IntoParams;
use znet_api::error::Problem;
use znet_api::rest::{CreateToken, NewToken, Token};
use znet_api::token::JoinToken;
use znet_core::controller::{Command, Rejection, Reply};
use znet_core::id::TokenId;

use super::auth::Caller;
use super::problem::{Answer, Content, Failed, beginning, invalid, name, seconds, unknown};
use crate::actor::Role;
use crate::hub::Hub;
use crate::network::{CommandError, Hosted};

/// Most uses of a token: what the description's 32 bits with a sign hold.
const MAX_USES: u32 = i32::MAX.unsigned_abs();

fn describe(hosted: &Hosted, id: TokenId) -> Result<Token, Failed> {
    let found = hosted.read(|network, _| network.token(&id).map(Token::from))?;
    found.ok_or_else(|| CommandError::Rejected(Rejection::NoSuchToken { token: id }).into())
}

/// All join tokens of a network, the oldest first; their secrets are not kept.
#[utoipa::path(
    get, path = "/v1/networks/{network}/tokens", tag = "tokens",
    operation_id = "list_tokens", security(("operator" = [])),
    params(("network" = String, Path, description = "Name or identifier")),
    responses((status = 200, description = "The tokens, revoked and used up ones too", body = Vec<Token>), Failed)
)]
pub(super) async fn list(
    caller: Caller,
    State(hub): State<Arc<Hub>>,
    Path(network): Path<String>,
) -> Answer<Vec<Token>> {
    let hosted = caller.network(&hub, &network, Role::Read)?;
    let mut tokens: Vec<Token> = hosted.read(|network, _| network.tokens().map(Token::from).collect())?;
    tokens.sort_by(|a, b| (&a.created, &a.id).cmp(&(&b.created, &b.id)));
    Ok(Json(tokens))
}

/// Makes a join token. Its text is in this answer and nowhere else. Takes the role deploy.
#[utoipa::path(
    post, path = "/v1/networks/{network}/tokens", tag = "tokens",
    operation_id = "create_token", security(("operator" = [])),
    params(("network" = String, Path, description = "Name or identifier")), request_body = CreateToken,
    responses((status = 201, description = "The token, with its text", body = NewToken), Failed)
)]
pub(super) async fn create(
    caller: Caller,
    State(hub): State<Arc<Hub>>,
    Path(network): Path<String>,
    Content(asked): Content<CreateToken>,
) -> Result<(StatusCode, Json<NewToken>), Failed> {
    let hosted = caller.network(&hub, &network, Role::Deploy)?;
    match asked.uses {
        Some(0) => {
            return Err(invalid(
                "uses",
                "a token that cannot be used once is none; leave it out for any number",
            ));
        }
        Some(uses) if uses > MAX_USES => {
            return Err(invalid("uses", format!("at most {MAX_USES}; leave it out for any number")));
        }
        _ => {}
    }
    let valid_for = asked.expires_in_seconds.map(|n| seconds("expires_in_seconds", n)).transpose()?;
    let command = Command::CreateToken {
        label: asked.label.as_deref().map(name).transpose()?,
        uses: asked.uses,
        expires: valid_for.map(|valid_for| hub.clock().now().plus(valid_for)),
        lifetime: asked.lifetime.into(),
    };
    let done = hosted.execute(command, caller.actor()).await?;
    let Reply::Token { id, secret } = done.reply else {
        return Err(Problem::new(500, "internal", "the network answered another question").into());
    };
    let text = JoinToken {
        network: hosted.id(),
        name: hosted.name().clone(),
        endpoints: hub.advertise().to_vec(),
        pin: hub.pin(),
        verifying_key: hosted.verifying_key()?,
        id,
        secret,
    }
    .to_text();
    let made = NewToken { join_token: text.to_string(), token: describe(&hosted, id)? };
    Ok((StatusCode::CREATED, Json(made)))
}

/// What else goes with a token.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Along {
    /// Whether the nodes that joined by it are removed with all their containers; their links are cut. Takes the role
    /// admin.
    #[serde(default)]
    #[param(required = false)]
    with_nodes: bool,
}

/// Makes a join token invalid. Nodes that joined by it stay unless asked for otherwise. Takes the role deploy.
#[utoipa::path(
    delete, path = "/v1/networks/{network}/tokens/{id}", tag = "tokens",
    operation_id = "revoke_token", security(("operator" = [])),
    params(
        ("network" = String, Path, description = "Name or identifier"),
        ("id" = String, Path, description = "The token's handle or label"),
        Along,
    ),
    responses((status = 200, description = "The token as it is now", body = Token), Failed)
)]
pub(super) async fn revoke(
    caller: Caller,
    State(hub): State<Arc<Hub>>,
    Path((network, wanted)): Path<(String, String)>,
    Query(along): Query<Along>,
) -> Answer<Token> {
    // Removing a node takes admin, by whichever way.
    let role = if along.with_nodes { Role::Admin } else { Role::Deploy };
    let hosted = caller.network(&hub, &network, role)?;
    let labelled = hosted.read(|network, _| {
        let is_it = |label: &znet_core::name::Name| label.as_str() == wanted;
        network.tokens().find(|token| !token.revoked && token.label.as_ref().is_some_and(is_it)).map(|t| t.id)
    })?;
    let missing = |_| {
        let why = format!(
            "network {} has no valid token of the label or handle {}",
            hosted.name(),
            beginning(&wanted)
        );
        unknown("no_such_token", why)
    };
    let token = labelled.map_or_else(|| wanted.parse().map_err(missing), Ok)?;
    let command = Command::RevokeToken { token, with_nodes: along.with_nodes };
    hosted.execute(command, caller.actor()).await?;
    Ok(Json(describe(&hosted, token)?))
}
