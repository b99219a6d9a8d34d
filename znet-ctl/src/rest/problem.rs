//! Refusals as problem documents (RFC 9457), whoever made them; bodies and names as they come in.

use std::sync::Arc;

use axum::Json;
use axum::body::{Body, to_bytes};
use axum::extract::{FromRequest, Request, State};
use axum::http::header::{CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use znet_api::error::Problem;
use znet_core::name::Name;

use crate::hub::{Hub, NetworkError};
use crate::network::CommandError;

const PROBLEM_JSON: &str = "application/problem+json";
/// Most of a foreign refusal's text that is passed on.
const MAX_FOREIGN: usize = 4096;

/// A request that was refused.
#[derive(Debug)]
pub(super) struct Failed(Problem);

/// What a handler returns.
pub(super) type Answer<T> = Result<Json<T>, Failed>;

impl From<Problem> for Failed {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl From<CommandError> for Failed {
    fn from(error: CommandError) -> Self {
        Self(error.into())
    }
}

impl From<NetworkError> for Failed {
    fn from(error: NetworkError) -> Self {
        Self((&error).into())
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(&self.0)).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// Something in a request that cannot mean anything.
pub(super) fn invalid(field: &str, why: impl std::fmt::Display) -> Failed {
    Failed(Problem::new(400, "invalid_argument", format!("{field}: {why}")))
}

/// Something that was named and does not exist.
pub(super) fn unknown(code: &str, why: impl ToString) -> Failed {
    Failed(Problem::new(404, code, why))
}

/// Reads a name out of a path or a body.
pub(super) fn name(text: &str) -> Result<Name, Failed> {
    text.parse().map_err(|error| {
        invalid("name", format!("{:?}: {error}", text.chars().take(100).collect::<String>()))
    })
}

/// A JSON body. None at all is taken for an empty object.
#[derive(Debug)]
pub(super) struct Content<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Content<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let bytes = Bytes::from_request(request, state).await.map_err(IntoResponse::into_response)?;
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        serde_json::from_slice(text).map(Self).map_err(|error| invalid("the body", error).into_response())
    }
}

pub(super) async fn no_such_path(uri: Uri) -> Failed {
    unknown("unknown_path", format!("there is nothing at {}; /openapi.json lists what there is", uri.path()))
}

pub(super) async fn no_such_method(method: Method, uri: Uri) -> Failed {
    let why = format!("{} takes no {method}; /openapi.json lists what it takes", uri.path());
    Failed(Problem::new(405, "method_not_allowed", why))
}

/// Makes a problem document of every refusal that is none yet: those of the libraries around the handlers.
pub(super) async fn always(request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let status = response.status();
    let is_problem = response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == PROBLEM_JSON);
    if is_problem || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let text = to_bytes(response.into_body(), MAX_FOREIGN).await.unwrap_or_default();
    let why = String::from_utf8_lossy(&text).into_owned();
    let code = if status == StatusCode::PAYLOAD_TOO_LARGE { "too_large" } else { "invalid_argument" };
    Failed(Problem::new(status.as_u16(), code, if why.is_empty() { status.to_string() } else { why }))
        .into_response()
}

/// Counts what was answered.
pub(super) async fn count(State(hub): State<Arc<Hub>>, request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response: Response<Body> = next.run(request).await;
    tracing::debug!(%method, path, status = response.status().as_u16(), "answered");
    hub.metrics().request("rest", response.status().as_u16());
    response
}
