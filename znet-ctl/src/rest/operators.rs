//! Operators' tokens: who may use this API.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use znet_api::rest::{CreateOperator, NewOperator, Operator, OperatorRole, rfc3339};

use super::auth::Caller;
use super::problem::{Answer, Content, Failed, invalid, unknown};
use crate::actor::{Role, Scope};
use crate::hub::Hub;
use crate::store;

/// Longest note in characters.
const MAX_NOTE: usize = 100;

impl From<OperatorRole> for Role {
    fn from(role: OperatorRole) -> Self {
        match role {
            OperatorRole::Read => Self::Read,
            OperatorRole::Deploy => Self::Deploy,
            OperatorRole::Admin => Self::Admin,
        }
    }
}

impl From<Role> for OperatorRole {
    fn from(role: Role) -> Self {
        match role {
            Role::Read => Self::Read,
            Role::Deploy => Self::Deploy,
            Role::Admin => Self::Admin,
        }
    }
}

fn describe(hub: &Hub, operator: &store::Operator) -> Operator {
    let network = match operator.scope {
        Scope::All => None,
        // A network that is gone leaves its identifier.
        Scope::Network(id) => Some(hub.network(id).map_or_else(|_| id.to_string(), |n| n.name().to_string())),
    };
    Operator {
        id: operator.id.to_string(),
        note: operator.note.clone(),
        role: operator.role.into(),
        network,
        created: rfc3339(operator.created),
    }
}

/// All operators, the oldest first. Takes the role admin in all networks.
#[utoipa::path(
    get, path = "/v1/operators", tag = "operators",
    operation_id = "list_operators", security(("operator" = [])),
    responses((status = 200, description = "The operators", body = Vec<Operator>), Failed)
)]
pub(super) async fn list(caller: Caller, State(hub): State<Arc<Hub>>) -> Answer<Vec<Operator>> {
    caller.everywhere(Role::Admin)?;
    Ok(Json(hub.operators().iter().map(|operator| describe(&hub, operator)).collect()))
}

/// Makes an operator's token. Its text is in this answer and nowhere else. Takes the role admin in all networks.
#[utoipa::path(
    post, path = "/v1/operators", tag = "operators",
    operation_id = "create_operator", security(("operator" = [])), request_body = CreateOperator,
    responses((status = 201, description = "The operator, with the text of the token", body = NewOperator), Failed)
)]
pub(super) async fn create(
    caller: Caller,
    State(hub): State<Arc<Hub>>,
    Content(asked): Content<CreateOperator>,
) -> Result<(StatusCode, Json<NewOperator>), Failed> {
    caller.everywhere(Role::Admin)?;
    if asked.note.chars().count() > MAX_NOTE || asked.note.chars().any(char::is_control) {
        return Err(invalid(
            "note",
            format!("at most {MAX_NOTE} characters, none of them a control character"),
        ));
    }
    let scope = match &asked.network {
        Some(network) => {
            let found = hub.find(network);
            Scope::Network(found.map_err(|error| Failed::from(error).of_body("unknown_network"))?.id())
        }
        None => Scope::All,
    };
    let made = hub.create_operator(asked.note, asked.role.into(), scope, caller.actor()).await?;
    let (operator, token) = made;
    let made = NewOperator {
        operator_token: token.to_text().to_string(),
        pin: hub.pin().to_string(),
        operator: describe(&hub, &operator),
    };
    Ok((StatusCode::CREATED, Json(made)))
}

/// Makes an operator's token invalid, at once. Takes the role admin in all networks.
#[utoipa::path(
    delete, path = "/v1/operators/{id}", tag = "operators",
    operation_id = "revoke_operator", security(("operator" = [])),
    params(("id" = String, Path, description = "The operator's handle", pattern = "^[0-9a-fA-F]{16}$")),
    responses((status = 204, description = "The token is refused from now on"), Failed)
)]
pub(super) async fn revoke(
    caller: Caller,
    State(hub): State<Arc<Hub>>,
    Path(wanted): Path<String>,
) -> Result<StatusCode, Failed> {
    caller.everywhere(Role::Admin)?;
    let id = wanted.parse().map_err(|error| invalid("id", error))?;
    if hub.revoke_operator(id, caller.actor()).await? {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(unknown(
        "unknown_operator",
        format!("there is no operator {id}; `znet-ctl operator list` shows those that are"),
    ))
}
