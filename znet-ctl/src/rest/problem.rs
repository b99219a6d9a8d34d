//! Refusals as problem documents (RFC 9457), whoever made them; bodies and names as they come in.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, to_bytes};
use axum::extract::{FromRequest, MatchedPath, Request, State};
use axum::http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Response as Described, ResponseBuilder};
use utoipa::{IntoResponses, ToSchema as _};
use znet_api::error::Problem;
use znet_core::name::Name;

use crate::hub::{Hub, NetworkError};
use crate::network::CommandError;
use crate::timely::{Timely, TooSlow};

const PROBLEM_JSON: &str = "application/problem+json";
/// Most of a foreign refusal's text that is passed on.
const MAX_FOREIGN: usize = 4096;
/// Most characters of what came in, or was said about it, that a refusal repeats.
const MAX_REPEATED: usize = 300;
/// Longest duration in seconds that may be asked for: a hundred years. What never ends is said by leaving it out.
pub(super) const MAX_SECONDS: u64 = 100 * 365 * 86_400;

/// A request that was refused.
#[derive(Debug)]
pub(super) struct Failed(Problem);

impl Failed {
    /// The same of something that the body names: "not found" is said of the path alone, and a body that names what there
    /// is not cannot be carried out (RFC 9110, section 15.5.21). Other refusals than `code` stay as they are.
    pub(super) fn of_body(self, code: &str) -> Self {
        match self.0 {
            Problem { status: 404, .. } if self.0.code == code => at_odds(code, self.0.detail),
            other => Self(other),
        }
    }
}

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
        if let Some(millis) = self.0.retry_after_ms {
            // Whole seconds (RFC 9110, section 10.2.3).
            headers.insert(RETRY_AFTER, millis.div_ceil(1_000).into());
        }
        response
    }
}

impl IntoResponses for Failed {
    fn responses() -> BTreeMap<String, RefOr<Described>> {
        let problem = ContentBuilder::new().schema(Some(Ref::from_schema_name(Problem::name()))).build();
        let refusal = ResponseBuilder::new()
            .description("A refusal: a problem document (RFC 9457) with a stable code")
            .content(PROBLEM_JSON, problem)
            .build();
        BTreeMap::from([("default".to_owned(), refusal.into())])
    }
}

/// The beginning of a text that somebody else chose the length of.
pub(super) fn beginning(text: &str) -> &str {
    text.char_indices().nth(MAX_REPEATED).and_then(|(end, _)| text.get(..end)).unwrap_or(text)
}

/// Something in a request that cannot mean anything.
pub(super) fn invalid(field: &str, why: impl ToString) -> Failed {
    Failed(Problem::new(400, "invalid_argument", format!("{field}: {}", beginning(&why.to_string()))))
}

/// A request that is well formed and cannot be carried out: its parts are at odds with each other or with what there is.
pub(super) fn at_odds(code: &str, why: impl ToString) -> Failed {
    Failed(Problem::new(422, code, why))
}

/// Reads a duration out of a body.
pub(super) fn seconds(field: &str, seconds: u64) -> Result<Duration, Failed> {
    if seconds > MAX_SECONDS {
        return Err(invalid(
            field,
            format!("{seconds} s is longer than a hundred years; use at most {MAX_SECONDS}"),
        ));
    }
    Ok(Duration::from_secs(seconds))
}

/// Something that the path names and does not exist; see [`Failed::of_body`] for what the body names.
pub(super) fn unknown(code: &str, why: impl ToString) -> Failed {
    Failed(Problem::new(404, code, why))
}

/// Reads a name out of a path or a body.
pub(super) fn name(text: &str) -> Result<Name, Failed> {
    text.parse().map_err(|error| invalid("name", format!("{:?}: {error}", beginning(text))))
}

/// A JSON body, which has to be an object.
#[derive(Debug)]
pub(super) struct Content<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Content<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| {
            if TooSlow::caused(&rejection) {
                return Failed(TooSlow.into()).into_response();
            }
            rejection.into_response()
        })?;
        // An array would do for an object whose fields may all be absent, field by field.
        if bytes.trim_ascii_start().first() != Some(&b'{') {
            return Err(invalid("the body", "a JSON object is expected").into_response());
        }
        serde_json::from_slice(&bytes).map(Self).map_err(|error| invalid("the body", error).into_response())
    }
}

pub(super) async fn no_such_path(uri: Uri) -> Failed {
    unknown(
        "unknown_path",
        format!("there is nothing at {}; /openapi.json lists what there is", beginning(uri.path())),
    )
}

pub(super) async fn no_such_method(method: Method, uri: Uri) -> Failed {
    let why = format!("{} takes no {method}; /openapi.json lists what it takes", beginning(uri.path()));
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

/// Gives a body a time within which it has to come.
pub(super) async fn in_time(request: Request) -> Request {
    request.map(|body| Body::new(Timely::new(body, || TooSlow.into())))
}

/// Counts what was answered. The log has the route and not the path, in which somebody may have put a secret.
pub(super) async fn count(State(hub): State<Arc<Hub>>, request: Request, next: Next) -> Response {
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let response: Response<Body> = next.run(request).await;
    let route = route.as_ref().map_or("none", MatchedPath::as_str);
    tracing::debug!(%method, route, status = response.status().as_u16(), "answered");
    hub.metrics().request("rest", response.status().as_u16());
    response
}
