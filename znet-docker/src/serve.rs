//! HTTP on the plugin's socket: one POST a call, bounded, answered in JSON, errors as `{"Err": TEXT}`.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};
use tokio::net::UnixListener;

use crate::driver::Driver;
use crate::refusal::Refusal;

/// Largest request in bytes that is read.
const MAX_BODY: usize = 1 << 20;
/// What the answers say that they are: a version that every Docker since 1.12 accepts.
const CONTENT_TYPE: &str = "application/vnd.docker.plugins.v1.2+json";

/// Answers until the process ends.
///
/// # Errors
/// The socket's.
pub(crate) async fn serve(listener: UnixListener, driver: Arc<Driver>) -> std::io::Result<()> {
    axum::serve(listener, Router::new().fallback(answer).with_state(driver)).await
}

async fn answer(State(driver): State<Arc<Driver>>, method: Method, uri: Uri, body: Body) -> Response {
    let called = uri.path().trim_start_matches('/').to_owned();
    let (status, said) = match call(driver, &called, &method, body).await {
        Ok(said) => (StatusCode::OK, said),
        Err(refusal) => {
            tracing::warn!(call = called, error = refusal.text, "refused");
            (refusal.status, json!({ "Err": refusal.text }))
        }
    };
    (status, [(header::CONTENT_TYPE, CONTENT_TYPE)], said.to_string()).into_response()
}

async fn call(driver: Arc<Driver>, called: &str, method: &Method, body: Body) -> Result<Value, Refusal> {
    if method != Method::POST {
        let text = format!("{method} is no call: everything here is asked by POST");
        return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, text));
    }
    let body = to_bytes(body, MAX_BODY).await.map_err(|error| {
        let text = format!("the request cannot be read, or is larger than {MAX_BODY} bytes: {error}");
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, text)
    })?;
    tracing::debug!(call = called, "asked");
    let called = called.to_owned();
    // On a thread for what blocks, where it comes to its end even if Docker hangs up.
    let done = tokio::task::spawn_blocking(move || driver.call(&called, &body)).await;
    done.unwrap_or_else(|error| Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())))
}
