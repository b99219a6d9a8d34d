//! The controller process itself: health, counters, its own description, backups.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use tokio_util::io::ReaderStream;
use utoipa::openapi::OpenApi;
use znet_api::error::Problem;
use znet_api::rest::Health;

use super::auth::Caller;
use super::problem::Failed;
use crate::actor::Role;
use crate::hub::Hub;

/// Whether the controller serves, and whether its store takes changes.
///
/// 200 also while the store refuses writes, as reading and all links go on then; the status tells.
#[utoipa::path(
    get, path = "/healthz", tag = "process",
    responses((status = 200, description = "It serves", body = Health))
)]
pub(super) async fn health(State(hub): State<Arc<Hub>>) -> Json<Health> {
    let status = if hub.probe().await.is_ok() { "ok" } else { "read_only" };
    Json(Health {
        status: status.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pin: hub.pin().to_string(),
        networks: hub.networks().len(),
    })
}

/// Counters in Prometheus' text form. Takes the role read in all networks.
#[utoipa::path(
    get, path = "/metrics", tag = "process", security(("operator" = [])),
    responses((status = 200, description = "The counters", content_type = "application/openmetrics-text", body = String), Failed)
)]
pub(super) async fn metrics(caller: Caller, State(hub): State<Arc<Hub>>) -> Result<Response, Failed> {
    caller.everywhere(Role::Read)?;
    let text = hub.metrics().text(&hub.figures());
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(CONTENT_TYPE, kind)], text).into_response())
}

/// This description.
#[utoipa::path(
    get, path = "/openapi.json", tag = "process",
    responses((status = 200, description = "An OpenAPI 3.1 document", body = Object))
)]
pub(super) async fn openapi() -> Json<OpenApi> {
    Json(super::document())
}

/// Makes a backup of everything, keys included, and sends it. Takes the role admin in all networks.
#[utoipa::path(
    post, path = "/v1/backup", tag = "process", security(("operator" = [])),
    responses(
        (status = 200, description = "The backup file", content_type = "application/octet-stream", body = Vec<u8>),
        Failed,
    )
)]
pub(super) async fn backup(caller: Caller, State(hub): State<Arc<Hub>>) -> Result<Response, Failed> {
    caller.everywhere(Role::Admin)?;
    let file = hub.backup(caller.actor()).await;
    let file = file.map_err(|error| Problem::new(500, "backup_failed", error))?;
    let headers = [
        (CONTENT_TYPE, "application/octet-stream"),
        (CONTENT_DISPOSITION, "attachment; filename=\"znet.backup\""),
    ];
    let body = Body::from_stream(ReaderStream::new(tokio::fs::File::from_std(file)));
    Ok((StatusCode::OK, headers, body).into_response())
}
