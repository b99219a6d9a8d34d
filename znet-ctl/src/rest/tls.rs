//! The TLS keys by which controllers are known.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::HeaderValue;
use axum::middleware::Next;
use axum::response::Response;
use znet_api::client::PIN_HEADER;
use znet_api::error::Problem;
use znet_api::rest::{FormerTlsKey, RotateTls, TlsKeys, rfc3339};

use super::auth::Caller;
use super::problem::{Answer, Content, Failed, seconds};
use crate::actor::Role;
use crate::hub::{Hub, TlsStep, TlsStepError};
use crate::network::CommandError;

impl From<TlsStepError> for Failed {
    fn from(error: TlsStepError) -> Self {
        let problem = match &error {
            TlsStepError::Step(_) => Problem::new(409, "tls_rotation", &error),
            TlsStepError::Store(error) => Problem::from(CommandError::Store(error.clone())),
            TlsStepError::Keys(_) | TlsStepError::Tls(_) => Problem::new(500, "keys", &error),
        };
        problem.into()
    }
}

fn describe(hub: &Hub) -> Json<TlsKeys> {
    let keys = hub.tls();
    let former = keys.former().into_iter();
    Json(TlsKeys {
        current: hub.pin().to_string(),
        next: keys.next().map(|pin| pin.to_string()),
        former: former
            .map(|(pin, until)| FormerTlsKey { pin: pin.to_string(), until: until.map(rfc3339) })
            .collect(),
    })
}

/// The TLS keys by which controllers are known. Takes the role read in all networks.
#[utoipa::path(
    get, path = "/v1/tls", tag = "tls", operation_id = "show_tls", security(("operator" = [])),
    responses((status = 200, description = "The keys, by their pins", body = TlsKeys), Failed)
)]
pub(super) async fn show(caller: Caller, State(hub): State<Arc<Hub>>) -> Answer<TlsKeys> {
    caller.everywhere(Role::Read)?;
    Ok(describe(&hub))
}

/// Makes a new TLS key and announces it in all maps; it is shown when all live nodes know it. Takes the role admin in all
/// networks.
#[utoipa::path(
    post, path = "/v1/tls/rotate", tag = "tls", operation_id = "rotate_tls", security(("operator" = [])),
    request_body = RotateTls,
    responses((status = 200, description = "The keys as they are now", body = TlsKeys), Failed)
)]
pub(super) async fn rotate(
    caller: Caller,
    State(hub): State<Arc<Hub>>,
    Content(asked): Content<RotateTls>,
) -> Answer<TlsKeys> {
    caller.everywhere(Role::Admin)?;
    let keep = asked.keep_seconds.map(|n| seconds("keep_seconds", n)).transpose()?;
    hub.step_tls(TlsStep::Rotate { keep }, caller.actor()).await?;
    Ok(describe(&hub))
}

/// Shows the TLS key that is announced, whoever knows it. Takes the role admin in all networks.
#[utoipa::path(
    post, path = "/v1/tls/promote", tag = "tls", operation_id = "promote_tls", security(("operator" = [])),
    responses((status = 200, description = "The keys as they are now", body = TlsKeys), Failed)
)]
pub(super) async fn promote(caller: Caller, State(hub): State<Arc<Hub>>) -> Answer<TlsKeys> {
    caller.everywhere(Role::Admin)?;
    hub.step_tls(TlsStep::Promote, caller.actor()).await?;
    Ok(describe(&hub))
}

/// Gives up the TLS keys that another one has followed: whoever knows those alone is refused. Takes the role admin in all
/// networks.
#[utoipa::path(
    post, path = "/v1/tls/retire", tag = "tls", operation_id = "retire_tls", security(("operator" = [])),
    responses((status = 200, description = "The keys as they are now", body = TlsKeys), Failed)
)]
pub(super) async fn retire(caller: Caller, State(hub): State<Arc<Hub>>) -> Answer<TlsKeys> {
    caller.everywhere(Role::Admin)?;
    hub.step_tls(TlsStep::Retire, caller.actor()).await?;
    Ok(describe(&hub))
}

/// Tells every client which key is shown now, so that one that pins another hears of it in time.
pub(super) async fn tell(State(hub): State<Arc<Hub>>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    if let Ok(pin) = HeaderValue::from_str(&hub.pin().to_string()) {
        response.headers_mut().insert(PIN_HEADER, pin);
    }
    response
}
